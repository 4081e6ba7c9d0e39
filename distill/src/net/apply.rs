//! Instantiating a net: inference and training, where BatchNormalization takes the batch's statistics and Dropout drops.

use super::classify::described;
use super::{Net, ParamSet};
use crate::DistillError;
use limbeck_autodiff::{batch_norm, compose, dropout, momentum};
use limbeck_graph::{Attr, Cx, Dim, Graph, Node, TensorType, ValueId, Var};
use limbeck_tensor::DType;
use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

/// How a net is instantiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Normalisation by running statistics, no Dropout, whatever the file says.
    Inference,
    /// Normalisation by the batch's statistics over all rows; a net with Dropout is refused. See [`Training`].
    Training,
}

/// Gives the uniform noise (0..1) of a Dropout node: from a name, unique in the construction, and a shape.
pub type Noise<'a, 'c> = dyn Fn(&str, &[usize]) -> Result<Var<'c>, DistillError> + 'a;

/// What training takes beside inputs and weights.
#[derive(Clone, Copy, Default)]
pub struct Training<'a, 'c> {
    /// Weight of each row `[batch]` in the statistics of BatchNormalization: rows of weight 0 leave no trace. None: all
    /// rows count alike, those that fill up a batch too.
    pub row_weight: Option<Var<'c>>,
    /// The weights that are trained. A BatchNormalization whose scale and bias are both left out runs as in inference and
    /// its running statistics stay. None: all are trained.
    pub trained: Option<&'a ParamSet<'c>>,
    /// Noise for Dropout, which is refused without.
    pub noise: Option<&'a Noise<'a, 'c>>,
}

/// Statistics of a batch that move running statistics.
#[derive(Clone)]
pub struct Statistic<'c> {
    /// The buffer, by the net's name.
    pub buffer: String,
    /// The batch's mean or variance `[channels]`.
    pub value: Var<'c>,
    /// Share of the former value that the buffer keeps.
    pub momentum: f64,
}

/// What an application of a net gives.
pub struct Outputs<'c> {
    values: BTreeMap<String, Var<'c>>,
    outputs: Vec<String>,
    /// What moves the running statistics, in the order of execution; see [`crate::StepBuilder::update_buffers`].
    pub statistics: Vec<Statistic<'c>>,
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

