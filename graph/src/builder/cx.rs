//! The context that owns a graph under construction and keeps the first error made in it.

use super::Var;
use crate::{Attr, Graph, GraphError, Node, TensorType, ValueId, ValueSet};
use indexmap::IndexMap;
use limbeck_tensor::{DType, Tensor};
use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::panic::Location;

/// A graph under construction. Errors do not interrupt the formula: the first is kept, later operations give
/// values without type, and [`Cx::finish`] (or [`Cx::check`]) returns it.
pub struct Cx {
    graph: RefCell<Graph>,
    error: RefCell<Option<GraphError>>,
    scalars: RefCell<HashMap<(u64, DType), ValueId>>,
    float: Cell<DType>,
    scope: RefCell<String>,
    /// The graph's outputs; forgotten when it is changed by other means than [`Cx::output`].
    listed: RefCell<Option<ValueSet>>,
}

impl Cx {
    /// An empty graph whose floats are `float` (f32 or f64; what scalars default to).
    pub fn new(name: &str, float: DType) -> Cx {
        Cx::over(Graph::new(name), float)
    }

    /// Continues an existing graph, which must be at the builder's opset.
    pub fn over(graph: Graph, float: DType) -> Cx {
        Cx {
            graph: RefCell::new(graph),
            error: RefCell::new(None),
            scalars: RefCell::default(),
            float: Cell::new(float),
            scope: RefCell::default(),
            listed: RefCell::default(),
        }
    }

    /// The float type of this context.
    pub fn float(&self) -> DType {
        self.float.get()
    }

