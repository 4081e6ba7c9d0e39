//! Gradients of matrix products. Products of two matrices are Gemms with transposed operands, which engines run
//! much faster than a Transpose and a MatMul.

use super::{Grads, Rule, RuleFn, reshaped};
use limbeck_graph::{Attr, Var};

pub(super) const RULES: &[(&str, RuleFn)] = &[("MatMul", matmul), ("Gemm", gemm)];

fn matmul<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    let (mut a, mut b) = (r.x(0), r.x(1));
    let (a_shape, b_shape, mut shape) = (a.shape(), b.shape(), r.g().shape());
    // A vector is a row on the left and a column on the right, whose extent of 1 the result loses.
    if let [k] = b_shape[..] {
        b = b.reshape(&[k, 1]);
        shape.push(1);
    }
    if let [k] = a_shape[..] {
        a = a.reshape(&[1, k]);
        shape.insert(shape.len().saturating_sub(1), 1);
    }
    let g = reshaped(r.g(), &shape);
    let (ga, gb) = if b.rank() == 2 {
        let (g, flat_a) = (rows(g), rows(a));
        (
            r.wants(0).then(|| reshaped(g.gemm(b, None, false, true), &a_shape)),
            r.wants(1).then(|| reshaped(flat_a.gemm(g, None, true, false), &b_shape)),
        )
    } else {
        (r.wants(0).then(|| g.matmul(b.t())), r.wants(1).then(|| a.t().matmul(g)))
    };
    Ok(vec![ga, gb])
}

/// All leading axes as one: `[..., n]` to `[rows, n]`.
fn rows(v: Var<'_>) -> Var<'_> {
    match v.shape().split_last() {
        Some((&n, lead)) => reshaped(v, &[lead.iter().product(), n]),
        None => v,
    }
}

/// `y = alpha a' b' + beta c`.
fn gemm<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    let (a, b, g) = (r.x(0), r.x(1), r.g());
    let (ta, tb) = (r.int("transA", 0) != 0, r.int("transB", 0) != 0);
    let alpha = r.node.float("alpha").unwrap_or(1.0);
    let product = |x: Var<'c>, y: Var<'c>, tx: bool, ty: bool| {
        let flag = |on: bool| Attr::Int(i64::from(on));
        r.cx.op("Gemm", &[x, y], &[("alpha", alpha.into()), ("transA", flag(tx)), ("transB", flag(ty))])
    };
    let ga = r.wants(0).then(|| if ta { product(b, g, tb, true) } else { product(g, b, false, !tb) });
    let gb = r.wants(1).then(|| if tb { product(g, a, true, ta) } else { product(a, g, !ta, false) });
    let gc = r.wants(2).then(|| match r.float("beta", 1.0) {
        1.0 => g,
        beta => g * beta,
    });
    Ok(vec![ga, gb, gc])
}
