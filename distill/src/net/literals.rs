//! Where constants arrive, rearranged or not; and weights that a file keeps as literals (Constant nodes) and that separate
//! nodes apply: biases added to what a layer computes, scales and shifts of normalisations spelled out in primitives.
//!
//! A literal is one of these when it is a vector along the layer's channels and nothing else: tables of positions,
//! masks and numbers of the arithmetic are not.

use super::classify::{Uses, described};
use limbeck_graph::{Graph, Node, NodeId, ValueId};

/// Layers with a bias, which may follow as an Add.
const LAYERS: &[&str] = &["Conv", "ConvTranspose", "Gemm", "MatMul"];

/// Operators whose result is normalised.
const NORMALISING: &[&str] = &[
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "RMSNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
];

/// Operators that leave values as they are.
const CARRYING: &[&str] = &["Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Cast", "Flatten"];

/// Operators that give a part of a value, or several copies.
const PARTING: &[&str] = &["Slice", "Split", "Expand"];

/// How many nodes a value is followed back.
const DEPTH: usize = 4;

/// A reader of a constant, or of what rearranging it alone gives.
pub(super) struct Arrival {
    /// The reader.
    pub(super) node: NodeId,
    /// Its operand.
    pub(super) at: usize,
    /// The value that it reads.
    pub(super) value: ValueId,
}

/// Most readers that are looked at.
const READERS: usize = 256;

/// Where the constant `id` is read, also behind nodes that only rearrange it and other constants.
pub(super) fn arrivals(graph: &Graph, uses: &Uses, id: ValueId) -> Vec<Arrival> {
    let (mut found, mut next) = (vec![], vec![id]);
    while let Some(value) = next.pop() {
        for &(node, at) in uses.get(&value).into_iter().flatten() {
            found.push(Arrival { node, at, value });
            let reader = graph.node(node);
            let op = reader.op.as_str();
            let rearranges = reader.domain_or_default().is_empty()
                && (op == "Concat" || at == 0 && (CARRYING.contains(&op) || PARTING.contains(&op)));
            let alone = || reader.inputs.iter().flatten().all(|&i| is_constant(graph, i, DEPTH));
            if rearranges && found.len() < READERS && alone() {
                next.extend(reader.outputs.iter().flatten());
            }
        }
    }
    found
}

/// Why a literal is a weight after all.
pub(super) fn weight(graph: &Graph, arrivals: &[Arrival]) -> Option<String> {
    let applied = |&Arrival { node, at, value: id }: &Arrival| {
        let node = graph.node(node);
        let binary = node.domain_or_default().is_empty() && node.inputs.len() == 2;
        let other = node.input(1 - at.min(1)).filter(|_| binary)?;
        match node.op.as_str() {
            "Add" => added(graph, id, other),
            "Mul" if is_vector(graph, id) && is_normalised(graph, other, DEPTH) => {
                Some(format!("a literal, multiplied with the normalised value '{}': a scale", graph.name_of(other)))
            }
            _ => None,
        }
    };
    arrivals.iter().find_map(applied)
}

/// A literal that is added: a layer's bias, or the shift behind a normalisation's scale.
fn added(graph: &Graph, id: ValueId, other: ValueId) -> Option<String> {
    let producer = graph.producer(other)?;
    let node = graph.node(producer);
    let layer = node.domain_or_default().is_empty() && LAYERS.contains(&node.op.as_str()) && node.input(2).is_none();
    if layer && is_along(graph, id, channels(graph, node)?) {
        let place = described(graph, producer);
        return Some(format!("a literal along the channels of {place}, added to its result: a bias"));
    }
    let scaled = node.is("", "Mul") && {
        let [a, b] = [0, 1].map(|i| node.input(i));
        let by_constant = |x: Option<ValueId>, scale: Option<ValueId>| {
            scale.is_some_and(|s| is_constant(graph, s, DEPTH)) && x.is_some_and(|x| is_normalised(graph, x, DEPTH))
        };
        by_constant(a, b) || by_constant(b, a)
    };
    let shift = is_vector(graph, id) && (scaled || is_normalised(graph, other, DEPTH));
    shift.then(|| format!("a literal, added to the normalised value '{}': a shift", graph.name_of(other)))
}

