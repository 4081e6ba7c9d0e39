//! Bodies of Loop and Scan under construction: graphs that read values of the graph around them.

use super::{Cx, Var};
use crate::bodies::{is_weight, looped_body};
use crate::{Attr, Capture, Graph, GraphError, Meta, Node, TensorType, ValueId, typed_body};
use std::collections::{HashMap, HashSet};

/// As [`super::Rewrite`], for nodes of any construction.
pub(crate) type RewriteAny<'f> = dyn for<'b> FnMut(&'b Cx, &Node, &[Option<Var<'b>>]) -> Option<Vec<Var<'b>>> + 'f;

impl Cx {
    /// An empty construction for a body of the node that errors call `label`. All it makes has names in
    /// a scope that nothing here uses, since in a file a value of a body hides what is called the same around it.
    pub fn body(&self, label: &str) -> Cx {
        let around = self.set_scope("");
        self.set_scope(&around);
        let base = if label.starts_with(&around) { label.to_owned() } else { format!("{around}{label}") };
        let graph = self.graph();
        let is_free = |scope: &String| graph.value_ids().all(|id| !graph.name_of(id).starts_with(scope));
        let mut scopes = (1..).map(|i| if i == 1 { format!("{base}/") } else { format!("{base}.{i}/") });
        let body = Cx::new(label, self.float());
        body.set_scope(&scopes.find(is_free).unwrap_or_default());
        body
    }

    /// Of a body: its next input, called `name` within the scope.
    pub fn operand(&self, name: &str, ty: TensorType) -> Var<'_> {
        let name = self.scoped(name);
        self.var(self.edit(|graph| graph.add_input(name, ty)))
    }

    /// Of a body of a node of `around`: the value `outer` there. Asked for twice it is the same value. A constant is known as
    /// one until the body is finished.
    pub fn capture(&self, around: &Cx, outer: ValueId) -> Var<'_> {
        let known = self.graph().captures.iter().find(|c| c.outer == outer).map(|c| c.inner);
        let inner = known.unwrap_or_else(|| {
            let outside = around.graph();
            self.edit(|graph| {
                let inner = graph.add_value(outside.name_of(outer), outside.ty(outer).cloned());
                if outside.settled(outer).is_some() {
                    graph.copy_constant(inner, &outside, outer);
                }
                graph.captures.push(Capture { inner, outer });
                inner
            })
        });
        self.var(inner)
    }

    /// Of a body: makes `var` its next output. What no node of the body provides, and what is an output already, gets a copy.
    pub fn result(&self, var: Var<'_>) {
        if self.has_error() || !self.owns(var) {
            return;
        }
        let copied = {
            let graph = self.graph();
            graph.producer(var.id()).is_none() || graph.outputs.contains(&var.id())
        };
        let var = if copied { var.identity() } else { var };
        self.edit(|graph| graph.outputs.push(var.id()));
    }

    /// The finished body, without what no output depends on; or the first error.
    pub fn finish_body(self) -> Result<Graph, GraphError> {
        let scope = self.scoped("");
        let mut body = self.finish()?;
        body.meta = Meta::default();
        let captured: HashSet<ValueId> = body.captures.iter().map(|c| c.inner).collect();
        for id in body.value_ids() {
            let name = body.name_of(id);
            if captured.contains(&id) {
                body.remove_initializer(id);
            } else if !name.starts_with(&scope) {
                let name = body.free_name(&format!("{scope}{name}"));
                body.rename(id, &name)?;
            }
        }
        Ok(body)
    }

    /// The results of a Loop or Scan on these operands whose body `rewrite` builds anew, node by node; `None` for another
    /// node. What the body captures are values of this construction. With `hoist` the body's weights become weights of
    /// this graph, under their names in the current scope.
    pub(crate) fn with_body<'c>(
        &'c self,
        node: &Node,
        operands: &[Option<Var<'c>>],
        hoist: bool,
        rewrite: &mut RewriteAny<'_>,
    ) -> Option<Vec<Var<'c>>> {
        let mut own = looped_body(node)?.clone();
        let mut node = Node { inputs: operands.iter().map(|v| v.map(|v| v.id())).collect(), ..node.clone() };
        if hoist {
            own.hoist_weights();
            self.edit(|graph| graph.take_constants(&mut own, &self.scoped(""), is_weight));
        }
        node.attrs.insert("body".into(), own.into());
        let label = if node.name.is_empty() { node.op.to_lowercase() } else { node.name.clone() };
        let typed = typed_body(&self.graph(), &node, &label);
        let attr = match typed.and_then(|typed| self.rebuilt(&typed, &label, rewrite)) {
            Ok(body) => Attr::from(body),
            Err(e) => return Some(vec![self.fail_with(format!("in its body, {e}")); node.outputs.len()]),
        };
        node.attrs.insert("body".into(), attr);
        let attrs: Vec<(&str, Attr)> = node.attrs.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
        Some(self.op_n(&node.domain, &node.op, operands, &attrs, node.outputs.len()))
    }

    /// A typed body, built anew.
    fn rebuilt(&self, typed: &Graph, label: &str, rewrite: &mut RewriteAny<'_>) -> Result<Graph, GraphError> {
        let cx = self.body(label);
        let mut bind = HashMap::new();
        for &input in &typed.inputs {
            let name = typed.name_of(input);
            let ty = typed.ty(input).cloned().ok_or_else(|| GraphError::Value {
                name: name.into(),
                reason: format!("input of graph '{}' has no tensor type", typed.name),
            })?;
            bind.insert(input, cx.operand(name, ty));
        }
        for capture in &typed.captures {
            bind.insert(capture.inner, cx.capture(self, capture.outer));
        }
        let map = cx.inline_with(typed, &bind, &mut |cx, node, operands| rewrite(cx, node, operands))?;
        for output in &typed.outputs {
            let value = map.get(output).ok_or_else(|| GraphError::Value {
                name: typed.name_of(*output).into(),
                reason: "output is never computed".into(),
            })?;
            cx.result(*value);
        }
        cx.finish_body()
    }

    /// A node of `graph` whose subgraphs capture what `map` has for the values of `graph`.
    pub(crate) fn with_captures(
        &self,
        graph: &Graph,
        node: &Node,
        map: &HashMap<ValueId, Var<'_>>,
    ) -> Result<Node, GraphError> {
        let mut node = node.clone();
        for capture in node.subgraphs_mut().flat_map(|sub| &mut sub.captures) {
            let value = map.get(&capture.outer).ok_or_else(|| GraphError::Value {
                name: graph.name_of(capture.outer).into(),
                reason: format!("is captured by a subgraph in '{}', but nothing provides it", graph.name),
            })?;
            capture.outer = value.id();
        }
        Ok(node)
    }
}
