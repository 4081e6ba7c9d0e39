//! Sampling between elements: GridSample and AffineGrid, and the sampler that region operators share. All neighbours
//! of all places are taken by one GatherND and weighed by one product, so that the gradient is one ScatterND.

use super::{Composite, constant, extent};
use crate::Var;
use limbeck_tensor::DType;

/// Most elements of a constant grid.
const LARGEST: usize = 1 << 24;

/// The neighbours of places along one axis, `[images, places, taps]` each.
pub(super) struct Taps<'c> {
    /// Which elements; whole numbers. Those outside the axis count as zeros.
    pub(super) index: Var<'c>,
    /// How much each counts.
    pub(super) weight: Var<'c>,
}

impl<'c> Taps<'c> {
    /// The two neighbours of each place in `at` `[images, places]`.
    pub(super) fn linear(at: Var<'c>) -> Taps<'c> {
        let low = floor(at);
        let share = (at - low).unsqueeze(&[-1]);
        Taps {
            index: low.unsqueeze(&[-1]) + constant(at, &[2], &[0.0, 1.0]),
            weight: (1.0 - share).concat(&[share], -1),
        }
    }

    /// The nearest element, the even one of two.
    fn nearest(at: Var<'c>) -> Taps<'c> {
        let index = at.cx().op("Round", &[at], &[]).unsqueeze(&[-1]);
        Taps { index, weight: at.cx().full(1.0, at.dtype(), &index.shape()) }
    }

    /// Four neighbours with the weights of cubic convolution: R. Keys, Cubic convolution interpolation for digital
    /// image processing, 1981, with a = -3/4.
    fn cubic(at: Var<'c>) -> Taps<'c> {
        let a = -0.75;
        let low = floor(at);
        let share = (at - low).unsqueeze(&[-1]);
        let near = |t: Var<'c>| ((a + 2.0) * t - (a + 3.0)) * t.square() + 1.0;
        let far = |t: Var<'c>| ((a * t - 5.0 * a) * t + 8.0 * a) * t - 4.0 * a;
        let rest = 1.0 - share;
        Taps {
            index: low.unsqueeze(&[-1]) + constant(at, &[4], &[-1.0, 0.0, 1.0, 2.0]),
            weight: far(share + 1.0).concat(&[near(share), near(rest), far(rest + 1.0)], -1),
        }
    }

    /// The taps with those outside `0..n` replaced by the first element, weighing nothing.
    fn inside(&self, n: usize) -> Taps<'c> {
        let zero = self.index.cx().scalar_of(0.0, self.index.dtype());
        let last = self.index.cx().scalar_of(n as f64 - 1.0, self.index.dtype());
        let inside = self.index.greater_or_equal(zero).and(last.greater_or_equal(self.index));
        Taps { index: inside.select(self.index, zero).cast(DType::I64), weight: inside.select(self.weight, zero) }
    }
}

fn floor(v: Var<'_>) -> Var<'_> {
    v.cx().op("Floor", &[v], &[])
}

/// Weighted sums of neighbours `[M, C, places]` in `x` `[N, C, ...]`, from the taps along each spatial axis (M rows
/// each). `image` `[M]` (int64) says in which of the N images each row looks.
pub(super) fn sampled<'c>(x: Var<'c>, image: Var<'c>, axes: &[Taps<'c>]) -> Result<Var<'c>, String> {
    let (cx, shape) = (x.cx(), x.shape());
    let [images, channels, spatial @ ..] = &shape[..] else { return Err(format!("{shape:?} has no spatial axes")) };
    if spatial.len() != axes.len() || axes.is_empty() || x.is_empty() {
        return Err(format!("data {shape:?} cannot be sampled along {} axes", axes.len()));
    }
    let [rows, places] = [axes[0].index.dim(0), axes[0].index.dim(1)];
    let area: usize = spatial.iter().product();
    let int = |n: usize| cx.scalar_of(n as f64, DType::I64);
    let mut index = image.reshape(&[rows, 1, 1]) * int(area);
    let mut weight: Option<Var<'c>> = None;
    let mut stride = area;
    for (taps, &n) in axes.iter().zip(spatial) {
        let taps = taps.inside(n);
        stride /= n;
        // Every tap so far with every tap of this axis.
        let pairs = |so_far: Var<'c>, own: Var<'c>, join: fn(Var<'c>, Var<'c>) -> Var<'c>| {
            let joined = join(so_far.unsqueeze(&[-1]), own.unsqueeze(&[-2]));
            joined.reshape(&[rows, places, so_far.dim(-1) * own.dim(-1)])
        };
        index = pairs(index, taps.index * int(stride), |a, b| a + b);
        weight = Some(weight.map_or(taps.weight, |w| pairs(w, taps.weight, |a, b| a * b)));
    }
    let weight = weight.ok_or("there are no axes")?;
    let taps = weight.dim(-1);
    let last = shape.len() - 1;
    let order: Vec<usize> = [0].into_iter().chain(2..=last).chain([1]).collect();
    let pixels = x.transpose(&order).reshape(&[images * area, *channels]);
    let neighbours = cx.op("GatherND", &[pixels, index.reshape(&[rows * places * taps, 1])], &[]);
    let sums = weight.reshape(&[rows * places, 1, taps]).matmul(neighbours.reshape(&[rows * places, taps, *channels]));
    Ok(sums.reshape(&[rows, places, *channels]).t())
}

