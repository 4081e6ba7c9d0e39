//! Matrix products and determinants.

use super::support::{flag_attr, float_attr, ints_attr, known, show, unify};
use super::util::{
    Num, Types, Values, check_expands, check_size, expand, float_ty, fold_axes, number_ty, number2, same_dtype,
};
use super::{EvalCx, InferCx, OpSpec, broadcast_dims, broadcast_shapes, op, own};
use crate::types::{Dim, TensorType};
use crate::{Array, ArrayData, Node, OpError, op_bail};
use ndarray::{ArrayD, IxDyn};

pub(super) const OPS: &[OpSpec] = &[
    op("MatMul", infer_matmul, eval_matmul),
    op("Gemm", infer_gemm, eval_gemm),
    own("FusedMatMul", infer_fused, eval_fused),
    op("Det", infer_determinant, eval_determinant),
];

/// An error unless the extents that are summed over can be equal.
fn check_inner(a: &Dim, b: &Dim, shapes: (&[Dim], &[Dim])) -> Result<(), OpError> {
    match (a, b) {
        (Dim::Known(x), Dim::Known(y)) if x != y => {
            op_bail!("shapes {} and {} do not multiply ({x} columns against {y} rows)", show(shapes.0), show(shapes.1))
        }
        _ => Ok(()),
    }
}

