//! Values out of nothing: constants, ranges, identities.

use super::support::{
    build, check_rank, const_number, extents, int_attr, ints, known, list_len, one_f64, one_int, remap, reshaped,
    same_dtype, typed_as,
};
use super::util::{Types, Values};
use super::{EvalCx, InferCx, OpSpec, op};
use crate::types::{Dim, TensorType};
use crate::{Array, Attr, Node, OpError, op_bail};
use limbeck_tensor::{DType, Tensor};

pub(super) const OPS: &[OpSpec] = &[
    op("Constant", infer_constant, eval_constant),
    op("ConstantOfShape", infer_constant_of_shape, eval_constant_of_shape),
    op("Range", infer_range, eval_range),
    op("EyeLike", infer_eye_like, eval_eye_like),
];

fn infer_constant(cx: &InferCx) -> Types {
    if let Some(value) = cx.node.constant_value() {
        return Ok(vec![TensorType::of(&value)]);
    }
    match (cx.node.attrs.get("value_string"), cx.node.attrs.get("value_strings")) {
        (Some(Attr::Str(_)), _) => Ok(vec![TensorType::new(DType::String, &[])]),
        (_, Some(Attr::Strs(v))) => Ok(vec![TensorType::new(DType::String, &[v.len()])]),
        _ => op_bail!("there is no value attribute of a known form (sparse values are not supported)"),
    }
}

fn eval_constant(cx: &EvalCx) -> Values {
    let value = cx.node.constant_value().ok_or("constants of this form (strings, sparse) are not evaluated")?;
    Ok(vec![Array::from_tensor(&value)?])
}

/// The `value` of ConstantOfShape; a float 0 when absent.
fn fill_value(node: &Node) -> Result<Tensor, OpError> {
    match node.attrs.get("value") {
        None => Ok(Tensor::scalar(0f32)),
        Some(Attr::Tensor(t)) if t.len() == 1 => Ok(t.clone()),
        Some(_) => op_bail!("attribute 'value' must be a tensor of one element"),
    }
}

fn infer_constant_of_shape(cx: &InferCx) -> Types {
    let dims = match cx.const_ints(0) {
        Some(shape) => Some(known(&extents(&shape, "extent")?)),
        None => list_len(cx, 0)?.map(|n| vec![Dim::Unknown; n]),
    };
    Ok(typed_as(fill_value(cx.node)?.dtype(), dims))
}

fn eval_constant_of_shape(cx: &EvalCx) -> Values {
    let shape = extents(&ints(cx, 0, "shape")?, "extent")?;
    let value = reshaped(&Array::from_tensor(&fill_value(cx.node)?)?, &[])?;
    Ok(vec![remap(&value, &shape, None, |_| Ok(Some(vec![])))?])
}

/// Number of elements of a Range.
fn range_len(start: f64, limit: f64, delta: f64) -> Result<usize, OpError> {
    let n = ((limit - start) / delta).ceil();
    if delta == 0.0 || !n.is_finite() || n > 1e15 {
        op_bail!("a range from {start} to {limit} by {delta} has no reasonable length");
    }
    Ok(n.max(0.0) as usize)
}

fn infer_range(cx: &InferCx) -> Types {
    let dtype = same_dtype(cx, &[0, 1, 2])?;
    let len = match (const_number(cx, 0), const_number(cx, 1), const_number(cx, 2)) {
        (Some(start), Some(limit), Some(delta)) => Dim::Known(range_len(start, limit, delta)?),
        _ => Dim::Unknown,
    };
    Ok(typed_as(dtype, Some(vec![len])))
}

fn eval_range(cx: &EvalCx) -> Values {
    let part = |i, what| one_f64(cx.array(i)?, what);
    let (start, delta) = (part(0, "start")?, part(2, "delta")?);
    let n = range_len(start, part(1, "limit")?, delta)?;
    let first = cx.array(0)?;
    Ok(vec![if first.dtype.is_float() {
        Array::float(first.dtype, build(&[n], |ix| Ok(start + ix[0] as f64 * delta))?)
    } else {
        let (start, delta) = (one_int(first, "start")?, one_int(cx.array(2)?, "delta")?);
        Array::int(first.dtype, build(&[n], |ix| Ok(start.wrapping_add(delta.wrapping_mul(ix[0] as i64))))?)
    }])
}

fn eye_dtype(node: &Node, like: DType) -> Result<DType, OpError> {
    match node.int("dtype") {
        None => Ok(like),
        Some(code) => {
            let known = i32::try_from(code).ok().and_then(DType::from_onnx);
            known.ok_or_else(|| OpError(format!("dtype {code} is not an ONNX element type")))
        }
    }
}

fn infer_eye_like(cx: &InferCx) -> Types {
    let dtype = eye_dtype(cx.node, cx.dtype(0)?)?;
    let Some(x) = cx.dims(0)? else { return Ok(typed_as(dtype, Some(vec![Dim::Unknown; 2]))) };
    check_rank(x, 2, "the input")?;
    Ok(typed_as(dtype, Some(x.to_vec())))
}

fn eval_eye_like(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    check_rank(&known(x.shape()), 2, "the input")?;
    let (dtype, k) = (eye_dtype(cx.node, x.dtype)?, int_attr(cx.node, "k", 0)?);
    let eye = build(x.shape(), |ix| Ok(i64::from(ix[1] as i64 - ix[0] as i64 == k)))?;
    Ok(vec![if dtype.is_float() { Array::float(dtype, eye.mapv(|v| v as f64)) } else { Array::int(dtype, eye) }])
}
