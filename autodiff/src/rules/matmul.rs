//! Gradients of matrix products. Products of two matrices are Gemms with transposed operands, which engines run
//! much faster than a Transpose and a MatMul.

use super::{Grads, Rule, RuleFn, reshaped};
use limbeck_graph::ops::einsum_letters;
use limbeck_graph::{Attr, Var};

pub(super) const RULES: &[(&str, RuleFn)] = &[("MatMul", matmul), ("Gemm", gemm), ("Einsum", einsum)];

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

/// Each operand gets one Einsum of the gradient and the other operands. An axis that none of these has is made of
/// ones, and of an axis that the operand repeats only the diagonal gets something.
fn einsum<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    let xs: Vec<Var<'c>> = (0..r.node.inputs.len()).map(|i| r.x(i)).collect();
    let shapes: Vec<Vec<usize>> = xs.iter().map(|x| x.shape()).collect();
    let (terms, result) = einsum_letters(r.node, &shapes).map_err(|e| e.0)?;
    let axes = || terms.iter().flatten().zip(shapes.iter().flatten());
    let extent = |letter: char| axes().filter(|(c, _)| **c == letter).map(|(_, &n)| n).max().unwrap_or(1);
    let gradient = |i: usize| {
        let mut free = ('a'..='z').chain('A'..='Z').filter(|c| axes().all(|(used, _)| used != c));
        let others = (0..xs.len()).filter(|&j| j != i).map(|j| (terms[j].clone(), xs[j]));
        let mut factors: Vec<(Vec<char>, Var<'c>)> = std::iter::once((result.clone(), r.g())).chain(others).collect();
        let mut own: Vec<char> = vec![];
        for &c in &terms[i] {
            let n = extent(c);
            let has = |(letters, v): &(Vec<char>, Var<'c>)| letters.iter().zip(v.shape()).any(|a| a == (&c, n));
            if own.contains(&c) {
                let fresh = free.next().ok_or("the equation has more axes than there are letters")?;
                factors.push((vec![c, fresh], identity(r, n)));
                own.push(fresh);
                continue;
            }
            if !factors.iter().any(has) {
                factors.push((vec![c], r.cx.full(1.0, xs[i].dtype(), &[n])));
            }
            own.push(c);
        }
        let left: Vec<String> = factors.iter().map(|(letters, _)| letters.iter().collect()).collect();
        let equation = format!("{}->{}", left.join(","), own.iter().collect::<String>());
        let operands: Vec<Var<'c>> = factors.into_iter().map(|(_, v)| v).collect();
        Ok(r.cx.op("Einsum", &operands, &[("equation", equation.as_str().into())]))
    };
    (0..xs.len()).map(|i| r.wants(i).then(|| gradient(i)).transpose()).collect()
}

/// The identity matrix of `n` rows.
fn identity<'c>(r: &Rule<'_, 'c>, n: usize) -> Var<'c> {
    let places = r.cx.ints(&(0..n as i64).collect::<Vec<_>>());
    places.unsqueeze(&[1]).equals(places).cast(r.g().dtype())
}