/// GridSample of `[N, C, ...]` at the places `[N, ..., d]` of a grid, whose last axis counts spatial axes from the
/// last.
pub(super) fn grid_sample<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let (x, grid) = (op.x(0)?, op.x(1)?);
    let (shape, given) = (x.shape(), grid.shape());
    let rank = shape.len();
    if rank < 3 || given.len() != rank || given[0] != shape[0] || given[rank - 1] != rank - 2 {
        return Err(format!("data {shape:?} and grid {given:?} do not fit"));
    }
    let (images, axes) = (shape[0], rank - 2);
    let places: usize = given[1..=axes].iter().product();
    let grid = grid.reshape(&[images, places, axes]);
    let aligned = op.int("align_corners", 0) != 0;
    let padding = op.text("padding_mode", "zeros");
    let taps = shape[2..].iter().enumerate().map(|(axis, &n)| {
        let entry = axes - 1 - axis;
        let at = grid.slice(-1, entry, entry + 1).squeeze(&[-1]);
        let extent = n as f64;
        let at = if aligned { (at + 1.0) * ((extent - 1.0) / 2.0) } else { (at + 1.0) * (extent / 2.0) - 0.5 };
        let kept = |at: Var<'c>| padded(at, extent, padding, aligned);
        Ok(match op.text("mode", "linear") {
            "linear" | "bilinear" => Taps::linear(kept(at)?),
            "nearest" => Taps::nearest(kept(at)?),
            "cubic" | "bicubic" => {
                let taps = Taps::cubic(at);
                Taps { index: kept(taps.index)?, ..taps }
            }
            other => return Err(format!("mode '{other}' is none of linear, nearest and cubic")),
        })
    });
    let taps: Vec<Taps<'c>> = taps.collect::<Result<_, String>>()?;
    let own: Vec<i64> = (0..images as i64).collect();
    let y = sampled(x, op.cx.ints(&own), &taps)?;
    Ok(vec![y.reshape(&[&shape[..2], &given[1..=axes]].concat())])
}

/// Places along an axis of `n` elements brought inside by the padding mode.
fn padded<'c>(at: Var<'c>, n: f64, mode: &str, aligned: bool) -> Result<Var<'c>, String> {
    let inside = |v: Var<'c>| v.at_least(0.0).at_most(n - 1.0);
    // The borders that places are mirrored at: the outer pixels' centres, or their outer edges.
    let (low, span) = if aligned { (0.0, n - 1.0) } else { (-0.5, n) };
    match mode {
        "zeros" => Ok(at),
        "border" => Ok(inside(at)),
        "reflection" if span == 0.0 => Ok(at * 0.0),
        "reflection" => {
            let from_low = (at - low).abs();
            let flips = floor(from_low / span);
            let odd = flips - floor(flips * 0.5) * 2.0;
            let rest = from_low - flips * span;
            Ok(inside(rest * (1.0 - odd * 2.0) + odd * span + low))
        }
        other => Err(format!("padding_mode '{other}' is none of zeros, border and reflection")),
    }
}

/// AffineGrid: the places `[N, ..., d]` of the pixels of an image of the constant `size` `[N, C, ...]` under `theta`
/// `[N, d, d + 1]`.
pub(super) fn affine_grid<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let theta = op.x(0)?;
    let size = op.ints_of(1)?.ok_or("input 1 is missing")?;
    let size: Vec<usize> = size.iter().map(|&n| extent(n, LARGEST, "size")).collect::<Result<_, _>>()?;
    let [rows, _, spatial @ ..] = &size[..] else { return Err(format!("size {size:?} has no spatial axes")) };
    let axes = spatial.len();
    let places = spatial.iter().try_fold(1usize, |a, &n| a.checked_mul(n)).filter(|&n| n <= LARGEST);
    let places = places.ok_or_else(|| format!("size {size:?} is too large"))?;
    if theta.shape() != [*rows, axes, axes + 1] {
        return Err(format!("theta {:?} and size {size:?} do not fit", theta.shape()));
    }
    let aligned = op.int("align_corners", 0) != 0;
    let place = |i: usize, n: usize| match aligned {
        true if n == 1 => 0.0,
        true => 2.0 * i as f64 / (n as f64 - 1.0) - 1.0,
        false => (2.0 * i as f64 + 1.0) / n as f64 - 1.0,
    };
    let mut base = Vec::with_capacity(places * (axes + 1));
    for pixel in 0..places {
        let mut rest = pixel;
        for &n in spatial.iter().rev() {
            base.push(place(rest % n, n));
            rest /= n;
        }
        base.push(1.0);
    }
    let grid = constant(theta, &[places, axes + 1], &base).matmul(theta.t());
    Ok(vec![grid.reshape(&[&[*rows], spatial, &[axes]].concat())])
}
