//! Quantization: between floats and grids of 4 to 16 bits, and products of 8-bit tensors in exact integer arithmetic.

use super::conv::{add_bias, conv_dims, convolve};
use super::matmul::{matmul, matmul_dims};
use super::support::{
    build, check_rank, extent, filled, flag_attr, int_attr, narrow_float, one_f64, one_int, reshaped, typed_as, unify,
};
use super::util::{Types, Values, expand};
use super::{EvalCx, InferCx, OpSpec, normalize_axis, op};
use crate::types::{Dim, TensorType};
use crate::{Array, Node, OpError, op_bail};
use limbeck_tensor::DType;
use ndarray::ArrayD;
use std::fmt;

pub(super) const OPS: &[OpSpec] = &[
    op("QuantizeLinear", infer_quantize, eval_quantize),
    op("DequantizeLinear", infer_dequantize, eval_dequantize),
    op("DynamicQuantizeLinear", infer_dynamic, eval_dynamic),
    op("MatMulInteger", infer_matmul_integer, eval_matmul_integer),
    op("QLinearMatMul", infer_qlinear_matmul, eval_qlinear_matmul),
    op("ConvInteger", infer_conv_integer, eval_conv_integer),
    op("QLinearConv", infer_qlinear_conv, eval_qlinear_conv),
];

/// One number for a whole tensor, one for each position of an axis, or one for each block along it.
struct Params<T> {
    values: ArrayD<T>,
    axis: usize,
    /// Positions in a block; 0 without blocks.
    block: usize,
}

impl<T: Copy> Params<T> {
    /// `what` over a tensor of this shape; a single element is for the whole tensor.
    fn new(values: &ArrayD<T>, shape: &[usize], at: At, what: &str) -> Result<Params<T>, OpError> {
        let of = |axis, block| Params { values: values.clone(), axis, block };
        if values.len() == 1 {
            return Ok(of(0, 0));
        }
        let axis = normalize_axis(at.axis, shape.len())?;
        let mut blocks = shape.to_vec();
        if at.block > 0 {
            blocks[axis] = blocks[axis].div_ceil(at.block);
        }
        if values.shape() != if at.block > 0 { &blocks } else { &shape[axis..=axis] } {
            op_bail!("{what} of shape {:?} fits neither all of {shape:?} nor its axis {axis}{at}", values.shape());
        }
        Ok(of(axis, at.block))
    }

    fn at(&self, index: &[usize]) -> T {
        match (self.values.len(), self.block) {
            (1, _) => self.values.first().copied().expect("it has one element"),
            (_, 0) => self.values[[index[self.axis]].as_slice()],
            (_, block) => {
                let mut at = index.to_vec();
                at[self.axis] /= block;
                self.values[at.as_slice()]
            }
        }
    }
}

/// Where a node's scales and zero points lie.
#[derive(Clone, Copy)]
struct At {
    axis: i64,
    /// Positions of the axis that share them, in blocks; 0 without.
    block: usize,
}

impl At {
    fn of(node: &Node) -> Result<At, OpError> {
        Ok(At { axis: int_attr(node, "axis", 1)?, block: extent(int_attr(node, "block_size", 0)?, "block_size")? })
    }

    /// The axis, one entry for each of its positions.
    fn axis(axis: i64) -> At {
        At { axis, block: 0 }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.block > 0 { write!(f, " in blocks of {}", self.block) } else { Ok(()) }
    }
}

/// Zero points over a tensor of this shape; 0 when absent.
fn zeros(zero: Option<&Array>, shape: &[usize], at: At) -> Result<Params<i64>, OpError> {
    match zero {
        Some(zero) => Params::new(zero.i()?, shape, at, "a zero point"),
        None => Params::new(&filled(&[], 0)?, shape, at, "a zero point"),
    }
}

/// Nearest integer (ties to even) plus the zero point, within the range of `dtype`.
fn saturate(value: f64, zero: i64, dtype: DType) -> Result<i64, OpError> {
    let (low, high) = dtype.int_range().ok_or_else(|| OpError(format!("{dtype} is no quantized type")))?;
    Ok((value.round_ties_even() + zero as f64).clamp(low as f64, high as f64) as i64)
}

/// What floats are quantised to.
fn is_grid(dtype: DType) -> bool {
    use DType::*;
    matches!(dtype, I4 | U4 | I8 | U8 | I16 | U16) || (dtype.is_narrow_float() && dtype != F8E8M0)
}

fn check_8bit(dtype: DType, what: &str) -> Result<(), OpError> {
    match dtype {
        DType::I8 | DType::U8 => Ok(()),
        other => op_bail!("{what} must be int8 or uint8, it is {other}"),
    }
}

