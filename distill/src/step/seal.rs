//! The end of assembly: guards on every state update, outputs, the manifest.

use super::{Condition, Parts, StepBuilder};
use crate::DistillError;
use limbeck_graph::Var;
use limbeck_runtime::{StateRole, StepManifest};
use limbeck_tensor::TensorMap;
use std::collections::BTreeMap;

/// Manifest, first values of the state, and label inputs with their classes.
type Sealed = (StepManifest, TensorMap, BTreeMap<String, usize>);

impl<'c> StepBuilder<'c> {
    pub(super) fn seal(self) -> Result<Sealed, DistillError> {
        {
            let parts = self.parts.borrow();
            if parts.losses.is_empty() && parts.updates.is_empty() && parts.metrics.is_empty() {
                return Err(self.error("reports no loss and updates no state"));
            }
        }
        self.guard()?;
        let mut parts = self.parts.take();
        let cx = self.cx;
        let gate = parts.gates.values().copied().reduce(|a, b| a.and(b));
        let report = |list: &[(String, Var<'c>)]| -> Vec<String> {
            list.iter().for_each(|(name, var)| cx.output(name, *var));
            list.iter().map(|(name, _)| name.clone()).collect()
        };
        let losses = report(&parts.losses);
        let mut metrics = report(&parts.metrics);
        if let Some(gate) = gate {
            cx.output("finite", gate.cast(cx.float()));
            metrics.push("finite".into());
        }
        // What the store holds after the run, by state.
        let mut held: BTreeMap<usize, Var<'c>> = BTreeMap::new();
        for (&index, &next) in &parts.updates {
            let old = self.current(&parts, index, next)?;
            let guarded = |holds: Option<Var<'c>>| holds.map_or(next, |h| h.select(next, old));
            let next = match parts.conditions.get(&index) {
                None => guarded(gate),
                Some(Condition::When(when)) => guarded(Some(gate.map_or(*when, |g| g.and(*when)))),
                Some(Condition::ZeroWhen(when)) => when.select(cx.scalar_of(0.0, old.dtype()), guarded(gate)),
            };
            held.insert(index, next);
        }
        for &(average, params, decay) in &parts.averages {
            let Some(&index) = parts.ids.get(&average.id()) else { continue };
            let followed = parts.ids.get(&params.id()).and_then(|i| held.get(i)).copied().unwrap_or(params);
            let next = average * decay + followed * (1.0 - decay);
            let old = self.current(&parts, index, next)?;
            held.insert(index, gate.map_or(next, |g| g.select(next, old)));
        }
        for (index, next) in held {
            let entry = &mut parts.state[index];
            entry.output = format!("{}.next", entry.name);
            cx.output(&entry.output, next);
        }
        cx.check()?;
        let manifest = StepManifest {
            name: self.name,
            state: parts.state,
            batch: parts.batch,
            scalars: parts.scalars,
            noise: parts.noise,
            losses,
            metrics,
        };
        Ok((manifest, parts.initial, parts.labels))
    }

    /// Requires finite losses and new values of parameters and buffers. A sum that is finite has finite terms.
    fn guard(&self) -> Result<(), DistillError> {
        let (losses, updates) = {
            let parts = self.parts.borrow();
            let guarded = |i: &usize| matches!(parts.state[*i].role, StateRole::Parameter | StateRole::Buffer);
            let updates: Vec<Var<'c>> = parts
                .updates
                .iter()
                .filter(|(i, next)| guarded(i) && next.dtype().is_float())
                .map(|(_, v)| *v)
                .collect();
            (parts.losses.clone(), updates)
        };
        for (name, loss) in losses {
            if loss.len() != 1 {
                return Err(self.error(format!("the loss '{name}' is {:?}; reduce it to a scalar", loss.shape())));
            }
            self.require_finite(loss);
        }
        let sums = updates.into_iter().map(|next| next.sum(&[]).cast(self.cx.float()));
        if let Some(sum) = sums.reduce(|a, b| a + b) {
            self.require_finite(sum);
        }
        Ok(())
    }

    /// The state of this index, whose update must have its shape and dtype.
    fn current(&self, parts: &Parts<'c>, index: usize, next: Var<'c>) -> Result<Var<'c>, DistillError> {
        let entry = &parts.state[index];
        let old = self.cx.named(&entry.name);
        if next.shape() == old.shape() && next.dtype() == old.dtype() {
            return Ok(old);
        }
        let [new, own] = [next, old].map(|v| format!("{}{:?}", v.dtype(), v.shape()));
        Err(self.error(format!("the update of '{}' is {new}, but the state is {own}", entry.name)))
    }
}
