//! Which positions of which axes must be removed together: a union-find over (value, axis, index).

use limbeck_graph::{Dim, Graph, NodeId, ValueId};
use std::collections::{BTreeMap, HashMap};

/// An axis of a value.
pub(crate) type Axis = (ValueId, usize);

/// Positions of all axes, tied or frozen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Links {
    /// Where the positions of an axis begin, and how many they are.
    ranges: BTreeMap<Axis, (u32, usize)>,
    parent: Vec<u32>,
    /// Why the class of a root may not be removed.
    frozen: HashMap<u32, String>,
    /// Operands that a node sums over: (node, operand, axis).
    pub(crate) reduced: Vec<(NodeId, usize, usize)>,
    /// What could not be followed: node, operator and reason.
    pub(crate) unknown: Vec<String>,
}

impl Links {
    /// The positions of an axis; none when its extent is unknown or it does not exist.
    fn range(&mut self, graph: &Graph, (value, axis): Axis) -> Option<(u32, usize)> {
        let extent = match graph.ty(value)?.dims.as_ref()?.get(axis)? {
            Dim::Known(n) => *n,
            _ => return None,
        };
        if let Some(&range) = self.ranges.get(&(value, axis)) {
            return Some(range);
        }
        let start = u32::try_from(self.parent.len()).ok()?;
        self.parent.extend(start..start.checked_add(u32::try_from(extent).ok()?)?);
        self.ranges.insert((value, axis), (start, extent));
        Some((start, extent))
    }

    /// The class of a position.
    pub(crate) fn root(&self, mut at: u32) -> u32 {
        while self.parent[at as usize] != at {
            at = self.parent[at as usize];
        }
        at
    }

    fn union(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        if a == b {
            return;
        }
        // The lower root stays, so that classes do not depend on the order of ties.
        let (low, high) = (a.min(b), a.max(b));
        self.parent[high as usize] = low;
        if let Some(reason) = self.frozen.remove(&high) {
            self.frozen.entry(low).or_insert(reason);
        }
    }

    /// Ties position `i` of `a` to position `to(i)` of `b` for every `i`; axes whose extents do not allow it freeze.
    pub(crate) fn tie_by(&mut self, graph: &Graph, a: Axis, b: Axis, to: impl Fn(usize) -> usize) {
        match (self.range(graph, a), self.range(graph, b)) {
            (Some((start_a, n)), Some((start_b, m))) if (0..n).all(|i| to(i) < m) => {
                (0..n).for_each(|i| self.union(start_a + i as u32, start_b + to(i) as u32));
            }
            _ => {
                let reason =
                    format!("'{}' and '{}' have unlike or unknown extents", graph.name_of(a.0), graph.name_of(b.0));
                self.freeze(graph, a, &reason);
                self.freeze(graph, b, &reason);
            }
        }
    }

    /// Ties two axes of one extent, position by position.
    pub(crate) fn tie(&mut self, graph: &Graph, a: Axis, b: Axis) {
        let (na, nb) = (self.range(graph, a), self.range(graph, b));
        match (na, nb) {
            // Both unknown, such as a named batch: no positions to tie.
            (None, None) => {}
            (Some((_, n)), Some((_, m))) if n == m => self.tie_by(graph, a, b, |i| i),
            _ => self.tie_by(graph, a, b, |_| usize::MAX),
        }
    }

    /// Forbids removing anything from an axis. An empty reason is for axes that never are channels, such as those of an
    /// image: nobody needs to be told.
    pub(crate) fn freeze(&mut self, graph: &Graph, axis: Axis, reason: &str) {
        let Some((start, n)) = self.range(graph, axis) else { return };
        for i in 0..n {
            let root = self.root(start + i as u32);
            self.frozen.entry(root).or_insert_with(|| reason.to_owned());
        }
    }

    /// Freezes all axes of a value.
    pub(crate) fn freeze_all(&mut self, graph: &Graph, value: ValueId, reason: &str) {
        let rank = graph.ty(value).and_then(|t| t.rank()).unwrap_or(0);
        (0..rank).for_each(|axis| self.freeze(graph, (value, axis), reason));
    }

    /// True when nothing can be removed from an axis: all is frozen, or there is nothing to choose.
    pub(crate) fn is_fixed(&mut self, graph: &Graph, axis: Axis) -> bool {
        let Some((start, n)) = self.range(graph, axis) else { return true };
        n <= 1 || (0..n).all(|i| self.frozen.contains_key(&self.root(start + i as u32)))
    }

    /// Why a class may not be removed.
    pub(crate) fn frozen(&self, root: u32) -> Option<&str> {
        self.frozen.get(&root).map(String::as_str)
    }

    /// Every axis with the classes of its positions.
    pub(crate) fn axes(&self) -> impl Iterator<Item = (Axis, Vec<u32>)> {
        self.ranges.iter().map(|(axis, &(start, n))| (*axis, (0..n as u32).map(|i| self.root(start + i)).collect()))
    }

    /// The positions of an axis that survive; `None` when all do.
    pub(crate) fn kept(&self, axis: Axis, removed: &std::collections::HashSet<u32>) -> Option<Vec<usize>> {
        let &(start, n) = self.ranges.get(&axis)?;
        let kept: Vec<usize> = (0..n).filter(|&i| !removed.contains(&self.root(start + i as u32))).collect();
        (kept.len() < n).then_some(kept)
    }
}
