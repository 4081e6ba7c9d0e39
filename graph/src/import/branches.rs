//! Resolving an `If` whose condition is settled.

use crate::{Attr, Graph, GraphError, NodeId};
use limbeck_tensor::DType;

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
            let place = branch.captures.iter().map(|c| (c.inner, Some(c.outer))).collect();
            self.inline_body(id, &branch, place)?;
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
}
