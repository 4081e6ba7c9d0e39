//! Pooling over windows and over all positions, and the gradients of the former.

use super::support::{extents, filled, flag_attr, flat, int_attr, ints_attr, known, show};
use super::util::check_size;
use super::window::{ConvAttrs, Window};
use super::{EvalCx, InferCx, OpSpec, op, own};
use crate::types::{Dim, TensorType};
use crate::{Array, Node, OpError, op_bail};
use limbeck_tensor::DType;
use ndarray::{ArrayD, IxDyn};

pub(super) const OPS: &[OpSpec] = &[
    op("MaxPool", infer_max_pool, eval_max_pool),
    op("AveragePool", infer_pool, eval_average_pool),
    op("LpPool", infer_pool, eval_lp_pool),
    op("GlobalAveragePool", infer_global, eval_global_average),
    op("GlobalMaxPool", infer_global, eval_global_max),
    op("GlobalLpPool", infer_global, eval_global_lp),
    own("MaxPoolGrad", infer_max_pool_grad, eval_max_pool_grad),
    own("AveragePoolGrad", infer_average_pool_grad, eval_average_pool_grad),
];

/// Windows over data of shape `[n, c, spatial...]`, with the planes of all n * c laid end to end.
struct Pool {
    attrs: ConvAttrs,
    planes: usize,
    x: Vec<usize>,
    y: Vec<usize>,
    y_shape: Vec<usize>,
}

impl Pool {
    fn of(node: &Node, x: &[usize]) -> Result<Pool, OpError> {
        if !(3..=5).contains(&x.len()) {
            op_bail!("data {x:?} must have rank 3, 4 or 5");
        }
        let (attrs, y) = Window::read_pool(node)?.resolve(&x[2..])?;
        let y_shape = [&x[..2], &y[..]].concat();
        check_size(x)?;
        check_size(&y_shape)?;
        Ok(Pool { attrs, planes: x[0] * x[1], x: x[2..].to_vec(), y, y_shape })
    }

    /// Calls `f(y, x)` with flat offsets into the whole tensors for every element under every window.
    fn taps(&self, mut f: impl FnMut(usize, usize)) -> Result<(), OpError> {
        let (xs, ys) = (self.x.iter().product::<usize>(), self.y.iter().product::<usize>());
        self.attrs.taps(&self.x, &self.y, |o, _, i| (0..self.planes).for_each(|p| f(p * ys + o, p * xs + i)))
    }

    /// An offset into all planes when the last axis of each varies slowest instead of fastest.
    fn column_major(&self, offset: usize) -> usize {
        let plane: usize = self.x.iter().product();
        let (mut rest, mut step, mut at) = (offset % plane, plane, offset - offset % plane);
        for &n in self.x.iter().rev() {
            step /= n;
            at += rest % n * step;
            rest /= n;
        }
        at
    }

    /// For each window the offset of its first greatest element; NaN counts as greatest.
    fn argmax(&self, x: &[f64]) -> Result<Vec<usize>, OpError> {
        let mut best: Vec<Option<usize>> = vec![None; self.y_shape.iter().product()];
        self.taps(|y, i| {
            let better = best[y].is_none_or(|b| x[i] > x[b] || (x[i].is_nan() && !x[b].is_nan()));
            if better {
                best[y] = Some(i);
            }
        })?;
        let found: Option<Vec<usize>> = best.into_iter().collect();
        found.ok_or_else(|| OpError(format!("a window of {:?} over {:?} lies in the padding", self.attrs, self.x)))
    }
}

fn pooled(cx: &InferCx) -> Result<Option<Vec<Dim>>, OpError> {
    let window = Window::read_pool(cx.node)?;
    let Some(x) = cx.dims(0)? else { return Ok(None) };
    if !(3..=5).contains(&x.len()) {
        op_bail!("data {} must have rank 3, 4 or 5", show(x));
    }
    Ok(Some([x[..2].to_vec(), window.out_dims(&x[2..])?].concat()))
}

