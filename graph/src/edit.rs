//! Changing a graph: adding, removing and rewiring nodes. A single edit may leave a graph that is not sound yet (a
//! value read before its node is added); [`Graph::verify`] says what is missing, and every pass ends with it.

use crate::{Graph, Node, NodeId, ValueId, ValueSet};
use std::collections::HashMap;

impl Graph {
    /// Appends a node. Its outputs must be values of this graph that nothing provides, its operands must be provided
    /// before it: [`Graph::verify`] names what is not so. A node copied from another is written as it now is.
    pub fn add_node(&mut self, mut node: Node) -> NodeId {
        node.changed = true;
        self.push_in_order(node)
    }

    /// Inserts a node into the order just before `before`; as [`Graph::add_node`] otherwise.
    pub fn insert_node_before(&mut self, before: NodeId, mut node: Node) -> NodeId {
        node.changed = true;
        let id = self.push_node(node);
        let at = self.order.iter().position(|&n| n == before).unwrap_or(self.order.len());
        self.order.insert(at, id);
        id
    }

    /// Puts nodes into the place of `id` in the order, which is removed; as [`Graph::add_node`] otherwise. What they provide
    /// may be what `id` provided.
    pub(crate) fn replace_node(&mut self, id: NodeId, nodes: Vec<Node>) {
        let Some(at) = self.order.iter().position(|&n| n == id) else { return };
        // As `remove_nodes`, but at a place that is known.
        for output in self.nodes[id.0 as usize].take().iter().flat_map(|n| n.outputs.iter().flatten()) {
            self.values[output.0 as usize].producer = None;
        }
        let new: Vec<NodeId> = nodes.into_iter().map(|node| self.push_node(Node { changed: true, ..node })).collect();
        self.order.splice(at..=at, new);
    }

    /// Makes `id` the given node, in its place in the order. What it provides in addition may be provided by nothing else,
    /// and what `id` provided it provides too.
    pub(crate) fn exchange_node(&mut self, id: NodeId, mut node: Node) {
        node.changed = true;
        for output in node.outputs.iter().flatten() {
            self.values[output.0 as usize].producer = Some(id);
        }
        self.nodes[id.0 as usize] = Some(node);
    }

    /// Gives a node other outputs, as many, whose former providers are about to be removed.
    pub(crate) fn set_outputs(&mut self, id: NodeId, outputs: Vec<Option<ValueId>>) {
        for former in std::mem::take(&mut self.node_mut(id).outputs).iter().flatten() {
            self.values[former.0 as usize].producer = None;
        }
        for output in outputs.iter().flatten() {
            self.values[output.0 as usize].producer = Some(id);
        }
        self.node_mut(id).outputs = outputs;
    }

    /// Appends a node that keeps its encoded form.
    pub(crate) fn push_in_order(&mut self, node: Node) -> NodeId {
        let id = self.push_node(node);
        self.order.push(id);
        id
    }

    /// Adds a node that has no place in the order yet.
    pub(crate) fn push_node(&mut self, node: Node) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        for output in node.outputs.iter().flatten() {
            self.values[output.0 as usize].producer = Some(id);
        }
        self.nodes.push(Some(node));
        id
    }

    /// Removes a node; its outputs lose their producer, so that another node or an initializer must provide those that
    /// are still read ([`Graph::verify`] names them).
    pub fn remove_node(&mut self, id: NodeId) {
        self.remove_nodes(&[id]);
    }

    /// Removes many nodes in one go.
    pub(crate) fn remove_nodes(&mut self, ids: &[NodeId]) {
        for &id in ids {
            let Some(node) = self.nodes[id.0 as usize].take() else { continue };
            for output in node.outputs.iter().flatten() {
                let producer = &mut self.values[output.0 as usize].producer;
                if *producer == Some(id) {
                    *producer = None;
                }
            }
        }
        if !ids.is_empty() {
            self.order.retain(|id| self.nodes[id.0 as usize].is_some());
        }
    }

    /// Replaces the order of the nodes (a permutation of all of them).
    pub(crate) fn set_order(&mut self, order: Vec<NodeId>) {
        self.order = order;
    }

    /// Nodes that read each value, subgraph captures included.
    pub fn consumers(&self) -> HashMap<ValueId, Vec<NodeId>> {
        let mut map: HashMap<ValueId, Vec<NodeId>> = HashMap::new();
        for (id, node) in self.nodes() {
            for value in node.reads() {
                let list = map.entry(value).or_default();
                if list.last() != Some(&id) {
                    list.push(id);
                }
            }
        }
        map
    }

    /// Makes every reader of `from` (nodes, subgraphs and graph outputs) read `to`.
    /// Graph outputs keep their names when both values can be renamed.
    pub fn replace_uses(&mut self, from: ValueId, to: ValueId) {
        for node in self.nodes.iter_mut().flatten() {
            node.replace_input(from, to);
        }
        if self.outputs.contains(&from) {
            for output in &mut self.outputs {
                if *output == from {
                    *output = to;
                }
            }
            let is_fixed = self.inputs.contains(&to) || self.outputs.iter().filter(|&&o| o == to).count() > 1;
            if !is_fixed {
                let name = self.name_of(from).to_owned();
                let spare = self.free_name(&format!("{name}.replaced"));
                let renamed = self.rename(from, &spare).and_then(|()| self.rename(to, &name));
                debug_assert!(renamed.is_ok(), "the spare name is free");
            }
        }
    }

    /// Removes nodes, constants and captures that no output depends on. Returns how many nodes went.
    pub fn remove_dead(&mut self) -> usize {
        let mut live: ValueSet = self.outputs.iter().copied().collect();
        let mut dead = vec![];
        for &id in self.order.iter().rev() {
            let node = self.node(id);
            if node.outputs.iter().flatten().any(|&o| live.contains(o)) {
                live.extend(node.operands());
            } else {
                dead.push(id);
            }
        }
        self.remove_nodes(&dead);
        self.captures.retain(|capture| live.contains(capture.inner));
        live.extend(self.inputs.iter().copied());
        self.initializers.retain(|&id, _| live.contains(id));
        dead.len()
    }
}
