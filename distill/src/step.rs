//! Train-step assembly: from nets, losses and an optimiser to one ONNX graph and its manifest.

use crate::optim::{Optimiser, Trained};
use crate::{DistillError, Net, Outputs, ParamSet};
use limbeck_autodiff::Differentiate;
use limbeck_graph::{Cx, Graph, ValueId, Var};
use limbeck_runtime::{Distribution, Model, NoiseEntry, ScalarEntry, StateEntry, StateRole, StepManifest, TensorEntry};
use limbeck_tensor::{Bytes, DType, Tensor, TensorMap};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

/// A finished step: graph, manifest, and the first values of its state.
#[derive(Debug, Clone)]
pub struct Step {
    /// The graph, in portable or fused form.
    pub graph: Graph,
    /// What its inputs and outputs are.
    pub manifest: StepManifest,
    /// Values to put into the store before the first run, by name.
    pub initial: TensorMap,
}

impl Step {
    /// The model to compile.
    pub fn model(&self) -> Result<Model, DistillError> {
        Ok(self.manifest.model(self.bytes()?))
    }

    /// An upper bound of a run's memory in bytes: parameters, optimiser state and averages twice (before and after), and
    /// every intermediate value at once.
    pub fn predicted_bytes(&self) -> u64 {
        let roles = [StateRole::Parameter, StateRole::Optimiser, StateRole::Average];
        let state: usize = roles.iter().map(|&r| self.manifest.state_bytes(r)).sum();
        let of = |ty: &limbeck_graph::TensorType| ty.dtype.byte_len(ty.concrete()?.iter().product());
        let values: usize = self.graph.value_ids().filter_map(|v| of(self.graph.ty(v)?)).sum();
        (2 * state + values) as u64
    }

    /// The ONNX file.
    pub fn bytes(&self) -> Result<Bytes, DistillError> {
        Ok(self.graph.to_bytes()?)
    }
}

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
    /// Largest global L2 norm of the gradients of one optimiser call.
    pub clip_norm: Option<f64>,
    /// Sum gradients over several runs; the update happens when the scalar `apply` is 1, with the sum divided by
    /// the scalar `accumulated`.
    pub accumulate: bool,
}

#[derive(Default)]
struct Parts<'c> {
    state: Vec<StateEntry>,
    ids: HashMap<ValueId, usize>,
    updates: BTreeMap<usize, Var<'c>>,
    initial: TensorMap,
    batch: Vec<TensorEntry>,
    scalars: Vec<ScalarEntry>,
    noise: Vec<NoiseEntry>,
    losses: Vec<(String, Var<'c>)>,
    metrics: Vec<(String, Var<'c>)>,
    /// Bool scalars that must all hold for any state to change.
    gates: Vec<Var<'c>>,
    /// Per state, an additional condition (gradient accumulation).
    conditions: HashMap<usize, Var<'c>>,
}

/// A step under construction.
pub struct StepBuilder<'c> {
    cx: &'c Cx,
    name: String,
    parts: RefCell<Parts<'c>>,
}

/// Assembles a step: `f` declares inputs and state, builds losses and calls the optimiser.
///
/// Every state update is guarded: when the loss or a gradient is not finite, the run changes no state, and the
/// metric `finite` is 0.
pub fn build_step(
    name: &str,
    float: DType,
    f: impl for<'c> FnOnce(&StepBuilder<'c>) -> Result<(), DistillError>,
) -> Result<Step, DistillError> {
    let cx = Cx::new(name, float);
    let (manifest, initial) = {
        let builder = StepBuilder { cx: &cx, name: name.into(), parts: RefCell::default() };
        f(&builder)?;
        builder.seal()?
    };
    let graph = cx.finish()?;
    Ok(Step { graph, manifest, initial })
}

