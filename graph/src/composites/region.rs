//! Operators that look at places that are operands themselves: RoiAlign, MaxRoiPool and DeformConv.

use super::sample::{Taps, sampled};
use super::{Composite, constant, extent};
use crate::Var;
use limbeck_tensor::DType;

/// Most samples along an axis of a region's result, and most bins.
const MOST: usize = 4096;

/// RoiAlign, mode `avg`: the mean of `sampling_ratio`² samples in each bin of each region `[x1, y1, x2, y2]`. A
/// `sampling_ratio` of 0 lets the regions' values decide on the number of samples, which no graph of known shapes can.
pub(super) fn roi_align<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let (x, rois, image) = (op.x(0)?, op.x(1)?, op.x(2)?);
    let (shape, regions) = (x.shape(), rois.dim(0));
    let (&[_, channels, height, width], true) = (&shape[..], rois.shape() == [regions, 4]) else {
        return Err(format!("data {shape:?} and regions {:?} do not fit", rois.shape()));
    };
    match op.text("mode", "avg") {
        "avg" => {}
        other => return Err(format!("mode '{other}' has no composition; avg has")),
    }
    let samples = extent(op.int("sampling_ratio", 0), MOST, "sampling_ratio")?;
    if samples == 0 {
        return Err("sampling_ratio 0 (as many samples as a region's size asks for) has no composition".into());
    }
    let bins = [("output_height", height), ("output_width", width)];
    let half_pixel = op.text("coordinate_transformation_mode", "half_pixel") == "half_pixel";
    let scale = op.float("spatial_scale", 1.0);
    // Samples along each axis, `[regions, bins * samples]`, and which of them count.
    let mut along = vec![];
    for (axis, (name, size)) in bins.into_iter().enumerate() {
        let bins = extent(op.int(name, 1), MOST, name)?;
        let corner = |i: usize| rois.slice(1, i, i + 1) * scale - if half_pixel { 0.5 } else { 0.0 };
        let (start, end) = (corner(1 - axis), corner(3 - axis));
        let length = if half_pixel { end - start } else { (end - start).at_least(1.0) };
        let at = |i: usize| ((i / samples) as f64 + ((i % samples) as f64 + 0.5) / samples as f64) / bins as f64;
        let count = bins * samples;
        let place = start + length * constant(rois, &[1, count], &(0..count).map(at).collect::<Vec<_>>());
        let bound = |v: f64| op.cx.scalar_of(v, rois.dtype());
        let counts = place.greater_or_equal(bound(-1.0)).and(bound(size as f64).greater_or_equal(place));
        along.push((place.at_least(0.0).at_most(size as f64 - 1.0), counts.cast(x.dtype()), bins));
    }
    let [(y, y_counts, rows), (x_, x_counts, columns)] = along[..] else { return Err("two axes are needed".into()) };
    let every = [regions, rows * samples, columns * samples];
    let flat = |v: Var<'c>, axis: i64| v.unsqueeze(&[axis]).expand(&every).reshape(&[regions, every[1] * every[2]]);
    let taps = [Taps::linear(flat(y, 2)), Taps::linear(flat(x_, 1))];
    let values = sampled(x, image.cast(DType::I64), &taps)?;
    let counts = (flat(y_counts, 2) * flat(x_counts, 1)).unsqueeze(&[1]);
    let grid = (values * counts).reshape(&[regions, channels, rows, samples, columns, samples]);
    Ok(vec![grid.mean(&[3, 5])])
}

/// MaxRoiPool of `[N, C, H, W]`: the first of the greatest elements in each bin of each region `[image, x1, y1, x2, y2]`, both
/// corners included; 0 where a bin holds none. The greatest of each row comes first, then that of these, so that no more
/// than an axis is compared at once. Regions have no gradient: where they are cut is a matter of rounding.
pub(super) fn max_roi_pool<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let (x, rois) = (op.x(0)?, op.x(1)?);
    let (shape, regions) = (x.shape(), rois.dim(0));
    let (&[_, _, height, width], true) = (&shape[..], rois.shape() == [regions, 5]) else {
        return Err(format!("data {shape:?} and regions {:?} do not fit", rois.shape()));
    };
    let pooled = op.list("pooled_shape", 2, 0)?;
    if pooled.contains(&0) {
        return Err(format!("pooled_shape {pooled:?} must be two positive numbers"));
    }
    let bins = |axis: usize| extent(pooled[axis], MOST, "pooled_shape");
    let number = |i: usize| rois.slice(1, i, i + 1);
    let mut y = x.gather(number(0).reshape(&[regions]).cast(DType::I64), 0);
    let mut filled = vec![];
    for (first, size, bins) in [(1, width, bins(1)?), (2, height, bins(0)?)] {
        let [from, to] = bounds([number(first), number(first + 2)], op.float("spatial_scale", 1.0), (size, bins));
        filled.push(from.less(to));
        let wide = |v: Var<'c>| v.reshape(&[regions, 1, 1, bins, 1]);
        let places = constant(from, &[size], &(0..size).map(|i| i as f64).collect::<Vec<_>>());
        let inside = places.greater_or_equal(wide(from)).and(places.less(wide(to)));
        let lowest = op.cx.scalar_of(f64::NEG_INFINITY, x.dtype());
        let at = inside.select(y.unsqueeze(&[3]), lowest).argmax(-1);
        y = op.cx.op("GatherElements", &[y, at], &[("axis", 3i64.into())]).transpose(&[0, 1, 3, 2]);
    }
    let filled = filled[1].unsqueeze(&[1, 3]).and(filled[0].unsqueeze(&[1, 2]));
    Ok(vec![filled.select(y, op.cx.scalar_of(0.0, x.dtype()))])
}

