//! Shapes of values: reading them and changing them without moving data, transposes and broadcasts.

use super::support::{
    build, extent, extents, factors, filled, flag_attr, int_attr, ints, ints_attr, known, list_len, product, remap,
    reshape_type, reshaped, show, typed_as,
};
use super::util::{Types, Values, normalize_axes};
use super::{EvalCx, InferCx, OpSpec, broadcast_dims, broadcast_shapes, normalize_axis, op};
use crate::types::Dim;
use crate::{Array, Node, OpError, op_bail};
use limbeck_tensor::DType;

pub(super) const OPS: &[OpSpec] = &[
    op("Shape", infer_shape, eval_shape),
    op("Size", infer_size, eval_size),
    op("Reshape", infer_reshape, eval_reshape),
    op("Flatten", infer_flatten, eval_flatten),
    op("Transpose", infer_transpose, eval_transpose),
    op("Squeeze", infer_squeeze, eval_squeeze),
    op("Unsqueeze", infer_unsqueeze, eval_unsqueeze),
    op("Expand", infer_expand, eval_expand),
];

/// Input 0 under the shape that inference gives for its concrete shape.
fn eval_by_dims(x: &Array, dims: Vec<Dim>) -> Values {
    let shape: Option<Vec<usize>> = dims.iter().map(Dim::known).collect();
    Ok(vec![reshaped(x, &shape.ok_or("the shape is not known")?)?])
}

fn shape_range(node: &Node, rank: usize) -> Result<std::ops::Range<usize>, OpError> {
    let n = rank as i64;
    let clamp = |v: i64| if v < 0 { v.saturating_add(n) } else { v }.clamp(0, n) as usize;
    let (start, end) = (clamp(int_attr(node, "start", 0)?), clamp(int_attr(node, "end", n)?));
    Ok(start..end.max(start))
}

fn infer_shape(cx: &InferCx) -> Types {
    let len = match cx.dims(0)? {
        Some(dims) => Dim::Known(shape_range(cx.node, dims.len())?.len()),
        None => Dim::Unknown,
    };
    Ok(typed_as(DType::I64, Some(vec![len])))
}

fn eval_shape(cx: &EvalCx) -> Values {
    let shape = cx.array(0)?.shape();
    let part = &shape[shape_range(cx.node, shape.len())?];
    Ok(vec![Array::int(DType::I64, build(&[part.len()], |ix| Ok(part[ix[0]] as i64))?)])
}

fn infer_size(cx: &InferCx) -> Types {
    cx.ty(0)?;
    Ok(typed_as(DType::I64, Some(vec![])))
}

fn eval_size(cx: &EvalCx) -> Values {
    let n = cx.array(0)?.shape().iter().product::<usize>() as i64;
    Ok(vec![Array::int(DType::I64, filled(&[], n)?)])
}

/// Dims of a Reshape of `x` to `target` (0 copies, -1 takes what is left).
fn reshape_dims(x: &[Dim], target: &[i64], allow_zero: bool) -> Result<Vec<Dim>, OpError> {
    let fail = |why: &str| OpError(format!("{} does not reshape to {target:?}: {why}", show(x)));
    if target.iter().filter(|&&t| t == -1).count() > 1 || target.iter().any(|&t| t < -1) {
        return Err(fail("one extent may be -1, others must not be negative"));
    }
    if allow_zero && target.contains(&-1) && target.contains(&0) {
        return Err(fail("with allowzero, 0 and -1 exclude each other"));
    }
    // Copied dims stand on both sides; what is left of the input must equal what the target states.
    let mut rest = x.iter().cloned().map(Some).collect::<Vec<_>>();
    let (mut out, mut stated) = (vec![], vec![]);
    for (i, &t) in target.iter().enumerate() {
        out.push(match t {
            -1 => Dim::Unknown,
            0 if !allow_zero => {
                rest.get_mut(i).and_then(Option::take).ok_or_else(|| fail("0 copies a dim that is not there"))?
            }
            t => {
                stated.push(Dim::Known(extent(t, "extent")?));
                Dim::Known(extent(t, "extent")?)
            }
        });
    }
    let rest: Vec<Dim> = rest.into_iter().flatten().collect();
    let ((from, symbols), (to, _)) = (factors(&rest)?, factors(&stated)?);
    match (target.iter().position(|&t| t == -1), &symbols[..]) {
        (None, []) if from != to && !out.contains(&Dim::Known(0)) => Err(fail("element counts differ")),
        (Some(_), []) if to == 0 || from % to != 0 => Err(fail("-1 has no whole extent")),
        (Some(hole), []) => {
            out[hole] = Dim::Known(from / to);
            Ok(out)
        }
        (Some(hole), [symbol]) if from == to => {
            out[hole] = (*symbol).clone();
            Ok(out)
        }
        _ => Ok(out),
    }
}

