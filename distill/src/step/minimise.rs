//! From a loss to updated parameters: gradients, their accumulation over runs, clipping, the optimiser.

use super::{Condition, StepBuilder};
use crate::optim::{Optimiser, Trained};
use crate::{DistillError, ParamSet};
use limbeck_autodiff::Differentiate;
use limbeck_graph::Var;
use limbeck_runtime::StateRole;

/// A set of parameters that is trained alike.
pub struct Group<'s, 'c> {
    /// The parameters.
    pub params: &'s ParamSet<'c>,
    /// Factor on the learning rate.
    pub lr_scale: f64,
    /// Weight decay of weights with rank 2 or more; biases and normalisation have none.
    pub weight_decay: f64,
}

/// What happens between gradients and the optimiser.
#[derive(Debug, Clone, Copy, Default)]
pub struct GradOptions {
    /// Largest global L2 norm of the gradients of one optimiser call, above 0.
    pub clip_norm: Option<f64>,
    /// Collect gradients over several runs; the update happens in a run with the scalar `apply` at 1, its default. It
    /// takes the mean of the collected gradients, in which a run counts by the sum of its `row_weight` (every run alike
    /// where the step has no such input), so that batches of any fill equal one large batch. A run with numbers that are
    /// not finite does not count, and with `apply` it starts the next collection without an update.
    pub accumulate: bool,
}

/// A value to train: name in the store, value, factor on the learning rate, weight decay.
type Target<'c> = (String, Var<'c>, f64, f64);

impl<'c> StepBuilder<'c> {
    /// Differentiates `loss` with respect to the groups' parameters and lets `optimiser` update them.
    /// `label` tells the optimiser calls of one step apart; the learning rate is the scalar input `lr`
    /// (`lr_LABEL` when the label is not empty), which must be fed at every run.
    pub fn minimise(
        &self,
        label: &str,
        loss: Var<'c>,
        groups: &[Group<'_, 'c>],
        optimiser: &dyn Optimiser,
        options: GradOptions,
    ) -> Result<(), DistillError> {
        if let Some(limit) = options.clip_norm.filter(|limit| limit.is_nan() || *limit <= 0.0) {
            return Err(self.error(format!("clip_norm = {limit} lets no gradient through; it must be above 0")));
        }
        let suffix = if label.is_empty() { String::new() } else { format!("_{label}") };
        let targets = self.targets(groups)?;
        let wrt: Vec<Var<'c>> = targets.iter().map(|t| t.1).collect();
        let mut grads = self.cx.grad(loss, &wrt)?;
        let lr = self.scalar(&format!("lr{suffix}"), 0.0)?;
        let mut when = None;
        if options.accumulate {
            let apply = self.scalar(&format!("apply{suffix}"), 1.0)?.greater(self.cx.scalar(0.5));
            grads = self.accumulated(&suffix, &targets, grads, apply)?;
            when = Some(apply);
        }
        let norm = grads.iter().map(|g| g.square().sum(&[])).reduce(|a, b| a + b).map(Var::sqrt);
        if let Some(norm) = norm {
            self.metric(&format!("grad_norm{suffix}"), norm);
            self.require_finite(norm);
            if let Some(limit) = options.clip_norm {
                let factor = (limit / (norm + 1e-6)).at_most(1.0);
                grads = grads.into_iter().map(|g| g * factor).collect();
            }
        }
        self.require_finite(loss);
        let before = self.parts.borrow().state.len();
        let trained: Vec<Trained<'c, '_>> = targets
            .iter()
            .zip(&grads)
            .map(|((name, value, lr_scale, weight_decay), grad)| Trained {
                name,
                value: *value,
                grad: *grad,
                lr_scale: *lr_scale,
                weight_decay: *weight_decay,
            })
            .collect();
        let next = optimiser.update(self, &trained, lr)?;
        for (p, next) in trained.iter().zip(next) {
            self.update(p.value, next)?;
        }
        if let Some(when) = when {
            let mut parts = self.parts.borrow_mut();
            let after = parts.state.len();
            let own: Vec<usize> =
                (before..after).chain(wrt.iter().filter_map(|v| parts.ids.get(&v.id()).copied())).collect();
            parts.conditions.extend(own.into_iter().map(|i| (i, Condition::When(when))));
        }
        self.cx.check()?;
        Ok(())
    }

    /// The groups' parameters that are trained in this step.
    fn targets(&self, groups: &[Group<'_, 'c>]) -> Result<Vec<Target<'c>>, DistillError> {
        let mut targets = vec![];
        for group in groups {
            for (name, var) in group.params.iter() {
                if self.role_of(var) != Some(StateRole::Parameter) {
                    continue;
                }
                let decay = if var.rank() >= 2 { group.weight_decay } else { 0.0 };
                targets.push((format!("{}/{name}", group.params.name), var, group.lr_scale, decay));
            }
        }
        match targets.is_empty() {
            true => Err(self.error("no group holds a trainable parameter")),
            false => Ok(targets),
        }
    }

    /// The mean of the gradients collected so far, this run's included.
    fn accumulated(
        &self,
        suffix: &str,
        targets: &[Target<'c>],
        grads: Vec<Var<'c>>,
        apply: Var<'c>,
    ) -> Result<Vec<Var<'c>>, DistillError> {
        let cx = self.cx;
        let weight = self.row_weight().map_or_else(|| cx.scalar(1.0), |w| w.cast(cx.float()).sum(&[]));
        let collected = self.sum(&format!("accumulated{suffix}.weight"), weight, apply)?;
        targets
            .iter()
            .zip(grads)
            .map(|((name, ..), grad)| {
                let weighted = grad * weight.cast(grad.dtype());
                Ok(self.sum(&format!("{name}.accumulated"), weighted, apply)? / collected.cast(grad.dtype()))
            })
            .collect()
    }

    /// A sum over runs that is kept in the store and starts anew after a run in which `until` holds.
    fn sum(&self, name: &str, addend: Var<'c>, until: Var<'c>) -> Result<Var<'c>, DistillError> {
        let sum = self.zeros(name, addend, StateRole::Optimiser)?;
        let total = sum + addend;
        self.update(sum, total)?;
        let mut parts = self.parts.borrow_mut();
        if let Some(index) = parts.ids.get(&sum.id()).copied() {
            parts.conditions.insert(index, Condition::ZeroWhen(until));
        }
        Ok(total)
    }
}
