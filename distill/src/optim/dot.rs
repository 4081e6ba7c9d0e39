//! DOT, a distillation-oriented trainer (Zhao et al., ICCV 2023): the task and the distillation gradients keep
//! momentum buffers of their own, the latter with more inertia.

use crate::{DistillError, StepBuilder};
use limbeck_graph::Var;
use limbeck_runtime::StateRole;

/// `v_kd ← (μ+Δ) v_kd + g_kd`, `v_task ← (μ−Δ) v_task + g_task + λ θ`, `θ ← θ − η (v_task + v_kd)`.
/// A parameter that only one loss reaches keeps momentum μ.
#[derive(Debug, Clone, Copy)]
pub struct Dot {
    /// μ.
    pub momentum: f64,
    /// Δ: 0 is plain SGD on the summed loss.
    pub delta: f64,
    /// λ, applied once, with the task gradient.
    pub weight_decay: f64,
}

/// A parameter with its two gradients; `None` where that loss does not reach it.
pub struct Split<'c, 'n> {
    /// Name in the store.
    pub name: &'n str,
    /// Present value.
    pub value: Var<'c>,
    /// Gradient of the task loss.
    pub task: Option<Var<'c>>,
    /// Gradient of the distillation loss.
    pub distillation: Option<Var<'c>>,
}

impl Dot {
    /// Declares the velocities and returns the new value of each parameter, in order.
    pub fn update<'c>(
        &self,
        step: &StepBuilder<'c>,
        params: &[Split<'c, '_>],
        lr: Var<'c>,
    ) -> Result<Vec<Var<'c>>, DistillError> {
        params
            .iter()
            .map(|p| {
                let both = p.task.is_some() && p.distillation.is_some();
                let delta = if both { self.delta } else { 0.0 };
                let decay = (self.weight_decay != 0.0).then(|| p.value * self.weight_decay);
                let task = match (p.task, decay) {
                    (Some(g), Some(d)) => Some(g + d),
                    (g, d) => g.or(d),
                };
                let mut velocity: Option<Var<'c>> = None;
                for (suffix, grad, momentum) in [
                    ("velocity_task", task, self.momentum - delta),
                    ("velocity_kd", p.distillation, self.momentum + delta),
                ] {
                    let Some(grad) = grad else { continue };
                    let v = step.zeros(&format!("{}.{suffix}", p.name), p.value, StateRole::Optimiser)?;
                    let next = v * momentum + grad;
                    step.update(v, next)?;
                    velocity = Some(velocity.map_or(next, |sum| sum + next));
                }
                Ok(velocity.map_or(p.value, |v| p.value - v * lr))
            })
            .collect()
    }
}
