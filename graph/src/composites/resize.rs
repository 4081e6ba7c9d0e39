//! Resize as gathers along each axis, with constant positions and weights: nearest, linear and cubic, antialiased too.

use super::{Composite, constant};
use crate::Var;
use crate::ops::normalize_axis;

/// Longest axis that is made.
const LONGEST: f64 = 16_777_216.0;

/// Most neighbours of an element.
const MOST_TAPS: f64 = 4096.0;

/// An axis of `from` elements made `to` long, a step of the data being `scale` long.
#[derive(Clone, Copy)]
struct Stretch {
    from: f64,
    to: f64,
    scale: f64,
    /// Start and end of what is cropped, as shares of the axis.
    part: Option<(f64, f64)>,
}

/// The resized data.
pub(super) fn resize<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let mut y = op.x(0)?;
    let shape = y.shape();
    let axes = op.node.ints("axes").map_or_else(|| (0..shape.len() as i64).collect(), <[i64]>::to_vec);
    let axes: Vec<usize> =
        axes.iter().map(|&a| normalize_axis(a, shape.len())).collect::<Result<_, _>>().map_err(|e| e.0)?;
    let (scales, sizes) = (op.numbers(2)?, op.numbers(3)?);
    let given = scales.as_ref().or(sizes.as_ref()).ok_or("neither scales nor sizes are given")?;
    if given.len() != axes.len() {
        return Err(format!("{given:?} does not fit the axes {axes:?}"));
    }
    // One scale for all axes, when the sizes only bound the result.
    let ratios = axes.iter().zip(given).map(|(&axis, &size)| size / shape[axis] as f64);
    let common = match op.text("keep_aspect_ratio_policy", "stretch") {
        _ if scales.is_some() => None,
        "stretch" => None,
        "not_larger" => ratios.reduce(f64::min),
        "not_smaller" => ratios.reduce(f64::max),
        other => return Err(format!("keep_aspect_ratio_policy '{other}' is unknown")),
    };
    let crop = op.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize";
    let roi = if crop { op.numbers(1)?.ok_or("input 1 (roi) is missing")? } else { vec![] };
    if crop && roi.len() != 2 * axes.len() {
        return Err(format!("roi {roi:?} does not fit the axes {axes:?}"));
    }
    for (i, (&axis, &number)) in axes.iter().zip(given).enumerate() {
        let from = shape[axis] as f64;
        let (scale, to) = match (&scales, common) {
            (Some(_), _) => (number, (from * number).floor()),
            (None, Some(common)) => (common, (common * from + 0.5).floor()),
            (None, None) => (number / from, number),
        };
        if from < 1.0 || !(1.0..=LONGEST).contains(&to) || !scale.is_finite() {
            return Err(format!("axis {axis} of {from} elements cannot be resized by {number}"));
        }
        let part = crop.then(|| (roi[i], roi[axes.len() + i]));
        if scale != 1.0 || part.is_some_and(|p| p != (0.0, 1.0)) {
            y = along(op, y, axis, Stretch { from, to, scale, part })?;
        }
    }
    Ok(vec![y])
}

