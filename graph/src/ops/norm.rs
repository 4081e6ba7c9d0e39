//! Normalisations: batch, layer, instance, group, root mean square, Lp.

use super::support::{flag_attr, float_attr, int_attr, ints_attr};
use super::util::{Types, Values, check_expands, expand, float_ty, fold_axes, map_lanes, normalize_axes, same_dtype};
use super::{EvalCx, InferCx, OpSpec, normalize_axis, op};
use crate::types::{Dim, TensorType};
use crate::{Array, Node, OpError, op_bail};
use limbeck_tensor::DType;
use ndarray::{ArrayD, IxDyn};

pub(super) const OPS: &[OpSpec] = &[
    op("BatchNormalization", infer_batch, eval_batch),
    op("LayerNormalization", infer_layer, eval_layer),
    op("InstanceNormalization", infer_instance, eval_instance),
    op("GroupNormalization", infer_group, eval_group),
    op("RMSNormalization", infer_rms, eval_rms),
    op("LpNormalization", infer_lp, eval_lp),
    op("MeanVarianceNormalization", infer_mean_variance, eval_mean_variance),
    op("LRN", infer_local, eval_local),
];

fn epsilon(node: &Node) -> Result<f64, OpError> {
    float_attr(node, "epsilon", 1e-5)
}

/// Mean and population variance.
fn moments(v: &[f64]) -> (f64, f64) {
    let n = v.len() as f64;
    let mean = v.iter().sum::<f64>() / n;
    (mean, v.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n)
}

/// Zero mean and unit variance.
fn standardize(v: &mut [f64], epsilon: f64) {
    let (mean, variance) = moments(v);
    v.iter_mut().for_each(|x| *x = (*x - mean) / (variance + epsilon).sqrt());
}

/// Dim of the channels: axis 1, or 1 for a tensor of rank 1.
fn channels(x: &TensorType) -> Option<Dim> {
    x.dims.as_ref().map(|dims| dims.get(1).cloned().unwrap_or(Dim::Known(1)))
}

/// Input `i`, a float vector with one element a channel of `x`.
fn channel_ty<'a>(cx: &InferCx<'a>, i: usize, x: &TensorType) -> Result<&'a TensorType, OpError> {
    let ty = float_ty(cx, i)?;
    match (ty.dims.as_deref(), channels(x)) {
        (Some([Dim::Known(n)]), Some(Dim::Known(c))) if *n != c => {
            op_bail!("input {i} is {ty}; {x} has {c} channels")
        }
        (Some(dims), _) if dims.len() != 1 => op_bail!("input {i} is {ty}; one element a channel of {x} is needed"),
        _ => Ok(ty),
    }
}

fn check_rank(x: &TensorType, least: usize) -> Result<(), OpError> {
    match x.rank() {
        Some(rank) if rank < least => op_bail!("{x} needs at least {least} dimensions"),
        _ => Ok(()),
    }
}

/// Input `i`, one element a channel, shaped to broadcast against a tensor of `shape`.
fn per_channel(cx: &EvalCx, i: usize, shape: &[usize]) -> Result<ArrayD<f64>, OpError> {
    let v = cx.array(i)?.f()?;
    let c = shape.get(1).copied().unwrap_or(1);
    if v.shape() != [c] {
        op_bail!("input {i} has shape {:?}; {c} channels need [{c}]", v.shape());
    }
    let mut wide = vec![1; shape.len()];
    if let Some(at) = wide.get_mut(1) {
        *at = c;
    }
    Ok(ArrayD::from_shape_vec(IxDyn(&wide), v.iter().copied().collect())?)
}

fn training(node: &Node) -> Result<bool, OpError> {
    flag_attr(node, "training_mode", false)
}

