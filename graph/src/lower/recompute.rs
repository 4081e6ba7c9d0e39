//! Computing cheap values again instead of keeping them: what the backward pass needs of an activation (the output of a
//! ReLU, its mask, a normalised value) often follows value by value from another activation that is kept anyway.
//! Then only that one is kept, and the others are made again when they are needed.
//! Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, for operators that cost no more than memory traffic.

use super::pauses::Pauses;
use crate::ops::map::is_element_wise;
use crate::{Graph, Node, NodeId, ValueId};
use std::collections::{HashMap, HashSet};

/// Values of fewer bytes are kept.
const LEAST_BYTES: usize = 1 << 14;

/// Most operators that are computed again for one value.
const MOST_NODES: usize = 24;

/// Operators whose work exceeds the memory traffic that they take.
const DEAR: &[&str] = &["Erf", "Exp", "Log", "Sigmoid", "Tanh"];

/// How many times smaller than a value an operand is that is kept for it beside.
const SMALL: usize = 8;

/// A value that is not kept: made again ahead of the first of its late readers.
struct Again {
    value: ValueId,
    /// The nodes that make it from what is kept, in order.
    chain: Vec<NodeId>,
    /// Those of its readers that come after the long pause.
    readers: Vec<NodeId>,
    /// Position of the first of them.
    first: usize,
}

impl Graph {
    /// Makes values again that would be kept long.
    pub(super) fn recompute(&mut self) {
        let mut found = Search::new(self).run();
        // Earlier readers first: what a later value shares with another has been made by then.
        found.sort_by_key(|again| again.first);
        let mut made: HashMap<ValueId, ValueId> = HashMap::new();
        let mut ahead: HashMap<usize, Vec<NodeId>> = HashMap::new();
        let order = self.node_ids();
        for again in &found {
            for &id in &again.chain {
                let node = self.node(id).clone();
                let [Some(result)] = node.outputs[..] else { continue };
                if made.contains_key(&result) {
                    continue;
                }
                let name = format!("{}.again", self.name_of(result));
                let copy = self.add_value(name, self.ty(result).cloned());
                let inputs: Vec<Option<ValueId>> =
                    node.inputs.iter().map(|v| v.map(|v| made.get(&v).copied().unwrap_or(v))).collect();
                let id =
                    self.add_node(Node { name: String::new(), inputs, outputs: vec![Some(copy)], read: None, ..node });
                made.insert(result, copy);
                ahead.entry(again.first).or_default().push(id);
            }
            for &reader in &again.readers {
                self.node_mut(reader).replace_input(again.value, made[&again.value]);
            }
        }
        let order = order.into_iter().enumerate();
        self.set_order(
            order.flat_map(|(at, id)| ahead.remove(&at).unwrap_or_default().into_iter().chain([id])).collect(),
        );
    }

    fn byte_len(&self, value: ValueId) -> usize {
        self.ty(value).and_then(|ty| ty.dtype.byte_len(ty.concrete()?.iter().product())).unwrap_or(0)
    }
}

struct Search<'g> {
    graph: &'g Graph,
    order: Vec<NodeId>,
    at: HashMap<NodeId, usize>,
    /// Positions of each value's readers, in order.
    readers: HashMap<ValueId, Vec<usize>>,
    pauses: Pauses,
    outputs: HashSet<ValueId>,
    /// Values that are not kept, with the position of their last reader that still is one.
    dropped: HashMap<ValueId, usize>,
}

