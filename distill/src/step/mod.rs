//! Train-step assembly: from nets, losses and an optimiser to one ONNX graph and its manifest.

mod minimise;
mod seal;

pub use minimise::{GradOptions, Group};

use crate::{DistillError, Net, Outputs, ParamSet, Training};
use limbeck_graph::{Cx, Form, Graph, Lowering, MemoryPlan, ValueId, Var};
use limbeck_runtime::{
    Distribution, Engine, Model, NoiseEntry, ScalarEntry, StateEntry, StateRole, StepManifest, TensorEntry,
};
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
    /// Batch inputs that hold class labels, with the number of classes.
    pub labels: BTreeMap<String, usize>,
}

impl Step {
    /// The model to compile.
    pub fn model(&self) -> Result<Model, DistillError> {
        Ok(self.manifest.model(self.bytes()?))
    }

    /// The step in an engine's form (see [`Graph::lowered_around`]): what depends on no state that it updates may have another.
    ///
    /// # Errors
    /// Shapes that are not concrete; what [`Graph::verify`] finds.
    pub fn lowered(mut self, how: impl Into<Lowering>) -> Result<Step, DistillError> {
        let updated = self.manifest.state.iter().filter(|entry| !entry.output.is_empty());
        let updated: Vec<&str> = updated.map(|entry| entry.name.as_str()).collect();
        self.graph = self.graph.lowered_around(how, &updated)?;
        Ok(self)
    }

    /// The inputs that are fed at every run: batch, scalars and noise.
    fn fed(&self) -> Vec<&str> {
        let m = &self.manifest;
        let names = m.batch.iter().map(|e| &e.name).chain(m.scalars.iter().map(|e| &e.name));
        names.chain(m.noise.iter().map(|e| &e.name)).map(String::as_str).collect()
    }

    /// What a run takes on tract, which runs the nodes in the graph's order (see [`Graph::memory_plan`]).
    ///
    /// # Errors
    /// A value without a concrete shape, by name.
    pub fn memory_plan(&self) -> Result<MemoryPlan, DistillError> {
        Ok(self.graph.memory_plan(&self.fed())?)
    }

    /// What a run takes on ONNX Runtime, for a step in the fused form (see [`Graph::onnx_runtime_plan`]).
    ///
    /// # Errors
    /// As [`Step::memory_plan`].
    pub fn onnx_runtime_plan(&self) -> Result<MemoryPlan, DistillError> {
        Ok(self.graph.onnx_runtime_plan()?)
    }

    /// The ONNX file.
    pub fn bytes(&self) -> Result<Bytes, DistillError> {
        Ok(self.graph.to_bytes()?)
    }
}

/// How train steps are lowered for an engine: fused where it has the kernels, and what is not trained as in inference.
pub fn lowering_for(engine: &dyn Engine) -> Lowering {
    let fused = engine.forms().contains(&limbeck_runtime::Form::Fused);
    let form = if fused { Form::Fused } else { Form::Portable };
    Lowering { frozen: inference_form_for(engine), ..form.into() }
}

