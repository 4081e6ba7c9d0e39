//! Resize: nearest, linear and cubic interpolation, one axis after the other. Formulas: the ONNX operator specification.

use super::support::{build, flag_attr, float_attr, ints_attr, known, remap, reshape_type, show, str_attr};
use super::util::{Types, Values, check_size};
use super::{EvalCx, InferCx, OpSpec, normalize_axis, op};
use crate::types::Dim;
use crate::{Array, Node, OpError, op_bail};
use ndarray::{ArrayD, IxDyn};

pub(super) const OPS: &[OpSpec] = &[op("Resize", infer, eval)];

/// The axes that are resized.
pub(crate) fn axes(node: &Node, rank: usize) -> Result<Vec<usize>, OpError> {
    let Some(named) = ints_attr(node, "axes")? else { return Ok((0..rank).collect()) };
    let axes: Vec<usize> = named.iter().map(|&a| normalize_axis(a, rank)).collect::<Result<_, _>>()?;
    if (1..axes.len()).any(|i| axes[..i].contains(&axes[i])) {
        op_bail!("axes {named:?} name one axis twice");
    }
    Ok(axes)
}

/// What the node is told about the extents of the result.
pub(crate) enum Wanted {
    Scales(Vec<f64>),
    Sizes(Vec<i64>),
}

impl Wanted {
    /// The one of both lists that is there and not empty.
    pub(crate) fn of(scales: Option<Vec<f64>>, sizes: Option<Vec<i64>>) -> Option<Wanted> {
        let scales = scales.filter(|v| !v.is_empty()).map(Wanted::Scales);
        scales.or(sizes.filter(|v| !v.is_empty()).map(Wanted::Sizes))
    }

    /// For each of `axes` the scale and the resized extent; `None` where the extent of `x` is needed and not known.
    pub(crate) fn resolve(&self, node: &Node, x: &[Dim], axes: &[usize]) -> Result<Vec<Option<(f64, usize)>>, OpError> {
        let lengths = axes.iter().map(|&a| x[a].known());
        let check = |n: usize| match n == axes.len() {
            true => Ok(()),
            false => op_bail!("{n} numbers are given for {} axes of {}", axes.len(), show(x)),
        };
        match self {
            Wanted::Scales(scales) => {
                check(scales.len())?;
                if let Some(bad) = scales.iter().find(|s| !(**s > 0.0 && s.is_finite())) {
                    op_bail!("scale {bad} must be positive");
                }
                // Engines multiply in f32; 10 * 0.7 is 7 there and a little less in f64.
                let resized = |n: usize, s: f64| if s == 1.0 { n } else { (n as f32 * s as f32).floor() as usize };
                Ok(lengths.zip(scales).map(|(n, &s)| n.map(|n| (s, resized(n, s)))).collect())
            }
            Wanted::Sizes(sizes) => {
                check(sizes.len())?;
                if let Some(bad) = sizes.iter().find(|s| **s < 0) {
                    op_bail!("size {bad} is negative");
                }
                let ratio = |(n, &size): (Option<usize>, &i64)| Some(size as f64 / n? as f64);
                let pick = match str_attr(node, "keep_aspect_ratio_policy", "stretch")? {
                    "stretch" => {
                        let stretch = |(n, &size): (Option<usize>, &i64)| Some((ratio((n, &size))?, size as usize));
                        return Ok(lengths.zip(sizes).map(stretch).collect());
                    }
                    "not_larger" => f64::min,
                    "not_smaller" => f64::max,
                    other => op_bail!("keep_aspect_ratio_policy '{other}' is none of stretch, not_larger, not_smaller"),
                };
                let ratios: Option<Vec<f64>> = lengths.clone().zip(sizes).map(ratio).collect();
                let scale = ratios.and_then(|r| r.into_iter().reduce(pick));
                let resized = |n: usize, scale: f64| (scale, (scale * n as f64 + 0.5).floor() as usize);
                Ok(lengths.map(|n| Some(resized(n?, scale?))).collect())
            }
        }
    }
}

fn infer(cx: &InferCx) -> Types {
    let constant = |i: usize| cx.constants.get(i)?.as_ref();
    let wanted = Wanted::of(constant(2).and_then(|t| t.to_f64_vec().ok()), cx.const_ints(3));
    reshape_type(cx, |x| {
        let axes = axes(cx.node, x.len())?;
        let mut dims = x.to_vec();
        let resolved = match &wanted {
            Some(wanted) => wanted.resolve(cx.node, x, &axes)?,
            None => vec![None; axes.len()],
        };
        let stretch = str_attr(cx.node, "keep_aspect_ratio_policy", "stretch")? == "stretch";
        for (i, &axis) in axes.iter().enumerate() {
            dims[axis] = match (&wanted, resolved[i]) {
                (_, Some((_, n))) => Dim::Known(n),
                (Some(Wanted::Sizes(sizes)), None) if stretch => Dim::Known(sizes[i] as usize),
                (Some(Wanted::Scales(scales)), None) if scales[i] == 1.0 => continue,
                _ => Dim::Unknown,
            };
        }
        Ok(dims)
    })
}

