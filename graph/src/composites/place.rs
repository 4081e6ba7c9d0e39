//! Operators that take, cut or put elements at places: MaxUnpool, CenterCropPad, ReverseSequence, Col2Im, Compress,
//! Unique, TensorScatter.

use super::{Composite, constant, extent};
use crate::ops::normalize_axis;
use crate::{Attr, Var};
use limbeck_tensor::DType;

/// Largest extent that is made.
const LONGEST: usize = 1 << 24;

/// MaxUnpool: the values of `[N, C, ...]` at their flat indices in zeros; an `output_shape` (constant) larger than what
/// the window gives adds zeros behind.
pub(super) fn max_unpool<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let (x, index) = (op.x(0)?, op.x(1)?);
    let shape = x.shape();
    let axes = shape.len().saturating_sub(2);
    let window = op.node.ints("kernel_shape").filter(|k| k.len() == axes).ok_or("kernel_shape does not fit")?;
    let (strides, pads) = (op.list("strides", axes, 1)?, op.list("pads", 2 * axes, 0)?);
    let mut inner = shape[..2.min(shape.len())].to_vec();
    for i in 0..axes {
        let n = (shape[i + 2] as i64 - 1) * strides[i] - pads[i] - pads[axes + i] + window[i];
        inner.push(extent(n, LONGEST, "an extent of the result")?);
    }
    let size = inner.iter().try_fold(1usize, |a, &n| a.checked_mul(n)).ok_or("the result is too large")?;
    let zeros = op.cx.full(0.0, x.dtype(), &[size]);
    let flat = |v: Var<'c>| v.reshape(&[v.len()]);
    let y = op.cx.op("ScatterElements", &[zeros, flat(index), flat(x)], &[]).reshape(&inner);
    let Some(wanted) = op.ints_of(2)? else { return Ok(vec![y]) };
    let more = inner.iter().zip(&wanted).map(|(&have, &want)| want - have as i64);
    if wanted.len() != inner.len() || more.clone().any(|n| n < 0) {
        return Err(format!("output_shape {wanted:?} does not hold {inner:?}"));
    }
    let pads: Vec<i64> = vec![0; inner.len()].into_iter().chain(more).collect();
    Ok(vec![op.cx.op("Pad", &[y, op.cx.ints(&pads)], &[])])
}

/// CenterCropPad to a constant shape.
pub(super) fn center_crop_pad<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let mut x = op.x(0)?;
    let shape = x.shape();
    let wanted = op.ints_of(1)?.unwrap_or_default();
    let axes = op.node.ints("axes").map_or_else(|| (0..shape.len() as i64).collect(), <[i64]>::to_vec);
    if axes.len() != wanted.len() {
        return Err(format!("shape {wanted:?} does not fit the axes {axes:?}"));
    }
    let mut pads = vec![0; 2 * shape.len()];
    for (&axis, &want) in axes.iter().zip(&wanted) {
        let axis = normalize_axis(axis, shape.len()).map_err(|e| e.0)?;
        let (have, want) = (shape[axis], extent(want, LONGEST, "an extent of the result")?);
        if want < have {
            let start = (have - want) / 2;
            x = x.slice(axis as i64, start, start + want);
        } else {
            let more = (want - have) as i64;
            (pads[axis], pads[shape.len() + axis]) = (more / 2, more - more / 2);
        }
    }
    Ok(vec![if pads.iter().all(|&p| p == 0) { x } else { op.cx.op("Pad", &[x, op.cx.ints(&pads)], &[]) }])
}

/// ReverseSequence: the first steps of each row, as many as its length says, in reverse order.
pub(super) fn reverse_sequence<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let (x, lengths) = (op.x(0)?, op.x(1)?);
    match (op.int("batch_axis", 1), op.int("time_axis", 0)) {
        (1, 0) => Ok(vec![turned(x, lengths, 0)]),
        (0, 1) => Ok(vec![turned(x, lengths, 1)]),
        (batch, time) => Err(format!("batch_axis {batch} and time_axis {time} must be 0 and 1")),
    }
}

/// `x`, whose first two axes are `time` and the batch, with the first `lengths` `[batch]` steps of each row reversed.
pub(super) fn turned<'c>(x: Var<'c>, lengths: Var<'c>, time: usize) -> Var<'c> {
    let shape = x.shape();
    let along = |v: Var<'c>, axis: usize| {
        let mut wide = vec![1; shape.len()];
        wide[axis] = v.len();
        v.cast(DType::I64).reshape(&wide)
    };
    let steps: Vec<i64> = (0..x.dim(time as i64) as i64).collect();
    let (step, length) = (along(x.cx().ints(&steps), time), along(lengths, 1 - time));
    let from = length.greater(step).select(length - step - x.cx().scalar_of(1.0, DType::I64), step);
    x.cx().op("GatherElements", &[x, from.expand(&shape)], &[("axis", (time as i64).into())])
}

