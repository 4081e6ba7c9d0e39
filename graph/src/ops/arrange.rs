//! Rearrangement: joining, splitting, repeating, blocks between channels and space, triangles.

use super::support::{
    check_rank, extents, flag_attr, int_attr, ints, known, one_int, product, remap, reshape_type, same_dtype, show,
    str_attr, typed_as, unify,
};
use super::util::{Types, Values};
use super::{EvalCx, InferCx, OpSpec, normalize_axis, op};
use crate::types::{Dim, TensorType};
use crate::{Array, Node, OpError, op_bail};

pub(super) const OPS: &[OpSpec] = &[
    op("Concat", infer_concat, eval_concat),
    op("Split", infer_split, eval_split),
    op("Tile", infer_tile, eval_tile),
    op("DepthToSpace", infer_depth_to_space, eval_depth_to_space),
    op("SpaceToDepth", infer_space_to_depth, eval_space_to_depth),
    op("Trilu", infer_trilu, eval_trilu),
];

fn concat_axis(node: &Node, rank: usize) -> Result<usize, OpError> {
    match node.int("axis") {
        Some(axis) => normalize_axis(axis, rank),
        None => op_bail!("attribute 'axis' is missing"),
    }
}

/// Dims of parts joined along `axis`.
fn concat_dims(parts: &[&[Dim]], axis: usize) -> Result<Vec<Dim>, OpError> {
    let Some((first, rest)) = parts.split_first() else { op_bail!("there is nothing to concatenate") };
    let mut out = first.to_vec();
    for part in rest {
        check_rank(part, first.len(), "every part of a Concat")?;
        for (d, dim) in out.iter_mut().enumerate() {
            *dim = match (d == axis, dim.known(), part[d].known()) {
                (true, Some(a), Some(b)) => Dim::Known(a.checked_add(b).ok_or("the extent overflows")?),
                (true, _, Some(0)) => dim.clone(),
                (true, _, _) => Dim::Unknown,
                (false, _, _) => unify(dim, &part[d], &format!("dim {d} of {} and {}", show(first), show(part)))?,
            };
        }
    }
    Ok(out)
}

fn infer_concat(cx: &InferCx) -> Types {
    let all: Vec<usize> = (0..cx.node.inputs.len()).collect();
    let dtype = same_dtype(cx, &all)?;
    let dims = all.iter().map(|&i| cx.dims(i)).collect::<Result<Option<Vec<_>>, _>>()?;
    let Some(parts) = dims else { return Ok(typed_as(dtype, None)) };
    let axis = concat_axis(cx.node, parts.first().map_or(0, |p| p.len()))?;
    Ok(typed_as(dtype, Some(concat_dims(&parts, axis)?)))
}

fn eval_concat(cx: &EvalCx) -> Values {
    let parts = (0..cx.inputs.len()).map(|i| cx.array(i)).collect::<Result<Vec<_>, _>>()?;
    let dims: Vec<Vec<Dim>> = parts.iter().map(|p| known(p.shape())).collect();
    let axis = concat_axis(cx.node, dims.first().map_or(0, Vec::len))?;
    concat_dims(&dims.iter().map(Vec::as_slice).collect::<Vec<_>>(), axis)?;
    let first = parts.first().copied().ok_or("there is nothing to concatenate")?;
    Ok(vec![if first.dtype.is_float() {
        let views = parts.iter().map(|p| Ok(p.f()?.view())).collect::<Result<Vec<_>, OpError>>()?;
        Array::float(first.dtype, ndarray::concatenate(ndarray::Axis(axis), &views)?)
    } else {
        let views = parts.iter().map(|p| Ok(p.i()?.view())).collect::<Result<Vec<_>, OpError>>()?;
        Array::int(first.dtype, ndarray::concatenate(ndarray::Axis(axis), &views)?)
    }])
}

