//! Gradients of picking elements: by index, by range, with padding.
//!
//! `ai.limbeck::GatherGrad(indices, gy; axis, input_shape)` adds the rows of `gy` where Gather took them from.

use super::elementwise::one;
use super::{Grads, Rule, RuleFn};
use crate::extents::{expanded, known, zeros};
use limbeck_graph::ops::normalize_axis;
use limbeck_graph::{Attr, LIMBECK, Var};

pub(super) const RULES: &[(&str, RuleFn)] = &[
    ("Gather", |r| one(gathered(r.x(0), r.x(1), r.g(), r.int("axis", 0))?)),
    ("ai.limbeck::GatherGrad", |r| Ok(vec![None, Some(r.g().gather(r.x(0), r.int("axis", 0)))])),
    ("Slice", slice),
    ("Pad", pad),
    ("GatherElements", |r| one(scatter_add(r.x(0), r.x(1), r.g(), r.int("axis", 0)))),
    ("ScatterElements", |r| scatter(r, "GatherElements", "ScatterElements")),
    ("GatherND", |r| {
        let indices = unbatched(r.x(1), r.int("batch_dims", 0))?;
        one(r.cx.op("ScatterND", &[zeros(r.x(0)), indices, r.g()], &[("reduction", "add".into())]))
    }),
    ("ScatterND", |r| scatter(r, "GatherND", "ScatterND")),
    ("OneHot", |r| Ok(vec![None, None, r.wants(2).then(|| hot_and_cold(r))])),
    // The number of its results depends on the operands, so that they cannot be traced; the end only counts.
    ("Range", |r| match r.wants(0) || r.wants(2) {
        true => Err("start and delta have no gradient; write it as start + delta * a constant Range".into()),
        false => Ok(vec![]),
    }),
];

/// Longest axis that a gradient of padding counts through.
const LONGEST_PADDED: i128 = 1 << 24;

/// Gradient of OneHot's `values`, `[off, on]`.
fn hot_and_cold<'c>(r: &Rule<'_, 'c>) -> Var<'c> {
    let (g, values) = (r.g(), r.x(2));
    let unit = r.cx.ints(&[0, 1]).cast(values.dtype());
    let hot = r.cx.op("OneHot", &[r.x(0), r.x(1), unit], &[("axis", r.int("axis", -1).into())]);
    let on = (g * hot).sum(&[]);
    (g.sum(&[]) - on).unsqueeze(&[0]).concat(&[on.unsqueeze(&[0])], 0)
}

/// The gradient of taking slices of `x` at `indices` along `axis`.
fn gathered<'c>(x: Var<'c>, indices: Var<'c>, g: Var<'c>, axis: i64) -> Result<Var<'c>, String> {
    if let Some(shape) = known(x) {
        return Ok(gather_grad(indices, g, axis, &shape));
    }
    // The axis in front, as ScatterND wants it, in `x` and in `g`, whose indices have several axes.
    let (rank, many) = (x.rank(), indices.rank());
    let axis = normalize_axis(axis, rank).map_err(|e| e.0)?;
    let places = axis..axis + many;
    let order: Vec<usize> = places.clone().chain((0..g.rank()).filter(|i| !places.contains(i))).collect();
    let front: Vec<usize> = [axis].into_iter().chain((0..rank).filter(|&i| i != axis)).collect();
    let back: Vec<usize> = (0..rank).map(|i| front.iter().position(|&f| f == i).unwrap_or(i)).collect();
    let turned = |v: Var<'c>, order: &[usize]| if axis == 0 { v } else { v.transpose(order) };
    let operands = [turned(zeros(x), &front), indices.unsqueeze(&[-1]), turned(g, &order)];
    Ok(turned(x.cx().op("ScatterND", &operands, &[("reduction", "add".into())]), &back))
}

fn gather_grad<'c>(indices: Var<'c>, g: Var<'c>, axis: i64, shape: &[usize]) -> Var<'c> {
    let attrs = [("axis", axis.into()), ("input_shape", shape.to_vec().into())];
    g.cx().op_n(LIMBECK, "GatherGrad", &[Some(indices), Some(g)], &attrs, 1)[0]
}

