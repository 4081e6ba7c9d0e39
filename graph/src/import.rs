//! Making a model that someone else exported static: inputs fixed to values, dims to numbers, shape arithmetic computed,
//! an `If` whose condition is settled by that replaced by the branch it takes, and on request loops by their steps.

use crate::{Attr, Graph, GraphError, Node, NodeId, TensorType, ValueId};
use limbeck_tensor::{DType, Tensor, TensorMap};
use std::collections::HashMap;

/// What [`Graph::import`] is told.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Named dims and their extents.
    pub dims: Vec<(String, usize)>,
    /// Inputs that always get this value, by name.
    pub fixed: TensorMap,
    /// Most steps of a Scan or Loop that is replaced by them, as training needs; 0 leaves them all.
    pub unroll: usize,
}

/// What [`Graph::import`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImportReport {
    /// Inputs that became constants.
    pub fixed: usize,
    /// Nodes of shape arithmetic that were computed.
    pub folded: usize,
    /// `If` nodes that were replaced by a branch.
    pub branches: usize,
    /// Scan and Loop nodes that were replaced by their steps.
    pub loops: usize,
    /// Nodes that nothing needed afterwards.
    pub removed: usize,
}

impl Graph {
    /// Brings the graph to the builder's opset, fixes inputs and dims, and resolves what they settle.
    ///
    /// # Errors
    /// An input or dim that the graph does not have, a value that an input does not take, contradictory shapes.
    pub fn import(&mut self, options: &ImportOptions) -> Result<ImportReport, GraphError> {
        self.canonicalise()?;
        let mut report = ImportReport { fixed: options.fixed.len(), ..ImportReport::default() };
        for (name, value) in &options.fixed {
            self.fix_input(name, value)?;
        }
        let dims: Vec<(&str, usize)> = options.dims.iter().map(|(name, extent)| (name.as_str(), *extent)).collect();
        if !dims.is_empty() {
            self.bind_dims(&dims)?;
        }
        (report.folded, report.branches) = self.resolve_branches()?;
        while self.unroll_loop(options.unroll)? {
            let (folded, branches) = self.resolve_branches()?;
            report.loops += 1;
            report.folded += folded;
            report.branches += branches;
        }
        report.removed = self.remove_dead();
        self.verify()?;
        Ok(report)
    }

    /// Makes an input a constant.
    pub fn fix_input(&mut self, name: &str, value: &Tensor) -> Result<(), GraphError> {
        let id = self.find(name).filter(|id| self.inputs.contains(id)).ok_or_else(|| {
            let known: Vec<&str> = self.inputs.iter().map(|&i| self.name_of(i)).collect();
            GraphError::Value { name: name.into(), reason: format!("is no input of the model; there are {known:?}") }
        })?;
        let given = TensorType::of(value);
        let unfit = |declared: &&TensorType| declared.dtype != given.dtype || declared.unify(&given).is_none();
        if let Some(declared) = self.ty(id).filter(unfit) {
            let reason = format!("takes {declared}, and cannot be fixed to a value of type {given}");
            return Err(GraphError::Value { name: name.into(), reason });
        }
        self.inputs.retain(|&input| input != id);
        self.set_initializer(id, value.clone());
        self.mark_literal(id);
        Ok(())
    }

    /// Replaces every `If` whose condition is a constant, or becomes one when shapes are folded, by the branch it takes.
    /// Returns how many nodes were computed and how many branches resolved. The graph must be canonical.
    pub fn resolve_branches(&mut self) -> Result<(usize, usize), GraphError> {
        let (mut folded, mut resolved) = (0, 0);
        loop {
            folded += self.fold_shapes()?;
            let settled = self.node_ids().into_iter().find_map(|id| Some((id, self.taken_branch(id)?)));
            // Each turn removes one If, of which a file holds finitely many.
            let Some((id, branch)) = settled else { return Ok((folded, resolved)) };
            self.inline_branch(id, &branch)?;
            resolved += 1;
        }
    }

    /// The branch that an `If` with a constant condition takes.
    fn taken_branch(&self, id: NodeId) -> Option<Graph> {
        let node = self.node(id);
        let condition = node.input(0).filter(|c| node.is("", "If") && !self.inputs.contains(c))?;
        let condition = self.constant(condition).filter(|t| t.dtype() == DType::Bool && t.len() == 1)?;
        let taken = if condition.to_f64_vec().ok()? == [0.0] { "else_branch" } else { "then_branch" };
        match node.attrs.get(taken)? {
            Attr::Graph(branch) => Some((**branch).clone()),
            _ => None,
        }
    }

    /// Puts a branch's nodes in the place of its `If`.
    fn inline_branch(&mut self, id: NodeId, branch: &Graph) -> Result<(), GraphError> {
        let results = std::mem::take(&mut self.node_mut(id).outputs);
        if results.len() > branch.outputs.len() {
            let reason = format!("has {} results, its branch {}", results.len(), branch.outputs.len());
            return Err(GraphError::Node { node: self.label(id), op: "If".into(), reason });
        }
        self.inline_body(id, branch, &[], &results)?;
        self.remove_node(id);
        Ok(())
    }

