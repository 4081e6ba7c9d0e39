//! Gradients of pointwise arithmetic. Ties of Max and Min split, as torch does.

use super::{Grads, Rule, RuleFn};
use limbeck_graph::Var;

pub(super) const RULES: &[(&str, RuleFn)] = &[
    ("Add", |r| Ok(vec![Some(r.g()), Some(r.g())])),
    ("Sub", |r| Ok(vec![Some(r.g()), r.wants(1).then(|| -r.g())])),
    ("Mul", |r| Ok(vec![r.wants(0).then(|| times(r.g(), r.x(1))), r.wants(1).then(|| times(r.g(), r.x(0)))])),
    ("Div", |r| {
        let gx = r.g() / r.x(1);
        Ok(vec![Some(gx), r.wants(1).then(|| -(gx * r.y(0)))])
    }),
    ("Neg", |r| one(-r.g())),
    ("Pow", pow),
    ("Sqrt", |r| one(r.g() * 0.5 / r.y(0))),
    ("Exp", |r| one(r.g() * r.y(0))),
    ("Log", |r| one(r.g() / r.x(0))),
    ("Abs", |r| one(r.g() * r.x(0).sign())),
    ("Reciprocal", |r| one(-(r.g() * r.y(0).square()))),
    ("Sin", |r| one(r.g() * r.x(0).cos())),
    ("Cos", |r| one(-(r.g() * r.x(0).sin()))),
    ("Tan", |r| one(r.g() * (r.y(0).square() + 1.0))),
    ("Asin", |r| one(r.g() / (1.0 - r.x(0).square()).sqrt())),
    ("Acos", |r| one(-(r.g() / (1.0 - r.x(0).square()).sqrt()))),
    ("Atan", |r| one(r.g() / (r.x(0).square() + 1.0))),
    ("Sinh", |r| one(r.g() * r.cx.op("Cosh", &[r.x(0)], &[]))),
    ("Cosh", |r| one(r.g() * r.cx.op("Sinh", &[r.x(0)], &[]))),
    ("Asinh", |r| one(r.g() / (r.x(0).square() + 1.0).sqrt())),
    ("Acosh", |r| one(r.g() / (r.x(0).square() - 1.0).sqrt())),
    ("Atanh", |r| one(r.g() / (1.0 - r.x(0).square()))),
    // x - n * y with the quotient n truncated, which is constant between its jumps.
    ("Mod", |r| Ok(vec![Some(r.g()), r.wants(1).then(|| r.g() * ((r.y(0) - r.x(0)) / r.x(1)))])),
    ("Max", extremum),
    ("Min", extremum),
    ("Sum", |r| Ok(r.node.inputs.iter().map(|_| Some(r.g())).collect())),
    ("Mean", |r| {
        let n = r.node.inputs.len() as f64;
        Ok(r.node.inputs.iter().map(|_| Some(r.g() / n)).collect())
    }),
    ("Identity", |r| one(r.g())),
    ("Cast", |r| one(r.g().cast(r.x(0).dtype()))),
    ("Where", |r| {
        let zero = r.cx.scalar_of(0.0, r.g().dtype());
        Ok(vec![None, Some(r.x(0).select(r.g(), zero)), Some(r.x(0).select(zero, r.g()))])
    }),
    ("Clip", clip),
    ("CastLike", |r| one(r.g().cast(r.x(0).dtype()))),
    ("Dropout", dropout),
    ("ai.limbeck::WithGrad", |r| one(r.g() * r.x(1))),
];

/// The gradient of an op with a single input.
pub(super) fn one(grad: Var<'_>) -> Result<Grads<'_>, String> {
    Ok(vec![Some(grad)])
}

/// `g * factor`, where the gradient of a loss in itself, 1, is left out.
fn times<'c>(g: Var<'c>, factor: Var<'c>) -> Var<'c> {
    if constant(g) == Some(1.0) && g.shape() == factor.shape() { factor } else { g * factor }
}

/// The identity of inference; in training the mask would be needed, which the node need not give.
fn dropout<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    match r.ints_of(2)?.as_deref() {
        None | Some([0]) => one(r.g()),
        _ => Err("in training it must be built from noise before differentiation (autodiff's `dropout`)".into()),
    }
}

