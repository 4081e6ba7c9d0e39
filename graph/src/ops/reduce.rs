//! Reductions over axes, positions of extremes, running sums, the largest K.

use super::support::{flag_attr, int_attr};
use super::util::{Types, Values, fold_axes, is_number, map_lanes, max, min, normalize_axes, number_ty, typed};
use super::{EvalCx, InferCx, OpSpec, normalize_axis, op};
use crate::types::{Dim, TensorType};
use crate::{Array, ArrayData, Node, OpError, op_bail};
use limbeck_tensor::DType;
use ndarray::ArrayD;
use std::cmp::Ordering;

pub(super) const OPS: &[OpSpec] = &[
    op("ReduceSum", infer_number, |cx| reduce(cx, |v| v.iter().sum(), |v, _| Ok(sum(v)))),
    op("ReduceMean", infer_number, |cx| reduce(cx, |v| v.iter().sum::<f64>() / v.len() as f64, int_mean)),
    op("ReduceMax", infer_ordered, |cx| reduce(cx, |v| v.iter().copied().fold(f64::NEG_INFINITY, max), int_max)),
    op("ReduceMin", infer_ordered, |cx| reduce(cx, |v| v.iter().copied().fold(f64::INFINITY, min), int_min)),
    op("ReduceProd", infer_number, |cx| reduce(cx, |v| v.iter().product(), |v, _| Ok(product(v)))),
    op("ReduceL1", infer_number, |cx| {
        reduce(cx, |v| v.iter().map(|x| x.abs()).sum(), |v, _| Ok(sum(&each(v, i64::wrapping_abs))))
    }),
    op("ReduceL2", infer_number, |cx| {
        reduce(cx, |v| sum_square(v).sqrt(), |v, _| through(v, |v| sum_square(v).sqrt()))
    }),
    op("ReduceSumSquare", infer_number, |cx| reduce(cx, sum_square, |v, _| Ok(sum(&each(v, |x| x.wrapping_mul(x)))))),
    op("ReduceLogSum", infer_number, |cx| {
        reduce(cx, |v| v.iter().sum::<f64>().ln(), |v, _| through(v, |v| v.iter().sum::<f64>().ln()))
    }),
    op("ReduceLogSumExp", infer_number, |cx| reduce(cx, log_sum_exp, |v, _| through(v, log_sum_exp))),
    op("ArgMax", infer_arg, |cx| arg(cx, Ordering::Greater)),
    op("ArgMin", infer_arg, |cx| arg(cx, Ordering::Less)),
    op("CumSum", infer_cumsum, eval_cumsum),
    op("TopK", infer_topk, eval_topk),
];

fn sum(v: &[i64]) -> i64 {
    v.iter().fold(0, |a, &b| a.wrapping_add(b))
}

fn product(v: &[i64]) -> i64 {
    v.iter().fold(1, |a, &b| a.wrapping_mul(b))
}

fn each(v: &[i64], f: fn(i64) -> i64) -> Vec<i64> {
    v.iter().map(|&x| f(x)).collect()
}

fn sum_square(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum()
}

fn log_sum_exp(v: &[f64]) -> f64 {
    let top = v.iter().copied().fold(f64::NEG_INFINITY, max);
    if top.is_finite() { top + v.iter().map(|x| (x - top).exp()).sum::<f64>().ln() } else { top }
}

/// A reduction of integers whose formula leaves them: computed in f64, truncated.
fn through(v: &[i64], f: fn(&[f64]) -> f64) -> Result<i64, OpError> {
    Ok(f(&v.iter().map(|&x| x as f64).collect::<Vec<_>>()) as i64)
}

fn int_mean(v: &[i64], _: DType) -> Result<i64, OpError> {
    sum(v).checked_div(v.len() as i64).ok_or_else(|| OpError("the mean of no integers is undefined".into()))
}

fn int_max(v: &[i64], dtype: DType) -> Result<i64, OpError> {
    let least = dtype.int_range().map_or(0, |(low, _)| low as i64);
    Ok(v.iter().copied().max().unwrap_or(least))
}

fn int_min(v: &[i64], dtype: DType) -> Result<i64, OpError> {
    let most = dtype.int_range().map_or(1, |(_, high)| high.min(i128::from(i64::MAX)) as i64);
    Ok(v.iter().copied().min().unwrap_or(most))
}

/// The axes to reduce: all of them when none are named, unless `noop_with_empty_axes`.
fn reduced_axes(node: &Node, named: &[i64], rank: usize) -> Result<Vec<usize>, OpError> {
    if named.is_empty() && !flag_attr(node, "noop_with_empty_axes", false)? {
        return Ok((0..rank).collect());
    }
    normalize_axes(named, rank)
}