fn infer_pool(cx: &InferCx) -> Result<Vec<TensorType>, OpError> {
    Ok(vec![TensorType { dtype: float(cx)?, dims: pooled(cx)? }])
}

fn float(cx: &InferCx) -> Result<DType, OpError> {
    let dtype = cx.dtype(0)?;
    if !dtype.is_float() {
        op_bail!("floats are needed, the input is {dtype}");
    }
    Ok(dtype)
}

fn infer_max_pool(cx: &InferCx) -> Result<Vec<TensorType>, OpError> {
    let dtype = cx.dtype(0)?;
    if !dtype.is_float() && !matches!(dtype, DType::I8 | DType::U8) {
        op_bail!("floats, int8 or uint8 are needed, the input is {dtype}");
    }
    let dims = pooled(cx)?;
    Ok(vec![TensorType { dtype, dims: dims.clone() }, TensorType { dtype: DType::I64, dims }])
}

fn eval_max_pool(cx: &EvalCx) -> Result<Vec<Array>, OpError> {
    let x = cx.array(0)?;
    let column_major = flag_attr(cx.node, "storage_order", false)?;
    let pool = Pool::of(cx.node, x.shape())?;
    let (shape, values) = (IxDyn(&pool.y_shape), x.to_f64());
    let values = flat(&values);
    let at = pool.argmax(&values)?;
    let y = ArrayD::from_shape_vec(shape.clone(), at.iter().map(|&i| values[i]).collect::<Vec<_>>())?;
    let y = if x.dtype.is_float() { Array::float(x.dtype, y) } else { Array::int(x.dtype, y.mapv(|v| v as i64)) };
    let index = |i: usize| if column_major { pool.column_major(i) } else { i } as i64;
    let indices = ArrayD::from_shape_vec(shape, at.into_iter().map(index).collect::<Vec<_>>())?;
    Ok(vec![y, Array::int(DType::I64, indices)])
}

/// Sum of `f(x)` over each window.
fn sum(pool: &Pool, x: &ArrayD<f64>, f: impl Fn(f64) -> f64) -> Result<Vec<f64>, OpError> {
    let x = flat(x);
    let mut y = vec![0.0; pool.y_shape.iter().product()];
    pool.taps(|o, i| y[o] += f(x[i]))?;
    Ok(y)
}

fn eval_average_pool(cx: &EvalCx) -> Result<Vec<Array>, OpError> {
    let x = cx.array(0)?;
    let pool = Pool::of(cx.node, x.shape())?;
    let counts = pool.attrs.counts(&pool.x, &pool.y, flag_attr(cx.node, "count_include_pad", false)?)?;
    let mut y = sum(&pool, x.f()?, |v| v)?;
    y.iter_mut().zip(counts.iter().cycle()).for_each(|(v, n)| *v /= n);
    Ok(vec![Array::float(x.dtype, ArrayD::from_shape_vec(IxDyn(&pool.y_shape), y)?)])
}

fn exponent(node: &Node) -> Result<i64, OpError> {
    match int_attr(node, "p", 2)? {
        p if p > 0 => Ok(p),
        p => op_bail!("p {p} must be at least 1"),
    }
}

fn eval_lp_pool(cx: &EvalCx) -> Result<Vec<Array>, OpError> {
    let (x, p) = (cx.array(0)?, exponent(cx.node)?);
    let pool = Pool::of(cx.node, x.shape())?;
    let y = sum(&pool, x.f()?, |v| v.abs().powf(p as f64))?.into_iter().map(|v| v.powf(1.0 / p as f64));
    Ok(vec![Array::float(x.dtype, ArrayD::from_shape_vec(IxDyn(&pool.y_shape), y.collect::<Vec<_>>())?)])
}

fn infer_global(cx: &InferCx) -> Result<Vec<TensorType>, OpError> {
    let dtype = float(cx)?;
    let Some(x) = cx.dims(0)? else { return Ok(vec![TensorType { dtype, dims: None }]) };
    if x.len() < 3 {
        op_bail!("data {} must have a batch, a channel and a spatial dim", show(x));
    }
    let dims = [x[..2].to_vec(), vec![Dim::Known(1); x.len() - 2]].concat();
    Ok(vec![TensorType::with_dims(dtype, dims)])
}

