//! Putting the nodes of one graph into the place of a node of another: a branch for its `If`, a body for its call.

use crate::{Graph, GraphError, Node, NodeId, TensorType, ValueId};
use std::collections::HashMap;

impl Graph {
    /// Replaces node `id` by the nodes of `body`, whose outputs become the node's results; as [`Graph::expanded`] otherwise.
    pub(super) fn inline_body(
        &mut self,
        id: NodeId,
        body: &Graph,
        place: HashMap<ValueId, Option<ValueId>>,
    ) -> Result<(), GraphError> {
        let results = self.node(id).outputs.clone();
        let nodes = self.expanded(id, body, place, &results)?;
        self.replace_node(id, nodes);
        Ok(())
    }

    /// The nodes of `body` on values of this graph, for node `id`, and so that its outputs are `results`. `place` says what
    /// stands for the body's captures and inputs; an absent operand stands as `None`.
    pub(super) fn expanded(
        &mut self,
        id: NodeId,
        body: &Graph,
        mut place: HashMap<ValueId, Option<ValueId>>,
        results: &[Option<ValueId>],
    ) -> Result<Vec<Node>, GraphError> {
        let fail = |graph: &Graph, reason: String| GraphError::Node {
            node: graph.label(id),
            op: graph.node(id).full_op(),
            reason,
        };
        if results.len() > body.outputs.len() {
            let reason = format!("has {} results, its body {}", results.len(), body.outputs.len());
            return Err(fail(self, reason));
        }
        for (inner, tensor) in body.initializers() {
            let outer = self.add_value(body.name_of(inner), Some(TensorType::of(tensor)));
            self.copy_constant(outer, body, inner);
            place.insert(inner, Some(outer));
        }
        // A node's result may be the replaced node's own; what is no node's, or two results at once, is copied at the end.
        for (result, &inner) in results.iter().zip(&body.outputs) {
            if let (Some(result), true) = (result, body.producer(inner).is_some()) {
                place.entry(inner).or_insert(Some(*result));
            }
        }
        let mut nodes = Vec::with_capacity(body.node_count());
        for (_, node) in body.nodes() {
            let mut copy = node.clone();
            for output in copy.outputs.iter_mut().flatten() {
                let ty = body.ty(*output).cloned();
                let outer = match place.get(output) {
                    Some(Some(outer)) => *outer,
                    _ => self.add_value(body.name_of(*output), ty.clone()),
                };
                place.insert(*output, Some(outer));
                if self.ty(outer).is_none() {
                    self.set_ty(outer, ty);
                }
                *output = outer;
            }
            for input in &mut copy.inputs {
                if let Some(read) = *input {
                    *input = *place.get(&read).ok_or_else(|| dangling(body, read))?;
                }
            }
            while copy.inputs.last().is_some_and(Option::is_none) {
                copy.inputs.pop();
            }
            for capture in copy.subgraphs_mut().flat_map(|sub| &mut sub.captures) {
                let outer = *place.get(&capture.outer).ok_or_else(|| dangling(body, capture.outer))?;
                capture.outer = outer.ok_or_else(|| {
                    let value = body.name_of(capture.outer);
                    fail(self, format!("leaves out the operand '{value}', which a subgraph of its body reads"))
                })?;
            }
            nodes.push(copy);
        }
        for (result, inner) in results.iter().zip(&body.outputs) {
            let from = *place.get(inner).ok_or_else(|| dangling(body, *inner))?;
            let Some(result) = result.filter(|&result| Some(result) != from) else { continue };
            let from = from.ok_or_else(|| fail(self, "passes on an operand that it leaves out".into()))?;
            nodes.push(Node::new("Identity", &[from], &[result]));
        }
        Ok(nodes)
    }
}

fn dangling(body: &Graph, value: ValueId) -> GraphError {
    let reason = format!("is read in '{}', but nothing provides it", body.name);
    GraphError::Value { name: body.name_of(value).into(), reason }
}
