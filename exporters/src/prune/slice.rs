//! Applies a pruning decision: slices constants, and corrects attributes, shape constants and declared types.

use super::clamp_start;
use super::links::{Axis, Links};
use crate::ExportError;
use crate::edit::{axis_of, set_weight, take};
use limbeck_graph::{Dim, Graph, NodeId, TensorType, ValueId};
use limbeck_tensor::Tensor;
use std::collections::{BTreeMap, HashSet};

/// Removes the positions of these classes from the whole graph.
pub(super) fn apply(graph: &mut Graph, links: &Links, removed: &HashSet<u32>) -> Result<(), ExportError> {
    let pruned: BTreeMap<Axis, Vec<usize>> =
        links.axes().filter_map(|(axis, _)| Some((axis, links.kept(axis, removed)?))).collect();
    // Slices need the extents from before.
    for id in graph.node_ids() {
        match (graph.node(id).domain_or_default(), graph.node(id).op.as_str()) {
            ("", "Conv") => group_count(graph, id, &pruned),
            ("", "Split") => split_sizes(graph, id, &pruned)?,
            ("", "Slice") => slice_bounds(graph, id, &pruned)?,
            ("", "Reshape") => shape_constant(graph, id, &pruned)?,
            _ => {}
        }
    }
    for ((value, axis), kept) in &pruned {
        if let Some(tensor) = graph.initializer(*value) {
            let tensor = take(tensor, *axis, kept)?;
            graph.set_initializer(*value, tensor);
        } else if let Some(TensorType { dtype, dims: Some(dims) }) = graph.ty(*value).cloned() {
            let mut dims = dims;
            dims[*axis] = Dim::Known(kept.len());
            graph.set_ty(*value, Some(TensorType::with_dims(dtype, dims)));
        }
    }
    graph.verify()?;
    // Inference over a copy checks that everything still fits; declared names of dims stay as they are.
    graph.clone().infer_types()?;
    Ok(())
}

fn extent(graph: &Graph, value: ValueId, axis: usize) -> Option<usize> {
    graph.ty(value)?.dims.as_ref()?.get(axis)?.known()
}

/// Groups of a Conv with one input channel a group go with their channel.
fn group_count(graph: &mut Graph, id: NodeId, pruned: &BTreeMap<Axis, Vec<usize>>) {
    let node = graph.node(id);
    let (Some(x), Some(w)) = (node.input(0), node.input(1)) else { return };
    if node.int("group").unwrap_or(1) > 1
        && extent(graph, w, 1) == Some(1)
        && let Some(kept) = pruned.get(&(x, 1))
    {
        graph.node_mut(id).attrs.insert("group".into(), kept.len().into());
    }
}

fn split_sizes(graph: &mut Graph, id: NodeId, pruned: &BTreeMap<Axis, Vec<usize>>) -> Result<(), ExportError> {
    let node = graph.node(id);
    let rank = node.input(0).and_then(|x| graph.ty(x)?.rank()).unwrap_or(0);
    let Some(axis) = axis_of(node.int("axis").unwrap_or(0), rank) else { return Ok(()) };
    let outputs: Vec<ValueId> = node.outputs.iter().flatten().copied().collect();
    if !outputs.iter().any(|o| pruned.contains_key(&(*o, axis))) {
        return Ok(());
    }
    let size = |o: &ValueId| pruned.get(&(*o, axis)).map(Vec::len).or_else(|| extent(graph, *o, axis)).unwrap_or(0);
    let sizes: Vec<i64> = outputs.iter().map(|o| size(o) as i64).collect();
    let name = format!("{}.split", graph.label(id));
    set_weight(graph, id, 1, &name, Tensor::new([sizes.len()], sizes)?);
    graph.node_mut(id).attrs.shift_remove("num_outputs");
    Ok(())
}

fn slice_bounds(graph: &mut Graph, id: NodeId, pruned: &BTreeMap<Axis, Vec<usize>>) -> Result<(), ExportError> {
    let node = graph.node(id);
    let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { return Ok(()) };
    let ints = |i: usize| graph.constant(node.input(i)?)?.to_i64_vec().ok();
    let (Some(mut starts), Some(mut ends)) = (ints(1), ints(2)) else { return Ok(()) };
    let axes = ints(3).unwrap_or_else(|| (0..starts.len() as i64).collect());
    let rank = graph.ty(x).and_then(|t| t.rank()).unwrap_or(0);
    let mut changed = false;
    for (i, axis) in axes.into_iter().enumerate() {
        let Some(axis) = axis_of(axis, rank) else { continue };
        let (Some(kept), Some(n)) = (pruned.get(&(x, axis)), extent(graph, x, axis)) else { continue };
        let start = clamp_start(starts[i], n);
        let length = pruned.get(&(y, axis)).map(Vec::len).or_else(|| extent(graph, y, axis)).unwrap_or(0);
        starts[i] = kept.iter().filter(|&&k| k < start).count() as i64;
        ends[i] = starts[i] + length as i64;
        changed = true;
    }
    if changed {
        let label = graph.label(id);
        set_weight(graph, id, 1, &format!("{label}.starts"), Tensor::new([starts.len()], starts)?);
        set_weight(graph, id, 2, &format!("{label}.ends"), Tensor::new([ends.len()], ends)?);
    }
    Ok(())
}

/// A stated extent follows; `0` and `-1` follow by themselves.
fn shape_constant(graph: &mut Graph, id: NodeId, pruned: &BTreeMap<Axis, Vec<usize>>) -> Result<(), ExportError> {
    let node = graph.node(id);
    let (Some(y), Some(shape)) = (node.output(0), node.input(1).and_then(|s| graph.constant(s))) else { return Ok(()) };
    let mut shape = shape.to_i64_vec()?;
    let mut changed = false;
    for (axis, entry) in shape.iter_mut().enumerate() {
        if let (true, Some(kept)) = (*entry > 0, pruned.get(&(y, axis))) {
            *entry = kept.len() as i64;
            changed = true;
        }
    }
    if changed {
        let name = format!("{}.shape", graph.label(id));
        set_weight(graph, id, 1, &name, Tensor::new([shape.len()], shape)?);
    }
    Ok(())
}
