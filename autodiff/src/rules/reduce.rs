//! Gradients of reductions over axes, running sums and the largest K.

use super::elementwise::one;
use super::index::scatter_add;
use super::{Grads, Rule, RuleFn, reshaped};
use limbeck_graph::ops::normalize_axis;
use limbeck_graph::{Attr, Var};

pub(super) const RULES: &[(&str, RuleFn)] = &[
    ("ReduceSum", |r| reduce(r, |v| v.spread(v.g))),
    ("ReduceMean", |r| reduce(r, |v| v.spread(v.g / v.count))),
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
    shape: Vec<usize>,
    count: f64,
}

impl<'c> Reduction<'c> {
    /// Broadcast to the operand's shape.
    fn spread(&self, v: Var<'c>) -> Var<'c> {
        if v.shape() == self.shape { v } else { v.expand(&self.shape) }
    }

    /// Sum over the reduced axes.
    fn sum(&self, v: Var<'c>) -> Var<'c> {
        if self.axes.is_empty() { v } else { v.sum_keep(&self.axes) }
    }
}

fn reduce<'c>(r: &Rule<'_, 'c>, gradient: impl Fn(&Reduction<'c>) -> Var<'c>) -> Result<Grads<'c>, String> {
    let x = r.x(0);
    let shape = x.shape();
    let mut axes = r.ints_of(1)?.unwrap_or_default();
    if axes.is_empty() && r.int("noop_with_empty_axes", 0) == 0 {
        axes = (0..shape.len() as i64).collect();
    }
    let (mut kept, mut count) = (shape.clone(), 1);
    for &axis in &axes {
        let axis = normalize_axis(axis, shape.len()).map_err(|e| e.0)?;
        count *= shape[axis];
        kept[axis] = 1;
    }
    let (y, g) = (reshaped(r.y(0), &kept), reshaped(r.g(), &kept));
    one(gradient(&Reduction { x, y, g, axes, shape, count: count as f64 }))
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