fn infer_batch(cx: &InferCx) -> Types {
    let x = float_ty(cx, 0)?;
    check_rank(x, 1)?;
    let (scale, bias) = (channel_ty(cx, 1, x)?, channel_ty(cx, 2, x)?);
    let (mean, variance) = (channel_ty(cx, 3, x)?, channel_ty(cx, 4, x)?);
    same_dtype(scale, bias)?;
    same_dtype(mean, variance)?;
    if !training(cx.node)? {
        if cx.node.outputs.iter().skip(1).any(Option::is_some) {
            op_bail!("the running statistics are outputs only with training_mode = 1");
        }
        return Ok(vec![x.clone()]);
    }
    let running = TensorType { dtype: mean.dtype, dims: channels(x).map(|c| vec![c]) };
    Ok(vec![x.clone(), running.clone(), running].into_iter().take(cx.node.outputs.len()).collect())
}

fn eval_batch(cx: &EvalCx) -> Values {
    let (x, epsilon) = (cx.array(0)?, epsilon(cx.node)?);
    let (a, shape) = (x.f()?, x.shape());
    if shape.is_empty() {
        op_bail!("a scalar has no batch");
    }
    let (scale, bias) = (per_channel(cx, 1, shape)?, per_channel(cx, 2, shape)?);
    let normalize = |mean: &ArrayD<f64>, variance: &ArrayD<f64>| {
        let y = (a - mean) / variance.mapv(|v| (v + epsilon).sqrt()) * &scale + &bias;
        Array::float(x.dtype, y)
    };
    let (mean, variance) = (per_channel(cx, 3, shape)?, per_channel(cx, 4, shape)?);
    if !training(cx.node)? {
        return Ok(vec![normalize(&mean, &variance)]);
    }
    let axes: Vec<usize> = (0..shape.len()).filter(|&i| i != 1).collect();
    let batch_mean = fold_axes(a, &axes, true, |v| Ok(moments(v).0))?;
    let batch_variance = fold_axes(a, &axes, true, |v| Ok(moments(v).1))?;
    let momentum = float_attr(cx.node, "momentum", 0.9)?;
    let running = |i: usize, old: &ArrayD<f64>, new: &ArrayD<f64>| -> Result<Array, OpError> {
        let v: Vec<f64> = old.iter().zip(new).map(|(o, n)| o * momentum + n * (1.0 - momentum)).collect();
        Ok(Array::float(cx.array(i)?.dtype, ArrayD::from_shape_vec(IxDyn(&[v.len()]), v)?))
    };
    let y = normalize(&batch_mean, &batch_variance);
    let outputs = vec![y, running(3, &mean, &batch_mean)?, running(4, &variance, &batch_variance)?];
    Ok(outputs.into_iter().take(cx.node.outputs.len()).collect())
}

/// Dtype of stage one, and of the statistics.
fn stash(node: &Node) -> Result<DType, OpError> {
    match int_attr(node, "stash_type", 1)? {
        1 => Ok(DType::F32),
        16 => Ok(DType::BF16),
        other => op_bail!("stash_type = {other} is neither 1 (float32) nor 16 (bfloat16)"),
    }
}

fn first_axis(node: &Node, rank: usize) -> Result<usize, OpError> {
    normalize_axis(int_attr(node, "axis", -1)?, rank)
}

fn infer_layer(cx: &InferCx) -> Types {
    let x = float_ty(cx, 0)?;
    let dtype = stash(cx.node)?;
    for i in (1..3).filter(|&i| i == 1 || cx.has(i)) {
        same_dtype(x, cx.ty(i)?)?;
        check_expands(cx.ty(i)?, x)?;
    }
    let dims = match &x.dims {
        None => None,
        Some(dims) => {
            let axis = first_axis(cx.node, dims.len())?;
            Some(dims.iter().enumerate().map(|(i, d)| if i < axis { d.clone() } else { Dim::Known(1) }).collect())
        }
    };
    let statistic = TensorType { dtype, dims };
    Ok(vec![x.clone(), statistic.clone(), statistic].into_iter().take(cx.node.outputs.len()).collect())
}