/// An error unless a scale's dims can be those of a scalar, of one axis of `x` or of its blocks.
fn check_scale(cx: &InferCx, x: usize, scale: usize) -> Result<(), OpError> {
    let at = At::of(cx.node)?;
    let (Some(dims), Some(scale)) = (cx.dims(x)?, cx.dims(scale)?) else { return Ok(()) };
    if scale.is_empty() || scale == [Dim::Known(1)] {
        return Ok(());
    }
    check_rank(scale, if at.block > 0 { dims.len() } else { 1 }, "the scale")?;
    let axis = normalize_axis(at.axis, dims.len())?;
    if at.block == 0 {
        return unify(&dims[axis], &scale[0], "the quantized axis and the scale").map(|_| ());
    }
    for (i, (x, scale)) in dims.iter().zip(scale).enumerate() {
        let blocks = x.known().map_or(Dim::Unknown, |n| Dim::Known(n.div_ceil(at.block)));
        unify(if i == axis { &blocks } else { x }, scale, "the data and the scale of its blocks")?;
    }
    Ok(())
}

/// The dtype of an attribute; `None` where it is absent or 0.
fn dtype_attr(node: &Node, name: &str) -> Result<Option<DType>, OpError> {
    let code = int_attr(node, name, 0)?;
    if code == 0 {
        return Ok(None);
    }
    let dtype = i32::try_from(code).ok().and_then(DType::from_onnx);
    dtype.map(Some).ok_or_else(|| OpError(format!("attribute '{name}' = {code} names no dtype")))
}

/// What a QuantizeLinear with a zero point of this dtype gives.
fn quantized(node: &Node, zero: Option<DType>) -> Result<DType, OpError> {
    let stated = dtype_attr(node, "output_dtype")?;
    if let (Some(zero), Some(stated)) = (zero, stated)
        && zero != stated
    {
        op_bail!("output_dtype is {stated} and the zero point {zero}");
    }
    let dtype = zero.or(stated).unwrap_or(DType::U8);
    if !is_grid(dtype) {
        op_bail!("{dtype} is no quantized type");
    }
    Ok(dtype)
}

/// The dtype that a quotient is rounded to: that of `precision`, or float32, in which ONNX Runtime divides (and which
/// holds what scales of float8e8m0 are, powers of two).
fn precision(node: &Node) -> Result<DType, OpError> {
    let dtype = dtype_attr(node, "precision")?.unwrap_or(DType::F32);
    if !matches!(dtype, DType::F16 | DType::BF16 | DType::F32) {
        op_bail!("precision is {dtype}; float16, bfloat16 or float32 is needed");
    }
    Ok(dtype)
}

fn infer_quantize(cx: &InferCx) -> Types {
    let (x, scale) = (cx.ty(0)?, cx.dtype(1)?);
    let dtype = quantized(cx.node, if cx.has(2) { Some(cx.dtype(2)?) } else { None })?;
    precision(cx.node)?;
    let powers = scale == DType::F8E8M0;
    let mixed = (powers || cx.node.attrs.contains_key("precision")) && x.dtype.is_float() && x.dtype != DType::F64;
    let right = mixed || x.dtype == scale || x.dtype == DType::I32 && scale == DType::F32;
    if !(powers || scale.is_float()) || scale == DType::F64 || !right {
        op_bail!("data of {} cannot be quantized by a scale of {scale}", x.dtype);
    }
    check_scale(cx, 0, 1)?;
    Ok(typed_as(dtype, x.dims.clone()))
}

fn eval_quantize(cx: &EvalCx) -> Values {
    let (x, at, zero) = (cx.array(0)?, At::of(cx.node)?, cx.opt(2));
    let (dtype, precision) = (quantized(cx.node, zero.map(|z| z.dtype))?, precision(cx.node)?);
    let scale = Params::new(cx.array(1)?.f()?, x.shape(), at, "a scale")?;
    // Each operand first, as both are of that type: ties depend on it.
    let rounded = |a: ArrayD<f64>| Array::float(precision, a).rounded();
    let (values, scales) = (rounded(x.to_f64()), rounded(build(x.shape(), |ix| Ok(scale.at(ix)))?));
    let quotients = rounded(values.f()? / scales.f()?);
    let quotients = quotients.f()?;
    if dtype.is_narrow_float() {
        let zero = zero.map_or_else(|| filled(&[], 0.0), |z| z.f().cloned())?;
        let zero = Params::new(&zero, x.shape(), at, "a zero point")?;
        let moved = build(x.shape(), |ix| Ok(quotients[ix] + zero.at(ix)))?;
        return Ok(vec![narrow_float(dtype, &moved, flag_attr(cx.node, "saturate", true)?)?]);
    }
    let zero = zeros(zero, x.shape(), at)?;
    Ok(vec![Array::int(dtype, build(x.shape(), |ix| saturate(quotients[ix], zero.at(ix), dtype))?)])
}

