//! Sampling between the elements of a grid: GridSample, the grids for it, and the deformable convolution.

use super::support::{build, check_rank, extents, flag_attr, int_attr, ints, show, str_attr, typed_as, unify};
use super::util::{Types, Values, check_size, float_ty, same_dtype};
use super::window::{Window, group};
use super::{EvalCx, InferCx, OpSpec, conv, op};
use crate::types::Dim;
use crate::{Array, Node, OpError, op_bail};
use ndarray::ArrayD;

pub(super) const OPS: &[OpSpec] = &[
    op("GridSample", infer_grid_sample, eval_grid_sample),
    op("AffineGrid", infer_affine_grid, eval_affine_grid),
    op("DeformConv", infer_deform_conv, eval_deform_conv),
];

/// Elements of an axis and their weights; `None` for an element outside, which is 0.
type Taps = Vec<(Option<usize>, f64)>;

/// The sum over the product of all axes' taps, behind the leading indices `lead` of `x`.
fn weighted(x: &ArrayD<f64>, lead: &[usize], taps: &[Taps]) -> f64 {
    let Some((first, rest)) = taps.split_first() else { return x[lead] };
    let term = |&(at, weight): &(Option<usize>, f64)| match at {
        Some(at) if weight != 0.0 => weight * weighted(x, &[lead, &[at]].concat(), rest),
        _ => 0.0,
    };
    first.iter().map(term).sum()
}

/// The two elements around `at` of an axis of `n`.
fn linear(at: f64, place: impl Fn(f64) -> Option<usize>) -> Taps {
    let low = at.floor();
    vec![(place(low), 1.0 - (at - low)), (place(low + 1.0), at - low)]
}

/// The four elements around `at`, weighted by cubic convolution (Keys 1981) with a = -0.75.
fn cubic(at: f64, place: impl Fn(f64) -> Option<usize>) -> Taps {
    const A: f64 = -0.75;
    let low = at.floor();
    let near = |d: f64| ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0;
    let far = |d: f64| ((A * d - 5.0 * A) * d + 8.0 * A) * d - 4.0 * A;
    let tap = |k: f64| {
        let d = (at - low - k).abs();
        (place(low + k), if d <= 1.0 { near(d) } else { far(d) })
    };
    [-1.0, 0.0, 1.0, 2.0].into_iter().map(tap).collect()
}

/// An element of an axis of `n`, `None` outside.
fn inside(at: f64, n: usize) -> Option<usize> {
    (0.0..n as f64).contains(&at).then_some(at as usize)
}

/// `x` mirrored at `low` and `high` until it lies between them.
fn reflect(x: f64, low: f64, high: f64) -> f64 {
    let span = high - low;
    if span <= 0.0 {
        return low;
    }
    let t = (x - low).rem_euclid(2.0 * span);
    low + if t > span { 2.0 * span - t } else { t }
}

/// How a GridSample node treats coordinates.
struct Sampler<'a> {
    mode: &'a str,
    padding: &'a str,
    align: bool,
}

