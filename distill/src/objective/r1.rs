//! The gradient penalty of a critic.

use super::{Objective, Param, Side, Tap};
use limbeck_autodiff::Differentiate;

/// The critic's gradient penalty.
pub(super) static R1: Objective = Objective {
    name: "r1",
    title: "Gradient penalty of the critic on data",
    source: "Mescheder et al., Which Training Methods for GANs do actually Converge? (2018), eq. 9",
    formula: "L = gamma/2 mean_i sum_k (d sum C(h) / d h[i,k])^2; the score of a row depends on its own row alone",
    taps: &[
        Tap { name: "real_score", shape: "[batch, ...], computed from critic_input", side: Side::Student },
        Tap { name: "critic_input", shape: "[batch, ...], what the gradient is taken in", side: Side::Student },
    ],
    params: &[Param { name: "gamma", default: 1.0, min: 0.0, max: 1e6, about: "weight of the penalty" }],
    build: |t| {
        let (score, input) = (t.tap("real_score")?, t.tap("critic_input")?);
        let slope = t.cx.grad(score.sum(&[]), &[input])?[0];
        Ok(t.batch_mean(slope.flatten().square().sum(&[-1]))? * (0.5 * t.param("gamma")))
    },
};