/// One resized axis.
pub(crate) struct Axis {
    /// Extent before.
    pub(crate) from: usize,
    /// Extent after.
    pub(crate) to: usize,
    /// How long a step of the data becomes.
    pub(crate) scale: f64,
    /// Start and end of the part that tf_crop_and_resize takes, as shares of the axis.
    pub(crate) roi: (f64, f64),
}

/// Elements of an axis and their weights, whose sum is an element of the result; `None` for the extrapolation value.
type Taps = Option<Vec<(usize, f64)>>;

impl Axis {
    /// The place in the data that element `i` of the result is taken from. `r` rounds every intermediate result.
    fn position(&self, coordinates: &str, i: f64, r: fn(f64) -> f64) -> Result<f64, OpError> {
        let (from, to, scale) = (self.from as f64, self.to as f64, r(self.scale));
        let half = || r(r((i + 0.5) / scale) - 0.5);
        Ok(match coordinates {
            "half_pixel" => half(),
            "half_pixel_symmetric" => r(from / 2.0 * r(1.0 - r(to / r(from * scale))) + half()),
            "pytorch_half_pixel" | "align_corners" if self.to == 1 => 0.0,
            "pytorch_half_pixel" => half(),
            "align_corners" => r(i * (from - 1.0) / (to - 1.0)),
            "asymmetric" => r(i / scale),
            "tf_crop_and_resize" if self.to == 1 => r(r(0.5 * r(self.roi.0 + self.roi.1)) * (from - 1.0)),
            "tf_crop_and_resize" => {
                let (start, end) = self.roi;
                r(r(start * (from - 1.0)) + r(i * r(r(end - start) * (from - 1.0)) / (to - 1.0)))
            }
            other => op_bail!("coordinate_transformation_mode '{other}' is unknown"),
        })
    }

    /// As [`Axis::position`], of all elements of the result.
    pub(crate) fn positions(&self, node: &Node) -> Result<Vec<f64>, OpError> {
        let coordinates = str_attr(node, "coordinate_transformation_mode", "half_pixel")?;
        // Which element is the nearest one is decided as engines do, in f32: 3.5 / 0.7 is 5 there.
        let nearest = str_attr(node, "mode", "nearest")? == "nearest";
        let rounding = if nearest { |v| f64::from(v as f32) } else { |v| v };
        (0..self.to).map(|i| self.position(coordinates, i as f64, rounding)).collect()
    }

    fn taps(&self, node: &Node) -> Result<Vec<Taps>, OpError> {
        let mode = str_attr(node, "mode", "nearest")?;
        let crops = str_attr(node, "coordinate_transformation_mode", "half_pixel")? == "tf_crop_and_resize";
        let last = self.from as f64 - 1.0;
        let each = self.positions(node)?.into_iter().map(|at| {
            if crops && !(0.0..=last).contains(&at) {
                return Ok(None);
            }
            Ok(Some(match mode {
                "nearest" => vec![(nearest(node, at)?.clamp(0.0, last) as usize, 1.0)],
                "linear" => self.interpolate(node, at, 1.0, |d| 1.0 - d)?,
                "cubic" => {
                    let a = float_attr(node, "cubic_coeff_a", -0.75)?;
                    let kernel = |d: f64| match d <= 1.0 {
                        true => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
                        false => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
                    };
                    self.interpolate(node, at, 2.0, kernel)?
                }
                other => op_bail!("mode '{other}' is none of nearest, linear, cubic"),
            }))
        });
        each.collect()
    }

    /// The elements around `at` weighted by `kernel`, a function of the distance up to `reach`. Elements beyond the
    /// ends are those at the ends, or left out with `exclude_outside`.
    fn interpolate(
        &self,
        node: &Node,
        at: f64,
        reach: f64,
        kernel: impl Fn(f64) -> f64,
    ) -> Result<Vec<(usize, f64)>, OpError> {
        let squeeze = if flag_attr(node, "antialias", false)? { self.scale.min(1.0) } else { 1.0 };
        let exclude = flag_attr(node, "exclude_outside", false)?;
        let (reach, last) = (reach / squeeze, self.from as f64 - 1.0);
        // Beyond this every tap is an end of the axis.
        let at = at.clamp(-reach - 1.0, last + reach + 1.0);
        let mut taps = vec![];
        let mut place = (at - reach).floor() + 1.0;
        while place < at + reach {
            if !exclude || (0.0..=last).contains(&place) {
                taps.push((place.clamp(0.0, last) as usize, kernel((place - at).abs() * squeeze)));
            }
            place += 1.0;
        }
        let total: f64 = taps.iter().map(|(_, w)| w).sum();
        if exclude || squeeze < 1.0 {
            taps.iter_mut().for_each(|(_, w)| *w /= total);
        }
        Ok(taps)
    }
}

