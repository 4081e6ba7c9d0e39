//! Ops that choose or reorder elements, by comparison and GatherElements.

use super::super::Lowered;
use super::range;
use crate::ops::normalize_axis;
use crate::{Cx, Node, Var, op_bail};
use limbeck_tensor::DType;

/// OneHot by comparison: indices outside of the depth give rows of `off`, which tract panics at, and both values may be
/// computed, which tract refuses.
pub(super) fn one_hot<'c>(cx: &'c Cx, node: &Node, indices: Var<'c>, depth: Var<'c>, values: Var<'c>) -> Lowered<'c> {
    let depth = match super::integers(cx, depth, "the depth")?[..] {
        [depth] if depth > 0 => depth as usize,
        ref other => op_bail!("the depth must be one positive number, it is {other:?}"),
    };
    let rank = indices.rank() + 1;
    let axis = normalize_axis(node.int("axis").unwrap_or(-1), rank)?;
    let indices = indices.cast(DType::I64);
    let size = cx.scalar_of(depth as f64, DType::I64);
    let from_front = indices.less(cx.scalar_of(0.0, DType::I64)).select(indices + size, indices);
    let mut wide = vec![1; rank];
    wide[axis] = depth;
    let hot = from_front.unsqueeze(&[axis as i64]).equals(range(cx, depth).reshape(&wide));
    let value = |i: usize| values.slice(0, i, i + 1).reshape(&[]);
    Ok(hot.select(value(1), value(0)))
}

/// ReverseSequence: element t of a sequence of length l is element l - 1 - t of the data, and t itself from l on.
pub(super) fn reverse_sequence<'c>(cx: &'c Cx, node: &Node, x: Var<'c>, lengths: Var<'c>) -> Lowered<'c> {
    let (time, batch) = (node.int("time_axis").unwrap_or(0), node.int("batch_axis").unwrap_or(1));
    let shape = x.shape();
    if !matches!((time, batch), (0, 1) | (1, 0)) || shape.len() < 2 || lengths.shape() != [shape[batch as usize]] {
        op_bail!("time {time} and batch {batch} must be axes 0 and 1, with a length for each sequence of {shape:?}");
    }
    let along = |axis: i64, v: Var<'c>| {
        let mut wide = vec![1; shape.len()];
        wide[axis as usize] = shape[axis as usize];
        v.reshape(&wide)
    };
    let (t, length) = (along(time, range(cx, shape[time as usize])), along(batch, lengths.cast(DType::I64)));
    let reversed = length - t - cx.scalar_of(1.0, DType::I64);
    let from = t.less(length).select(reversed, t).expand(&shape);
    Ok(cx.op("GatherElements", &[x, from], &[("axis", time.into())]))
}