/// Where the bins of regions with these corners `[regions, 1]` begin and end on an axis of `size` elements, `[regions, bins]`
/// each. In f32, as engines compute it: whether an element is still inside hangs on it.
fn bounds<'c>(corners: [Var<'c>; 2], scale: f64, (size, bins): (usize, usize)) -> [Var<'c>; 2] {
    let cx = corners[0].cx();
    // Halves are rounded away from zero.
    let [start, end] = corners.map(|v| {
        let v = v.cast(DType::F32) * scale;
        let whole = cx.op("Floor", &[v.abs()], &[]);
        let up = (v.abs() - whole).greater_or_equal(cx.scalar_of(0.5, DType::F32));
        v.sign() * (whole + up.cast(DType::F32))
    });
    let length = (end - start + 1.0).at_least(1.0) / bins as f64;
    [(0, "Floor"), (1, "Ceil")].map(|(next, round)| {
        let steps: Vec<f64> = (next..next + bins).map(|i| i as f64).collect();
        let edge = cx.op(round, &[length * constant(length, &[1, bins], &steps)], &[]);
        (edge + start).at_least(0.0).at_most(size as f64)
    })
}

/// DeformConv of `[N, C, H, W]`: each tap of the kernel looks where its offset says, `mask` weighs what it sees.
pub(super) fn deform_conv<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let (x, weight, offset) = (op.x(0)?, op.x(1)?, op.x(2)?);
    let (data, kernel, moved) = (x.shape(), weight.shape(), offset.shape());
    let (&[images, channels, h, w], &[filters, own, kh, kw], &[_, _, rows, columns]) =
        (&data[..], &kernel[..], &moved[..])
    else {
        return Err(format!("data {data:?}, weight {kernel:?} and offset {moved:?} must have rank 4"));
    };
    let (strides, dilations) = (op.list("strides", 2, 1)?, op.list("dilations", 2, 1)?);
    let pads = op.list("pads", 4, 0)?;
    let groups = extent(op.int("group", 1), channels, "group")?;
    let offsets = extent(op.int("offset_group", 1), channels, "offset_group")?;
    let (taps, places) = (kh * kw, rows * columns);
    let fits = offsets > 0
        && channels.is_multiple_of(offsets)
        && groups > 0
        && channels == own * groups
        && filters.is_multiple_of(groups)
        && moved == [images, offsets * taps * 2, rows, columns];
    if !fits {
        return Err(format!("data {data:?}, weight {kernel:?}, offset {moved:?} and the groups do not fit"));
    }
    let looks = images * offsets;
    let offset = offset.reshape(&[looks, taps, 2, places]);
    let base = |axis: usize| {
        let of = |i: usize| {
            let (tap, place) = (i / places, i % places);
            let (tap, place) = if axis == 0 { (tap / kw, place / columns) } else { (tap % kw, place % columns) };
            (place as i64 * strides[axis] - pads[axis] + tap as i64 * dilations[axis]) as f64
        };
        let values: Vec<f64> = (0..taps * places).map(of).collect();
        let own = offset.slice(2, axis, axis + 1).reshape(&[looks, taps * places]);
        Taps::linear(own + constant(offset, &[1, taps * places], &values))
    };
    let image: Vec<i64> = (0..looks as i64).collect();
    let parts = x.reshape(&[looks, channels / offsets, h, w]);
    let mut seen = sampled(parts, op.cx.ints(&image), &[base(0), base(1)])?;
    if let Some(mask) = op.opt(4) {
        seen = seen * mask.reshape(&[looks, 1, taps * places]);
    }
    let seen = seen.reshape(&[images, groups, own * taps, places]);
    let y = weight.reshape(&[groups, filters / groups, own * taps]).matmul(seen);
    let y = y.reshape(&[images, filters, rows, columns]);
    Ok(vec![op.opt(3).map_or(y, |b| y + b.reshape(&[filters, 1, 1]))])
}
