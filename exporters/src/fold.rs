//! Folds inference BatchNormalization into the layer before it: `k = scale / sqrt(var + eps)`, `w' = k w` along the
//! output channels, `b' = k (b - mean) + bias`.

use crate::ExportError;
use crate::edit::{replace_node, set_weight, sole_reader, split_at, weight};
use limbeck_graph::{Attr, Graph, Node, NodeId};
use limbeck_tensor::Tensor;

/// Folds every inference BatchNormalization that follows a Conv, ConvTranspose or Gemm with constant weights into that
/// layer, when nothing else reads the layer's output. Computed in f64 and rounded to the dtype of the weights. The
/// layer's output takes over the name of the normalised value. Returns how many were folded.
///
/// # Errors
/// Weights that cannot be read as numbers; a graph that breaks its own rules.
pub fn fold_batch_norm(graph: &mut Graph) -> Result<usize, ExportError> {
    let mut folded = 0;
    for id in graph.node_ids() {
        if graph.node(id).is("", "BatchNormalization") && fold(graph, id)?.is_some() {
            folded += 1;
        }
    }
    graph.remove_dead();
    graph.verify()?;
    Ok(folded)
}

/// Axis of the output channels in the weight, and how many channels one group of the weight has.
struct Layout {
    axis: usize,
    groups: usize,
}

fn layout(node: &Node) -> Option<Layout> {
    let groups = usize::try_from(node.int("group").unwrap_or(1)).ok().filter(|n| *n > 0)?;
    match node.op.as_str() {
        _ if !node.domain_or_default().is_empty() => None,
        "Conv" => Some(Layout { axis: 0, groups: 1 }),
        "ConvTranspose" => Some(Layout { axis: 1, groups }),
        "Gemm" => Some(Layout { axis: usize::from(node.int("transB").unwrap_or(0) == 0), groups: 1 }),
        _ => None,
    }
}

fn fold(graph: &mut Graph, bn: NodeId) -> Result<Option<()>, ExportError> {
    let norm = graph.node(bn);
    if norm.int("training_mode").unwrap_or(0) != 0 || norm.outputs.len() != 1 {
        return Ok(None);
    }
    let Some((layer, x)) = norm.input(0).and_then(|x| Some((graph.producer(x)?, x))) else { return Ok(None) };
    let node = graph.node(layer);
    let (Some(layout), true) = (layout(node), sole_reader(graph, x) == Some(bn)) else { return Ok(None) };
    let Some(w) = weight(graph, node.input(1)) else { return Ok(None) };
    let stats: Option<Vec<&Tensor>> = (1..5).map(|i| weight(graph, norm.input(i))).collect();
    let Some([scale, shift, mean, var]) = stats.as_deref() else { return Ok(None) };
    let (scale, shift, mean, var) = (scale.to_f64_vec()?, shift.to_f64_vec()?, mean.to_f64_vec()?, var.to_f64_vec()?);
    let channels = scale.len();
    if [&shift, &mean, &var].iter().any(|v| v.len() != channels) {
        return Ok(None);
    }
    if w.shape().get(layout.axis).is_none_or(|n| n * layout.groups != channels) || w.shape()[0] % layout.groups != 0 {
        return Ok(None);
    }
    let gemm = node.op == "Gemm";
    let beta = if gemm { f64::from(node.float("beta").unwrap_or(1.0)) } else { 1.0 };
    let bias = match (node.input(2), weight(graph, node.input(2))) {
        (None, _) => vec![0.0; channels],
        (_, Some(b)) if b.len() == channels && b.shape().last() == Some(&channels) => b.to_f64_vec()?,
        (_, Some(b)) if b.len() == 1 => vec![b.to_f64_vec()?[0]; channels],
        _ => return Ok(None),
    };

    let eps = f64::from(norm.float("epsilon").unwrap_or(1e-5));
    let k: Vec<f64> = scale.iter().zip(&var).map(|(s, v)| s / (v + eps).sqrt()).collect();
    let (_, extent, inner) = split_at(w.shape(), layout.axis);
    let per_group = w.len() / layout.groups;
    let mut values = w.to_f64_vec()?;
    for (i, v) in values.iter_mut().enumerate() {
        let group = if layout.groups > 1 { i / per_group } else { 0 };
        *v *= k[group * extent + i / inner % extent];
    }
    let folded: Vec<f64> = (0..channels).map(|c| (beta * bias[c] - mean[c]) * k[c] + shift[c]).collect();
    let w = Tensor::from_f64(w.dtype(), w.shape(), &values)?;
    let b = Tensor::from_f64(w.dtype(), [channels], &folded)?;

    let output = norm.outputs.clone();
    let name = graph.label(layer);
    set_weight(graph, layer, 1, &format!("{name}.folded_weight"), w);
    set_weight(graph, layer, 2, &format!("{name}.folded_bias"), b);
    let mut node = graph.node(layer).clone();
    if gemm {
        node.attrs.insert("beta".into(), Attr::Float(1.0));
    }
    node.outputs = output;
    graph.remove_node(bn);
    replace_node(graph, layer, node);
    Ok(Some(()))
}
