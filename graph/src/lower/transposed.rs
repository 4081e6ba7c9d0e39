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

/// Operand, result and order of a transposition of more than two axes, together with those before it.
fn transposition(graph: &Graph, id: NodeId) -> Option<(ValueId, ValueId, Vec<i64>)> {
    let node = graph.node(id);
    let (mut source, result) = (node.input(0)?, node.output(0)?);
    let rank = graph.shape(source).ok()?.len();
    let reversed = || (0..rank as i64).rev().collect();
    let perm_of = |node: &Node| node.ints("perm").map_or_else(reversed, <[i64]>::to_vec);
    if !node.is("", "Transpose") || rank <= 2 {
        return None;
    }
    let mut perm = perm_of(node);
    while let Some(before) = graph.producer(source).map(|id| graph.node(id)).filter(|node| node.is("", "Transpose")) {
        source = before.input(0)?;
        perm = after(&perm_of(before), &perm)?;
    }
    Some((source, result, perm))
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

#[cfg(test)]
mod tests {
    use crate::{Cx, Form, Graph, Var};
    use limbeck_tensor::DType;

    /// Numbers of transpositions and of orders of products in the fused form of a product `[2, 3, 4, 5] x [2, 3, 5, 4]` of what
    /// is made of two inputs of these shapes.
    fn counts(shapes: [[usize; 4]; 2], make: impl for<'c> Fn(&'c Cx, Var<'c>, Var<'c>)) -> (usize, usize) {
        let cx = Cx::new("g", DType::F32);
        let [a, b] = [("a", shapes[0]), ("b", shapes[1])].map(|(name, shape)| cx.input(name, DType::F32, &shape));
        make(&cx, a, b);
        let graph: Graph = cx.finish().unwrap().lowered(Form::Fused).unwrap();
        let orders = graph
            .nodes()
            .flat_map(|(_, n)| n.attrs.keys())
            .filter(|name| ["permA", "permB", "permY"].contains(&name.as_str()));
        (graph.nodes().filter(|(_, n)| n.op == "Transpose").count(), orders.count())
    }

    const HEADS: [usize; 4] = [0, 2, 1, 3];

    #[test]
    fn heads_of_an_attention_are_not_copied() {
        let heads = [[2, 4, 3, 5], [2, 4, 3, 5]];
        let all = counts(heads, |cx, q, k| {
            let y = q.transpose(&HEADS).matmul(k.transpose(&[0, 2, 3, 1])).transpose(&HEADS);
            cx.output("y", y.relu());
        });
        assert_eq!(all, (0, 3));
        // One after the other, and by the flag that exchanges the last two.
        let twice = counts(heads, |cx, q, k| {
            let k = k.transpose(&HEADS).t();
            cx.output("y", q.transpose(&[0, 1, 3, 2]).transpose(&[0, 3, 1, 2]).matmul(k) + 1.0);
        });
        assert_eq!(twice.0, 0, "{twice:?}");
    }

    #[test]
    fn what_others_need_stays() {
        let heads = [[2, 4, 3, 5], [2, 3, 5, 4]];
        let read = counts(heads, |cx, q, k| {
            let q = q.transpose(&HEADS);
            cx.output("y", q.matmul(k) + 1.0);
            cx.output("q", q.relu());
        });
        assert_eq!(read, (1, 0));
        let given = counts(heads, |cx, q, k| {
            let q = q.transpose(&HEADS);
            let y = q.matmul(k);
            cx.output("q", q);
            cx.output("y", y.transpose(&HEADS) + 1.0);
            cx.output("z", y + 1.0);
        });
        assert_eq!(given, (2, 0));
    }

    #[test]
    fn orders_that_a_kernel_does_not_walk_stay() {
        // The innermost axis would be one of the batch.
        let batch = counts([[2, 4, 5, 3], [2, 3, 5, 4]], |cx, a, b| {
            cx.output("y", a.transpose(&[0, 3, 1, 2]).matmul(b).transpose(&[0, 2, 3, 1]) + 1.0);
        });
        assert_eq!(batch, (2, 0));
        let outermost = counts([[3, 2, 4, 5], [2, 3, 5, 4]], |cx, a, b| {
            cx.output("y", a.transpose(&[1, 0, 2, 3]).matmul(b) + 1.0);
        });
        assert_eq!(outermost, (1, 0));
    }
}
