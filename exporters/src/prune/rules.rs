//! How each operator ties the axes of its operands and results.

use super::links::{Axis, Links};
use crate::edit::axis_of;
use limbeck_graph::{Graph, Node, NodeId, ValueId};

/// Operators that work position by position on one operand (others of rank 0 or 1 element may follow).
const UNARY: &[&str] = &[
    "Abs",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Tanh",
    "ThresholdedRelu",
    "Swish",
];
/// Operators that broadcast their operands against each other.
const BROADCAST: &[&str] = &["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu", "Sum", "Mean", "Where"];
/// Operators that keep `[N, C]` and work on the spatial axes.
const POOLS: &[&str] = &["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"];
/// Operators that keep the axes they do not reduce.
const REDUCTIONS: &[&str] = &[
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceL1",
    "ReduceL2",
    "ReduceProd",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
];

/// Ties all axes of a graph.
pub(crate) fn link(graph: &Graph) -> Links {
    let mut links = Links::default();
    for &input in &graph.inputs {
        links.freeze_all(graph, input, &format!("graph input '{}'", graph.name_of(input)));
    }
    for &output in &graph.outputs {
        links.freeze_all(graph, output, &format!("graph output '{}'", graph.name_of(output)));
    }
    for (id, node) in graph.nodes() {
        let label = graph.label(id);
        let mut rule = Rule { graph, links: &mut links, id, node, label: &label };
        let known = node.domain_or_default().is_empty() && node.subgraphs().next().is_none();
        if !known || rule.apply().is_none() {
            rule.give_up();
        }
    }
    links
}

/// One node being followed.
pub(super) struct Rule<'a> {
    pub(super) graph: &'a Graph,
    pub(super) links: &'a mut Links,
    id: NodeId,
    node: &'a Node,
    label: &'a str,
}