impl Net {
    /// Instantiates the net on `inputs` (in the graph's order, or fewer when the rest have defaults) with the
    /// weights of `params`; parameters that the set lacks are constants with the net's own values. A net of another
    /// float width is built in the context's.
    pub fn apply<'c>(
        &self,
        cx: &'c Cx,
        inputs: &[Var<'c>],
        params: &ParamSet<'c>,
        mode: Mode,
    ) -> Result<Outputs<'c>, DistillError> {
        let training = Training::default();
        self.instantiate(cx, inputs, params, (mode == Mode::Training).then_some(&training))
    }

    /// As [`Net::apply`] in training mode, with row weights, a choice of what is trained, and noise.
    /// [`crate::StepBuilder::apply`] does this with what the step has.
    pub fn apply_training<'c>(
        &self,
        cx: &'c Cx,
        inputs: &[Var<'c>],
        params: &ParamSet<'c>,
        training: &Training<'_, 'c>,
    ) -> Result<Outputs<'c>, DistillError> {
        self.instantiate(cx, inputs, params, Some(training))
    }

    fn instantiate<'c>(
        &self,
        cx: &'c Cx,
        inputs: &[Var<'c>],
        params: &ParamSet<'c>,
        training: Option<&Training<'_, 'c>>,
    ) -> Result<Outputs<'c>, DistillError> {
        if inputs.len() > self.graph.inputs.len() {
            let reason = format!("{} inputs given, the net has {}", inputs.len(), self.graph.inputs.len());
            return Err(DistillError::Net { reason });
        }
        let graph = &*self.with_shapes_of(inputs)?;
        let mut bind: HashMap<ValueId, Var<'c>> = graph.inputs.iter().copied().zip(inputs.iter().copied()).collect();
        for (name, var) in params.iter() {
            bind.insert(graph.require(name)?, var);
        }
        let scope = instance_scope(cx, &params.name);
        let foreign = self.float().filter(|own| *own != cx.float());
        for (id, tensor) in graph.initializers().filter(|(_, t)| Some(t.dtype()) == foreign) {
            if let Entry::Vacant(slot) = bind.entry(id) {
                let name = format!("{scope}{}", graph.name_of(id));
                slot.insert(cx.initializer(&name, tensor.cast(cx.float())?));
            }
        }
        let mut statistics = vec![];
        let mut failure = None;
        let former = cx.set_scope(&scope);
        let map = cx.inline_with(graph, &bind, &mut |cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>]| {
            if let Some(layer) = training.and_then(|_| training_layer_within(node)) {
                let reason = format!(
                    "{layer} lies in the body of a {}, where it cannot be trained; move it out of the loop, or unroll the loop \
                     with `limbeck import --unroll`",
                    node.full_op()
                );
                failure.get_or_insert(DistillError::Net { reason });
                return None;
            }
            if node.is("", "BatchNormalization") {
                return match training.filter(|t| !self.is_frozen(node, t)) {
                    Some(t) => self.batch_statistics(node, operands, t, &mut statistics),
                    None => running_statistics(cx, node, operands),
                };
            }
            if node.is("", "Dropout") {
                return match training {
                    // Without the operand that may ask for training.
                    None => compose(cx, node, operands.get(..1)?),
                    Some(t) => self.dropped(cx, node, operands, t, &scope).unwrap_or_else(|e| {
                        failure.get_or_insert(e);
                        None
                    }),
                };
            }
            let to = node.int("to").and_then(|to| i32::try_from(to).ok()).and_then(DType::from_onnx);
            if node.is("", "Cast") && foreign.is_some() && to == foreign {
                return Some(vec![operands.first().copied().flatten()?.cast(cx.float()).identity()]);
            }
            // What has no gradient of its own is unrolled for training alone: engines run the operator itself better.
            training.and_then(|_| compose(cx, node, operands))
        });
        cx.set_scope(&former);
        if let Some(error) = failure {
            return Err(error);
        }
        let map = map?;
        let values = map.iter().map(|(id, var)| (graph.name_of(*id).to_owned(), *var)).collect();
        let outputs = graph.outputs.iter().map(|o| graph.name_of(*o).to_owned()).collect();
        Ok(Outputs { values, outputs, statistics })
    }

    /// The graph; where shapes are not all known, or may be computed from integers (a file declares what comes out, the
    /// builder infers it anew), with the named dims that the inputs settle and what is computed of shapes folded.
    fn with_shapes_of(&self, inputs: &[Var<'_>]) -> Result<Cow<'_, Graph>, DistillError> {
        let graph = &self.graph;
        let known = |v: ValueId| graph.ty(v).is_some_and(|t| t.dtype.is_float() && t.concrete().is_some());
        if graph.nodes().all(|(_, n)| n.outputs.iter().flatten().all(|&o| known(o))) {
            return Ok(Cow::Borrowed(graph));
        }
        let mut dims: BTreeMap<&str, Option<usize>> = BTreeMap::new();
        for (&input, var) in graph.inputs.iter().zip(inputs) {
            let declared = graph.ty(input).and_then(|t| t.dims.as_ref());
            for (dim, extent) in declared.into_iter().flatten().zip(var.shape()) {
                if let Dim::Named(name) = dim {
                    // One name for several extents names none of them: some exporters call every open dim `?`.
                    let known = dims.entry(name).or_insert(Some(extent));
                    *known = known.filter(|n| *n == extent);
                }
            }
        }
        let mut bound = graph.clone();
        // A weight that its file holds as a literal is no part of what may be computed now: it is trained.
        for name in &self.parameters {
            if let Some(id) = bound.find(name).filter(|id| bound.is_literal(*id))
                && let Some(tensor) = bound.initializer(id).cloned()
            {
                bound.set_initializer(id, tensor);
            }
        }
        let settled: Vec<(&str, usize)> = dims.iter().filter_map(|(name, n)| Some((*name, (*n)?))).collect();
        bound.bind_dims(&settled)?;
        let mut open = false;
        for (&input, var) in graph.inputs.iter().zip(inputs) {
            let shape: Vec<Dim> = var.shape().into_iter().map(Dim::Known).collect();
            let Some(ty) = bound.ty(input).filter(|t| t.concrete().is_none()) else { continue };
            if ty.dims.as_ref().is_none_or(|dims| dims.len() == shape.len()) {
                let ty = TensorType::with_dims(ty.dtype, shape);
                bound.set_ty(input, Some(ty));
                open = true;
            }
        }
        if open {
            bound.fold_shapes()?;
        }
        Ok(Cow::Owned(bound))
    }

    /// Whether scale and bias of a BatchNormalization are weights of which none is trained.
    fn is_frozen(&self, node: &Node, training: &Training<'_, '_>) -> bool {
        let names = [1, 2].into_iter().filter_map(|i| node.input(i)).map(|id| self.graph.name_of(id));
        let mut own = names.filter(|n| self.parameters.iter().any(|p| p == n)).peekable();
        training.trained.is_some_and(|trained| own.peek().is_some() && own.all(|n| trained.get(n).is_none()))
    }

    fn batch_statistics<'c>(
        &self,
        node: &Node,
        operands: &[Option<Var<'c>>],
        training: &Training<'_, 'c>,
        statistics: &mut Vec<Statistic<'c>>,
    ) -> Option<Vec<Var<'c>>> {
        let [Some(x), Some(scale), Some(bias), Some(mean), Some(variance)] = *operands else { return None };
        let [y, batch_mean, batch_variance] = batch_norm(node, x, (scale, bias), training.row_weight);
        let kept = momentum(node);
        let mut results = vec![y];
        for (slot, former, value) in [(3, mean, batch_mean), (4, variance, batch_variance)] {
            let buffer = node.input(slot).map(|id| self.graph.name_of(id).to_owned());
            statistics.extend(buffer.map(|buffer| Statistic { buffer, value, momentum: kept }));
            if node.outputs.len() > slot - 2 {
                results.push(former * kept + value * (1.0 - kept));
            }
        }
        Some(results)
    }

    /// A Dropout that drops, whatever the file says of its mode.
    fn dropped<'c>(
        &self,
        cx: &'c Cx,
        node: &Node,
        operands: &[Option<Var<'c>>],
        training: &Training<'_, 'c>,
        scope: &str,
    ) -> Result<Option<Vec<Var<'c>>>, DistillError> {
        let name = node.outputs.iter().flatten().next().map_or("", |&o| self.graph.name_of(o));
        let error = |reason: &str| DistillError::Net { reason: format!("Dropout '{name}' {reason}") };
        let Some(x) = operands.first().copied().flatten() else { return Ok(None) };
        let ratio = match operands.get(1).copied().flatten() {
            None => 0.5,
            Some(v) => {
                let ratio = cx.graph().constant(v.id()).and_then(|t| t.to_f64_vec().ok());
                let Some([ratio]) = ratio.as_deref() else {
                    return Err(error("has a ratio that is not one constant number"));
                };
                *ratio
            }
        };
        if ratio == 0.0 {
            return Ok(compose(cx, node, &operands[..1]));
        }
        let noise =
            training.noise.ok_or_else(|| error("needs noise in training; apply the net with StepBuilder::apply"))?;
        let (y, mask) = dropout(x, noise(&format!("{scope}{name}.noise"), &x.shape())?, ratio);
        Ok(Some(vec![y, mask]))
    }
}

/// The first layer in the bodies of a node that training treats otherwise than inference does.
fn training_layer_within(node: &Node) -> Option<String> {
    node.subgraphs().find_map(|body| {
        body.nodes().find_map(|(id, inner)| {
            let differs = inner.is("", "BatchNormalization") || inner.is("", "Dropout");
            if differs { Some(described(body, id)) } else { training_layer_within(inner) }
        })
    })
}

/// BatchNormalization by running statistics, which stay.
fn running_statistics<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>]) -> Option<Vec<Var<'c>>> {
    if node.int("training_mode").unwrap_or(0) == 0 {
        return None;
    }
    let attrs: Vec<(&str, Attr)> = node.attrs.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    let attrs: Vec<(&str, Attr)> = attrs.into_iter().filter(|(k, _)| *k != "training_mode").collect();
    let y = cx.op_n("", "BatchNormalization", operands, &attrs, 1)[0];
    let statistics = operands.iter().skip(3).flatten().map(|v| v.identity());
    Some([y].into_iter().chain(statistics).take(node.outputs.len()).collect())
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
