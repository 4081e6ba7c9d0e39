//! The server profile: QuantizeLinear / DequantizeLinear pairs, a pair for each activation, int8 weights and int32 biases
//! behind DequantizeLinear.

use super::{Cx, cut_off, grid::quantise_weight, has_weights, is_residual};
use crate::ExportError;
use crate::edit::{before, split_at, weight};
use limbeck_graph::{Graph, Node, NodeId, ValueId};
use limbeck_tensor::{DType, Tensor};
use std::collections::BTreeSet;

pub(super) fn rewrite(graph: &mut Graph, cx: &Cx) -> Result<(), ExportError> {
    let chosen: Vec<NodeId> = graph
        .nodes()
        .filter(|(id, n)| (has_weights(graph, n) || is_residual(graph, n)) && cx.is_wanted(graph, *id))
        .map(|(id, _)| id)
        .collect();
    let mut activations: BTreeSet<ValueId> = BTreeSet::new();
    for &id in &chosen {
        let node = graph.node(id);
        activations.extend(node.input(0));
        if is_residual(graph, node) {
            activations.extend(node.input(1));
        }
        activations.extend(node.output(0).map(|y| cut_off(graph, y).map_or(y, |(_, y)| y)));
    }
    for id in chosen {
        if has_weights(graph, graph.node(id)) {
            weights(graph, cx, id)?;
        }
    }
    activations.into_iter().try_for_each(|value| pair(graph, cx, value))
}

/// Puts a pair behind an activation; all readers read what comes out of it.
fn pair(graph: &mut Graph, cx: &Cx, value: ValueId) -> Result<(), ExportError> {
    let name = graph.name_of(value).to_owned();
    let [scale, zero] = cx.constants(graph, &name, cx.grid(&name)?)?;
    let [quantised, back] = ["quantised", "dequantised"].map(|what| graph.add_value(format!("{name}.{what}"), None));
    graph.replace_uses(value, back);
    graph.add_node(Node::new("QuantizeLinear", &[value, scale, zero], &[quantised]));
    graph.add_node(Node::new("DequantizeLinear", &[quantised, scale, zero], &[back]));
    Ok(())
}

fn weights(graph: &mut Graph, cx: &Cx, id: NodeId) -> Result<(), ExportError> {
    let node = graph.node(id).clone();
    let axis = match node.op.as_str() {
        "Conv" => 0,
        "Gemm" => usize::from(node.int("transB").unwrap_or(0) == 0),
        _ => 1,
    };
    let (Some(x), Some(w)) = (node.input(0), weight(graph, node.input(1))) else { return Ok(()) };
    let x_scale = f64::from(cx.grid(graph.name_of(x))?.scale);
    let (_, extent, inner) = split_at(w.shape(), axis);
    let (shape, values) = (w.shape().to_vec(), w.to_f64_vec()?);
    // A bias of another form than one entry a channel, or a scaled one, stays float.
    let unscaled = ["alpha", "beta"].iter().all(|a| node.float(a).unwrap_or(1.0) == 1.0);
    let bias = weight(graph, node.input(2)).filter(|b| unscaled && b.shape() == [extent]);
    let bias = bias.map(Tensor::to_f64_vec).transpose()?;
    let q = quantise_weight(&values, (extent, inner), cx.options.reduce_range, bias.as_deref().map(|b| (b, x_scale)));
    let label = graph.label(id);

    let stored = Tensor::from_f64(DType::I8, shape, &q.values)?;
    let scales = Tensor::from_f64(DType::F32, [extent], &q.scales)?;
    let back = dequantised(graph, id, &format!("{label}.weight"), [stored, scales], axis)?;
    graph.node_mut(id).inputs[1] = Some(back);
    if let Some(bias) = bias {
        let steps: Vec<f64> = q.scales.iter().map(|s| f64::from((s * x_scale) as f32)).collect();
        let stored: Vec<f64> = bias.iter().zip(&steps).map(|(b, s)| b / s).collect();
        let stored = Tensor::from_f64(DType::I32, [extent], &stored)?;
        let scales = Tensor::from_f64(DType::F32, [extent], &steps)?;
        let back = dequantised(graph, id, &format!("{label}.bias"), [stored, scales], 0)?;
        graph.node_mut(id).inputs[2] = Some(back);
    }
    Ok(())
}

/// Stored integers behind a DequantizeLinear along an axis, zero points 0.
fn dequantised(
    graph: &mut Graph,
    at: NodeId,
    name: &str,
    [stored, scales]: [Tensor; 2],
    axis: usize,
) -> Result<ValueId, ExportError> {
    let zeros = Tensor::zeros(stored.dtype(), [scales.len()])?;
    let inputs = [
        graph.add_initializer(format!("{name}.quantised"), stored),
        graph.add_initializer(format!("{name}.scale"), scales),
        graph.add_initializer(format!("{name}.zero"), zeros),
    ];
    let node = Node::new("DequantizeLinear", &inputs, &[]).with("axis", axis);
    Ok(before(graph, at, node, &format!("{name}.dequantised")))
}