/// The element that `nearest_mode` picks for a place, which may lie outside.
pub(crate) fn nearest(node: &Node, at: f64) -> Result<f64, OpError> {
    Ok(match str_attr(node, "nearest_mode", "round_prefer_floor")? {
        "round_prefer_floor" => (at - 0.5).ceil(),
        "round_prefer_ceil" => (at + 0.5).floor(),
        "floor" => at.floor(),
        "ceil" => at.ceil(),
        other => op_bail!("nearest_mode '{other}' is unknown"),
    })
}

/// The node's axes with their geometry.
fn geometry(cx: &EvalCx, shape: &[usize]) -> Result<Vec<(usize, Axis)>, OpError> {
    let axes = axes(cx.node, shape.len())?;
    let floats = |i: usize| cx.opt(i).map(|a| a.to_f64().iter().copied().collect::<Vec<f64>>());
    let Some(wanted) = Wanted::of(floats(2), cx.ints(3)?) else { op_bail!("neither scales nor sizes are given") };
    let roi = floats(1).filter(|roi| roi.len() == 2 * axes.len());
    if roi.is_none() && str_attr(cx.node, "coordinate_transformation_mode", "")? == "tf_crop_and_resize" {
        op_bail!("tf_crop_and_resize needs a roi of {} numbers", 2 * axes.len());
    }
    let resolved = wanted.resolve(cx.node, &known(shape), &axes)?;
    let mut all = vec![];
    for (i, (&axis, resolved)) in axes.iter().zip(resolved).enumerate() {
        let Some((scale, to)) = resolved else { continue };
        if shape[axis] == 0 && to > 0 {
            op_bail!("axis {axis} has no elements to make {to} of");
        }
        let roi = roi.as_ref().map_or((0.0, 1.0), |roi| (roi[i], roi[i + axes.len()]));
        all.push((axis, Axis { from: shape[axis], to, scale, roi }));
    }
    Ok(all)
}

fn eval(cx: &EvalCx) -> Values {
    let mut x = cx.array(0)?.clone();
    let fill = float_attr(cx.node, "extrapolation_value", 0.0)?;
    let nearest = str_attr(cx.node, "mode", "nearest")? == "nearest";
    for (axis, geometry) in geometry(cx, x.shape())? {
        let mut shape = x.shape().to_vec();
        shape[axis] = geometry.to;
        check_size(&shape)?;
        let taps = geometry.taps(cx.node)?;
        x = if nearest { picked(&x, axis, &shape, &taps, fill)? } else { summed(&x, axis, &shape, &taps, fill)? };
    }
    Ok(vec![x])
}

/// An array of `x`'s dtype; numbers are truncated to integers.
fn like(x: &Array, data: ArrayD<f64>) -> Array {
    if x.dtype.is_float() {
        return Array::float(x.dtype, data);
    }
    let (low, high) = x.dtype.int_range().unwrap_or((0, 1));
    Array::int(x.dtype, data.mapv(|v| v.clamp(low as f64, high as f64) as i64))
}

/// `x` with an axis replaced by some of its elements.
fn picked(x: &Array, axis: usize, shape: &[usize], taps: &[Taps], fill: f64) -> Result<Array, OpError> {
    let fill = like(x, ArrayD::from_elem(IxDyn(&[]), fill));
    remap(x, shape, Some(&fill), |ix| {
        let tap = taps[ix[axis]].as_ref().and_then(|taps| taps.first());
        Ok(tap.map(|&(place, _)| [&ix[..axis], &[place], &ix[axis + 1..]].concat()))
    })
}

/// `x` with an axis replaced by weighted sums of its elements.
fn summed(x: &Array, axis: usize, shape: &[usize], taps: &[Taps], fill: f64) -> Result<Array, OpError> {
    let data = x.to_f64();
    let sums = build(shape, |ix| {
        let Some(taps) = &taps[ix[axis]] else { return Ok(fill) };
        let mut from = ix.to_vec();
        let term = |&(place, weight): &(usize, f64)| {
            from[axis] = place;
            weight * data[IxDyn(&from)]
        };
        Ok(taps.iter().map(term).sum())
    })?;
    Ok(like(x, sums))
}
