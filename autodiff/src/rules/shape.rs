//! Gradients of ops that move elements without changing them.

use super::elementwise::one;
use super::{Grads, Rule, RuleFn, reshaped};
use limbeck_graph::Var;

pub(super) const RULES: &[(&str, RuleFn)] = &[
    ("Reshape", same_elements),
    ("Flatten", same_elements),
    ("Squeeze", same_elements),
    ("Unsqueeze", same_elements),
    ("Expand", |r| one(r.g())),
    ("Transpose", |r| {
        let rank = r.g().rank();
        let reversed: Vec<i64> = (0..rank as i64).rev().collect();
        let perm = r.node.ints("perm").unwrap_or(&reversed);
        let mut inverse = vec![0; rank];
        for (to, &from) in perm.iter().enumerate() {
            let from = usize::try_from(from).ok().filter(|&from| from < rank);
            inverse[from.ok_or_else(|| format!("perm {perm:?} does not fit rank {rank}"))?] = to;
        }
        one(r.g().transpose(&inverse))
    }),
    ("Concat", |r| {
        let axis = r.int("axis", 0);
        let mut end = 0;
        let part = |i: usize| {
            let start = end;
            end += r.x(i).dim(axis);
            r.wants(i).then(|| r.g().slice(axis, start, end))
        };
        Ok((0..r.node.inputs.len()).map(part).collect())
    }),
    ("Split", |r| {
        let parts: Vec<Var<'_>> = (0..r.node.outputs.len())
            .map(|i| r.grad_of(i).unwrap_or_else(|| r.cx.full(0.0, r.y(i).dtype(), &r.y(i).shape())))
            .collect();
        one(r.cx.op("Concat", &parts, &[("axis", r.int("axis", 0).into())]))
    }),
    ("Tile", |r| {
        let shape = r.x(0).shape();
        let repeats = r.ints_of(1)?.unwrap_or_default();
        let pairs: Vec<usize> = repeats.iter().zip(&shape).flat_map(|(&n, &d)| [n.max(0) as usize, d]).collect();
        let copies: Vec<i64> = (0..shape.len() as i64).map(|i| 2 * i).collect();
        one(if copies.is_empty() { r.g() } else { r.g().reshape(&pairs).sum(&copies) })
    }),
    ("DepthToSpace", |r| {
        let order = if r.node.str("mode") == Some("CRD") { [0, 1, 3, 5, 2, 4] } else { [0, 3, 5, 1, 2, 4] };
        let [n, c, h, w] = r.g().shape()[..] else { return Err("rank 4 is needed".into()) };
        let block = r.int("blocksize", 1).max(1) as usize;
        let split = r.g().reshape(&[n, c, h / block, block, w / block, block]);
        one(split.transpose(&order).reshape(&r.x(0).shape()))
    }),
    ("SpaceToDepth", |r| one(r.cx.op("DepthToSpace", &[r.g()], &[("blocksize", r.int("blocksize", 1).into())]))),
    ("Trilu", |r| {
        let operands: Vec<Var<'_>> = [Some(r.g()), r.opt(1)].into_iter().flatten().collect();
        one(r.cx.op("Trilu", &operands, &[("upper", r.int("upper", 1).into())]))
    }),
];

fn same_elements<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    one(reshaped(r.g(), &r.x(0).shape()))
}
