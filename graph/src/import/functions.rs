//! Inlining model-local functions.

use crate::onnx::function::{self, Function};
use crate::{Attr, Graph, GraphError, Node, NodeId};
use bytes::Bytes;
use indexmap::IndexMap;
use std::collections::{HashMap, HashSet};

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
        let functions = Functions::decode(&self.meta.functions).map_err(invalid)?;
        let total = functions.nodes(self, &functions.sizes().map_err(invalid)?);
        if total > MAX_NODES {
            return Err(invalid(format!(
                "has {total} nodes once its functions are inlined, at most {MAX_NODES} are allowed"
            )));
        }
        let calls = functions.inline_calls(self)?;
        self.meta.functions.clear();
        for (domain, version) in functions.all.iter().flat_map(|f| &f.body.meta.opsets) {
            if self.opset(domain).is_none() {
                self.meta.opsets.push((domain.clone(), *version));
            }
        }
        let mut used = HashSet::new();
        domains(self, &mut used);
        self.meta.opsets.retain(|(d, _)| matches!(d.as_str(), "" | "ai.onnx") || used.contains(d));
        Ok(calls)
    }
}

/// The functions of a model.
struct Functions {
    all: Vec<Function>,
    /// By domain, name and overload.
    by_name: HashMap<(String, String, String), usize>,
}

impl Functions {
    fn decode(encoded: &[Bytes]) -> Result<Functions, String> {
        let all = encoded.iter().map(function::decode).collect::<Result<Vec<_>, _>>()?;
        let mut by_name = HashMap::new();
        for (i, f) in all.iter().enumerate() {
            if by_name.insert((f.domain.clone(), f.name.clone(), f.overload.clone()), i).is_some() {
                return Err(format!("has two functions '{}.{}'", f.domain, f.name));
            }
        }
        Ok(Functions { all, by_name })
    }

    /// The function that a node calls.
    fn called(&self, node: &Node) -> Option<usize> {
        self.by_name.get(&(node.domain.clone(), node.op.clone(), node.overload.clone())).copied()
    }

    /// Replaces the calls of a graph and of its subgraphs.
    fn inline_calls(&self, graph: &mut Graph) -> Result<usize, GraphError> {
        let mut calls = 0;
        let mut pending: Vec<NodeId> = graph.node_ids();
        pending.reverse();
        while let Some(id) = pending.pop() {
            if graph.node(id).subgraphs().next().is_some() {
                for sub in graph.node_mut(id).subgraphs_mut() {
                    calls += self.inline_calls(sub)?;
                }
            }
            let node = graph.node(id);
            let Some(function) = self.called(node).map(|f| &self.all[f]) else { continue };
            let fail = |reason: String| GraphError::Node { node: graph.label(id), op: node.full_op(), reason };
            if node.inputs.len() > function.body.inputs.len() {
                let takes = function.body.inputs.len();
                return Err(fail(format!("has {} operands, the function takes {takes}", node.inputs.len())));
            }
            let mut body = function.body.clone();
            bind_attributes(&mut body, &node.attrs, &function.defaults);
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

    /// How many nodes each function stands for. A function that calls itself, directly or through others, is an error.
    fn sizes(&self) -> Result<Vec<usize>, String> {
        let mut callers: Vec<Vec<usize>> = vec![vec![]; self.all.len()];
        let mut open: Vec<usize> = vec![0; self.all.len()];
        for (caller, function) in self.all.iter().enumerate() {
            let mut callees = vec![];
            self.callees(&function.body, &mut callees);
            open[caller] = callees.len();
            callees.into_iter().for_each(|callee| callers[callee].push(caller));
        }
        // A function is settled once all that it calls is; what never is calls itself.
        let mut sizes = vec![0; self.all.len()];
        let mut ready: Vec<usize> = (0..open.len()).filter(|&f| open[f] == 0).collect();
        let mut settled = vec![false; self.all.len()];
        while let Some(next) = ready.pop() {
            sizes[next] = self.nodes(&self.all[next].body, &sizes);
            settled[next] = true;
            for &caller in &callers[next] {
                open[caller] -= 1;
                if open[caller] == 0 {
                    ready.push(caller);
                }
            }
        }
        match settled.iter().position(|s| !s).map(|f| &self.all[f]) {
            Some(f) => Err(format!("has a function '{}.{}' that calls itself", f.domain, f.name)),
            None => Ok(sizes),
        }
    }

    fn callees(&self, graph: &Graph, found: &mut Vec<usize>) {
        for (_, node) in graph.nodes() {
            found.extend(self.called(node));
            node.subgraphs().for_each(|sub| self.callees(sub, found));
        }
    }

    /// Nodes of a graph and its subgraphs, a call counted by what it stands for.
    fn nodes(&self, graph: &Graph, sizes: &[usize]) -> usize {
        let of = |n: &Node| {
            let own = self.called(n).map_or(1, |f| sizes[f]);
            n.subgraphs().map(|sub| self.nodes(sub, sizes)).fold(own, usize::saturating_add)
        };
        graph.nodes().map(|(_, n)| of(n)).fold(0, usize::saturating_add)
    }
}

/// Puts the caller's attributes, or their defaults, where the body refers to them; what has neither is left out.
fn bind_attributes(body: &mut Graph, given: &IndexMap<String, Attr>, defaults: &HashMap<String, Attr>) {
    for id in body.node_ids() {
        let refers = |attr: &Attr| match attr {
            Attr::Raw(raw) => function::reference(raw),
            _ => None,
        };
        let references = body.node(id).attrs.iter().filter_map(|(name, attr)| Some((name.clone(), refers(attr)?)));
        for (name, reference) in references.collect::<Vec<_>>() {
            let value = match given.get(&reference).or_else(|| defaults.get(&reference)) {
                Some(Attr::Raw(raw)) => Some(Attr::Raw(function::renamed(raw, &name))),
                value => value.cloned(),
            };
            match value {
                Some(value) => _ = body.node_mut(id).attrs.insert(name, value),
                None => _ = body.node_mut(id).attrs.shift_remove(&name),
            }
        }
        if body.node(id).subgraphs().next().is_some() {
            body.node_mut(id).subgraphs_mut().for_each(|sub| bind_attributes(sub, given, defaults));
        }
    }
}

/// Domains of all nodes.
fn domains(graph: &Graph, found: &mut HashSet<String>) {
    for (_, node) in graph.nodes() {
        found.insert(node.domain.clone());
        node.subgraphs().for_each(|sub| domains(sub, found));
    }
}