/// Extents of the `count` parts of a Split of `n` elements.
fn split_parts(node: &Node, n: usize, sizes: Option<&[i64]>, count: usize) -> Result<Vec<usize>, OpError> {
    let stated = node.int("num_outputs");
    match (sizes, stated) {
        (Some(sizes), None) => {
            let sizes = extents(sizes, "split")?;
            if sizes.len() != count || sizes.iter().try_fold(0usize, |a, &b| a.checked_add(b)) != Some(n) {
                op_bail!("split {sizes:?} does not cut {n} elements into {count} outputs");
            }
            Ok(sizes)
        }
        (None, Some(parts)) if parts == count as i64 && count > 0 => {
            let size = n.div_ceil(count);
            let Some(last) = n.checked_sub(size * (count - 1)) else {
                op_bail!("{n} elements do not split into {count} parts of {size}");
            };
            Ok([vec![size; count - 1], vec![last]].concat())
        }
        _ => op_bail!("Split needs either the input 'split' or num_outputs equal to its {count} outputs ({stated:?})"),
    }
}

fn infer_split(cx: &InferCx) -> Types {
    let (dtype, count) = (cx.dtype(0)?, cx.node.outputs.len());
    let Some(x) = cx.dims(0)? else { return Ok(vec![TensorType { dtype, dims: None }; count]) };
    let axis = normalize_axis(int_attr(cx.node, "axis", 0)?, x.len())?;
    let sizes = cx.const_ints(1);
    let parts: Vec<Dim> = match (x[axis].known(), &sizes) {
        (Some(n), _) if sizes.is_some() || !cx.has(1) => known(&split_parts(cx.node, n, sizes.as_deref(), count)?),
        (None, Some(sizes)) if sizes.len() == count => known(&extents(sizes, "split")?),
        _ => vec![Dim::Unknown; count],
    };
    let with = |part: Dim| {
        let mut dims = x.to_vec();
        dims[axis] = part;
        TensorType::with_dims(dtype, dims)
    };
    Ok(parts.into_iter().map(with).collect())
}

fn eval_split(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    let axis = normalize_axis(int_attr(cx.node, "axis", 0)?, x.shape().len())?;
    let parts = split_parts(cx.node, x.shape()[axis], cx.ints(1)?.as_deref(), cx.node.outputs.len())?;
    let mut start = 0;
    let cut = |size: usize| {
        let mut shape = x.shape().to_vec();
        shape[axis] = size;
        let from = start;
        start += size;
        remap(x, &shape, None, |ix| {
            let mut at = ix.to_vec();
            at[axis] += from;
            Ok(Some(at))
        })
    };
    parts.into_iter().map(cut).collect()
}

fn tile_dims(x: &[Dim], repeats: &[i64]) -> Result<Vec<Dim>, OpError> {
    if repeats.len() != x.len() {
        op_bail!("repeats {repeats:?} must have an entry for every dim of {}", show(x));
    }
    let repeats = known(&extents(repeats, "repeat")?);
    x.iter().zip(repeats).map(|(d, r)| product(&[d.clone(), r])).collect()
}

fn infer_tile(cx: &InferCx) -> Types {
    match cx.const_ints(1) {
        Some(repeats) => reshape_type(cx, |x| tile_dims(x, &repeats)),
        None => reshape_type(cx, |x| Ok(vec![Dim::Unknown; x.len()])),
    }
}

fn eval_tile(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    let dims = tile_dims(&known(x.shape()), &ints(cx, 1, "repeats")?)?;
    let shape: Vec<usize> = dims.iter().filter_map(Dim::known).collect();
    Ok(vec![remap(x, &shape, None, |ix| Ok(Some(ix.iter().zip(x.shape()).map(|(i, n)| i % n).collect())))?])
}

fn block_size(node: &Node) -> Result<usize, OpError> {
    match int_attr(node, "blocksize", 0)? {
        b if (1..=1 << 15).contains(&b) => Ok(b as usize),
        b => op_bail!("blocksize {b} must be positive (and at most 32768)"),
    }
}

