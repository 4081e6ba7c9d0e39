//! Instantiating one graph inside another: what `Net::apply` is made of.

use super::{Cx, Var};
use crate::{Graph, GraphError, Node, ValueId};
use std::borrow::Cow;
use std::collections::HashMap;

/// Builds a node another way during [`Cx::inline_with`]: from the node and its operands to its results, or `None`
/// to copy it as it is.
pub type Rewrite<'f, 'c> = dyn FnMut(&'c Cx, &Node, &[Option<Var<'c>>]) -> Option<Vec<Var<'c>>> + 'f;

impl Cx {
    /// Copies the nodes of `graph` into this construction. `bind` gives the values that stand for the graph's
    /// inputs and for any of its initializers; other initializers are copied as constants. Returns the value
    /// that stands for every value of `graph`. Names get the current scope as prefix. Types are inferred anew
    /// from the bound values, so that a batch size comes from them. Subgraphs (of If, Loop, Scan) are copied as they are,
    /// and capture values of this construction; `rewrite` sees the node that holds them.
    pub fn inline<'c>(
        &'c self,
        graph: &Graph,
        bind: &HashMap<ValueId, Var<'c>>,
    ) -> Result<HashMap<ValueId, Var<'c>>, GraphError> {
        self.inline_with(graph, bind, &mut |_, _, _| None)
    }

    /// As [`Cx::inline`], with `rewrite` deciding for each node whether it is built in another way.
    pub fn inline_with<'c>(
        &'c self,
        graph: &Graph,
        bind: &HashMap<ValueId, Var<'c>>,
        rewrite: &mut Rewrite<'_, 'c>,
    ) -> Result<HashMap<ValueId, Var<'c>>, GraphError> {
        let scope = self.set_scope("");
        self.set_scope(&scope);
        let mut map = bind.clone();
        for &input in &graph.inputs {
            if !map.contains_key(&input) && graph.initializer(input).is_none() {
                return Err(GraphError::Value {
                    name: graph.name_of(input).into(),
                    reason: format!("input of graph '{}' is not connected", graph.name),
                });
            }
        }
        for (id, tensor) in graph.initializers() {
            map.entry(id).or_insert_with(|| {
                let copy = self.initializer(&format!("{scope}{}", graph.name_of(id)), tensor.clone());
                self.edit(|g| g.copy_constant(copy.id(), graph, id));
                copy
            });
        }
        for (_, node) in graph.nodes() {
            let label = node.outputs.iter().flatten().next().map_or("", |&o| graph.name_of(o));
            let bound = match node.subgraphs().next() {
                Some(_) => Cow::Owned(self.with_captures(graph, node, &map)?),
                None => Cow::Borrowed(node),
            };
            let node = &*bound;
            let inputs: Vec<Option<Var<'c>>> =
                node.inputs.iter().map(|i| i.and_then(|i| map.get(&i).copied())).collect();
            let rewritten = rewrite(self, node, &inputs);
            let attrs: Vec<(&str, crate::Attr)> = node.attrs.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
            let outputs =
                rewritten.unwrap_or_else(|| self.op_n(&node.domain, &node.op, &inputs, &attrs, node.outputs.len()));
            if let Err(GraphError::Build { reason, .. }) = self.check() {
                return Err(GraphError::Node { node: label.into(), op: node.full_op(), reason });
            }
            for (id, var) in node.outputs.iter().zip(outputs) {
                if let Some(id) = id {
                    self.edit(|g| {
                        let name = format!("{scope}{}", graph.name_of(*id));
                        let bound = g.producer(var.id()).is_none();
                        if g.find(&name).is_none() && !bound { g.rename(var.id(), &name) } else { Ok(()) }
                    })?;
                    map.insert(*id, var);
                }
            }
        }
        Ok(map)
    }
}
