//! Dense convolutions over tiles of output positions: columns (im2col) and matrix products.

use crate::geometry::ConvGeometry;
use crate::matmul::{Mat, matmul};
use crate::parallel::{Parallelism, piece};
use crate::rows::{add_block, copy_block};
use crate::scratch::with_scratch;
use crate::share::Share;
use crate::tile::{Tile, Window};
use crate::transpose::transpose;
use crate::vector::vectorised;

/// The column matrix of a tile aims at so many values: with the other operands it stays in a second-level cache of 1 MiB.
const COLUMN_VALUES: usize = 128 * 1024;

/// Fewest and most output positions of a tile: the widest register tile of `gemm`, and where longer brings nothing.
const TILE: [usize; 2] = [64, 448];

/// Rows of columns and outputs are multiples of the widest vector, which spares `gemm` a copy.
const LANES: usize = 16;

/// `y = conv(x, w) + bias` for the output channels of `share`.
pub(crate) fn forward(g: &ConvGeometry, x: &[f32], w: &[f32], bias: Option<&[f32]>, share: Share) {
    if g.is_pointwise() && g.output_plane() >= TILE[0] {
        forward_pointwise(g, x, w, bias, share);
    } else {
        forward_tiles(g, x, w, bias, share);
    }
}

/// The weight gradient, summed per thread over a range of tiles.
pub(crate) fn grad_weight(g: &ConvGeometry, x: &[f32], gy: &[f32], gw: &mut [f32], parallelism: Parallelism) {
    let positions = g.batch * g.output_plane();
    let target = tile_target(g).min(positions.div_ceil(parallelism.threads()));
    let tiles = Tile::cut(0..g.batch, g.output, target);
    let pieces = parallelism.threads().min(tiles.len());
    let (depth, stride) = (g.patch_len(), partial_stride(g));
    let partial_len = g.group * depth * stride;
    let mut partials = vec![0.0; pieces * partial_len];
    let tasks = partials.chunks_mut(partial_len).enumerate().map(|(i, p)| (&tiles[piece(tiles.len(), pieces, i)], p));
    parallelism.for_each(tasks.collect(), |(tiles, partial)| grad_weight_tiles(g, x, gy, tiles, partial));
    let (total, others) = partials.split_at_mut(partial_len);
    for partial in others.chunks(partial_len) {
        total.iter_mut().zip(partial).for_each(|(total, part)| *total += part);
    }
    let outs = g.group_out();
    for (from, to) in total.chunks(depth * stride).zip(gw.chunks_mut(outs * depth)) {
        transpose(Mat::new(from, depth, outs, stride), to, depth);
    }
}

/// Values of scratch one thread needs.
pub(crate) fn scratch_len(g: &ConvGeometry) -> usize {
    let tile = Tile::largest(g.batch, g.output, tile_target(g));
    let stride = tile.len().next_multiple_of(LANES);
    let patch = Window::new(g).patch(&tile).channel_len();
    patch + stride * (g.patch_len() + partial_stride(g))
}

/// Values of one weight gradient that is summed up.
pub(crate) fn weight_len(g: &ConvGeometry) -> usize {
    g.group * g.patch_len() * partial_stride(g)
}

/// Lengths of the scratch slices for one tile of one group.
struct Scratch {
    /// Distance between rows of columns and outputs: the tile's positions, rounded up to [`LANES`].
    stride: usize,
    columns: usize,
    patch: usize,
}

impl Scratch {
    fn new(g: &ConvGeometry, window: &Window, tile: &Tile) -> Self {
        let stride = tile.len().next_multiple_of(LANES);
        let patch = if g.taps() == 1 { 0 } else { window.patch(tile).channel_len() };
        Self { stride, columns: g.patch_len() * stride, patch }
    }
}

fn tile_target(g: &ConvGeometry) -> usize {
    (COLUMN_VALUES / g.patch_len() / TILE[0] * TILE[0]).clamp(TILE[0], TILE[1])
}

/// Distance between rows of a partial weight gradient `[patch_len, group_out]`.
fn partial_stride(g: &ConvGeometry) -> usize {
    g.group_out().next_multiple_of(if g.group_out() > LANES / 2 { LANES } else { LANES / 2 })
}

