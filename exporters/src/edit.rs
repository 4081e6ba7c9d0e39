//! Small edits and questions that the passes share.

use crate::ExportError;
use limbeck_graph::{Graph, Node, NodeId, ValueId};
use limbeck_tensor::{DType, Tensor};

/// An error of a pass.
pub(crate) fn fail<T>(pass: &'static str, reason: impl Into<String>) -> Result<T, ExportError> {
    Err(ExportError::Pass { pass, reason: reason.into() })
}

/// The stored constant of a value, unless it is a graph input with a default, which a caller may replace.
pub(crate) fn weight(graph: &Graph, id: Option<ValueId>) -> Option<&Tensor> {
    let id = id.filter(|id| !graph.inputs.contains(id))?;
    graph.initializer(id)
}

/// The only node that reads a value, when it is no graph output.
pub(crate) fn sole_reader(graph: &Graph, id: ValueId) -> Option<NodeId> {
    let mut readers = graph.nodes().filter(|(_, n)| n.reads().contains(&id)).map(|(id, _)| id);
    let first = readers.next();
    first.filter(|_| readers.next().is_none() && !graph.outputs.contains(&id))
}

/// Makes the node read `tensor` as operand `at`: in place when it alone reads that constant, subgraphs included, else under
/// a new name.
pub(crate) fn set_weight(graph: &mut Graph, node: NodeId, at: usize, name: &str, tensor: Tensor) {
    let old = graph.node(node).input(at);
    let reads = |n: &Node| n.reads().into_iter().filter(|&i| Some(i) == old).count();
    let alone = graph.nodes().map(|(_, n)| reads(n)).sum::<usize>() == 1;
    match old.filter(|_| alone).filter(|&id| weight(graph, Some(id)).is_some()) {
        Some(id) if !graph.outputs.contains(&id) => graph.set_initializer(id, tensor),
        _ => {
            let id = graph.add_initializer(name, tensor);
            let inputs = &mut graph.node_mut(node).inputs;
            if inputs.len() <= at {
                inputs.resize(at + 1, None);
            }
            inputs[at] = Some(id);
        }
    }
}

/// Puts `node`, whose outputs are those of `old`, in the place of `old`.
pub(crate) fn replace_node(graph: &mut Graph, old: NodeId, node: Node) -> NodeId {
    let before = graph.node_ids().into_iter().skip_while(|&n| n != old).nth(1);
    graph.remove_node(old);
    let new = match before {
        Some(before) => graph.insert_node_before(before, node),
        None => graph.add_node(node),
    };
    // A copied node carries its encoded form, which no longer holds.
    graph.node_mut(new);
    new
}

/// Inserts an operation with one new result before `at`.
pub(crate) fn before(graph: &mut Graph, at: NodeId, mut node: Node, name: &str) -> ValueId {
    let output = graph.add_value(name, None);
    node.outputs = vec![Some(output)];
    let id = graph.insert_node_before(at, node);
    infer(graph, id);
    output
}

/// Learns the types of a node's results when they follow from its operands.
pub(crate) fn infer(graph: &mut Graph, id: NodeId) {
    if let Ok(types) = limbeck_graph::infer_node(graph, graph.node(id), "") {
        for (output, ty) in graph.node(id).outputs.clone().into_iter().zip(types) {
            if let Some(output) = output {
                graph.set_ty(output, Some(ty));
            }
        }
    }
}

/// Elements along an axis: how many positions before it, on it and behind it.
pub(crate) fn split_at(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    let product = |s: &[usize]| s.iter().product::<usize>();
    (product(&shape[..axis]), shape[axis], product(&shape[axis + 1..]))
}

/// The tensor reduced to these positions of an axis, of any dtype of whole bytes.
pub(crate) fn take(tensor: &Tensor, axis: usize, keep: &[usize]) -> Result<Tensor, ExportError> {
    let (outer, extent, inner) = split_at(tensor.shape(), axis);
    let bytes = tensor.bytes();
    let run = if tensor.is_empty() { 0 } else { bytes.len() / (outer * extent) };
    if !tensor.dtype().bits().is_multiple_of(8)
        || tensor.dtype() == DType::String
        || run * outer * extent != bytes.len()
    {
        return fail("prune", format!("a constant of {} ({inner} per position) cannot be sliced", tensor.dtype()));
    }
    let mut kept = Vec::with_capacity(outer * keep.len() * run);
    for o in 0..outer {
        for &k in keep {
            let start = (o * extent + k) * run;
            kept.extend_from_slice(&bytes[start..start + run]);
        }
    }
    let mut shape = tensor.shape().to_vec();
    shape[axis] = keep.len();
    Ok(Tensor::from_bytes(tensor.dtype(), shape, kept.into())?)
}

/// An axis attribute counted from the front.
pub(crate) fn axis_of(axis: i64, rank: usize) -> Option<usize> {
    let rank = rank as i64;
    usize::try_from(if axis < 0 { axis + rank } else { axis }).ok().filter(|&a| (a as i64) < rank)
}
