//! From the operator forms of opsets 7 to 24 to one form each: that of opset [`OPSET`], which the builder emits,
//! the op table describes and every later pass expects.

mod forms;

use crate::infer::infer_results;
use crate::{Capture, Graph, GraphError, IR_VERSION, Node, NodeId, OPSET, ValueId};
use forms::{Edit, rewrite};
use limbeck_tensor::DType;
use std::collections::{HashMap, HashSet};

/// Oldest and newest opset that is understood.
const UNDERSTOOD: std::ops::RangeInclusive<i64> = 7..=24;

/// Operators whose canonical form came after [`OPSET`], and the opset that brought it.
const NEWER: &[(&str, i64)] = &[
    ("GroupNormalization", 21),
    ("Attention", 23),
    ("RMSNormalization", 23),
    ("RotaryEmbedding", 23),
    ("Swish", 24),
    ("TensorScatter", 24),
];

impl Graph {
    /// Rewrites the ai.onnx nodes, subgraphs included, to the forms of opset [`OPSET`] and declares that opset (or
    /// the one that brought the newest operator in use). `Constant` nodes become initializers. Operators of
    /// other domains stay as they are, and so do model-local functions, which import opsets of their own.
    /// A form that cannot be rewritten is an error that names the node.
    pub fn canonicalise(&mut self) -> Result<(), GraphError> {
        let invalid = |graph: &Graph, reason| GraphError::Invalid { graph: graph.name.clone(), reason };
        let Some(from) = self.opset("") else {
            return match self.nodes().find(|(_, n)| n.domain_or_default().is_empty()) {
                None => Ok(()),
                Some((id, _)) => {
                    Err(invalid(self, format!("uses ai.onnx (node '{}') without an import", self.label(id))))
                }
            };
        };
        if !UNDERSTOOD.contains(&from) {
            let reason = format!("opset {from} is not understood, 7 to 24 are; convert it with onnx.version_converter");
            return Err(invalid(self, reason));
        }
        // Before IR version 4 every initializer had to be listed as an input.
        if self.meta.ir_version < 4 {
            let initializers = &self.initializers;
            self.inputs.retain(|id| !initializers.contains_key(id));
        }
        pass(self, from)?;
        self.declare_opset(newest(self));
        self.meta.ir_version = self.meta.ir_version.max(IR_VERSION);
        self.verify()
    }
}

impl Graph {
    /// Declares the opset that the operators in use need, when the declared one is older.
    pub(crate) fn raise_opset(&mut self) {
        let to = newest(self).max(self.opset("").unwrap_or(OPSET));
        self.declare_opset(to);
    }

    fn declare_opset(&mut self, to: i64) {
        self.meta.opsets.retain(|(domain, _)| !matches!(domain.as_str(), "" | "ai.onnx"));
        self.meta.opsets.insert(0, (String::new(), to));
    }
}

/// The opset that all operators and types in use need, at least [`OPSET`].
fn newest(graph: &Graph) -> i64 {
    let of = |n: &Node| n.subgraphs().map(newest).fold(since(n, graph), i64::max);
    graph.nodes().map(|(_, n)| of(n)).fold(OPSET, i64::max)
}

/// The opset that brought a node's operator, what it asks of it or a type of its operands and results.
fn since(node: &Node, graph: &Graph) -> i64 {
    let values = node.operands().chain(node.outputs.iter().flatten().copied());
    let dtypes = values.filter_map(|v| Some(graph.ty(v)?.dtype));
    let quantises = matches!(node.op.as_str(), "QuantizeLinear" | "DequantizeLinear");
    let typed = dtypes.map(|dtype| match dtype {
        DType::F8E8M0 => 24,
        DType::F4E2M1 => 23,
        DType::I4 | DType::U4 => 21,
        DType::I16 | DType::U16 if quantises => 21,
        _ => OPSET,
    });
    if node.domain_or_default().is_empty() { typed.fold(asks(node), i64::max) } else { OPSET }
}

/// The opset that brought a node's operator or attributes.
fn asks(node: &Node) -> i64 {
    let set = |attr: &str| node.int(attr).unwrap_or(0) != 0;
    match node.op.as_str() {
        "Cast" | "CastLike" if node.attrs.contains_key("round_mode") => 24,
        "QuantizeLinear" | "DequantizeLinear"
            if set("precision") || (set("output_dtype") && node.op.starts_with('D')) =>
        {
            23
        }
        "QuantizeLinear" | "DequantizeLinear" if set("block_size") || set("output_dtype") => 21,
        op => NEWER.iter().find(|(newer, _)| *newer == op).map_or(OPSET, |(_, since)| *since),
    }
}

fn pass(graph: &mut Graph, from: i64) -> Result<(), GraphError> {
    let outputs: HashSet<ValueId> = graph.outputs.iter().copied().collect();
    let read = graph.nodes().flat_map(|(_, n)| n.reads());
    let used: HashSet<ValueId> = outputs.iter().copied().chain(read).collect();
    let old = graph.node_ids();
    let (mut order, mut replaced, mut done) = (Vec::with_capacity(old.len()), vec![], Ok(()));
    for id in old {
        if done.is_ok() && constant_to_initializer(graph, id, &outputs) {
            replaced.push(id);
        } else if done.is_ok() {
            done = canonical_node(graph, id, from, &used, &mut order);
        }
        order.push(id);
    }
    graph.set_order(order);
    graph.remove_nodes(&replaced);
    done
}

fn canonical_node(
    graph: &mut Graph,
    id: NodeId,
    from: i64,
    used: &HashSet<ValueId>,
    order: &mut Vec<NodeId>,
) -> Result<(), GraphError> {
    let (label, op) = (graph.label(id), graph.node(id).full_op());
    if graph.node(id).domain_or_default().is_empty() {
        let mut edit = Edit { graph, id, label: &label, from, used, order };
        rewrite(&mut edit).map_err(|e| GraphError::Node { node: label.clone(), op, reason: e.0 })?;
    }
    if graph.node(id).subgraphs().next().is_some() {
        let captured = graph.node(id).subgraphs().flat_map(|g| g.captures.iter().map(|c| c.outer));
        let types: HashMap<ValueId, _> = captured.map(|v| (v, graph.ty(v).cloned())).collect();
        for sub in graph.node_mut(id).subgraphs_mut() {
            for Capture { inner, outer } in sub.captures.clone() {
                if sub.ty(inner).is_none() {
                    sub.set_ty(inner, types.get(&outer).cloned().flatten());
                }
            }
            pass(sub, from)?;
        }
    }
    infer(graph, id);
    Ok(())
}

/// Learns what can be known now about the types of a node's results; nothing is lost when that is little.
fn infer(graph: &mut Graph, id: NodeId) {
    let known = |o: &ValueId| graph.ty(*o).is_some_and(|t| t.concrete().is_some());
    if !graph.node(id).outputs.iter().flatten().all(known) {
        let _ = infer_results(graph, id);
    }
}

/// Stores what a Constant node holds; the node is to be removed. Graph outputs stay nodes, since many engines refuse
/// constants there.
fn constant_to_initializer(graph: &mut Graph, id: NodeId, outputs: &HashSet<ValueId>) -> bool {
    let node = graph.node(id);
    let stored = node.is("", "Constant").then(|| node.output(0).zip(node.constant_value())).flatten();
    let Some((output, value)) = stored.filter(|(output, _)| !outputs.contains(output)) else { return false };
    graph.set_initializer(output, value);
    graph.mark_literal(output);
    true
}
