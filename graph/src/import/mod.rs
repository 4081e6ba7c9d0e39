//! Making a model that someone else exported plain and static: inputs fixed to values, dims to numbers, functions
//! inlined, shape arithmetic computed, an `If` that is settled replaced by the branch it takes, sequences by
//! tensors, and on request loops by their steps and an open `If` by both its branches, within the bodies of loops too.

mod branches;
mod functions;
mod inline;
mod rewrite;
mod sequences;
mod unroll;

use crate::bodies::looped_body;
use crate::lower::plain::plain;
use crate::{Dim, Graph, GraphError, TensorType, ValueId, typed_body};
use limbeck_tensor::{Tensor, TensorMap};
use std::collections::BTreeMap;

/// What [`Graph::import`] is told.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Named dims and their extents.
    pub dims: Vec<(String, usize)>,
    /// Shapes of inputs, by name: for those whose dims have no names, or to fix all at once.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Inputs that always get this value, by name.
    pub fixed: TensorMap,
    /// Most steps of a Scan or Loop that is replaced by them; 0 leaves them all. tract has no Loop, and what a body carries
    /// in another shape in each iteration has a gradient only so.
    pub unroll: usize,
    /// Whether an If whose condition stays open is replaced by both its branches and a selection of their results, as
    /// training needs. Both are then computed. The one that is not taken sees zeros for floats and all else as it is, at
    /// which it must not fail: an index out of range there is an error where the If would have passed it by.
    pub both_branches: bool,
}

/// What [`Graph::import`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImportReport {
    /// Inputs that became constants.
    pub fixed: usize,
    /// Calls of model-local functions that were replaced by their bodies.
    pub functions: usize,
    /// Nodes of shape arithmetic that were computed.
    pub folded: usize,
    /// `If` nodes that were replaced by a branch.
    pub branches: usize,
    /// `If` nodes that were replaced by both branches.
    pub selected: usize,
    /// Nodes on sequences and optionals that gave way to nodes on tensors.
    pub sequences: usize,
    /// Scan and Loop nodes that were replaced by their steps.
    pub loops: usize,
    /// Nodes that nothing needed afterwards.
    pub removed: usize,
    /// Nodes that an engine refuses or gets wrong, and that stand there in other words now.
    pub reworded: usize,
}

impl Graph {
    /// Brings the graph to the builder's opset, inlines its functions, fixes inputs and dims, and resolves what they settle.
    /// The weights in the bodies of loops that stay become weights of the graph ([`Graph::hoist_weights`]).
    ///
    /// # Errors
    /// An input or dim that the graph does not have, a value or shape that an input does not take, contradictory shapes,
    /// functions that call themselves. With `both_branches` an If whose branches draw random numbers, normalise
    /// batches, or differ in the type of a result.
    pub fn import(&mut self, options: &ImportOptions) -> Result<ImportReport, GraphError> {
        self.canonicalise()?;
        let functions = self.inline_functions()?;
        let mut report = ImportReport { fixed: options.fixed.len(), functions, ..ImportReport::default() };
        for (name, value) in &options.fixed {
            self.fix_input(name, value)?;
        }
        for (name, shape) in &options.shapes {
            self.fix_shape(name, shape)?;
        }
        let dims: Vec<(&str, usize)> = options.dims.iter().map(|(name, extent)| (name.as_str(), *extent)).collect();
        if !dims.is_empty() {
            self.bind_dims(&dims)?;
        }
        let before = self.count_sequences();
        self.resolve(options, &mut report)?;
        self.hoist_weights();
        report.sequences = before.saturating_sub(self.count_sequences());
        report.removed = self.remove_dead();
        let (graph, reworded) = self.clone().rewritten(&mut plain)?;
        *self = graph;
        report.reworded = reworded + self.part_slices();
        self.forget_stale_shapes();
        self.verify()?;
        Ok(report)
    }

    /// Resolves branches and loops, then those within the bodies of loops that stay.
    fn resolve(&mut self, options: &ImportOptions, report: &mut ImportReport) -> Result<(), GraphError> {
        loop {
            let (folded, branches) = self.resolve_branches()?;
            report.folded += folded;
            report.branches += branches;
            // Each turn that goes on has replaced a loop or an If, of which there are finitely many.
            if self.unroll_loop(options.unroll)? {
                report.loops += 1;
            } else if options.both_branches && self.select_branch()? {
                report.selected += 1;
            } else {
                break;
            }
        }
        for id in self.node_ids() {
            let holds_graphs = |body: &Graph| body.nodes().any(|(_, n)| n.subgraphs().next().is_some());
            let typed = self.node(id).inputs.iter().flatten().all(|&v| self.ty(v).is_some());
            if typed && looped_body(self.node(id)).is_some_and(holds_graphs) {
                let mut body = typed_body(self, self.node(id), &self.label(id))?;
                body.resolve(options, report)?;
                body.remove_dead();
                body.captures.clone().iter().for_each(|c| drop(body.remove_initializer(c.inner)));
                self.node_mut(id).attrs.insert("body".into(), body.into());
            }
        }
        Ok(())
    }

    /// Drops what the file says in names about the shapes of results once every input's shape is settled: an engine may
    /// take it for true that such a dim is none of the numbers.
    fn forget_stale_shapes(&mut self) {
        let concrete = |ty: Option<&TensorType>| ty.is_some_and(|t| t.concrete().is_some());
        if !self.inputs.iter().all(|&i| concrete(self.ty(i))) {
            return;
        }
        for id in self.value_ids() {
            if self.producer(id).is_some() && !concrete(self.ty(id)) {
                let output = self.ty(id).filter(|_| self.outputs.contains(&id));
                let ty = output.map(|t| TensorType { dims: None, ..t.clone() });
                self.set_ty(id, ty);
                self.spare_infos.retain(|(value, _)| *value != id);
            }
        }
    }

    /// Gives an input a static shape.
    fn fix_shape(&mut self, name: &str, shape: &[usize]) -> Result<(), GraphError> {
        let id = self.input_called(name)?;
        let Some(declared) = self.ty(id).cloned() else { return Ok(()) };
        let given = TensorType::with_dims(declared.dtype, shape.iter().copied().map(Dim::Known).collect());
        let Some(united) = declared.unify(&given) else {
            let reason = format!("takes {declared}, and cannot have the shape {shape:?}");
            return Err(GraphError::Value { name: name.into(), reason });
        };
        self.set_ty(id, Some(united));
        Ok(())
    }

    fn input_called(&self, name: &str) -> Result<ValueId, GraphError> {
        self.find(name).filter(|id| self.inputs.contains(id)).ok_or_else(|| {
            let known: Vec<&str> = self.inputs.iter().map(|&i| self.name_of(i)).collect();
            GraphError::Value { name: name.into(), reason: format!("is no input of the model; there are {known:?}") }
        })
    }

    /// Makes an input a constant.
    pub fn fix_input(&mut self, name: &str, value: &Tensor) -> Result<(), GraphError> {
        let id = self.input_called(name)?;
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attr, Cx, Node};
    use limbeck_tensor::DType;

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
