//! Stochastic gradient descent with momentum, as torch.optim.SGD defines it.

use super::{Optimiser, Trained};
use crate::{DistillError, StepBuilder};
use limbeck_graph::Var;
use limbeck_runtime::StateRole;

/// `v ← μ v + (g + λ θ)`, `θ ← θ − η v`; with Nesterov `θ ← θ − η (g + λ θ + μ v)`.
#[derive(Debug, Clone, Copy)]
pub struct Sgd {
    /// μ; 0 keeps no velocity.
    pub momentum: f64,
    /// Look ahead along the velocity.
    pub nesterov: bool,
}

impl Optimiser for Sgd {
    fn update<'c>(
        &self,
        step: &StepBuilder<'c>,
        params: &[Trained<'c, '_>],
        lr: Var<'c>,
    ) -> Result<Vec<Var<'c>>, DistillError> {
        params
            .iter()
            .map(|p| {
                let g = if p.weight_decay == 0.0 { p.grad } else { p.grad + p.value * p.weight_decay };
                let rate = if p.lr_scale == 1.0 { lr } else { lr * p.lr_scale };
                if self.momentum == 0.0 {
                    return Ok(p.value - g * rate);
                }
                let v = step.zeros(&format!("{}.velocity", p.name), p.value, StateRole::Optimiser)?;
                let v_next = v * self.momentum + g;
                step.update(v, v_next)?;
                let direction = if self.nesterov { g + v_next * self.momentum } else { v_next };
                Ok(p.value - direction * rate)
            })
            .collect()
    }
}
