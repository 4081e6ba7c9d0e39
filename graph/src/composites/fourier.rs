//! DFT and STFT as products with constant matrices of cosines and sines.

use super::{Composite, constant, extent};
use crate::Var;
use crate::ops::normalize_axis;
use std::f64::consts::TAU;

/// Most entries of such a matrix.
const LARGEST: usize = 1 << 24;

/// A transform: its length, direction, and whether only the first half of the frequencies is wanted.
struct Transform {
    length: usize,
    inverse: bool,
    onesided: bool,
}

/// DFT along an axis of `[..., 1]` (real) or `[..., 2]` (complex) data.
pub(super) fn dft<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let x = op.x(0)?;
    let rank = x.rank();
    let axis = op.ints_of(2)?.and_then(|v| v.first().copied()).unwrap_or(-2);
    let axis = normalize_axis(axis, rank).map_err(|e| e.0)?;
    if axis + 1 == rank {
        return Err("the last axis holds real and imaginary parts".into());
    }
    let length = match op.ints_of(1)?.as_deref() {
        Some(&[n, ..]) => extent(n, LARGEST, "dft_length")?,
        _ => x.shape()[axis],
    };
    let (inverse, onesided) = (op.int("inverse", 0) != 0, op.int("onesided", 0) != 0);
    transform(x, axis, &Transform { length, inverse, onesided }).map(|y| vec![y])
}

/// STFT of a signal `[batch, samples, 1 or 2]`: the DFT of its windowed frames, `[batch, frames, frequencies, 2]`.
pub(super) fn stft<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let x = op.x(0)?;
    let &[_, samples, _] = &x.shape()[..] else { return Err(format!("the signal {:?} must have rank 3", x.shape())) };
    let first = |i: usize| Ok::<_, String>(op.ints_of(i)?.and_then(|v| v.first().copied()));
    let step = extent(first(1)?.ok_or("input 1 is missing")?, samples, "frame_step")?;
    let length = match (first(3)?, op.opt(2)) {
        (Some(n), _) => extent(n, samples, "frame_length")?,
        (None, Some(window)) => window.len(),
        (None, None) => return Err("neither window nor frame_length is given".into()),
    };
    if step == 0 || length == 0 || length > samples {
        return Err(format!("frames of {length} every {step} do not fit {samples} samples"));
    }
    let frames = 1 + (samples - length) / step;
    if frames.saturating_mul(length) > LARGEST {
        return Err(format!("{frames} frames of {length} are more than {LARGEST} samples"));
    }
    let from: Vec<i64> = (0..frames * length).map(|i| (i / length * step + i % length) as i64).collect();
    let mut framed = x.gather(op.cx.ints(&from).reshape(&[frames, length]), 1);
    if let Some(window) = op.opt(2) {
        framed = framed * window.reshape(&[length, 1]);
    }
    let onesided = op.int("onesided", 1) != 0;
    transform(framed, 2, &Transform { length, inverse: false, onesided }).map(|y| vec![y])
}

/// The transform along `axis`. Data longer than it are cut, shorter ones count as followed by zeros.
fn transform<'c>(x: Var<'c>, axis: usize, t: &Transform) -> Result<Var<'c>, String> {
    let shape = x.shape();
    let (have, parts) = (shape[axis], shape[shape.len() - 1]);
    if !(1..=2).contains(&parts) || have == 0 || t.length == 0 {
        return Err(format!("data {shape:?} with a transform of length {}", t.length));
    }
    if t.onesided && (t.inverse || parts == 2) {
        return Err("onesided is for the forward transform of real data".into());
    }
    let wanted = if t.onesided { t.length / 2 + 1 } else { t.length };
    let columns = 2 * wanted;
    if have.saturating_mul(parts).saturating_mul(columns) > LARGEST {
        return Err(format!("a transform of {have} samples to {wanted} frequencies needs too large a matrix"));
    }
    let (sign, scale) = if t.inverse { (1.0, 1.0 / t.length as f64) } else { (-1.0, 1.0) };
    // Rows are (sample, part), columns (frequency, part).
    let entry = |i: usize| {
        let ((sample, from), (frequency, to)) = ((i / columns / parts, i / columns % parts), (i % columns / 2, i % 2));
        let turn = sign * TAU * (sample * frequency % t.length) as f64 / t.length as f64;
        match (from, to) {
            _ if sample >= t.length => 0.0,
            (0, 0) | (1, 1) => turn.cos() * scale,
            (0, _) => turn.sin() * scale,
            _ => -turn.sin() * scale,
        }
    };
    let matrix: Vec<f64> = (0..have * parts * columns).map(entry).collect();
    let matrix = constant(x, &[have * parts, columns], &matrix);
    // The axis moves next to the parts and back.
    let last = shape.len() - 1;
    let order: Vec<usize> = (0..last).filter(|&a| a != axis).chain([axis, last]).collect();
    let moved = if axis + 1 == last { x } else { x.transpose(&order) };
    let lead: Vec<usize> = order[..last - 1].iter().map(|&a| shape[a]).collect();
    let y = moved.reshape(&[lead.iter().product(), have * parts]).matmul(matrix);
    let y = y.reshape(&[&lead[..], &[wanted, 2]].concat());
    let back: Vec<usize> = (0..axis).chain([last - 1]).chain(axis..last - 1).chain([last]).collect();
    Ok(if axis + 1 == last { y } else { y.transpose(&back) })
}