    /// Puts the nodes of a subgraph before a node: `operands` stand for its inputs, and `results` (values without
    /// producer, as many as wanted) get its outputs.
    pub(crate) fn inline_body(
        &mut self,
        id: NodeId,
        branch: &Graph,
        operands: &[ValueId],
        results: &[Option<ValueId>],
    ) -> Result<(), GraphError> {
        let mut place: HashMap<ValueId, ValueId> = branch.captures.iter().map(|c| (c.inner, c.outer)).collect();
        place.extend(branch.inputs.iter().copied().zip(operands.iter().copied()));
        for (inner, tensor) in branch.initializers() {
            let outer = self.add_value(branch.name_of(inner), Some(TensorType::of(tensor)));
            self.copy_constant(outer, branch, inner);
            place.insert(inner, outer);
        }
        // A node's result may be the If's own; what is no node's, or two results at once, is copied at the end.
        for (result, &inner) in results.iter().zip(&branch.outputs) {
            if let (Some(result), true) = (result, branch.producer(inner).is_some()) {
                place.entry(inner).or_insert(*result);
            }
        }
        for (_, node) in branch.nodes() {
            let mut copy = node.clone();
            for output in copy.outputs.iter_mut().flatten() {
                let ty = branch.ty(*output).cloned();
                let outer =
                    *place.entry(*output).or_insert_with(|| self.add_value(branch.name_of(*output), ty.clone()));
                if self.ty(outer).is_none() {
                    self.set_ty(outer, ty);
                }
                *output = outer;
            }
            for input in copy.inputs.iter_mut().flatten() {
                *input = *place.get(input).ok_or_else(|| dangling(branch, *input))?;
            }
            for capture in copy.subgraphs_mut().flat_map(|sub| &mut sub.captures) {
                capture.outer = *place.get(&capture.outer).ok_or_else(|| dangling(branch, capture.outer))?;
            }
            self.insert_node_before(id, copy);
        }
        for (result, inner) in results.iter().zip(&branch.outputs) {
            let from = *place.get(inner).ok_or_else(|| dangling(branch, *inner))?;
            if let Some(result) = result.filter(|result| *result != from) {
                self.insert_node_before(id, Node::new("Identity", &[from], &[result]));
            }
        }
        Ok(())
    }
}

fn dangling(branch: &Graph, value: ValueId) -> GraphError {
    let reason = format!("is read in branch '{}', but nothing provides it", branch.name);
    GraphError::Value { name: branch.name_of(value).into(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cx;

    /// A branch `x * factor + w`, with its own constants.
    fn branch(name: &str, factor: f32) -> Graph {
        let cx = Cx::new(name, DType::F32);
        let w = cx.initializer("w", Tensor::new([2], vec![factor; 2]).unwrap());
        let x = cx.input("x", DType::F32, &[2]);
        cx.output("y", x * f64::from(factor) + w);
        let mut graph = cx.finish().unwrap();
        let x = graph.inputs.remove(0);
        graph.captures.push(crate::Capture { inner: x, outer: x });
        graph.meta = crate::Meta::default();
        graph
    }

    /// `If(mode > 1) then 3 x + 3 else 2 x + 2`, with `x` `[2]` and `mode` an integer.
    fn switch() -> Graph {
        let cx = Cx::new("switch", DType::F32);
        let (x, mode) = (cx.input("x", DType::F32, &[2]), cx.input("mode", DType::I64, &[]));
        let high = mode.greater(cx.scalar_of(1.0, DType::I64));
        cx.output("high", high.identity());
        let (x, high) = (x.id(), high.id());
        let mut graph = cx.finish().unwrap();
        let sub = |name: &str, factor| {
            let mut sub = branch(name, factor);
            sub.captures[0].outer = x;
            Attr::Graph(Box::new(sub))
        };
        let y = graph.add_value("out", Some(TensorType::new(DType::F32, &[2])));
        let node = Node::new("If", &[high], &[y]).with("then_branch", sub("then", 3.0));
        graph.add_node(node.with("else_branch", sub("else", 2.0)));
        graph.outputs = vec![y];
        graph.verify().unwrap();
        graph
    }

    #[test]
    fn a_fixed_input_settles_the_branch() {
        for (mode, expected) in [(1i64, [4.0, 6.0]), (2, [6.0, 9.0])] {
            let mut graph = Graph::from_bytes(switch().to_bytes().unwrap(), None).unwrap();
            let fixed = TensorMap::from([("mode".to_owned(), Tensor::scalar(mode))]);
            let report = graph.import(&ImportOptions { fixed, ..ImportOptions::default() }).unwrap();
            assert_eq!((report.fixed, report.branches), (1, 1));
            assert!(graph.nodes().all(|(_, n)| n.subgraphs().next().is_none()));
            let x = TensorMap::from([("x".to_owned(), Tensor::new([2], vec![1f32, 2.0]).unwrap())]);
            assert_eq!(graph.evaluate(&x).unwrap()["out"].to_f64_vec().unwrap(), expected);
        }
    }

    #[test]
    fn what_is_not_settled_stays_and_wrong_names_and_values_are_refused() {
        let mut graph = switch();
        assert_eq!(graph.import(&ImportOptions::default()).unwrap().branches, 0);
        assert!(graph.nodes().any(|(_, n)| n.op == "If"));
        let error = graph.fix_input("mood", &Tensor::scalar(1i64)).unwrap_err().to_string();
        assert!(error.contains("mood") && error.contains("mode"), "{error}");
        let error = graph.fix_input("mode", &Tensor::scalar(1f32)).unwrap_err().to_string();
        assert!(error.contains("mode") && error.contains("int64"), "{error}");
        let dims = vec![("batch".to_owned(), 2)];
        let error = graph.import(&ImportOptions { dims, ..ImportOptions::default() }).unwrap_err().to_string();
        assert!(error.contains("batch"), "{error}");
    }
}
