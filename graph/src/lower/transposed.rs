//! Transpositions next to matrix products: `FusedMatMul` reads its operands, and gives its result, with their axes in another
//! order, which spares a copy.

use crate::{Attr, Graph, LIMBECK, Node, NodeId, ValueId};
use std::collections::HashMap;

/// Names of the attributes with the orders of a product's operands and result.
const OPERANDS: [&str; 2] = ["permA", "permB"];
const RESULT: &str = "permY";

/// Takes transpositions into the products that read them or that they alone read. Rows of matrices stay where values follow
/// each other in one direction at least, and the first axis, over which threads part, stays the first.
pub(super) fn absorb(graph: &mut Graph) {
    let readers = graph.consumers();
    for transpose in graph.node_ids() {
        if let Some((source, result, perm)) = transposition(graph, transpose) {
            let readers = readers.get(&result).map_or(&[][..], Vec::as_slice);
            if !graph.outputs.contains(&result) && readers.iter().all(|&id| reads(graph, id, result, &perm)) {
                readers.iter().for_each(|&id| read_through(graph, id, source, result, &perm));
            }
        }
    }
    graph.remove_dead();
    let readers = graph.consumers();
    let products: Vec<NodeId> = graph.nodes().filter(|(_, node)| is_product(node)).map(|(id, _)| id).collect();
    products.into_iter().for_each(|id| give_transposed(graph, id, &readers));
}

fn is_product(node: &Node) -> bool {
    node.is(LIMBECK, "FusedMatMul")
}

/// Operand, result and order of a transposition of more than two axes.
fn transposition(graph: &Graph, id: NodeId) -> Option<(ValueId, ValueId, Vec<i64>)> {
    let node = graph.node(id);
    let (source, result) = (node.input(0)?, node.output(0)?);
    let rank = graph.shape(source).ok()?.len();
    let perm = node.ints("perm").map_or_else(|| (0..rank as i64).rev().collect(), <[i64]>::to_vec);
    (node.is("", "Transpose") && rank > 2).then_some((source, result, perm))
}

/// The order that a node has under this name, or that of the axes as they are.
fn order(node: &Node, name: &str, rank: usize) -> Vec<i64> {
    node.ints(name).map_or_else(|| (0..rank as i64).collect(), <[i64]>::to_vec)
}

/// One order after another.
fn after(inner: &[i64], outer: &[i64]) -> Option<Vec<i64>> {
    outer.iter().map(|&axis| inner.get(usize::try_from(axis).ok()?).copied()).collect()
}

fn set_order(node: &mut Node, name: &str, order: Vec<i64>) {
    if order.iter().copied().eq(0..order.len() as i64) {
        node.attrs.shift_remove(name);
    } else {
        node.attrs.insert(name.to_owned(), Attr::Ints(order));
    }
}

/// Whether a node is a product that can read `transposed` as it was before.
fn reads(graph: &Graph, id: NodeId, transposed: ValueId, perm: &[i64]) -> bool {
    let node = graph.node(id);
    let innermost = perm.len() as i64 - 1;
    let fits = |name: &str| {
        let order = after(perm, &order(node, name, perm.len()));
        order.is_some_and(|order| order[0] == 0 && order[order.len() - 2..].contains(&innermost))
    };
    let mut slots = node.inputs.iter().zip(OPERANDS).filter(|(operand, _)| **operand == Some(transposed));
    is_product(node) && slots.all(|(_, name)| fits(name))
}

fn read_through(graph: &mut Graph, id: NodeId, source: ValueId, transposed: ValueId, perm: &[i64]) {
    let node = graph.node_mut(id);
    for (slot, name) in OPERANDS.into_iter().enumerate() {
        if node.input(slot) == Some(transposed)
            && let Some(order) = after(perm, &order(node, name, perm.len()))
        {
            node.inputs[slot] = Some(source);
            set_order(node, name, order);
        }
    }
}

/// Lets a product give what the only node that reads it makes of its result.
fn give_transposed(graph: &mut Graph, product: NodeId, readers: &HashMap<ValueId, Vec<NodeId>>) {
    let Some(result) = graph.node(product).output(0).filter(|v| !graph.outputs.contains(v)) else { return };
    let Some([reader]) = readers.get(&result).map(Vec::as_slice) else { return };
    let Some((_, given, perm)) = transposition(graph, *reader) else { return };
    let Some(order) = after(&order(graph.node(product), RESULT, perm.len()), &perm) else { return };
    if order[0] == 0 && order[order.len() - 1] >= order.len() as i64 - 2 {
        graph.remove_node(*reader);
        graph.set_outputs(product, vec![Some(given)]);
        set_order(graph.node_mut(product), RESULT, order);
    }
}
