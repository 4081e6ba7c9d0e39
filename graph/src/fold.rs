//! Making shapes concrete: named dims fixed to numbers, constant expressions computed.

use crate::infer::{SMALL, infer_results};
use crate::ops::{self, EvalCx};
use crate::types::MAX_RANK;
use crate::{Array, Dim, Graph, GraphError, Node, NodeId, OPSET, TensorType, ValueId};
use limbeck_tensor::{DType, Tensor, element_count};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Operators whose result is not a function of their operands.
pub(crate) const RANDOM: &[&str] =
    &["Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"];

impl Graph {
    /// Fixes named dims, subgraphs included, and learns all types: shapes that a canonical graph computes from its
    /// dims are folded ([`Graph::fold_shapes`]), others only inferred ([`Graph::infer_types`]). A name that the graph
    /// does not have is an error that lists those it has.
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
        if self.is_canonical() { self.fold_shapes().map(|_| ()) } else { self.infer_types() }
    }

    /// Infers all types (as [`Graph::infer_types`] does) and on the way computes what shapes are made of: `Shape` and
    /// `Size` of known dims, and integer arithmetic on them and on other small constants. Results become literals, so
    /// that what is reshaped to them (torch's `x.view(x.size(0), -1)`) has a concrete shape, and sequences that only pass
    /// on the parts of a split become a `Split`. Weights are left alone:
    /// of floats only a few literals are computed with, such as the scales of a Resize. Graph
    /// outputs and all other nodes stay. Returns how many nodes were computed.
    ///
    /// Who needs concrete shapes (differentiation, lowering, cost, quantisation) calls [`Graph::canonicalise`] and then
    /// [`Graph::bind_dims`], which ends with this, or this alone when no dim has a name.
    pub fn fold_shapes(&mut self) -> Result<usize, GraphError> {
        self.require_canonical("fold_shapes")?;
        let Folded { mut nodes, mut values, mut inferred } = fold_nodes(self, &SHAPES, true);
        // What is unpacked has types, from which more shapes may become known.
        while inferred.is_ok() && self.resolve_sequences() > 0 {
            let more = fold_nodes(self, &SHAPES, true);
            nodes += more.nodes;
            values.extend(more.values);
            inferred = more.inferred;
        }
        // Literals that only led to a shape are of no use any more.
        let read: HashSet<ValueId> = self.nodes().flat_map(|(_, n)| n.reads()).chain(self.outputs.clone()).collect();
        self.initializers.retain(|id, init| !init.literal || !values.contains(id) || read.contains(id));
        inferred?;
        self.verify()?;
        Ok(nodes)
    }

    /// Computes nodes whose operands are all stored constants (and not inputs with a default) when their results
    /// are small, and `Shape` and `Size` of statically known shapes; results become initializers, and the types that
    /// depend on them become known. Then removes what no output needs. Graph outputs stay nodes. Returns how many
    /// nodes were computed.
    ///
    /// Expressions of weights alone are computed too: for a graph that is to be trained use [`Graph::fold_shapes`].
    pub fn fold_constants(&mut self) -> Result<usize, GraphError> {
        self.require_canonical("fold_constants")?;
        let folded = fold_nodes(self, &CONSTANTS, false);
        self.remove_dead();
        self.verify()?;
        Ok(folded.nodes)
    }

    /// True when operators mean what the op table says.
    fn is_canonical(&self) -> bool {
        self.opset("").is_none_or(|opset| opset >= OPSET)
    }

    fn require_canonical(&self, pass: &str) -> Result<(), GraphError> {
        if self.is_canonical() {
            return Ok(());
        }
        let reason = format!("{pass} needs the operators of opset {OPSET}; canonicalise the graph first");
        Err(GraphError::Invalid { graph: self.name.clone(), reason })
    }
}

/// What folding may compute.
struct Limits {
    /// Largest operand, in elements.
    operand: usize,
    /// Largest result, in elements.
    result: usize,
    /// Largest float operand or result; beyond integers, folding then sees literals alone.
    literal: Option<usize>,
}

