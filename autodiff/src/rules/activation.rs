//! Gradients of activation functions. At a kink they take the side that torch takes.

use super::elementwise::one;
use super::{Grads, Rule, RuleFn};
use limbeck_graph::Var;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI, FRAC_2_SQRT_PI, PI};

pub(super) const RULES: &[(&str, RuleFn)] = &[
    ("Relu", |r| one(r.g() * r.y(0).sign())),
    ("LeakyRelu", |r| one(above(r.x(0), 0.0).select(r.g(), r.g() * r.float("alpha", 0.01)))),
    ("PRelu", |r| {
        let (x, g) = (r.x(0), r.g());
        let gx = r.wants(0).then(|| above(x, 0.0).select(g, g * r.x(1)));
        Ok(vec![gx, r.wants(1).then(|| g * x.at_most(0.0))])
    }),
    ("ThresholdedRelu", |r| one(r.g() * above(r.x(0), r.float("alpha", 1.0)).cast(r.g().dtype()))),
    ("Sigmoid", |r| one(r.g() * r.y(0) * (1.0 - r.y(0)))),
    ("Tanh", |r| one(r.g() * (1.0 - r.y(0).square()))),
    ("HardSigmoid", |r| one(r.g() * r.float("alpha", f64::from(0.2f32)) * inside_unit(r.y(0)))),
    ("HardSwish", |r| {
        let x = r.x(0);
        let gate = (x / 6.0 + 0.5).at_least(0.0).at_most(1.0);
        one(r.g() * (gate + x * inside_unit(gate) / 6.0))
    }),
    ("Swish", |r| {
        let (x, alpha) = (r.x(0), r.float("alpha", 1.0));
        let gate = (x * alpha).sigmoid();
        one(r.g() * (gate + r.y(0) * (1.0 - gate) * alpha))
    }),
    ("Gelu", gelu),
    ("Erf", |r| one(r.g() * (-r.x(0).square()).exp() * FRAC_2_SQRT_PI)),
    ("Softplus", |r| one(r.g() * r.x(0).sigmoid())),
    ("Softsign", |r| one(r.g() / (r.x(0).abs() + 1.0).square())),
    ("Elu", |r| one(above(r.x(0), 0.0).select(r.g(), r.g() * (r.y(0) + r.float("alpha", 1.0))))),
    ("Selu", |r| {
        let alpha = r.float("alpha", 1.673_263_192_176_818_8);
        let gamma = r.float("gamma", 1.050_701_022_148_132_3);
        one(above(r.x(0), 0.0).select(r.g() * gamma, r.g() * (r.y(0) + alpha * gamma)))
    }),
    ("Celu", |r| one(above(r.x(0), 0.0).select(r.g(), r.g() * (r.y(0) / r.float("alpha", 1.0) + 1.0)))),
    ("Mish", |r| {
        let x = r.x(0);
        let gate = x.softplus().tanh();
        one(r.g() * (gate + x * (1.0 - gate.square()) * x.sigmoid()))
    }),
    ("Shrink", |r| one(r.g() * above(r.x(0).abs(), r.float("lambd", 0.5)).cast(r.g().dtype()))),
    ("Softmax", |r| {
        let (y, g) = (r.y(0), r.g());
        one(y * (g - (g * y).sum_keep(&[r.int("axis", -1)])))
    }),
    ("LogSoftmax", |r| one(r.g() - r.y(0).exp() * r.g().sum_keep(&[r.int("axis", -1)]))),
];

/// x > threshold, bool.
fn above(x: Var<'_>, threshold: f64) -> Var<'_> {
    x.greater(x.cx().scalar_of(threshold, x.dtype()))
}

/// 1 where a value clamped to 0..1 lies strictly between, else 0.
fn inside_unit(y: Var<'_>) -> Var<'_> {
    (y * (1.0 - y)).sign()
}

fn gelu<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    let x = r.x(0);
    if r.node.str("approximate") == Some("tanh") {
        let (scale, cubic) = (FRAC_2_PI.sqrt(), 0.044715);
        let square = x.square();
        let t = (x * (square * cubic + 1.0) * scale).tanh();
        let slope = (1.0 - t.square()) * (square * (3.0 * cubic) + 1.0) * scale;
        return one(r.g() * 0.5 * (t + 1.0 + x * slope));
    }
    let cumulative = ((x * FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
    let density = (x.square() * -0.5).exp() * (2.0 * PI).sqrt().recip();
    one(r.g() * (cumulative + x * density))
}
