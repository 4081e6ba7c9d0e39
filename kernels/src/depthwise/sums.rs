//! The sums of depthwise convolution over shifted runs. All runs are of whole vectors, of whatever width.

use pulp::{Simd, WithSimd};

/// Runs `$body` for the taps in pieces of 9, 4, 2 and 1, whose number the compiler knows as the length of `$taps`.
macro_rules! for_pieces {
    ($all:expr, |$taps:ident| $body:expr) => {
        let mut rest = $all;
        loop {
            if let Some(($taps, later)) = rest.split_first_chunk::<9>() {
                $body;
                rest = later;
            } else if let Some(($taps, later)) = rest.split_first_chunk::<4>() {
                $body;
                rest = later;
            } else if let Some(($taps, later)) = rest.split_first_chunk::<2>() {
                $body;
                rest = later;
            } else if let Some(($taps, later)) = rest.split_first_chunk::<1>() {
                $body;
                rest = later;
            } else {
                break;
            }
        }
    };
}

/// `out[i] = first + sum over taps (t, offset) of weights[t] * patch[offset + i]`; without `first`, that is added to `out`.
pub(super) struct Shifts<'a> {
    pub(super) out: &'a mut [f32],
    pub(super) first: Option<f32>,
    pub(super) patch: &'a [f32],
    pub(super) taps: &'a [(usize, usize)],
    pub(super) weights: &'a [f32],
}

impl WithSimd for Shifts<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { out, mut first, patch, taps, weights } = self;
        for_pieces!(taps, |taps| shifts(simd, out, first.take(), patch, taps, weights));
        if let Some(first) = first {
            out.fill(first);
        }
    }
}

#[inline(always)]
fn shifts<S: Simd, const N: usize>(
    simd: S,
    out: &mut [f32],
    first: Option<f32>,
    patch: &[f32],
    taps: &[(usize, usize); N],
    weights: &[f32],
) {
    let len = out.len();
    let (out, _) = S::as_mut_simd_f32s(out);
    let factors: [S::f32s; N] = std::array::from_fn(
        #[inline(always)]
        |i| simd.splat_f32s(weights[taps[i].0]),
    );
    let inputs: [&[S::f32s]; N] = std::array::from_fn(
        #[inline(always)]
        |i| &S::as_simd_f32s(&patch[taps[i].1..][..len]).0[..out.len()],
    );
    let first = first.map(
        #[inline(always)]
        |first| simd.splat_f32s(first),
    );
    for (i, out) in out.iter_mut().enumerate() {
        let mut total = first.unwrap_or(*out);
        for (factor, input) in factors.iter().zip(inputs) {
            total = simd.mul_add_f32s(*factor, input[i], total);
        }
        *out = total;
    }
}

/// `gw[t] += sum over i of wide[i] * patch[taps[t] + i]`.
pub(super) struct Products<'a> {
    pub(super) gw: &'a mut [f32],
    pub(super) wide: &'a [f32],
    pub(super) patch: &'a [f32],
    pub(super) taps: &'a [usize],
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { mut gw, wide, patch, taps } = self;
        for_pieces!(taps, |taps| {
            let (now, later) = gw.split_at_mut(taps.len());
            products(simd, now, wide, patch, taps);
            gw = later;
        });
    }
}

#[inline(always)]
fn products<S: Simd, const N: usize>(simd: S, gw: &mut [f32], wide: &[f32], patch: &[f32], taps: &[usize; N]) {
    let len = wide.len();
    let (wide, _) = S::as_simd_f32s(wide);
    let inputs: [&[S::f32s]; N] = std::array::from_fn(
        #[inline(always)]
        |i| &S::as_simd_f32s(&patch[taps[i]..][..len]).0[..wide.len()],
    );
    let mut totals = [simd.splat_f32s(0.0); N];
    for (i, value) in wide.iter().enumerate() {
        for (total, input) in totals.iter_mut().zip(inputs) {
            *total = simd.mul_add_f32s(*value, input[i], *total);
        }
    }
    for (gw, total) in gw.iter_mut().zip(totals) {
        *gw += simd.reduce_sum_f32s(total);
    }
}