/// Zeros of the shape of `like`, to which `g` is added where `indices` point along `axis`.
pub(super) fn scatter_add<'c>(like: Var<'c>, indices: Var<'c>, g: Var<'c>, axis: i64) -> Var<'c> {
    g.cx().op("ScatterElements", &[zeros(like), indices, g], &[("axis", axis.into()), ("reduction", "add".into())])
}

/// The gradient of taking elements `from` along `axis` of a tensor with `extent` elements there.
fn ungather<'c>(g: Var<'c>, axis: usize, from: &[i64], extent: usize) -> Var<'c> {
    let mut shape = g.shape();
    if let Some(d) = shape.get_mut(axis) {
        *d = extent;
    }
    gather_grad(g.cx().ints(from), g, axis as i64, &shape)
}

/// The data keep the gradient but for what was overwritten; the updates get theirs from where they went.
fn scatter<'c>(r: &Rule<'_, 'c>, take: &str, put: &str) -> Result<Grads<'c>, String> {
    let (x, indices, updates, g) = (r.x(0), r.x(1), r.x(2), r.g());
    let axis = r.node.attrs.get("axis").map(|a| ("axis", a.clone()));
    let taken = |v: Var<'c>| r.cx.op(take, &[v, indices], axis.as_slice());
    let put = |into: Var<'c>, v: Var<'c>, reduction: &str| {
        let attrs: Vec<(&str, Attr)> = axis.iter().cloned().chain([("reduction", reduction.into())]).collect();
        r.cx.op(put, &[into, indices, v], &attrs)
    };
    let (gx, gu) = match r.node.str("reduction").unwrap_or("none") {
        "none" => (r.wants(0).then(|| put(g, zeros(updates), "none")), r.wants(2).then(|| taken(g))),
        "add" => (Some(g), r.wants(2).then(|| taken(g))),
        "mul" => {
            let ones = expanded(r.cx.scalar_of(1.0, x.dtype()), x);
            let gx = r.wants(0).then(|| g * put(ones, updates, "mul"));
            // Each update gets the product of all others: that of those other than 0 over its own, where no other is 0.
            let others = || {
                let none = updates.equals(r.cx.scalar_of(0.0, updates.dtype()));
                let kept = none.select(r.cx.scalar_of(1.0, updates.dtype()), updates);
                let own = none.cast(updates.dtype());
                let zeros_there = taken(put(zeros(x), own, "add")) - own;
                let alone = zeros_there.equals(r.cx.scalar_of(0.0, updates.dtype())).cast(updates.dtype());
                taken(g) * taken(put(x, kept, "mul")) / kept * alone
            };
            (gx, r.wants(2).then(others))
        }
        "max" | "min" => {
            // All that equal the result share its gradient.
            let y = r.y(0);
            let stays = x.equals(y).cast(x.dtype());
            let reaches = updates.equals(taken(y)).cast(x.dtype());
            let share = g / put(stays, reaches, "add");
            (Some(share * stays), r.wants(2).then(|| taken(share) * reaches))
        }
        other => return Err(format!("reduction '{other}' is none of none, add, mul, max and min")),
    };
    Ok(vec![gx, None, gu])
}

