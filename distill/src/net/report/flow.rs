//! Where gradients go: operators without one between parameters and outputs, places where they end, parameters that none
//! reaches, and whether the gradient can be built.

use super::weights::list;
use super::{Facts, Finding, Remark, Severity, remark};
use crate::{DistillError, Net, ParamSet, Training};
use limbeck_autodiff::{Differentiate, NON_DIFFERENTIABLE, has_gradient};
use limbeck_graph::{Cx, Graph, Node, NodeId, ValueId, Var};
use limbeck_tensor::DType;
use std::collections::{BTreeMap, HashSet};

/// Fused operators of ONNX Runtime's optimiser and what they stand for.
const FUSED: &[(&str, &str)] = &[
    ("Attention", "projections, scaled dot products and softmax"),
    ("BiasGelu", "Add and Gelu"),
    ("BiasSplitGelu", "Add, Split and Gelu"),
    ("EmbedLayerNormalization", "embeddings and LayerNormalization"),
    ("FastGelu", "Gelu by tanh"),
    ("FusedConv", "Conv and an activation"),
    ("FusedGemm", "Gemm and an activation"),
    ("FusedMatMul", "MatMul with transposed operands"),
    ("Gelu", "Gelu"),
    ("GroupNorm", "GroupNormalization"),
    ("MultiHeadAttention", "scaled dot products and softmax"),
    ("NhwcConv", "Conv on channels last"),
    ("QuickGelu", "x sigmoid(1.702 x)"),
    ("RotaryEmbedding", "rotary positions"),
    ("SimplifiedLayerNormalization", "RMSNormalization"),
    ("SkipLayerNormalization", "Add and LayerNormalization"),
    ("SkipSimplifiedLayerNormalization", "Add and RMSNormalization"),
];

/// Operators that compute with quantised integers.
const INTEGER: &[&str] = &["QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"];

/// Operators that end gradients as a matter of course: shapes, comparisons, logic.
const ORDINARY: &[&str] = &[
    "Shape",
    "Size",
    "Equal",
    "Less",
    "LessOrEqual",
    "Greater",
    "GreaterOrEqual",
    "And",
    "Or",
    "Xor",
    "Not",
    "IsNaN",
    "IsInf",
];

/// Extent of a batch whose size the graph leaves open.
const BATCH: usize = 2;

/// What a node does to a gradient.
#[derive(PartialEq)]
enum Passage {
    /// Lets it through.
    Through,
    /// Ends it.
    Ends,
    /// Has no rule: differentiation refuses.
    None,
}

fn passage(node: &Node) -> Passage {
    let standard = node.domain_or_default().is_empty();
    let listed = NON_DIFFERENTIABLE.iter().any(|(op, why)| standard && *op == node.op && why.ends());
    if listed || node.is(limbeck_graph::LIMBECK, "StopGradient") {
        Passage::Ends
    } else if has_gradient(node) || node.subgraphs().next().is_some() {
        Passage::Through
    } else {
        Passage::None
    }
}

/// Floats, and what QuantizeLinear makes of them.
fn carries(graph: &Graph, value: ValueId) -> bool {
    let quantised = |id| graph.node(id).is("", "QuantizeLinear");
    graph.ty(value).is_none_or(|t| t.dtype.is_float()) || graph.producer(value).is_some_and(quantised)
}

