//! Resolving an `If`: by the branch it takes where its condition is settled, else on request by both branches and a
//! selection, which gradients go through.

use crate::fold::RANDOM;
use crate::{Attr, Graph, GraphError, Node, NodeId, TensorType, ValueId};
use limbeck_tensor::{DType, Tensor};
use std::collections::{HashMap, HashSet};

/// Operands that set an operator up, which stored constants do as they are: (operator, operands).
const SETTINGS: &[(&str, &[usize])] = &[
    ("QuantizeLinear", &[1, 2]),
    ("DequantizeLinear", &[1, 2]),
    ("Dropout", &[1]),
    ("OneHot", &[2]),
    ("Resize", &[1, 2]),
];

impl Graph {
    /// Replaces every `If` whose condition is a constant, or becomes one when shapes are folded, by the branch it takes.
    /// Returns how many nodes were computed and how many branches resolved. The graph must be canonical.
    pub fn resolve_branches(&mut self) -> Result<(usize, usize), GraphError> {
        let (mut folded, mut resolved) = (0, 0);
        loop {
            folded += self.fold_shapes()?;
            let settled = self.node_ids().into_iter().find_map(|id| Some((id, self.taken_branch(id)?)));
            // Each turn removes one If, of which a file holds finitely many.
            let Some((id, branch)) = settled else { return Ok((folded, resolved)) };
            self.inline_body(id, &branch, captured(&branch))?;
            resolved += 1;
        }
    }

    /// The branch that an `If` with a constant condition takes.
    fn taken_branch(&self, id: NodeId) -> Option<Graph> {
        let node = self.node(id);
        let condition = node.input(0).filter(|_| node.is("", "If"))?;
        let condition = self.settled(condition).filter(|t| t.dtype() == DType::Bool && t.len() == 1)?;
        let taken = if condition.to_f64_vec().ok()? == [0.0] { "else_branch" } else { "then_branch" };
        match node.attrs.get(taken)? {
            Attr::Graph(branch) => Some((**branch).clone()),
            _ => None,
        }
    }

    /// Replaces the first `If` that is left by the nodes of both its branches and a `Where` for each result; false when
    /// there is none. The graph must be canonical.
    ///
    /// Floats that a branch reads reach it through a `Where` of their own, as zeros when the branch is not taken. What goes
    /// into a branch and what comes out of it is then selected, and so are the gradients on their way back: a NaN or an
    /// infinity between the two, in values or in derivatives, stays there.
    ///
    /// # Errors
    /// A branch that draws random numbers or normalises batches, and results whose types are not known or not the same in
    /// both branches.
    pub(super) fn select_branch(&mut self) -> Result<bool, GraphError> {
        let Some(id) = self.node_ids().into_iter().find(|&id| self.node(id).is("", "If")) else { return Ok(false) };
        let (node, label) = (self.node(id).clone(), self.label(id));
        let refuse = |reason: String| {
            let remedy = "settle its condition by a fixed input (`--fix`), or change the branches";
            Err(GraphError::Node { node: label.clone(), op: "If".into(), reason: format!("{reason}; {remedy}") })
        };
        let Some(condition) = node.input(0) else { return refuse("has no condition".into()) };
        let mut nodes = vec![];
        let taken = self.as_scalar(condition, &mut nodes)?;
        let mut results = vec![];
        for (name, when) in [("then_branch", true), ("else_branch", false)] {
            let Some(Attr::Graph(branch)) = node.attrs.get(name) else { return refuse(format!("has no {name}")) };
            if let Some(effect) = effect(branch) {
                return refuse(format!("its {name} {effect}, and would do so when it is not taken, too"));
            }
            let own: Vec<_> = branch.outputs.iter().map(|&o| self.add_value(branch.name_of(o), None)).collect();
            let wanted: Vec<_> = own.iter().copied().map(Some).collect();
            let made = self.expanded(id, branch, captured(branch), &wanted)?;
            self.push_gated(made, (taken, when), &mut nodes)?;
            results.push(own);
        }
        if results.iter().any(|own| own.len() < node.outputs.len()) {
            return refuse(format!("has {} results, a branch fewer", node.outputs.len()));
        }
        let pairs = || results[0].iter().copied().zip(results[1].iter().copied()).zip(&node.outputs);
        for ((then, or_else), output) in pairs().filter_map(|(pair, output)| Some((pair, (*output)?))) {
            let mut selection = Node::new("Where", &[taken, then, or_else], &[output]);
            selection.name = format!("{label}/{}", self.name_of(output));
            nodes.push(selection);
        }
        self.replace_node(id, nodes);
        let folded = self.fold_shapes();
        // Where would broadcast one result to the other's shape.
        for ((then, or_else), _) in pairs().filter(|(_, output)| output.is_some()) {
            let known = |ty: &&TensorType| ty.dims.as_ref().is_some_and(|dims| !dims.contains(&crate::Dim::Unknown));
            let [a, b] = [then, or_else].map(|v| self.ty(v));
            if a.filter(known).is_none() || a != b {
                let [a, b] = [a, b].map(|ty| ty.map_or("no known tensor".into(), ToString::to_string));
                return refuse(format!("its branches give {a} and {b}, where one known type is needed"));
            }
        }
        folded?;
        Ok(true)
    }

