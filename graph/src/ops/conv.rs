//! Convolutions, transposed convolutions, and the gradients of both.

use super::support::{check_rank, extents, filled, flat, ints_attr, same_dtype, show, unify};
use super::window::{ConvAttrs, Window, group};
use super::{EvalCx, InferCx, OpSpec, op, own};
use crate::types::{Dim, TensorType};
use crate::{Array, Node, OpError, op_bail};
use limbeck_tensor::DType;
use ndarray::{ArrayD, Axis, IxDyn};
use std::ops::{AddAssign, Mul};

pub(super) const OPS: &[OpSpec] = &[
    op("Conv", infer_conv, eval_conv),
    op("ConvTranspose", infer_transpose, eval_transpose),
    own("FusedConv", infer_conv, eval_conv),
    own("ConvGradInput", infer_grad_input, eval_grad_input),
    own("ConvGradWeight", infer_grad_weight, eval_grad_weight),
];

/// Extents of a convolution: data `[n, c, x...]`, weight `[m, c / group, kernel...]`, result `[n, m, y...]`.
struct Extents {
    attrs: ConvAttrs,
    n: usize,
    c: usize,
    m: usize,
    x: Vec<usize>,
    y: Vec<usize>,
}

impl Extents {
    fn of(node: &Node, x: &[usize], w: &[usize]) -> Result<Extents, OpError> {
        check_shapes(node, x, w)?;
        let (attrs, y) = Window::read(node, &w[2..])?.resolve(&x[2..])?;
        Ok(Extents { attrs, n: x[0], c: x[1], m: w[0], x: x[2..].to_vec(), y })
    }

    fn x_shape(&self) -> Vec<usize> {
        [&[self.n, self.c], &self.x[..]].concat()
    }

    fn w_shape(&self) -> Vec<usize> {
        [&[self.m, self.c / self.attrs.group], &self.attrs.kernel[..]].concat()
    }

    fn y_shape(&self) -> Vec<usize> {
        [&[self.n, self.m], &self.y[..]].concat()
    }

    /// Calls `f` with the flat offsets into data, weight and result of every product of the convolution.
    fn products(&self, mut f: impl FnMut(usize, usize, usize)) -> Result<(), OpError> {
        let flat_extent = |s: &[usize]| s.iter().product::<usize>();
        let (xs, ks, ys) = (flat_extent(&self.x), flat_extent(&self.attrs.kernel), flat_extent(&self.y));
        let (c, m) = (self.c / self.attrs.group, self.m / self.attrs.group);
        self.attrs.taps(&self.x, &self.y, |o, k, i| {
            for n in 0..self.n {
                for oc in 0..self.m {
                    let first = oc / m * c;
                    for ic in 0..c {
                        let x = (n * self.c + first + ic) * xs + i;
                        f(x, (oc * c + ic) * ks + k, (n * self.m + oc) * ys + o);
                    }
                }
            }
        })
    }
}

/// Ranks and channels of concrete shapes.
fn check_shapes(node: &Node, x: &[usize], w: &[usize]) -> Result<(), OpError> {
    let group = group(node)?;
    if !(3..=5).contains(&x.len()) || x.len() != w.len() {
        op_bail!("data {x:?} and weight {w:?} must both have rank 3, 4 or 5");
    }
    if w[1].checked_mul(group) != Some(x[1]) || !w[0].is_multiple_of(group) {
        op_bail!("data {x:?}, weight {w:?} and group {group} do not fit: channels {} against {}", x[1], w[1]);
    }
    Ok(())
}

/// Sum of products over windows; numbers of any kind. Shapes `[n, c, x...]` and `[m, c / group, kernel...]`.
pub(super) fn convolve<T>(node: &Node, x: &ArrayD<T>, w: &ArrayD<T>) -> Result<ArrayD<T>, OpError>
where
    T: Copy + Default + AddAssign + Mul<Output = T>,
{
    let e = Extents::of(node, x.shape(), w.shape())?;
    let mut y = flat(&filled(&e.y_shape(), T::default())?);
    let (x, w) = (flat(x), flat(w));
    e.products(|xi, wi, yi| y[yi] += w[wi] * x[xi])?;
    Ok(ArrayD::from_shape_vec(IxDyn(&e.y_shape()), y)?)
}

/// Adds one number a channel to `[n, m, y...]`.
pub(super) fn add_bias<T: Copy + AddAssign>(y: &mut ArrayD<T>, bias: &ArrayD<T>) -> Result<(), OpError> {
    if bias.shape() != &y.shape()[1..2] {
        op_bail!("bias {:?} does not fit an output of shape {:?}", bias.shape(), y.shape());
    }
    for (mut channel, &b) in y.axis_iter_mut(Axis(1)).zip(bias.iter()) {
        channel.iter_mut().for_each(|v| *v += b);
    }
    Ok(())
}

