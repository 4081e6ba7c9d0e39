//! Resize as gathers along each axis, with constant positions and weights: nearest, linear and cubic, antialiased too.

use super::{Composite, constant};
use crate::ops::resize::{Axis, Wanted, axes, nearest};
use crate::{Dim, Var};

/// Longest axis that is made.
const LONGEST: usize = 1 << 24;

/// Most neighbours of an element.
const MOST_TAPS: f64 = 4096.0;

/// The resized data.
pub(super) fn resize<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let mut y = op.x(0)?;
    let shape = y.shape();
    let axes = axes(op.node, shape.len()).map_err(|e| e.0)?;
    let wanted = Wanted::of(op.numbers(2)?, op.ints_of(3)?).ok_or("neither scales nor sizes are given")?;
    let dims: Vec<Dim> = shape.iter().copied().map(Dim::Known).collect();
    let resolved = wanted.resolve(op.node, &dims, &axes).map_err(|e| e.0)?;
    let roi = if crops(op) { op.numbers(1)?.ok_or("input 1 (roi) is missing")? } else { vec![] };
    if crops(op) && roi.len() != 2 * axes.len() {
        return Err(format!("roi {roi:?} does not fit the axes {axes:?}"));
    }
    for (i, (&axis, (scale, to))) in axes.iter().zip(resolved.into_iter().flatten()).enumerate() {
        let from = shape[axis];
        if from < 1 || !(1..=LONGEST).contains(&to) || !scale.is_finite() {
            return Err(format!("axis {axis} of {from} elements cannot be made {to} long"));
        }
        let roi = if crops(op) { (roi[i], roi[axes.len() + i]) } else { (0.0, 1.0) };
        if scale != 1.0 || roi != (0.0, 1.0) {
            y = along(op, y, axis, &Axis { from, to, scale, roi })?;
        }
    }
    Ok(vec![y])
}

/// Whether the regions of interest are what is resized.
fn crops(op: &Composite<'_, '_>) -> bool {
    op.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
}

/// The data with one axis resized: the sum over the neighbours of gathers times weights.
fn along<'c>(op: &Composite<'_, 'c>, x: Var<'c>, axis: usize, s: &Axis) -> Result<Var<'c>, String> {
    let source = s.positions(op.node).map_err(|e| e.0)?;
    let (from, last) = (s.from as f64, s.from as f64 - 1.0);
    let inside = |p: &f64| (0.0..=last).contains(p);
    let outside = crops(op) && !source.iter().all(inside);
    let mut wide = vec![1; x.rank()];
    wide[axis] = source.len();
    // Cropping beyond the data gives a constant.
    let cropped = |y: Var<'c>| {
        let known: Vec<f64> = source.iter().map(|p| f64::from(inside(p))).collect();
        let rest: Vec<f64> = known.iter().map(|k| (1.0 - k) * op.float("extrapolation_value", 0.0)).collect();
        if outside { y * constant(x, &wide, &known) + constant(x, &wide, &rest) } else { y }
    };
    let pick = |places: &mut dyn Iterator<Item = f64>| {
        let inside: Vec<i64> = places.map(|p| p.clamp(0.0, last) as i64).collect();
        x.gather(x.cx().ints(&inside), axis as i64)
    };
    let antialias = op.int("antialias", 0) != 0;
    let cubic = match op.text("mode", "nearest") {
        "nearest" => {
            let places: Result<Vec<f64>, _> = source.iter().map(|&p| nearest(op.node, p)).collect();
            return Ok(cropped(pick(&mut places.map_err(|e| e.0)?.into_iter())));
        }
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
            let outside = exclude && !(0.0..from).contains(&at);
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
