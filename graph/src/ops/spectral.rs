//! Fourier transforms, the windows that go with them, and mel filters. Formulas: the ONNX operator specification.

use super::support::{
    build, check_rank, const_number, extent, flag_attr, int_attr, one_f64, one_int, product, show, typed_as,
};
use super::util::{Types, Values, check_size, float_ty, is_number, same_dtype};
use super::{EvalCx, InferCx, OpSpec, normalize_axis, op};
use crate::types::{Dim, TensorType};
use crate::{Array, Node, OpError, op_bail};
use limbeck_tensor::DType;
use ndarray::{ArrayD, IxDyn};
use std::f64::consts::TAU;

pub(super) const OPS: &[OpSpec] = &[
    op("DFT", infer_dft, eval_dft),
    op("STFT", infer_stft, eval_stft),
    op("HannWindow", infer_window, |cx| eval_window(cx, |t| 0.5 - 0.5 * (TAU * t).cos())),
    op("HammingWindow", infer_window, |cx| eval_window(cx, |t| 25.0 / 46.0 - 21.0 / 46.0 * (TAU * t).cos())),
    op("BlackmanWindow", infer_window, |cx| {
        eval_window(cx, |t| 0.42 - 0.5 * (TAU * t).cos() + 0.08 * (2.0 * TAU * t).cos())
    }),
    op("MelWeightMatrix", infer_mel, eval_mel),
];

/// Real and imaginary part.
type Complex = [f64; 2];

/// `sum over t of x[t] e^(sign 2 pi i k t / n)` for the first `bins` values of `k`; `x` is cut or filled with zeros to
/// `n` elements.
fn transform(x: &[Complex], n: usize, bins: usize, sign: f64) -> Vec<Complex> {
    let bin = |k: usize| {
        x.iter().take(n).enumerate().fold([0.0; 2], |[re, im], (t, [a, b])| {
            let (sin, cos) = (sign * TAU * ((k as u128 * t as u128) % n as u128) as f64 / n as f64).sin_cos();
            [re + a * cos - b * sin, im + a * sin + b * cos]
        })
    };
    (0..bins).map(bin).collect()
}

/// How a DFT node transforms an axis.
#[derive(Clone, Copy)]
struct Kind {
    inverse: bool,
    onesided: bool,
}

impl Kind {
    fn of(node: &Node) -> Result<Kind, OpError> {
        Ok(Kind { inverse: flag_attr(node, "inverse", false)?, onesided: flag_attr(node, "onesided", false)? })
    }

    /// Checks the parts of a number (1: real, 2: complex) and gives those of the result.
    fn parts(self, given: usize) -> Result<usize, OpError> {
        match (self.onesided, self.inverse, given) {
            (false, _, 1 | 2) | (true, false, 1) => Ok(2),
            (true, true, 2) => Ok(1),
            (true, false, 2) => op_bail!("onesided needs real data, the last extent is 2"),
            (true, true, 1) => op_bail!("the inverse with onesided needs complex data, the last extent is 1"),
            _ => op_bail!("the last extent must be 1 (real) or 2 (complex), it is {given}"),
        }
    }

    /// Length of the transform of an axis of `n` elements when none is stated.
    fn length(self, n: usize) -> usize {
        if self.onesided && self.inverse { n.saturating_sub(1).saturating_mul(2) } else { n }
    }

    /// Extent of the transformed axis.
    fn bins(self, length: usize) -> usize {
        if self.onesided && !self.inverse { length / 2 + 1 } else { length }
    }
}

/// `axis` counted from the front; the last one holds the parts of numbers.
fn signal_axis(axis: i64, rank: usize) -> Result<usize, OpError> {
    let at = normalize_axis(axis, rank)?;
    if at + 1 == rank {
        op_bail!("axis {axis} of a tensor of rank {rank} holds the parts of complex numbers");
    }
    Ok(at)
}

