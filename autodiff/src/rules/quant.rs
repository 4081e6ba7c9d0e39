//! Straight-through gradients of quantisation. The gradient on the integer edge from QuantizeLinear to
//! DequantizeLinear is a float: that of the position on the integer grid, before rounding.
//!
//! Together the two give the clipped identity for the data, and for the scale the gradient of learned step sizes
//! (Esser et al., "Learned Step Size Quantization", 2020).

use super::{Grads, Rule, RuleFn, reshaped};
use limbeck_graph::Var;
use limbeck_graph::ops::normalize_axis;
use limbeck_tensor::DType;

pub(super) const RULES: &[(&str, RuleFn)] = &[("QuantizeLinear", quantize), ("DequantizeLinear", dequantize)];

/// Scale or zero point as floats of `like`'s dtype, shaped to broadcast against it.
fn wide<'c>(r: &Rule<'_, 'c>, v: Var<'c>, like: Var<'c>) -> Result<Var<'c>, String> {
    let shape = v.shape();
    let broadcast = match shape[..] {
        [] | [1] => vec![],
        [n] => {
            let mut broadcast = vec![1; like.rank()];
            broadcast[normalize_axis(r.int("axis", 1), like.rank()).map_err(|e| e.0)?] = n;
            broadcast
        }
        _ => return Err("scales in blocks have no gradient; use one a tensor or one a channel".into()),
    };
    Ok(reshaped(v.cast(like.dtype()), &broadcast))
}

/// Gradient of a scale from the gradients of its uses.
fn of_scale<'c>(r: &Rule<'_, 'c>, uses: Var<'c>) -> Result<Var<'c>, String> {
    let scale = r.x(1);
    let axis = match scale.len() {
        1 => None,
        _ => Some(normalize_axis(r.int("axis", 1), uses.rank()).map_err(|e| e.0)?),
    };
    let others: Vec<i64> = (0..uses.rank()).filter(|&i| Some(i) != axis).map(|i| i as i64).collect();
    let sum = if others.is_empty() { uses } else { uses.sum(&others) };
    Ok(reshaped(sum.cast(scale.dtype()), &scale.shape()))
}

fn quantize<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    let (x, g) = (r.x(0), r.g());
    let (low, high) = match r.y(0).dtype() {
        DType::I4 => (-8.0, 7.0),
        DType::U4 => (0.0, 15.0),
        DType::I8 => (-128.0, 127.0),
        DType::U8 => (0.0, 255.0),
        DType::I16 => (-32768.0, 32767.0),
        DType::U16 => (0.0, 65535.0),
        other => return Err(format!("quantisation to {other} has no gradient; 4, 8 and 16 bit integers have")),
    };
    let scale = wide(r, r.x(1), x)?;
    let steps = x / scale;
    let grid = match r.opt(2) {
        Some(zero_point) => r.cx.op("Round", &[steps], &[]) + wide(r, zero_point, x)?,
        None => r.cx.op("Round", &[steps], &[]),
    };
    let number = |n| r.cx.scalar_of(n, x.dtype());
    let inside = grid.greater_or_equal(number(low)).and(number(high).greater_or_equal(grid)).cast(x.dtype());
    let gx = g / scale * inside;
    let gs = r.wants(1).then(|| of_scale(r, -(gx * steps))).transpose()?;
    Ok(vec![Some(gx), gs])
}

fn dequantize<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    let (q, g) = (r.x(0), r.g());
    let gq = r.wants(0).then(|| Ok::<_, String>(g * wide(r, r.x(1), g)?)).transpose()?;
    let gs = r.wants(1).then(|| {
        let grid = q.cast(g.dtype());
        let steps = match r.opt(2) {
            Some(zero_point) => grid - wide(r, zero_point, g)?,
            None => grid,
        };
        of_scale(r, g * steps)
    });
    Ok(vec![gq, gs.transpose()?])
}
