//! The tract profile: integer operators with explicit borders. A Conv becomes QLinearConv, a Gemm or MatMul becomes
//! MatMulInteger whose exact int32 sums are scaled to float, so that no range of its results limits them.

use super::{Cx, cut_off, grid::quantise_weight, has_weights};
use crate::ExportError;
use crate::edit::{before, replace_node, split_at, weight};
use limbeck_graph::{Graph, Node, NodeId, ValueId};
use limbeck_tensor::{DType, Tensor};
use std::collections::HashMap;

/// An activation on its grid: integers, scale and zero point.
#[derive(Clone, Copy)]
struct Quantised {
    value: ValueId,
    scale: ValueId,
    zero: ValueId,
    step: f64,
}

/// The quantised form of float values that have one.
type Known = HashMap<ValueId, Quantised>;

/// Rearrangements that work on integers as they do on floats.
const MOVES: &[&str] = &["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity"];

pub(super) fn rewrite(graph: &mut Graph, cx: &Cx) -> Result<(), ExportError> {
    let mut known = Known::new();
    for id in graph.node_ids() {
        // A Relu that was fused is gone by the time it is reached.
        if !graph.node_ids().contains(&id) {
            continue;
        }
        let node = graph.node(id).clone();
        let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { continue };
        if has_weights(graph, &node) && cx.is_wanted(graph, id) {
            match node.op.as_str() {
                "Conv" => conv(graph, cx, &mut known, id, &node)?,
                _ => product(graph, cx, &mut known, id, &node)?,
            }
        } else if MOVES.contains(&node.op.as_str())
            && node.domain_or_default().is_empty()
            && let Some(&q) = known.get(&x)
            && !graph.outputs.contains(&y)
        {
            let moved = graph.add_value(format!("{}.quantised", graph.name_of(y)), None);
            let mut copy = node;
            copy.inputs[0] = Some(q.value);
            copy.outputs = vec![Some(moved)];
            let copy = graph.insert_node_before(id, copy);
            // Its encoded form still names the float values.
            graph.node_mut(copy);
            crate::edit::infer(graph, copy);
            known.insert(y, Quantised { value: moved, ..q });
        }
    }
    Ok(())
}

/// The quantised form of `x`, made before `at` when there is none yet.
fn quantised(graph: &mut Graph, cx: &Cx, known: &mut Known, at: NodeId, x: ValueId) -> Result<Quantised, ExportError> {
    if let Some(&q) = known.get(&x) {
        return Ok(q);
    }
    let name = graph.name_of(x).to_owned();
    let grid = cx.grid(&name)?;
    let [scale, zero] = cx.constants(graph, &name, grid)?;
    let value = before(graph, at, Node::new("QuantizeLinear", &[x, scale, zero], &[]), &format!("{name}.quantised"));
    let q = Quantised { value, scale, zero, step: grid.scale.into() };
    known.insert(x, q);
    Ok(q)
}