impl<'a> Sampler<'a> {
    fn of(node: &'a Node) -> Result<Sampler<'a>, OpError> {
        let (mode, padding) = (str_attr(node, "mode", "linear")?, str_attr(node, "padding_mode", "zeros")?);
        if !["linear", "nearest", "cubic"].contains(&mode) {
            op_bail!("mode '{mode}' is none of linear, nearest, cubic");
        }
        if !["zeros", "border", "reflection"].contains(&padding) {
            op_bail!("padding_mode '{padding}' is none of zeros, border, reflection");
        }
        Ok(Sampler { mode, padding, align: flag_attr(node, "align_corners", false)? })
    }

    /// The taps for a coordinate in which an axis of `n` elements goes from -1 to 1.
    fn taps(&self, coordinate: f64, n: usize) -> Taps {
        let last = n as f64 - 1.0;
        let (low, high) = if self.align { (0.0, last) } else { (-0.5, last + 0.5) };
        let at = low + (coordinate + 1.0) / 2.0 * (high - low);
        let place = |i: f64| match self.padding {
            "zeros" => inside(i, n),
            "border" => inside(i.clamp(0.0, last), n),
            _ => inside(reflect(i, low, high).clamp(0.0, last), n),
        };
        match self.mode {
            "nearest" => vec![(place(at.round_ties_even()), 1.0)],
            "linear" => linear(at, place),
            _ => cubic(at, place),
        }
    }
}

fn infer_grid_sample(cx: &InferCx) -> Types {
    Sampler::of(cx.node)?;
    let dtype = float_ty(cx, 0)?.dtype;
    float_ty(cx, 1)?;
    let (Some(x), Some(grid)) = (cx.dims(0)?, cx.dims(1)?) else { return Ok(typed_as(dtype, None)) };
    check_rank(grid, x.len(), "the grid")?;
    let ([n, channels, spatial @ ..], [m, out @ .., axes]) = (x, grid) else {
        op_bail!("data {} need a batch and channels", show(x));
    };
    unify(axes, &Dim::Known(spatial.len()), "coordinates of the grid and spatial axes")?;
    Ok(typed_as(dtype, Some([&[unify(n, m, "batch")?, channels.clone()], out].concat())))
}

fn eval_grid_sample(cx: &EvalCx) -> Values {
    let (x, grid, sampler) = (cx.array(0)?, cx.array(1)?.f()?, Sampler::of(cx.node)?);
    let (a, rank) = (x.f()?, x.shape().len().saturating_sub(2));
    let ([n, channels, spatial @ ..], [m, out @ .., axes]) = (x.shape(), grid.shape()) else {
        op_bail!("data {:?} and grid {:?} do not fit", x.shape(), grid.shape());
    };
    if n != m || *axes != rank || out.len() != rank || rank == 0 || spatial.contains(&0) {
        op_bail!("data {:?} and grid {:?} do not fit", x.shape(), grid.shape());
    }
    let y = build(&[&[*n, *channels], out].concat(), |ix| {
        // The grid's coordinates name the last axis first.
        let coordinate = |d: usize| grid[&[&ix[..1], &ix[2..], &[rank - 1 - d]].concat()[..]];
        let taps: Vec<Taps> = (0..rank).map(|d| sampler.taps(coordinate(d), spatial[d])).collect();
        Ok(weighted(a, &ix[..2], &taps))
    })?;
    Ok(vec![Array::float(x.dtype, y)])
}

fn infer_affine_grid(cx: &InferCx) -> Types {
    let theta = float_ty(cx, 0)?;
    let axes = match &theta.dims {
        Some(dims) => {
            check_rank(dims, 3, "theta")?;
            dims[1].clone()
        }
        None => Dim::Unknown,
    };
    let size = cx.const_ints(1).map(|size| extents(&size, "extent")).transpose()?;
    let dims = match (size, axes.known()) {
        (Some(size), _) if (4..=5).contains(&size.len()) => {
            let axes = unify(&Dim::Known(size.len() - 2), &axes, "axes of size and theta")?;
            let mut dims = vec![Dim::Known(size[0])];
            dims.extend(size[2..].iter().map(|&n| Dim::Known(n)));
            dims.push(axes);
            Some(dims)
        }
        (Some(size), _) => op_bail!("size {size:?} must have 4 or 5 entries"),
        (None, Some(n @ (2 | 3))) => Some([vec![Dim::Unknown; n + 1], vec![axes]].concat()),
        (None, _) => None,
    };
    Ok(typed_as(theta.dtype, dims))
}

/// At each place of the grid `theta` times its homogeneous coordinates, the last axis first; an axis goes from -1 to 1,
/// at its elements' centres with `align_corners`, at their outer edges without.
fn eval_affine_grid(cx: &EvalCx) -> Values {
    let (theta, align) = (cx.array(0)?, flag_attr(cx.node, "align_corners", false)?);
    let size = extents(&ints(cx, 1, "size")?, "extent")?;
    let (t, axes) = (theta.f()?, size.len().saturating_sub(2));
    if !(2..=3).contains(&axes) || t.shape() != [size[0], axes, axes + 1] {
        op_bail!("theta {:?} and size {size:?} do not fit", t.shape());
    }
    let spatial = &size[2..];
    let y = build(&[&[size[0]], spatial, &[axes]].concat(), |ix| {
        let coordinate = |d: usize| {
            let (i, n) = (ix[1 + d] as f64, spatial[d] as f64);
            match align {
                true if n == 1.0 => 0.0,
                true => 2.0 * i / (n - 1.0) - 1.0,
                false => (2.0 * i + 1.0) / n - 1.0,
            }
        };
        let entry = |k: usize| t[&[ix[0], ix[1 + axes], k][..]];
        let term = |k: usize| entry(k) * coordinate(axes - 1 - k);
        Ok((0..axes).map(term).sum::<f64>() + entry(axes))
    })?;
    Ok(vec![Array::float(theta.dtype, y)])
}

fn offset_groups(node: &Node) -> Result<usize, OpError> {
    match int_attr(node, "offset_group", 1)? {
        n if n > 0 => Ok(n as usize),
        n => op_bail!("offset_group {n} must be positive"),
    }
}

fn infer_deform_conv(cx: &InferCx) -> Types {
    let x = float_ty(cx, 0)?;
    for i in (1..5).filter(|&i| i < 3 || cx.has(i)) {
        same_dtype(x, cx.ty(i)?)?;
    }
    offset_groups(cx.node)?;
    let mut dims = conv::conv_dims(cx, 0, 1, Some(3))?;
    // The offsets know the result's batch and extents too.
    if let (Some(dims), Some(offset)) = (&mut dims, cx.dims(2)?) {
        check_rank(offset, dims.len(), "the offsets")?;
        for d in (0..dims.len()).filter(|d| *d != 1) {
            dims[d] = unify(&dims[d], &offset[d], "offsets and result")?;
        }
    }
    Ok(typed_as(x.dtype, dims))
}

fn eval_deform_conv(cx: &EvalCx) -> Values {
    let (x, w, offset) = (cx.array(0)?, cx.array(1)?.f()?, cx.array(2)?.f()?);
    let (a, mask) = (x.f()?, cx.opt(4).map(Array::f).transpose()?);
    let ([n, channels, spatial @ ..], [outputs, per_group, kernel @ ..]) = (x.shape(), w.shape()) else {
        op_bail!("data {:?} and weight {:?} do not fit", x.shape(), w.shape());
    };
    let (groups, shares, rank) = (group(cx.node)?, offset_groups(cx.node)?, spatial.len());
    if kernel.len() != rank
        || rank == 0
        || per_group.checked_mul(groups) != Some(*channels)
        || !outputs.is_multiple_of(groups)
        || !channels.is_multiple_of(shares)
    {
        op_bail!("data {:?}, weight {:?}, group {groups} and offset_group {shares} do not fit", x.shape(), w.shape());
    }
    let (attrs, out) = Window::read(cx.node, kernel)?.resolve(spatial)?;
    check_size(kernel)?;
    let taps: usize = kernel.iter().product();
    let wanted = |each: usize| [&[*n, shares * taps * each], &out[..]].concat();
    if offset.shape() != wanted(rank) || mask.is_some_and(|m| m.shape() != wanted(1)) {
        op_bail!("the offsets {:?} must be {:?}, a mask {:?}", offset.shape(), wanted(rank), wanted(1));
    }
    let kernels: Vec<Vec<usize>> =
        ndarray::indices(ndarray::IxDyn(kernel)).into_iter().map(|k| ndarray::Dimension::slice(&k).to_vec()).collect();
    let mut y = build(&[&[*n, *outputs], &out[..]].concat(), |ix| {
        let (b, output, at) = (ix[0], ix[1], &ix[2..]);
        let mut sum = 0.0;
        for c in 0..*per_group {
            let channel = output / (outputs / groups) * per_group + c;
            let share = channel / (channels / shares);
            for (k, tap) in kernels.iter().enumerate() {
                let place = |i: usize| [&[b, i], at].concat();
                let taps: Vec<Taps> = (0..rank)
                    .map(|d| {
                        let moved = offset[&place(((share * taps) + k) * rank + d)[..]];
                        let from = (at[d] * attrs.strides[d] + tap[d] * attrs.dilations[d]) as f64;
                        linear(from - attrs.pads_begin[d] as f64 + moved, |i| inside(i, spatial[d]))
                    })
                    .collect();
                let share = mask.map_or(1.0, |m| m[&place(share * kernels.len() + k)[..]]);
                sum += share * w[&[&[output, c], &tap[..]].concat()[..]] * weighted(a, &[b, channel], &taps);
            }
        }
        Ok(sum)
    })?;
    if let Some(bias) = cx.opt(3) {
        conv::add_bias(&mut y, bias.f()?)?;
    }
    Ok(vec![Array::float(x.dtype, y)])
}