/// What a DequantizeLinear gives.
fn dequantized(node: &Node, scale: DType) -> Result<DType, OpError> {
    let dtype = dtype_attr(node, "output_dtype")?.unwrap_or(scale);
    if dtype == DType::F8E8M0 {
        op_bail!("a scale of {dtype} does not say which float the result is; set output_dtype");
    }
    if !dtype.is_float() {
        op_bail!("output_dtype is {dtype}; a float type is needed");
    }
    Ok(dtype)
}

fn infer_dequantize(cx: &InferCx) -> Types {
    let (x, scale) = (cx.ty(0)?, cx.dtype(1)?);
    if !(is_grid(x.dtype) || x.dtype == DType::I32) || !(scale.is_float() || scale == DType::F8E8M0) {
        op_bail!("a quantized type or int32 and a float scale are needed, not {} and {scale}", x.dtype);
    }
    if cx.has(2) && cx.dtype(2)? != x.dtype {
        op_bail!("the zero point is {} and the data {}", cx.dtype(2)?, x.dtype);
    }
    check_scale(cx, 0, 1)?;
    Ok(typed_as(dequantized(cx.node, scale)?, x.dims.clone()))
}

fn eval_dequantize(cx: &EvalCx) -> Values {
    let (x, at) = (cx.array(0)?, At::of(cx.node)?);
    let scale = Params::new(cx.array(1)?.f()?, x.shape(), at, "a scale")?;
    let zero = cx.opt(2).map_or_else(|| filled(&[], 0.0), |zero| Ok(zero.to_f64()))?;
    let zero = Params::new(&zero, x.shape(), at, "a zero point")?;
    let values = x.to_f64();
    let y = build(x.shape(), |ix| Ok((values[ix] - zero.at(ix)) * scale.at(ix)))?;
    Ok(vec![Array::float(dequantized(cx.node, cx.array(1)?.dtype)?, y)])
}

fn infer_dynamic(cx: &InferCx) -> Types {
    let x = cx.ty(0)?;
    if x.dtype != DType::F32 {
        op_bail!("float32 is needed, the input is {}", x.dtype);
    }
    let scalar = |dtype| TensorType::new(dtype, &[]);
    Ok(vec![TensorType { dtype: DType::U8, dims: x.dims.clone() }, scalar(DType::F32), scalar(DType::U8)])
}

fn eval_dynamic(cx: &EvalCx) -> Values {
    let x = cx.array(0)?.f()?;
    let low = x.iter().fold(0f32, |m, &v| m.min(v as f32));
    let high = x.iter().fold(0f32, |m, &v| m.max(v as f32));
    let scale = if high > low { (high - low) / 255.0 } else { 1.0 };
    let zero = saturate((-low / scale).into(), 0, DType::U8)?;
    let y = build(x.shape(), |ix| saturate((x[ix] as f32 / scale).into(), zero, DType::U8))?;
    Ok(vec![
        Array::int(DType::U8, y),
        Array::float(DType::F32, filled(&[], scale.into())?),
        Array::int(DType::U8, filled(&[], zero)?),
    ])
}

/// Dims of the product of the 8-bit inputs `a` and `b`.
fn product_dims(cx: &InferCx, a: usize, b: usize) -> Result<Option<Vec<Dim>>, OpError> {
    check_8bit(cx.dtype(a)?, "the first factor")?;
    check_8bit(cx.dtype(b)?, "the second factor")?;
    cx.dims(a)?.zip(cx.dims(b)?).map(|(a, b)| matmul_dims(a, b)).transpose()
}

/// A parameter of matrices as something that broadcasts against them: one number, a list with one for each row
/// (`by_row`) or column, or a tensor that broadcasts already.
fn of_matrix(p: &Array, by_row: bool) -> Result<Array, OpError> {
    match p.shape() {
        [1] => reshaped(p, &[]),
        &[n] if by_row => reshaped(p, &[n, 1]),
        _ => Ok(p.clone()),
    }
}

/// The integers less their zero points.
fn centred(x: &Array, zero: Option<&Array>, by_row: bool) -> Result<ArrayD<i64>, OpError> {
    check_8bit(x.dtype, "a factor")?;
    let x = x.i()?;
    match zero {
        None => Ok(x.clone()),
        Some(zero) => {
            check_8bit(zero.dtype, "a zero point")?;
            Ok(x - &expand(of_matrix(zero, by_row)?.i()?, x.shape())?)
        }
    }
}

