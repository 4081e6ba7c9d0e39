//! Grouping: which nodes become one map.

use super::element::{Element, element, is_row, kept};
use crate::lower::frozen::Frozen;
use crate::lower::pauses::Pauses;
use crate::{Graph, NodeId, ValueId};
use std::collections::{HashMap, HashSet};

/// Most nodes of a group: the blocks that a kernel has in use shall stay in its cache.
const MOST_NODES: usize = 64;

/// A group of one node becomes a map of its own from so many values on, where the kernel's threads pay, any `Where` (with a
/// condition for all values, as the guards of updates have, engines broadcast it first), and any reduction, since equal ones
/// may become one map.
const LONE: usize = 4096;

/// Nodes that become a map, in order.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) nodes: Vec<(NodeId, Element)>,
    /// The extents that it walks through.
    pub(super) shape: Vec<usize>,
    /// What its reductions are over.
    pub(super) axes: Option<Vec<usize>>,
}

/// All groups that are worth a map, of nodes that are not `apart`.
pub(super) fn groups(graph: &Graph, apart: Option<&Frozen>) -> Vec<Group> {
    let mut work = Work::new(graph, apart);
    for node in 0..work.nodes.len() {
        work.join(node);
    }
    work.finish()
}

/// Members (positions in the order) of a group under construction.
#[derive(Debug, Clone, Default)]
struct Members {
    nodes: Vec<usize>,
    shape: Vec<usize>,
    axes: Option<Vec<usize>>,
}

struct Work {
    nodes: Vec<NodeId>,
    elements: Vec<Option<Element>>,
    /// Which nodes are a `Where`.
    chooses: Vec<bool>,
    pauses: Pauses,
    /// Positions of the nodes that a node's operands come from.
    sources: Vec<Vec<usize>>,
    /// Positions of the nodes that read a value, in order.
    readers: HashMap<ValueId, Vec<usize>>,
    /// Which group a node is in; every node is in one.
    group_of: Vec<usize>,
    groups: Vec<Members>,
    producer: HashMap<ValueId, usize>,
}

impl Work {
    fn new(graph: &Graph, apart: Option<&Frozen>) -> Work {
        let nodes = graph.node_ids();
        let producer: HashMap<ValueId, usize> = (nodes.iter().enumerate())
            .flat_map(|(at, &id)| graph.node(id).outputs.iter().flatten().map(move |&v| (v, at)))
            .collect();
        let sources = nodes.iter().map(|&id| {
            let mut from: Vec<usize> = graph.node(id).reads().iter().filter_map(|v| producer.get(v).copied()).collect();
            from.sort_unstable();
            from.dedup();
            from
        });
        let sources = sources.collect();
        let mut readers: HashMap<ValueId, Vec<usize>> = HashMap::new();
        for (at, &id) in nodes.iter().enumerate() {
            graph.node(id).operands().for_each(|v| readers.entry(v).or_default().push(at));
        }
        let near = |id: NodeId| Some(graph.node(id)).filter(|node| apart.is_none_or(|apart| !apart.holds(node)));
        let elements: Vec<Option<Element>> = nodes.iter().map(|&id| element(graph, near(id)?)).collect();
        let alone = |(at, element): (usize, &Option<Element>)| match element {
            Some(e) => Members { nodes: vec![at], shape: e.shape.clone(), axes: e.axes.clone() },
            None => Members { nodes: vec![at], ..Members::default() },
        };
        let groups = elements.iter().enumerate().map(alone).collect();
        let group_of = (0..nodes.len()).collect();
        let chooses = nodes.iter().map(|&id| graph.node(id).is("", "Where")).collect();
        Work { nodes, elements, chooses, pauses: Pauses::new(graph), sources, readers, group_of, groups, producer }
    }

    /// Lets a node join the groups of its operands, the latest first. A reduction also joins other reductions of
    /// the same value: memory is read once for all of them.
    fn join(&mut self, node: usize) {
        let Some(element) = &self.elements[node] else { return };
        let mut near = self.sources[node].clone();
        if element.axes.is_some() {
            let siblings = self.readers.get(&element.operands[0]).into_iter().flatten();
            let reduces = |at: &usize| self.elements[*at].as_ref().is_some_and(|e| e.axes.is_some());
            near.extend(siblings.filter(|&&at| at < node && reduces(&at)));
            near.sort_unstable();
        }
        for source in near.into_iter().rev() {
            let (own, other) = (self.group_of[node], self.group_of[source]);
            if self.elements[source].is_none() || own == other || self.pauses.is_long(source, node) {
                continue;
            }
            let Some(joint) = self.joint(own, other) else { continue };
            if !self.leads_out_and_back(own, other, &joint) {
                joint.nodes.iter().for_each(|&n| self.group_of[n] = other);
                self.groups[other] = joint;
                self.groups[own] = Members::default();
            }
        }
    }