fn keepdims(node: &Node) -> Result<bool, OpError> {
    flag_attr(node, "keepdims", true)
}

/// Dims without `axes`, or with them as 1.
fn reduced_dims(dims: &[Dim], axes: &[usize], keep: bool) -> Vec<Dim> {
    let kept = dims.iter().enumerate().filter(|(i, _)| keep || !axes.contains(i));
    kept.map(|(i, d)| if axes.contains(&i) { Dim::Known(1) } else { d.clone() }).collect()
}

fn infer_number(cx: &InferCx) -> Types {
    infer_reduce(cx, number_ty(cx, 0)?)
}

fn infer_ordered(cx: &InferCx) -> Types {
    infer_reduce(cx, typed(cx, 0, "a float, integer or bool tensor", |d| is_number(d) || d == DType::Bool)?)
}

fn infer_reduce(cx: &InferCx, x: &TensorType) -> Types {
    let named = if cx.has(1) { cx.const_ints(1) } else { Some(vec![]) };
    let dims = match (&x.dims, named) {
        (None, _) => None,
        (Some(dims), Some(named)) => {
            Some(reduced_dims(dims, &reduced_axes(cx.node, &named, dims.len())?, keepdims(cx.node)?))
        }
        (Some(dims), None) if keepdims(cx.node)? => Some(vec![Dim::Unknown; dims.len()]),
        // How many axes go is known from the extent of the list, unless it may be empty.
        (Some(dims), None) => match cx.inputs.get(1).copied().flatten().and_then(TensorType::concrete).as_deref() {
            Some(&[n]) if n > 0 => dims.len().checked_sub(n).map(|rank| vec![Dim::Unknown; rank]),
            _ => None,
        },
    };
    Ok(vec![TensorType { dtype: x.dtype, dims }])
}

fn reduce(cx: &EvalCx, on_float: fn(&[f64]) -> f64, on_int: fn(&[i64], DType) -> Result<i64, OpError>) -> Values {
    let x = cx.array(0)?;
    let axes = reduced_axes(cx.node, &cx.ints(1)?.unwrap_or_default(), x.shape().len())?;
    let keep = keepdims(cx.node)?;
    let data = match &x.data {
        ArrayData::Float(a) => ArrayData::Float(fold_axes(a, &axes, keep, |v| Ok(on_float(v)))?),
        ArrayData::Int(a) => ArrayData::Int(fold_axes(a, &axes, keep, |v| on_int(v, x.dtype))?),
    };
    Ok(vec![Array { dtype: x.dtype, data }])
}

fn infer_arg(cx: &InferCx) -> Types {
    let x = number_ty(cx, 0)?;
    let axis = int_attr(cx.node, "axis", 0)?;
    let dims = match &x.dims {
        Some(dims) => Some(reduced_dims(dims, &[normalize_axis(axis, dims.len())?], keepdims(cx.node)?)),
        None => None,
    };
    Ok(vec![TensorType { dtype: DType::I64, dims }])
}