/// The data with one axis resized: the sum over the neighbours of gathers times weights.
fn along<'c>(op: &Composite<'_, 'c>, x: Var<'c>, axis: usize, s: Stretch) -> Result<Var<'c>, String> {
    let source: Vec<f64> = (0..s.to as usize).map(|i| position(op, i as f64, s)).collect::<Result<_, _>>()?;
    let inside = |p: &f64| (0.0..=s.from - 1.0).contains(p);
    let outside = s.part.is_some() && !source.iter().all(inside);
    let mut wide = vec![1; x.rank()];
    wide[axis] = source.len();
    // Cropping beyond the data gives a constant.
    let cropped = |y: Var<'c>| {
        let known: Vec<f64> = source.iter().map(|p| f64::from(inside(p))).collect();
        let rest: Vec<f64> = known.iter().map(|k| (1.0 - k) * op.float("extrapolation_value", 0.0)).collect();
        if outside { y * constant(x, &wide, &known) + constant(x, &wide, &rest) } else { y }
    };
    let pick = |places: &mut dyn Iterator<Item = f64>| {
        let inside: Vec<i64> = places.map(|p| p.clamp(0.0, s.from - 1.0) as i64).collect();
        x.gather(x.cx().ints(&inside), axis as i64)
    };
    let antialias = op.int("antialias", 0) != 0;
    let cubic = match op.text("mode", "nearest") {
        "nearest" => return Ok(cropped(pick(&mut source.iter().copied().map(nearest(op)?)))),
        "linear" => false,
        "cubic" => true,
        other => return Err(format!("mode '{other}' has no composition; nearest, linear and cubic have")),
    };
    let a = op.float("cubic_coeff_a", -0.75);
    // Antialiasing widens the filter by as much as the data shrink.
    let narrow = if antialias { s.scale.min(1.0) } else { 1.0 };
    let reach = if cubic { 2.0 } else { 1.0 } / narrow;
    if reach > MOST_TAPS {
        return Err(format!("a filter of {reach} elements to each side is too wide"));
    }
    let first = |p: f64| p.floor() - reach.ceil() + 1.0;
    let taps = 2 * reach.ceil() as usize;
    let exclude = op.int("exclude_outside", 0) != 0;
    let weights = source.iter().map(|&p| {
        let weight = |t: usize| {
            let at = first(p) + t as f64;
            let outside = exclude && !(0.0..s.from).contains(&at);
            if outside { 0.0 } else { filter((at - p).abs() * narrow, cubic.then_some(a)) }
        };
        let all: Vec<f64> = (0..taps).map(weight).collect();
        let sum: f64 = if antialias || exclude { all.iter().sum() } else { 1.0 };
        all.into_iter().map(|w| w / sum).collect::<Vec<f64>>()
    });
    let weights: Vec<Vec<f64>> = weights.collect();
    let terms = (0..taps).filter(|&t| weights.iter().any(|w| w[t] != 0.0)).map(|t| {
        let shares: Vec<f64> = weights.iter().map(|w| w[t]).collect();
        pick(&mut source.iter().map(|&p| first(p) + t as f64)) * constant(x, &wide, &shares)
    });
    terms.reduce(|sum, term| sum + term).map(cropped).ok_or_else(|| "all weights are 0".into())
}

/// Weight of an element at this distance: a triangle, or cubic convolution with the coefficient `a` (R. Keys, 1981).
fn filter(d: f64, a: Option<f64>) -> f64 {
    match a {
        None => (1.0 - d).max(0.0),
        Some(a) if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
        Some(a) if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
        Some(_) => 0.0,
    }
}

/// How `nearest_mode` rounds.
fn nearest(op: &Composite<'_, '_>) -> Result<fn(f64) -> f64, String> {
    Ok(match op.text("nearest_mode", "round_prefer_floor") {
        "round_prefer_floor" => |p| (p - 0.5).ceil(),
        "round_prefer_ceil" => |p| (p + 0.5).floor(),
        "floor" => f64::floor,
        "ceil" => f64::ceil,
        other => return Err(format!("nearest_mode '{other}' is unknown")),
    })
}

/// The place in the data that element `i` of the result is taken from.
fn position(op: &Composite<'_, '_>, i: f64, Stretch { from, to, scale, part }: Stretch) -> Result<f64, String> {
    let half = (i + 0.5) / scale - 0.5;
    Ok(match op.text("coordinate_transformation_mode", "half_pixel") {
        "half_pixel" => half,
        "half_pixel_symmetric" => from / 2.0 * (1.0 - to / (from * scale)) + half,
        "asymmetric" => i / scale,
        "pytorch_half_pixel" | "align_corners" if to == 1.0 => 0.0,
        "pytorch_half_pixel" => half,
        "align_corners" => i * (from - 1.0) / (to - 1.0),
        "tf_crop_and_resize" => match part {
            Some((start, end)) if to > 1.0 => (start + i * (end - start) / (to - 1.0)) * (from - 1.0),
            Some((start, end)) => (start + end) / 2.0 * (from - 1.0),
            None => return Err("the roi is missing".into()),
        },
        other => return Err(format!("coordinate_transformation_mode '{other}' has no composition")),
    })
}
