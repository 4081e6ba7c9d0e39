//! The gradient of Gather in standard ops.

use crate::ops::normalize_axis;
use crate::{Cx, Node, Var};
use limbeck_tensor::DType;

/// Sums the rows of `gy` into zeros of `input_shape` at `indices` along `axis`: a product with the one-hot matrix of
/// the indices.
pub(super) fn gather_grad<'c>(cx: &'c Cx, node: &Node, indices: Var<'c>, gy: Var<'c>) -> Var<'c> {
    let input: Vec<usize> =
        node.ints("input_shape").unwrap_or_default().iter().map(|&n| usize::try_from(n).unwrap_or(0)).collect();
    let axis = match normalize_axis(node.int("axis").unwrap_or(0), input.len()) {
        Ok(axis) => axis,
        Err(e) => return cx.fail_with(e.0),
    };
    let rows = input[axis];
    let picked = indices.len();
    let outer: usize = input[..axis].iter().product();
    let inner: usize = input[axis + 1..].iter().product();
    let flat = indices.cast(DType::I64).reshape(&[picked, 1]);
    let from_end = flat.less(cx.scalar_of(0.0, DType::I64));
    let flat = from_end.select(flat + cx.scalar_of(rows as f64, DType::I64), flat);
    let numbers: Vec<i64> = (0..rows as i64).collect();
    let one_hot = flat.equals(cx.ints(&numbers)).cast(gy.dtype());
    let sums = if outer == 1 {
        one_hot.gemm(gy.reshape(&[picked, inner]), None, true, false)
    } else {
        one_hot.t().matmul(gy.reshape(&[outer, picked, inner]))
    };
    sums.reshape(&input)
}
