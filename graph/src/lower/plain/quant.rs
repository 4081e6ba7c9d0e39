//! Quantisation by a scale that is computed or fed, such as a learned one: tract wants constants.

use super::constant;
use crate::ops::normalize_axis;
use crate::{Cx, Node, OpError, Var, op_bail};
use limbeck_tensor::DType;

type Parts<'c> = (Var<'c>, Var<'c>, Option<Var<'c>>);

/// round(x / scale) + zero point, within the range of the type; `None` when the scale is constant.
pub(super) fn quantize<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>]) -> Result<Option<Var<'c>>, OpError> {
    let Some((x, scale, zero)) = computed(cx, node, operands)? else { return Ok(None) };
    let dtype = zero.map_or(DType::U8, Var::dtype);
    let Some((low, high)) = dtype.int_range() else { op_bail!("a zero point of {dtype} has no range") };
    let float = scale.dtype();
    let steps = cx.op("Round", &[x.cast(float) / scale], &[]);
    let moved = zero.map_or(steps, |zero| steps + zero.cast(float));
    // Through int32, since engines differ in what a float beyond a narrow type becomes.
    Ok(Some(moved.at_least(low as f64).at_most(high as f64).cast(DType::I32).cast(dtype)))
}

/// (x - zero point) * scale; `None` when the scale is constant.
pub(super) fn dequantize<'c>(
    cx: &'c Cx,
    node: &Node,
    operands: &[Option<Var<'c>>],
) -> Result<Option<Var<'c>>, OpError> {
    let Some((x, scale, zero)) = computed(cx, node, operands)? else { return Ok(None) };
    let whole = x.cast(DType::I32);
    let moved = zero.map_or(whole, |zero| whole - zero.cast(DType::I32));
    Ok(Some(moved.cast(scale.dtype()) * scale))
}

/// Data, and scale and zero point shaped to broadcast over it, when they are computed and of the plain kind: not blocked,
/// whole numbers, and no types stated besides.
fn computed<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>]) -> Result<Option<Parts<'c>>, OpError> {
    let x = |i: usize| operands.get(i).copied().flatten();
    let (Some(data), Some(scale)) = (x(0), x(1)) else { op_bail!("data or scale is missing") };
    let fixed = constant(cx, scale).is_some() && x(2).is_none_or(|zero| constant(cx, zero).is_some());
    let stated = ["block_size", "output_dtype", "precision"].iter().any(|attr| node.int(attr).unwrap_or(0) != 0);
    if fixed || stated || operands.iter().flatten().any(|v| v.dtype().is_narrow_float()) {
        return Ok(None);
    }
    let (rank, axis) = (data.rank(), node.int("axis").unwrap_or(1));
    let along = |v: Var<'c>| -> Result<Var<'c>, OpError> {
        if v.rank() != 1 || v.len() == 1 {
            return Ok(v);
        }
        let mut wide = vec![1; rank];
        wide[normalize_axis(axis, rank)?] = v.len();
        Ok(v.reshape(&wide))
    };
    Ok(Some((data, along(scale)?, x(2).map(along).transpose()?)))
}