fn conv(graph: &mut Graph, cx: &Cx, known: &mut Known, id: NodeId, node: &Node) -> Result<(), ExportError> {
    let (Some(x), Some(mut y), Some(w)) = (node.input(0), node.output(0), weight(graph, node.input(1)).cloned()) else {
        return Ok(());
    };
    let bias = weight(graph, node.input(2)).map(Tensor::to_f64_vec).transpose()?;
    let x = quantised(graph, cx, known, id, x)?;
    let (_, extent, inner) = split_at(w.shape(), 0);
    let with_bias = bias.as_deref().map(|b| (b, x.step));
    let q = quantise_weight(&w.to_f64_vec()?, (extent, inner), cx.options.reduce_range, with_bias);
    let label = graph.label(id);

    // What a Relu behind cuts off needs no place on the grid; and it costs nothing when the grid begins at zero.
    let cut = cut_off(graph, y);
    let grid = cx.grid(graph.name_of(cut.map_or(y, |(_, cut)| cut)))?;
    if let Some((relu, cut)) = cut
        && f64::from(grid.zero) == super::grid::limits(cx.options.activations, cx.options.symmetric).0
    {
        graph.remove_node(relu);
        y = cut;
    }
    let name = graph.name_of(y).to_owned();
    let [scale, zero] = cx.constants(graph, &name, grid)?;
    let stored = Tensor::from_f64(DType::I8, w.shape(), &q.values)?;
    let mut inputs = vec![
        x.value,
        x.scale,
        x.zero,
        graph.add_initializer(format!("{label}.weight.quantised"), stored),
        graph.add_initializer(format!("{label}.weight.scale"), Tensor::from_f64(DType::F32, [extent], &q.scales)?),
        graph.add_initializer(format!("{label}.weight.zero"), Tensor::zeros(DType::I8, [extent])?),
        scale,
        zero,
    ];
    if let Some(bias) = bias {
        let stored: Vec<f64> = bias.iter().zip(&q.scales).map(|(b, s)| b / (s * x.step)).collect();
        let stored = Tensor::from_f64(DType::I32, [extent], &stored)?;
        inputs.push(graph.add_initializer(format!("{label}.bias.quantised"), stored));
    }
    let mut integer = Node::new("QLinearConv", &inputs, &[]);
    integer.name = node.name.clone();
    integer.attrs = node.attrs.clone();
    let value = before(graph, id, integer, &format!("{name}.quantised"));
    replace_node(graph, id, Node::new("DequantizeLinear", &[value, scale, zero], &[y]));
    known.insert(y, Quantised { value, scale, zero, step: grid.scale.into() });
    Ok(())
}

/// `y = s_x s_w (x w) + bias`, the product in int32.
fn product(graph: &mut Graph, cx: &Cx, known: &mut Known, id: NodeId, node: &Node) -> Result<(), ExportError> {
    let (Some(x), Some(y), Some(w)) = (node.input(0), node.output(0), weight(graph, node.input(1)).cloned()) else {
        return Ok(());
    };
    let x = quantised(graph, cx, known, id, x)?;
    let transposed = node.op == "Gemm" && node.int("transB").unwrap_or(0) != 0;
    let (rows, columns) = (w.shape()[usize::from(transposed)], w.shape()[usize::from(!transposed)]);
    let values = w.to_f64_vec()?;
    let at = |k: usize, n: usize| if transposed { n * rows + k } else { k * columns + n };
    let alpha = f64::from(node.float("alpha").unwrap_or(1.0));
    let values: Vec<f64> = (0..rows * columns).map(|i| alpha * values[at(i / columns, i % columns)]).collect();
    let q = quantise_weight(&values, (columns, 1), cx.options.reduce_range, None);
    let label = graph.label(id);

    let stored = Tensor::from_f64(DType::I8, [rows, columns], &q.values)?;
    let stored = graph.add_initializer(format!("{label}.weight.quantised"), stored);
    let steps: Vec<f64> = q.scales.iter().map(|s| s * x.step).collect();
    let steps = graph.add_initializer(format!("{label}.scale"), Tensor::from_f64(DType::F32, [columns], &steps)?);
    let mut integer = Node::new("MatMulInteger", &[x.value, stored, x.zero], &[]);
    integer.name = node.name.clone();
    let sums = before(graph, id, integer, &format!("{label}.sums"));
    let to = i64::from(DType::F32.to_onnx());
    let sums = before(graph, id, Node::new("Cast", &[sums], &[]).with("to", to), &format!("{label}.float_sums"));
    let last = match node.input(2).filter(|_| node.op == "Gemm") {
        None => Node::new("Mul", &[sums, steps], &[y]),
        Some(bias) => {
            let beta = f64::from(node.float("beta").unwrap_or(1.0));
            let b = weight(graph, Some(bias)).cloned().filter(|_| beta != 1.0);
            let bias = match b {
                None => bias,
                Some(b) => {
                    let scaled: Vec<f64> = b.to_f64_vec()?.into_iter().map(|v| beta * v).collect();
                    graph.add_initializer(format!("{label}.bias"), Tensor::from_f64(DType::F32, b.shape(), &scaled)?)
                }
            };
            let scaled = before(graph, id, Node::new("Mul", &[sums, steps], &[]), &format!("{label}.product"));
            Node::new("Add", &[scaled, bias], &[y])
        }
    };
    replace_node(graph, id, last);
    Ok(())
}