/// Zeros around the gradient; along axes with a step other than 1 the elements go where they were taken from.
fn slice<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    let shape = r.x(0).shape();
    let starts = r.ints_of(1)?.unwrap_or_default();
    let axes = r.ints_of(3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = r.ints_of(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    let mut pads = vec![0; 2 * shape.len()];
    let mut g = r.g();
    for ((&start, &axis), &step) in starts.iter().zip(&axes).zip(&steps) {
        let axis = normalize_axis(axis, shape.len()).map_err(|e| e.0)?;
        let (extent, taken) = (shape[axis] as i64, g.dim(axis as i64) as i64);
        let start = if start < 0 { start.saturating_add(extent) } else { start };
        let start = start.clamp(0, if step < 0 { (extent - 1).max(0) } else { extent });
        if step == 1 {
            pads[axis] = start;
            pads[shape.len() + axis] = extent - start - taken;
        } else {
            let from: Vec<i64> = (0..taken).map(|i| start + step * i).collect();
            g = ungather(g, axis, &from, shape[axis]);
        }
    }
    one(if pads.iter().all(|&p| p == 0) { g } else { r.cx.op("Pad", &[g, r.cx.ints(&pads)], &[]) })
}

fn pad<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    let shape = r.x(0).shape();
    let rank = shape.len();
    let given = r.ints_of(1)?.unwrap_or_default();
    let axes = r.ints_of(3)?.unwrap_or_else(|| (0..rank as i64).collect());
    if given.len() != 2 * axes.len() {
        return Err(format!("pads {given:?} do not fit the axes {axes:?}"));
    }
    let mut pads = vec![0; 2 * rank];
    for (i, &axis) in axes.iter().enumerate() {
        let axis = normalize_axis(axis, rank).map_err(|e| e.0)?;
        (pads[axis], pads[rank + axis]) = (given[i], given[axes.len() + i]);
    }
    let mode = r.node.str("mode").unwrap_or("constant");
    if mode == "constant" {
        let gx = unpadded(r.g(), &pads);
        let fill = r.opt(2).filter(|_| r.wants(2)).map(|v| (r.g().sum(&[]) - gx.sum(&[])).reshape(&v.shape()));
        return Ok(vec![Some(gx), None, fill]);
    }
    let mut g = r.g();
    for axis in (0..rank).filter(|&a| pads[a] != 0 || pads[rank + a] != 0) {
        let from = padded_from(mode, shape[axis], (pads[axis], pads[rank + axis]))?;
        g = ungather(g, axis, &from, shape[axis]);
    }
    one(g)
}

/// What padding added dropped, and zeros where it dropped elements.
fn unpadded<'c>(g: Var<'c>, pads: &[i64]) -> Var<'c> {
    let (mut kept, shape) = (g, g.shape());
    for (axis, &n) in shape.iter().enumerate() {
        let [before, after] = [pads[axis], pads[shape.len() + axis]].map(|p| p.max(0) as usize);
        if before + after > 0 {
            kept = kept.slice(axis as i64, before, n.saturating_sub(after));
        }
    }
    let back: Vec<i64> = pads.iter().map(|p| (-p).max(0)).collect();
    if back.iter().all(|&p| p == 0) { kept } else { g.cx().op("Pad", &[kept, g.cx().ints(&back)], &[]) }
}

/// The elements of an axis that its padded form holds. Negative pads cut first, and the rest is padded.
fn padded_from(mode: &str, extent: usize, (before, after): (i64, i64)) -> Result<Vec<i64>, String> {
    let (extent, before, after) = (extent as i128, i128::from(before), i128::from(after));
    let (first, count) = ((-before).max(0), extent + before + after);
    let left = extent - first - (-after).max(0);
    if count > LONGEST_PADDED || (count > 0 && left < 1) {
        return Err(format!("pads {before} and {after} of {extent} elements, mode '{mode}', have no gradient"));
    }
    let (last, period) = (left - 1, (2 * (left - 1)).max(1));
    let source = |i: i128| match mode {
        "edge" => Ok(i.clamp(0, last)),
        "wrap" => Ok(i.rem_euclid(left)),
        "reflect" => Ok(i.rem_euclid(period).min(period - i.rem_euclid(period))),
        other => Err(format!("mode '{other}' has no gradient; constant, edge, reflect and wrap have")),
    };
    let of = |i: i128| Ok(i64::try_from(first + source(i - before.max(0))?).unwrap_or(0));
    (0..count).map(of).collect()
}

/// Index tuples `[batch..., ..., depth]` with their own place in the first `batch_dims` axes put in front.
fn unbatched(indices: Var<'_>, batch_dims: i64) -> Result<Var<'_>, String> {
    if batch_dims == 0 {
        return Ok(indices);
    }
    let shape = indices.shape();
    let batch = usize::try_from(batch_dims).ok().filter(|&n| n < shape.len()).ok_or("batch_dims is out of range")?;
    let lead = &shape[..shape.len() - 1];
    let places = (0..batch).map(|axis| {
        let mut column = vec![1; shape.len()];
        column[axis] = shape[axis];
        let places: Vec<i64> = (0..shape[axis] as i64).collect();
        let wide = [lead, &[1]].concat();
        indices.cx().ints(&places).cast(indices.dtype()).reshape(&column).expand(&wide)
    });
    let tuple: Vec<Var<'_>> = places.chain([indices]).collect();
    Ok(tuple[0].concat(&tuple[1..], -1))
}