fn infer_dft(cx: &InferCx) -> Types {
    let (x, kind) = (float_ty(cx, 0)?, Kind::of(cx.node)?);
    let Some(dims) = &x.dims else { return Ok(typed_as(x.dtype, None)) };
    let Some((last, signal)) = dims.split_last() else { op_bail!("a scalar has no axis to transform") };
    let parts = match last.known() {
        Some(n) => kind.parts(n)?,
        None => {
            if kind.onesided && kind.inverse {
                1
            } else {
                2
            }
        }
    };
    let stated =
        if cx.has(1) { const_number(cx, 1).map(|n| extent(n as i64, "dft_length")).transpose()? } else { None };
    let mut dims = [signal, &[Dim::Known(parts)]].concat();
    match cx.has(2).then(|| const_number(cx, 2)) {
        Some(None) => signal.iter().enumerate().for_each(|(d, _)| dims[d] = Dim::Unknown),
        axis => {
            let axis = signal_axis(axis.flatten().map_or(-2, |a| a as i64), dims.len())?;
            let length = if cx.has(1) { stated } else { dims[axis].known().map(|n| kind.length(n)) };
            let keeps = !cx.has(1) && !kind.onesided;
            if !keeps || length.is_some() {
                dims[axis] = length.map_or(Dim::Unknown, |n| Dim::Known(kind.bins(n)));
            }
        }
    }
    Ok(typed_as(x.dtype, Some(dims)))
}

/// `x` `[..., parts]` with what `f` makes of its `axis`: `bins` numbers of `parts` parts.
fn lanes(
    x: &ArrayD<f64>,
    axis: usize,
    [bins, parts]: [usize; 2],
    f: impl Fn(&[Complex]) -> Vec<Complex>,
) -> Result<ArrayD<f64>, OpError> {
    let (last, mut shape) = (x.ndim() - 1, x.shape().to_vec());
    (shape[axis], shape[last]) = (bins, parts);
    check_size(&shape)?;
    let mut y = ArrayD::zeros(IxDyn(&shape));
    let mut lanes = shape.clone();
    (lanes[axis], lanes[last]) = (1, 1);
    for lane in ndarray::indices(IxDyn(&lanes)) {
        let mut at = ndarray::Dimension::slice(&lane).to_vec();
        let mut number = |t: usize| {
            let mut part = |p: usize| {
                (at[axis], at[last]) = (t, p);
                if p < x.shape()[last] { x[&at[..]] } else { 0.0 }
            };
            [part(0), part(1)]
        };
        let signal: Vec<Complex> = (0..x.shape()[axis]).map(&mut number).collect();
        for (k, value) in f(&signal).into_iter().enumerate() {
            for (p, part) in value.into_iter().enumerate().take(parts) {
                (at[axis], at[last]) = (k, p);
                y[&at[..]] = part;
            }
        }
    }
    Ok(y)
}

fn eval_dft(cx: &EvalCx) -> Values {
    let (x, kind) = (cx.array(0)?, Kind::of(cx.node)?);
    let (a, shape) = (x.f()?, x.shape());
    let axis = cx.opt(2).map(|a| one_int(a, "the axis")).transpose()?.unwrap_or(-2);
    let axis = signal_axis(axis, shape.len())?;
    let parts = kind.parts(shape[shape.len() - 1])?;
    let n = match cx.opt(1) {
        Some(n) => extent(one_int(n, "dft_length")?, "dft_length")?,
        None => kind.length(shape[axis]),
    };
    let sign = if kind.inverse { 1.0 } else { -1.0 };
    let y = lanes(a, axis, [kind.bins(n), parts], |signal| {
        let mut full = signal.to_vec();
        if kind.onesided && kind.inverse {
            // What is not stated is the conjugate of what is; the parts that must be real are taken as such.
            full.resize(n / 2 + 1, [0.0; 2]);
            full[0][1] = 0.0;
            if n % 2 == 0 {
                full[n / 2][1] = 0.0;
            }
            let mirrored: Vec<Complex> = (n / 2 + 1..n).map(|k| [full[n - k][0], -full[n - k][1]]).collect();
            full.extend(mirrored);
        }
        let mut bins = transform(&full, n, kind.bins(n), sign);
        if kind.inverse {
            bins.iter_mut().flatten().for_each(|v| *v /= n as f64);
        }
        bins
    })?;
    Ok(vec![Array::float(x.dtype, y)])
}

