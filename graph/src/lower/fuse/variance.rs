//! Variances: `mean((x - mean(x))^2)` as one reduction of `x`, which a kernel takes in the pass over memory that the mean
//! takes.

use super::element::{Element, element, is_row, kept};
use crate::ops::map::VARIANCE;
use crate::{Graph, LIMBECK, Node, NodeId, ValueId};

/// Replaces variances by the reduction that maps have for them, but over rows, whose map has the mean at hand.
pub(super) fn find(graph: &mut Graph) {
    for id in graph.node_ids() {
        if let Some(x) = of_variance(graph, id) {
            let node = graph.node_mut(id);
            node.op = VARIANCE.to_owned();
            node.domain = LIMBECK.to_owned();
            node.inputs[0] = Some(x);
        }
    }
    graph.remove_dead();
}

/// What the node gives the variance of.
fn of_variance(graph: &Graph, id: NodeId) -> Option<ValueId> {
    let square =
        mean(graph, graph.node(id)).filter(|square| !is_row(&square.shape, square.axes.as_deref().unwrap_or(&[])))?;
    let made = |value: ValueId, op: &str| graph.producer(value).map(|id| graph.node(id)).filter(|node| node.is("", op));
    let product = made(square.operands[0], "Mul")?;
    let (centred, other) = (product.input(0)?, product.input(1)?);
    let difference = made(centred, "Sub").filter(|_| centred == other)?;
    let (x, subtracted) = (difference.input(0)?, difference.input(1)?);
    let of_x = mean(graph, made(subtracted, "ReduceMean")?)?;
    let same = of_x.operands == [x] && of_x.axes == square.axes && of_x.shape == square.shape;
    let spread =
        graph.shape(subtracted).is_ok_and(|shape| shape == kept(&of_x.shape, of_x.axes.as_deref().unwrap_or(&[])));
    (same && spread).then_some(x)
}

/// A mean that keeps its axes.
fn mean(graph: &Graph, node: &Node) -> Option<Element> {
    element(graph, node).filter(|e| node.is("", "ReduceMean") && e.axes.is_some() && e.keeps)
}
