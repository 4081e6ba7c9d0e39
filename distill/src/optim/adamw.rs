//! AdamW (Loshchilov & Hutter, "Decoupled Weight Decay Regularization"), as torch.optim.AdamW defines it.

use super::{Optimiser, Trained};
use crate::{DistillError, StepBuilder};
use limbeck_graph::Var;
use limbeck_runtime::StateRole;
use limbeck_tensor::Tensor;

/// `θ ← (1 − η λ) θ − η m̂ / (√v̂ + ε)` with bias-corrected moments m̂, v̂.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }
}

impl Optimiser for AdamW {
    fn update<'c>(
        &self,
        step: &StepBuilder<'c>,
        params: &[Trained<'c, '_>],
        lr: Var<'c>,
    ) -> Result<Vec<Var<'c>>, DistillError> {
        let Some(first) = params.first() else { return Ok(vec![]) };
        let cx = step.cx();
        // One count for the group, named after its first member.
        let count_name = format!("{}.steps", first.name);
        let count = step.state(&count_name, Tensor::from_f64(cx.float(), [], &[0.0])?, StateRole::Optimiser)?;
        let t = count + 1.0;
        step.update(count, t)?;
        let correction = |beta: f64| 1.0 - cx.scalar(beta).pow(t);
        let (c1, c2) = (correction(self.beta1), correction(self.beta2));
        params
            .iter()
            .map(|p| {
                let m = step.zeros(&format!("{}.moment1", p.name), p.value, StateRole::Optimiser)?;
                let v = step.zeros(&format!("{}.moment2", p.name), p.value, StateRole::Optimiser)?;
                let m_next = m * self.beta1 + p.grad * (1.0 - self.beta1);
                let v_next = v * self.beta2 + p.grad.square() * (1.0 - self.beta2);
                step.update(m, m_next)?;
                step.update(v, v_next)?;
                let rate = if p.lr_scale == 1.0 { lr } else { lr * p.lr_scale };
                let decayed = if p.weight_decay == 0.0 { p.value } else { p.value * (1.0 - rate * p.weight_decay) };
                Ok(decayed - (m_next * (rate / c1)) / ((v_next / c2).sqrt() + self.epsilon))
            })
            .collect()
    }
}
