//! The order of nodes.

use crate::{Graph, NodeId};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

impl Graph {
    /// Orders the nodes so that each follows what it reads, and otherwise by `places`, which has one for each node.
    pub(super) fn sort_nodes(&mut self, places: &HashMap<NodeId, usize>) {
        let nodes = self.node_ids();
        let place = |id: NodeId| (places.get(&id).copied().unwrap_or_default(), id);
        let mut readers: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
        let mut missing: HashMap<NodeId, usize> = HashMap::new();
        for &id in &nodes {
            let mut sources: Vec<NodeId> = self.node(id).operands().filter_map(|v| self.producer(v)).collect();
            sources.sort_unstable();
            sources.dedup();
            missing.insert(id, sources.len());
            sources.into_iter().for_each(|source| readers.entry(source).or_default().push(id));
        }
        let mut ready: BinaryHeap<_> =
            nodes.iter().filter(|id| missing[*id] == 0).map(|&id| Reverse(place(id))).collect();
        let mut order = Vec::with_capacity(nodes.len());
        while let Some(Reverse((_, id))) = ready.pop() {
            order.push(id);
            for &reader in readers.get(&id).into_iter().flatten() {
                if let Some(left) = missing.get_mut(&reader) {
                    *left -= 1;
                    if *left == 0 {
                        ready.push(Reverse(place(reader)));
                    }
                }
            }
        }
        // A cycle would leave nodes behind; the verifier names them where they stand.
        let placed: std::collections::HashSet<NodeId> = order.iter().copied().collect();
        order.extend(nodes.into_iter().filter(|id| !placed.contains(id)));
        self.set_order(order);
    }
}