/// Frames over a signal.
fn frames(signal: usize, frame: usize, step: usize) -> Result<usize, OpError> {
    if step == 0 || frame == 0 || frame > signal {
        op_bail!("frames of {frame} elements, {step} apart, do not fit a signal of {signal}");
    }
    Ok((signal - frame) / step + 1)
}

fn infer_stft(cx: &InferCx) -> Types {
    let x = float_ty(cx, 0)?;
    let onesided = flag_attr(cx.node, "onesided", true)?;
    let number = |i: usize| const_number(cx, i).map(|n| extent(n as i64, "a number of elements")).transpose();
    let mut frame = if cx.has(3) { number(3)?.map_or(Dim::Unknown, Dim::Known) } else { Dim::Unknown };
    if cx.has(2) {
        same_dtype(x, cx.ty(2)?)?;
        if let Some(window) = cx.dims(2)? {
            check_rank(window, 1, "the window")?;
            frame = super::support::unify(&frame, &window[0], "window and frame_length")?;
        }
    }
    let Some(dims) = &x.dims else {
        return Ok(typed_as(x.dtype, Some(vec![Dim::Unknown, Dim::Unknown, Dim::Unknown, Dim::Known(2)])));
    };
    check_rank(dims, 3, "the signal")?;
    if !cx.has(2) && !cx.has(3) {
        frame = dims[1].clone();
    }
    let count = match (dims[1].known(), frame.known(), number(1)?) {
        (Some(signal), Some(frame), Some(step)) => Dim::Known(frames(signal, frame, step)?),
        _ => Dim::Unknown,
    };
    let bins = match frame.known() {
        Some(n) if onesided => Dim::Known(n / 2 + 1),
        None if onesided => Dim::Unknown,
        _ => frame,
    };
    Ok(typed_as(x.dtype, Some(vec![dims[0].clone(), count, bins, Dim::Known(2)])))
}

fn eval_stft(cx: &EvalCx) -> Values {
    let (x, onesided) = (cx.array(0)?, flag_attr(cx.node, "onesided", true)?);
    let &[batch, signal, parts @ (1 | 2)] = x.shape() else {
        op_bail!("the signal must be [batch, length, 1 or 2], its shape is {:?}", x.shape());
    };
    let step = extent(one_int(cx.array(1)?, "frame_step")?, "frame_step")?;
    let window = cx.opt(2).map(Array::f).transpose()?;
    let stated = cx.opt(3).map(|n| extent(one_int(n, "frame_length")?, "frame_length")).transpose()?;
    let frame = stated.or(window.map(ArrayD::len)).unwrap_or(signal);
    if window.is_some_and(|w| w.shape() != [frame]) {
        op_bail!("the window must have {frame} elements");
    }
    if onesided && parts == 2 {
        op_bail!("onesided needs a real signal, the last extent is 2");
    }
    let count = frames(signal, frame, step)?;
    let a = x.f()?;
    let framed = build(&[batch, count, frame, parts], |ix| {
        Ok(a[&[ix[0], ix[1] * step + ix[2], ix[3]][..]] * window.map_or(1.0, |w| w[&[ix[2]][..]]))
    })?;
    let bins = if onesided { frame / 2 + 1 } else { frame };
    let y = lanes(&framed, 2, [bins, 2], |signal| transform(signal, frame, bins, -1.0))?;
    Ok(vec![Array::float(x.dtype, y)])
}

/// The dtype of what a node makes, a number; float32 when it does not say.
fn output_dtype(node: &Node) -> Result<DType, OpError> {
    let code = int_attr(node, "output_datatype", 1)?;
    let dtype = i32::try_from(code).ok().and_then(DType::from_onnx).filter(|d| is_number(*d));
    dtype.ok_or_else(|| OpError(format!("output_datatype {code} is no type of numbers")))
}