/// Dims of a product by numpy's rules: vectors gain an extent of 1 that the result loses, batches broadcast.
pub(super) fn matmul_dims(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, OpError> {
    if a.is_empty() || b.is_empty() {
        op_bail!("shapes {} and {} do not multiply: a scalar is no matrix", show(a), show(b));
    }
    let inner = if b.len() == 1 { &b[0] } else { &b[b.len() - 2] };
    check_inner(&a[a.len() - 1], inner, (a, b))?;
    let mut dims = broadcast_dims(&a[..a.len().max(2) - 2], &b[..b.len().max(2) - 2])?;
    dims.extend((a.len() > 1).then(|| a[a.len() - 2].clone()));
    dims.extend((b.len() > 1).then(|| b[b.len() - 1].clone()));
    Ok(dims)
}

fn infer_matmul(cx: &InferCx) -> Types {
    let (a, b) = (number_ty(cx, 0)?, number_ty(cx, 1)?);
    same_dtype(a, b)?;
    let dims = match (&a.dims, &b.dims) {
        (Some(x), Some(y)) => Some(matmul_dims(x, y)?),
        _ => None,
    };
    Ok(vec![TensorType { dtype: a.dtype, dims }])
}

pub(super) fn matmul<T: Num>(a: &ArrayD<T>, b: &ArrayD<T>) -> Result<ArrayD<T>, OpError> {
    let out: Vec<usize> = matmul_dims(&known(a.shape()), &known(b.shape()))?.iter().filter_map(Dim::known).collect();
    check_size(&out)?;
    let as_matrix =
        |s: &[usize], vector: fn(usize) -> [usize; 2]| if let [n] = *s { vector(n).to_vec() } else { s.to_vec() };
    let (left, right) = (as_matrix(a.shape(), |n| [1, n]), as_matrix(b.shape(), |n| [n, 1]));
    let (left_batch, left_matrix) = left.split_at(left.len() - 2);
    let (right_batch, right_matrix) = right.split_at(right.len() - 2);
    let (m, k, n) = (left_matrix[0], left_matrix[1], right_matrix[1]);
    let batch = broadcast_shapes(left_batch, right_batch)?;
    let spread = |x: &ArrayD<T>, own: &[usize], matrix: &[usize]| -> Result<Vec<T>, OpError> {
        let x = ArrayD::from_shape_vec(IxDyn(own), x.iter().copied().collect())?;
        Ok(expand(&x, &[&batch, matrix].concat())?.into_iter().collect())
    };
    let (a, b) = (spread(a, &left, left_matrix)?, spread(b, &right, right_matrix)?);
    let mut values = vec![T::ZERO; batch.iter().product::<usize>() * m * n];
    for (at, value) in values.iter_mut().enumerate() {
        let (matrix, row, column) = (at / (m * n), at / n % m, at % n);
        for i in 0..k {
            *value = value.add_product(a[(matrix * m + row) * k + i], b[(matrix * k + i) * n + column]);
        }
    }
    Ok(ArrayD::from_shape_vec(IxDyn(&out), values)?)
}

/// Axes in the order that the attribute `name` gives, which is that of `Transpose`; as they are without one.
fn in_order<T: Clone>(node: &Node, name: &str, axes: &[T]) -> Result<Vec<T>, OpError> {
    let Some(order) = ints_attr(node, name)? else { return Ok(axes.to_vec()) };
    if order.len() != axes.len() || !(0..axes.len() as i64).all(|axis| order.contains(&axis)) {
        op_bail!("{name} is {order:?}, which is no order of {} axes", axes.len());
    }
    Ok(order.iter().map(|&axis| axes[axis as usize].clone()).collect())
}

/// The axes of an operand of `FusedMatMul`, in their order and with the last two exchanged where the attributes say so.
fn factor<T: Clone>(node: &Node, [order, flag]: [&str; 2], axes: &[T]) -> Result<Vec<T>, OpError> {
    let mut axes = in_order(node, order, axes)?;
    let rank = axes.len();
    if rank < 2 {
        op_bail!("FusedMatMul multiplies matrices, not tensors of rank {rank}");
    }
    if flag_attr(node, flag, false)? {
        axes.swap(rank - 2, rank - 1);
    }
    Ok(axes)
}

/// Attributes of the operands of `FusedMatMul`.
const FACTORS: [[&str; 2]; 2] = [["permA", "transA"], ["permB", "transB"]];

/// `FusedMatMul`: `MatMul` of two tensors of rank 2 or more. The axes of each are first put in the order `permA` or `permB`,
/// then the last two are exchanged where `transA` or `transB` say so; the batches are then equal, or the second operand has
/// none. The axes of the product are put in the order `permY`.
fn infer_fused(cx: &InferCx) -> Types {
    let (a, b) = (float_ty(cx, 0)?, float_ty(cx, 1)?);
    same_dtype(a, b)?;
    let can_be = |(x, y): (&Dim, &Dim)| x.unify(y).is_some();
    let batches = |x: &[Dim], y: &[Dim]| x.len() == y.len() && x.iter().zip(y).take(x.len().max(2) - 2).all(can_be);
    let dims = match (&a.dims, &b.dims) {
        (Some(x), Some(y)) => {
            let (x, y) = (factor(cx.node, FACTORS[0], x)?, factor(cx.node, FACTORS[1], y)?);
            if y.len() != 2 && !batches(&x, &y) {
                op_bail!("the batches of {} and {} differ", show(&x), show(&y));
            }
            Some(in_order(cx.node, "permY", &matmul_dims(&x, &y)?)?)
        }
        _ => None,
    };
    Ok(vec![TensorType { dtype: a.dtype, dims }])
}

fn eval_fused(cx: &EvalCx) -> Values {
    let operand = |i: usize| {
        let data = cx.array(i)?.f()?.clone();
        let axes: Vec<usize> = (0..data.ndim()).collect();
        Ok::<_, OpError>(data.permuted_axes(factor(cx.node, FACTORS[i], &axes)?))
    };
    let product = matmul(&operand(0)?, &operand(1)?)?;
    let axes: Vec<usize> = (0..product.ndim()).collect();
    let product = product.permuted_axes(in_order(cx.node, "permY", &axes)?);
    Ok(vec![Array::float(cx.array(0)?.dtype, product)])
}

/// Product of two arrays of one dtype.
fn product(a: &Array, b: &Array) -> Result<Array, OpError> {
    let data = match (&a.data, &b.data) {
        (ArrayData::Float(x), ArrayData::Float(y)) => ArrayData::Float(matmul(x, y)?),
        (ArrayData::Int(x), ArrayData::Int(y)) => ArrayData::Int(matmul(x, y)?),
        _ => op_bail!("the operands are {} and {}; one dtype is needed", a.dtype, b.dtype),
    };
    Ok(Array { dtype: a.dtype, data })
}

fn eval_matmul(cx: &EvalCx) -> Values {
    Ok(vec![product(cx.array(0)?, cx.array(1)?)?])
}

fn infer_gemm(cx: &InferCx) -> Types {
    let (a, b) = (number_ty(cx, 0)?, number_ty(cx, 1)?);
    same_dtype(a, b)?;
    let matrix = |ty: &TensorType, swap: bool| match ty.dims.as_deref() {
        None => Ok([Dim::Unknown, Dim::Unknown]),
        Some([r, c]) if swap => Ok([c.clone(), r.clone()]),
        Some([r, c]) => Ok([r.clone(), c.clone()]),
        Some(_) => op_bail!("{ty} is not a matrix"),
    };
    let (x, y) = (matrix(a, flag_attr(cx.node, "transA", false)?)?, matrix(b, flag_attr(cx.node, "transB", false)?)?);
    check_inner(&x[1], &y[0], (&x, &y))?;
    let [m, _] = x;
    let [_, n] = y;
    let out = TensorType::with_dims(a.dtype, vec![m, n]);
    if cx.has(2) {
        let c = cx.ty(2)?;
        same_dtype(a, c)?;
        check_expands(c, &out)?;
    }
    Ok(vec![out])
}

/// `alpha * A' * B' + beta * C`; integers are scaled in f64 and truncated.
fn eval_gemm(cx: &EvalCx) -> Values {
    let matrix = |i: usize, name: &str| -> Result<Array, OpError> {
        let mut x = cx.array(i)?.clone();
        if x.shape().len() != 2 {
            op_bail!("input {i} of shape {:?} is not a matrix", x.shape());
        }
        if flag_attr(cx.node, name, false)? {
            x.data = match x.data {
                ArrayData::Float(a) => ArrayData::Float(a.reversed_axes()),
                ArrayData::Int(a) => ArrayData::Int(a.reversed_axes()),
            };
        }
        Ok(x)
    };
    let (alpha, beta) = (float_attr(cx.node, "alpha", 1.0)?, float_attr(cx.node, "beta", 1.0)?);
    let plain = product(&matrix(0, "transA")?, &matrix(1, "transB")?)?;
    let zero = match &plain.data {
        ArrayData::Float(_) => Array::float(plain.dtype, ArrayD::zeros(IxDyn(&[]))),
        ArrayData::Int(_) => Array::int(plain.dtype, ArrayD::zeros(IxDyn(&[]))),
    };
    let c = cx.opt(2).unwrap_or(&zero);
    let on_int = |p: i64, c: i64| {
        Ok(if alpha == 1.0 && beta == 1.0 { p.wrapping_add(c) } else { (alpha * p as f64 + beta * c as f64) as i64 })
    };
    let out = number2(&plain, c, |p, c| alpha * p + beta * c, on_int)?;
    if out.shape() != plain.shape() {
        op_bail!("C of shape {:?} cannot be broadcast to {:?}", c.shape(), plain.shape());
    }
    Ok(vec![out])
}

fn infer_determinant(cx: &InferCx) -> Types {
    let x = float_ty(cx, 0)?;
    let dims = match x.dims.as_deref() {
        None => None,
        Some([batch @ .., rows, columns]) => {
            unify(rows, columns, "rows and columns")?;
            Some(batch.to_vec())
        }
        Some(_) => op_bail!("{x} holds no matrix"),
    };
    Ok(vec![TensorType { dtype: x.dtype, dims }])
}

fn eval_determinant(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    let rank = x.shape().len();
    let &[.., rows, columns] = x.shape() else { op_bail!("shape {:?} holds no matrix", x.shape()) };
    if rows != columns {
        op_bail!("matrices of {rows} rows and {columns} columns have no determinant");
    }
    let determinants = fold_axes(x.f()?, &[rank - 2, rank - 1], false, |m| Ok(determinant(m.to_vec(), rows)))?;
    Ok(vec![Array::float(x.dtype, determinants)])
}

/// By elimination, each pivot the greatest of its column.
fn determinant(mut m: Vec<f64>, n: usize) -> f64 {
    let mut product = 1.0;
    for k in 0..n {
        let pivot = (k..n).max_by(|&a, &b| m[a * n + k].abs().total_cmp(&m[b * n + k].abs())).unwrap_or(k);
        if m[pivot * n + k] == 0.0 {
            return 0.0;
        }
        if pivot != k {
            (0..n).for_each(|c| m.swap(pivot * n + c, k * n + c));
            product = -product;
        }
        product *= m[k * n + k];
        for row in k + 1..n {
            let factor = m[row * n + k] / m[k * n + k];
            (k..n).for_each(|c| m[row * n + c] -= factor * m[k * n + c]);
        }
    }
    product
}