pub(super) fn remarks(facts: &Facts<'_>, to: &mut Vec<Remark>) {
    let graph = facts.graph;
    if facts.parameters.is_empty() {
        let floats = graph.initializers().filter(|(_, t)| t.dtype().is_float()).count();
        let message = format!("there is no parameter: {floats} stored float constants, none of them a weight");
        let remedy = "Net::with_parameters makes constants parameters";
        remark(to, Severity::Blocker, Finding::Nothing, vec![graph.name.clone()], message, remedy);
    }
    let outputs: Vec<ValueId> = graph.outputs.iter().copied().filter(|&o| carries(graph, o)).collect();
    if outputs.is_empty() {
        let names = graph.outputs.iter().map(|&o| facts.name(o)).collect();
        let message = "no output is a float: there is nothing to derive a loss from";
        let remedy = "make the value before the decision (logits) an output";
        remark(to, Severity::Blocker, Finding::Nothing, names, message, remedy);
    }
    // Forwards: what depends on parameters through floats. Backwards: what a gradient of the outputs comes back to.
    let mut active: HashSet<ValueId> = facts.parameters.iter().copied().collect();
    let mut needed: HashSet<ValueId> = outputs.iter().copied().collect();
    let is_active = |active: &HashSet<ValueId>, node: &Node| node.reads().iter().any(|v| active.contains(v));
    for (_, node) in graph.nodes().filter(|(_, n)| passage(n) != Passage::Ends) {
        if is_active(&active, node) {
            active.extend(node.outputs.iter().flatten().copied().filter(|&o| carries(graph, o)));
        }
    }
    for id in graph.node_ids().into_iter().rev() {
        let node = graph.node(id);
        if passage(node) != Passage::Ends && node.outputs.iter().flatten().any(|o| needed.contains(o)) {
            needed.extend(node.reads().into_iter().filter(|&v| carries(graph, v)));
        }
    }
    let on_path = |node: &Node| is_active(&active, node) && node.outputs.iter().flatten().any(|o| needed.contains(o));
    refused(facts, on_path, to);
    ended(facts, &active, to);
    unreached(facts, &needed, to);
}

/// Nodes on the path from a parameter to an output for which there is no rule, by operator.
fn refused(facts: &Facts<'_>, on_path: impl Fn(&Node) -> bool, to: &mut Vec<Remark>) {
    let mut by_op: BTreeMap<String, Vec<NodeId>> = BTreeMap::new();
    for (id, node) in facts.graph.nodes().filter(|(_, n)| passage(n) == Passage::None && on_path(n)) {
        by_op.entry(node.full_op()).or_default().push(id);
    }
    for (op, nodes) in by_op {
        let node = facts.graph.node(nodes[0]);
        let fused = FUSED.iter().find(|(name, _)| node.is("com.microsoft", name));
        let integer = node.domain_or_default() == "com.microsoft" && node.op.contains("Q")
            || node.op.ends_with("NBits")
            || INTEGER.contains(&node.op.as_str());
        let (message, remedy) = match fused {
            Some((_, parts)) => (
                format!("{op} is a fused form of {parts} that ONNX Runtime's optimiser made; it has no gradient"),
                "take the model from before that optimisation, or optimise at the basic level only",
            ),
            None if integer => (
                format!("{op} computes with quantised integers; it has no gradient"),
                "train the float model and quantise it afterwards (`limbeck export quantise`)",
            ),
            None => (
                format!("{op} has no gradient rule, and lies between a parameter and an output"),
                "freeze the parameters before it, or export the model without it",
            ),
        };
        let names = nodes.into_iter().map(|id| facts.node(id)).collect();
        remark(to, Severity::Blocker, Finding::NoGradient, names, message, remedy);
    }
}

/// Nodes that take what depends on parameters and give what carries no gradient.
fn ended(facts: &Facts<'_>, active: &HashSet<ValueId>, to: &mut Vec<Remark>) {
    let graph = facts.graph;
    let ends = |node: &Node| {
        let ordinary = node.domain_or_default().is_empty() && ORDINARY.contains(&node.op.as_str());
        let integers = |o: &ValueId| !carries(graph, *o) && graph.ty(*o).is_some_and(|t| t.dtype != DType::Bool);
        let all = passage(node) == Passage::Ends || node.outputs.iter().flatten().all(integers);
        !ordinary && all && node.inputs.iter().flatten().any(|v| active.contains(v) && carries(graph, *v))
    };
    let message = "the gradient ends here: the results are integers, or constant between steps. What only leads here is \
                   not trained by it";
    remark(to, Severity::Note, Finding::GradientEnds, facts.nodes(ends), message, "");
}