fn pow<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    let (x, p) = (r.x(0), r.x(1));
    let gx = r.wants(0).then(|| match constant(p) {
        Some(0.0) => r.g() * 0.0,
        Some(2.0) => r.g() * 2.0 * x,
        Some(n) => r.g() * n * x.powf(n - 1.0),
        None => {
            // At an exponent of 0 the derivative is 0, at x = 0 too.
            let zero = p.equals(r.cx.scalar_of(0.0, p.dtype())).cast(p.dtype());
            r.g() * p.cast(x.dtype()) * x.pow(p - r.cx.scalar_of(1.0, p.dtype()) + zero)
        }
    });
    // d/dp x^p = x^p ln x, taken as 0 where x <= 0.
    let gp = r.wants(1).then(|| {
        let positive = x.greater(r.cx.scalar_of(0.0, x.dtype()));
        let safe = positive.select(x, r.cx.scalar_of(1.0, x.dtype()));
        (r.g() * r.y(0) * safe.ln()).cast(p.dtype())
    });
    Ok(vec![gx, gp])
}

/// The number behind a constant of one element.
fn constant(v: Var<'_>) -> Option<f64> {
    let tensor = v.cx().graph().constant(v.id())?;
    match tensor.to_f64_vec().ok()?[..] {
        [n] => Some(n),
        _ => None,
    }
}

/// Max and Min of any number of operands: each that attains the extremum gets an equal share.
fn extremum<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    let y = r.y(0);
    let hits: Vec<Var<'c>> = (0..r.node.inputs.len()).map(|i| r.x(i).equals(y).cast(y.dtype())).collect();
    let count = hits.iter().skip(1).fold(hits[0], |a, &b| a + b);
    let share = r.g() / count;
    Ok(hits.into_iter().map(|hit| Some(share * hit)).collect())
}

/// Bounds that are not differentiated are numbers to torch: nothing flows where one is met, as through ReLU6.
fn clip<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    if r.wants(1) || r.wants(2) {
        return clip_to_tensors(r);
    }
    let x = r.x(0);
    let mut inside: Option<Var<'c>> = None;
    let mut and = |b: Var<'c>| inside = Some(inside.map_or(b, |a| a.and(b)));
    if let Some(low) = r.opt(1) {
        and(x.greater(low));
    }
    if let Some(high) = r.opt(2) {
        and(x.less(high));
    }
    match inside {
        None => one(r.g()),
        Some(mask) => one(r.g() * mask.cast(x.dtype())),
    }
}

/// As torch's clamp to tensors: a bound has the gradient where it is the result, and half of it where the data equal
/// it, unless they equal both. Where the bounds cross, the upper one is the result.
fn clip_to_tensors<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    let (x, g) = (r.x(0), r.g());
    let number = |b: Var<'c>| b.cast(x.dtype());
    let never = r.cx.scalar_of(0.0, x.dtype());
    let (below, at_low) = r.opt(1).map_or((never, never), |low| (number(x.less(low)), number(x.equals(low))));
    let (above, at_high) = r.opt(2).map_or((never, never), |high| (number(x.greater(high)), number(x.equals(high))));
    let crossed = r.opt(1).zip(r.opt(2)).map_or(never, |(low, high)| number(low.greater(high)));
    let low = (below + at_low * (1.0 - at_high) * 0.5) * (1.0 - crossed);
    let high = (above + at_high * (1.0 - at_low) * 0.5) * (1.0 - crossed) + crossed;
    Ok(vec![r.wants(0).then(|| g * (1.0 - low - high)), r.wants(1).then(|| g * low), r.wants(2).then(|| g * high)])
}