impl<'g> Search<'g> {
    fn new(graph: &'g Graph) -> Search<'g> {
        let order = graph.node_ids();
        let mut readers: HashMap<ValueId, Vec<usize>> = HashMap::new();
        for (at, &id) in order.iter().enumerate() {
            graph.node(id).reads().into_iter().for_each(|v| readers.entry(v).or_default().push(at));
        }
        let at = order.iter().enumerate().map(|(at, &id)| (id, at)).collect();
        let outputs = graph.outputs.iter().copied().collect();
        Search { graph, order, at, readers, pauses: Pauses::new(graph), outputs, dropped: HashMap::new() }
    }

    fn run(mut self) -> Vec<Again> {
        let mut found = vec![];
        for (at, &id) in self.order.clone().iter().enumerate() {
            if let Some(again) = self.again(at, id) {
                let early = self.readers[&again.value].iter().filter(|&&p| p < again.first).max();
                self.dropped.insert(again.value, early.copied().unwrap_or(at));
                found.push(again);
            }
        }
        found
    }

    /// The result of the node at this position as a value to make again, if it is one.
    fn again(&self, at: usize, id: NodeId) -> Option<Again> {
        let [Some(value)] = self.graph.node(id).outputs[..] else { return None };
        if !self.is_cheap(id) || self.outputs.contains(&value) || self.graph.byte_len(value) < LEAST_BYTES {
            return None;
        }
        let readers = self.readers.get(&value)?;
        // The longest pause between two uses.
        let uses: Vec<usize> = [at].into_iter().chain(readers.iter().copied()).collect();
        let pause = |i: usize| self.pauses.between(uses[i], uses[i + 1]);
        let longest = (0..uses.len() - 1).max_by_key(|&i| (pause(i), i))?;
        if !self.pauses.is_long(uses[longest], uses[longest + 1]) {
            return None;
        }
        let first = uses[longest + 1];
        let mut chain = vec![];
        self.chain(id, value, first, &mut chain)?;
        chain.sort_unstable_by_key(|id| self.at[id]);
        let late = readers.iter().filter(|&&p| p >= first).map(|&p| self.order[p]).collect();
        Some(Again { value, chain, readers: late, first })
    }

    fn is_cheap(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        let standard = node.domain_or_default().is_empty();
        standard && is_element_wise(&node.op) && !DEAR.contains(&node.op.as_str()) && node.outputs.len() == 1
    }

    /// Adds the nodes that make the result of `id` for `wanted` from what is kept until position `first` anyway.
    fn chain(&self, id: NodeId, wanted: ValueId, first: usize, chain: &mut Vec<NodeId>) -> Option<()> {
        if chain.contains(&id) {
            return Some(());
        }
        chain.push(id);
        if chain.len() > MOST_NODES {
            return None;
        }
        for operand in self.graph.node(id).reads() {
            let small = self.graph.byte_len(operand).saturating_mul(SMALL) <= self.graph.byte_len(wanted);
            let Some(producer) = self.graph.producer(operand) else { continue };
            if small || self.is_kept_until(operand, first) {
                continue;
            }
            if !self.is_cheap(producer) {
                return None;
            }
            self.chain(producer, wanted, first, chain)?;
        }
        Some(())
    }

    /// Whether something reads the value, as it is, at this position, shortly before it or later.
    fn is_kept_until(&self, value: ValueId, first: usize) -> bool {
        let last = match self.dropped.get(&value) {
            Some(&last) => Some(last),
            None => self.readers.get(&value).and_then(|r| r.last()).copied(),
        };
        self.outputs.contains(&value) || last.is_some_and(|last| !self.pauses.is_long(last, first))
    }
}

#[cfg(test)]
mod tests {
    use crate::{Cx, Form, Graph, Lowering, Var};
    use limbeck_tensor::{DType, Tensor, TensorMap};

    /// Rows and columns of all values: 16 KiB each.
    const SIDE: usize = 64;

    fn values(seed: usize) -> Tensor {
        let value = |i: usize| ((i * 7 + seed * 13) % 29) as f32 / 29.0 - 0.5;
        Tensor::new([SIDE, SIDE], (0..SIDE * SIDE).map(value).collect::<Vec<f32>>()).unwrap()
    }

    /// `a = x W`, `r = relu(a)`, four products after each other, and at their end `r` again and, if it is kept, `a`.
    fn long_pause(keeps: bool, activation: impl for<'c> Fn(Var<'c>) -> Var<'c>) -> Graph {
        let cx = Cx::new("pause", DType::F32);
        let [x, w] = ["x", "w"].map(|name| cx.input(name, DType::F32, &[SIDE, SIDE]));
        let a = x.matmul(w);
        let r = activation(a);
        let h = (0..4).fold(r, |h, _| h.matmul(w));
        let y = (h * r).matmul(w);
        cx.output("y", if keeps { y * a } else { y });
        cx.finish().unwrap()
    }

    fn lowered(graph: &Graph) -> Graph {
        let lowered = graph.lowered(Form::Fused).unwrap();
        let feeds = TensorMap::from([("x".to_owned(), values(1)), ("w".to_owned(), values(2))]);
        assert_eq!(lowered.evaluate(&feeds).unwrap(), graph.evaluate(&feeds).unwrap());
        lowered
    }

    /// How often the maps of a graph compute this operator.
    fn times(graph: &Graph, op: &str) -> usize {
        let maps = graph.nodes().filter(|(_, node)| node.op == "Map");
        maps.flat_map(|(_, node)| node.str("ops").unwrap().split(' ')).filter(|name| *name == op).count()
    }

    #[test]
    fn what_follows_from_a_kept_value_is_not_kept() {
        let kept = lowered(&long_pause(true, |a| a.relu()));
        assert_eq!(times(&kept, "Relu"), 2);
        let all = long_pause(true, |a| a.relu()).lowered(Lowering { recompute: false, ..Form::Fused.into() }).unwrap();
        assert_eq!(times(&all, "Relu"), 1, "all activations are kept if that is asked for");
        // In the middle of the products: `a`, and one operand and one result of a product.
        let plan = kept.memory_plan(&[]).unwrap();
        let live: u64 = plan.live.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(live, 3 * (4 * SIDE * SIDE) as u64, "{plan:?}");
    }

    #[test]
    fn values_that_follow_from_none_or_cost_much_are_kept() {
        let none = lowered(&long_pause(false, |a| a.relu()));
        assert_eq!(times(&none, "Relu"), 1, "`a` would have to be kept for it");
        let dear = lowered(&long_pause(true, |a| a.exp()));
        assert_eq!(times(&dear, "Exp"), 1);
    }
}
