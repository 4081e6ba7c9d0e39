//! Depthwise convolution (one input channel a group): a sum of shifted planes, one a tap, without columns.
//!
//! The tile's outputs are kept in wide form: rows as long as the patch's, so that a tap is one shift of one long run.

use crate::conv::Share;
use crate::geometry::ConvGeometry;
use crate::parallel::{Parallelism, piece, with_scratch};
use crate::tile::{Patch, Tile, Window, copy_block};
use crate::vector::vectorised;

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
            let mut filled = None;
            for channel in share.channels.clone() {
                let input = channel / g.group_out();
                if filled.replace(input) != Some(input) {
                    layout.fill(patch, |n| input_plane(g, x, n, input));
                }
                let weights = &w[channel * taps.len()..][..taps.len()];
                let bias = bias.map_or(0.0, |bias| bias[channel]);
                vectorised(
                    #[inline(always)]
                    || sum_of_shifts(wide, bias, patch, &taps, weights),
                );
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
                let mut filled = None;
                for (i, gw) in gw.chunks_mut(taps).enumerate() {
                    let channel = task * longest / taps + i;
                    let input = channel / g.group_out();
                    if filled.replace(input) != Some(input) {
                        layout.fill(patch, |n| input_plane(g, x, n, input));
                    }
                    fill_wide(g, &layout, tile, gy, channel, wide);
                    for (gw, &tap) in gw.iter_mut().zip(&offsets) {
                        *gw += vectorised(
                            #[inline(always)]
                            || dot(wide, &patch[tap..]),
                        );
                    }
                }
            });
        }
    });
}

fn input_plane<'x>(g: &ConvGeometry, x: &'x [f32], image: usize, channel: usize) -> &'x [f32] {
    &x[(image * g.in_channels + channel) * g.input_plane()..][..g.input_plane()]
}

/// Spreads a channel of an output gradient to wide form, with zeros between the rows.
fn fill_wide(g: &ConvGeometry, layout: &Patch, tile: &Tile, gy: &[f32], channel: usize, wide: &mut [f32]) {
    let ([image, row], start) = (layout.strides(), tile.rows.start * g.output[1] + tile.cols.start);
    wide.fill(0.0);
    for (i, n) in tile.images.clone().enumerate() {
        let gy = &gy[(n * g.out_channels + channel) * g.output_plane() + start..];
        copy_block(&mut wide[i * image..], row, gy, g.output[1], tile.rows.len(), tile.cols.len());
    }
}

/// `out[i] = bias + sum over taps of weight * patch[tap + i]`, three taps a pass over `out`.
#[inline(always)]
fn sum_of_shifts(out: &mut [f32], bias: f32, patch: &[f32], taps: &[usize], weights: &[f32]) {
    let len = out.len();
    out.fill(bias);
    for (taps, weights) in taps.chunks(3).zip(weights.chunks(3)) {
        if let (&[a, b, c], &[wa, wb, wc]) = (taps, weights) {
            let (a, b, c) = (&patch[a..][..len], &patch[b..][..len], &patch[c..][..len]);
            for i in 0..len {
                out[i] += wa * a[i] + wb * b[i] + wc * c[i];
            }
        } else {
            for (&tap, &weight) in taps.iter().zip(weights) {
                out.iter_mut().zip(&patch[tap..]).for_each(|(out, p)| *out += weight * p);
            }
        }
    }
}

/// The sum of products over `a`, in 32 lanes so that the order allows vectors.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 32;
    let b = &b[..a.len()];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    let mut lanes = [0.0; LANES];
    for (a, b) in a_chunks.zip(b_chunks) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f32>() + rest
}