fn infer_reshape(cx: &InferCx) -> Types {
    let (dtype, allow_zero) = (cx.dtype(0)?, flag_attr(cx.node, "allowzero", false)?);
    let Some(target) = cx.const_ints(1) else {
        return Ok(typed_as(dtype, list_len(cx, 1)?.map(|n| vec![Dim::Unknown; n])));
    };
    let dims = match cx.dims(0)? {
        Some(x) => reshape_dims(x, &target, allow_zero)?,
        None => target.iter().map(|&t| if t > 0 { Dim::Known(t as usize) } else { Dim::Unknown }).collect(),
    };
    Ok(typed_as(dtype, Some(dims)))
}

fn eval_reshape(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    let target = ints(cx, 1, "shape")?;
    eval_by_dims(x, reshape_dims(&known(x.shape()), &target, flag_attr(cx.node, "allowzero", false)?)?)
}

fn flatten_dims(node: &Node, x: &[Dim]) -> Result<Vec<Dim>, OpError> {
    let axis = int_attr(node, "axis", 1)?;
    let at = if axis == x.len() as i64 { x.len() } else { normalize_axis(axis, x.len())? };
    Ok(vec![product(&x[..at])?, product(&x[at..])?])
}

fn infer_flatten(cx: &InferCx) -> Types {
    match cx.dims(0)? {
        None => Ok(typed_as(cx.dtype(0)?, Some(vec![Dim::Unknown; 2]))),
        Some(_) => reshape_type(cx, |x| flatten_dims(cx.node, x)),
    }
}

fn eval_flatten(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    eval_by_dims(x, flatten_dims(cx.node, &known(x.shape()))?)
}

fn permutation(node: &Node, rank: usize) -> Result<Vec<usize>, OpError> {
    let Some(perm) = ints_attr(node, "perm")? else { return Ok((0..rank).rev().collect()) };
    let mut sorted = perm.to_vec();
    sorted.sort_unstable();
    if sorted != (0..rank as i64).collect::<Vec<_>>() {
        op_bail!("perm {perm:?} does not permute {rank} dims");
    }
    extents(perm, "perm")
}

fn infer_transpose(cx: &InferCx) -> Types {
    reshape_type(cx, |x| Ok(permutation(cx.node, x.len())?.into_iter().map(|p| x[p].clone()).collect()))
}

fn eval_transpose(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    let perm = permutation(cx.node, x.shape().len())?;
    let shape: Vec<usize> = perm.iter().map(|&p| x.shape()[p]).collect();
    let source = |ix: &[usize]| {
        let mut at = vec![0; ix.len()];
        perm.iter().zip(ix).for_each(|(&p, &i)| at[p] = i);
        Ok(Some(at))
    };
    Ok(vec![remap(x, &shape, None, source)?])
}

/// Dims without the given axes, or without all extents of 1; `None` when that depends on unknown dims.
fn squeeze_dims(x: &[Dim], axes: Option<&[i64]>) -> Result<Option<Vec<Dim>>, OpError> {
    let axes = match axes {
        Some(axes) => normalize_axes(axes, x.len())?,
        None if x.iter().any(|d| d.known().is_none()) => return Ok(None),
        None => (0..x.len()).filter(|&i| x[i] == Dim::Known(1)).collect(),
    };
    if let Some(&a) = axes.iter().find(|&&a| x[a].known().is_some_and(|n| n != 1)) {
        op_bail!("axis {a} of {} cannot be squeezed: its extent is not 1", show(x));
    }
    Ok(Some(x.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d.clone()).collect()))
}

