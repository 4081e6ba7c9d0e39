//! Post-training quantisation to 8 bits: one calibration record, two profiles. `Server` writes QuantizeLinear and
//! DequantizeLinear pairs that ONNX Runtime fuses; `Tract` writes QLinearConv and MatMulInteger, the forms that tract runs
//! in integers, with float islands between them.

mod accuracy;
mod calibrate;
mod grid;
mod histogram;
mod integer;
mod qdq;

pub use accuracy::{AccuracyReport, Sensitivity, quantise_within};
pub use calibrate::{Calibration, Method, with_outputs};
pub use grid::{Grid, asymmetric_grid, symmetric_grid};

use crate::edit::{fail, sole_reader, weight};
use crate::{ExportError, fold_batch_norm};
use limbeck_graph::{Graph, Node, NodeId, ValueId};
use limbeck_tensor::{DType, Tensor};
use std::collections::BTreeSet;

/// For which engine to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// QuantizeLinear / DequantizeLinear pairs around Conv, Gemm, MatMul and Add.
    Server,
    /// QLinearConv for Conv, MatMulInteger for Gemm and MatMul; everything else in float.
    Tract,
}

/// How to quantise.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantOptions {
    /// For which engine to write.
    pub profile: Profile,
    /// Activations: `U8` (x86) or `I8` (ARM, TensorRT).
    pub activations: DType,
    /// Activations around zero, as TensorRT wants them.
    pub symmetric: bool,
    /// Weights in `[-64, 64]`: for CPUs with AVX2 but without VNNI, whose instructions saturate.
    pub reduce_range: bool,
    /// Names of nodes (or of their first output) that stay in float.
    pub keep_float: Vec<String>,
}

impl Default for QuantOptions {
    fn default() -> QuantOptions {
        QuantOptions {
            profile: Profile::Server,
            activations: DType::U8,
            symmetric: false,
            reduce_range: false,
            keep_float: vec![],
        }
    }
}

/// In which precision one node of a quantised model computes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NodePrecision {
    /// Name of the node, or of its first output.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// True for 8-bit operands and exact integer sums.
    pub integer: bool,
}

/// What quantisation did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct QuantReport {
    /// Nodes that compute in integers.
    pub int_nodes: usize,
    /// Nodes that compute in floating point.
    pub float_nodes: usize,
    /// Every computing node; conversions and rearrangements are not listed.
    pub nodes: Vec<NodePrecision>,
}

/// Quantises a model whose activations ([`observed_values`]) were calibrated. BatchNormalization is folded first. Weights:
/// int8, symmetric, a scale for each output channel; biases: int32.
///
/// # Errors
/// An activation without a range, a dtype other than u8 and s8 for activations, a name in `keep_float` that the model
/// lacks, and a model in which nothing can be quantised.
pub fn quantise(
    graph: &Graph,
    calibration: &Calibration,
    options: &QuantOptions,
) -> Result<(Graph, QuantReport), ExportError> {
    let graph = rewritten(graph, calibration, options)?;
    let nodes = precisions(&graph);
    let int_nodes = nodes.iter().filter(|n| n.integer).count();
    if int_nodes == 0 {
        return fail("quantise", "no Conv, Gemm or MatMul with constant weights could be quantised");
    }
    let report = QuantReport { int_nodes, float_nodes: nodes.len() - int_nodes, nodes };
    Ok((graph, report))
}

