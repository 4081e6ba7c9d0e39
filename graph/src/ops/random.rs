//! Draws of a random generator. Types alone are known: what is drawn is the engine's affair.

use super::support::{check_rank, extent, extents, float_attr, int_attr, ints_attr, known, typed_as};
use super::util::{Types, Values, float_ty};
use super::{EvalCx, InferCx, OpSpec, op};
use crate::types::Dim;
use crate::{Node, OpError, op_bail};
use limbeck_tensor::DType;

pub(super) const OPS: &[OpSpec] = &[
    op("Bernoulli", infer_bernoulli, refuse),
    op("Multinomial", infer_multinomial, refuse),
    op("RandomNormal", infer_shaped, refuse),
    op("RandomUniform", infer_shaped, refuse),
    op("RandomNormalLike", infer_like, refuse),
    op("RandomUniformLike", infer_like, refuse),
];

fn refuse(cx: &EvalCx) -> Values {
    op_bail!("{} draws from a generator of the engine; make what it draws an input of the graph", cx.node.op)
}

/// The dtype that a node states.
fn dtype(node: &Node, default: DType) -> Result<DType, OpError> {
    float_attr(node, "seed", 0.0)?;
    let code = int_attr(node, "dtype", default.to_onnx().into())?;
    let dtype = i32::try_from(code).ok().and_then(DType::from_onnx);
    dtype.ok_or_else(|| OpError(format!("dtype {code} is not an ONNX element type")))
}

fn infer_bernoulli(cx: &InferCx) -> Types {
    let x = float_ty(cx, 0)?;
    Ok(typed_as(dtype(cx.node, x.dtype)?, x.dims.clone()))
}

fn infer_like(cx: &InferCx) -> Types {
    Ok(typed_as(dtype(cx.node, cx.dtype(0)?)?, cx.dims(0)?.map(<[Dim]>::to_vec)))
}

fn infer_shaped(cx: &InferCx) -> Types {
    let Some(shape) = ints_attr(cx.node, "shape")? else { op_bail!("attribute 'shape' is missing") };
    Ok(typed_as(dtype(cx.node, DType::F32)?, Some(known(&extents(shape, "extent")?))))
}

fn infer_multinomial(cx: &InferCx) -> Types {
    float_ty(cx, 0)?;
    let batch = match cx.dims(0)? {
        Some(x) => {
            check_rank(x, 2, "the logarithms of probabilities")?;
            x[0].clone()
        }
        None => Dim::Unknown,
    };
    let samples = extent(int_attr(cx.node, "sample_size", 1)?, "sample_size")?;
    Ok(typed_as(dtype(cx.node, DType::I32)?, Some(vec![batch, Dim::Known(samples)])))
}
