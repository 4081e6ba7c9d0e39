//! Bits of integers.

use super::support::str_attr;
use super::util::{Types, Values, binary, broadcast2, typed};
use super::{EvalCx, InferCx, OpSpec, op};
use crate::types::TensorType;
use crate::{Array, OpError, op_bail};
use limbeck_tensor::DType;

pub(super) const OPS: &[OpSpec] = &[
    op("BitwiseAnd", infer, |cx| pairs(cx, |a, b| a & b)),
    op("BitwiseOr", infer, |cx| pairs(cx, |a, b| a | b)),
    op("BitwiseXor", infer, |cx| pairs(cx, |a, b| a ^ b)),
    op("BitwiseNot", |cx| Ok(vec![int_ty(cx, 0)?.clone()]), eval_not),
    op("BitShift", infer_shift, eval_shift),
];

fn int_ty<'a>(cx: &InferCx<'a>, i: usize) -> Result<&'a TensorType, OpError> {
    typed(cx, i, "an integer tensor", DType::is_int)
}

fn infer(cx: &InferCx) -> Types {
    Ok(vec![binary(cx, int_ty)?])
}

fn pairs(cx: &EvalCx, f: fn(i64, i64) -> i64) -> Values {
    let (a, b) = (cx.array(0)?, cx.array(1)?);
    Ok(vec![Array::int(a.dtype, broadcast2(a.i()?, b.i()?, |a, b| Ok(f(a, b)))?)])
}

fn eval_not(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    if x.dtype == DType::U64 {
        op_bail!("the complement of uint64 is beyond what the reference evaluator holds");
    }
    Ok(vec![Array::int(x.dtype, x.i()?.mapv(|v| !v))])
}

fn unsigned(cx: &InferCx, i: usize) -> Result<(), OpError> {
    typed(cx, i, "an unsigned integer tensor", |d| d.int_range().is_some_and(|(low, _)| low == 0)).map(|_| ())
}

/// True when bits move to the left.
fn leftwards(node: &crate::Node) -> Result<bool, OpError> {
    match str_attr(node, "direction", "")? {
        "LEFT" => Ok(true),
        "RIGHT" => Ok(false),
        other => op_bail!("direction '{other}' is neither LEFT nor RIGHT"),
    }
}

fn infer_shift(cx: &InferCx) -> Types {
    leftwards(cx.node)?;
    unsigned(cx, 0)?;
    infer(cx)
}

fn eval_shift(cx: &EvalCx) -> Values {
    let (a, b, left) = (cx.array(0)?, cx.array(1)?, leftwards(cx.node)?);
    let (bits, most) = (a.dtype.bits() as u32, a.dtype.int_range().map_or(0, |(_, high)| high));
    let shifted = broadcast2(a.i()?, b.i()?, |x, by| {
        // Bits that are pushed out are lost, all of them from the type's width on.
        let Some(by) = u32::try_from(by).ok().filter(|by| *by < bits) else { return Ok(0) };
        let x = i128::from(x);
        let moved = if left { (x << by) & most } else { x >> by };
        i64::try_from(moved).map_err(|_| OpError(format!("{moved} is beyond what the reference evaluator holds")))
    })?;
    Ok(vec![Array::int(a.dtype, shifted)])
}
