//! Networks and their parameters: a [`Net`] is a graph with its parameters told apart, a [`ParamSet`] the values
//! that stand for them in one construction. A net can be applied as often as needed: student, teacher, fake score
//! net, critic, average, two views.

use crate::DistillError;
use limbeck_autodiff::compose;
use limbeck_graph::{Attr, Cx, Graph, Node, ValueId, Var};
use limbeck_tensor::{DType, Tensor, TensorMap};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A network: inference graph at the builder's opset, with its float initializers classified.
#[derive(Debug, Clone)]
pub struct Net {
    graph: Graph,
    parameters: Vec<String>,
    buffers: Vec<String>,
    training_only: bool,
}

/// How a net is instantiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Normalisation by running statistics.
    Inference,
    /// Normalisation by batch statistics; running statistics are updated.
    Training,
}

/// What an application of a net gives.
pub struct Outputs<'c> {
    values: BTreeMap<String, Var<'c>>,
    outputs: Vec<String>,
    /// New values of buffers (running statistics), by the parameter set's names.
    pub buffers: BTreeMap<String, Var<'c>>,
}

impl<'c> Outputs<'c> {
    /// The first output.
    pub fn first(&self) -> Result<Var<'c>, DistillError> {
        let name = self.outputs.first().ok_or_else(|| DistillError::Net { reason: "the net has no output".into() })?;
        self.get(name)
    }

    /// An output or any inner value (a tap) by its ONNX name.
    pub fn get(&self, name: &str) -> Result<Var<'c>, DistillError> {
        self.values.get(name).copied().ok_or_else(|| {
            let near: Vec<&str> = self.values.keys().map(String::as_str).filter(|k| k.contains(name)).take(8).collect();
            DistillError::Net { reason: format!("there is no value '{name}' to tap; names that contain it: {near:?}") }
        })
    }
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
    /// parameters, the running statistics of BatchNormalization are buffers, all others stay constants.
    pub fn from_graph(mut graph: Graph) -> Result<Net, DistillError> {
        graph.canonicalise()?;
        let buffer_ids: BTreeSet<ValueId> = graph
            .nodes()
            .filter(|(_, n)| n.is("", "BatchNormalization"))
            .flat_map(|(_, n)| [n.input(3), n.input(4)])
            .flatten()
            .collect();
        let mut parameters = vec![];
        let mut buffers = vec![];
        for (id, tensor) in graph.initializers() {
            let name = graph.name_of(id).to_owned();
            if buffer_ids.contains(&id) {
                buffers.push(name);
            } else if tensor.dtype().is_float() && !tensor.shape().is_empty() {
                parameters.push(name);
            }
        }
        Ok(Net { graph, parameters, buffers, training_only: false })
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
    pub fn with_constants(mut self, names: &[&str]) -> Result<Net, DistillError> {
        for name in names {
            if !self.parameters.iter().any(|p| p == name) {
                return Err(DistillError::Net { reason: format!("'{name}' is not a parameter of the net") });
            }
        }
        self.parameters.retain(|p| !names.contains(&p.as_str()));
        Ok(self)
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

    /// The graph with other weights, given by name; shapes must agree.
    pub fn with_weights(&self, weights: &TensorMap) -> Result<Graph, DistillError> {
        let mut graph = self.graph.clone();
        for (name, tensor) in weights {
            let id = graph.require(name)?;
            match graph.initializer(id) {
                Some(old) if old.shape() == tensor.shape() && old.dtype() == tensor.dtype() => {}
                old => {
                    return Err(DistillError::Net {
                        reason: format!(
                            "weight '{name}' is {}{:?}, but the net has {}",
                            tensor.dtype(),
                            tensor.shape(),
                            old.map_or("none".into(), |o| format!("{}{:?}", o.dtype(), o.shape()))
                        ),
                    });
                }
            }
            graph.set_initializer(id, tensor.clone());
        }
        Ok(graph)
    }

    /// The same net with other weights.
    pub fn reweighted(&self, weights: &TensorMap) -> Result<Net, DistillError> {
        Ok(Net { graph: self.with_weights(weights)?, ..self.clone() })
    }

    /// Instantiates the net on `inputs` (in the graph's order, or fewer when the rest have defaults) with the
    /// weights of `params`; parameters that the set lacks are constants with the net's own values.
    pub fn apply<'c>(
        &self,
        cx: &'c Cx,
        inputs: &[Var<'c>],
        params: &ParamSet<'c>,
        mode: Mode,
    ) -> Result<Outputs<'c>, DistillError> {
        let mut bind: HashMap<ValueId, Var<'c>> = HashMap::new();
        if inputs.len() > self.graph.inputs.len() {
            let reason = format!("{} inputs given, the net has {}", inputs.len(), self.graph.inputs.len());
            return Err(DistillError::Net { reason });
        }
        bind.extend(self.graph.inputs.iter().copied().zip(inputs.iter().copied()));
        for (name, var) in params.iter() {
            bind.insert(self.graph.require(name)?, var);
        }
        let mut buffers = BTreeMap::new();
        let graph = &self.graph;
        let former = cx.set_scope(&format!("{}/", params.name));
        let scope_guard = cx.set_scope(&instance_scope(cx, &params.name));
        debug_assert!(scope_guard.ends_with('/'));
        let map = cx.inline_with(graph, &bind, &mut |cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>]| {
            if mode == Mode::Inference {
                return None;
            }
            if !node.is("", "BatchNormalization") {
                return None;
            }
            let mut training = node.clone();
            training.attrs.insert("training_mode".into(), Attr::Int(1));
            // Also ask for the new running statistics.
            training.outputs.resize(3, None);
            let results = compose(cx, &training, operands)?;
            for (slot, result) in [(3, 1), (4, 2)] {
                if let (Some(id), Some(var)) = (node.input(slot), results.get(result)) {
                    buffers.insert(graph.name_of(id).to_owned(), *var);
                }
            }
            Some(results)
        });
        cx.set_scope(&former);
        let map = map?;
        let values = map.iter().map(|(id, var)| (graph.name_of(*id).to_owned(), *var)).collect();
        let outputs = graph.outputs.iter().map(|o| graph.name_of(*o).to_owned()).collect();
        Ok(Outputs { values, outputs, buffers })
    }
}

/// A scope no value of the construction uses yet: `student/`, `student.2/`, ...
fn instance_scope(cx: &Cx, name: &str) -> String {
    let graph = cx.graph();
    let taken = |scope: &str| {
        graph.nodes().any(|(_, n)| n.outputs.iter().flatten().any(|&o| graph.name_of(o).starts_with(scope)))
    };
    (1..)
        .map(|i| if i == 1 { format!("{name}/") } else { format!("{name}.{i}/") })
        .find(|s| !taken(s))
        .unwrap_or_default()
}