fn global(cx: &EvalCx, f: impl Fn(&[f64]) -> f64) -> Result<Vec<Array>, OpError> {
    let x = cx.array(0)?;
    let shape = x.shape();
    if shape.len() < 3 || shape[2..].contains(&0) {
        op_bail!("data {shape:?} must have a batch, a channel and spatial dims of at least 1");
    }
    let y: Vec<f64> = flat(x.f()?).chunks(shape[2..].iter().product()).map(f).collect();
    let out = [shape[..2].to_vec(), vec![1; shape.len() - 2]].concat();
    Ok(vec![Array::float(x.dtype, ArrayD::from_shape_vec(IxDyn(&out), y)?)])
}

fn eval_global_average(cx: &EvalCx) -> Result<Vec<Array>, OpError> {
    global(cx, |plane| plane.iter().sum::<f64>() / plane.len() as f64)
}

fn eval_global_max(cx: &EvalCx) -> Result<Vec<Array>, OpError> {
    global(cx, |plane| plane.iter().fold(f64::NEG_INFINITY, |m, &v| if v > m || v.is_nan() { v } else { m }))
}

fn eval_global_lp(cx: &EvalCx) -> Result<Vec<Array>, OpError> {
    let p = exponent(cx.node)? as f64;
    global(cx, |plane| plane.iter().map(|v| v.abs().powf(p)).sum::<f64>().powf(1.0 / p))
}

fn infer_max_pool_grad(cx: &InferCx) -> Result<Vec<TensorType>, OpError> {
    float(cx)?;
    Ok(vec![cx.ty(0)?.clone()])
}

fn check_gradient(gy: &Array, pool: &Pool) -> Result<(), OpError> {
    if gy.shape() != pool.y_shape {
        op_bail!("gradient {:?} is not of the output's shape {:?}", gy.shape(), pool.y_shape);
    }
    Ok(())
}

fn eval_max_pool_grad(cx: &EvalCx) -> Result<Vec<Array>, OpError> {
    let (x, gy) = (cx.array(0)?, cx.array(1)?);
    let pool = Pool::of(cx.node, x.shape())?;
    check_gradient(gy, &pool)?;
    let mut gx = vec![0.0; x.shape().iter().product()];
    for (i, g) in pool.argmax(&flat(x.f()?))?.into_iter().zip(gy.f()?) {
        gx[i] += g;
    }
    Ok(vec![Array::float(x.dtype, ArrayD::from_shape_vec(IxDyn(x.shape()), gx)?)])
}

fn input_shape(node: &Node) -> Result<Vec<usize>, OpError> {
    let Some(shape) = ints_attr(node, "input_shape")? else { op_bail!("attribute 'input_shape' is missing") };
    extents(shape, "input_shape")
}

fn infer_average_pool_grad(cx: &InferCx) -> Result<Vec<TensorType>, OpError> {
    Ok(vec![TensorType::with_dims(float(cx)?, known(&input_shape(cx.node)?))])
}

fn eval_average_pool_grad(cx: &EvalCx) -> Result<Vec<Array>, OpError> {
    let (gy, shape) = (cx.array(0)?, input_shape(cx.node)?);
    let pool = Pool::of(cx.node, &shape)?;
    check_gradient(gy, &pool)?;
    let counts = pool.attrs.counts(&pool.x, &pool.y, flag_attr(cx.node, "count_include_pad", false)?)?;
    let share: Vec<f64> = flat(gy.f()?).iter().zip(counts.iter().cycle()).map(|(g, n)| g / n).collect();
    let mut gx = flat(&filled(&shape, 0.0)?);
    pool.taps(|o, i| gx[i] += share[o])?;
    Ok(vec![Array::float(gy.dtype, ArrayD::from_shape_vec(IxDyn(&shape), gx)?)])
}
