//! OneHot by comparison.

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