    /// The graph as it stands.
    pub fn graph(&self) -> Ref<'_, Graph> {
        self.graph.borrow()
    }

    /// Prefix of the names of values made from now on (`student/`); returns the former one.
    pub fn set_scope(&self, scope: &str) -> String {
        self.scope.replace(scope.to_owned())
    }

    /// A name within the current scope.
    pub(super) fn scoped(&self, name: &str) -> String {
        format!("{}{name}", self.scope.borrow())
    }

    /// Changes the graph directly; for passes that run inside a construction.
    pub fn edit<R>(&self, f: impl FnOnce(&mut Graph) -> R) -> R {
        self.listed.take();
        f(&mut self.graph.borrow_mut())
    }

    /// The handle of a value of this graph.
    pub fn var(&self, id: ValueId) -> Var<'_> {
        Var::new(self, id)
    }

    /// The value of this name; an unknown name is an error of the construction.
    #[track_caller]
    pub fn named(&self, name: &str) -> Var<'_> {
        let found = self.graph.borrow().require(name);
        match found {
            Ok(id) => self.var(id),
            Err(e) => self.fail(e),
        }
    }

    /// A graph input.
    pub fn input(&self, name: &str, dtype: DType, shape: &[usize]) -> Var<'_> {
        self.var(self.graph.borrow_mut().add_input(name, TensorType::new(dtype, shape)))
    }

    /// A stored tensor under a name: a weight (see [`Graph::is_literal`]).
    pub fn initializer(&self, name: &str, tensor: Tensor) -> Var<'_> {
        self.var(self.graph.borrow_mut().add_initializer(name, tensor))
    }

    /// An unnamed constant: a literal (see [`Graph::is_literal`]).
    pub fn constant(&self, tensor: Tensor) -> Var<'_> {
        self.var(self.graph.borrow_mut().add_literal("c", tensor))
    }

    /// A constant list of integers (axes, shapes, indices): int64, rank 1.
    pub fn ints(&self, values: &[i64]) -> Var<'_> {
        match Tensor::new([values.len()], values.to_vec()) {
            Ok(t) => self.constant(t),
            Err(e) => self.fail(e.into()),
        }
    }

    /// A scalar of the context's float type.
    pub fn scalar(&self, value: f64) -> Var<'_> {
        self.scalar_of(value, self.float())
    }

    /// A scalar of a given dtype; equal scalars share one constant.
    pub fn scalar_of(&self, value: f64, dtype: DType) -> Var<'_> {
        let key = (value.to_bits(), dtype);
        if let Some(&id) = self.scalars.borrow().get(&key) {
            return self.var(id);
        }
        match Tensor::from_f64(dtype, [], &[value]) {
            Ok(t) => {
                let var = self.constant(t);
                self.scalars.borrow_mut().insert(key, var.id());
                var
            }
            Err(e) => self.fail(e.into()),
        }
    }

    /// A constant filled with one value.
    pub fn full(&self, value: f64, dtype: DType, shape: &[usize]) -> Var<'_> {
        let scalar = self.scalar_of(value, dtype);
        if shape.is_empty() { scalar } else { scalar.expand(shape) }
    }

    /// Float constants of the context's float type.
    pub fn floats(&self, shape: &[usize], values: &[f64]) -> Var<'_> {
        match Tensor::from_f64(self.float(), shape, values) {
            Ok(t) => self.constant(t),
            Err(e) => self.fail(e.into()),
        }
    }

    /// Makes `var` a graph output called `name`. An input, a stored tensor or an output of another name gets a copy.
    #[track_caller]
    pub fn output(&self, name: &str, var: Var<'_>) {
        if self.has_error() || !self.owns(var) {
            return;
        }
        let var = {
            let graph = self.graph.borrow();
            let id = var.id();
            let mut listed = self.listed.borrow_mut();
            let listed = listed.get_or_insert_with(|| graph.outputs.iter().copied().collect()).contains(id);
            let provided = graph.producer(id).is_none();
            let copied = listed || (provided && graph.name_of(id) != name);
            drop(graph);
            if copied { var.identity() } else { var }
        };
        let mut graph = self.graph.borrow_mut();
        let result = graph.rename(var.id(), name);
        graph.outputs.push(var.id());
        drop(graph);
        self.listed.borrow_mut().get_or_insert_default().insert(var.id());
        if let Err(e) = result {
            self.fail(e);
        }
    }

    /// One operation of ai.onnx with one result.
    #[track_caller]
    pub fn op<'c>(&'c self, op: &str, inputs: &[Var<'c>], attrs: &[(&str, Attr)]) -> Var<'c> {
        let inputs: Vec<_> = inputs.iter().map(|&v| Some(v)).collect();
        self.op_n("", op, &inputs, attrs, 1)[0]
    }

    /// One operation with optional operands and `n` results.
    #[track_caller]
    pub fn op_n<'c>(
        &'c self,
        domain: &str,
        op: &str,
        inputs: &[Option<Var<'c>>],
        attrs: &[(&str, Attr)],
        n: usize,
    ) -> Vec<Var<'c>> {
        let poisoned = || vec![self.poison(); n];
        if self.has_error() || !inputs.iter().flatten().all(|v| self.owns(*v)) {
            return poisoned();
        }
        let mut node = Node {
            op: op.into(),
            domain: domain.into(),
            inputs: inputs.iter().map(|v| v.map(|v| v.id())).collect(),
            attrs: attrs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect::<IndexMap<_, _>>(),
            ..Node::default()
        };
        let base = format!("{}{}", self.scope.borrow(), op.to_lowercase());
        let mut graph = self.graph.borrow_mut();
        let ids: Vec<ValueId> = (0..n)
            .map(|_| {
                let count = graph.value_ids().len();
                graph.add_value(format!("{base}.{count}"), None)
            })
            .collect();
        // Inference may depend on how many results are wanted.
        node.outputs = ids.iter().copied().map(Some).collect();
        match crate::infer::infer_node(&graph, &node, op) {
            Ok(types) => ids.iter().zip(types).for_each(|(id, ty)| graph.set_ty(*id, Some(ty))),
            Err(e) => {
                drop(graph);
                self.fail(e);
                return poisoned();
            }
        }
        graph.add_node(node);
        drop(graph);
        ids.into_iter().map(|id| self.var(id)).collect()
    }

    /// Records an error (the first one counts) at the caller's place; gives a value without type.
    #[track_caller]
    pub fn fail(&self, error: GraphError) -> Var<'_> {
        let at = Location::caller();
        let mut slot = self.error.borrow_mut();
        if slot.is_none() {
            let reason = match error {
                GraphError::Node { op, reason, .. } => format!("{op}: {reason}"),
                other => other.to_string(),
            };
            *slot = Some(GraphError::Build { at: format!("{}:{}", at.file(), at.line()), reason });
        }
        drop(slot);
        self.poison()
    }

    /// Records an error given as text.
    #[track_caller]
    pub fn fail_with(&self, reason: impl Into<String>) -> Var<'_> {
        self.fail(GraphError::Value { name: "expression".into(), reason: reason.into() })
    }

    fn poison(&self) -> Var<'_> {
        self.var(self.graph.borrow_mut().add_value("error", None))
    }

    /// True once an error was made.
    pub fn has_error(&self) -> bool {
        self.error.borrow().is_some()
    }

    #[track_caller]
    pub(super) fn owns(&self, var: Var<'_>) -> bool {
        let own = std::ptr::eq(self, var.cx());
        if !own {
            self.fail_with("operands belong to two different graphs");
        }
        own
    }

    /// The first error made, if any.
    pub fn check(&self) -> Result<(), GraphError> {
        self.error.borrow_mut().take().map_or(Ok(()), Err)
    }

    /// The finished graph, without what no output depends on, at the opset that its operators need; or the first
    /// error.
    pub fn finish(self) -> Result<Graph, GraphError> {
        self.check()?;
        let mut graph = self.graph.into_inner();
        graph.remove_dead();
        graph.raise_opset();
        graph.verify()?;
        Ok(graph)
    }
}
