//! Windows put back where they were taken: MaxUnpool and Col2Im.

use super::support::{check_rank, extents, filled, flat, ints, remap, show, typed_as};
use super::util::{Types, Values, check_size, float_ty, number_ty};
use super::window::Window;
use super::{EvalCx, InferCx, OpSpec, op};
use crate::types::Dim;
use crate::{Array, ArrayData, op_bail};
use limbeck_tensor::DType;
use ndarray::{ArrayD, IxDyn};
use std::collections::HashMap;

pub(super) const OPS: &[OpSpec] =
    &[op("MaxUnpool", infer_max_unpool, eval_max_unpool), op("Col2Im", infer_col2im, eval_col2im)];

fn infer_max_unpool(cx: &InferCx) -> Types {
    let dtype = float_ty(cx, 0)?.dtype;
    if cx.dtype(1)? != DType::I64 {
        op_bail!("indices must be int64, they are {}", cx.ty(1)?);
    }
    let window = Window::read_pool(cx.node)?;
    let Some(x) = cx.dims(0)? else { return Ok(typed_as(dtype, None)) };
    if x.len() < 3 {
        op_bail!("data {} must have a batch, channels and spatial dims", show(x));
    }
    let stated = cx.const_ints(2).map(|shape| extents(&shape, "extent")).transpose()?;
    let spatial = match stated {
        _ if !cx.has(2) => window.transposed_dims(cx.node, &x[2..])?,
        Some(shape) if shape.len() == x.len() => shape[2..].iter().map(|&n| Dim::Known(n)).collect(),
        Some(shape) => op_bail!("output_shape {shape:?} does not fit data {}", show(x)),
        None => vec![Dim::Unknown; x.len() - 2],
    };
    Ok(typed_as(dtype, Some([x[..2].to_vec(), spatial].concat())))
}

/// Each element at its index, which counts the elements of the result, and 0 elsewhere.
fn eval_max_unpool(cx: &EvalCx) -> Values {
    let (x, indices) = (cx.array(0)?, cx.array(1)?.i()?);
    if x.shape().len() < 3 || x.shape() != indices.shape() {
        op_bail!("data {:?} and indices {:?} do not fit", x.shape(), indices.shape());
    }
    let shape = match cx.opt(2) {
        Some(_) => extents(&ints(cx, 2, "output_shape")?, "extent")?,
        None => {
            let window = Window::read_pool(cx.node)?;
            [&x.shape()[..2], &window.resolve_transposed(cx.node, &x.shape()[2..])?.1].concat()
        }
    };
    check_size(&shape)?;
    let count: usize = shape.iter().product();
    let mut from = HashMap::new();
    for (ix, &to) in indices.indexed_iter() {
        match usize::try_from(to) {
            Ok(to) if to < count => from.insert(to, ndarray::Dimension::slice(&ix).to_vec()),
            _ => op_bail!("index {to} is outside a result of shape {shape:?}"),
        };
    }
    let offset = |ix: &[usize]| ix.iter().zip(&shape).fold(0, |flat, (i, n)| flat * n + i);
    Ok(vec![remap(x, &shape, None, |ix| Ok(from.get(&offset(ix)).cloned()))?])
}

fn infer_col2im(cx: &InferCx) -> Types {
    let ty = number_ty(cx, 0)?;
    let list = |i: usize| cx.const_ints(i).map(|v| extents(&v, "extent")).transpose();
    let (image, block) = (list(1)?, list(2)?);
    let rank = image.as_ref().or(block.as_ref()).map(Vec::len).or(super::support::list_len(cx, 1)?);
    let Some(rank) = rank else { return Ok(typed_as(ty.dtype, None)) };
    let mut dims = vec![Dim::Unknown; rank + 2];
    if let Some(x) = &ty.dims {
        check_rank(x, 3, "the columns")?;
        dims[0] = x[0].clone();
        let taps = block.as_ref().map(|b| b.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|n| *n > 0));
        dims[1] = match (x[1].known(), taps) {
            (Some(rows), Some(Some(taps))) if rows % taps == 0 => Dim::Known(rows / taps),
            (Some(_), Some(_)) => op_bail!("the rows of {} are no multiple of the block {block:?}", show(x)),
            _ => Dim::Unknown,
        };
    }
    for (dim, n) in dims[2..].iter_mut().zip(image.unwrap_or_default()) {
        *dim = Dim::Known(n);
    }
    Ok(typed_as(ty.dtype, Some(dims)))
}

/// The sum of all columns' entries where their windows lie: columns `[n, channels * block, windows]`.
fn eval_col2im(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    let image = extents(&ints(cx, 1, "image_shape")?, "extent")?;
    let block = extents(&ints(cx, 2, "block_shape")?, "extent")?;
    let &[n, rows, windows] = x.shape() else { op_bail!("columns {:?} must have rank 3", x.shape()) };
    if block.len() != image.len() {
        op_bail!("image_shape {image:?} and block_shape {block:?} do not fit");
    }
    let (attrs, out) = Window::read(cx.node, &block)?.resolve(&image)?;
    check_size(&out)?;
    check_size(&block)?;
    let taps: usize = block.iter().product();
    if rows % taps != 0 || out.iter().product::<usize>() != windows {
        op_bail!("columns {:?} do not fit an image {image:?} with blocks {block:?}: {out:?} windows", x.shape());
    }
    let shape = [&[n, rows / taps], &image[..]].concat();
    let mut y = flat(&filled(&shape, 0.0)?);
    let (data, size) = (flat(&x.to_f64()), image.iter().product::<usize>());
    attrs.taps(&image, &out, |o, k, i| {
        for plane in 0..n * (rows / taps) {
            y[plane * size + i] += data[(plane * taps + k) * windows + o];
        }
    })?;
    let y: ArrayD<f64> = ArrayD::from_shape_vec(IxDyn(&shape), y)?;
    Ok(vec![match &x.data {
        ArrayData::Float(_) => Array::float(x.dtype, y),
        ArrayData::Int(_) => Array::int(x.dtype, y.mapv(|v| v as i64)),
    }])
}