/// The form in which an engine is given networks with constant weights.
pub fn inference_form_for(engine: &dyn Engine) -> Form {
    match engine.inference_form() {
        limbeck_runtime::Form::Fused => Form::Fused,
        limbeck_runtime::Form::Portable => Form::Portable,
    }
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
    labels: BTreeMap<String, usize>,
    /// Bool scalars that must all hold for any state to change.
    gates: BTreeMap<ValueId, Var<'c>>,
    /// Per state, what else its update depends on (gradient accumulation).
    conditions: HashMap<usize, Condition<'c>>,
    /// State, what it follows, and its decay.
    averages: Vec<(Var<'c>, Var<'c>, Var<'c>)>,
}

/// When state takes its update.
#[derive(Clone, Copy)]
enum Condition<'c> {
    /// When this bool holds, too.
    When(Var<'c>),
    /// Always, but it becomes zero when this bool holds, even in a run that changes nothing else.
    ZeroWhen(Var<'c>),
}

/// The batch input that weighs rows.
const ROW_WEIGHT: &str = "row_weight";

/// A step under construction.
pub struct StepBuilder<'c> {
    cx: &'c Cx,
    name: String,
    parts: RefCell<Parts<'c>>,
}

/// Assembles a step: `f` declares inputs and state, builds losses and calls the optimiser.
///
/// Every state update is guarded: when a reported loss, a gradient, or the new value of a parameter or buffer is not
/// finite, the run changes no state, and the metric `finite` is 0.
pub fn build_step(
    name: &str,
    float: DType,
    f: impl for<'c> FnOnce(&StepBuilder<'c>) -> Result<(), DistillError>,
) -> Result<Step, DistillError> {
    let cx = Cx::new(name, float);
    let (manifest, initial, labels) = {
        let builder = StepBuilder { cx: &cx, name: name.into(), parts: RefCell::default() };
        f(&builder)?;
        builder.seal()?
    };
    let graph = cx.finish()?;
    Ok(Step { graph, manifest, initial, labels })
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

    /// A tensor fed at every run. The one called `row_weight` `[batch]`, a float, weighs the rows: with it the trainer
    /// tells samples from what only fills up the last batch, and accumulation weighs one run against another.
    pub fn batch(&self, name: &str, dtype: DType, shape: &[usize]) -> Result<Var<'c>, DistillError> {
        if name == ROW_WEIGHT && (!dtype.is_float() || shape.len() != 1) {
            return Err(self.error(format!("'{ROW_WEIGHT}' must be floats [batch], not {dtype}{shape:?}")));
        }
        let entry = TensorEntry { name: name.into(), dtype: dtype.name().into(), shape: shape.into() };
        self.parts.borrow_mut().batch.push(entry);
        self.declare(name, dtype, shape)
    }

    /// Class labels fed at every run, int64 in `0..classes`; the trainer refuses others by field, sample and value.
    pub fn class_labels(&self, name: &str, shape: &[usize], classes: usize) -> Result<Var<'c>, DistillError> {
        self.parts.borrow_mut().labels.insert(name.into(), classes);
        self.batch(name, DType::I64, shape)
    }

    /// The batch input `row_weight`, when it is declared.
    pub fn row_weight(&self) -> Option<Var<'c>> {
        let declared = self.parts.borrow().batch.iter().any(|e| e.name == ROW_WEIGHT);
        declared.then(|| self.cx.named(ROW_WEIGHT))
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
        self.params_where(set, net, role, &|_| true)
    }

    /// As [`StepBuilder::params`], for a net that is trained in part: what `trains` refuses by name becomes a constant of the
    /// graph. The layers below the first trained one then run as in inference, and nothing of them is kept for gradients.
    pub fn params_where(
        &self,
        set: &str,
        net: &Net,
        role: StateRole,
        trains: &dyn Fn(&str) -> bool,
    ) -> Result<ParamSet<'c>, DistillError> {
        let mut vars = BTreeMap::new();
        for (name, tensor) in net.weights() {
            let (full, value) = (format!("{set}/{name}"), tensor.cast(self.cx.float())?);
            let var = match role {
                _ if !trains(&name) => self.cx.initializer(&full, value),
                StateRole::Parameter if net.buffers().contains(&name) => self.state(&full, value, StateRole::Buffer)?,
                role => self.state(&full, value, role)?,
            };
            vars.insert(name, var);
        }
        Ok(ParamSet::new(set, vars))
    }

    /// The weights of a net as constants of the graph: a teacher that is never swapped. Engines fold them.
    pub fn frozen(&self, set: &str, net: &Net) -> Result<ParamSet<'c>, DistillError> {
        self.params_where(set, net, StateRole::Frozen, &|_| false)
    }

    /// Instantiates a net for training: rows count by the input `row_weight` where it is declared (also in batch
    /// statistics), Dropout gets noise inputs, and running statistics that are state of role Buffer move on.
    /// A BatchNormalization whose scale and bias are both left out of `trained` runs as in inference.
    pub fn apply(
        &self,
        net: &Net,
        inputs: &[Var<'c>],
        params: &ParamSet<'c>,
        trained: &ParamSet<'c>,
    ) -> Result<Outputs<'c>, DistillError> {
        let noise = |name: &str, shape: &[usize]| self.noise(name, shape, Distribution::Uniform);
        let training = Training { row_weight: self.row_weight(), trained: Some(trained), noise: Some(&noise) };
        let outputs = net.apply_training(self.cx, inputs, params, &training)?;
        let kept = |name: &str| params.get(name).is_some_and(|v| self.role_of(v) == Some(StateRole::Buffer));
        if outputs.statistics.iter().any(|s| kept(&s.buffer)) {
            self.update_buffers(params, &outputs)?;
        }
        Ok(outputs)
    }

    /// Lets the statistics of an application in training mode move the running ones of `params`. Further applications of
    /// the same set move them further, in the order of these calls.
    pub fn update_buffers(&self, params: &ParamSet<'c>, outputs: &Outputs<'c>) -> Result<(), DistillError> {
        for s in &outputs.statistics {
            let state = params.get(&s.buffer).ok_or_else(|| self.error(format!("no buffer '{}'", s.buffer)))?;
            let now = self.pending(state).unwrap_or(state);
            self.update(state, now * s.momentum + s.value.stop_gradient() * (1.0 - s.momentum))?;
        }
        Ok(())
    }

    /// The update that a state has so far.
    fn pending(&self, state: Var<'c>) -> Option<Var<'c>> {
        let parts = self.parts.borrow();
        parts.updates.get(parts.ids.get(&state.id())?).copied()
    }

    /// Lets `average` follow `params`: `a ← d a + (1 − d) θ` at every run, with the θ that the store holds after it.
    pub fn average(&self, average: &ParamSet<'c>, params: &ParamSet<'c>, decay: Var<'c>) -> Result<(), DistillError> {
        for (name, a) in average.iter() {
            let p = params.get(name).ok_or_else(|| self.error(format!("nothing to average into '{name}'")))?;
            if self.role_of(a).is_none() {
                return Err(self.error(format!("'{}' is not state of this step", a.name())));
            }
            self.parts.borrow_mut().averages.push((a, p, decay));
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

    /// Makes every state update depend on the scalar `value` being finite.
    pub fn require_finite(&self, value: Var<'c>) {
        if self.parts.borrow().gates.contains_key(&value.id()) {
            return;
        }
        // x - x is 0 for finite x and NaN otherwise.
        let zero = self.cx.scalar_of(0.0, value.dtype());
        let finite = self.cx.op("Sub", &[value, value], &[]).equals(zero);
        self.parts.borrow_mut().gates.insert(value.id(), finite.reshape(&[]));
    }

    /// Role of a state value.
    pub fn role_of(&self, var: Var<'c>) -> Option<StateRole> {
        let parts = self.parts.borrow();
        parts.ids.get(&var.id()).map(|&i| parts.state[i].role)
    }
}
