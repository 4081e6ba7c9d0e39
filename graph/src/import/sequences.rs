//! Sequences and optionals that are known when the graph is read, taken apart into tensors. Exporters write them for
//! `torch.split`, `chunk` and `unbind`; engines other than ONNX Runtime have none.

use crate::ops::normalize_axis;
use crate::{Attr, Dim, Graph, Node, NodeId, TensorType, ValueId};
use limbeck_tensor::Tensor;
use std::collections::{HashMap, HashSet};

/// Longest sequence that is taken apart.
const MAX_LENGTH: usize = 4096;

/// The tensors that a sequence holds.
type Sequences = HashMap<ValueId, Vec<ValueId>>;

/// What becomes of a node.
enum Unpacked {
    /// It only makes a sequence, which is known now: it stays, for readers that are not settled.
    Known(Vec<ValueId>),
    /// The same, after these nodes.
    Made(Vec<ValueId>, Vec<Node>),
    /// Nodes on tensors take its place.
    Replaced(Vec<Node>),
}

impl Graph {
    /// Replaces what reads sequences of settled elements, at settled positions, by nodes on tensors; what makes a sequence
    /// goes once nothing reads it. Returns how many nodes were replaced.
    pub(crate) fn resolve_sequences(&mut self) -> usize {
        let (mut known, mut replaced) = (Sequences::new(), 0);
        for id in self.node_ids() {
            let result = self.node(id).output(0);
            match (self.unpacked(id, &known), result) {
                (Some(Unpacked::Known(parts)), Some(result)) => _ = known.insert(result, parts),
                (Some(Unpacked::Made(parts, nodes)), Some(result)) => {
                    for node in nodes {
                        self.insert_node_before(id, node);
                    }
                    known.insert(result, parts);
                }
                (Some(Unpacked::Replaced(nodes)), _) => {
                    self.replace_node(id, nodes);
                    replaced += 1;
                }
                _ => {}
            }
        }
        if !known.is_empty() {
            self.remove_unread(&known);
        }
        replaced
    }

    /// Removes the makers of sequences that nothing reads any more.
    fn remove_unread(&mut self, known: &Sequences) {
        let mut read: HashSet<ValueId> = self.outputs.iter().copied().collect();
        let mut unread = vec![];
        for id in self.node_ids().into_iter().rev() {
            let node = self.node(id);
            match node.output(0) {
                Some(made) if known.contains_key(&made) && !read.contains(&made) => unread.push(id),
                _ => read.extend(node.reads()),
            }
        }
        self.remove_nodes(&unread);
    }

    /// How many nodes make or read sequences and optionals.
    pub(super) fn count_sequences(&self) -> usize {
        let counted = |op: &str| op.contains("Sequence") && op != "ReverseSequence" || op.starts_with("Optional");
        self.nodes().filter(|(_, n)| n.domain_or_default().is_empty() && counted(&n.op)).count()
    }

    fn unpacked(&mut self, id: NodeId, known: &Sequences) -> Option<Unpacked> {
        let node = self.node(id).clone();
        let result = node.output(0).filter(|_| node.domain_or_default().is_empty())?;
        let first = node.input(0);
        let sequence = first.and_then(|v| known.get(&v)).cloned();
        let replaced = |node: Node| Some(Unpacked::Replaced(vec![node]));
        match (node.op.as_str(), sequence) {
            ("SequenceEmpty", _) => Some(Unpacked::Known(vec![])),
            ("SequenceConstruct", _) => Some(Unpacked::Known(node.inputs.iter().flatten().copied().collect())),
            ("SplitToSequence", _) => self.split(&node, result),
            ("SequenceInsert", Some(mut all)) if all.len() < MAX_LENGTH => {
                let at = self.position(node.input(2), all.len() + 1, all.len())?;
                all.insert(at, node.input(1)?);
                Some(Unpacked::Known(all))
            }
            ("SequenceErase", Some(mut all)) => {
                let last = all.len().checked_sub(1)?;
                all.remove(self.position(node.input(1), all.len(), last)?);
                Some(Unpacked::Known(all))
            }
            ("Identity", Some(all)) => Some(Unpacked::Known(all)),
            ("SequenceAt", Some(all)) => {
                let at = self.position(Some(node.input(1)?), all.len(), 0)?;
                replaced(Node::new("Identity", &[all[at]], &[result]))
            }
            ("SequenceLength", Some(all)) => {
                let count = Attr::Tensor(Tensor::scalar(all.len() as i64));
                replaced(Node::new("Constant", &[], &[result]).with("value", count))
            }
            ("ConcatFromSequence", Some(all)) if !all.is_empty() => self.concat(&node, &all, result),
            // An optional around a tensor that is there is the tensor.
            ("Optional" | "OptionalGetElement", None) => {
                let tensor = first.filter(|&v| self.ty(v).is_some())?;
                replaced(Node::new("Identity", &[tensor], &[result]))
            }
            ("OptionalHasElement", None) if first.is_none_or(|v| self.ty(v).is_some()) => {
                let there = Attr::Tensor(Tensor::bools([], &[first.is_some()]).ok()?);
                replaced(Node::new("Constant", &[], &[result]).with("value", there))
            }
            _ => None,
        }
    }