fn eval_layer(cx: &EvalCx) -> Values {
    let (x, epsilon, dtype) = (cx.array(0)?, epsilon(cx.node)?, stash(cx.node)?);
    let a = x.f()?;
    let axes: Vec<usize> = (first_axis(cx.node, a.ndim())?..a.ndim()).collect();
    let mean = fold_axes(a, &axes, true, |v| Ok(moments(v).0))?;
    let inverse = fold_axes(a, &axes, true, |v| Ok((moments(v).1 + epsilon).sqrt().recip()))?;
    let mut y = (a - &mean) * &inverse * expand(cx.array(1)?.f()?, a.shape())?;
    if let Some(bias) = cx.opt(2) {
        y += &expand(bias.f()?, a.shape())?;
    }
    let outputs = vec![Array::float(x.dtype, y), Array::float(dtype, mean), Array::float(dtype, inverse)];
    Ok(outputs.into_iter().take(cx.node.outputs.len()).collect())
}

fn infer_instance(cx: &InferCx) -> Types {
    let x = float_ty(cx, 0)?;
    check_rank(x, 3)?;
    same_dtype(x, channel_ty(cx, 1, x)?)?;
    same_dtype(x, channel_ty(cx, 2, x)?)?;
    Ok(vec![x.clone()])
}

fn eval_instance(cx: &EvalCx) -> Values {
    let (x, epsilon) = (cx.array(0)?, epsilon(cx.node)?);
    let (a, shape) = (x.f()?, x.shape());
    if shape.len() < 3 {
        op_bail!("shape {shape:?} needs at least 3 dimensions");
    }
    let (scale, bias) = (per_channel(cx, 1, shape)?, per_channel(cx, 2, shape)?);
    let axes: Vec<usize> = (2..shape.len()).collect();
    let y = map_lanes(a, &axes, |v| standardize(v, epsilon))? * &scale + &bias;
    Ok(vec![Array::float(x.dtype, y)])
}

fn groups(node: &Node, channels: Option<usize>) -> Result<usize, OpError> {
    let groups = int_attr(node, "num_groups", 0)?;
    match usize::try_from(groups) {
        Ok(g) if g > 0 && channels.is_none_or(|c| c.is_multiple_of(g)) => Ok(g),
        _ => op_bail!("attribute 'num_groups' = {groups} must be positive and divide the channels ({channels:?})"),
    }
}

fn infer_group(cx: &InferCx) -> Types {
    let x = float_ty(cx, 0)?;
    check_rank(x, 2)?;
    stash(cx.node)?;
    groups(cx.node, channels(x).and_then(|c| c.known()))?;
    same_dtype(x, channel_ty(cx, 1, x)?)?;
    same_dtype(x, channel_ty(cx, 2, x)?)?;
    Ok(vec![x.clone()])
}

/// Opset 21: scale and bias have one element a channel, not a group.
fn eval_group(cx: &EvalCx) -> Values {
    let (x, epsilon) = (cx.array(0)?, epsilon(cx.node)?);
    let (a, shape) = (x.f()?, x.shape());
    let &[n, c, ..] = shape else { op_bail!("shape {shape:?} needs at least 2 dimensions") };
    let groups = groups(cx.node, Some(c))?;
    let (scale, bias) = (per_channel(cx, 1, shape)?, per_channel(cx, 2, shape)?);
    let lane = c / groups * shape[2..].iter().product::<usize>();
    let grouped = ArrayD::from_shape_vec(IxDyn(&[n, groups, lane]), a.iter().copied().collect())?;
    let plain = map_lanes(&grouped, &[2], |v| standardize(v, epsilon))?;
    let plain = ArrayD::from_shape_vec(IxDyn(shape), plain.into_iter().collect())?;
    Ok(vec![Array::float(x.dtype, plain * &scale + &bias)])
}

fn infer_rms(cx: &InferCx) -> Types {
    let (x, scale) = (float_ty(cx, 0)?, float_ty(cx, 1)?);
    stash(cx.node)?;
    check_expands(scale, x)?;
    if let Some(rank) = x.rank() {
        first_axis(cx.node, rank)?;
    }
    Ok(vec![TensorType { dtype: scale.dtype, dims: x.dims.clone() }])
}

