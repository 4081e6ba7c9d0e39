//! Inlining model-local functions.

use crate::onnx::function::{self, Function};
use crate::{Attr, Graph, GraphError, Node, NodeId};
use std::collections::HashMap;

/// Most nodes that a model may have once its functions are inlined: a few short functions that call each other can
/// stand for any number.
const MAX_NODES: usize = 1 << 17;

impl Graph {
    /// Replaces every call of a model-local function, in subgraphs too, by the function's body. The bodies are brought to
    /// the builder's opset; so must the graph be. Returns how many calls were replaced.
    ///
    /// # Errors
    /// A function that calls itself, that is missing an operand, or that cannot be decoded or brought to the opset.
    pub fn inline_functions(&mut self) -> Result<usize, GraphError> {
        if self.meta.functions.is_empty() {
            return Ok(0);
        }
        let invalid = |reason: String| GraphError::Invalid { graph: self.name.clone(), reason };
        let functions =
            self.meta.functions.iter().map(function::decode).collect::<Result<Vec<_>, _>>().map_err(invalid)?;
        let sizes = sizes(&functions).map_err(invalid)?;
        let total = nodes(self, &functions, &sizes);
        if total > MAX_NODES {
            return Err(invalid(format!(
                "has {total} nodes once its functions are inlined, at most {MAX_NODES} are allowed"
            )));
        }
        let calls = inline_calls(self, &functions)?;
        self.meta.functions.clear();
        for (domain, version) in functions.iter().flat_map(|f| &f.body.meta.opsets) {
            if self.opset(domain).is_none() {
                self.meta.opsets.push((domain.clone(), *version));
            }
        }
        let used: Vec<String> = domains(self);
        self.meta.opsets.retain(|(d, _)| matches!(d.as_str(), "" | "ai.onnx") || used.contains(d));
        Ok(calls)
    }
}

/// Replaces the calls of a graph and of its subgraphs.
fn inline_calls(graph: &mut Graph, functions: &[Function]) -> Result<usize, GraphError> {
    let mut calls = 0;
    let mut pending: Vec<NodeId> = graph.node_ids();
    pending.reverse();
    while let Some(id) = pending.pop() {
        if graph.node(id).subgraphs().next().is_some() {
            for sub in graph.node_mut(id).subgraphs_mut() {
                calls += inline_calls(sub, functions)?;
            }
        }
        let node = graph.node(id);
        let Some(function) = called(node, functions).map(|f| &functions[f]) else { continue };
        let fail = |reason: String| GraphError::Node { node: graph.label(id), op: node.full_op(), reason };
        if node.inputs.len() > function.body.inputs.len() {
            let takes = function.body.inputs.len();
            return Err(fail(format!("has {} operands, the function takes {takes}", node.inputs.len())));
        }
        let mut body = function.body.clone();
        bind_attributes(&mut body, &node.attrs.clone().into_iter().collect(), &function.defaults);
        let operands: Vec<_> = (0..body.inputs.len()).map(|i| node.input(i)).collect();
        for (&inner, operand) in function.body.inputs.iter().zip(&operands) {
            body.set_ty(inner, operand.and_then(|o| graph.ty(o).cloned()));
        }
        body.canonicalise().map_err(|e| fail(format!("its function: {e}")))?;
        let place = function.body.inputs.iter().copied().zip(operands).collect();
        let before = graph.nodes.len() as u32;
        graph.inline_body(id, &body, place)?;
        pending.extend((before..graph.nodes.len() as u32).rev().map(NodeId));
        calls += 1;
    }
    Ok(calls)
}

/// Puts the caller's attributes, or their defaults, where the body refers to them; what has neither is left out.
fn bind_attributes(body: &mut Graph, given: &HashMap<String, Attr>, defaults: &HashMap<String, Attr>) {
    for id in body.node_ids() {
        let refers = |attr: &Attr| match attr {
            Attr::Raw(raw) => function::reference(raw),
            _ => None,
        };
        let node = body.node(id);
        let references: Vec<_> =
            node.attrs.iter().filter_map(|(name, attr)| Some((name.clone(), refers(attr)?))).collect();
        for (name, reference) in references {
            match given.get(&reference).or_else(|| defaults.get(&reference)) {
                Some(value) => _ = body.node_mut(id).attrs.insert(name, value.clone()),
                None => _ = body.node_mut(id).attrs.shift_remove(&name),
            }
        }
        if body.node(id).subgraphs().next().is_some() {
            body.node_mut(id).subgraphs_mut().for_each(|sub| bind_attributes(sub, given, defaults));
        }
    }
}

/// The function that a node calls.
fn called(node: &Node, functions: &[Function]) -> Option<usize> {
    functions.iter().position(|f| f.name == node.op && f.domain == node.domain && f.overload == node.overload)
}

/// How many nodes each function stands for. A function that calls itself, directly or through others, is an error.
fn sizes(functions: &[Function]) -> Result<Vec<usize>, String> {
    let callees: Vec<Vec<usize>> = functions.iter().map(|f| callees(&f.body, functions)).collect();
    let mut sizes: Vec<Option<usize>> = vec![None; functions.len()];
    // Functions whose callees are all settled are settled; what is left calls itself.
    let ready =
        |sizes: &[Option<usize>], f: &usize| sizes[*f].is_none() && callees[*f].iter().all(|&c| sizes[c].is_some());
    while let Some(next) = (0..functions.len()).find(|f| ready(&sizes, f)) {
        let settled: Vec<usize> = sizes.iter().map(|s| s.unwrap_or(0)).collect();
        sizes[next] = Some(nodes(&functions[next].body, functions, &settled));
    }
    let named = |f: usize| format!("function '{}.{}' calls itself", functions[f].domain, functions[f].name);
    sizes.into_iter().enumerate().map(|(f, size)| size.ok_or_else(|| named(f))).collect()
}

fn callees(graph: &Graph, functions: &[Function]) -> Vec<usize> {
    let of = |n: &Node| -> Vec<usize> {
        called(n, functions).into_iter().chain(n.subgraphs().flat_map(|sub| callees(sub, functions))).collect()
    };
    graph.nodes().flat_map(|(_, n)| of(n)).collect()
}

/// Nodes of a graph and its subgraphs, a call counted by what it stands for.
fn nodes(graph: &Graph, functions: &[Function], sizes: &[usize]) -> usize {
    let of = |n: &Node| {
        let own = called(n, functions).map_or(1, |f| sizes[f]);
        n.subgraphs().map(|sub| nodes(sub, functions, sizes)).fold(own, usize::saturating_add)
    };
    graph.nodes().map(|(_, n)| of(n)).fold(0, usize::saturating_add)
}

/// Domains of all nodes.
fn domains(graph: &Graph) -> Vec<String> {
    let own = |n: &Node| {
        let mut all = vec![n.domain.clone()];
        n.subgraphs().for_each(|sub| all.extend(domains(sub)));
        all
    };
    graph.nodes().flat_map(|(_, n)| own(n)).collect()
}