fn float(cx: &InferCx, which: &[usize]) -> Result<DType, OpError> {
    let dtype = same_dtype(cx, which)?;
    if !dtype.is_float() {
        op_bail!("floats are needed, the inputs are {dtype}");
    }
    Ok(dtype)
}

/// Output dims of a convolution of input `xi` with weight `wi` and, when connected, bias `bi`.
pub(super) fn conv_dims(cx: &InferCx, xi: usize, wi: usize, bi: Option<usize>) -> Result<Option<Vec<Dim>>, OpError> {
    let (Some(x), w) = (cx.dims(xi)?, cx.dims(wi)?) else { return Ok(None) };
    if !(3..=5).contains(&x.len()) {
        op_bail!("data {} must have rank 3, 4 or 5", show(x));
    }
    let group = group(cx.node)?;
    let mut channels = Dim::Unknown;
    let mut kernel = ints_attr(cx.node, "kernel_shape")?.map(|k| extents(k, "kernel_shape")).transpose()?;
    if let Some(w) = w {
        check_rank(w, x.len(), "the weight")?;
        let per_group = w[1].known().map(|c| c.checked_mul(group));
        let misfit = matches!((x[1].known(), per_group), (Some(c), Some(k)) if k != Some(c));
        if misfit || w[0].known().is_some_and(|m| m % group != 0) {
            op_bail!("data {}, weight {} and group {group} do not fit", show(x), show(w));
        }
        channels = w[0].clone();
        kernel = w[2..].iter().map(Dim::known).collect::<Option<_>>().or(kernel);
    }
    if let Some(bi) = bi.filter(|&i| cx.has(i))
        && let Some(b) = cx.dims(bi)?
    {
        check_rank(b, 1, "the bias")?;
        channels = unify(&channels, &b[0], "bias and output channels")?;
    }
    let spatial = match kernel {
        Some(kernel) => Window::read(cx.node, &kernel)?.out_dims(&x[2..])?,
        None => vec![Dim::Unknown; x.len() - 2],
    };
    Ok(Some([vec![x[0].clone(), channels], spatial].concat()))
}

fn infer_conv(cx: &InferCx) -> Result<Vec<TensorType>, OpError> {
    Ok(vec![TensorType { dtype: float(cx, &[0, 1, 2])?, dims: conv_dims(cx, 0, 1, Some(2))? }])
}

fn eval_conv(cx: &EvalCx) -> Result<Vec<Array>, OpError> {
    let x = cx.array(0)?;
    let mut y = convolve(cx.node, x.f()?, cx.array(1)?.f()?)?;
    if let Some(bias) = cx.opt(2) {
        add_bias(&mut y, bias.f()?)?;
    }
    Ok(vec![Array::float(x.dtype, y)])
}

/// Scatters `y` through the weight: the transpose of [`convolve`], into the data's shape.
fn scatter(e: &Extents, w: &ArrayD<f64>, y: &ArrayD<f64>) -> Result<ArrayD<f64>, OpError> {
    let mut x = flat(&filled(&e.x_shape(), 0.0)?);
    let (w, y) = (flat(w), flat(y));
    e.products(|xi, wi, yi| x[xi] += w[wi] * y[yi])?;
    Ok(ArrayD::from_shape_vec(IxDyn(&e.x_shape()), x)?)
}

fn infer_transpose(cx: &InferCx) -> Result<Vec<TensorType>, OpError> {
    let dtype = float(cx, &[0, 1, 2])?;
    let (Some(x), Some(w)) = (cx.dims(0)?, cx.dims(1)?) else { return Ok(vec![TensorType { dtype, dims: None }]) };
    if !(3..=5).contains(&x.len()) {
        op_bail!("data {} must have rank 3, 4 or 5", show(x));
    }
    check_rank(w, x.len(), "the weight")?;
    let group = group(cx.node)?;
    unify(&x[1], &w[0], "channels of data and weight")?;
    let channels = match w[1].known() {
        Some(m) => Dim::Known(m.checked_mul(group).ok_or("the number of output channels overflows")?),
        None => Dim::Unknown,
    };
    let spatial = match w[2..].iter().map(Dim::known).collect::<Option<Vec<_>>>() {
        Some(kernel) => Window::read(cx.node, &kernel)?.transposed_dims(cx.node, &x[2..])?,
        None => vec![Dim::Unknown; x.len() - 2],
    };
    Ok(vec![TensorType::with_dims(dtype, [vec![x[0].clone(), channels], spatial].concat())])
}