impl<'c> StepBuilder<'c> {
    /// The construction.
    pub fn cx(&self) -> &'c Cx {
        self.cx
    }

    fn error(&self, reason: impl Into<String>) -> DistillError {
        DistillError::Step { name: self.name.clone(), reason: reason.into() }
    }

    fn declare(&self, name: &str, dtype: DType, shape: &[usize]) -> Result<Var<'c>, DistillError> {
        if self.cx.graph().find(name).is_some() {
            return Err(self.error(format!("'{name}' is declared twice")));
        }
        Ok(self.cx.input(name, dtype, shape))
    }

    /// A tensor fed at every run.
    pub fn batch(&self, name: &str, dtype: DType, shape: &[usize]) -> Result<Var<'c>, DistillError> {
        let entry = TensorEntry { name: name.into(), dtype: dtype.name().into(), shape: shape.into() };
        self.parts.borrow_mut().batch.push(entry);
        self.declare(name, dtype, shape)
    }

    /// A number fed at every run; asking again for a name gives the same input.
    pub fn scalar(&self, name: &str, default: f64) -> Result<Var<'c>, DistillError> {
        if self.parts.borrow().scalars.iter().any(|s| s.name == name) {
            return Ok(self.cx.named(name));
        }
        self.parts.borrow_mut().scalars.push(ScalarEntry { name: name.into(), default });
        self.declare(name, self.cx.float(), &[])
    }

    /// A random tensor fed at every run.
    pub fn noise(&self, name: &str, shape: &[usize], distribution: Distribution) -> Result<Var<'c>, DistillError> {
        self.parts.borrow_mut().noise.push(NoiseEntry { name: name.into(), shape: shape.into(), distribution });
        self.declare(name, self.cx.float(), shape)
    }

    /// A value kept in the store between runs, with its first value. Without [`StepBuilder::update`] it is only read.
    pub fn state(&self, name: &str, initial: Tensor, role: StateRole) -> Result<Var<'c>, DistillError> {
        let var = self.declare(name, initial.dtype(), initial.shape())?;
        let mut parts = self.parts.borrow_mut();
        let index = parts.state.len();
        parts.ids.insert(var.id(), index);
        parts.state.push(StateEntry {
            name: name.into(),
            output: String::new(),
            role,
            dtype: initial.dtype().name().into(),
            shape: initial.shape().into(),
        });
        parts.initial.insert(name.into(), initial);
        Ok(var)
    }

    /// State like `other` in dtype and shape that starts at zero.
    pub fn zeros(&self, name: &str, other: Var<'c>, role: StateRole) -> Result<Var<'c>, DistillError> {
        self.state(name, Tensor::zeros(other.dtype(), other.shape())?, role)
    }

    /// Sets the value that `state` has after the run. The last call counts.
    pub fn update(&self, state: Var<'c>, next: Var<'c>) -> Result<(), DistillError> {
        let index = self.parts.borrow().ids.get(&state.id()).copied();
        let Some(index) = index else {
            return Err(self.error(format!("'{}' is not state of this step", state.name())));
        };
        self.parts.borrow_mut().updates.insert(index, next);
        Ok(())
    }

    /// The weights of a net as a parameter set whose values live in the store as `set/name`. Buffers get the role
    /// Buffer, parameters `role`. Floats are converted to the context's type.
    pub fn params(&self, set: &str, net: &Net, role: StateRole) -> Result<ParamSet<'c>, DistillError> {
        let mut vars = BTreeMap::new();
        for (name, tensor) in net.weights() {
            let role = match role {
                StateRole::Parameter if net.buffers().contains(&name) => StateRole::Buffer,
                r => r,
            };
            let full = format!("{set}/{name}");
            vars.insert(name, self.state(&full, tensor.cast(self.cx.float())?, role)?);
        }
        Ok(ParamSet::new(set, vars))
    }

    /// The weights of a net as constants of the graph: a teacher that is never swapped. Engines fold them.
    pub fn frozen(&self, set: &str, net: &Net) -> Result<ParamSet<'c>, DistillError> {
        let mut vars = BTreeMap::new();
        for (name, tensor) in net.weights() {
            let var = self.cx.initializer(&format!("{set}/{name}"), tensor.cast(self.cx.float())?);
            vars.insert(name, var);
        }
        Ok(ParamSet::new(set, vars))
    }

    /// Threads the running statistics that an application in training mode produced back into `params`.
    pub fn update_buffers(&self, params: &ParamSet<'c>, outputs: &Outputs<'c>) -> Result<(), DistillError> {
        for (name, next) in &outputs.buffers {
            let state = params.get(name).ok_or_else(|| self.error(format!("no buffer '{name}'")))?;
            self.update(state, next.stop_gradient())?;
        }
        Ok(())
    }

    /// Lets `average` follow `params`: `a ← d a + (1 − d) θ`, with θ after this run's update.
    pub fn average(&self, average: &ParamSet<'c>, params: &ParamSet<'c>, decay: Var<'c>) -> Result<(), DistillError> {
        for (name, a) in average.iter() {
            let p = params.get(name).ok_or_else(|| self.error(format!("nothing to average into '{name}'")))?;
            let now = self.parts.borrow().ids.get(&p.id()).and_then(|i| self.parts.borrow().updates.get(i).copied());
            let now = now.unwrap_or(p);
            self.update(a, a * decay + now * (1.0 - decay))?;
        }
        Ok(())
    }

    /// Reports a loss; the first reported is the total.
    pub fn loss(&self, name: &str, value: Var<'c>) {
        self.parts.borrow_mut().losses.push((name.into(), value));
    }

    /// Reports a number.
    pub fn metric(&self, name: &str, value: Var<'c>) {
        self.parts.borrow_mut().metrics.push((name.into(), value));
    }

    /// Differentiates `loss` with respect to the groups' parameters and lets `optimiser` update them.
    /// `label` tells the optimiser calls of one step apart; the learning rate is the scalar input `lr`
    /// (`lr_LABEL` when the label is not empty).
    pub fn minimise(
        &self,
        label: &str,
        loss: Var<'c>,
        groups: &[Group<'_, 'c>],
        optimiser: &dyn Optimiser,
        options: GradOptions,
    ) -> Result<(), DistillError> {
        let suffix = if label.is_empty() { String::new() } else { format!("_{label}") };
        let mut targets: Vec<(String, Var<'c>, f64, f64)> = vec![];
        for group in groups {
            for (name, var) in group.params.iter() {
                if self.role_of(var) != Some(StateRole::Parameter) {
                    continue;
                }
                let decay = if var.rank() >= 2 { group.weight_decay } else { 0.0 };
                targets.push((format!("{}/{name}", group.params.name), var, group.lr_scale, decay));
            }
        }
        if targets.is_empty() {
            return Err(self.error("no group holds a trainable parameter"));
        }
        let wrt: Vec<Var<'c>> = targets.iter().map(|t| t.1).collect();
        let mut grads = self.cx.grad(loss, &wrt)?;
        let lr = self.scalar(&format!("lr{suffix}"), 0.0)?;
        let mut when = None;
        if options.accumulate {
            (grads, when) = self.accumulated(&suffix, &targets, grads)?;
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
            parts.conditions.extend(own.into_iter().map(|i| (i, when)));
        }
        self.cx.check()?;
        Ok(())
    }

    /// Sums of gradients kept in the store; emptied when `apply` is 1.
    #[allow(clippy::type_complexity)]
    fn accumulated(
        &self,
        suffix: &str,
        targets: &[(String, Var<'c>, f64, f64)],
        grads: Vec<Var<'c>>,
    ) -> Result<(Vec<Var<'c>>, Option<Var<'c>>), DistillError> {
        let apply = self.scalar(&format!("apply{suffix}"), 1.0)?;
        let count = self.scalar(&format!("accumulated{suffix}"), 1.0)?;
        let keep = 1.0 - apply;
        let mut sums = vec![];
        for ((name, var, ..), grad) in targets.iter().zip(grads) {
            let sum = self.zeros(&format!("{name}.accumulated"), *var, StateRole::Optimiser)?;
            let total = sum + grad;
            self.update(sum, total * keep)?;
            sums.push(total / count);
        }
        Ok((sums, Some(apply.greater(self.cx.scalar(0.5)))))
    }

    /// Makes every state update depend on `value` being finite.
    pub fn require_finite(&self, value: Var<'c>) {
        // x - x is 0 for finite x and NaN otherwise.
        let zero = self.cx.scalar_of(0.0, value.dtype());
        let finite = self.cx.op("Sub", &[value, value], &[]).equals(zero);
        self.parts.borrow_mut().gates.push(finite.reshape(&[]));
    }

    /// Role of a state value.
    pub fn role_of(&self, var: Var<'c>) -> Option<StateRole> {
        let parts = self.parts.borrow();
        parts.ids.get(&var.id()).map(|&i| parts.state[i].role)
    }

    fn seal(self) -> Result<(StepManifest, TensorMap), DistillError> {
        let mut parts = self.parts.take();
        let cx = self.cx;
        if parts.losses.is_empty() && parts.updates.is_empty() && parts.metrics.is_empty() {
            return Err(self.error("reports no loss and updates no state"));
        }
        let gate = parts.gates.iter().copied().reduce(|a, b| a.and(b));
        let mut losses = vec![];
        for (name, var) in &parts.losses {
            cx.output(name, *var);
            losses.push(name.clone());
        }
        let mut metrics = vec![];
        for (name, var) in &parts.metrics {
            cx.output(name, *var);
            metrics.push(name.clone());
        }
        if let Some(gate) = gate {
            cx.output("finite", gate.cast(cx.float()));
            metrics.push("finite".into());
        }
        for (index, next) in &parts.updates {
            let entry = &mut parts.state[*index];
            let old = cx.named(&entry.name);
            if next.shape() != old.shape() || next.dtype() != old.dtype() {
                return Err(self.error(format!(
                    "the update of '{}' is {}{:?}, but the state is {}{:?}",
                    entry.name,
                    next.dtype(),
                    next.shape(),
                    old.dtype(),
                    old.shape()
                )));
            }
            let condition = match (gate, parts.conditions.get(index)) {
                (Some(a), Some(b)) => Some(a.and(*b)),
                (a, b) => a.or(b.copied()),
            };
            let guarded = condition.map_or(*next, |c| c.select(*next, old));
            entry.output = format!("{}.next", entry.name);
            cx.output(&entry.output, guarded);
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
        Ok((manifest, parts.initial))
    }
}