fn infer_matmul_integer(cx: &InferCx) -> Types {
    Ok(typed_as(DType::I32, product_dims(cx, 0, 1)?))
}

fn eval_matmul_integer(cx: &EvalCx) -> Values {
    let a = centred(cx.array(0)?, cx.opt(2), true)?;
    let b = centred(cx.array(1)?, cx.opt(3), false)?;
    Ok(vec![Array::int(DType::I32, matmul(&a, &b)?)])
}

fn infer_qlinear_matmul(cx: &InferCx) -> Types {
    let dtype = cx.dtype(7)?;
    check_8bit(dtype, "y_zero_point")?;
    Ok(typed_as(dtype, product_dims(cx, 0, 3)?))
}

fn eval_qlinear_matmul(cx: &EvalCx) -> Values {
    let a = centred(cx.array(0)?, Some(cx.array(2)?), true)?;
    let b = centred(cx.array(3)?, Some(cx.array(5)?), false)?;
    let y = matmul(&a, &b)?;
    let scale = |i: usize, by_row: bool| expand(of_matrix(cx.array(i)?, by_row)?.f()?, y.shape());
    let (a, b, out) = (scale(1, true)?, scale(4, false)?, scale(6, true)?);
    let zero_point = cx.array(7)?;
    let zero = expand(of_matrix(zero_point, true)?.i()?, y.shape())?;
    let of = |ix: &[usize]| saturate(y[ix] as f64 * (a[ix] * b[ix] / out[ix]), zero[ix], zero_point.dtype);
    Ok(vec![Array::int(zero_point.dtype, build(y.shape(), of)?)])
}

/// Convolution of integers less their zero points; the weight's may be one for each output channel.
fn convolve_integers(cx: &EvalCx, x: usize, x_zero: usize, w: usize, w_zero: usize) -> Result<ArrayD<i64>, OpError> {
    for (i, what) in [(x, "the data"), (w, "the weight"), (x_zero, "a zero point"), (w_zero, "a zero point")] {
        cx.opt(i).map_or(Ok(()), |a| check_8bit(a.dtype, what))?;
    }
    let (x, w) = (cx.array(x)?.i()?, cx.array(w)?.i()?);
    let x_zero = cx.opt(x_zero).map_or(Ok(0), |z| one_int(z, "the zero point of the data"))?;
    let w_zero = zeros(cx.opt(w_zero), w.shape(), At::axis(0))?;
    convolve(cx.node, &x.mapv(|v| v - x_zero), &build(w.shape(), |ix| Ok(w[ix] - w_zero.at(ix)))?)
}

fn infer_conv_integer(cx: &InferCx) -> Types {
    check_8bit(cx.dtype(0)?, "the data")?;
    check_8bit(cx.dtype(1)?, "the weight")?;
    Ok(typed_as(DType::I32, conv_dims(cx, 0, 1, None)?))
}

fn eval_conv_integer(cx: &EvalCx) -> Values {
    Ok(vec![Array::int(DType::I32, convolve_integers(cx, 0, 2, 1, 3)?)])
}

fn infer_qlinear_conv(cx: &InferCx) -> Types {
    check_8bit(cx.dtype(0)?, "the data")?;
    check_8bit(cx.dtype(3)?, "the weight")?;
    let dtype = cx.dtype(7)?;
    check_8bit(dtype, "y_zero_point")?;
    if cx.has(8) && cx.dtype(8)? != DType::I32 {
        op_bail!("the bias must be int32, it is {}", cx.dtype(8)?);
    }
    Ok(typed_as(dtype, conv_dims(cx, 0, 3, Some(8))?))
}

fn eval_qlinear_conv(cx: &EvalCx) -> Values {
    let mut y = convolve_integers(cx, 0, 2, 3, 5)?;
    if let Some(bias) = cx.opt(8) {
        if bias.dtype != DType::I32 {
            op_bail!("the bias must be int32, it is {}", bias.dtype);
        }
        add_bias(&mut y, bias.i()?)?;
    }
    let (x_scale, y_scale) = (one_f64(cx.array(1)?, "x_scale")?, one_f64(cx.array(6)?, "y_scale")?);
    let w_scale = Params::new(cx.array(4)?.f()?, y.shape(), At::axis(1), "w_scale")?;
    let zero = one_int(cx.array(7)?, "y_zero_point")?;
    let dtype = cx.array(7)?.dtype;
    let of = |ix: &[usize]| saturate(y[ix] as f64 * (x_scale * w_scale.at(ix) / y_scale), zero, dtype);
    Ok(vec![Array::int(dtype, build(y.shape(), of)?)])
}
