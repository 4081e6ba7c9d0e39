//! What runs as in inference: nets with constant weights ahead of everything that a step updates, such as a teacher or the
//! first layers of a student that trains its last. An engine may do better with standard operators there, since it can
//! lay constant weights out anew and fold a normalisation into them.

use super::pauses::is_heavy;
use crate::{Graph, Node, ValueSet};
use std::collections::HashSet;

/// Values of a graph by what they depend on.
pub(super) struct Frozen {
    /// Those that an updated input leads to.
    moving: ValueSet,
    /// Those that a layer with constant weights leads to, and no updated input.
    frozen: ValueSet,
}

impl Frozen {
    /// What the inputs `updated` leave alone.
    pub(super) fn of(graph: &Graph, updated: &HashSet<&str>) -> Frozen {
        let inputs = graph.inputs.iter().copied();
        let moving = inputs.filter(|&v| updated.contains(graph.name_of(v))).collect();
        let mut found = Frozen { moving, frozen: ValueSet::default() };
        for (_, node) in graph.nodes() {
            let outputs = || node.outputs.iter().flatten().copied();
            if node.reads().into_iter().any(|v| found.moving.contains(v)) {
                found.moving.extend(outputs());
            } else if found.follows(graph, node) {
                found.frozen.extend(outputs());
            }
        }
        found
    }

    /// Whether a node belongs to it.
    pub(super) fn holds(&self, node: &Node) -> bool {
        node.outputs.iter().flatten().any(|&v| self.frozen.contains(v))
    }

    /// Whether a node is a layer with constant weights, or follows from one.
    fn follows(&self, graph: &Graph, node: &Node) -> bool {
        let constant = |v| graph.constant(v).is_some() && !graph.inputs.contains(&v);
        let reads_frozen = node.reads().into_iter().any(|v| self.frozen.contains(v));
        let settled = |v| constant(v) || self.frozen.contains(v);
        match is_heavy(node) {
            true => node.inputs.iter().skip(1).flatten().all(|&v| settled(v)) && node.inputs.len() > 1,
            false => reads_frozen,
        }
    }
}
