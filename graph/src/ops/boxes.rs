//! Boxes over images: pooling of regions, and the suppression of boxes that overlap better ones.

use super::support::{
    build, check_rank, extents, flag_attr, float_attr, int_attr, ints_attr, one_f64, one_int, str_attr, typed_as, unify,
};
use super::util::{Types, Values, check_size, float_ty, same_dtype};
use super::{EvalCx, InferCx, OpSpec, op};
use crate::types::Dim;
use crate::{Array, Node, OpError, op_bail};
use limbeck_tensor::DType;
use ndarray::ArrayD;

pub(super) const OPS: &[OpSpec] = &[
    op("RoiAlign", infer_roi_align, eval_roi_align),
    op("MaxRoiPool", infer_max_roi_pool, eval_max_roi_pool),
    op("NonMaxSuppression", infer_suppression, eval_suppression),
];

/// Most samples along one axis of a bin.
const MOST_SAMPLES: f64 = 1e6;

/// Dims of regions of `[n, channels, h, w]` data pooled to `pooled`; regions are rows of `entries` numbers.
fn regions(cx: &InferCx, entries: usize, pooled: Vec<usize>) -> Types {
    let x = float_ty(cx, 0)?;
    same_dtype(x, cx.ty(1)?)?;
    let mut dims = vec![Dim::Unknown, Dim::Unknown];
    if let Some(x) = &x.dims {
        check_rank(x, 4, "the data")?;
        dims[1] = x[1].clone();
    }
    if let Some(rois) = cx.dims(1)? {
        check_rank(rois, 2, "the regions")?;
        unify(&rois[1], &Dim::Known(entries), "the numbers of a region")?;
        dims[0] = rois[0].clone();
    }
    dims.extend(pooled.into_iter().map(Dim::Known));
    Ok(typed_as(x.dtype, Some(dims)))
}

/// What a RoiAlign node states.
struct Align {
    out: [usize; 2],
    max: bool,
    /// Half a pixel, by which coordinates are moved.
    half: f64,
}

impl Align {
    fn of(node: &Node) -> Result<Align, OpError> {
        let stated = [int_attr(node, "output_height", 1)?, int_attr(node, "output_width", 1)?];
        let max = match str_attr(node, "mode", "avg")? {
            "avg" => false,
            "max" => true,
            other => op_bail!("mode '{other}' is neither avg nor max"),
        };
        let half = match str_attr(node, "coordinate_transformation_mode", "half_pixel")? {
            "half_pixel" => 0.5,
            "output_half_pixel" => 0.0,
            other => op_bail!("coordinate_transformation_mode '{other}' is neither half_pixel nor output_half_pixel"),
        };
        let [h, w] = extents(&stated, "output extent")?[..] else { op_bail!("no output extents") };
        Ok(Align { out: [h, w], max, half })
    }
}

fn infer_roi_align(cx: &InferCx) -> Types {
    let mut ty = regions(cx, 4, Align::of(cx.node)?.out.to_vec())?;
    if let Some([batch]) = cx.dims(2)?
        && let Some(dims) = &mut ty[0].dims
    {
        dims[0] = unify(&dims[0], batch, "regions and batch_indices")?;
    }
    Ok(ty)
}

/// The two elements around `at` of an axis of `n` and the second one's weight; `None` more than one element outside.
fn around(at: f64, n: usize) -> Option<(usize, usize, f64)> {
    if n == 0 || !(-1.0..=n as f64).contains(&at) {
        return None;
    }
    let at = at.clamp(0.0, (n - 1) as f64);
    let low = at as usize;
    Some((low, (low + 1).min(n - 1), at - low as f64))
}

