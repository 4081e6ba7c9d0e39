//! Rebuilding single nodes of a graph in another way, in their places.

use crate::{Cx, Graph, GraphError, Node, NodeId, ValueId, Var};
use std::collections::HashMap;

/// Builds a node another way, from the node and its operands to its results; `None` leaves it as it is.
pub(super) type NodeRewrite<'f> = dyn for<'c> FnMut(&'c Cx, &Node, &[Option<Var<'c>>]) -> Option<Vec<Var<'c>>> + 'f;

impl Graph {
    /// The graph with nodes rebuilt by `rewrite`, which sees those outside subgraphs whose operands have static shapes.
    /// Results keep their names. Returns how many nodes were rebuilt.
    pub(super) fn rewritten(self, rewrite: &mut NodeRewrite<'_>) -> Result<(Graph, usize), GraphError> {
        let old = self.node_ids();
        let float = self.float();
        let cx = Cx::over(self, float);
        let (mut order, mut rebuilt) = (Vec::with_capacity(old.len()), 0);
        for id in old {
            let (node, label) = (cx.graph().node(id).clone(), cx.graph().label(id));
            let shaped = |v: &ValueId| cx.graph().shape(*v).is_ok();
            if node.subgraphs().next().is_some() || !node.inputs.iter().flatten().all(shaped) {
                order.push(id);
                continue;
            }
            let operands: Vec<_> = node.inputs.iter().map(|i| i.map(|i| cx.var(i))).collect();
            let before = cx.graph().nodes.len() as u32;
            let results = rewrite(&cx, &node, &operands);
            if let Err(GraphError::Build { reason, .. }) = cx.check() {
                return Err(GraphError::Node { node: label, op: node.full_op(), reason });
            }
            let made = cx.graph().nodes.len() as u32;
            order.extend((before..made).map(NodeId));
            match results {
                None => order.push(id),
                Some(results) => {
                    let results: Vec<ValueId> = results.iter().map(|v| v.id()).collect();
                    order.extend(cx.edit(|g| settle(g, id, &results, before..made)));
                    rebuilt += 1;
                }
            }
        }
        cx.edit(|g| g.set_order(order));
        Ok((cx.finish()?, rebuilt))
    }
}

/// Removes a node and makes what it provided the `results` of the nodes `made` for it. Returns the copies that takes.
fn settle(graph: &mut Graph, id: NodeId, results: &[ValueId], made: std::ops::Range<u32>) -> Vec<NodeId> {
    let provided = graph.node(id).outputs.clone();
    graph.remove_node(id);
    let mut taken: HashMap<ValueId, ValueId> = HashMap::new();
    let mut copies = vec![];
    for (old, &new) in provided.into_iter().zip(results).filter_map(|(old, new)| Some((old?, new))) {
        if graph.ty(old).is_none() {
            graph.set_ty(old, graph.ty(new).cloned());
        }
        let producer = graph.producer(new).filter(|p| made.contains(&p.0));
        let Some(producer) = producer else {
            let from = taken.get(&new).copied().unwrap_or(new);
            copies.push(graph.push_node(Node::new("Identity", &[from], &[old])));
            continue;
        };
        taken.insert(new, old);
        for node in graph.nodes[made.start as usize..made.end as usize].iter_mut().flatten() {
            node.replace_input(new, old);
            node.outputs.iter_mut().flatten().filter(|o| **o == new).for_each(|o| *o = old);
        }
        graph.values[old.0 as usize].producer = Some(producer);
        graph.values[new.0 as usize].producer = None;
    }
    copies
}