fn rewritten(graph: &Graph, calibration: &Calibration, options: &QuantOptions) -> Result<Graph, ExportError> {
    if !matches!(options.activations, DType::U8 | DType::I8) {
        return fail("quantise", format!("activations are uint8 or int8, not {}", options.activations));
    }
    if graph.opset("").is_none_or(|v| v < 13) {
        return fail("quantise", "scales per channel need opset 13: canonicalise the graph first");
    }
    let mut graph = graph.clone();
    fold_batch_norm(&mut graph)?;
    let labels: BTreeSet<String> = graph.nodes().map(|(id, _)| graph.label(id)).collect();
    if let Some(name) = options.keep_float.iter().find(|n| !labels.contains(*n)) {
        return fail("quantise", format!("keep_float names '{name}', which is no node of the model"));
    }
    let cx = Cx { calibration, options };
    match options.profile {
        Profile::Server => qdq::rewrite(&mut graph, &cx)?,
        Profile::Tract => integer::rewrite(&mut graph, &cx)?,
    }
    graph.sort()?;
    graph.remove_dead();
    graph.infer_types()?;
    graph.verify()?;
    Ok(graph)
}

/// Names of the nodes that quantisation would change, in execution order.
fn candidates(graph: &Graph, options: &QuantOptions) -> Result<Vec<String>, ExportError> {
    let mut folded = graph.clone();
    fold_batch_norm(&mut folded)?;
    let adds = options.profile == Profile::Server;
    let chosen = folded.nodes().filter(|(_, n)| has_weights(&folded, n) || adds && is_residual(&folded, n));
    Ok(chosen.map(|(id, _)| folded.label(id)).filter(|name| !options.keep_float.contains(name)).collect())
}

/// What both profiles need.
struct Cx<'a> {
    calibration: &'a Calibration,
    options: &'a QuantOptions,
}

impl Cx<'_> {
    /// The grid of an activation.
    fn grid(&self, name: &str) -> Result<Grid, ExportError> {
        let Some(range) = self.calibration.range(name) else {
            return fail(
                "quantise",
                format!("activation '{name}' was not calibrated; observe all of observed_values()"),
            );
        };
        let limits = grid::limits(self.options.activations, self.options.symmetric);
        Ok(match self.options.symmetric {
            true => symmetric_grid(range.0.abs().max(range.1.abs()), limits),
            false => asymmetric_grid(range, limits),
        })
    }

    fn is_wanted(&self, graph: &Graph, id: NodeId) -> bool {
        !self.options.keep_float.contains(&graph.label(id))
    }

    /// Scale and zero point of a grid as constants.
    fn constants(&self, graph: &mut Graph, name: &str, grid: Grid) -> Result<[ValueId; 2], ExportError> {
        let zero = Tensor::from_f64(self.options.activations, [], &[grid.zero.into()])?;
        let scale = graph.add_initializer(format!("{name}.scale"), Tensor::scalar(grid.scale));
        Ok([scale, graph.add_initializer(format!("{name}.zero"), zero)])
    }
}

/// A Conv, Gemm or MatMul of f32 with constant weights.
fn has_weights(graph: &Graph, node: &Node) -> bool {
    let f32_weight = weight(graph, node.input(1)).is_some_and(|w| w.dtype() == DType::F32);
    let bias = node.input(2).is_none() || weight(graph, node.input(2)).is_some_and(|b| b.dtype() == DType::F32);
    let rank = weight(graph, node.input(1)).map_or(0, |w| w.shape().len());
    match (node.domain_or_default(), node.op.as_str()) {
        ("", "Conv") => f32_weight && bias && rank >= 3,
        ("", "Gemm") => f32_weight && bias && node.int("transA").unwrap_or(0) == 0,
        ("", "MatMul") => f32_weight && rank == 2 && node.input(0).is_some_and(|x| weight(graph, Some(x)).is_none()),
        _ => false,
    }
}

/// A residual Add of two f32 activations of the result's shape. Another Add of activations may be a mask on attention
/// scores, whose -10000 would leave the scores no step to lie on.
fn is_residual(graph: &Graph, node: &Node) -> bool {
    let result = node.output(0).and_then(|y| graph.ty(y)).filter(|t| t.dtype == DType::F32 && t.dims.is_some());
    let activation = |i: usize| node.input(i).filter(|v| graph.constant(*v).is_none()).and_then(|v| graph.ty(v));
    node.is("", "Add") && result.is_some() && activation(0) == result && activation(1) == result
}

