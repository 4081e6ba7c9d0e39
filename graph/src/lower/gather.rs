//! The gradient of Gather in standard ops.

use super::Lowered;
use crate::ops::{extents, normalize_axis};
use crate::{Cx, Node, Var, op_bail};
use limbeck_tensor::DType;

/// Most rows whose gradient is computed with a one-hot matrix.
const MAX_ROWS: usize = 1 << 20;

/// Sums the rows of `gy` into zeros of `input_shape` at `indices` along `axis`: a product with the one-hot matrix of
/// the indices.
pub(super) fn gather_grad<'c>(cx: &'c Cx, node: &Node, indices: Var<'c>, gy: Var<'c>) -> Lowered<'c> {
    let input = extents(node.ints("input_shape").unwrap_or_default(), "input_shape")?;
    let axis = normalize_axis(node.int("axis").unwrap_or(0), input.len())?;
    if gy.shape() != [&input[..axis], &indices.shape(), &input[axis + 1..]].concat() {
        op_bail!("input_shape {input:?}, axis {axis}, indices {indices:?} and gradient {gy:?} do not fit");
    }
    if input[axis] > MAX_ROWS {
        op_bail!("a table of {} rows is too large for a one-hot matrix, {MAX_ROWS} are the most", input[axis]);
    }
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
    Ok(sums.reshape(&input))
}
