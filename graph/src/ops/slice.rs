//! Cutting and padding: Slice and Pad.

use super::support::{ints, list_len, remap, reshaped, show, str_attr, typed_as};
use super::util::{Types, Values};
use super::{EvalCx, InferCx, OpSpec, normalize_axis, op};
use crate::types::Dim;
use crate::{OpError, op_bail};

pub(super) const OPS: &[OpSpec] = &[op("Slice", infer_slice, eval_slice), op("Pad", infer_pad, eval_pad)];

/// Axes that a list of `count` entries is about: all from the first when not stated.
fn axes_of(axes: Option<&[i64]>, count: usize, rank: usize) -> Result<Vec<usize>, OpError> {
    let Some(axes) = axes else {
        if count > rank {
            op_bail!("{count} entries do not fit a tensor of rank {rank}");
        }
        return Ok((0..count).collect());
    };
    let found = axes.iter().map(|&a| normalize_axis(a, rank)).collect::<Result<Vec<_>, _>>()?;
    if found.len() != count || (1..count).any(|i| found[..i].contains(&found[i])) {
        op_bail!("axes {axes:?} must be {count} different ones");
    }
    Ok(found)
}

/// First index and number of elements that `start..end` with `step` takes of `n`.
fn slice_range(start: i64, end: i64, step: i64, n: usize) -> Result<(i128, usize), OpError> {
    let (n, step) = (n as i128, i128::from(step));
    let from_front = |v: i64| if v < 0 { i128::from(v) + n } else { i128::from(v) };
    let (low, high) = match step {
        0 => op_bail!("a step of 0"),
        1.. => (0, n),
        _ => (-1, n - 1),
    };
    // A negative step cannot start before the first element, where it may end.
    let start = from_front(start).clamp(low.max(0).min(high), high);
    let end = from_front(end).clamp(low, high);
    let len = if step > 0 { (end - start + step - 1) / step } else { (start - end - step - 1) / -step };
    Ok((start, usize::try_from(len.max(0)).map_err(|_| "a slice is too long")?))
}

/// True when the slice takes every element of an axis, whatever its extent.
fn takes_all(start: i64, end: i64, step: i64) -> bool {
    const FAR: i64 = i32::MAX as i64;
    (step == 1 && start == 0 && end >= FAR) || (step == -1 && (start == -1 || start >= FAR) && end <= -FAR)
}

fn infer_slice(cx: &InferCx) -> Types {
    let dtype = cx.dtype(0)?;
    let Some(x) = cx.dims(0)? else { return Ok(typed_as(dtype, None)) };
    let (starts, ends, axes, steps) = (cx.const_ints(1), cx.const_ints(2), cx.const_ints(3), cx.const_ints(4));
    let count =
        [&starts, &ends].into_iter().flatten().map(Vec::len).next().map_or_else(|| list_len(cx, 1), |n| Ok(Some(n)))?;
    let Some(count) = count.filter(|_| axes.is_some() || !cx.has(3)) else {
        return Ok(typed_as(dtype, Some(vec![Dim::Unknown; x.len()])));
    };
    let mut dims = x.to_vec();
    let steps = if cx.has(4) { steps } else { Some(vec![1; count]) };
    for (i, axis) in axes_of(axes.as_deref(), count, x.len())?.into_iter().enumerate() {
        let entry = |list: &Option<Vec<i64>>| match list {
            None => Ok(None),
            Some(v) => v.get(i).copied().map(Some).ok_or_else(|| OpError(format!("{v:?} must have {count} entries"))),
        };
        dims[axis] = match (entry(&starts)?, entry(&ends)?, entry(&steps)?, dims[axis].known()) {
            (Some(start), Some(end), Some(step), Some(n)) => Dim::Known(slice_range(start, end, step, n)?.1),
            (Some(start), Some(end), Some(step), None) if takes_all(start, end, step) => continue,
            _ => Dim::Unknown,
        };
    }
    Ok(typed_as(dtype, Some(dims)))
}

fn eval_slice(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    let (starts, ends) = (ints(cx, 1, "starts")?, ints(cx, 2, "ends")?);
    let steps = cx.ints(4)?.unwrap_or(vec![1; starts.len()]);
    if ends.len() != starts.len() || steps.len() != starts.len() {
        op_bail!("starts {starts:?}, ends {ends:?} and steps {steps:?} must have one length");
    }
    let mut shape = x.shape().to_vec();
    let mut walk = vec![(0, 1); shape.len()];
    for (i, axis) in axes_of(cx.ints(3)?.as_deref(), starts.len(), shape.len())?.into_iter().enumerate() {
        let (first, len) = slice_range(starts[i], ends[i], steps[i], shape[axis])?;
        (shape[axis], walk[axis]) = (len, (first, i128::from(steps[i])));
    }
    let source = |ix: &[usize]| {
        let from = ix.iter().zip(&walk).map(|(&i, (first, step))| usize::try_from(first + i as i128 * step));
        Ok(Some(from.collect::<Result<_, _>>()?))
    };
    Ok(vec![remap(x, &shape, None, source)?])
}

