//! Adversarial losses: generator and critic.

use super::{Objective, Side, Tap};

/// The generator's adversarial loss.
pub(super) static GENERATOR: Objective = Objective {
    name: "gan_generator",
    title: "Adversarial loss of the generator",
    source: "Goodfellow et al., Generative Adversarial Nets (2014), section 3, the non-saturating form",
    formula: "L = mean_i mean_k softplus(-C(fake)[i,k])",
    taps: &[Tap { name: "fake_score", shape: "[batch, ...], the critic on samples", side: Side::Student }],
    params: &[],
    build: |t| t.batch_mean((-t.tap("fake_score")?).softplus().flatten().mean(&[-1])),
};

/// The critic's loss.
pub(super) static CRITIC: Objective = Objective {
    name: "gan_critic",
    title: "Adversarial loss of the critic",
    source: "Goodfellow et al., Generative Adversarial Nets (2014), eq. 1",
    formula: "L = mean_i mean_k [ softplus(C(fake)[i,k]) + softplus(-C(real)[i,k]) ]",
    taps: &[
        Tap { name: "fake_score", shape: "[batch, ...], the critic on samples", side: Side::Student },
        Tap { name: "real_score", shape: "[batch, ...], the critic on data", side: Side::Student },
    ],
    params: &[],
    build: |t| {
        let fake = t.tap("fake_score")?.softplus().flatten().mean(&[-1]);
        let real = (-t.tap("real_score")?).softplus().flatten().mean(&[-1]);
        Ok(t.batch_mean(fake)? + t.batch_mean(real)?)
    },
};
