//! Bodies of Loop and Scan in a graph: their weights, and what they compute in every iteration as results of the node.

use crate::infer::infer_results;
use crate::ops::Looped;
use crate::{Capture, Graph, GraphError, Node, NodeId, TensorType, ValueId};
use limbeck_tensor::Tensor;
use std::collections::HashSet;

/// A trip count above this stands for a loop without end.
const MOST_TRIPS: i64 = 1_000_000_000;

impl Graph {
    /// The value that `id` is a copy of, through any number of `Identity` nodes; `id` itself where it is none.
    pub fn origin(&self, mut id: ValueId) -> ValueId {
        // A cycle, which no verified graph has, ends too.
        for _ in 0..self.node_count() {
            let copy = self.producer(id).map(|p| self.node(p)).filter(|n| n.is("", "Identity"));
            let Some(from) = copy.and_then(|n| n.input(0)) else { break };
            id = from;
        }
        id
    }

    /// Makes the weights that bodies of Loop and Scan store (floats that are no literals) weights of this graph, which the
    /// bodies capture: there they can be named, trained and exchanged. They keep their names where those are free. Returns how
    /// many there are.
    pub fn hoist_weights(&mut self) -> usize {
        let mut hoisted = 0;
        for id in self.node_ids() {
            let Some(mut body) = looped_body(self.node(id)).cloned() else { continue };
            let below = body.hoist_weights();
            let own = self.take_constants(&mut body, "", is_weight);
            if below + own > 0 {
                hoisted += own;
                self.node_mut(id).attrs.insert("body".into(), body.into());
            }
        }
        hoisted
    }

    /// Moves constants of a body that `wanted` picks to this graph, to be captured; names get `prefix`. Returns how many.
    pub(crate) fn take_constants(
        &mut self,
        body: &mut Graph,
        prefix: &str,
        wanted: impl Fn(&Graph, ValueId) -> bool,
    ) -> usize {
        let own = body.initializers().map(|(inner, _)| inner);
        let own: Vec<ValueId> = own.filter(|&v| !body.inputs.contains(&v) && wanted(body, v)).collect();
        for &inner in &own {
            let ty = body.initializer(inner).map(TensorType::of);
            let outer = self.add_value(format!("{prefix}{}", body.name_of(inner)), ty);
            self.copy_constant(outer, body, inner);
            body.remove_initializer(inner);
            body.captures.push(Capture { inner, outer });
        }
        own.len()
    }

    /// Drops the inputs from place `from` on that nothing reads and `kept` does not name. Returns the places of those that
    /// stay, counted from `from`.
    pub fn keep_read_inputs(&mut self, from: usize, kept: usize) -> Vec<usize> {
        let read = self.nodes().flat_map(|(_, node)| node.reads());
        let read: HashSet<ValueId> = read.chain(self.outputs.iter().copied()).collect();
        let stays = |at: usize| at < from || at == kept || read.contains(&self.inputs[at]);
        let places: Vec<usize> = (0..self.inputs.len()).filter(|&at| stays(at)).collect();
        self.inputs = places.iter().map(|&at| self.inputs[at]).collect();
        places.into_iter().filter(|&at| at >= from).map(|at| at - from).collect()
    }

    /// Makes results of the Loop or Scan `id` of what `values` of its body are in each iteration: stacked along a new first
    /// axis, the first iteration first. Returns these results. They come after those that the node has; where it has one
    /// that is just this already, that is returned.
    ///
    /// # Errors
    /// Another operator, attributes that do not fit it, and types that contradict each other.
    pub fn record(&mut self, id: NodeId, values: &[ValueId]) -> Result<Vec<ValueId>, GraphError> {
        let (mut node, label) = (self.node(id).clone(), self.label(id));
        let refuse = |reason: String| GraphError::Node { node: label.clone(), op: node.full_op(), reason };
        let form = Looped::of(&node).map_err(|e| refuse(e.0))?;
        let typed = crate::typed_body(self, &node, &label)?;
        let mut body = looped_body(&node).cloned().ok_or_else(|| refuse("has no body".into()))?;
        // Leading outputs of the body that are no slices, and those of the node.
        let (leading, carried) = (form.given() + form.carried, form.carried);
        if node.outputs.len() > carried + form.written.len() {
            return Err(refuse(format!("has {} results, its body fewer", node.outputs.len())));
        }
        node.outputs.resize(carried + form.written.len(), None);
        let mut results = vec![];
        for &value in values {
            let plain = |at: &usize| form.written.get(*at).is_none_or(|s| s.axis == 0 && !s.backwards);
            let written = body.outputs[leading..].iter().enumerate();
            let given = written.map(|(at, &v)| (at, body.origin(v))).find(|(at, v)| *v == value && plain(at));
            let at = given.map(|(at, _)| at).unwrap_or_else(|| {
                let copy = body.add_value(format!("{}.recorded", body.name_of(value)), typed.ty(value).cloned());
                body.add_node(Node::new("Identity", &[value], &[copy]));
                body.outputs.push(copy);
                node.outputs.push(None);
                body.outputs.len() - 1 - leading
            });
            let name = format!("{}.{}", label, body.name_of(value));
            results.push(*node.outputs[carried + at].get_or_insert_with(|| self.add_value(name, None)));
        }
        let written = body.outputs.len() - leading;
        for name in ["scan_output_axes", "scan_output_directions"] {
            if let Some(list) = node.ints(name) {
                let mut list = list.to_vec();
                list.resize(written, 0);
                node.attrs.insert(name.into(), list.into());
            }
        }
        node.attrs.insert("body".into(), body.into());
        self.exchange_node(id, node);
        infer_results(self, id)?;
        Ok(results)
    }
}

/// The body of a Loop or Scan.
pub(crate) fn looped_body(node: &Node) -> Option<&Graph> {
    if node.is("", "Loop") || node.is("", "Scan") { node.graph("body") } else { None }
}

/// How many iterations a Loop of `graph` makes, where its trip count is constant and no condition ends it earlier.
pub(crate) fn trip_count(graph: &Graph, node: &Node) -> Option<usize> {
    let body = looped_body(node).filter(|_| node.is("", "Loop"))?;
    let holds = |constant: Option<Tensor>| constant.and_then(|t| t.to_f64_vec().ok()).as_deref() == Some(&[1.0]);
    let starts = node.input(1).is_none_or(|v| holds(graph.settled(v)));
    // The condition that the body gives: constant, or the one it got.
    let goes_on = body.origin(*body.outputs.first()?);
    let captured = body.captures.iter().find(|c| c.inner == goes_on).map(|c| c.outer);
    let goes_on = goes_on == *body.inputs.get(1)?
        || captured.is_some_and(|v| holds(graph.settled(v)))
        || holds(body.constant(goes_on));
    let trips = graph.settled(node.input(0)?)?.to_i64_vec().ok()?.first().map(|&n| n.max(0));
    trips.filter(|&n| n <= MOST_TRIPS && starts && goes_on).and_then(|n| usize::try_from(n).ok())
}

/// Whether a stored constant is one to train.
pub(crate) fn is_weight(graph: &Graph, id: ValueId) -> bool {
    graph.initializer(id).is_some_and(|t| t.dtype().is_float()) && !graph.is_literal(id)
}