const SHAPES: Limits = Limits { operand: SMALL, result: SMALL, literal: Some(MAX_RANK) };
const CONSTANTS: Limits = Limits { operand: 1 << 22, result: 1 << 16, literal: None };

/// What folding did.
struct Folded {
    /// How many nodes were computed.
    nodes: usize,
    /// Operands and results of those nodes.
    values: HashSet<ValueId>,
    /// The first error of inference, at which a strict pass stops.
    inferred: Result<(), GraphError>,
}

/// Infers the types of all nodes and computes those that the limits allow.
fn fold_nodes(graph: &mut Graph, limits: &Limits, strict: bool) -> Folded {
    let inputs: HashSet<ValueId> = graph.inputs.iter().copied().collect();
    let outputs: HashSet<ValueId> = graph.outputs.iter().copied().collect();
    let (mut nodes, mut values, mut inferred) = (vec![], HashSet::new(), Ok(()));
    for id in graph.node_ids() {
        let result = infer_results(graph, id);
        if strict && result.is_err() {
            inferred = result;
            break;
        }
        if graph.node(id).outputs.iter().flatten().any(|o| outputs.contains(o)) {
            continue;
        }
        let Some((results, literal)) = fold(graph, id, limits, &inputs) else { continue };
        nodes.push(id);
        values.extend(graph.node(id).reads());
        for (value, tensor) in results {
            graph.set_initializer(value, tensor);
            if literal {
                graph.mark_literal(value);
            }
            values.insert(value);
        }
    }
    graph.remove_nodes(&nodes);
    Folded { nodes: nodes.len(), values, inferred }
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

/// Results of a node that depends on constants alone, and whether those are literals; `None` when it does not or
/// what it takes is beyond the limits.
fn fold(
    graph: &Graph,
    id: NodeId,
    limits: &Limits,
    inputs: &HashSet<ValueId>,
) -> Option<(Vec<(ValueId, Tensor)>, bool)> {
    let node = graph.node(id);
    if node.subgraphs().next().is_some() || (node.domain_or_default().is_empty() && RANDOM.contains(&&*node.op)) {
        return None;
    }
    if let Some(value) = shape_of(graph, node) {
        return Some((vec![(node.output(0)?, value)], true));
    }
    let spec = ops::find(node.domain_or_default(), &node.op)?;
    let literal = node.inputs.iter().flatten().all(|&i| graph.is_literal(i));
    let allowed = |dtype: DType, n: usize, literal: bool, most: usize| match limits.literal {
        Some(few) if dtype.is_float() => literal && n <= few,
        _ => n <= most,
    };
    let mut operands = Vec::with_capacity(node.inputs.len());
    for &input in &node.inputs {
        operands.push(match input {
            None => None,
            Some(value) if inputs.contains(&value) => return None,
            Some(value) => {
                let usable = |t: &Tensor| allowed(t.dtype(), t.len(), graph.is_literal(value), limits.operand);
                Some(graph.constant(value).filter(usable)?)
            }
        });
    }
    let types = crate::infer_node(graph, node, "").ok()?;
    let small = |t: &TensorType| {
        let elements = t.concrete().and_then(|s| element_count(&s));
        elements.is_some_and(|n| allowed(t.dtype, n, literal, limits.result))
    };
    if !types.iter().all(small) {
        return None;
    }
    let arrays: Vec<Option<Array>> =
        operands.into_iter().map(|t| t.map(|t| Array::from_tensor(&t)).transpose()).collect::<Result<_, _>>().ok()?;
    let results =
        (spec.eval)(&EvalCx { node, inputs: arrays.iter().map(Option::as_ref).collect(), outer: &HashMap::new() })
            .ok()?;
    let named = node.outputs.iter().zip(results).filter_map(|(o, r)| Some(((*o)?, r.rounded())));
    let tensors: Vec<_> = named.map(|(o, r)| r.to_tensor().map(|t| (o, t))).collect::<Result<_, _>>().ok()?;
    (tensors.len() == node.outputs.iter().flatten().count()).then_some((tensors, literal))
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
