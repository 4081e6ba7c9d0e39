//! Selecting by value or place: Compress, Unique, CenterCropPad.

use super::support::{build, extents, flag_attr, int_attr, ints, ints_attr, list_len, remap, reshape_type, typed_as};
use super::util::{Types, Values};
use super::{EvalCx, InferCx, OpSpec, normalize_axis, op};
use crate::types::Dim;
use crate::{Array, ArrayData, Node, OpError, op_bail};
use limbeck_tensor::DType;
use ndarray::{ArrayD, Axis};
use std::cmp::Ordering;

pub(super) const OPS: &[OpSpec] = &[
    op("Compress", infer_compress, eval_compress),
    op("Unique", infer_unique, eval_unique),
    op("CenterCropPad", infer_crop, eval_crop),
];

/// The axis that a node names, if it does.
fn axis(node: &Node, rank: usize) -> Result<Option<usize>, OpError> {
    match node.attrs.contains_key("axis") {
        true => Ok(Some(normalize_axis(int_attr(node, "axis", 0)?, rank)?)),
        false => Ok(None),
    }
}

/// Dims of `x` with an unknown number of slices along the node's axis, or of elements.
fn some_of(node: &Node, x: Option<&[Dim]>) -> Result<Option<Vec<Dim>>, OpError> {
    let Some(x) = x else { return Ok((!node.attrs.contains_key("axis")).then(|| vec![Dim::Unknown])) };
    Ok(Some(match axis(node, x.len())? {
        Some(axis) => [&x[..axis], &[Dim::Unknown], &x[axis + 1..]].concat(),
        None => vec![Dim::Unknown],
    }))
}

/// The slices of `x` at `chosen` along `axis`, or these elements.
fn chosen(x: &Array, axis: Option<usize>, chosen: &[usize]) -> Result<Array, OpError> {
    let shape = x.shape();
    let Some(axis) = axis else {
        return remap(x, &[chosen.len()], None, |ix| {
            let mut flat = chosen[ix[0]];
            let mut at = vec![0; shape.len()];
            for d in (0..shape.len()).rev() {
                at[d] = flat % shape[d].max(1);
                flat /= shape[d].max(1);
            }
            Ok(Some(at))
        });
    };
    let new = [&shape[..axis], &[chosen.len()], &shape[axis + 1..]].concat();
    remap(x, &new, None, |ix| Ok(Some([&ix[..axis], &[chosen[ix[axis]]], &ix[axis + 1..]].concat())))
}

fn infer_compress(cx: &InferCx) -> Types {
    if cx.dtype(1)? != DType::Bool {
        op_bail!("the condition must be bool, it is {}", cx.ty(1)?);
    }
    Ok(typed_as(cx.dtype(0)?, some_of(cx.node, cx.dims(0)?)?))
}

fn eval_compress(cx: &EvalCx) -> Values {
    let (x, condition) = (cx.array(0)?, ints(cx, 1, "condition")?);
    let axis = axis(cx.node, x.shape().len())?;
    let n = axis.map_or_else(|| x.shape().iter().product(), |a| x.shape()[a]);
    let kept: Vec<usize> = (0..condition.len()).filter(|&i| condition[i] != 0).collect();
    if let Some(beyond) = kept.last().filter(|&&i| i >= n) {
        op_bail!("the condition keeps element {beyond} of {n}");
    }
    Ok(vec![chosen(x, axis, &kept)?])
}

fn infer_unique(cx: &InferCx) -> Types {
    let y = typed_as(cx.dtype(0)?, some_of(cx.node, cx.dims(0)?)?).swap_remove(0);
    let of = |dim: Dim| typed_as(DType::I64, Some(vec![dim])).swap_remove(0);
    let all = match cx.dims(0)? {
        Some(x) => match axis(cx.node, x.len())? {
            Some(axis) => x[axis].clone(),
            None => super::support::product(x)?,
        },
        None => Dim::Unknown,
    };
    Ok(vec![y, of(Dim::Unknown), of(all), of(Dim::Unknown)])
}

/// The elements, or the slices along `axis` as lists of elements.
fn items<T: Copy>(a: &ArrayD<T>, axis: Option<usize>) -> Vec<Vec<T>> {
    match axis {
        Some(axis) => a.axis_iter(Axis(axis)).map(|slice| slice.iter().copied().collect()).collect(),
        None => a.iter().map(|&v| vec![v]).collect(),
    }
}