fn scaled(dim: &Dim, times: usize, over: usize, x: &[Dim]) -> Result<Dim, OpError> {
    match dim {
        Dim::Known(n) if n % over != 0 => op_bail!("extent {n} of {} is not a multiple of {over}", show(x)),
        Dim::Known(n) => Ok(Dim::Known((n / over).checked_mul(times).ok_or("the extent overflows")?)),
        same if times == over => Ok(same.clone()),
        _ => Ok(Dim::Unknown),
    }
}

fn blocks_dims(x: &[Dim], channel: (usize, usize), spatial: (usize, usize)) -> Result<Vec<Dim>, OpError> {
    check_rank(x, 4, "the data")?;
    let s = |d: &Dim| scaled(d, spatial.0, spatial.1, x);
    Ok(vec![x[0].clone(), scaled(&x[1], channel.0, channel.1, x)?, s(&x[2])?, s(&x[3])?])
}

fn infer_depth_to_space(cx: &InferCx) -> Types {
    let b = block_size(cx.node)?;
    reshape_type(cx, |x| blocks_dims(x, (1, b * b), (b, 1)))
}

fn eval_depth_to_space(cx: &EvalCx) -> Values {
    let (x, b) = (cx.array(0)?, block_size(cx.node)?);
    let depth_first = match str_attr(cx.node, "mode", "DCR")? {
        "DCR" => true,
        "CRD" => false,
        other => op_bail!("mode '{other}' is neither DCR nor CRD"),
    };
    let dims = blocks_dims(&known(x.shape()), (1, b * b), (b, 1))?;
    let shape: Vec<usize> = dims.iter().filter_map(Dim::known).collect();
    let source = |ix: &[usize]| {
        let block = ix[2] % b * b + ix[3] % b;
        let channel = if depth_first { block * shape[1] + ix[1] } else { ix[1] * b * b + block };
        Ok(Some(vec![ix[0], channel, ix[2] / b, ix[3] / b]))
    };
    Ok(vec![remap(x, &shape, None, source)?])
}

fn infer_space_to_depth(cx: &InferCx) -> Types {
    let b = block_size(cx.node)?;
    reshape_type(cx, |x| blocks_dims(x, (b * b, 1), (1, b)))
}

fn eval_space_to_depth(cx: &EvalCx) -> Values {
    let (x, b) = (cx.array(0)?, block_size(cx.node)?);
    let dims = blocks_dims(&known(x.shape()), (b * b, 1), (1, b))?;
    let shape: Vec<usize> = dims.iter().filter_map(Dim::known).collect();
    let c = x.shape()[1];
    let source = |ix: &[usize]| {
        let block = ix[1] / c;
        Ok(Some(vec![ix[0], ix[1] % c, ix[2] * b + block / b, ix[3] * b + block % b]))
    };
    Ok(vec![remap(x, &shape, None, source)?])
}

fn infer_trilu(cx: &InferCx) -> Types {
    if cx.dims(0)?.is_some_and(|x| x.len() < 2) {
        op_bail!("the input {} must have at least 2 dims", cx.ty(0)?);
    }
    Ok(vec![cx.ty(0)?.clone()])
}

fn eval_trilu(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    if x.shape().len() < 2 {
        op_bail!("the input {:?} must have at least 2 dims", x.shape());
    }
    let k = cx.opt(1).map_or(Ok(0), |k| one_int(k, "k"))?;
    let upper = flag_attr(cx.node, "upper", true)?;
    let keep = |ix: &[usize]| {
        let [.., row, column] = *ix else { return false };
        let offset = column as i64 - row as i64;
        if upper { offset >= k } else { offset <= k }
    };
    Ok(vec![remap(x, x.shape(), None, |ix| Ok(keep(ix).then(|| ix.to_vec())))?])
}
