//! Scans that may have nothing to run through, as the reverse of a Loop that makes no iteration does: ONNX Runtime fails at
//! them. Where the length is not known to be positive, an If passes them by.

use super::in_body;
use crate::ops::{Looped, normalize_axis};
use crate::{Attr, Cx, Dim, Node, TensorType, Var};
use limbeck_tensor::{DType, Tensor};
use std::collections::HashMap;

/// The lowered Scan behind an If; `None` where it needs none, or where the shapes of its slices are not known.
pub(super) fn guarded<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>]) -> Option<Vec<Var<'c>>> {
    let form = Looped::of(node).ok().filter(|form| !form.counts)?;
    let (source, slices) = (operands.get(form.carried).copied().flatten()?, form.read.first()?);
    let axis = normalize_axis(slices.axis, source.dims()?.len()).ok()?;
    let length = source.dims()?.swap_remove(axis);
    if length.known().is_some_and(|n| n > 0) {
        return None;
    }
    let inputs = operands.iter().map(|v| v.map(|v| v.id())).collect();
    let types = crate::infer_node(&cx.graph(), &Node { inputs, ..node.clone() }, &node.name).ok()?;
    // What there is without an iteration.
    let nothing = |(i, ty): (usize, &TensorType)| {
        let axis = normalize_axis(form.written.get(i)?.axis, ty.rank()?).ok()?;
        let mut dims = ty.dims.clone()?;
        dims[axis] = Dim::Known(0);
        Tensor::from_f64(ty.dtype, TensorType::with_dims(ty.dtype, dims).concrete()?, &[]).ok()
    };
    let nothing: Vec<Tensor> = types.iter().skip(form.carried).enumerate().map(nothing).collect::<Option<_>>()?;
    let carried: Vec<Var<'c>> = operands[..form.carried].iter().copied().collect::<Option<_>>()?;
    let count = node.outputs.len();
    if carried.len() + nothing.len() < count {
        return None;
    }
    if length == Dim::Known(0) {
        return Some(carried.into_iter().chain(nothing.into_iter().map(|t| cx.constant(t))).take(count).collect());
    }
    let skipped = cx.body("scan");
    carried.iter().for_each(|v| skipped.result(skipped.capture(cx, v.id())));
    nothing.into_iter().for_each(|t| skipped.result(skipped.constant(t)));
    let run = cx.body("scan");
    let inner = |v: &Var<'c>| run.capture(cx, v.id());
    let captures: HashMap<_, _> =
        node.subgraphs().flat_map(|g| &g.captures).map(|c| (c.outer, inner(&cx.var(c.outer)))).collect();
    let operands: Vec<Option<Var<'_>>> = operands.iter().map(|v| v.as_ref().map(inner)).collect();
    let made = run.with_captures(&cx.graph(), node, &captures);
    let made = made.map(|node| run.with_body(&node, &operands, false, &mut in_body).unwrap_or_default());
    match made {
        Ok(results) => results.into_iter().for_each(|v| run.result(v)),
        Err(e) => return Some(vec![cx.fail(e); count]),
    }
    let mut branches = vec![];
    for (name, branch) in [("then_branch", run), ("else_branch", skipped)] {
        let branch = branch.finish_body().map(|mut branch| {
            branch.outputs.truncate(count);
            branch
        });
        match branch {
            Ok(branch) => branches.push((name, Attr::from(branch))),
            Err(e) => return Some(vec![cx.fail(e); count]),
        }
    }
    let window = [("start", axis.into()), ("end", (axis + 1).into())];
    let any = cx.op("Shape", &[source], &window).greater(cx.scalar_of(0.0, DType::I64)).reshape(&[]);
    Some(cx.op_n("", "If", &[Some(any)], &branches, count))
}