    /// A constant position below `len`, counted from the front; `default` when the operand is absent.
    fn position(&self, operand: Option<ValueId>, len: usize, default: usize) -> Option<usize> {
        let Some(operand) = operand else { return Some(default) };
        let at = *self.settled(operand)?.to_i64_vec().ok()?.first()?;
        let at = if at < 0 { at + len as i64 } else { at };
        usize::try_from(at).ok().filter(|&at| at < len)
    }

    /// SplitToSequence of known extents: a Split, and where the axis goes a Squeeze for each part.
    fn split(&mut self, node: &Node, result: ValueId) -> Option<Unpacked> {
        let x = node.input(0)?;
        let TensorType { dtype, dims } = self.ty(x)?.clone();
        let mut dims = dims?;
        let axis = normalize_axis(node.int("axis").unwrap_or(0), dims.len()).ok()?;
        let extent = dims[axis].known().filter(|&n| n <= MAX_LENGTH)?;
        let keeps = node.input(1).is_some() || node.int("keepdims").unwrap_or(1) != 0;
        let sizes = match node.input(1) {
            None => vec![1; extent],
            Some(split) => {
                let split = self.settled(split)?;
                let sizes: Vec<usize> =
                    split.to_i64_vec().ok()?.into_iter().map(usize::try_from).collect::<Result<_, _>>().ok()?;
                match split.shape().is_empty() {
                    true => (0..extent).step_by((*sizes.first()?).max(1)).map(|at| sizes[0].min(extent - at)).collect(),
                    false => sizes,
                }
            }
        };
        if sizes.len() > MAX_LENGTH || sizes.iter().try_fold(0usize, |n, &s| n.checked_add(s)) != Some(extent) {
            return None;
        }
        let name = self.name_of(result).to_owned();
        let lengths: Vec<i64> = sizes.iter().map(|&s| s as i64).collect();
        let lengths = self.add_literal(format!("{name}.sizes"), Tensor::new([sizes.len()], lengths).ok()?);
        let mut parts = vec![];
        for (i, size) in sizes.iter().enumerate() {
            dims[axis] = Dim::Known(*size);
            parts.push(self.add_value(format!("{name}.{i}"), Some(TensorType::with_dims(dtype, dims.clone()))));
        }
        let mut nodes = vec![Node::new("Split", &[x, lengths], &parts).with("axis", axis)];
        if !keeps {
            let axes = self.add_literal(format!("{name}.axis"), Tensor::new([1], vec![axis as i64]).ok()?);
            dims.remove(axis);
            for part in &mut parts {
                let flat =
                    self.add_value(self.name_of(*part).to_owned(), Some(TensorType::with_dims(dtype, dims.clone())));
                nodes.push(Node::new("Squeeze", &[*part, axes], &[flat]));
                *part = flat;
            }
        }
        Some(Unpacked::Made(parts, nodes))
    }

    /// ConcatFromSequence of known elements, along a new axis or one that they have.
    fn concat(&mut self, node: &Node, parts: &[ValueId], result: ValueId) -> Option<Unpacked> {
        let axis = node.int("axis")?;
        let mut parts = parts.to_vec();
        let mut nodes = vec![];
        if node.int("new_axis").unwrap_or(0) != 0 {
            let axes = self.add_literal(format!("{}.axis", self.name_of(result)), Tensor::new([1], vec![axis]).ok()?);
            for part in &mut parts {
                let wide = self.add_value(format!("{}.wide", self.name_of(*part)), None);
                nodes.push(Node::new("Unsqueeze", &[*part, axes], &[wide]));
                *part = wide;
            }
        }
        nodes.push(Node::new("Concat", &parts, &[result]).with("axis", axis));
        Some(Unpacked::Replaced(nodes))
    }
}