fn eval_roi_align(cx: &EvalCx) -> Values {
    let (x, rois, batch) = (cx.array(0)?, cx.array(1)?.f()?, cx.array(2)?.i()?);
    let Align { out, max, half } = Align::of(cx.node)?;
    let (ratio, scale) = (int_attr(cx.node, "sampling_ratio", 0)?, float_attr(cx.node, "spatial_scale", 1.0)?);
    let &[n, channels, h, w] = x.shape() else { op_bail!("data {:?} must have rank 4", x.shape()) };
    let &[count, 4] = rois.shape() else { op_bail!("regions {:?} must be rows of 4 numbers", rois.shape()) };
    if batch.shape() != [count] {
        op_bail!("{count} regions and batch_indices {:?} do not fit", batch.shape());
    }
    let a = x.f()?;
    let y = build(&[count, channels, out[0], out[1]], |ix| {
        let (roi, channel) = (ix[0], ix[1]);
        let image = image_of(batch[&[roi][..]] as f64, n)?;
        // For each axis the places of the samples in this bin. How many there are and whether one lies outside is
        // decided in f32, as engines do.
        let f32_of = |v: f64| f64::from(v as f32);
        let samples = |d: usize| -> Result<Vec<f64>, OpError> {
            let corner = |i: usize| rois[&[roi, i][..]] * scale - half;
            let (start, end) = (corner(1 - d), corner(3 - d));
            let length = if half == 0.0 { (end - start).max(1.0) } else { end - start };
            let bin = length / out[d] as f64;
            let samples = if ratio > 0 { ratio as f64 } else { f32_of(bin).ceil() };
            if samples.is_nan() || samples > MOST_SAMPLES {
                op_bail!("region {roi} of length {length} needs {samples} samples a bin");
            }
            let first = start + ix[2 + d] as f64 * bin;
            Ok((0..samples.max(0.0) as usize).map(|i| f32_of(first + (i as f64 + 0.5) * bin / samples)).collect())
        };
        let (rows, columns) = (samples(0)?, samples(1)?);
        check_size(&[rows.len(), columns.len()])?;
        let (mut sum, mut most) = (0.0, f64::NEG_INFINITY);
        for (&row, &column) in rows.iter().flat_map(|r| columns.iter().map(move |c| (r, c))) {
            let parts = match (around(row, h), around(column, w)) {
                (Some((top, bottom, v)), Some((left, right, u))) => {
                    let at = |r: usize, c: usize| a[&[image, channel, r, c][..]];
                    [
                        (1.0 - v) * (1.0 - u) * at(top, left),
                        (1.0 - v) * u * at(top, right),
                        v * (1.0 - u) * at(bottom, left),
                        v * u * at(bottom, right),
                    ]
                }
                _ => [0.0; 4],
            };
            sum += parts.iter().sum::<f64>();
            // As ONNX Runtime and the reference have it, the greatest weighted neighbour rather than sample.
            most = parts.into_iter().fold(most, f64::max);
        }
        let samples = rows.len() * columns.len();
        Ok(match max {
            _ if samples == 0 => 0.0,
            true => most,
            false => sum / samples as f64,
        })
    })?;
    Ok(vec![Array::float(x.dtype, y)])
}

/// The image of this number among `n`.
fn image_of(index: f64, n: usize) -> Result<usize, OpError> {
    match (0.0..n as f64).contains(&index) {
        true => Ok(index as usize),
        false => op_bail!("batch index {index} is outside {n} images"),
    }
}

fn pooled_shape(node: &Node) -> Result<[usize; 2], OpError> {
    match ints_attr(node, "pooled_shape")? {
        Some(&[h, w]) if h > 0 && w > 0 => Ok([h as usize, w as usize]),
        other => op_bail!("pooled_shape {other:?} must be two positive numbers"),
    }
}

fn eval_max_roi_pool(cx: &EvalCx) -> Values {
    let (x, rois) = (cx.array(0)?, cx.array(1)?.f()?);
    let (out, scale) = (pooled_shape(cx.node)?, float_attr(cx.node, "spatial_scale", 1.0)?);
    let &[n, channels, h, w] = x.shape() else { op_bail!("data {:?} must have rank 4", x.shape()) };
    let &[count, 5] = rois.shape() else { op_bail!("regions {:?} must be rows of 5 numbers", rois.shape()) };
    let a = x.f()?;
    let y = build(&[count, channels, out[0], out[1]], |ix| {
        let number = |i: usize| rois[&[ix[0], i][..]];
        let image = image_of(number(0), n)?;
        // In f32, as engines do.
        let f32_of = |v: f64| f64::from(v as f32);
        let range = |d: usize, extent: usize| {
            let [start, end] = [2 - d, 4 - d].map(|i| f32_of(f32_of(number(i)) * scale).round());
            let bin = f32_of((end - start + 1.0).max(1.0) / out[d] as f64);
            let edge = |v: f64| (v + start).clamp(0.0, extent as f64) as usize;
            edge(f32_of(ix[2 + d] as f64 * bin).floor())..edge(f32_of((ix[2 + d] + 1) as f64 * bin).ceil())
        };
        let (rows, columns) = (range(0, h), range(1, w));
        let values = rows.flat_map(|r| columns.clone().map(move |c| a[&[image, ix[1], r, c][..]]));
        Ok(values.reduce(f64::max).unwrap_or(0.0))
    })?;
    Ok(vec![Array::float(x.dtype, y)])
}