impl Rule<'_> {
    fn rank(&self, value: ValueId) -> Option<usize> {
        self.graph.ty(value)?.rank()
    }

    fn extent(&self, (value, axis): Axis) -> Option<usize> {
        self.graph.ty(value)?.dims.as_ref()?.get(axis)?.known()
    }

    pub(super) fn tie(&mut self, a: Axis, b: Axis) {
        self.links.tie(self.graph, a, b);
    }

    pub(super) fn freeze(&mut self, axis: Axis, why: &str) {
        let reason = format!("node '{}' ({}) {why}", self.label, self.node.op);
        self.links.freeze(self.graph, axis, &reason);
    }

    /// Freezes everything the node touches, and reports it.
    fn give_up(&mut self) {
        let reason = format!("node '{}' ({}) cannot be followed", self.label, self.node.full_op());
        for value in self.node.reads().into_iter().chain(self.node.outputs.iter().flatten().copied()) {
            self.links.freeze_all(self.graph, value, &reason);
        }
        self.links.unknown.push(reason);
    }

    /// The integers of a constant operand.
    fn ints(&self, operand: usize) -> Option<Vec<i64>> {
        self.graph.constant(self.node.input(operand)?)?.to_i64_vec().ok()
    }

    fn apply(&mut self) -> Option<()> {
        let x = self.node.input(0)?;
        let y = self.node.output(0)?;
        if self.node.outputs.len() > 1 && self.node.op != "Split" && self.node.outputs.iter().flatten().count() > 1 {
            return None;
        }
        match self.node.op.as_str() {
            op if UNARY.contains(&op) => self.broadcast(&[x], y),
            op if BROADCAST.contains(&op) => {
                let operands: Vec<ValueId> = self.node.inputs.iter().flatten().copied().collect();
                self.broadcast(&operands, y)
            }
            op if POOLS.contains(&op) => self.channels_of(x, y, &[]),
            "BatchNormalization" if self.node.int("training_mode").unwrap_or(0) == 0 => {
                let vectors: Vec<ValueId> = self.node.inputs[1..].iter().flatten().copied().collect();
                self.channels_of(x, y, &vectors)?;
                (2..self.rank(x)?).for_each(|a| self.tie((x, a), (y, a)));
                Some(())
            }
            "InstanceNormalization" => {
                let vectors: Vec<ValueId> = self.node.inputs[1..].iter().flatten().copied().collect();
                self.channels_of(x, y, &vectors)
            }
            op if REDUCTIONS.contains(&op) => self.reduce(x, y),
            "Softmax" | "LogSoftmax" | "Hardmax" => self.all_but(x, y, self.node.int("axis").unwrap_or(-1), false),
            "LayerNormalization" | "RMSNormalization" => {
                self.node.inputs[1..].iter().flatten().for_each(|&v| {
                    self.links.freeze_all(self.graph, v, &format!("node '{}' normalises over it", self.label));
                });
                self.all_but(x, y, self.node.int("axis").unwrap_or(-1), true)
            }
            "Conv" => self.conv(x, y),
            "ConvTranspose" => self.conv_transpose(x, y),
            "Gemm" => self.gemm(x, y),
            "MatMul" => self.matmul(x, y),
            "Concat" => self.concat(y),
            "Split" => self.split(x),
            "Slice" => self.slice(x, y),
            "Transpose" => {
                let rank = self.rank(x)?;
                let reversed: Vec<i64> = (0..rank as i64).rev().collect();
                let perm = self.node.ints("perm").unwrap_or(&reversed).to_vec();
                for (to, from) in perm.into_iter().enumerate() {
                    self.tie((x, usize::try_from(from).ok()?), (y, to));
                }
                Some(())
            }
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => self.reshape(x, y),
            _ => None,
        }
    }

    /// Axes align from the back; an extent of 1 stretches.
    fn broadcast(&mut self, operands: &[ValueId], y: ValueId) -> Option<()> {
        let rank = self.rank(y)?;
        for &x in operands {
            let own = self.rank(x)?;
            let shift = rank.checked_sub(own)?;
            for axis in 0..own {
                let stretched = self.extent((x, axis)) == Some(1) && self.extent((y, axis + shift)) != Some(1);
                if !stretched {
                    self.tie((x, axis), (y, axis + shift));
                }
            }
        }
        Some(())
    }

    /// `[N, C, ...]` to `[N, C, ...]`: channels tie to the result and to vectors of one entry a channel.
    fn channels_of(&mut self, x: ValueId, y: ValueId, vectors: &[ValueId]) -> Option<()> {
        self.tie((x, 0), (y, 0));
        self.tie((x, 1), (y, 1));
        vectors.iter().for_each(|&v| self.tie((x, 1), (v, 0)));
        for axis in 2..self.rank(x)? {
            self.links.freeze(self.graph, (x, axis), "");
        }
        for axis in 2..self.rank(y)? {
            self.links.freeze(self.graph, (y, axis), "");
        }
        Some(())
    }

    /// All axes tie but one (or that one and all behind it), whose positions depend on each other.
    fn all_but(&mut self, x: ValueId, y: ValueId, axis: i64, and_behind: bool) -> Option<()> {
        let rank = self.rank(x)?;
        let at = axis_of(axis, rank)?;
        for axis in 0..rank {
            self.tie((x, axis), (y, axis));
            if axis == at || and_behind && axis > at {
                self.freeze((x, axis), "mixes its positions");
            }
        }
        Some(())
    }

    fn reduce(&mut self, x: ValueId, y: ValueId) -> Option<()> {
        let rank = self.rank(x)?;
        let axes: Vec<usize> = match self.node.input(1) {
            None if self.node.int("noop_with_empty_axes").unwrap_or(0) != 0 => return None,
            None => (0..rank).collect(),
            Some(_) => self.ints(1)?.into_iter().map(|a| axis_of(a, rank)).collect::<Option<_>>()?,
        };
        let keep = self.node.int("keepdims").unwrap_or(1) != 0;
        let mut to = 0;
        for axis in 0..rank {
            if axes.contains(&axis) {
                self.freeze((x, axis), "reduces it");
                to += usize::from(keep);
            } else {
                self.tie((x, axis), (y, to));
                to += 1;
            }
        }
        Some(())
    }

    fn conv(&mut self, x: ValueId, y: ValueId) -> Option<()> {
        let w = self.node.input(1)?;
        let (cin, cout, per_group) = (self.extent((x, 1))?, self.extent((w, 0))?, self.extent((w, 1))?);
        let groups = usize::try_from(self.node.int("group").unwrap_or(1)).ok().filter(|&g| g > 0)?;
        if per_group * groups != cin || cout % groups != 0 {
            return None;
        }
        self.keep_places(x, y, w)?;
        self.tie((w, 0), (y, 1));
        if let Some(b) = self.node.input(2) {
            self.tie((w, 0), (b, 0));
        }
        if groups > 1 && per_group == 1 {
            // One input channel a group: the group goes with it.
            let multiplier = cout / groups;
            self.links.tie_by(self.graph, (w, 0), (x, 1), |o| o / multiplier);
            return Some(());
        }
        // Every group loses the same positions, so that groups stay equal.
        let out_of_group = cout / groups;
        self.links.tie_by(self.graph, (x, 1), (w, 1), |i| i % per_group);
        self.links.tie_by(self.graph, (w, 0), (w, 0), |o| o % out_of_group);
        self.links.reduced.push((self.id, 0, 1));
        Some(())
    }

    fn conv_transpose(&mut self, x: ValueId, y: ValueId) -> Option<()> {
        if self.node.int("group").unwrap_or(1) != 1 {
            return None;
        }
        let w = self.node.input(1)?;
        self.keep_places(x, y, w)?;
        self.tie((x, 1), (w, 0));
        self.tie((w, 1), (y, 1));
        if let Some(b) = self.node.input(2) {
            self.tie((w, 1), (b, 0));
        }
        self.links.reduced.push((self.id, 0, 1));
        Some(())
    }

    /// Batch ties; spatial axes and the kernel are left alone.
    fn keep_places(&mut self, x: ValueId, y: ValueId, w: ValueId) -> Option<()> {
        self.tie((x, 0), (y, 0));
        for axis in 2..self.rank(x)? {
            [x, y, w].into_iter().for_each(|v| self.links.freeze(self.graph, (v, axis), ""));
        }
        Some(())
    }

    fn gemm(&mut self, a: ValueId, y: ValueId) -> Option<()> {
        let b = self.node.input(1)?;
        let (ta, tb) = (self.node.int("transA").unwrap_or(0) != 0, self.node.int("transB").unwrap_or(0) != 0);
        let (row, sum) = if ta { (1, 0) } else { (0, 1) };
        let (down, column) = if tb { (1, 0) } else { (0, 1) };
        self.tie((a, sum), (b, down));
        self.tie((a, row), (y, 0));
        self.tie((b, column), (y, 1));
        self.links.reduced.push((self.id, 0, sum));
        match self.node.input(2) {
            Some(c) => self.broadcast(&[c], y),
            None => Some(()),
        }
    }

    fn matmul(&mut self, a: ValueId, y: ValueId) -> Option<()> {
        let b = self.node.input(1)?;
        let (ra, rb, ry) = (self.rank(a)?, self.rank(b)?, self.rank(y)?);
        if ra < 2 || rb < 2 {
            return None;
        }
        self.tie((a, ra - 1), (b, rb - 2));
        self.tie((a, ra - 2), (y, ry - 2));
        self.tie((b, rb - 1), (y, ry - 1));
        for (v, rank) in [(a, ra), (b, rb)] {
            for axis in 0..rank - 2 {
                let to = (y, axis + ry - rank);
                if self.extent((v, axis)) != Some(1) || self.extent(to) == Some(1) {
                    self.tie((v, axis), to);
                }
            }
        }
        self.links.reduced.push((self.id, 0, ra - 1));
        Some(())
    }

    fn concat(&mut self, y: ValueId) -> Option<()> {
        let rank = self.rank(y)?;
        let at = axis_of(self.node.int("axis")?, rank)?;
        let mut offset = 0;
        for &x in self.node.inputs.iter().flatten() {
            for axis in (0..rank).filter(|&a| a != at) {
                self.tie((x, axis), (y, axis));
            }
            let extent = self.extent((x, at))?;
            self.links.tie_by(self.graph, (x, at), (y, at), |i| offset + i);
            offset += extent;
        }
        Some(())
    }

    fn split(&mut self, x: ValueId) -> Option<()> {
        let rank = self.rank(x)?;
        let at = axis_of(self.node.int("axis").unwrap_or(0), rank)?;
        let mut offset = 0;
        for y in self.node.outputs.clone() {
            let y = y?;
            for axis in (0..rank).filter(|&a| a != at) {
                self.tie((x, axis), (y, axis));
            }
            let extent = self.extent((y, at))?;
            self.links.tie_by(self.graph, (y, at), (x, at), |i| offset + i);
            offset += extent;
        }
        Some(())
    }

    fn slice(&mut self, x: ValueId, y: ValueId) -> Option<()> {
        let rank = self.rank(x)?;
        let (starts, _) = (self.ints(1)?, self.ints(2)?);
        let all: Vec<i64> = (0..starts.len() as i64).collect();
        let axes = if self.node.input(3).is_some() { self.ints(3)? } else { all };
        let steps = if self.node.input(4).is_some() { self.ints(4)? } else { vec![1; starts.len()] };
        let axes: Vec<usize> = axes.into_iter().map(|a| axis_of(a, rank)).collect::<Option<_>>()?;
        for axis in 0..rank {
            let Some(at) = axes.iter().position(|&a| a == axis) else {
                self.tie((x, axis), (y, axis));
                continue;
            };
            let extent = self.extent((x, axis))?;
            if *steps.get(at)? != 1 || self.extent((y, axis))? == 0 {
                self.freeze((x, axis), "takes it in steps");
                self.freeze((y, axis), "takes it in steps");
                continue;
            }
            let start = super::clamp_start(starts[at], extent);
            self.links.tie_by(self.graph, (y, axis), (x, axis), |i| start + i);
        }
        Some(())
    }
}
