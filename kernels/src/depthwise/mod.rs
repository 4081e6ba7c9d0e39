//! Depthwise convolution (one input channel a group): a sum of shifted planes, one a tap, without columns.
//!
//! The tile's outputs are kept in wide form: rows as long as the patch's, so that a tap is one shift of one long run.

mod grad_input;
mod sums;

use crate::geometry::ConvGeometry;
use crate::parallel::{Parallelism, piece};
use crate::rows::copy_block;
use crate::scratch::{LINE, with_scratch};
use crate::share::Share;
use crate::tile::{Patch, Tile, Window};
use crate::vector::vectorised;
pub(crate) use grad_input::grad_input;
use pulp::Arch;
use sums::{Products, Shifts};

/// Values of a tile: with the input that streams by, they stay in a first-level cache of 32 KiB.
const TARGET: usize = 5120;

/// Positions of a tile that has so many planes beside its wide form.
fn positions(planes: usize) -> usize {
    TARGET / (planes + 1)
}

/// Values of scratch for a channel of a patch and for `wides` wide forms: whole vectors of the latter may be read and
/// written at any tap.
fn lens(layout: &Patch, wides: usize) -> [usize; 2] {
    [layout.channel_len() + LINE, wides * wide_len(layout)]
}

/// Values of a wide form, in whole vectors.
fn wide_len(layout: &Patch) -> usize {
    layout.wide_len().next_multiple_of(LINE)
}

/// Values of scratch one thread needs.
pub(crate) fn scratch_len(g: &ConvGeometry) -> usize {
    let window = Window::new(g);
    let tile = Tile::largest(g.batch, g.output, positions(window.phases()));
    let own = lens(&window.patch(&tile), 1).iter().sum::<usize>();
    own.max(grad_input::scratch_len(g))
}

/// `out = bias + conv(x, w)` for the output channels of `share`.
pub(crate) fn forward(g: &ConvGeometry, x: &[f32], w: &[f32], bias: Option<&[f32]>, mut share: Share) {
    let window = Window::new(g);
    for tile in Tile::cut(share.images.clone(), g.output, positions(window.phases())) {
        let layout = window.patch(&tile);
        let taps: Vec<_> = layout.tap_offsets().into_iter().enumerate().collect();
        let ([image, row], start) = (layout.strides(), tile.rows.start * g.output[1] + tile.cols.start);
        with_scratch(lens(&layout, 1), |[patch, wide]| {
            patch.fill(0.0);
            let mut filled = None;
            for channel in share.channels.clone() {
                let input = channel / g.group_out();
                if filled.replace(input) != Some(input) {
                    layout.fill(patch, |n| plane(x, g.in_channels, g.input_plane(), n, input));
                }
                let weights = &w[channel * taps.len()..][..taps.len()];
                let first = Some(bias.map_or(0.0, |bias| bias[channel]));
                Arch::new().dispatch(Shifts { out: wide, first, patch, taps: &taps, weights });
                vectorised(
                    #[inline(always)]
                    || {
                        for (i, n) in tile.images.clone().enumerate() {
                            let y = &mut share.from(n, channel)[start..];
                            copy_block(y, g.output[1], &wide[i * image..], row, tile.rows.len(), tile.cols.len());
                        }
                    },
                );
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
    let tiles = Tile::cut(0..g.batch, g.output, positions(window.phases()));
    let tasks = gw.chunks_mut(longest).enumerate().collect();
    parallelism.for_each(tasks, |(task, gw): (usize, &mut [f32])| {
        gw.fill(0.0);
        for tile in &tiles {
            let layout = window.patch(tile);
            let offsets = layout.tap_offsets();
            with_scratch(lens(&layout, 1), |[patch, wide]| {
                patch.fill(0.0);
                wide.fill(0.0);
                let mut filled = None;
                for (i, gw) in gw.chunks_mut(taps).enumerate() {
                    let channel = task * longest / taps + i;
                    let input = channel / g.group_out();
                    if filled.replace(input) != Some(input) {
                        layout.fill(patch, |n| plane(x, g.in_channels, g.input_plane(), n, input));
                    }
                    fill_wide(g, &layout, tile, gy, channel, wide);
                    Arch::new().dispatch(Products { gw, wide, patch, taps: &offsets });
                }
            });
        }
    });
}

/// The plane of a channel of an image.
fn plane(values: &[f32], channels: usize, len: usize, image: usize, channel: usize) -> &[f32] {
    &values[(image * channels + channel) * len..][..len]
}

/// Spreads a channel of an output gradient to wide form. What lies between the rows is left.
fn fill_wide(g: &ConvGeometry, layout: &Patch, tile: &Tile, gy: &[f32], channel: usize, wide: &mut [f32]) {
    let ([image, row], start) = (layout.strides(), tile.rows.start * g.output[1] + tile.cols.start);
    vectorised(
        #[inline(always)]
        || {
            for (i, n) in tile.images.clone().enumerate() {
                let gy = &plane(gy, g.out_channels, g.output_plane(), n, channel)[start..];
                copy_block(&mut wide[i * image..], row, gy, g.output[1], tile.rows.len(), tile.cols.len());
            }
        },
    );
}