fn infer_max_roi_pool(cx: &InferCx) -> Types {
    regions(cx, 5, pooled_shape(cx.node)?.to_vec())
}

fn infer_suppression(cx: &InferCx) -> Types {
    same_dtype(float_ty(cx, 0)?, cx.ty(1)?)?;
    if let (Some(boxes), Some(scores)) = (cx.dims(0)?, cx.dims(1)?) {
        check_rank(boxes, 3, "the boxes")?;
        check_rank(scores, 3, "the scores")?;
        unify(&boxes[0], &scores[0], "batches of boxes and scores")?;
        unify(&boxes[1], &scores[2], "numbers of boxes and scores")?;
        unify(&boxes[2], &Dim::Known(4), "the numbers of a box")?;
    }
    Ok(typed_as(DType::I64, Some(vec![Dim::Unknown, Dim::Known(3)])))
}

/// Corners of a box, the lesser ones first.
fn corners(boxes: &ArrayD<f64>, batch: usize, i: usize, centred: bool) -> [f64; 4] {
    let [a, b, c, d] = [0, 1, 2, 3].map(|k| boxes[&[batch, i, k][..]]);
    match centred {
        true => [a - c / 2.0, b - d / 2.0, a + c / 2.0, b + d / 2.0],
        false => [a.min(c), b.min(d), a.max(c), b.max(d)],
    }
}

/// Intersection over union.
fn overlap(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    let area = |r: &[f64; 4]| (r[2] - r[0]) * (r[3] - r[1]);
    let side = |k: usize| (a[k + 2].min(b[k + 2]) - a[k].max(b[k])).max(0.0);
    let shared = side(0) * side(1);
    if shared <= 0.0 { 0.0 } else { shared / (area(a) + area(b) - shared) }
}

/// For each image and class the boxes in the order of their scores, but those that overlap a chosen one.
fn eval_suppression(cx: &EvalCx) -> Values {
    let (boxes, scores) = (cx.array(0)?.f()?, cx.array(1)?.f()?);
    let (&[images, count, 4], &[batch, classes, scored]) = (boxes.shape(), scores.shape()) else {
        op_bail!("boxes {:?} and scores {:?} do not fit", boxes.shape(), scores.shape());
    };
    if images != batch || count != scored {
        op_bail!("boxes {:?} and scores {:?} do not fit", boxes.shape(), scores.shape());
    }
    let most = cx.opt(2).map(|n| one_int(n, "max_output_boxes_per_class")).transpose()?.unwrap_or(0);
    let threshold = cx.opt(3).map(|t| one_f64(t, "iou_threshold")).transpose()?.unwrap_or(0.0);
    let least = cx.opt(4).map(|t| one_f64(t, "score_threshold")).transpose()?.unwrap_or(f64::NEG_INFINITY);
    let centred = flag_attr(cx.node, "center_point_box", false)?;
    let mut chosen = vec![];
    for (image, class) in (0..images).flat_map(|i| (0..classes).map(move |c| (i, c))) {
        let score = |i: usize| scores[&[image, class, i][..]];
        let mut order: Vec<usize> = (0..count).filter(|&i| score(i) > least).collect();
        order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
        let mut kept: Vec<[f64; 4]> = vec![];
        for i in order {
            let candidate = corners(boxes, image, i, centred);
            if (kept.len() as i64) < most && kept.iter().all(|k| overlap(k, &candidate) <= threshold) {
                kept.push(candidate);
                chosen.push([image, class, i]);
            }
        }
    }
    Ok(vec![Array::int(DType::I64, build(&[chosen.len(), 3], |ix| Ok(chosen[ix[0]][ix[1]] as i64))?)])
}