fn eval_transpose(cx: &EvalCx) -> Result<Vec<Array>, OpError> {
    let (x, w) = (cx.array(0)?, cx.array(1)?.f()?);
    let (xs, ws) = (x.shape(), w.shape());
    let group = group(cx.node)?;
    if !(3..=5).contains(&xs.len()) || xs.len() != ws.len() || xs[1] != ws[0] || ws[0] % group != 0 {
        op_bail!("data {xs:?}, weight {ws:?} and group {group} do not fit");
    }
    let (attrs, out) = Window::read(cx.node, &ws[2..])?.resolve_transposed(cx.node, &xs[2..])?;
    let c = ws[1].checked_mul(group).ok_or("the number of output channels overflows")?;
    let e = Extents { attrs, n: xs[0], c, m: xs[1], x: out, y: xs[2..].to_vec() };
    let mut y = scatter(&e, w, x.f()?)?;
    if let Some(bias) = cx.opt(2) {
        add_bias(&mut y, bias.f()?)?;
    }
    Ok(vec![Array::float(x.dtype, y)])
}

fn spatial_attr(node: &Node, name: &str) -> Result<Vec<usize>, OpError> {
    let Some(list) = ints_attr(node, name)? else { op_bail!("attribute '{name}' is missing") };
    extents(list, name)
}

fn infer_grad_input(cx: &InferCx) -> Result<Vec<TensorType>, OpError> {
    let dtype = float(cx, &[0, 1])?;
    let spatial = spatial_attr(cx.node, "input_shape")?;
    let mut dims = vec![Dim::Unknown; 2];
    if let Some(w) = cx.dims(0)? {
        check_rank(w, spatial.len() + 2, "the weight")?;
        let group = group(cx.node)?;
        dims[1] = w[1].known().and_then(|c| c.checked_mul(group)).map_or(Dim::Unknown, Dim::Known);
    }
    if let Some(gy) = cx.dims(1)? {
        check_rank(gy, spatial.len() + 2, "the gradient")?;
        dims[0] = gy[0].clone();
    }
    dims.extend(spatial.into_iter().map(Dim::Known));
    Ok(vec![TensorType::with_dims(dtype, dims)])
}

fn eval_grad_input(cx: &EvalCx) -> Result<Vec<Array>, OpError> {
    let (w, gy) = (cx.array(0)?, cx.array(1)?);
    let spatial = spatial_attr(cx.node, "input_shape")?;
    let (&[_, per_group, ..], &[n, ..]) = (w.shape(), gy.shape()) else {
        op_bail!("weight {:?} and gradient {:?} must have rank 3, 4 or 5", w.shape(), gy.shape());
    };
    let c = per_group.checked_mul(group(cx.node)?).ok_or("the number of channels overflows")?;
    let e = Extents::of(cx.node, &[&[n, c], &spatial[..]].concat(), w.shape())?;
    if gy.shape() != e.y_shape() {
        op_bail!("gradient {:?} is not of the output's shape {:?}", gy.shape(), e.y_shape());
    }
    Ok(vec![Array::float(gy.dtype, scatter(&e, w.f()?, gy.f()?)?)])
}

fn infer_grad_weight(cx: &InferCx) -> Result<Vec<TensorType>, OpError> {
    let dtype = float(cx, &[0, 1])?;
    let kernel = spatial_attr(cx.node, "kernel_shape")?;
    let mut dims = vec![Dim::Unknown; 2];
    if let Some(gy) = cx.dims(1)? {
        check_rank(gy, kernel.len() + 2, "the gradient")?;
        dims[0] = gy[1].clone();
    }
    if let Some(x) = cx.dims(0)? {
        check_rank(x, kernel.len() + 2, "the data")?;
        let group = group(cx.node)?;
        dims[1] = x[1].known().map_or(Dim::Unknown, |c| Dim::Known(c / group));
    }
    dims.extend(kernel.into_iter().map(Dim::Known));
    Ok(vec![TensorType::with_dims(dtype, dims)])
}

fn eval_grad_weight(cx: &EvalCx) -> Result<Vec<Array>, OpError> {
    let (x, gy) = (cx.array(0)?, cx.array(1)?);
    let kernel = spatial_attr(cx.node, "kernel_shape")?;
    let (&[_, c, ..], &[_, m, ..]) = (x.shape(), gy.shape()) else {
        op_bail!("data {:?} and gradient {:?} must have rank 3, 4 or 5", x.shape(), gy.shape());
    };
    let e = Extents::of(cx.node, x.shape(), &[&[m, c / group(cx.node)?], &kernel[..]].concat())?;
    if gy.shape() != e.y_shape() {
        op_bail!("gradient {:?} is not of the output's shape {:?}", gy.shape(), e.y_shape());
    }
    let mut gw = flat(&filled(&e.w_shape(), 0.0)?);
    let (x, gy_data) = (flat(x.f()?), flat(gy.f()?));
    e.products(|xi, wi, yi| gw[wi] += x[xi] * gy_data[yi])?;
    Ok(vec![Array::float(gy.dtype, ArrayD::from_shape_vec(IxDyn(&e.w_shape()), gw)?)])
}