    /// Two groups as one, if a kernel can have them so.
    fn joint(&self, a: usize, b: usize) -> Option<Members> {
        let (a, b) = (&self.groups[a], &self.groups[b]);
        let axes = match (&a.axes, &b.axes) {
            (Some(x), Some(y)) if x != y => return None,
            (x, y) => x.as_ref().or(y.as_ref()).cloned(),
        };
        let narrow = |wide: &Members, other: &Members| {
            let by_row = wide.axes.as_ref().filter(|axes| is_row(&wide.shape, axes));
            other.axes.is_none() && by_row.is_some_and(|axes| other.shape == kept(&wide.shape, axes))
        };
        let shape = match () {
            _ if a.shape == b.shape || narrow(a, b) => a.shape.clone(),
            _ if narrow(b, a) => b.shape.clone(),
            _ => return None,
        };
        let mut nodes = [&a.nodes[..], &b.nodes[..]].concat();
        nodes.sort_unstable();
        let joint = Members { nodes, shape, axes };
        (joint.nodes.len() <= MOST_NODES && self.is_sound(&joint)).then_some(joint)
    }

    /// Whether what is reduced within the group, and what follows from it, is used there only row by row.
    fn is_sound(&self, group: &Members) -> bool {
        let axes = group.axes.as_deref().unwrap_or_default();
        if is_row(&group.shape, axes) {
            // A reduction without kept extents has another shape than the rows.
            let rows = kept(&group.shape, axes);
            let fits = |v: &ValueId| self.shape_of(v, group).is_none_or(|s| s == group.shape || s == rows);
            return self.members(group).all(|e| e.operands.iter().all(fits));
        }
        let reduced: HashSet<ValueId> = self.members(group).filter(|e| e.axes.is_some()).map(|e| e.result).collect();
        self.members(group).all(|e| e.operands.iter().all(|v| !reduced.contains(v)))
    }

    fn members<'a>(&'a self, group: &'a Members) -> impl Iterator<Item = &'a Element> {
        group.nodes.iter().filter_map(|&n| self.elements[n].as_ref())
    }

    /// The shape of a value that the group makes.
    fn shape_of(&self, value: &ValueId, group: &Members) -> Option<Vec<usize>> {
        let at = *self.producer.get(value)?;
        let element = self.elements[at].as_ref().filter(|_| group.nodes.binary_search(&at).is_ok())?;
        Some(match &element.axes {
            None => element.shape.clone(),
            Some(axes) if element.keeps => kept(&element.shape, axes),
            Some(axes) => (0..element.shape.len()).filter(|a| !axes.contains(a)).map(|a| element.shape[a]).collect(),
        })
    }

    /// Whether a path leads from the joint group through another node back into it.
    fn leads_out_and_back(&self, a: usize, b: usize, joint: &Members) -> bool {
        let first = joint.nodes.first().copied().unwrap_or_default();
        let (mut seen, mut open) = (HashSet::new(), vec![]);
        let enter = |nodes: &[usize], seen: &mut HashSet<usize>, open: &mut Vec<usize>| {
            for &source in nodes.iter().flat_map(|&n| &self.sources[n]) {
                let group = self.group_of[source];
                // What lies before all of the group cannot follow from it.
                if self.groups[group].nodes.last().is_some_and(|&last| last > first) && seen.insert(group) {
                    open.push(group);
                }
            }
        };
        // Steps within the joint group are no way out.
        seen.extend([a, b]);
        enter(&joint.nodes, &mut seen, &mut open);
        while let Some(group) = open.pop() {
            let nodes = &self.groups[group].nodes;
            let back = |&source: &usize| [a, b].contains(&self.group_of[source]);
            if nodes.iter().any(|&n| self.sources[n].iter().any(back)) {
                return true;
            }
            enter(nodes, &mut seen, &mut open);
        }
        false
    }

    fn finish(mut self) -> Vec<Group> {
        let mut done = vec![];
        for members in std::mem::take(&mut self.groups) {
            let values: usize = members.shape.iter().product();
            let chooses = members.nodes.iter().any(|&n| self.chooses[n]);
            let worth = members.nodes.len() > 1 || values >= LONE || chooses || members.axes.is_some();
            let nodes: Vec<(NodeId, Element)> =
                (members.nodes.iter()).filter_map(|&n| Some((self.nodes[n], self.elements[n].take()?))).collect();
            if worth && !nodes.is_empty() {
                done.push(Group { nodes, shape: members.shape, axes: members.axes });
            }
        }
        done
    }
}
