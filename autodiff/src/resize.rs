//! Resize (nearest and linear) as gathers along each axis, with constant positions and weights.

use limbeck_graph::ops::normalize_axis;
use limbeck_graph::{Node, Var};

/// Longest axis that is made.
const LONGEST: f64 = 16_777_216.0;

/// The resized data; the reason when the node asks for something else.
pub(crate) fn resize<'c>(node: &Node, inputs: &[Option<Var<'c>>]) -> Result<Var<'c>, String> {
    let mut y = inputs.first().copied().flatten().ok_or("input 0 is missing")?;
    let unusual = node.int("antialias").unwrap_or(0) != 0
        || node.str("keep_aspect_ratio_policy").is_some_and(|policy| policy != "stretch");
    if unusual {
        return Err("antialias and keep_aspect_ratio_policy have no composition".into());
    }
    let shape = y.shape();
    let axes = node.ints("axes").map_or_else(|| (0..shape.len() as i64).collect(), <[i64]>::to_vec);
    let (scales, sizes) = (numbers(inputs, 2)?, numbers(inputs, 3)?);
    let given = scales.as_ref().or(sizes.as_ref()).ok_or("neither scales nor sizes are given")?;
    if given.len() != axes.len() {
        return Err(format!("{given:?} does not fit the axes {axes:?}"));
    }
    for (&axis, &number) in axes.iter().zip(given) {
        let axis = normalize_axis(axis, shape.len()).map_err(|e| e.0)?;
        let from = shape[axis] as f64;
        let (scale, to) = if scales.is_some() { (number, (from * number).floor()) } else { (number / from, number) };
        if from < 1.0 || !(1.0..=LONGEST).contains(&to) || !scale.is_finite() {
            return Err(format!("axis {axis} of {from} elements cannot be resized by {number}"));
        }
        if scale != 1.0 {
            y = along(node, y, axis, (from, to, scale))?;
        }
    }
    Ok(y)
}

/// Numbers of the constant input `i`; `None` when it is absent or empty.
fn numbers(inputs: &[Option<Var<'_>>], i: usize) -> Result<Option<Vec<f64>>, String> {
    let Some(v) = inputs.get(i).copied().flatten() else { return Ok(None) };
    let constant = v.cx().graph().constant(v.id()).and_then(|t| t.to_f64_vec().ok());
    let values = constant.ok_or_else(|| format!("its input {i} must be constant; fix shapes and fold constants"))?;
    Ok(Some(values).filter(|v| !v.is_empty()))
}

/// One axis of `from` elements resized to `to`.
fn along<'c>(node: &Node, x: Var<'c>, axis: usize, (from, to, scale): (f64, f64, f64)) -> Result<Var<'c>, String> {
    let source = (0..to as usize).map(|i| position(node, i as f64, (from, to, scale)));
    let source: Vec<f64> = source.collect::<Result<_, _>>()?;
    let pick = |places: Vec<f64>| {
        let inside: Vec<i64> = places.iter().map(|p| p.clamp(0.0, from - 1.0) as i64).collect();
        x.gather(x.cx().ints(&inside), axis as i64)
    };
    match node.str("mode").unwrap_or("nearest") {
        "nearest" => {
            let round: fn(f64) -> f64 = match node.str("nearest_mode").unwrap_or("round_prefer_floor") {
                "round_prefer_floor" => |p| (p - 0.5).ceil(),
                "round_prefer_ceil" => |p| (p + 0.5).floor(),
                "floor" => f64::floor,
                "ceil" => f64::ceil,
                other => return Err(format!("nearest_mode '{other}' is unknown")),
            };
            Ok(pick(source.into_iter().map(round).collect()))
        }
        "linear" => {
            let clamped: Vec<f64> = source.iter().map(|p| p.clamp(0.0, from - 1.0)).collect();
            let mut wide = vec![1; x.rank()];
            wide[axis] = clamped.len();
            let share: Vec<f64> = clamped.iter().map(|p| p.fract()).collect();
            let share = x.cx().floats(&wide, &share).cast(x.dtype());
            let low = pick(clamped.iter().map(|p| p.floor()).collect());
            let high = pick(clamped.iter().map(|p| p.floor() + 1.0).collect());
            Ok(low * (1.0 - share) + high * share)
        }
        other => Err(format!("mode '{other}' has no composition; nearest and linear have")),
    }
}

/// The place in the data that element `i` of the result is taken from.
fn position(node: &Node, i: f64, (from, to, scale): (f64, f64, f64)) -> Result<f64, String> {
    let half = (i + 0.5) / scale - 0.5;
    Ok(match node.str("coordinate_transformation_mode").unwrap_or("half_pixel") {
        "half_pixel" => half,
        "half_pixel_symmetric" => from / 2.0 * (1.0 - to / (from * scale)) + half,
        "asymmetric" => i / scale,
        "pytorch_half_pixel" | "align_corners" if to == 1.0 => 0.0,
        "pytorch_half_pixel" => half,
        "align_corners" => i * (from - 1.0) / (to - 1.0),
        other => return Err(format!("coordinate_transformation_mode '{other}' has no composition")),
    })
}
