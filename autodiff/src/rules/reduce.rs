//! Gradients of reductions over axes, running sums and the largest K.

use super::elementwise::one;
use super::index::scatter_add;
use super::{Grads, Rule, RuleFn, reshaped};
use crate::extents::{expanded, known, shape_of};
use limbeck_graph::ops::normalize_axis;
use limbeck_graph::{Attr, OpError, Var};

pub(super) const RULES: &[(&str, RuleFn)] = &[
    ("ReduceSum", |r| reduce(r, |v| v.spread(v.g))),
    ("ReduceMean", |r| reduce(r, |v| v.spread(v.averaged(v.g)))),
    ("ReduceMax", |r| reduce(r, extremum)),
    ("ReduceMin", |r| reduce(r, extremum)),
    ("ReduceL1", |r| reduce(r, |v| v.g * v.x.sign())),
    ("ReduceL2", |r| reduce(r, |v| v.g / non_zero(v.y) * v.x)),
    ("ReduceSumSquare", |r| reduce(r, |v| v.g * 2.0 * v.x)),
    ("ReduceLogSum", |r| reduce(r, |v| v.spread(v.g * (-v.y).exp()))),
    ("ReduceLogSumExp", |r| reduce(r, |v| v.g * (v.x - v.y).exp())),
    ("ReduceProd", |r| reduce(r, product)),
    ("CumSum", |r| {
        let attrs = [
            ("exclusive", Attr::Int(r.int("exclusive", 0))),
            ("reverse", Attr::Int(i64::from(r.int("reverse", 0) == 0))),
        ];
        one(r.cx.op("CumSum", &[r.g(), r.x(1)], &attrs))
    }),
    ("TopK", |r| match r.node.output(1) {
        Some(_) => one(scatter_add(r.x(0), r.y(1), r.g(), r.int("axis", -1))),
        None => Err("its second output (Indices) must be present".into()),
    }),
];

/// A reduction seen from its operand: gradient `g` and result `y` have the reduced axes back as 1.
struct Reduction<'c> {
    x: Var<'c>,
    y: Var<'c>,
    g: Var<'c>,
    axes: Vec<i64>,
}

impl<'c> Reduction<'c> {
    /// Broadcast to the operand's shape.
    fn spread(&self, v: Var<'c>) -> Var<'c> {
        expanded(v, self.x)
    }

    /// Divided by the number of elements that were reduced to one.
    fn averaged(&self, v: Var<'c>) -> Var<'c> {
        if let Some(shape) = known(self.x) {
            return v / self.axes.iter().map(|&axis| shape[axis as usize]).product::<usize>() as f64;
        }
        let (cx, dtype) = (v.cx(), v.dtype());
        let extents = shape_of(self.x).gather(cx.ints(&self.axes), 0);
        v / cx.op("ReduceProd", &[extents], &[("keepdims", 0i64.into())]).cast(dtype)
    }

    /// Sum over the reduced axes.
    fn sum(&self, v: Var<'c>) -> Var<'c> {
        if self.axes.is_empty() { v } else { v.sum_keep(&self.axes) }
    }
}

fn reduce<'c>(r: &Rule<'_, 'c>, gradient: impl Fn(&Reduction<'c>) -> Var<'c>) -> Result<Grads<'c>, String> {
    let (x, rank) = (r.x(0), r.x(0).rank());
    let named = r.ints_of(1)?.unwrap_or_default();
    let axes: Vec<i64> = match named.is_empty() && r.int("noop_with_empty_axes", 0) == 0 {
        true => (0..rank as i64).collect(),
        false => named
            .iter()
            .map(|&axis| Ok(normalize_axis(axis, rank)? as i64))
            .collect::<Result<_, OpError>>()
            .map_err(|e| e.0)?,
    };
    let dropped = r.int("keepdims", 1) == 0 && !axes.is_empty();
    let kept = |v: Var<'c>| match known(x) {
        _ if !dropped => v,
        None => v.unsqueeze(&axes),
        Some(mut shape) => {
            axes.iter().for_each(|&axis| shape[axis as usize] = 1);
            reshaped(v, &shape)
        }
    };
    one(gradient(&Reduction { x, y: kept(r.y(0)), g: kept(r.g()), axes }))
}

/// The elements that attain the extremum share the gradient evenly.
fn extremum<'c>(v: &Reduction<'c>) -> Var<'c> {
    let hits = v.x.equals(v.y).cast(v.x.dtype());
    v.g / v.sum(hits) * hits
}

/// `v` with its zeros replaced by 1.
pub(super) fn non_zero(v: Var<'_>) -> Var<'_> {
    let number = |n| v.cx().scalar_of(n, v.dtype());
    v.equals(number(0.0)).select(number(1.0), v)
}

/// The product of all other elements: y / x without zeros; with one zero, the product of the rest at its place;
/// with more, 0. The derivative of this formula in turn is right where no element is 0.
fn product<'c>(v: &Reduction<'c>) -> Var<'c> {
    let (cx, dtype) = (v.x.cx(), v.x.dtype());
    let number = |n| cx.scalar_of(n, dtype);
    let zero = v.x.equals(number(0.0)).cast(dtype);
    let filled = v.x + zero;
    let rest = match v.axes.is_empty() {
        true => filled,
        false => cx.op("ReduceProd", &[filled, cx.ints(&v.axes)], &[("keepdims", 1i64.into())]),
    };
    let others_non_zero = (v.sum(zero) - zero).equals(number(0.0)).cast(dtype);
    v.g * others_non_zero * (rest / filled)
}
