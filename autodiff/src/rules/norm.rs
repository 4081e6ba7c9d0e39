//! Gradients of normalisations. BatchNormalization here is the one of inference; its training form is composed
//! from primitives before differentiation.

use super::conv::per_channel;
use super::elementwise::one;
use super::reduce::non_zero;
use super::{Grads, Rule, RuleFn, reshaped};
use limbeck_graph::Var;
use limbeck_graph::ops::normalize_axis;

pub(super) const RULES: &[(&str, RuleFn)] = &[
    ("BatchNormalization", batch_norm),
    ("LayerNormalization", |r| {
        if r.grad_of(1).is_some() || r.grad_of(2).is_some() {
            return Err("gradient through its statistics outputs is not supported; compute them with ReduceMean".into());
        }
        let norm = Normalized::new(r.x(0), trailing(r)?, epsilon(r), true);
        Ok(vec![
            r.wants(0).then(|| norm.input(r.g() * r.x(1))),
            r.wants(1).then(|| r.g() * norm.value),
            r.wants(2).then(|| r.g()),
        ])
    }),
    ("RMSNormalization", |r| {
        let norm = Normalized::new(r.x(0), trailing(r)?, epsilon(r), false);
        Ok(vec![r.wants(0).then(|| norm.input(r.g() * r.x(1))), r.wants(1).then(|| r.g() * norm.value)])
    }),
    ("InstanceNormalization", |r| {
        let axes = (2..r.x(0).rank() as i64).collect();
        per_group(r, &r.x(0).shape(), axes)
    }),
    ("GroupNormalization", |r| {
        let shape = r.x(0).shape();
        let groups = usize::try_from(r.int("num_groups", 0)).ok().filter(|&g| g > 0).ok_or("num_groups is missing")?;
        let lane = shape.iter().skip(1).product::<usize>() / groups;
        per_group(r, &[shape.first().copied().unwrap_or(1), groups, lane], vec![2])
    }),
    ("LpNormalization", |r| {
        let (x, y, g, axis) = (r.x(0), r.y(0), r.g(), [r.int("axis", -1)]);
        let along = (g * y).sum_keep(&axis);
        one(match r.int("p", 2) {
            1 => (g - x.sign() * along) / non_zero(x.abs().sum_keep(&axis)),
            _ => (g - y * along) / non_zero(x.square().sum_keep(&axis).sqrt()),
        })
    }),
];

fn epsilon(r: &Rule<'_, '_>) -> f64 {
    r.float("epsilon", 1e-5)
}

/// The axes from attribute `axis` on.
fn trailing(r: &Rule<'_, '_>) -> Result<Vec<i64>, String> {
    let rank = r.x(0).rank();
    let first = normalize_axis(r.int("axis", -1), rank).map_err(|e| e.0)?;
    Ok((first as i64..rank as i64).collect())
}

/// Data over the root of their mean square (of their variance when centred), along some axes.
struct Normalized<'c> {
    value: Var<'c>,
    inverse: Var<'c>,
    axes: Vec<i64>,
    centred: bool,
}

impl<'c> Normalized<'c> {
    fn new(x: Var<'c>, axes: Vec<i64>, epsilon: f64, centred: bool) -> Normalized<'c> {
        let x = if centred { x - x.mean_keep(&axes) } else { x };
        let inverse = (x.square().mean_keep(&axes) + epsilon).sqrt().reciprocal();
        Normalized { value: x * inverse, inverse, axes, centred }
    }

    /// Gradient of the data from that of the value.
    fn input(&self, g: Var<'c>) -> Var<'c> {
        let along = self.value * (g * self.value).mean_keep(&self.axes);
        let g = if self.centred { g - g.mean_keep(&self.axes) } else { g };
        (g - along) * self.inverse
    }
}

/// One value a channel, shaped to broadcast against `x`.
fn wide<'c>(v: Var<'c>, x: Var<'c>) -> Var<'c> {
    let mut shape = vec![1; x.rank()];
    if let Some(channels) = shape.get_mut(1) {
        *channels = v.len();
    }
    reshaped(v, &shape)
}

/// Scale and shift a channel of data normalised along `axes` of the shape `grouped`.
fn per_group<'c>(r: &Rule<'_, 'c>, grouped: &[usize], axes: Vec<i64>) -> Result<Grads<'c>, String> {
    let (x, g) = (r.x(0), r.g());
    let norm = Normalized::new(reshaped(x, grouped), axes, epsilon(r), true);
    let gx = r.wants(0).then(|| reshaped(norm.input(reshaped(g * wide(r.x(1), x), grouped)), &x.shape()));
    let gs = r.wants(1).then(|| per_channel(g * reshaped(norm.value, &x.shape())));
    Ok(vec![gx, gs, r.wants(2).then(|| per_channel(g))])
}

/// `y = (x - mean) * scale / sqrt(var + epsilon) + bias` with stored statistics.
fn batch_norm<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    if r.int("training_mode", 0) != 0 {
        return Err("its training form has no rule; instantiate the graph with autodiff's `compose`".into());
    }
    let (x, g, scale) = (r.x(0), r.g(), r.x(1));
    let inverse = (r.x(4) + epsilon(r)).sqrt().reciprocal();
    let slope = scale * inverse;
    // Sums over all but the channels, each made only when something needs it.
    let sum = if r.wants(2) || r.wants(3) { Some(per_channel(g)) } else { None };
    let moment = (r.wants(1) || r.wants(4)).then(|| per_channel(g * (x - wide(r.x(3), x))));
    Ok(vec![
        r.wants(0).then(|| g * wide(slope, x)),
        moment.filter(|_| r.wants(1)).map(|m| m * inverse),
        sum.filter(|_| r.wants(2)),
        sum.filter(|_| r.wants(3)).map(|s| -(s * slope)),
        moment.filter(|_| r.wants(4)).map(|m| m * slope * inverse.square() * -0.5),
    ])
}
