//! What a model costs, counted from its graph: weights, multiply-and-adds, memory of intermediate values, operators.

use crate::quantise::node_precisions;
use limbeck_graph::{Dim, Graph, Node, NodeId, ValueId};
use limbeck_targets::ModelCost;
use limbeck_tensor::DType;
use std::collections::{BTreeSet, HashMap};

/// Counts a model for [`limbeck_targets::fits`]. Types must have been inferred; an extent that is not known counts as 1
/// (a named batch is one row) and makes the model `dynamic`. Multiply-and-adds are those of Conv, ConvTranspose, Gemm,
/// MatMul and their integer forms; peak memory follows values from producer to last reader in node order.
pub fn model_cost(graph: &Graph) -> ModelCost {
    let (int_nodes, float_nodes) = node_precisions(graph);
    let ops: BTreeSet<String> = graph.nodes().map(|(_, n)| op_name(n)).collect();
    let unknown = |id: &ValueId| graph.ty(*id).and_then(|t| t.concrete()).is_none();
    ModelCost {
        params: graph.initializers().filter(|(_, t)| t.dtype() != DType::I64).map(|(_, t)| t.len() as u64).sum(),
        weight_bytes: graph.initializers().map(|(_, t)| t.byte_len() as u64).sum(),
        peak_activation_bytes: peak_bytes(graph),
        macs: graph.nodes().map(|(_, n)| macs(graph, n).unwrap_or(0)).fold(0, u64::saturating_add),
        ops: ops.into_iter().collect(),
        float_nodes,
        int_nodes,
        dynamic: graph.inputs.iter().filter(|i| graph.initializer(**i).is_none()).any(unknown),
    }
}

fn op_name(node: &Node) -> String {
    match node.domain_or_default() {
        "" => node.op.clone(),
        domain => format!("{domain}.{}", node.op),
    }
}

/// Extents of a value, those not known as 1.
fn extents(graph: &Graph, id: Option<ValueId>) -> Option<Vec<u64>> {
    Some(graph.ty(id?)?.dims.as_ref()?.iter().map(|d: &Dim| d.known().unwrap_or(1) as u64).collect())
}

fn product(extents: &[u64]) -> u64 {
    extents.iter().fold(1, |n, &d| n.saturating_mul(d))
}

/// Multiply-and-adds of one node; 0 for operators without products of matrices.
fn macs(graph: &Graph, node: &Node) -> Option<u64> {
    if !node.domain_or_default().is_empty() {
        return Some(0);
    }
    let of = |i: usize| extents(graph, node.input(i));
    let y = product(&extents(graph, node.output(0))?);
    Some(match node.op.as_str() {
        "Conv" | "ConvInteger" => y.saturating_mul(product(of(1)?.get(1..)?)),
        "QLinearConv" => y.saturating_mul(product(of(3)?.get(1..)?)),
        "ConvTranspose" => product(&of(0)?).saturating_mul(product(of(1)?.get(1..)?)),
        "Gemm" => y.saturating_mul(*of(0)?.get(usize::from(node.int("transA").unwrap_or(0) == 0))?),
        "MatMul" | "MatMulInteger" | "QLinearMatMul" => y.saturating_mul(*of(0)?.last()?),
        _ => 0,
    })
}

/// Largest sum of values alive at once: from where they are computed (inputs: from the start) to their last reader
/// (outputs: to the end).
fn peak_bytes(graph: &Graph) -> u64 {
    let size = |id: ValueId| {
        let elements = extents(graph, Some(id)).map_or(0, |e| product(&e));
        graph.ty(id).map_or(0, |t| elements.saturating_mul(t.dtype.bits() as u64).div_ceil(8))
    };
    let mut last: HashMap<ValueId, NodeId> = HashMap::new();
    for (id, node) in graph.nodes() {
        last.extend(node.reads().into_iter().map(|v| (v, id)));
    }
    let mut alive: u64 = graph.inputs.iter().filter(|i| graph.initializer(**i).is_none()).map(|&i| size(i)).sum();
    let mut peak = alive;
    for (id, node) in graph.nodes() {
        alive = alive.saturating_add(node.outputs.iter().flatten().map(|&o| size(o)).sum());
        peak = peak.max(alive);
        let reads: BTreeSet<ValueId> = node.reads().into_iter().filter(|v| graph.initializer(*v).is_none()).collect();
        let done = reads.into_iter().filter(|v| last.get(v) == Some(&id));
        let unread = node.outputs.iter().flatten().copied().filter(|v| !last.contains_key(v));
        for value in done.chain(unread).filter(|v| !graph.outputs.contains(v)) {
            alive = alive.saturating_sub(size(value));
        }
    }
    peak
}
