//! Matrix products: one operator with flags for transposed operands, for engines that have a kernel for it.

use super::Lowered;
use crate::{Attr, Cx, LIMBECK, Node, Var, op_bail};
use limbeck_tensor::DType;

fn flag(node: &Node, name: &str) -> bool {
    node.int(name).unwrap_or(0) != 0
}

/// `FusedMatMul` for a MatMul or Gemm of float32 matrices, and what remains of a Gemm; `None` when the node stays.
pub(super) fn fused<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>]) -> Option<Vec<Var<'c>>> {
    let (a, b) = (operands.first().copied().flatten()?, operands.get(1).copied().flatten()?);
    let plain = |v: Var<'c>| v.dtype() == DType::F32 && v.rank() >= 2 && cx.graph().shape(v.id()).is_ok();
    if !plain(a) || !plain(b) {
        return None;
    }
    let (x, y) = (a.shape(), b.shape());
    if node.is("", "MatMul") && (y.len() == 2 || x[..x.len() - 2] == y[..y.len() - 2]) {
        let (a, ta) = untransposed(cx, a);
        let (b, tb) = untransposed(cx, b);
        return Some(vec![product(cx, a, b, ta, tb)]);
    }
    if !node.is("", "Gemm") {
        return None;
    }
    let scaled = |v: Var<'c>, name: &str| match node.float(name) {
        Some(factor) if factor != 1.0 => v * f64::from(factor),
        _ => v,
    };
    let y = scaled(product(cx, a, b, flag(node, "transA"), flag(node, "transB")), "alpha");
    let bias = operands.get(2).copied().flatten().filter(|_| node.float("beta") != Some(0.0));
    Some(vec![bias.map_or(y, |bias| y + scaled(bias, "beta"))])
}

fn product<'c>(cx: &'c Cx, a: Var<'c>, b: Var<'c>, ta: bool, tb: bool) -> Var<'c> {
    let attrs = [("transA", Attr::Int(i64::from(ta))), ("transB", Attr::Int(i64::from(tb)))];
    cx.op_n(LIMBECK, "FusedMatMul", &[Some(a), Some(b)], &attrs, 1)[0]
}

/// What a transposition of the last two axes reads, and `true`; any other value as it is.
fn untransposed<'c>(cx: &'c Cx, v: Var<'c>) -> (Var<'c>, bool) {
    let source = || {
        let graph = cx.graph();
        let node = graph.node(graph.producer(v.id())?);
        let perm = node.ints("perm")?;
        let rank = perm.len();
        let swapped = |(i, &axis): (usize, &i64)| match i {
            i if i + 2 == rank => axis as usize == rank - 1,
            i if i + 1 == rank => axis as usize == rank - 2,
            i => axis as usize == i,
        };
        let fits = node.is("", "Transpose") && rank >= 2 && perm.iter().enumerate().all(swapped);
        fits.then(|| node.input(0)).flatten()
    };
    source().map_or((v, false), |id| (cx.var(id), true))
}

/// The product in standard operators, where an order of axes is a transposition.
pub(super) fn portable<'c>(node: &Node, a: Var<'c>, b: Var<'c>) -> Lowered<'c> {
    if a.rank() < 2 || b.rank() < 2 {
        op_bail!("FusedMatMul multiplies matrices, not {a:?} and {b:?}");
    }
    let (ta, tb) = (flag(node, "transA"), flag(node, "transB"));
    let order = |name: &str| node.ints(name).map(|axes| axes.iter().map(|&axis| axis as usize).collect::<Vec<_>>());
    let ordered = |v: Var<'c>, name: &str| order(name).map_or(v, |order| v.transpose(&order));
    if a.rank() == 2 && b.rank() == 2 {
        return Ok(a.gemm(b, None, ta, tb));
    }
    let turned = |v: Var<'c>, flag: bool| if flag { v.t() } else { v };
    let (a, b) = (turned(ordered(a, "permA"), ta), turned(ordered(b, "permB"), tb));
    Ok(ordered(a.matmul(b), "permY"))
}
