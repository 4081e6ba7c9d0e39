//! How long values lie between their uses, as the forward pass's do for the backward pass.

use crate::{Graph, Node};

/// Operators that take long, of a net and of its gradient.
const HEAVY: &[&str] =
    &["Conv", "FusedConv", "ConvGradInput", "ConvGradWeight", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm"];

/// Whether a node is one of them, or holds others.
pub(super) fn is_heavy(node: &Node) -> bool {
    HEAVY.contains(&node.op.as_str()) || node.subgraphs().next().is_some()
}

/// So many of them make a long pause.
const LONG: usize = 3;

/// The heavy operators of a graph, in the order of its nodes.
pub(super) struct Pauses {
    /// How many there are before each position.
    before: Vec<usize>,
}

impl Pauses {
    pub(super) fn new(graph: &Graph) -> Pauses {
        let mut before = vec![0];
        for (at, (_, node)) in graph.nodes().enumerate() {
            before.push(before[at] + usize::from(is_heavy(node)));
        }
        Pauses { before }
    }

    /// How many run after the node at one position and before that at another.
    pub(super) fn between(&self, from: usize, to: usize) -> usize {
        self.before[to].saturating_sub(self.before[from + 1])
    }

    pub(super) fn is_long(&self, from: usize, to: usize) -> bool {
        self.between(from, to) >= LONG
    }
}
