//! Comparisons, boolean algebra and tests of floats. All outputs are bool.

use super::support::flag_attr;
use super::util::{Types, Values, binary, bool_ty, broadcast2, float_ty, is_number, number_ty, typed};
use super::{EvalCx, InferCx, OpSpec, op};
use crate::types::TensorType;
use crate::{Array, ArrayData, op_bail};
use limbeck_tensor::DType;

pub(super) const OPS: &[OpSpec] = &[
    op("Equal", infer_equal, |cx| compare(cx, |a, b| a == b, |a, b| a == b)),
    op("Less", infer_order, |cx| compare(cx, |a, b| a < b, |a, b| a < b)),
    op("LessOrEqual", infer_order, |cx| compare(cx, |a, b| a <= b, |a, b| a <= b)),
    op("Greater", infer_order, |cx| compare(cx, |a, b| a > b, |a, b| a > b)),
    op("GreaterOrEqual", infer_order, |cx| compare(cx, |a, b| a >= b, |a, b| a >= b)),
    op("And", infer_bools, |cx| compare(cx, |_, _| false, |a, b| a & b != 0)),
    op("Or", infer_bools, |cx| compare(cx, |_, _| false, |a, b| a | b != 0)),
    op("Xor", infer_bools, |cx| compare(cx, |_, _| false, |a, b| a ^ b != 0)),
    op("Not", |cx| Ok(vec![bool_ty(cx, 0)?.clone()]), eval_not),
    op("IsNaN", infer_test, |cx| test(cx, f64::is_nan)),
    op("IsInf", infer_test, eval_is_inf),
];

fn infer_equal(cx: &InferCx) -> Types {
    let ty = binary(cx, |cx, i| typed(cx, i, "a float, integer or bool tensor", |d| is_number(d) || d == DType::Bool))?;
    Ok(vec![TensorType { dtype: DType::Bool, ..ty }])
}

fn infer_order(cx: &InferCx) -> Types {
    Ok(vec![TensorType { dtype: DType::Bool, ..binary(cx, number_ty)? }])
}

fn infer_bools(cx: &InferCx) -> Types {
    Ok(vec![binary(cx, bool_ty)?])
}

fn infer_test(cx: &InferCx) -> Types {
    Ok(vec![TensorType { dtype: DType::Bool, dims: float_ty(cx, 0)?.dims.clone() }])
}

fn compare(cx: &EvalCx, on_float: fn(f64, f64) -> bool, on_int: fn(i64, i64) -> bool) -> Values {
    let (a, b) = (cx.array(0)?, cx.array(1)?);
    let data = match (&a.data, &b.data) {
        (ArrayData::Float(x), ArrayData::Float(y)) => broadcast2(x, y, |x, y| Ok(i64::from(on_float(x, y))))?,
        (ArrayData::Int(x), ArrayData::Int(y)) => broadcast2(x, y, |x, y| Ok(i64::from(on_int(x, y))))?,
        _ => op_bail!("the operands are {} and {}; one dtype is needed", a.dtype, b.dtype),
    };
    Ok(vec![Array::int(DType::Bool, data)])
}

fn eval_not(cx: &EvalCx) -> Values {
    Ok(vec![Array::int(DType::Bool, cx.array(0)?.i()?.mapv(|x| i64::from(x == 0)))])
}

fn test(cx: &EvalCx, f: impl Fn(f64) -> bool) -> Values {
    Ok(vec![Array::int(DType::Bool, cx.array(0)?.f()?.mapv(|x| i64::from(f(x))))])
}

fn eval_is_inf(cx: &EvalCx) -> Values {
    let negative = flag_attr(cx.node, "detect_negative", true)?;
    let positive = flag_attr(cx.node, "detect_positive", true)?;
    test(cx, |x| x.is_infinite() && if x < 0.0 { negative } else { positive })
}
