//! Making shapes concrete: named dims fixed to numbers, constant expressions computed.

use crate::canonical::infer;
use crate::ops::{self, EvalCx};
use crate::{Array, Dim, Graph, GraphError, Node, NodeId, TensorType, ValueId};
use limbeck_tensor::{Tensor, element_count};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Largest result (in elements) that folding stores.
const LARGEST_RESULT: usize = 65_536;
/// Largest operand (in elements) that folding reads with the slow evaluator.
const LARGEST_OPERAND: usize = 1 << 22;
/// Operators whose result is not a function of their operands.
const RANDOM: &[&str] =
    &["Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"];

impl Graph {
    /// Fixes named dims, subgraphs included, and infers all types anew. A name that the graph does not have is an
    /// error that lists those it has.
    pub fn bind_dims(&mut self, dims: &[(&str, usize)]) -> Result<(), GraphError> {
        let mut names = BTreeSet::new();
        named_dims(self, &mut names);
        for (name, _) in dims {
            if !names.contains(*name) {
                let known = names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                let known = if known.is_empty() { "it has none".into() } else { format!("it has {known}") };
                let reason = format!("no dimension is called '{name}'; {known}");
                return Err(GraphError::Invalid { graph: self.name.clone(), reason });
            }
        }
        bind(self, &dims.iter().copied().collect());
        self.infer_types()
    }

    /// Computes nodes whose operands are all stored constants (and not inputs with a default) when their results
    /// are small, and `Shape` and `Size` of statically known shapes; results become initializers, and the types that
    /// depend on them become known. Then removes what no output needs. Graph outputs stay nodes. Returns how many
    /// nodes were computed.
    ///
    /// Expressions of weights alone are computed too: a graph that is to be trained keeps only the weights that
    /// still are operands afterwards.
    pub fn fold_constants(&mut self) -> Result<usize, GraphError> {
        let mut folded = 0;
        for id in self.node_ids() {
            let is_output = self.node(id).outputs.iter().flatten().any(|o| self.outputs.contains(o));
            if let Some(results) = fold(self, id).filter(|_| !is_output) {
                let literal = self.node(id).is("", "Shape")
                    || self.node(id).is("", "Size")
                    || self.node(id).inputs.iter().flatten().all(|&i| self.is_literal(i));
                self.remove_node(id);
                for (value, tensor) in results {
                    self.set_initializer(value, tensor);
                    if literal {
                        self.mark_literal(value);
                    }
                }
                folded += 1;
            } else {
                // What was folded before may have been the shape that this node asks for.
                infer(self, id);
            }
        }
        self.remove_dead();
        self.verify()?;
        Ok(folded)
    }
}

fn named_dims(graph: &Graph, names: &mut BTreeSet<String>) {
    for dim in graph.values.iter().filter_map(|v| v.ty.as_ref()?.dims.as_ref()).flatten() {
        if let Dim::Named(name) = dim {
            names.insert(name.to_string());
        }
    }
    graph.nodes().flat_map(|(_, n)| n.subgraphs()).for_each(|g| named_dims(g, names));
}

fn bind(graph: &mut Graph, dims: &BTreeMap<&str, usize>) {
    let bound = |dim: &Dim| match dim {
        Dim::Named(name) => dims.get(&**name).map_or_else(|| dim.clone(), |&n| Dim::Known(n)),
        other => other.clone(),
    };
    for id in graph.value_ids() {
        if let Some(TensorType { dtype, dims: Some(old) }) = graph.ty(id) {
            let ty = TensorType::with_dims(*dtype, old.iter().map(bound).collect());
            graph.set_ty(id, Some(ty));
        }
    }
    for id in graph.node_ids() {
        if graph.node(id).subgraphs().next().is_some() {
            graph.node_mut(id).subgraphs_mut().for_each(|g| bind(g, dims));
        }
    }
}

/// Results of a node that depends on constants alone, `None` when it does not or they are too large.
fn fold(graph: &Graph, id: NodeId) -> Option<Vec<(ValueId, Tensor)>> {
    let node = graph.node(id);
    if node.subgraphs().next().is_some() || (node.domain_or_default().is_empty() && RANDOM.contains(&&*node.op)) {
        return None;
    }
    if let Some(value) = shape_of(graph, node) {
        return Some(vec![(node.output(0)?, value)]);
    }
    let spec = ops::find(node.domain_or_default(), &node.op)?;
    let inputs: HashSet<ValueId> = graph.inputs.iter().copied().collect();
    let mut operands = Vec::with_capacity(node.inputs.len());
    for &input in &node.inputs {
        operands.push(match input {
            None => None,
            Some(value) if inputs.contains(&value) => return None,
            Some(value) => Some(graph.constant(value).filter(|t| t.len() <= LARGEST_OPERAND)?),
        });
    }
    let types = crate::infer_node(graph, node, "").ok()?;
    let small = |t: &TensorType| t.concrete().and_then(|s| element_count(&s)).is_some_and(|n| n <= LARGEST_RESULT);
    if !types.iter().all(small) {
        return None;
    }
    let arrays: Vec<Option<Array>> =
        operands.into_iter().map(|t| t.map(|t| Array::from_tensor(&t)).transpose()).collect::<Result<_, _>>().ok()?;
    let results = (spec.eval)(&EvalCx { node, inputs: arrays.iter().map(Option::as_ref).collect() }).ok()?;
    let named = node.outputs.iter().zip(results).filter_map(|(o, r)| Some(((*o)?, r.rounded())));
    let tensors: Vec<_> = named.map(|(o, r)| r.to_tensor().map(|t| (o, t))).collect::<Result<_, _>>().ok()?;
    (tensors.len() == node.outputs.iter().flatten().count()).then_some(tensors)
}

/// Value of `Shape` and `Size` when the dims they report are known.
fn shape_of(graph: &Graph, node: &Node) -> Option<Tensor> {
    let dims = || graph.ty(node.input(0)?)?.dims.as_ref();
    if node.is("", "Size") {
        let sizes: Vec<usize> = dims()?.iter().map(Dim::known).collect::<Option<_>>()?;
        return Some(Tensor::scalar(i64::try_from(element_count(&sizes)?).ok()?));
    }
    if !node.is("", "Shape") {
        return None;
    }
    let dims = dims()?;
    let rank = dims.len() as i64;
    let at = |attr: &str, default: i64| {
        let i = node.int(attr).unwrap_or(default);
        usize::try_from(if i < 0 { i + rank } else { i }.clamp(0, rank)).ok()
    };
    let (start, end) = (at("start", 0)?, at("end", rank)?);
    let reported = dims.get(start..end.max(start))?;
    let sizes: Vec<i64> =
        reported.iter().map(|d| d.known().and_then(|n| i64::try_from(n).ok())).collect::<Option<_>>()?;
    Tensor::new([sizes.len()], sizes).ok()
}