/// The node that follows as the only reader when it merely cuts off below zero: Relu, or Clip from 0.
fn cut_off(graph: &Graph, output: ValueId) -> Option<(NodeId, ValueId)> {
    let next = sole_reader(graph, output)?;
    let node = graph.node(next);
    let from_zero = || {
        let low = graph.constant(node.input(1)?)?.to_f64_vec().ok()?;
        Some(low == [0.0] && node.input(2).is_none_or(|m| graph.constant(m).is_some()))
    };
    let cuts = node.is("", "Relu") || node.is("", "Clip") && from_zero() == Some(true);
    Some((next, node.output(0)?)).filter(|_| cuts)
}

/// Names of the activations whose ranges quantisation may need: data operands and results of Conv, Gemm and MatMul with
/// constant weights and of residual Adds (with the Relu behind), of the graph with BatchNormalization folded. Graph
/// inputs are among them: observe the feeds too.
///
/// # Errors
/// As [`fold_batch_norm`].
pub fn observed_values(graph: &Graph) -> Result<Vec<String>, ExportError> {
    let mut folded = graph.clone();
    fold_batch_norm(&mut folded)?;
    let mut names: Vec<String> = vec![];
    for (_, node) in folded.nodes() {
        let (weights, residual) = (has_weights(&folded, node), is_residual(&folded, node));
        if !weights && !residual {
            continue;
        }
        let operands = node.inputs.iter().take(if residual { 2 } else { 1 }).flatten().copied();
        let output = node.output(0).map(|y| cut_off(&folded, y).map_or(y, |(_, y)| y));
        for value in operands.chain(output) {
            let name = folded.name_of(value).to_owned();
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    Ok(names)
}

/// Operators that convert or rearrange and compute nothing.
const MOVES: &[&str] = &[
    "QuantizeLinear",
    "DequantizeLinear",
    "Cast",
    "Constant",
    "ConstantOfShape",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Identity",
    "Shape",
    "Size",
    "Gather",
    "Slice",
    "Split",
    "Concat",
    "Expand",
];
/// Operators that compute in integers by themselves.
const INTEGER: &[&str] = &["QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"];

/// How many nodes compute in integers, and how many in floating point. A Conv, Gemm, MatMul or Add between
/// DequantizeLinear and QuantizeLinear counts as integer: ONNX Runtime runs it so where it has the kernel (u8 activations on
/// x86; signed ones only in part), tract does not.
pub fn node_precisions(graph: &Graph) -> (usize, usize) {
    let nodes = precisions(graph);
    let integers = nodes.iter().filter(|n| n.integer).count();
    (integers, nodes.len() - integers)
}

fn precisions(graph: &Graph) -> Vec<NodePrecision> {
    let is_from = |v: Option<ValueId>| {
        v.and_then(|v| graph.producer(v)).is_some_and(|p| graph.node(p).is("", "DequantizeLinear"))
    };
    let goes_to = |v: ValueId| {
        let last = cut_off(graph, v).map_or(v, |(_, y)| y);
        sole_reader(graph, last).is_some_and(|r| graph.node(r).is("", "QuantizeLinear"))
    };
    let integer = |node: &Node| {
        let pair = matches!(node.op.as_str(), "Conv" | "Gemm" | "MatMul" | "Add")
            && is_from(node.input(0))
            && is_from(node.input(1))
            && node.output(0).is_some_and(goes_to);
        node.domain_or_default().is_empty() && (INTEGER.contains(&node.op.as_str()) || pair)
    };
    graph
        .nodes()
        .filter(|(_, n)| !(n.domain_or_default().is_empty() && MOVES.contains(&n.op.as_str())))
        .map(|(id, n)| NodePrecision { node: graph.label(id), op: n.full_op(), integer: integer(n) })
        .collect()
}
