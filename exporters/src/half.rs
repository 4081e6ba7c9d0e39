//! Weights stored in 16 bits: half the file, computed in f32 after a Cast that engines fold at load.

use crate::ExportError;
use crate::edit::fail;
use limbeck_graph::{Graph, Node, NodeId, ValueId};
use limbeck_tensor::{DType, Tensor};
use std::collections::HashSet;

/// What to store in 16 bits.
#[derive(Debug, Clone)]
pub struct HalfOptions {
    /// `F16` or `BF16`.
    pub dtype: DType,
    /// Names of weights, and types of operators whose weights, stay as they are.
    pub keep: Vec<String>,
    /// Weights of fewer elements stay as they are.
    pub min_elements: usize,
}

impl Default for HalfOptions {
    fn default() -> HalfOptions {
        HalfOptions { dtype: DType::F16, keep: vec![], min_elements: 64 }
    }
}

/// What was stored in 16 bits, and what could not be.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct HalfReport {
    /// Names of the converted weights.
    pub converted: Vec<String>,
    /// Weights that stay f32 because a finite value would become infinite: `name: value`.
    pub out_of_range: Vec<String>,
    /// Bytes of all constants before and after.
    pub bytes: (u64, u64),
}

/// Stores f32 weights (constants of rank 2 and more) in 16 bits and casts each once to f32. A weight with a value beyond
/// the 16-bit range stays as it is and is reported; graph inputs, outputs and what only `keep` operators read are left.
///
/// # Errors
/// Another dtype than f16 and bf16; a graph that breaks its own rules.
pub fn to_half(graph: &mut Graph, options: &HalfOptions) -> Result<HalfReport, ExportError> {
    if !matches!(options.dtype, DType::F16 | DType::BF16) {
        return fail("half", format!("weights are stored as f16 or bf16, not as {}", options.dtype));
    }
    let kept = |name: &str| options.keep.iter().any(|k| k == name);
    let mut sensitive: HashSet<ValueId> = graph.inputs.iter().chain(&graph.outputs).copied().collect();
    for (_, node) in graph.nodes().filter(|(_, n)| kept(&n.op) || kept(&n.name)) {
        sensitive.extend(node.reads());
    }
    let suits = |id: ValueId, t: &Tensor| {
        let large = t.shape().len() >= 2 && t.len() >= options.min_elements;
        t.dtype() == DType::F32 && large && !sensitive.contains(&id) && !kept(graph.name_of(id))
    };
    let chosen: Vec<ValueId> = graph.initializers().filter(|(id, t)| suits(*id, t)).map(|(id, _)| id).collect();

    let bytes = |g: &Graph| g.initializers().map(|(_, t)| t.byte_len() as u64).sum::<u64>();
    let mut report = HalfReport { bytes: (bytes(graph), 0), ..HalfReport::default() };
    let first: Option<NodeId> = graph.node_ids().first().copied();
    for id in chosen {
        let (Some(tensor), Some(first)) = (graph.initializer(id).cloned(), first) else { continue };
        let name = graph.name_of(id).to_owned();
        let half = tensor.cast(options.dtype)?;
        let lost = tensor.to_f64_vec()?.into_iter().zip(half.to_f64_vec()?);
        if let Some((value, _)) = lost.into_iter().find(|(v, h)| v.is_finite() && !h.is_finite()) {
            report.out_of_range.push(format!("{name}: {value:e}"));
            continue;
        }
        graph.remove_initializer(id);
        let stored = graph.add_initializer(format!("{name}.{}", options.dtype.name()), half);
        let to = i64::from(DType::F32.to_onnx());
        graph.insert_node_before(first, Node::new("Cast", &[stored], &[id]).with("to", to));
        report.converted.push(name);
    }
    report.bytes.1 = bytes(graph);
    graph.verify()?;
    Ok(report)
}