fn infer_squeeze(cx: &InferCx) -> Types {
    let (dtype, axes) = (cx.dtype(0)?, cx.const_ints(1));
    let dims = match cx.dims(0)? {
        None => None,
        Some(x) if cx.has(1) && axes.is_none() => {
            list_len(cx, 1)?.and_then(|n| x.len().checked_sub(n)).map(|n| vec![Dim::Unknown; n])
        }
        Some(x) => squeeze_dims(x, axes.as_deref())?,
    };
    Ok(typed_as(dtype, dims))
}

fn eval_squeeze(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    let dims = squeeze_dims(&known(x.shape()), cx.ints(1)?.as_deref())?;
    eval_by_dims(x, dims.ok_or("the shape is not known")?)
}

fn unsqueeze_dims(x: &[Dim], axes: &[i64]) -> Result<Vec<Dim>, OpError> {
    let mut out = x.to_vec();
    for at in normalize_axes(axes, x.len() + axes.len())? {
        out.insert(at, Dim::Known(1));
    }
    Ok(out)
}

fn infer_unsqueeze(cx: &InferCx) -> Types {
    match cx.const_ints(1) {
        Some(axes) => reshape_type(cx, |x| unsqueeze_dims(x, &axes)),
        None => {
            let rank = cx.dims(0)?.map(<[_]>::len).zip(list_len(cx, 1)?);
            Ok(typed_as(cx.dtype(0)?, rank.map(|(r, n)| vec![Dim::Unknown; r + n])))
        }
    }
}

fn eval_unsqueeze(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    eval_by_dims(x, unsqueeze_dims(&known(x.shape()), &ints(cx, 1, "axes")?)?)
}

fn infer_expand(cx: &InferCx) -> Types {
    let dtype = cx.dtype(0)?;
    match (cx.dims(0)?, cx.const_ints(1)) {
        (Some(x), Some(to)) => Ok(typed_as(dtype, Some(broadcast_dims(x, &known(&extents(&to, "extent")?))?))),
        (Some(x), None) => Ok(typed_as(dtype, list_len(cx, 1)?.map(|n| vec![Dim::Unknown; n.max(x.len())]))),
        _ => Ok(typed_as(dtype, None)),
    }
}

fn eval_expand(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    let from = x.shape();
    let shape = broadcast_shapes(from, &extents(&ints(cx, 1, "shape")?, "extent")?)?;
    let lead = shape.len() - from.len();
    let source =
        |ix: &[usize]| Ok(Some(from.iter().zip(&ix[lead..]).map(|(&n, &i)| if n == 1 { 0 } else { i }).collect()));
    Ok(vec![remap(x, &shape, None, source)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named() -> Dim {
        "batch".into()
    }

    #[test]
    fn a_named_dim_survives_a_reshape_that_keeps_it() {
        let x = [named(), 3.into(), 4.into()];
        assert_eq!(reshape_dims(&x, &[-1, 12], false).unwrap(), [named(), 12.into()]);
        assert_eq!(reshape_dims(&x, &[0, -1], false).unwrap(), [named(), 12.into()]);
        assert_eq!(reshape_dims(&x, &[0, 2, -1, 3], false).unwrap(), [named(), 2.into(), 2.into(), 3.into()]);
        assert_eq!(reshape_dims(&x, &[-1, 4], false).unwrap(), [Dim::Unknown, 4.into()]);
    }

    #[test]
    fn reshapes_that_cannot_be_are_refused_with_both_shapes() {
        let x = [Dim::Known(2), 3.into()];
        for target in [&[4, -1][..], &[7], &[-1, -1], &[2, 3, 0], &[-2, 3], &[i64::MAX, i64::MAX]] {
            let error = reshape_dims(&x, target, false).unwrap_err();
            assert!(
                target.contains(&i64::MAX) || error.0.starts_with(&format!("[2, 3] does not reshape to {target:?}"))
            );
        }
    }
}