/// An array of a dtype; what is to be an integer is truncated.
fn numbers(dtype: DType, data: ArrayD<f64>) -> Array {
    if dtype.is_float() { Array::float(dtype, data) } else { Array::int(dtype, data.mapv(|v| v as i64)) }
}

fn infer_window(cx: &InferCx) -> Types {
    let n = const_number(cx, 0).map(|n| extent(n as i64, "the window's size")).transpose()?;
    cx.dims(0)?.map(product).transpose()?;
    Ok(typed_as(output_dtype(cx.node)?, Some(vec![n.map_or(Dim::Unknown, Dim::Known)])))
}

/// The window `f(t)`, `t` going from 0 to 1: at its last element, or (`periodic`) behind it.
fn eval_window(cx: &EvalCx, f: fn(f64) -> f64) -> Values {
    let n = extent(one_int(cx.array(0)?, "the window's size")?, "the window's size")?;
    let span = if flag_attr(cx.node, "periodic", true)? { n as f64 } else { n as f64 - 1.0 };
    Ok(vec![numbers(output_dtype(cx.node)?, build(&[n], |ix| Ok(f(ix[0] as f64 / span)))?)])
}

fn infer_mel(cx: &InferCx) -> Types {
    let number = |i: usize, what: &str| const_number(cx, i).map(|n| extent(n as i64, what)).transpose();
    let filters = number(0, "num_mel_bins")?.map_or(Dim::Unknown, Dim::Known);
    let bins = number(1, "dft_length")?.map_or(Dim::Unknown, |n| Dim::Known(n / 2 + 1));
    for i in 0..5 {
        if let Some(dims) = cx.dims(i)?
            && product(dims)?.known().is_some_and(|n| n != 1)
        {
            op_bail!("input {i} must be one number, its shape is {}", show(dims));
        }
    }
    Ok(vec![TensorType::with_dims(output_dtype(cx.node)?, vec![bins, filters])])
}

/// Triangles over the bins of a spectrum, equally spaced in mel, `2595 log10(1 + f / 700)`, each with a peak of 1.
fn eval_mel(cx: &EvalCx) -> Values {
    let integer = |i: usize, what: &str| extent(one_int(cx.array(i)?, what)?, what);
    let (filters, length) = (integer(0, "num_mel_bins")?, integer(1, "dft_length")?);
    let rate = integer(2, "sample_rate")? as f64;
    let mel = |f: f64| 2595.0 * (1.0 + f / 700.0).log10();
    let (low, high) = (one_f64(cx.array(3)?, "lower_edge_hertz")?, one_f64(cx.array(4)?, "upper_edge_hertz")?);
    let (bins, step) = (length / 2 + 1, (mel(high) - mel(low)) / (filters as f64 + 2.0));
    let mut y = super::support::filled(&[bins, filters], 0.0)?;
    let edge = |i: usize| {
        let hertz = 700.0 * (10f64.powf((i as f64 * step + mel(low)) / 2595.0) - 1.0);
        let bin = ((length as f64 + 1.0) * hertz / rate).floor();
        match (0.0..bins as f64).contains(&bin) {
            true => Ok(bin as usize),
            false => op_bail!("edge {i} of the filters at {hertz} Hz is outside the {bins} bins of the spectrum"),
        }
    };
    for filter in 0..filters {
        let [left, centre, right] = [edge(filter)?, edge(filter + 1)?, edge(filter + 2)?];
        y[[centre, filter].as_slice()] = 1.0;
        for bin in left..centre {
            y[[bin, filter].as_slice()] = (bin - left) as f64 / (centre - left) as f64;
        }
        for bin in centre..right {
            y[[bin, filter].as_slice()] = (right - bin) as f64 / (right - centre) as f64;
        }
    }
    Ok(vec![numbers(output_dtype(cx.node)?, y)])
}
