//! Common subexpressions: nodes that compute the same become one.

use crate::{Attr, Graph, Node, NodeId, ValueId};
use std::collections::{HashMap, HashSet};

impl Graph {
    /// Makes one node of those with the same operator, attributes and operands, so that each value is computed once.
    /// Random operators, and those with subgraphs or results that are graph outputs, stay. Returns how many went.
    pub(super) fn merge_equal_nodes(&mut self) -> usize {
        let outputs: HashSet<ValueId> = self.outputs.iter().copied().collect();
        let literals = self.equal_literals();
        let mut first: HashMap<Key, NodeId> = HashMap::new();
        let mut same: HashMap<ValueId, ValueId> = literals;
        let mut gone = vec![];
        for id in self.node_ids() {
            let now = |v: &Option<ValueId>| v.map(|v| same.get(&v).copied().unwrap_or(v));
            let node = self.node(id);
            let inputs: Vec<Option<ValueId>> = node.inputs.iter().map(now).collect();
            if inputs != node.inputs {
                self.node_mut(id).inputs = inputs;
            }
            let captured: Vec<ValueId> = self.node(id).subgraphs().flat_map(|g| &g.captures).map(|c| c.outer).collect();
            for value in captured {
                if let Some(&now) = same.get(&value) {
                    self.node_mut(id).replace_input(value, now);
                }
            }
            let node = self.node(id);
            if node.subgraphs().next().is_some() || crate::fold::RANDOM.contains(&&*node.op) {
                continue;
            }
            match first.get(&Key::of(node)) {
                Some(&kept) if !node.outputs.iter().flatten().any(|v| outputs.contains(v)) => {
                    let pairs: Vec<_> =
                        node.outputs.iter().zip(&self.node(kept).outputs).map(|(a, b)| (*a, *b)).collect();
                    if pairs.iter().all(|(a, b)| a.is_none() || b.is_some()) {
                        same.extend(pairs.into_iter().filter_map(|(a, b)| Some((a?, b?))));
                        gone.push(id);
                    }
                }
                Some(_) => {}
                None => drop(first.insert(Key::of(node), id)),
            }
        }
        self.remove_nodes(&gone);
        gone.len()
    }

    /// Literals of the same value, each with the one that stands for it.
    fn equal_literals(&self) -> HashMap<ValueId, ValueId> {
        let fed: HashSet<ValueId> = self.inputs.iter().chain(&self.outputs).copied().collect();
        let mut first: HashMap<(limbeck_tensor::DType, Vec<usize>, Vec<u8>), ValueId> = HashMap::new();
        let mut same = HashMap::new();
        for (id, tensor) in self.initializers() {
            // Small ones: axes, shapes, scalars.
            if !self.is_literal(id) || tensor.len() > 64 || fed.contains(&id) {
                continue;
            }
            let key = (tensor.dtype(), tensor.shape().to_vec(), tensor.bytes().to_vec());
            match first.get(&key) {
                Some(&kept) => drop(same.insert(id, kept)),
                None => drop(first.insert(key, id)),
            }
        }
        same
    }
}

/// What makes two nodes equal. Attributes are compared in their printed form, in order of their names.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    op: String,
    inputs: Vec<Option<ValueId>>,
    attrs: Vec<(String, String)>,
}

impl Key {
    fn of(node: &Node) -> Key {
        let printed = |attr: &Attr| match attr {
            Attr::Tensor(t) => format!("{:?}{:?}{:?}", t.dtype(), t.shape(), t.bytes()),
            other => format!("{other:?}"),
        };
        let mut attrs: Vec<(String, String)> = node.attrs.iter().map(|(name, v)| (name.clone(), printed(v))).collect();
        attrs.sort();
        Key { op: node.full_op(), inputs: node.inputs.clone(), attrs }
    }
}
