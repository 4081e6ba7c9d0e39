//! Nodes that an engine refuses, or answers wrongly, in words that every engine takes. Measured with tract 0.23.9 and ONNX
//! Runtime 1.32; `tests/gradients.rs` and `tests/node_tests` show what would fail without.

mod einsum;
mod one_hot;
mod pad;
mod quant;

use super::Lowered;
use crate::ops::{ConvAttrs, extents};
use crate::{Attr, Cx, Node, OpError, Var, compose, op_bail};
use limbeck_tensor::{DType, Tensor};

/// Composites that an engine lacks altogether.
const LACKING: &[&str] = &[
    "AffineGrid",
    "CenterCropPad",
    "Col2Im",
    "DeformConv",
    "Det",
    "LpPool",
    "MaxUnpool",
    "NegativeLogLikelihoodLoss",
    "ReverseSequence",
    "RoiAlign",
    "SoftmaxCrossEntropyLoss",
    "TensorScatter",
];

/// What stands for a node of ai.onnx, `None` when it can stay as it is. Operands have static shapes.
pub(crate) fn plain<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>]) -> Option<Vec<Var<'c>>> {
    if !node.domain_or_default().is_empty() {
        return None;
    }
    if LACKING.contains(&node.op.as_str()) || is_odd_attention(node) || trains(node) {
        return compose(cx, node, operands);
    }
    Some(vec![reworded(cx, node, operands)?.unwrap_or_else(|e| cx.fail_with(e.0))])
}

/// tract lacks the soft cap, the scores as a result and lengths of padded keys; ONNX Runtime gives other numbers for the
/// first two.
fn is_odd_attention(node: &Node) -> bool {
    let capped = node.float("softcap").is_some_and(|c| c != 0.0);
    node.op == "Attention" && (capped || node.output(3).is_some() || node.input(6).is_some())
}

/// Batch statistics, which tract lacks.
fn trains(node: &Node) -> bool {
    node.op == "BatchNormalization" && node.int("training_mode").unwrap_or(0) != 0
}

/// Single nodes in other words.
fn reworded<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>]) -> Option<Lowered<'c>> {
    let x = |i: usize| operands.get(i).copied().flatten();
    match node.op.as_str() {
        // tract computes with an alpha of 1.
        "Swish" if node.float("alpha").is_some_and(|a| a != 1.0) => {
            let (x, alpha) = (x(0)?, f64::from(node.float("alpha")?));
            Some(Ok(x * (x * alpha).sigmoid()))
        }
        // tract divides by alpha outside of the exponential.
        "Celu" if node.float("alpha").is_some_and(|a| a != 1.0) => {
            let (x, alpha) = (x(0)?, f64::from(node.float("alpha")?));
            Some(Ok(x.relu() + (((x.at_most(0.0) * alpha.recip()).exp() - 1.0) * alpha)))
        }
        // tract wants a matrix on one side.
        "MatMul" if x(0)?.rank() == 1 && x(1)?.rank() == 1 => Some(Ok((x(0)? * x(1)?).sum(&[]))),
        "ConvTranspose" if node.ints("output_shape").is_some() => Some(conv_transpose(cx, node, operands)),
        "Pad" => pad::pad(cx, node, operands).transpose(),
        "OneHot" => Some(one_hot::one_hot(cx, node, x(0)?, x(1)?, x(2)?)),
        "Einsum" => einsum::einsum(cx, node, operands).transpose(),
        "QuantizeLinear" => quant::quantize(cx, node, operands).transpose(),
        "DequantizeLinear" => quant::dequantize(cx, node, operands).transpose(),
        _ => None,
    }
}

/// A constant operand that no feed can replace.
fn constant(cx: &Cx, v: Var<'_>) -> Option<Tensor> {
    cx.graph().settled(v.id())
}

/// Integers of a constant operand.
fn integers(cx: &Cx, v: Var<'_>, what: &str) -> Result<Vec<i64>, OpError> {
    let constant = constant(cx, v).ok_or_else(|| OpError(format!("{what} must be constant; fix or fold it first")))?;
    // A depth may be given as a float.
    Ok(constant.cast(DType::I64)?.to_i64_vec()?)
}

/// The list `start..start + n` as int64 of rank 1.
fn range<'c>(cx: &'c Cx, n: usize) -> Var<'c> {
    cx.ints(&(0..n as i64).collect::<Vec<_>>())
}

/// ConvTranspose with its `output_shape` resolved into pads, which tract overflows at.
fn conv_transpose<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>]) -> Lowered<'c> {
    let [Some(x), Some(w), ..] = *operands else { op_bail!("data or weights are missing") };
    let (xs, ws) = (x.shape(), w.shape());
    let wanted = extents(node.ints("output_shape").unwrap_or_default(), "output_shape")?;
    if xs.len() < 3 || ws.len() != xs.len() {
        op_bail!("data and weights of equal rank, at least 3, are needed, not {xs:?} and {ws:?}");
    }
    // Some exporters list batch and channels too.
    let wanted = &wanted[wanted.len().saturating_sub(xs.len() - 2)..];
    let window = ConvAttrs::of_transposed(node, &xs[2..], &ws[2..])?;
    let missing: Vec<i64> = (0..wanted.len())
        .map(|d| {
            let reach = window.strides[d] * (xs[2 + d] - 1) + (window.kernel[d] - 1) * window.dilations[d] + 1;
            wanted[d] as i64 - (reach as i64 - (window.pads_begin[d] + window.pads_end[d]) as i64)
        })
        .collect();
    let attrs: [(&str, Attr); 6] = [
        ("kernel_shape", window.kernel.clone().into()),
        ("strides", window.strides.clone().into()),
        ("dilations", window.dilations.clone().into()),
        ("pads", [&window.pads_begin[..], &window.pads_end].concat().into()),
        ("output_padding", missing.into()),
        ("group", window.group.into()),
    ];
    let operands: Vec<Var<'c>> = operands.iter().flatten().copied().collect();
    Ok(cx.op("ConvTranspose", &operands, &attrs))
}
