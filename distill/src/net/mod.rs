//! Networks and their parameters: a [`Net`] is a graph with its parameters told apart, a [`ParamSet`] the values
//! that stand for them in one construction. A net can be applied as often as needed: student, teacher, fake score
//! net, critic, average, two views.

mod apply;
mod classify;
mod literals;
mod origin;
mod report;
mod separate;

pub use apply::{Mode, Noise, Outputs, Statistic, Training};
pub use classify::{Role, Stored};
pub use report::{Finding, Remark, Severity, Trainability, Verdict};

use crate::DistillError;
use classify::classify;
use limbeck_graph::{Cx, Graph, Var};
use limbeck_tensor::{DType, Tensor, TensorMap};
use separate::separate;
use std::collections::BTreeMap;

/// A network: inference graph at the builder's opset, with its float initializers classified.
#[derive(Debug, Clone)]
pub struct Net {
    graph: Graph,
    stored: Vec<Stored>,
    /// Weights that the file stores once for several, see [`separate`].
    separated: Vec<String>,
    parameters: Vec<String>,
    buffers: Vec<String>,
    training_only: bool,
}

/// Values that stand for a net's parameters and buffers in one construction.
#[derive(Clone)]
pub struct ParamSet<'c> {
    /// Name of the set; prefix of its values in the store (`student/`).
    pub name: String,
    vars: BTreeMap<String, Var<'c>>,
}

impl<'c> ParamSet<'c> {
    /// A set from ready values, by the net's names.
    pub fn new(name: &str, vars: BTreeMap<String, Var<'c>>) -> ParamSet<'c> {
        ParamSet { name: name.into(), vars }
    }

    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<Var<'c>> {
        self.vars.get(name).copied()
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Var<'c>)> {
        self.vars.iter().map(|(k, v)| (k.as_str(), *v))
    }

    /// Only the parameters that `keep` accepts by name.
    pub fn filter(&self, keep: impl Fn(&str) -> bool) -> ParamSet<'c> {
        let vars = self.vars.iter().filter(|(k, _)| keep(k)).map(|(k, v)| (k.clone(), *v)).collect();
        ParamSet { name: self.name.clone(), vars }
    }
}

impl Net {
    /// A net over a graph, which is brought to the builder's opset. Float initializers of rank 1 or more are
    /// parameters, but for what only sets an operator up (scales of quantisation, for instance), first states of zero,
    /// masks and tables of sines; so are literals (Constant nodes) where an operator has its weights, where they are added
    /// to a layer's result along its channels, or scale and shift a normalised value. The running statistics of
    /// BatchNormalization are buffers; all others stay constants. Ones and zeros that an exporter stored once for several
    /// layers become each layer's own. [`Net::stored`] lists all with what decided,
    /// [`Net::with_constants`] and [`Net::with_parameters`] decide otherwise.
    pub fn from_graph(mut graph: Graph) -> Result<Net, DistillError> {
        graph.canonicalise()?;
        graph.hoist_weights();
        let separated = separate(&mut graph);
        let stored = classify(&graph);
        let mut net = Net { graph, stored, separated, parameters: vec![], buffers: vec![], training_only: false };
        net.list();
        Ok(net)
    }

    /// Builds a net with the builder: `f` declares inputs, initializers and outputs.
    pub fn build(name: &str, f: impl FnOnce(&Cx) -> Result<(), DistillError>) -> Result<Net, DistillError> {
        let cx = Cx::new(name, DType::F32);
        f(&cx)?;
        Net::from_graph(cx.finish()?)
    }

    /// Marks a head that exists for training alone and is dropped at export.
    pub fn training_only(mut self) -> Net {
        self.training_only = true;
        self
    }

    /// True for heads that are not exported.
    pub fn is_training_only(&self) -> bool {
        self.training_only
    }

    /// Treats these parameters as constants.
    pub fn with_constants(self, names: &[&str]) -> Result<Net, DistillError> {
        self.decide(names, Role::Parameter, Role::Constant, "is not a parameter of the net")
    }

    /// Treats these constants as parameters.
    pub fn with_parameters(self, names: &[&str]) -> Result<Net, DistillError> {
        self.decide(names, Role::Constant, Role::Parameter, "is not a stored float constant of the net")
    }

    fn decide(mut self, names: &[&str], from: Role, to: Role, otherwise: &str) -> Result<Net, DistillError> {
        for name in names {
            let Some(stored) = self.stored.iter_mut().find(|s| s.name == *name && s.role == from) else {
                return Err(DistillError::Net { reason: format!("'{name}' {otherwise}") });
            };
            stored.role = to;
            stored.why = "decided by the caller".into();
        }
        self.list();
        Ok(self)
    }

    fn list(&mut self) {
        let of = |role| self.stored.iter().filter(|s| s.role == role).map(|s| s.name.clone()).collect();
        (self.parameters, self.buffers) = (of(Role::Parameter), of(Role::Buffer));
    }

    /// All stored float constants with what they are to training, and why, in file order; scalars of the graph's
    /// arithmetic are left out.
    pub fn stored(&self) -> &[Stored] {
        &self.stored
    }

    /// The graph, with the weights the net was made with.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Names of the trained weights.
    pub fn parameters(&self) -> &[String] {
        &self.parameters
    }

    /// Names of running statistics.
    pub fn buffers(&self) -> &[String] {
        &self.buffers
    }

    /// Number of trained numbers.
    pub fn parameter_count(&self) -> usize {
        self.weights_of(&self.parameters).values().map(Tensor::len).sum()
    }

    /// Parameters and buffers with their present values.
    pub fn weights(&self) -> TensorMap {
        let mut all = self.weights_of(&self.parameters);
        all.extend(self.weights_of(&self.buffers));
        all
    }

    fn weights_of(&self, names: &[String]) -> TensorMap {
        names.iter().filter_map(|n| Some((n.clone(), self.graph.initializer(self.graph.find(n)?)?.clone()))).collect()
    }

    /// Float type of the weights; none without weights.
    fn float(&self) -> Option<DType> {
        let first = self.parameters.first().or(self.buffers.first())?;
        Some(self.graph.initializer(self.graph.find(first)?)?.dtype())
    }

    /// The graph with other weights, given by name; shapes must agree. Floats of another width become the net's, and
    /// weights that training in that width left alone keep every bit.
    pub fn with_weights(&self, weights: &TensorMap) -> Result<Graph, DistillError> {
        let mut graph = self.graph.clone();
        for (name, tensor) in weights {
            let id = graph.require(name)?;
            let old = graph.initializer(id).filter(|old| {
                let both_floats = old.dtype().is_float() && tensor.dtype().is_float();
                old.shape() == tensor.shape() && (old.dtype() == tensor.dtype() || both_floats)
            });
            let Some(old) = old else {
                let own = graph.initializer(id).map_or("none".into(), |o| format!("{}{:?}", o.dtype(), o.shape()));
                let reason =
                    format!("weight '{name}' is {}{:?}, but the net has {own}", tensor.dtype(), tensor.shape());
                return Err(DistillError::Net { reason });
            };
            let new = match old.dtype() == tensor.dtype() {
                true => tensor.clone(),
                false if old.cast(tensor.dtype())?.bytes() == tensor.bytes() => old.clone(),
                false => tensor.cast(old.dtype())?,
            };
            graph.set_initializer(id, new);
        }
        Ok(graph)
    }

    /// The same net with other weights.
    pub fn reweighted(&self, weights: &TensorMap) -> Result<Net, DistillError> {
        Ok(Net { graph: self.with_weights(weights)?, ..self.clone() })
    }
}