/// The extent of a layer's channels, and how many axes of its result come after them. A product of two computed values
/// (attention scores) is no layer.
fn channels(graph: &Graph, node: &Node) -> Option<(usize, usize)> {
    let shape_of = |i: usize| {
        let weight = node.input(i).filter(|&w| is_constant(graph, w, DEPTH))?;
        graph.ty(weight)?.concrete()
    };
    if node.op == "MatMul" {
        return match (shape_of(0), shape_of(1)) {
            (None, Some(w)) if w.len() >= 2 => Some((*w.last()?, 0)),
            (Some(w), None) if w.len() >= 2 => Some((w[w.len() - 2], 1)),
            _ => None,
        };
    }
    let weight = shape_of(1)?;
    let behind = weight.len().checked_sub(2)?;
    match node.op.as_str() {
        "Gemm" => Some((weight[usize::from(node.int("transB").unwrap_or(0) == 0)], 0)),
        "Conv" => Some((weight[0], behind)),
        _ => Some((weight[1].checked_mul(usize::try_from(node.int("group").unwrap_or(1)).ok()?)?, behind)),
    }
}

/// Whether a constant has this extent along the channels and 1 elsewhere.
fn is_along(graph: &Graph, id: ValueId, (extent, behind): (usize, usize)) -> bool {
    let shape = graph.ty(id).and_then(|t| t.concrete()).unwrap_or_default();
    let mut from_end = shape.iter().rev();
    shape.len() > behind
        && from_end.by_ref().take(behind).all(|&n| n == 1)
        && from_end.next() == Some(&extent)
        && from_end.all(|&n| n == 1)
}

/// More than one number, along one axis.
fn is_vector(graph: &Graph, id: ValueId) -> bool {
    let shape = graph.ty(id).and_then(|t| t.concrete()).unwrap_or_default();
    !shape.contains(&0) && shape.iter().filter(|&&n| n > 1).count() == 1
}

/// Whether a value is stored, or computed from what is stored alone.
fn is_constant(graph: &Graph, id: ValueId, depth: usize) -> bool {
    if graph.constant(id).is_some() {
        return !graph.inputs.contains(&id);
    }
    let Some(node) = graph.producer(id).map(|n| graph.node(n)).filter(|_| depth > 0) else { return false };
    !node.inputs.is_empty() && node.inputs.iter().flatten().all(|&i| is_constant(graph, i, depth - 1))
}

/// Whether a value is the result of a normalisation: of one of the operators, or `(x - mean) / sqrt(variance)`.
fn is_normalised(graph: &Graph, id: ValueId, depth: usize) -> bool {
    let Some(node) = graph.producer(id).map(|n| graph.node(n)).filter(|_| depth > 0) else { return false };
    let [a, b] = [0, 1].map(|i| node.input(i));
    let is_inverse = |v: Option<ValueId>| v.is_some_and(|v| is_inverse_deviation(graph, v));
    match node.op.as_str() {
        _ if !node.domain_or_default().is_empty() => false,
        op if NORMALISING.contains(&op) => true,
        op if CARRYING.contains(&op) => a.is_some_and(|a| is_normalised(graph, a, depth - 1)),
        "Div" => b.is_some_and(|b| is_deviation(graph, b)),
        "Mul" => is_inverse(a) || is_inverse(b),
        _ => false,
    }
}

/// `sqrt(mean(..) + ε)`.
fn is_deviation(graph: &Graph, id: ValueId) -> bool {
    let Some(node) = graph.producer(id).map(|n| graph.node(n)) else { return false };
    ["Sqrt", "Pow"].iter().any(|op| node.is("", op)) && node.input(0).is_some_and(|x| averages(graph, x, DEPTH))
}

/// `1 / sqrt(mean(..) + ε)`, in the ways of writing it.
fn is_inverse_deviation(graph: &Graph, id: ValueId) -> bool {
    let Some(node) = graph.producer(id).map(|n| graph.node(n)) else { return false };
    match node.op.as_str() {
        "Reciprocal" => node.input(0).is_some_and(|x| is_deviation(graph, x)),
        "Div" => {
            node.input(0).is_some_and(|one| is_constant(graph, one, 1))
                && node.input(1).is_some_and(|x| is_deviation(graph, x))
        }
        "Pow" => is_deviation(graph, id),
        _ => false,
    }
}

/// Whether a mean stands at most `depth` nodes before a value.
fn averages(graph: &Graph, id: ValueId, depth: usize) -> bool {
    let Some(node) = graph.producer(id).map(|n| graph.node(n)).filter(|_| depth > 0) else { return false };
    ["ReduceMean", "GlobalAveragePool"].iter().any(|op| node.is("", op))
        || node.inputs.iter().flatten().any(|&i| averages(graph, i, depth - 1))
}
