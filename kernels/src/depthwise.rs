//! Depthwise convolution (one input channel a group): a sum of shifted planes, one a tap, without columns.
//!
//! The tile's outputs are kept in wide form: rows as long as the patch's, so that a tap is one shift of one long run.

use crate::geometry::ConvGeometry;
use crate::parallel::{Parallelism, piece};
use crate::scratch::with_scratch;
use crate::share::Share;
use crate::tile::{Patch, Tile, Window, copy_block};
use crate::vector::vectorised;
use pulp::{Arch, Simd, WithSimd};

/// Output positions of a tile: with its patch it stays in a first-level cache of 32 KiB.
const TARGET: usize = 2048;

/// Values of scratch one thread needs.
pub(crate) fn scratch_len(g: &ConvGeometry) -> usize {
    let (window, tile) = (Window::new(g), Tile::largest(g.batch, g.output, TARGET));
    let layout = window.patch(&tile);
    layout.channel_len() + layout.wide_len()
}

/// `out = bias + conv(x, w)` for the output channels of `share`.
pub(crate) fn forward(g: &ConvGeometry, x: &[f32], w: &[f32], bias: Option<&[f32]>, mut share: Share) {
    let window = Window::new(g);
    for tile in Tile::cut(share.images.clone(), g.output, TARGET) {
        let layout = window.patch(&tile);
        let taps = layout.tap_offsets();
        with_scratch([layout.channel_len(), layout.wide_len()], |[patch, wide]| {
            patch.fill(0.0);
            let mut filled = None;
            for channel in share.channels.clone() {
                let input = channel / g.group_out();
                if filled.replace(input) != Some(input) {
                    layout.fill(patch, |n| input_plane(g, x, n, input));
                }
                let weights = &w[channel * taps.len()..][..taps.len()];
                let bias = bias.map_or(0.0, |bias| bias[channel]);
                Arch::new().dispatch(Shifts { out: wide, bias, patch, taps: &taps, weights });
                let ([image, row], start) = (layout.strides(), tile.rows.start * g.output[1] + tile.cols.start);
                for (i, n) in tile.images.clone().enumerate() {
                    let y = &mut share.from(n, channel)[start..];
                    copy_block(y, g.output[1], &wide[i * image..], row, tile.rows.len(), tile.cols.len());
                }
            }
        });
    }
}

/// The input gradient for the input channels of `share`.
pub(crate) fn grad_input(g: &ConvGeometry, w: &[f32], gy: &[f32], mut share: Share) {
    let window = Window::new(g);
    share.fill(0.0);
    for tile in Tile::cut(share.images.clone(), g.output, TARGET) {
        let layout = window.patch(&tile);
        let taps = layout.tap_offsets();
        with_scratch([layout.channel_len(), layout.wide_len()], |[patch, wide]| {
            wide.fill(0.0);
            for input in share.channels.clone() {
                patch.fill(0.0);
                for channel in input * g.group_out()..(input + 1) * g.group_out() {
                    fill_wide(g, &layout, &tile, gy, channel, wide);
                    for (&tap, &weight) in taps.iter().zip(&w[channel * taps.len()..]) {
                        let to = &mut patch[tap..];
                        vectorised(
                            #[inline(always)]
                            || to.iter_mut().zip(&*wide).for_each(|(to, g)| *to += weight * g),
                        );
                    }
                }
                layout.fold(patch, share.image_stride(), share.from(tile.images.start, input));
            }
        });
    }
}

/// The weight gradient. Each thread has its own channels and sums over all images, so threads do not change a bit.
pub(crate) fn grad_weight(g: &ConvGeometry, x: &[f32], gy: &[f32], gw: &mut [f32], parallelism: Parallelism) {
    let window = Window::new(g);
    let taps = g.taps();
    let pieces = parallelism.threads().min(g.in_channels);
    let longest = piece(g.in_channels, pieces, 0).len() * g.group_out() * taps;
    let tiles = Tile::cut(0..g.batch, g.output, TARGET);
    let tasks = gw.chunks_mut(longest).enumerate().collect();
    parallelism.for_each(tasks, |(task, gw): (usize, &mut [f32])| {
        gw.fill(0.0);
        for tile in &tiles {
            let layout = window.patch(tile);
            let offsets = layout.tap_offsets();
            with_scratch([layout.channel_len(), layout.wide_len()], |[patch, wide]| {
                patch.fill(0.0);
                wide.fill(0.0);
                let mut filled = None;
                for (i, gw) in gw.chunks_mut(taps).enumerate() {
                    let channel = task * longest / taps + i;
                    let input = channel / g.group_out();
                    if filled.replace(input) != Some(input) {
                        layout.fill(patch, |n| input_plane(g, x, n, input));
                    }
                    fill_wide(g, &layout, tile, gy, channel, wide);
                    Arch::new().dispatch(Products { gw, wide, patch, taps: &offsets });
                }
            });
        }
    });
}

