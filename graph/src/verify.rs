//! The rules that every graph keeps, checked after every pass.

use crate::{Graph, GraphError, NodeId, ValueId};
use std::collections::HashSet;

impl Graph {
    /// Checks single assignment, execution order, live producers and existing outputs, subgraphs included. The error
    /// names the rule and what breaks it. That names are unique is kept by [`Graph::add_value`] and [`Graph::rename`].
    pub fn verify(&self) -> Result<(), GraphError> {
        let invalid = |reason: String| GraphError::Invalid { graph: self.name.clone(), reason };
        let foreign = |id: ValueId| id.0 as usize >= self.values.len();
        let listed = self.inputs.iter().chain(&self.outputs).copied().chain(self.captures.iter().map(|c| c.inner));
        if listed.into_iter().any(foreign) {
            return Err(invalid("an input, output or capture is a value of another graph".into()));
        }
        let mut ready = vec![false; self.values.len()];
        for input in &self.inputs {
            if std::mem::replace(&mut ready[input.0 as usize], true) {
                return Err(invalid("an input is listed twice".into()));
            }
        }
        for id in self.initializers.keys().copied().chain(self.captures.iter().map(|c| c.inner)) {
            ready[id.0 as usize] = true;
        }
        for (id, node) in self.nodes() {
            if node.operands().chain(node.outputs.iter().flatten().copied()).any(foreign) {
                return Err(invalid(format!(
                    "node '{}' ({}) uses a value of another graph",
                    node.name,
                    node.full_op()
                )));
            }
            if let Some(read) = node.operands().find(|read| !ready[read.0 as usize]) {
                return Err(invalid(format!(
                    "node '{}' ({}) reads '{}', which nothing before it provides",
                    self.label(id),
                    node.full_op(),
                    self.name_of(read)
                )));
            }
            for &output in node.outputs.iter().flatten() {
                if std::mem::replace(&mut ready[output.0 as usize], true) {
                    return Err(invalid(format!("value '{}' is assigned twice", self.name_of(output))));
                }
                if self.producer(output) != Some(id) {
                    let reason = "was given to its node in place; remove the node and add it with its new outputs";
                    return Err(invalid(format!("value '{}' {reason}", self.name_of(output))));
                }
            }
            for sub in node.subgraphs() {
                sub.verify()?;
            }
        }
        for &output in &self.outputs {
            if !ready[output.0 as usize] {
                return Err(invalid(format!("output '{}' is never computed", self.name_of(output))));
            }
        }
        Ok(())
    }

    /// Puts the nodes into an order in which every operand comes before its readers. A cycle is an error.
    pub fn sort(&mut self) -> Result<(), GraphError> {
        let mut ready: HashSet<ValueId> = self.inputs.iter().copied().collect();
        ready.extend(self.initializers.keys().copied());
        ready.extend(self.captures.iter().map(|c| c.inner));
        let consumers = self.consumers();
        let mut missing = std::collections::HashMap::new();
        let mut queue = std::collections::VecDeque::new();
        for (id, node) in self.nodes() {
            let open: HashSet<ValueId> = node.reads().into_iter().filter(|v| !ready.contains(v)).collect();
            if open.is_empty() {
                queue.push_back(id);
            }
            missing.insert(id, open);
        }
        let mut order = Vec::with_capacity(self.node_count());
        while let Some(id) = queue.pop_front() {
            order.push(id);
            for output in self.node(id).outputs.iter().flatten() {
                for &reader in consumers.get(output).into_iter().flatten() {
                    let Some(open) = missing.get_mut(&reader) else { continue };
                    if open.remove(output) && open.is_empty() {
                        queue.push_back(reader);
                    }
                }
            }
        }
        if order.len() != self.node_count() {
            let sorted: HashSet<NodeId> = order.into_iter().collect();
            let stuck = self.nodes().find(|(id, _)| !sorted.contains(id)).map(|(id, _)| self.label(id));
            let reason = format!("node '{}' is part of a cycle or reads a missing value", stuck.unwrap_or_default());
            return Err(GraphError::Invalid { graph: self.name.clone(), reason });
        }
        self.set_order(order);
        Ok(())
    }
}