/// Gathers the columns `[patch_len, stride]` of one group; positions beyond the tile are left as they are.
fn fill_columns(
    g: &ConvGeometry,
    window: &Window,
    tile: &Tile,
    x: &[f32],
    group: usize,
    columns: &mut [f32],
    patch: &mut [f32],
) {
    let layout = window.patch(tile);
    let plane = g.input_plane();
    let channel_plane = |n: usize, c: usize| &x[(n * g.in_channels + group * g.group_in() + c) * plane..][..plane];
    let stride = tile.len().next_multiple_of(LANES);
    if g.taps() == 1 {
        for (c, row) in columns.chunks_mut(stride).enumerate() {
            let row = &mut row[..tile.len()];
            row.fill(0.0);
            layout.fill(row, |n| channel_plane(n, c));
        }
        return;
    }
    let taps = layout.tap_offsets();
    let ([image, row], [rows, cols]) = (layout.strides(), [tile.rows.len(), tile.cols.len()]);
    patch.fill(0.0);
    for (c, columns) in columns.chunks_mut(taps.len() * stride).enumerate() {
        layout.fill(patch, |n| channel_plane(n, c));
        vectorised(
            #[inline(always)]
            || {
                for (to, &tap) in columns.chunks_mut(stride).zip(&taps) {
                    for n in 0..tile.images.len() {
                        copy_block(&mut to[n * rows * cols..], cols, &patch[tap + n * image..], row, rows, cols);
                    }
                }
            },
        );
    }
}

/// Visits the runs of a tile in an output tensor's planes: image, start in the plane, start in the tile, length.
fn runs(tile: &Tile, output: [usize; 2], mut run: impl FnMut(usize, usize, usize, usize)) {
    let [rows, cols] = [tile.rows.len(), tile.cols.len()];
    let mut at = 0;
    for n in tile.images.clone() {
        if cols == output[1] {
            run(n, tile.rows.start * cols, at, rows * cols);
            at += rows * cols;
        } else {
            for y in tile.rows.clone() {
                run(n, y * output[1] + tile.cols.start, at, cols);
                at += cols;
            }
        }
    }
}

fn forward_tiles(g: &ConvGeometry, x: &[f32], w: &[f32], bias: Option<&[f32]>, mut share: Share) {
    let window = Window::new(g);
    let depth = g.patch_len();
    for tile in Tile::cut(share.images.clone(), g.output, tile_target(g)) {
        let Scratch { stride, columns, patch } = Scratch::new(g, &window, &tile);
        for (group, channels) in share.groups(g.group_out()) {
            with_scratch([columns, patch, channels.len() * stride], |[columns, patch, result]| {
                fill_columns(g, &window, &tile, x, group, columns, patch);
                let weights = Mat::new(&w[channels.start * depth..], channels.len(), depth, depth);
                matmul(result, stride, weights, Mat::new(columns, depth, stride, stride), false);
                for (result, channel) in result.chunks(stride).zip(channels) {
                    let bias = bias.map_or(0.0, |bias| bias[channel]);
                    runs(&tile, g.output, |n, at, from, len| {
                        let y = &mut share.from(n, channel)[at..][..len];
                        y.iter_mut().zip(&result[from..][..len]).for_each(|(y, r)| *y = r + bias);
                    });
                }
            });
        }
    }
}

/// A 1x1 convolution reads the input's planes as the rows of its columns.
fn forward_pointwise(g: &ConvGeometry, x: &[f32], w: &[f32], bias: Option<&[f32]>, mut share: Share) {
    let (plane, depth) = (share.plane, g.patch_len());
    for n in share.images.clone() {
        for (group, channels) in share.groups(g.group_out()) {
            let y = &mut share.from(n, channels.start)[..channels.len() * plane];
            if let Some(bias) = bias {
                y.chunks_mut(plane).zip(&bias[channels.clone()]).for_each(|(y, b)| y.fill(*b));
            }
            let weights = Mat::new(&w[channels.start * depth..], channels.len(), depth, depth);
            let columns = Mat::new(&x[(n * g.in_channels + group * depth) * plane..], depth, plane, plane);
            matmul(y, plane, weights, columns, bias.is_some());
        }
    }
}

