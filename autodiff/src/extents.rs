//! Shapes that may depend on data: numbers where they are known, else what the graph computes of them as it runs.

use limbeck_graph::{Dim, Node, Var};
use limbeck_tensor::DType;

/// The shape when every extent is known.
pub(crate) fn known(v: Var<'_>) -> Option<Vec<usize>> {
    v.cx().graph().shape(v.id()).ok()
}

/// `v` broadcast to the shape of `like`.
pub(crate) fn expanded<'c>(v: Var<'c>, like: Var<'c>) -> Var<'c> {
    match known(like) {
        Some(shape) if known(v).as_ref() == Some(&shape) => v,
        Some(shape) => v.expand(&shape),
        None => v.cx().op("Expand", &[v, shape_of(like)], &[]),
    }
}

/// Zeros of the shape and dtype of `like`.
pub(crate) fn zeros(like: Var<'_>) -> Var<'_> {
    expanded(like.cx().scalar_of(0.0, like.dtype()), like)
}

/// The extents of a value as a list of integers. Dims that have a name are an error: they are to be given numbers first.
pub(crate) fn shape_of(v: Var<'_>) -> Var<'_> {
    if v.dims().is_none_or(|dims| dims.iter().any(|d| matches!(d, Dim::Named(_)))) {
        v.shape();
    }
    v.cx().op("Shape", &[v], &[])
}

/// Sums the gradient of an operand of `node` over the axes along which the operand was broadcast. Whether an axis whose
/// extent depends on data was one is decided as the graph runs.
pub(crate) fn unbroadcast<'c>(grad: Var<'c>, operand: Var<'c>, node: &Node) -> Var<'c> {
    let cx = grad.cx();
    let (Some(have), Some(want)) = (grad.dims(), operand.dims()) else {
        // Without ranks nothing can be said: the error names what is unknown.
        for v in [grad, operand] {
            v.shape();
        }
        return grad;
    };
    let closed = want.iter().all(|d| d.known().is_some());
    if closed && have == want {
        return grad;
    }
    let extra = have.len().saturating_sub(want.len());
    let leading: Vec<i64> = (0..extra as i64).collect();
    let one = Dim::Known(1);
    let stretched = (0..want.len()).filter(|&i| want[i] == one && have.get(extra + i).is_some_and(|d| *d != one));
    let axes: Vec<i64> = leading.iter().copied().chain(stretched.map(|i| (extra + i) as i64)).collect();
    let summed = if axes.is_empty() { grad } else { grad.sum_keep(&axes) };
    if closed {
        let shape = operand.shape();
        return if known(summed).as_ref() == Some(&shape) { summed } else { summed.reshape(&shape) };
    }
    let summed = if leading.is_empty() { summed } else { summed.squeeze(&leading) };
    // Another operand is longer than 1 where the extent of this one is open.
    let may_stretch = node.inputs.iter().flatten().filter(|&&id| id != operand.id()).any(|&id| {
        let Some(other) = cx.var(id).dims() else { return true };
        (1..=want.len().min(other.len()))
            .any(|i| want[want.len() - i].known().is_none() && other[other.len() - i] != one)
    });
    if !may_stretch {
        return summed;
    }
    let single = shape_of(operand).equals(cx.scalar_of(1.0, DType::I64));
    let axes = cx.op("NonZero", &[single], &[]).squeeze(&[0]);
    let attrs = [("keepdims", 1i64.into()), ("noop_with_empty_axes", 1i64.into())];
    let summed = cx.op("ReduceSum", &[summed, axes], &attrs);
    // A gradient has the type of its value.
    let ty = cx.graph().ty(operand.id()).cloned();
    cx.edit(|graph| graph.set_ty(summed.id(), ty));
    summed
}