/// Padding before and after every axis of a tensor of `rank`; negative numbers cut.
fn pad_amounts(pads: &[i64], axes: Option<&[i64]>, rank: usize) -> Result<Vec<(i64, i64)>, OpError> {
    let count = pads.len() / 2;
    if !pads.len().is_multiple_of(2) || (axes.is_none() && count != rank) {
        op_bail!("pads {pads:?} must have two entries for each of the axes padded (rank {rank})");
    }
    let mut out = vec![(0, 0); rank];
    for (i, axis) in axes_of(axes, count, rank)?.into_iter().enumerate() {
        out[axis] = (pads[i], pads[count + i]);
    }
    Ok(out)
}

fn padded(n: usize, (before, after): (i64, i64)) -> Result<usize, OpError> {
    let extent = n as i128 + i128::from(before) + i128::from(after);
    usize::try_from(extent).map_err(|_| OpError(format!("pads {before} and {after} leave {extent} of {n} elements")))
}

fn infer_pad(cx: &InferCx) -> Types {
    let dtype = cx.dtype(0)?;
    let Some(x) = cx.dims(0)? else { return Ok(typed_as(dtype, None)) };
    if cx.has(2) && cx.dtype(2)? != dtype {
        op_bail!("the constant is {} and the data {dtype}", cx.dtype(2)?);
    }
    let axes = cx.const_ints(3);
    let Some(pads) = cx.const_ints(1).filter(|_| axes.is_some() || !cx.has(3)) else {
        return Ok(typed_as(dtype, Some(vec![Dim::Unknown; x.len()])));
    };
    let dims = x.iter().zip(pad_amounts(&pads, axes.as_deref(), x.len())?).map(|(dim, amount)| match dim {
        Dim::Known(n) => Ok(Dim::Known(padded(*n, amount).map_err(|e| OpError(format!("{} of {}", e.0, show(x))))?)),
        symbol if amount == (0, 0) => Ok(symbol.clone()),
        _ => Ok(Dim::Unknown),
    });
    Ok(typed_as(dtype, Some(dims.collect::<Result<_, OpError>>()?)))
}

/// Where on an axis of `n` elements position `p`, which may lie outside, takes its element; `None` is the constant.
type Outside = fn(p: i128, n: i128) -> Option<i128>;

fn outside(mode: &str) -> Result<Outside, OpError> {
    Ok(match mode {
        "constant" => |p, n| (0..n).contains(&p).then_some(p),
        "edge" => |p, n| Some(p.clamp(0, n - 1)),
        "wrap" => |p, n| Some(p.rem_euclid(n)),
        "reflect" => |p, n| {
            let folded = p.rem_euclid((2 * (n - 1)).max(1));
            Some(folded.min(2 * (n - 1) - folded))
        },
        other => op_bail!("mode '{other}' is none of constant, reflect, edge, wrap"),
    })
}

fn eval_pad(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    let amounts = pad_amounts(&ints(cx, 1, "pads")?, cx.ints(3)?.as_deref(), x.shape().len())?;
    let mode = str_attr(cx.node, "mode", "constant")?;
    let source_of = outside(mode)?;
    let fill = cx.opt(2).map(|value| reshaped(value, &[])).transpose()?;
    let mut shape = vec![];
    // What negative pads leave of each axis: its first element and its extent. Padding sees only that.
    let mut kept = vec![];
    for (&n, &amount) in x.shape().iter().zip(&amounts) {
        shape.push(padded(n, amount)?);
        let cut = |v: i64| i128::from(v.min(0)).abs();
        let left = n as i128 - cut(amount.0) - cut(amount.1);
        if mode != "constant" && left < 1 && shape.last() != Some(&0) {
            op_bail!("mode '{mode}' has nothing to repeat: shape {:?}, pads {amount:?}", x.shape());
        }
        kept.push((cut(amount.0), left, i128::from(amount.0.max(0))));
    }
    let source = |ix: &[usize]| {
        let from = ix.iter().zip(&kept).map(|(&i, &(first, n, before))| {
            source_of(i as i128 - before, n).and_then(|p| usize::try_from(first + p).ok())
        });
        Ok(from.collect::<Option<Vec<_>>>())
    };
    Ok(vec![remap(x, &shape, fill.as_ref(), source)?])
}