/// Order of floats with NaN above all.
fn order(a: &f64, b: &f64) -> Ordering {
    a.partial_cmp(b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Position of the element that compares as `wanted` to all others: the first, or with `last` the last such.
fn position<T>(v: &[T], order: fn(&T, &T) -> Ordering, wanted: Ordering, last: bool) -> Result<i64, OpError> {
    let best = v.iter().enumerate().reduce(|best, next| match order(next.1, best.1) {
        o if o == wanted => next,
        Ordering::Equal if last => next,
        _ => best,
    });
    best.map(|(i, _)| i as i64).ok_or_else(|| OpError("an empty axis has no extreme".into()))
}

fn arg(cx: &EvalCx, wanted: Ordering) -> Values {
    let x = cx.array(0)?;
    let axes = [normalize_axis(int_attr(cx.node, "axis", 0)?, x.shape().len())?];
    let (keep, last) = (keepdims(cx.node)?, flag_attr(cx.node, "select_last_index", false)?);
    let index = match &x.data {
        ArrayData::Float(a) => fold_axes(a, &axes, keep, |v| position(v, order, wanted, last))?,
        ArrayData::Int(a) => fold_axes(a, &axes, keep, |v| position(v, i64::cmp, wanted, last))?,
    };
    Ok(vec![Array::int(DType::I64, index)])
}

fn infer_cumsum(cx: &InferCx) -> Types {
    let x = number_ty(cx, 0)?;
    if let (Some(rank), Some(axis)) = (x.rank(), cx.const_ints(1)) {
        one_axis(&axis, rank)?;
    }
    Ok(vec![x.clone()])
}

fn one_axis(axis: &[i64], rank: usize) -> Result<usize, OpError> {
    match axis {
        &[axis] => normalize_axis(axis, rank),
        other => op_bail!("input 1 must name one axis, not {other:?}"),
    }
}

fn eval_cumsum(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    let axis = cx.ints(1)?.ok_or_else(|| OpError("input 1 (the axis) is missing".into()))?;
    let axes = [one_axis(&axis, x.shape().len())?];
    let exclusive = flag_attr(cx.node, "exclusive", false)?;
    let reverse = flag_attr(cx.node, "reverse", false)?;
    fn run<T: Copy>(v: &mut [T], zero: T, add: fn(T, T) -> T, exclusive: bool, reverse: bool) {
        let mut total = zero;
        for i in 0..v.len() {
            let i = if reverse { v.len() - 1 - i } else { i };
            let before = total;
            total = add(total, v[i]);
            v[i] = if exclusive { before } else { total };
        }
    }
    let data = match &x.data {
        ArrayData::Float(a) => {
            ArrayData::Float(map_lanes(a, &axes, |v| run(v, 0.0, |a, b| a + b, exclusive, reverse))?)
        }
        ArrayData::Int(a) => ArrayData::Int(map_lanes(a, &axes, |v| run(v, 0, i64::wrapping_add, exclusive, reverse))?),
    };
    Ok(vec![Array { dtype: x.dtype, data }])
}

/// The one number of `k`, at most the extent of the axis.
fn top_count(k: &[i64], extent: Option<usize>) -> Result<usize, OpError> {
    match k {
        &[k] if k >= 0 && extent.is_none_or(|n| k as usize <= n) => Ok(k as usize),
        other => op_bail!("K = {other:?} must be one number from 0 to the extent of the axis ({extent:?})"),
    }
}

fn infer_topk(cx: &InferCx) -> Types {
    let x = number_ty(cx, 0)?;
    let mut dims = x.dims.clone();
    if let Some(dims) = &mut dims {
        let axis = normalize_axis(int_attr(cx.node, "axis", -1)?, dims.len())?;
        dims[axis] = match cx.const_ints(1) {
            Some(k) => Dim::Known(top_count(&k, dims[axis].known())?),
            None => Dim::Unknown,
        };
    }
    let index = TensorType { dtype: DType::I64, dims: dims.clone() };
    Ok(vec![TensorType { dtype: x.dtype, dims }, index].into_iter().take(cx.node.outputs.len()).collect())
}

/// Sorted whatever `sorted` says, since any order is right without it; of equals the lower index comes first.
fn eval_topk(cx: &EvalCx) -> Values {
    fn top<T: Copy>(
        a: &ArrayD<T>,
        (axis, k): (usize, usize),
        order: impl Fn(&T, &T) -> Ordering,
    ) -> Result<(ArrayD<T>, ArrayD<i64>), OpError> {
        let ranked = fold_axes(a, &[axis], true, |v| {
            let mut index: Vec<usize> = (0..v.len()).collect();
            index.sort_by(|&i, &j| order(&v[i], &v[j]));
            Ok(index.into_iter().take(k).map(|i| (v[i], i as i64)).collect::<Vec<_>>())
        })?;
        let mut shape = a.shape().to_vec();
        shape[axis] = k;
        // Each lane is a vector at a position of extent 1 along the axis.
        let pick = |at: ndarray::IxDyn| {
            let mut lane = at.clone();
            lane[axis] = 0;
            ranked[lane][at[axis]]
        };
        let picked = ArrayD::from_shape_fn(shape, pick);
        Ok((picked.mapv(|p| p.0), picked.mapv(|p| p.1)))
    }
    let x = cx.array(0)?;
    let axis = normalize_axis(int_attr(cx.node, "axis", -1)?, x.shape().len())?;
    let k = cx.ints(1)?.ok_or_else(|| OpError("input 1 (K) is missing".into()))?;
    let k = top_count(&k, Some(x.shape()[axis]))?;
    let largest = flag_attr(cx.node, "largest", true)?;
    let turn = |o: Ordering| if largest { o.reverse() } else { o };
    let (data, index) = match &x.data {
        ArrayData::Float(a) => {
            let (values, index) = top(a, (axis, k), |a, b| turn(order(a, b)))?;
            (ArrayData::Float(values), index)
        }
        ArrayData::Int(a) => {
            let (values, index) = top(a, (axis, k), |a, b| turn(a.cmp(b)))?;
            (ArrayData::Int(values), index)
        }
    };
    let outputs = vec![Array { dtype: x.dtype, data }, Array::int(DType::I64, index)];
    Ok(outputs.into_iter().take(cx.node.outputs.len()).collect())
}