fn unreached(facts: &Facts<'_>, needed: &HashSet<ValueId>, to: &mut Vec<Remark>) {
    let graph = facts.graph;
    let mut read: HashSet<ValueId> = graph.outputs.iter().copied().collect();
    for id in graph.node_ids().into_iter().rev() {
        let node = graph.node(id);
        if node.outputs.iter().flatten().any(|o| read.contains(o)) {
            read.extend(node.reads());
        }
    }
    let dead = facts.parameters(|id| !read.contains(&id));
    let remedy = "leave them out (Net::with_constants), or give an output that depends on them";
    remark(to, Severity::Warning, Finding::Unreached, dead, "no output depends on these parameters", remedy);
    let cut = facts.parameters(|id| read.contains(&id) && !needed.contains(&id));
    let message = "no gradient reaches these parameters: all ways to the outputs end before";
    let remedy = "see where gradients end; leave them out (Net::with_constants), or export the model without that step";
    remark(to, Severity::Warning, Finding::Unreached, cut, message, remedy);
}

/// Builds the gradient of the mean square of all float outputs once.
pub(super) fn trial(net: &Net, to: &mut Vec<Remark>) {
    let graph = &net.graph;
    let (mut shapes, mut open, mut assumed) = (vec![], vec![], vec![]);
    for &input in graph.inputs.iter().filter(|&&i| graph.initializer(i).is_none()) {
        let name = graph.name_of(input).to_owned();
        let known = graph.ty(input).and_then(|ty| {
            let dims = ty.dims.as_ref()?.iter().enumerate();
            let extents = dims.map(|(axis, dim)| dim.known().or((axis == 0).then_some(BATCH)));
            Some((ty, extents.collect::<Option<Vec<usize>>>()?))
        });
        match known {
            None => open.push(name),
            Some((ty, shape)) => {
                if ty.concrete().is_none() {
                    assumed.push(name.clone());
                }
                shapes.push((name, ty.dtype, shape));
            }
        }
    }
    let (note, warning) = (Severity::Note, Severity::Warning);
    if !open.is_empty() {
        let message = "the gradient was not tried: these inputs have dims without a number beside the first";
        remark(to, note, Finding::Trial, open, message, "give them numbers (--dim NAME=N)");
        return;
    }
    if let Err(error) = gradient(net, &shapes) {
        let severity = if assumed.is_empty() { Severity::Blocker } else { warning };
        let assumption = match assumed.is_empty() {
            true => String::new(),
            false => format!(" with {BATCH} as the first extent of {}", list(&assumed)),
        };
        let message = format!("the gradient cannot be built{assumption}: {error}");
        let remedy = "mend what the message names; `limbeck import` settles dims, branches and shape arithmetic";
        remark(to, severity, Finding::Trial, vec![graph.name.clone()], message, remedy);
    }
}

fn gradient(net: &Net, inputs: &[(String, DType, Vec<usize>)]) -> Result<(), DistillError> {
    let cx = &Cx::new("trial", DType::F32);
    let inputs: Vec<Var<'_>> = inputs.iter().map(|(name, dtype, shape)| cx.input(name, *dtype, shape)).collect();
    let mut vars = BTreeMap::new();
    for (name, tensor) in net.weights() {
        let var = cx.initializer(&format!("weights/{name}"), tensor.cast(cx.float())?);
        vars.insert(name, var);
    }
    let params = ParamSet::new("weights", vars);
    let noise = |name: &str, shape: &[usize]| Ok(cx.input(name, cx.float(), shape));
    let training = Training { noise: Some(&noise), ..Training::default() };
    let outputs = net.apply_training(cx, &inputs, &params, &training)?;
    let mut loss = cx.scalar(0.0);
    for &output in &net.graph.outputs {
        let value = outputs.get(net.graph.name_of(output))?;
        if value.dtype().is_float() {
            loss = loss + value.cast(cx.float()).square().mean(&[]);
        }
    }
    let wrt: Vec<Var<'_>> = net.parameters().iter().filter_map(|name| params.get(name)).collect();
    cx.grad(loss, &wrt)?;
    Ok(())
}