/// Col2Im: a transposed convolution whose filters put one column each at its place in the block.
pub(super) fn col2im<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let x = op.x(0)?;
    let (image, block) = (op.ints_of(1)?.ok_or("input 1 is missing")?, op.ints_of(2)?.ok_or("input 2 is missing")?);
    let axes = image.len();
    let (strides, dilations) = (op.list("strides", axes, 1)?, op.list("dilations", axes, 1)?);
    let pads = op.list("pads", 2 * axes, 0)?;
    let &[batch, columns, _] = &x.shape()[..] else { return Err(format!("data {:?} must have rank 3", x.shape())) };
    let positive = |v: &[i64]| v.len() == axes && v.iter().all(|&n| (1..=LONGEST as i64).contains(&n));
    if ![&image, &block, &strides, &dilations].into_iter().all(|v| positive(v)) {
        return Err(format!("image {image:?}, block {block:?}, strides {strides:?}, dilations {dilations:?}"));
    }
    let taps = block.iter().try_fold(1usize, |a, &n| a.checked_mul(n as usize)).filter(|&n| n <= columns);
    let taps = taps.filter(|&n| columns.is_multiple_of(n)).ok_or("the block does not divide the columns")?;
    let (mut blocks, mut rest) = (vec![batch, columns], vec![]);
    for i in 0..axes {
        let room = image[i] + pads[i] + pads[axes + i] - dilations[i] * (block[i] - 1) - 1;
        blocks.push(extent(room, LONGEST, "the room for blocks")? / strides[i] as usize + 1);
        rest.push(room % strides[i]);
    }
    let filters: Vec<f64> = (0..columns * taps).map(|i| f64::from(i / taps % taps == i % taps)).collect();
    let shape: Vec<usize> = [columns, 1].into_iter().chain(block.iter().map(|&n| n as usize)).collect();
    let attrs = [
        ("group", ((columns / taps) as i64).into()),
        ("strides", strides.into()),
        ("dilations", dilations.into()),
        ("pads", pads.into()),
        ("output_padding", rest.into()),
    ];
    let y = op.cx.op("ConvTranspose", &[x.reshape(&blocks), constant(x, &shape, &filters)], &attrs);
    Ok(vec![y])
}

/// Compress by a constant condition: the elements along the axis (or of all, flat) where it holds.
pub(super) fn compress<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let x = op.x(0)?;
    let holds = op.numbers(1)?.unwrap_or_default();
    let kept: Vec<i64> = holds.iter().zip(0..).filter(|(v, _)| **v != 0.0).map(|(_, i)| i).collect();
    let (x, axis) = op.node.int("axis").map_or_else(|| (x.reshape(&[x.len()]), 0), |axis| (x, axis));
    if holds.len() > x.dim(axis) {
        return Err(format!("{} conditions are more than {} elements", holds.len(), x.dim(axis)));
    }
    Ok(vec![x.gather(op.cx.ints(&kept), axis)])
}

/// Unique: the values where each kind of element (or slice along the axis) occurs first, which its second result says.
/// How many there are depends on the data.
pub(super) fn unique<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let x = op.x(0)?;
    let attrs: Vec<(&str, Attr)> = op.node.attrs.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    let mut found = op.cx.op_n("", "Unique", &[Some(x.stop_gradient())], &attrs, 4);
    let (x, axis) = op.node.int("axis").map_or_else(|| (x.reshape(&[x.len()]), 0), |axis| (x, axis));
    let axis = normalize_axis(axis, x.rank()).map_err(|e| e.0)?;
    let mut swapped: Vec<usize> = (0..x.rank()).collect();
    swapped.swap(0, axis);
    let turned = |v: Var<'c>| if axis == 0 { v } else { v.transpose(&swapped) };
    found[0] = turned(op.cx.op("GatherND", &[turned(x), found[1].unsqueeze(&[1])], &[]));
    Ok(found)
}

/// TensorScatter: the updates put into the cache from each row's index on; `circular` goes on at the start.
pub(super) fn tensor_scatter<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let (cache, update) = (op.x(0)?, op.x(1)?);
    let (room, shape) = (cache.shape(), update.shape());
    let axis = normalize_axis(op.int("axis", -2), shape.len()).map_err(|e| e.0)?;
    if axis == 0 || room.len() != shape.len() || shape[axis] > room[axis] {
        return Err(format!("updates {shape:?} do not fit the cache {room:?} along axis {axis}"));
    }
    let wide = |axis: usize| {
        let mut wide = vec![1; shape.len()];
        wide[axis] = shape[axis];
        wide
    };
    let steps: Vec<i64> = (0..shape[axis] as i64).collect();
    let mut at = op.cx.ints(&steps).reshape(&wide(axis));
    if let Some(start) = op.opt(2) {
        at = at + start.cast(DType::I64).reshape(&wide(0));
    }
    match op.text("mode", "linear") {
        "linear" => {}
        "circular" => at = op.cx.op("Mod", &[at, op.cx.scalar_of(room[axis] as f64, DType::I64)], &[]),
        other => return Err(format!("mode '{other}' is neither linear nor circular")),
    }
    let attrs = [("axis", (axis as i64).into())];
    Ok(vec![op.cx.op("ScatterElements", &[cache, at.expand(&shape), update], &attrs)])
}