    /// The condition of an `If`, which has one element, as a scalar.
    fn as_scalar(&mut self, condition: ValueId, nodes: &mut Vec<Node>) -> Result<ValueId, GraphError> {
        if self.ty(condition).and_then(TensorType::rank) == Some(0) {
            return Ok(condition);
        }
        let shape = self.add_literal("c", Tensor::new([0], Vec::<i64>::new())?);
        let scalar = self.add_value(format!("{}.scalar", self.name_of(condition)), None);
        nodes.push(Node::new("Reshape", &[condition, shape], &[scalar]));
        Ok(scalar)
    }

    /// Adds the nodes of a branch, which is taken when the scalar `taken` equals `when`. Floats from outside it, but for
    /// literals and settings, are zeros to them otherwise.
    fn push_gated(
        &mut self,
        branch: Vec<Node>,
        (taken, when): (ValueId, bool),
        nodes: &mut Vec<Node>,
    ) -> Result<(), GraphError> {
        let own: HashSet<ValueId> = branch.iter().flat_map(|n| n.outputs.iter().flatten().copied()).collect();
        let mut gates: HashMap<ValueId, ValueId> = HashMap::new();
        for mut node in branch {
            for value in node.reads() {
                let kept = own.contains(&value) || self.is_literal(value) || self.sets_up(&node, value);
                let float = self.ty(value).map(|t| t.dtype).filter(|d| d.is_float());
                let Some(dtype) = float.filter(|_| !kept) else { continue };
                let gate = match gates.get(&value) {
                    Some(&gate) => gate,
                    None => {
                        let zero = self.add_literal("c", Tensor::from_f64(dtype, [], &[0.0])?);
                        let gate = self.add_value(format!("{}.{when}", self.name_of(value)), None);
                        let [a, b] = if when { [value, zero] } else { [zero, value] };
                        nodes.push(Node::new("Where", &[taken, a, b], &[gate]));
                        *gates.entry(value).or_insert(gate)
                    }
                };
                node.replace_input(value, gate);
            }
            nodes.push(node);
        }
        Ok(())
    }

    /// Whether a stored constant is one of the node's settings.
    fn sets_up(&self, node: &Node, value: ValueId) -> bool {
        let places = SETTINGS.iter().filter(|(op, _)| node.is("", op)).flat_map(|(_, places)| *places);
        self.initializer(value).is_some() && places.into_iter().any(|&place| node.input(place) == Some(value))
    }
}

/// What stands for the captures of a branch.
fn captured(branch: &Graph) -> HashMap<ValueId, Option<ValueId>> {
    branch.captures.iter().map(|c| (c.inner, Some(c.outer))).collect()
}

/// What a graph or its subgraphs do besides computing results. Dropout is the identity, or in training is fed its noise.
fn effect(graph: &Graph) -> Option<String> {
    graph.nodes().find_map(|(_, node)| match node.op.as_str() {
        _ if !node.domain_or_default().is_empty() => None,
        "Dropout" => None,
        "BatchNormalization" => Some("moves running statistics in training (BatchNormalization)".into()),
        op if RANDOM.contains(&op) => Some(format!("draws random numbers ({op})")),
        _ => node.subgraphs().find_map(effect),
    })
}
