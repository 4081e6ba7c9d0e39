//! Which nodes a map can hold.

use crate::ops::map::{ELEMENT_WISE, REDUCTIONS, VARIANCE};
use crate::{Graph, LIMBECK, Node, TensorType, ValueId};
use limbeck_tensor::DType;

/// The longest row whose reduction is used within a map, in values.
const LONGEST_ROW: usize = 4096;

/// A node as part of a map.
#[derive(Debug, Clone)]
pub(in crate::lower) struct Element {
    /// The extents that it walks through.
    pub(in crate::lower) shape: Vec<usize>,
    /// The axes that it reduces over, sorted.
    pub(in crate::lower) axes: Option<Vec<usize>>,
    /// Whether its result keeps the reduced axes with extent 1.
    pub(in crate::lower) keeps: bool,
    /// Its operands, without a reduction's axes.
    pub(in crate::lower) operands: Vec<ValueId>,
    /// Its result.
    pub(in crate::lower) result: ValueId,
}

/// The node as part of a map, if it can be one.
pub(in crate::lower) fn element(graph: &Graph, node: &Node) -> Option<Element> {
    let [Some(result)] = node.outputs[..] else { return None };
    if !node.domain_or_default().is_empty() && !node.is(LIMBECK, VARIANCE) {
        return None;
    }
    let reduces = REDUCTIONS.contains(&node.op.as_str());
    let arity = ELEMENT_WISE.iter().find(|(op, _)| *op == node.op).map(|&(_, arity)| arity);
    let operands: Vec<ValueId> = match arity {
        Some(arity) if node.inputs.len() == arity => node.inputs.iter().copied().collect::<Option<_>>()?,
        None if reduces => vec![node.input(0)?],
        _ => return None,
    };
    let types: Vec<&TensorType> = operands.iter().map(|&v| graph.ty(v)).collect::<Option<_>>()?;
    let own = graph.ty(result)?;
    let plain = |ty: &&TensorType| matches!(ty.dtype, DType::F32 | DType::Bool);
    if !types.iter().all(plain) || !plain(&own) || (node.op == "Cast" && own.dtype != DType::F32) {
        return None;
    }
    let shape = if reduces { types[0].concrete()? } else { own.concrete()? };
    if shape.contains(&0) || (reduces && own.dtype != DType::F32) {
        return None;
    }
    let axes = if reduces { Some(axes(graph, node, shape.len())?) } else { None };
    let keeps = node.int("keepdims").unwrap_or(1) != 0;
    let element = Element { shape, axes, keeps, operands, result };
    // A largest value over anything but rows is no sum that threads could share.
    (node.op != "ReduceMax" || element.axes.as_deref().is_some_and(|a| is_row(&element.shape, a))).then_some(element)
}

/// The axes of a reduction, sorted.
fn axes(graph: &Graph, node: &Node, rank: usize) -> Option<Vec<usize>> {
    let listed = match node.input(1) {
        Some(axes) => graph.settled(axes)?.to_i64_vec().ok()?,
        None => vec![],
    };
    if listed.is_empty() {
        return (node.int("noop_with_empty_axes").unwrap_or(0) == 0).then(|| (0..rank).collect());
    }
    let axes = listed.iter().map(|&axis| crate::ops::normalize_axis(axis, rank));
    let mut axes: Vec<usize> = axes.collect::<Result<_, _>>().ok()?;
    axes.sort_unstable();
    axes.dedup();
    Some(axes)
}

/// Whether these axes are rows: the last axis, not too long.
pub(super) fn is_row(shape: &[usize], axes: &[usize]) -> bool {
    axes == [shape.len().wrapping_sub(1)] && shape.last().is_some_and(|&n| n <= LONGEST_ROW)
}

/// The extents with 1 at the axes.
pub(in crate::lower) fn kept(shape: &[usize], axes: &[usize]) -> Vec<usize> {
    shape.iter().enumerate().map(|(axis, &n)| if axes.contains(&axis) { 1 } else { n }).collect()
}
