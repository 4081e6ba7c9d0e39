//! Convolution and its two gradients: the public functions, and the dense path over tiles.

use crate::depthwise;
use crate::error::{KernelError, check_len};
use crate::geometry::ConvGeometry;
use crate::matmul::{Mat, matmul, transpose};
use crate::parallel::{Parallelism, piece};
use crate::scratch::with_scratch;
use crate::tile::{Tile, Window, add_block, copy_block};
use crate::vector::vectorised;
use std::ops::Range;

/// The column matrix of a tile aims at so many values: with the other operands it stays in a second-level cache of 1 MiB.
const COLUMN_VALUES: usize = 128 * 1024;

/// Fewest and most output positions of a tile: the widest register tile of `gemm`, and where longer brings nothing.
const TILE: [usize; 2] = [64, 448];

/// Rows of columns and outputs are multiples of the widest vector, which spares `gemm` a copy.
const LANES: usize = 16;

/// `y = conv(x, w) + bias`, `bias` being `[out_channels]`.
///
/// # Errors
/// A slice whose length is not the geometry's.
pub fn conv_forward(
    geometry: &ConvGeometry,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
    parallelism: Parallelism,
) -> Result<(), KernelError> {
    check_len("x", x, geometry.input_len())?;
    check_len("w", w, geometry.weight_len())?;
    check_len("y", y, geometry.output_len())?;
    if let Some(bias) = bias {
        check_len("bias", bias, geometry.out_channels)?;
    }
    let shares = Share::cut(y, geometry.batch, geometry.out_channels, geometry.output_plane(), parallelism);
    if geometry.is_depthwise() {
        parallelism.for_each(shares, |share| depthwise::forward(geometry, x, w, bias, share));
    } else if geometry.is_pointwise() && geometry.output_plane() >= TILE[0] {
        parallelism.for_each(shares, |share| forward_pointwise(geometry, x, w, bias, share));
    } else {
        parallelism.for_each(shares, |share| forward_share(geometry, x, w, bias, share));
    }
    Ok(())
}

/// `gx`, the gradient of `<gy, conv(x, w)>` with respect to `x`. What `gx` held is overwritten.
///
/// # Errors
/// A slice whose length is not the geometry's.
pub fn conv_grad_input(
    geometry: &ConvGeometry,
    w: &[f32],
    gy: &[f32],
    gx: &mut [f32],
    parallelism: Parallelism,
) -> Result<(), KernelError> {
    check_len("w", w, geometry.weight_len())?;
    check_len("gy", gy, geometry.output_len())?;
    check_len("gx", gx, geometry.input_len())?;
    if (!geometry.is_depthwise() || geometry.group_out() == 1)
        && let Some(transposed) = geometry.transposed()
    {
        return conv_forward(&transposed, gy, &flipped(geometry, w), None, gx, parallelism);
    }
    let shares = Share::cut(gx, geometry.batch, geometry.in_channels, geometry.input_plane(), parallelism);
    if geometry.is_depthwise() {
        parallelism.for_each(shares, |share| depthwise::grad_input(geometry, w, gy, share));
    } else {
        parallelism.for_each(shares, |share| grad_input_share(geometry, w, gy, share));
    }
    Ok(())
}

/// `gw`, the gradient of `<gy, conv(x, w)>` with respect to `w`. What `gw` held is overwritten.
///
/// # Errors
/// A slice whose length is not the geometry's.
pub fn conv_grad_weight(
    geometry: &ConvGeometry,
    x: &[f32],
    gy: &[f32],
    gw: &mut [f32],
    parallelism: Parallelism,
) -> Result<(), KernelError> {
    check_len("x", x, geometry.input_len())?;
    check_len("gy", gy, geometry.output_len())?;
    check_len("gw", gw, geometry.weight_len())?;
    if geometry.is_depthwise() {
        depthwise::grad_weight(geometry, x, gy, gw, parallelism);
        return Ok(());
    }
    let positions = geometry.batch * geometry.output_plane();
    let target = tile_target(geometry).min(positions.div_ceil(parallelism.threads()));
    let tiles = Tile::cut(0..geometry.batch, geometry.output, target);
    let pieces = parallelism.threads().min(tiles.len());
    let (depth, stride) = (geometry.patch_len(), partial_stride(geometry));
    let partial_len = geometry.group * depth * stride;
    let mut partials = vec![0.0; pieces * partial_len];
    let tasks = partials.chunks_mut(partial_len).enumerate().map(|(i, p)| (&tiles[piece(tiles.len(), pieces, i)], p));
    parallelism.for_each(tasks.collect(), |(tiles, partial)| grad_weight_tiles(geometry, x, gy, tiles, partial));
    for (channel, gw) in gw.chunks_mut(depth).enumerate() {
        let (group, within) = (channel / geometry.group_out(), channel % geometry.group_out());
        for (row, gw) in gw.iter_mut().enumerate() {
            *gw = partials[(group * depth + row) * stride + within..].iter().step_by(partial_len).sum();
        }
    }
    Ok(())
}

impl ConvGeometry {
    /// An upper bound of the bytes that one pass allocates beside its arguments with so many threads: columns, patch and
    /// output of one tile a thread; for the gradients, also one weight a thread. It does not grow with a large batch, and leaves out what `gemm` packs.
    /// The tiles' part stays allocated until the thread ends.
    pub fn scratch_bytes(&self, parallelism: Parallelism) -> usize {
        let dense = |g: &Self| {
            let tile = Tile::largest(g.batch, g.output, tile_target(g));
            let stride = tile.len().next_multiple_of(LANES);
            let patch = Window::new(g).patch(&tile).channel_len();
            patch + stride * (g.patch_len() + partial_stride(g))
        };
        let scratch = |g: &Self| if g.is_depthwise() { depthwise::scratch_len(g) } else { dense(g) };
        let tile = scratch(self).max(self.transposed().map_or(0, |t| scratch(&t)));
        let weight = self.group * self.patch_len() * partial_stride(self);
        // Slices of scratch begin with a line of the cache.
        let own = tile.saturating_add(weight).saturating_add(4 * LANES);
        size_of::<f32>().saturating_mul(parallelism.threads().saturating_mul(own))
    }
}