/// For each kind of item its first place and how often it occurs, and for each item its kind.
struct Kinds {
    first: Vec<usize>,
    counts: Vec<usize>,
    of: Vec<usize>,
}

fn kinds<T: Copy>(items: &[Vec<T>], sorted: bool, compare: impl Fn(&T, &T) -> Ordering) -> Kinds {
    let lists =
        |a: &[T], b: &[T]| a.iter().zip(b).map(|(a, b)| compare(a, b)).find(|o| o.is_ne()).unwrap_or(Ordering::Equal);
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by(|&a, &b| lists(&items[a], &items[b]));
    let mut groups: Vec<Vec<usize>> = vec![];
    for i in order {
        match groups.last_mut() {
            Some(group) if lists(&items[group[0]], &items[i]).is_eq() => group.push(i),
            _ => groups.push(vec![i]),
        }
    }
    if !sorted {
        groups.sort_by_key(|group| group[0]);
    }
    let mut of = vec![0; items.len()];
    for (kind, group) in groups.iter().enumerate() {
        group.iter().for_each(|&i| of[i] = kind);
    }
    Kinds { first: groups.iter().map(|g| g[0]).collect(), counts: groups.iter().map(Vec::len).collect(), of }
}

fn eval_unique(cx: &EvalCx) -> Values {
    let (x, sorted) = (cx.array(0)?, flag_attr(cx.node, "sorted", true)?);
    let axis = axis(cx.node, x.shape().len())?;
    let Kinds { first, counts, of } = match &x.data {
        ArrayData::Float(a) => kinds(&items(a, axis), sorted, |a, b| a.partial_cmp(b).unwrap_or(a.total_cmp(b))),
        ArrayData::Int(a) => kinds(&items(a, axis), sorted, i64::cmp),
    };
    let y = chosen(x, axis, &first)?;
    let list = |v: Vec<usize>| Ok::<_, OpError>(Array::int(DType::I64, build(&[v.len()], |ix| Ok(v[ix[0]] as i64))?));
    Ok(vec![y, list(first)?, list(of)?, list(counts)?])
}

/// The axes that a CenterCropPad node changes.
fn changed(node: &Node, rank: usize) -> Result<Vec<usize>, OpError> {
    match ints_attr(node, "axes")? {
        None => Ok((0..rank).collect()),
        Some(axes) => axes.iter().map(|&a| normalize_axis(a, rank)).collect(),
    }
}

fn infer_crop(cx: &InferCx) -> Types {
    let shape = cx.const_ints(1).map(|shape| extents(&shape, "extent")).transpose()?;
    list_len(cx, 1)?;
    reshape_type(cx, |x| {
        let (axes, mut dims) = (changed(cx.node, x.len())?, x.to_vec());
        if shape.as_ref().is_some_and(|s| s.len() != axes.len()) {
            op_bail!("{shape:?} does not fit the axes {axes:?}");
        }
        for (i, axis) in axes.into_iter().enumerate() {
            dims[axis] = shape.as_ref().map_or(Dim::Unknown, |s| Dim::Known(s[i]));
        }
        Ok(dims)
    })
}

/// The odd element of what is cut off or filled with zeros comes last.
fn eval_crop(cx: &EvalCx) -> Values {
    let (x, target) = (cx.array(0)?, extents(&ints(cx, 1, "shape")?, "extent")?);
    let axes = changed(cx.node, x.shape().len())?;
    if axes.len() != target.len() {
        op_bail!("{target:?} does not fit the axes {axes:?}");
    }
    let mut shape = x.shape().to_vec();
    axes.iter().zip(&target).for_each(|(&axis, &n)| shape[axis] = n);
    let place = |d: usize, i: usize| {
        let (from, to) = (x.shape()[d], shape[d]);
        if to <= from { Some(i + (from - to) / 2) } else { i.checked_sub((to - from) / 2).filter(|i| *i < from) }
    };
    Ok(vec![remap(x, &shape, None, |ix| Ok(ix.iter().enumerate().map(|(d, &i)| place(d, i)).collect()))?])
}
