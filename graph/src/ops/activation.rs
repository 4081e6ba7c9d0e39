//! Activation functions, and the softmax family.

use super::support::{float_attr, int_attr, str_attr};
use super::util::{
    Types, Values, check_expands, float_ty, like_float, like_signed, map_float, map_lanes, map_number, max, min,
    number_ty, number2, same_dtype,
};
use super::{EvalCx, InferCx, OpSpec, normalize_axis, op};
use crate::{Array, Node, OpError, op_bail};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

pub(super) const OPS: &[OpSpec] = &[
    op("Relu", like_signed, |cx| map_number(cx, |x| max(x, 0.0), |x| x.max(0))),
    op("LeakyRelu", like_float, |cx| {
        let alpha = float_attr(cx.node, "alpha", 0.01)?;
        map_float(cx, |x| if x < 0.0 { alpha * x } else { x })
    }),
    op("PRelu", infer_prelu, eval_prelu),
    op("ThresholdedRelu", like_float, |cx| {
        let alpha = float_attr(cx.node, "alpha", 1.0)?;
        map_float(cx, |x| if x > alpha { x } else { 0.0 })
    }),
    op("Sigmoid", like_float, |cx| map_float(cx, sigmoid)),
    op("Tanh", like_float, |cx| map_float(cx, f64::tanh)),
    op("HardSigmoid", like_float, |cx| {
        let (alpha, beta) = (float_attr(cx.node, "alpha", 0.2)?, float_attr(cx.node, "beta", 0.5)?);
        map_float(cx, |x| max(0.0, min(1.0, alpha * x + beta)))
    }),
    op("HardSwish", like_float, |cx| map_float(cx, |x| x * max(0.0, min(1.0, x / 6.0 + 0.5)))),
    op("Gelu", infer_gelu, eval_gelu),
    op("Softplus", like_float, |cx| map_float(cx, softplus)),
    op("Softsign", like_float, |cx| map_float(cx, |x| x / (1.0 + x.abs()))),
    op("Elu", like_float, |cx| {
        let alpha = float_attr(cx.node, "alpha", 1.0)?;
        map_float(cx, |x| if x < 0.0 { alpha * x.exp_m1() } else { x })
    }),
    op("Selu", like_float, |cx| {
        let alpha = float_attr(cx.node, "alpha", 1.673_263_2)?;
        let gamma = float_attr(cx.node, "gamma", 1.050_701)?;
        map_float(cx, |x| gamma * if x > 0.0 { x } else { alpha * x.exp_m1() })
    }),
    op("Celu", like_float, |cx| {
        let alpha = float_attr(cx.node, "alpha", 1.0)?;
        map_float(cx, |x| max(0.0, x) + min(0.0, alpha * (x / alpha).exp_m1()))
    }),
    op("Mish", like_float, |cx| map_float(cx, |x| x * softplus(x).tanh())),
    op("Swish", like_float, |cx| {
        let alpha = float_attr(cx.node, "alpha", 1.0)?;
        map_float(cx, |x| x * sigmoid(alpha * x))
    }),
    op("Shrink", like_float, |cx| {
        let (bias, lambd) = (float_attr(cx.node, "bias", 0.0)?, float_attr(cx.node, "lambd", 0.5)?);
        map_float(cx, |x| match x {
            x if x < -lambd => x + bias,
            x if x > lambd => x - bias,
            _ => 0.0,
        })
    }),
    op("Softmax", infer_softmax, |cx| over_axis(cx, softmax)),
    op("LogSoftmax", infer_softmax, |cx| over_axis(cx, log_softmax)),
    op("Hardmax", infer_softmax, |cx| over_axis(cx, hardmax)),
];

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// ln(1 + e^x) without overflow.
fn softplus(x: f64) -> f64 {
    max(x, 0.0) + (-x.abs()).exp().ln_1p()
}

fn infer_prelu(cx: &InferCx) -> Types {
    let (x, slope) = (number_ty(cx, 0)?, cx.ty(1)?);
    same_dtype(x, slope)?;
    check_expands(slope, x)?;
    Ok(vec![x.clone()])
}

fn eval_prelu(cx: &EvalCx) -> Values {
    let (x, slope) = (cx.array(0)?, cx.array(1)?);
    let y = number2(
        x,
        slope,
        |x, s| if x < 0.0 { s * x } else { x },
        |x, s| Ok(if x < 0 { s.wrapping_mul(x) } else { x }),
    )?;
    if y.shape() != x.shape() {
        op_bail!("the slope of shape {:?} cannot be broadcast to {:?}", slope.shape(), x.shape());
    }
    Ok(vec![y])
}

/// True for the tanh approximation of Gelu.
fn gelu_tanh(node: &Node) -> Result<bool, OpError> {
    match str_attr(node, "approximate", "none")? {
        "none" => Ok(false),
        "tanh" => Ok(true),
        other => op_bail!("approximate = '{other}' is neither 'none' nor 'tanh'"),
    }
}

fn infer_gelu(cx: &InferCx) -> Types {
    gelu_tanh(cx.node)?;
    like_float(cx)
}

fn eval_gelu(cx: &EvalCx) -> Values {
    if gelu_tanh(cx.node)? {
        map_float(cx, |x| 0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()))
    } else {
        map_float(cx, |x| 0.5 * x * (1.0 + libm::erf(x * FRAC_1_SQRT_2)))
    }
}

fn infer_softmax(cx: &InferCx) -> Types {
    let x = float_ty(cx, 0)?;
    if let Some(rank) = x.rank() {
        normalize_axis(int_attr(cx.node, "axis", -1)?, rank)?;
    }
    Ok(vec![x.clone()])
}

fn over_axis(cx: &EvalCx, f: fn(&mut [f64])) -> Values {
    let x = cx.array(0)?;
    let axis = normalize_axis(int_attr(cx.node, "axis", -1)?, x.shape().len())?;
    Ok(vec![Array::float(x.dtype, map_lanes(x.f()?, &[axis], f)?)])
}

fn softmax(lane: &mut [f64]) {
    log_softmax(lane);
    lane.iter_mut().for_each(|x| *x = x.exp());
}

fn log_softmax(lane: &mut [f64]) {
    let top = lane.iter().copied().fold(f64::NEG_INFINITY, max);
    let log_sum = lane.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
    lane.iter_mut().for_each(|x| *x = *x - top - log_sum);
}

/// 1 at the first maximum, 0 elsewhere.
fn hardmax(lane: &mut [f64]) {
    let mut best = 0;
    for (i, x) in lane.iter().enumerate() {
        if *x > lane[best] {
            best = i;
        }
    }
    lane.iter_mut().enumerate().for_each(|(i, x)| *x = f64::from(u8::from(i == best)));
}