/// The input gradient for the input channels of `share`.
pub(crate) fn grad_input(g: &ConvGeometry, w: &[f32], gy: &[f32], mut share: Share) {
    let window = Window::new(g);
    let (depth, outs, taps, image_stride) = (g.patch_len(), g.group_out(), g.taps(), share.image_stride());
    share.fill(0.0);
    for tile in Tile::cut(share.images.clone(), g.output, tile_target(g)) {
        let layout = window.patch(&tile);
        let stride = tile.len().next_multiple_of(LANES);
        let ([image, row], [rows, cols]) = (layout.strides(), [tile.rows.len(), tile.cols.len()]);
        let offsets = layout.tap_offsets();
        for (group, channels) in share.groups(g.group_in()) {
            let lens = [channels.len() * taps * stride, layout.channel_len(), outs * stride];
            with_scratch(lens, |[columns, patch, gradient]| {
                for (channel, to) in gradient.chunks_mut(stride).enumerate() {
                    let plane = |n: usize| (n * g.out_channels + group * outs + channel) * g.output_plane();
                    runs(&tile, g.output, |n, at, start, len| {
                        to[start..][..len].copy_from_slice(&gy[plane(n) + at..][..len]);
                    });
                }
                let first = group * outs * depth + (channels.start - group * g.group_in()) * taps;
                let weights = Mat::new(&w[first..], outs, channels.len() * taps, depth).transposed();
                matmul(columns, stride, weights, Mat::new(gradient, outs, stride, stride), false);
                for (columns, channel) in columns.chunks(taps * stride).zip(channels) {
                    patch.fill(0.0);
                    for (from, tap) in columns.chunks(stride).zip(&offsets) {
                        for n in 0..tile.images.len() {
                            add_block(&mut patch[tap + n * image..], row, &from[n * rows * cols..], cols, rows, cols);
                        }
                    }
                    layout.fold(patch, image_stride, share.from(tile.images.start, channel));
                }
            });
        }
    }
}

/// Adds the tiles' part of the weight gradient to `partial`, `[group, patch_len, partial_stride]`.
fn grad_weight_tiles(g: &ConvGeometry, x: &[f32], gy: &[f32], tiles: &[Tile], partial: &mut [f32]) {
    if g.is_pointwise() && g.output_plane() >= TILE[0] {
        return grad_weight_pointwise(g, x, gy, tiles, partial);
    }
    let window = Window::new(g);
    let (depth, outs, width) = (g.patch_len(), g.group_out(), partial_stride(g));
    for tile in tiles {
        let Scratch { stride, columns, patch } = Scratch::new(g, &window, tile);
        for (group, partial) in partial.chunks_mut(depth * width).enumerate() {
            with_scratch([columns, patch, tile.len() * width], |[columns, patch, gradient]| {
                fill_columns(g, &window, tile, x, group, columns, patch);
                if width > outs {
                    gradient.fill(0.0);
                }
                runs(tile, g.output, |n, at, start, len| {
                    let first = (n * g.out_channels + group * outs) * g.output_plane() + at;
                    let rows = Mat::new(&gy[first..], outs, len, g.output_plane());
                    transpose(rows, &mut gradient[start * width..], width);
                });
                let columns = Mat::new(columns, depth, tile.len(), stride);
                matmul(partial, width, columns, Mat::new(gradient, tile.len(), width, width), true);
            });
        }
    }
}

/// As [`grad_weight_tiles`], with the input's planes as the rows of the columns.
fn grad_weight_pointwise(g: &ConvGeometry, x: &[f32], gy: &[f32], tiles: &[Tile], partial: &mut [f32]) {
    let (depth, outs, width, plane) = (g.patch_len(), g.group_out(), partial_stride(g), g.output_plane());
    for tile in tiles {
        for (group, partial) in partial.chunks_mut(depth * width).enumerate() {
            with_scratch([tile.len() * width], |[gradient]| {
                if width > outs {
                    gradient.fill(0.0);
                }
                runs(tile, g.output, |n, at, start, len| {
                    let gradient = &mut gradient[start * width..][..len * width];
                    let rows = Mat::new(&gy[(n * g.out_channels + group * outs) * plane + at..], outs, len, plane);
                    transpose(rows, gradient, width);
                    let columns = &x[(n * g.in_channels + group * depth) * plane + at..];
                    let columns = Mat::new(columns, depth, len, plane);
                    matmul(partial, width, columns, Mat::new(gradient, len, width, width), true);
                });
            });
        }
    }
}
