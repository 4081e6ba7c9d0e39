//! Pad with what engines lack: negative pads, `wrap`, a computed value, reflections beyond the data.

use super::{constant, integers};
use crate::ops::normalize_axis;
use crate::{Cx, Node, OpError, Var, op_bail};
use limbeck_tensor::DType;

/// The node in other words: pads cut off by Slice, other modes as a Gather along each axis.
pub(super) fn pad<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>]) -> Result<Option<Var<'c>>, OpError> {
    let x = |i: usize| operands.get(i).copied().flatten();
    let (Some(data), Some(pads)) = (x(0), x(1)) else { op_bail!("data or pads are missing") };
    // Pads that are fed are the engine's business.
    if constant(cx, pads).is_none() || x(3).is_some_and(|axes| constant(cx, axes).is_none()) {
        return Ok(None);
    }
    let mode = node.str("mode").unwrap_or("constant");
    let shape = data.shape();
    let pads = along_axes(cx, shape.len(), pads, x(3))?;
    let reaches = |&((before, after), &n): &((i64, i64), &usize)| mode == "reflect" && before.max(after) >= n as i64;
    let cuts = pads.iter().any(|&(before, after)| before < 0 || after < 0);
    let computed = x(2).is_some_and(|value| constant(cx, value).is_none());
    if !cuts && !computed && mode != "wrap" && !pads.iter().copied().zip(&shape).any(|p| reaches(&p)) {
        return Ok(None);
    }
    let mut y = data;
    for (axis, (&(before, after), &n)) in pads.iter().zip(&shape).enumerate() {
        let (from, to) = (-before.min(0), n as i64 + after.min(0));
        if from > to {
            op_bail!("axis {axis} of {n} elements is cut by {before} and {after}");
        }
        if (from, to) != (0, n as i64) {
            y = y.slice(axis as i64, from as usize, to as usize);
        }
        // Padding sees only what the cuts leave.
        let (left, before, after) = (to - from, before.max(0), after.max(0));
        if mode != "constant" && (before, after) != (0, 0) {
            let places = (-before..left + after).map(|at| place(mode, at, left)).collect::<Result<Vec<_>, _>>()?;
            y = y.gather(cx.ints(&places), axis as i64);
        }
    }
    if mode != "constant" || pads.iter().all(|&(before, after)| before <= 0 && after <= 0) {
        return Ok(Some(y));
    }
    let grown = pads.iter().map(|p| p.0.max(0)).chain(pads.iter().map(|p| p.1.max(0)));
    let grown = cx.ints(&grown.collect::<Vec<_>>());
    let padded = |v: Var<'c>, value| cx.op_n("", "Pad", &[Some(v), Some(grown), value], &[], 1)[0];
    Ok(Some(match x(2).filter(|value| constant(cx, *value).is_none()) {
        None => padded(y, x(2)),
        Some(value) => {
            let inside = padded(cx.full(1.0, DType::F32, &y.shape()), None).cast(DType::Bool);
            inside.select(padded(y, None), value.reshape(&[]))
        }
    }))
}

/// Pads before and after each axis of a tensor of this rank.
fn along_axes(cx: &Cx, rank: usize, pads: Var<'_>, axes: Option<Var<'_>>) -> Result<Vec<(i64, i64)>, OpError> {
    let pads = integers(cx, pads, "pads")?;
    let axes = match axes {
        Some(axes) => integers(cx, axes, "axes")?,
        None => (0..rank as i64).collect(),
    };
    if pads.len() != 2 * axes.len() {
        op_bail!("{} pads do not fit {} axes", pads.len(), axes.len());
    }
    let mut all = vec![(0, 0); rank];
    for (i, &axis) in axes.iter().enumerate() {
        all[normalize_axis(axis, rank)?] = (pads[i], pads[axes.len() + i]);
    }
    Ok(all)
}

/// The element of 0..n that stands at place `at`, which may lie outside.
fn place(mode: &str, at: i64, n: i64) -> Result<i64, OpError> {
    if n == 0 {
        op_bail!("an axis without elements has nothing to repeat");
    }
    Ok(match mode {
        "edge" => at.clamp(0, n - 1),
        "wrap" => at.rem_euclid(n),
        "reflect" if n == 1 => 0,
        "reflect" => {
            let folded = at.rem_euclid(2 * (n - 1));
            folded.min(2 * (n - 1) - folded)
        }
        other => op_bail!("mode '{other}' is not known"),
    })
}