fn eval_rms(cx: &EvalCx) -> Values {
    let (x, scale, epsilon) = (cx.array(0)?, cx.array(1)?, epsilon(cx.node)?);
    let a = x.f()?;
    let axes: Vec<usize> = (first_axis(cx.node, a.ndim())?..a.ndim()).collect();
    let mean_square = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>() / v.len() as f64;
    let y = map_lanes(a, &axes, |v| {
        let rms = (mean_square(v) + epsilon).sqrt();
        v.iter_mut().for_each(|x| *x /= rms);
    })?;
    Ok(vec![Array::float(scale.dtype, y * &expand(scale.f()?, a.shape())?)])
}

/// `p` is 1 or 2.
fn power(node: &Node) -> Result<i64, OpError> {
    match int_attr(node, "p", 2)? {
        p @ (1 | 2) => Ok(p),
        p => op_bail!("p = {p} is neither 1 nor 2"),
    }
}

fn infer_lp(cx: &InferCx) -> Types {
    let x = float_ty(cx, 0)?;
    power(cx.node)?;
    if let Some(rank) = x.rank() {
        first_axis(cx.node, rank)?;
    }
    Ok(vec![x.clone()])
}

fn eval_lp(cx: &EvalCx) -> Values {
    let (x, p) = (cx.array(0)?, power(cx.node)?);
    let axis = first_axis(cx.node, x.shape().len())?;
    let norm = |v: &[f64]| match p {
        1 => v.iter().map(|x| x.abs()).sum::<f64>(),
        _ => v.iter().map(|x| x * x).sum::<f64>().sqrt(),
    };
    let y = map_lanes(x.f()?, &[axis], |v| {
        let norm = norm(v);
        v.iter_mut().for_each(|x| *x = if norm == 0.0 { 0.0 } else { *x / norm });
    })?;
    Ok(vec![Array::float(x.dtype, y)])
}

/// The axes that MeanVarianceNormalization averages over.
fn averaged_axes(node: &Node, rank: usize) -> Result<Vec<usize>, OpError> {
    normalize_axes(ints_attr(node, "axes")?.unwrap_or(&[0, 2, 3]), rank)
}

fn infer_mean_variance(cx: &InferCx) -> Types {
    let x = float_ty(cx, 0)?;
    if let Some(rank) = x.rank() {
        averaged_axes(cx.node, rank)?;
    }
    Ok(vec![x.clone()])
}

fn eval_mean_variance(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    let axes = averaged_axes(cx.node, x.shape().len())?;
    let y = map_lanes(x.f()?, &axes, |v| {
        let (mean, variance) = moments(v);
        v.iter_mut().for_each(|x| *x = (*x - mean) / (variance.sqrt() + 1e-9));
    })?;
    Ok(vec![Array::float(x.dtype, y)])
}

/// How many channels are averaged.
fn local_size(node: &Node) -> Result<usize, OpError> {
    match int_attr(node, "size", 0)? {
        n if n > 0 => Ok(n as usize),
        n => op_bail!("attribute 'size' must be positive, it is {n}"),
    }
}

fn infer_local(cx: &InferCx) -> Types {
    let x = float_ty(cx, 0)?;
    local_size(cx.node)?;
    check_rank(x, 2)?;
    Ok(vec![x.clone()])
}

/// Local response normalisation: over `(bias + alpha / size * squares) ^ beta`, squares being those of `size` channels.
fn eval_local(cx: &EvalCx) -> Values {
    let (x, size) = (cx.array(0)?, local_size(cx.node)?);
    if x.shape().len() < 2 {
        op_bail!("shape {:?} needs at least 2 dimensions", x.shape());
    }
    let alpha = float_attr(cx.node, "alpha", 1e-4)? / size as f64;
    let (beta, bias) = (float_attr(cx.node, "beta", 0.75)?, float_attr(cx.node, "bias", 1.0)?);
    let (before, after) = ((size - 1) / 2, size / 2);
    let y = map_lanes(x.f()?, &[1], |v| {
        let squares: Vec<f64> = v.iter().map(|x| x * x).collect();
        for (c, x) in v.iter_mut().enumerate() {
            let end = c.saturating_add(after).saturating_add(1).min(squares.len());
            let sum: f64 = squares[c.saturating_sub(before)..end].iter().sum();
            *x /= (bias + alpha * sum).powf(beta);
        }
    })?;
    Ok(vec![Array::float(x.dtype, y)])
}