fn input_plane<'x>(g: &ConvGeometry, x: &'x [f32], image: usize, channel: usize) -> &'x [f32] {
    &x[(image * g.in_channels + channel) * g.input_plane()..][..g.input_plane()]
}

/// Spreads a channel of an output gradient to wide form. What lies between the rows is left.
fn fill_wide(g: &ConvGeometry, layout: &Patch, tile: &Tile, gy: &[f32], channel: usize, wide: &mut [f32]) {
    let ([image, row], start) = (layout.strides(), tile.rows.start * g.output[1] + tile.cols.start);
    for (i, n) in tile.images.clone().enumerate() {
        let gy = &gy[(n * g.out_channels + channel) * g.output_plane() + start..];
        copy_block(&mut wide[i * image..], row, gy, g.output[1], tile.rows.len(), tile.cols.len());
    }
}

/// `out[i] = bias + sum over taps of weight * patch[tap + i]`, four vectors at a time.
struct Shifts<'a> {
    out: &'a mut [f32],
    bias: f32,
    patch: &'a [f32],
    taps: &'a [usize],
    weights: &'a [f32],
}

impl WithSimd for Shifts<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { out, bias, patch, taps, weights } = self;
        let (lanes, bias) = (S::F32_LANES, simd.splat_f32s(bias));
        let taps = || taps.iter().zip(weights);
        let mut at = 0;
        let mut fours = out.chunks_exact_mut(4 * lanes);
        for out in &mut fours {
            let [mut p, mut q, mut r, mut s] = [bias; 4];
            for (&tap, &weight) in taps() {
                let weight = simd.splat_f32s(weight);
                if let ([a, b, c, d], _) = S::as_simd_f32s(&patch[tap + at..][..4 * lanes]) {
                    p = simd.mul_add_f32s(weight, *a, p);
                    q = simd.mul_add_f32s(weight, *b, q);
                    r = simd.mul_add_f32s(weight, *c, r);
                    s = simd.mul_add_f32s(weight, *d, s);
                }
            }
            if let ([a, b, c, d], _) = S::as_mut_simd_f32s(out) {
                [*a, *b, *c, *d] = [p, q, r, s];
            }
            at += 4 * lanes;
        }
        for out in fours.into_remainder().chunks_mut(lanes) {
            let mut total = bias;
            for (&tap, &weight) in taps() {
                let values = simd.partial_load_f32s(&patch[tap + at..][..out.len()]);
                total = simd.mul_add_f32s(simd.splat_f32s(weight), values, total);
            }
            simd.partial_store_f32s(out, total);
            at += lanes;
        }
    }
}

/// `gw[t] += sum over i of wide[i] * patch[taps[t] + i]`, three taps at a time.
struct Products<'a> {
    gw: &'a mut [f32],
    wide: &'a [f32],
    patch: &'a [f32],
    taps: &'a [usize],
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (gw, taps) in self.gw.chunks_mut(3).zip(self.taps.chunks(3)) {
            if let (&[a, b, c], [x, y, z]) = (taps, &mut *gw) {
                let others = [&self.patch[a..], &self.patch[b..], &self.patch[c..]];
                let [p, q, r] = products(simd, self.wide, others);
                [*x, *y, *z] = [*x + p, *y + q, *z + r];
            } else {
                for (gw, &tap) in gw.iter_mut().zip(taps) {
                    let [p] = products(simd, self.wide, [&self.patch[tap..]]);
                    *gw += p;
                }
            }
        }
    }
}

/// The sums of products of `a` with the begin of each of `others`, two vectors at a time.
#[inline(always)]
fn products<S: Simd, const N: usize>(simd: S, a: &[f32], others: [&[f32]; N]) -> [f32; N] {
    let lanes = S::F32_LANES;
    let mut totals = [[simd.splat_f32s(0.0); 2]; N];
    let twos = a.chunks_exact(2 * lanes);
    let rest = twos.remainder();
    let mut at = 0;
    for a in twos {
        if let ([a, b], _) = S::as_simd_f32s(a) {
            for (total, other) in totals.iter_mut().zip(others) {
                if let ([c, d], _) = S::as_simd_f32s(&other[at..][..2 * lanes]) {
                    *total = [simd.mul_add_f32s(*a, *c, total[0]), simd.mul_add_f32s(*b, *d, total[1])];
                }
            }
        }
        at += 2 * lanes;
    }
    for a in rest.chunks(lanes) {
        let own = simd.partial_load_f32s(a);
        for (total, other) in totals.iter_mut().zip(others) {
            total[0] = simd.mul_add_f32s(own, simd.partial_load_f32s(&other[at..][..a.len()]), total[0]);
        }
        at += lanes;
    }
    let mut sums = [0.0; N];
    for (sum, [a, b]) in sums.iter_mut().zip(totals) {
        *sum = simd.reduce_sum_f32s(simd.add_f32s(a, b));
    }
    sums
}