/// A thread's share of an output `[images, channels, plane]`: images with all channels, or channels of one image.
pub(crate) struct Share<'a> {
    pub(crate) images: Range<usize>,
    pub(crate) channels: Range<usize>,
    plane: usize,
    out: &'a mut [f32],
}

impl<'a> Share<'a> {
    fn cut(
        mut out: &'a mut [f32],
        batch: usize,
        channels: usize,
        plane: usize,
        parallelism: Parallelism,
    ) -> Vec<Share<'a>> {
        let threads = parallelism.threads();
        let by_image = batch >= threads;
        let mut shares = Vec::new();
        let mut push = |images: Range<usize>, channels: Range<usize>| {
            let (head, tail) = std::mem::take(&mut out).split_at_mut(images.len() * channels.len() * plane);
            out = tail;
            shares.push(Share { images, channels, plane, out: head });
        };
        if by_image {
            (0..threads).for_each(|i| push(piece(batch, threads, i), 0..channels));
        } else {
            let pieces = threads.div_ceil(batch).min(channels);
            for n in 0..batch {
                (0..pieces).for_each(|i| push(n..n + 1, piece(channels, pieces, i)));
            }
        }
        shares
    }

    /// The output from the plane of a channel of an image on.
    pub(crate) fn from(&mut self, image: usize, channel: usize) -> &mut [f32] {
        let plane = (image - self.images.start) * self.channels.len() + channel - self.channels.start;
        &mut self.out[plane * self.plane..]
    }

    /// Values between the same position of successive images.
    pub(crate) fn image_stride(&self) -> usize {
        self.channels.len() * self.plane
    }

    pub(crate) fn fill(&mut self, value: f32) {
        self.out.fill(value);
    }

    /// The groups of `size` channels that the share touches, and for each the share's channels in it.
    fn groups(&self, size: usize) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let channels = self.channels.clone();
        let groups = channels.start / size..channels.end.div_ceil(size);
        groups.map(move |g| (g, channels.start.max(g * size)..channels.end.min((g + 1) * size)))
    }
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

fn forward_share(g: &ConvGeometry, x: &[f32], w: &[f32], bias: Option<&[f32]>, mut share: Share) {
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

/// Weights `[in_channels, out_channels / group, taps]` with the taps in reverse order.
fn flipped(g: &ConvGeometry, w: &[f32]) -> Vec<f32> {
    let (ins, outs, taps) = (g.group_in(), g.group_out(), g.taps());
    let mut flipped = vec![0.0; w.len()];
    for (flipped, w) in flipped.chunks_mut(ins * outs * taps).zip(w.chunks(ins * outs * taps)) {
        if taps == 1 {
            transpose(Mat::new(w, outs, ins, ins), flipped, outs);
            continue;
        }
        for (out, w) in w.chunks(ins * taps).enumerate() {
            for (input, w) in w.chunks(taps).enumerate() {
                let to = &mut flipped[(input * outs + out) * taps..][..taps];
                to.iter_mut().zip(w.iter().rev()).for_each(|(to, w)| *to = *w);
            }
        }
    }
    flipped
}

fn grad_input_share(g: &ConvGeometry, w: &[f32], gy: &[f32], mut share: Share) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ConvParams;

    /// Each case runs on a fresh thread, whose scratch is then what its passes needed.
    #[test]
    fn scratch_stays_within_its_bound() {
        for (channels, input, kernel, stride, group) in [
            ([16, 16], [8, 8], [3, 3], 1, 1),
            ([3, 8], [70, 50], [5, 5], 2, 1),
            ([8, 40], [20, 20], [1, 1], 2, 2),
            ([40, 3], [20, 20], [3, 3], 1, 1),
            ([6, 12], [60, 60], [3, 3], 2, 6),
        ] {
            let pad = [kernel[0] / 2; 2];
            let params = ConvParams { group, stride: [stride; 2], pad_begin: pad, pad_end: pad, ..Default::default() };
            let geometry = |batch| ConvGeometry::new(batch, channels[0], channels[1], input, kernel, &params).unwrap();
            let g = geometry(9);
            let run = move || {
                let (mut x, mut w, mut y) =
                    (vec![0.0; g.input_len()], vec![0.0; g.weight_len()], vec![0.0; g.output_len()]);
                conv_forward(&g, &x, &w, None, &mut y, Parallelism::Serial).unwrap();
                conv_grad_input(&g, &w, &y, &mut x, Parallelism::Serial).unwrap();
                conv_grad_weight(&g, &x, &y, &mut w, Parallelism::Serial).unwrap();
                crate::scratch::kept_values() * size_of::<f32>()
            };
            let (kept, bound) = (std::thread::spawn(run).join().unwrap(), g.scratch_bytes(Parallelism::Serial));
            assert!(0 < kept && kept <= bound, "{kept} bytes, bound {bound}, {g:?}");
            assert_eq!(
                geometry(1 << 20).scratch_bytes(Parallelism::Serial),
                geometry(1 << 12).scratch_bytes(Parallelism::Serial)
            );
        }
    }
}
