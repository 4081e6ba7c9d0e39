//! Tiles of output positions, and the input that a tile sees, laid out so that every kernel tap is a plain shift.
//!
//! A stride `s` splits the padded input into phases: phase `a` holds positions `a, a + s, a + 2s, ...`. A tap at dilated
//! offset `t` then reads phase `t % s` shifted by `t / s`, always with unit stride. A [`Patch`] is that layout for one
//! tile, `[channel][phase][image][row][column]`, zeros where the input is padded.

use crate::geometry::ConvGeometry;
use crate::rows::{copy_block, deinterleave, every_second};
use crate::vector::vectorised;
use std::ops::Range;

/// A box of output positions: whole images, else whole rows of one image, else columns of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tile {
    pub(crate) images: Range<usize>,
    pub(crate) rows: Range<usize>,
    pub(crate) cols: Range<usize>,
}

impl Tile {
    /// Number of output positions.
    pub(crate) fn len(&self) -> usize {
        self.images.len() * self.rows.len() * self.cols.len()
    }

    /// A tile that no tile of [`Tile::cut`] of up to `batch` images exceeds.
    pub(crate) fn largest(batch: usize, output: [usize; 2], target: usize) -> Self {
        let [height, width] = output;
        let upto = |len: usize, longest: usize| 0..len.min(longest.max(1));
        Self {
            images: upto(batch, target / (height * width)),
            rows: upto(height, target / width),
            cols: upto(width, target),
        }
    }

    /// Cuts `images` of `output` positions into tiles of at most `target` positions (at least one).
    pub(crate) fn cut(images: Range<usize>, output: [usize; 2], target: usize) -> Vec<Self> {
        let [height, width] = output;
        let images = even(images, target / (height * width));
        let rows = even(0..height, target / width);
        let cols = even(0..width, target);
        let tile = |images: &Range<usize>, rows: &Range<usize>, cols: &Range<usize>| Self {
            images: images.clone(),
            rows: rows.clone(),
            cols: cols.clone(),
        };
        images
            .iter()
            .flat_map(|i| rows.iter().flat_map(|r| cols.iter().map(|c| tile(i, r, c))).collect::<Vec<_>>())
            .collect()
    }
}

/// Cuts a range into pieces of nearly equal length, at most `longest` (taken as 1 if 0).
fn even(range: Range<usize>, longest: usize) -> Vec<Range<usize>> {
    let pieces = range.len().div_ceil(longest.max(1)).max(1);
    let piece = |index| crate::parallel::piece(range.len(), pieces, index);
    (0..pieces).map(piece).map(|p| range.start + p.start..range.start + p.end).collect()
}

/// How the taps of one axis read the phases.
#[derive(Debug, Clone)]
struct Axis {
    stride: usize,
    pad: usize,
    input: usize,
    /// The phases that some tap reads.
    phases: Vec<usize>,
    /// For each tap: index into `phases`, and shift.
    taps: Vec<(usize, usize)>,
    /// The largest shift.
    reach: usize,
}

impl Axis {
    fn new(g: &ConvGeometry, axis: usize) -> Self {
        let stride = g.stride[axis];
        let offsets = (0..g.kernel[axis]).map(|tap| tap * g.dilation[axis]);
        let mut phases: Vec<usize> = offsets.clone().map(|offset| offset % stride).collect();
        phases.sort_unstable();
        phases.dedup();
        let place = |phase: usize| phases.partition_point(|&p| p < phase);
        let taps: Vec<_> = offsets.map(|offset| (place(offset % stride), offset / stride)).collect();
        let reach = taps.iter().map(|&(_, shift)| shift).max().unwrap_or(0);
        Self { stride, pad: g.pad_begin[axis], input: g.input[axis], phases, taps, reach }
    }

    /// How positions of the input, in blocks of `stride`, read an output gradient: a tap reaches one place of each block
    /// (returned for each tap), from the output position of the block's number, shifted.
    fn adjoint(g: &ConvGeometry, axis: usize) -> (Self, Vec<usize>) {
        let (stride, begin) = (g.stride[axis].min(isize::MAX as usize) as isize, g.pad_begin[axis] as isize);
        let inputs = (0..g.kernel[axis]).map(|tap| (tap * g.dilation[axis]) as isize - begin);
        let places = inputs.clone().map(|at| at.rem_euclid(stride) as usize).collect();
        let pad = inputs.clone().map(|at| at.div_euclid(stride)).fold(0, isize::max);
        let taps: Vec<_> = inputs.map(|at| (0, (pad - at.div_euclid(stride)) as usize)).collect();
        let reach = taps.iter().map(|&(_, shift)| shift).max().unwrap_or(0);
        (Self { stride: 1, pad: pad as usize, input: g.output[axis], phases: vec![0], taps, reach }, places)
    }

    /// Of `len` positions of `phase` from output position `start` on, those inside the input, and where the first lies.
    fn inside(&self, phase: usize, start: usize, len: usize) -> (Range<usize>, usize) {
        let first = start * self.stride + self.phases[phase];
        let begin = self.pad.saturating_sub(first).div_ceil(self.stride).min(len);
        let end = (self.input + self.pad).saturating_sub(first).div_ceil(self.stride).clamp(begin, len);
        (begin..end, if begin < end { first + begin * self.stride - self.pad } else { 0 })
    }
}

/// How the taps of a kernel read the input.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    axes: [Axis; 2],
}

/// The layout of what one tile sees of a channel.
#[derive(Debug, Clone)]
pub(crate) struct Patch<'a> {
    window: &'a Window,
    tile: &'a Tile,
    /// Rows and columns of an image's plane.
    plane: [usize; 2],
}

impl Window {
    pub(crate) fn new(g: &ConvGeometry) -> Self {
        Self { axes: [Axis::new(g, 0), Axis::new(g, 1)] }
    }

    /// How the input gradient reads the output gradient, in blocks of as many rows and columns as the strides. Every tap
    /// reaches one place of each block: its row for each tap of the first axis, its column for each of the second.
    pub(crate) fn adjoint(g: &ConvGeometry) -> (Self, [Vec<usize>; 2]) {
        let [(vertical, rows), (horizontal, cols)] = [0, 1].map(|axis| Axis::adjoint(g, axis));
        (Self { axes: [vertical, horizontal] }, [rows, cols])
    }

    /// Planes of a channel.
    pub(crate) fn phases(&self) -> usize {
        self.axes.iter().map(|axis| axis.phases.len()).product()
    }

    pub(crate) fn patch<'a>(&'a self, tile: &'a Tile) -> Patch<'a> {
        let plane = [tile.rows.len() + self.axes[0].reach, tile.cols.len() + self.axes[1].reach];
        Patch { window: self, tile, plane }
    }
}

impl Patch<'_> {
    /// Values of one channel.
    pub(crate) fn channel_len(&self) -> usize {
        self.window.phases() * self.phase_len()
    }

    /// Values of one phase of one channel.
    fn phase_len(&self) -> usize {
        self.tile.images.len() * self.plane[0] * self.plane[1]
    }

    /// Values between the same position in a phase's successive images, and rows.
    pub(crate) fn strides(&self) -> [usize; 2] {
        [self.plane[0] * self.plane[1], self.plane[1]]
    }

    /// For each tap, in the weight's order: where in a channel the tile's first position reads.
    pub(crate) fn tap_offsets(&self) -> Vec<usize> {
        let [vertical, horizontal] = &self.window.axes;
        let offset = |&(py, sy): &(usize, usize), &(px, sx): &(usize, usize)| {
            (py * horizontal.phases.len() + px) * self.phase_len() + sy * self.plane[1] + sx
        };
        vertical.taps.iter().flat_map(|y| horizontal.taps.iter().map(move |x| offset(y, x))).collect()
    }

    /// The distance from a tile's first to its last position in wide form, where rows keep the plane's width.
    pub(crate) fn wide_len(&self) -> usize {
        let [image, row] = self.strides();
        (self.tile.images.len() - 1) * image + (self.tile.rows.len() - 1) * row + self.tile.cols.len()
    }

    /// Copies a channel from `image(n)`, the channel's plane in image n of the input. What lies in the padding is left.
    pub(crate) fn fill<'x>(&self, channel: &mut [f32], image: impl Fn(usize) -> &'x [f32]) {
        let [_, horizontal] = &self.window.axes;
        vectorised(
            #[inline(always)]
            || {
                if horizontal.stride == 2 && horizontal.phases.len() == 2 {
                    return self.fill_halves(channel, &image);
                }
                self.visit(
                    #[inline(always)]
                    |at, n, from, [rows, cols], step| {
                        let (to, from) = (&mut channel[at..], &image(n)[from..]);
                        if step[1] == 1 {
                            return copy_block(to, self.plane[1], from, step[0], rows, cols);
                        }
                        for row in 0..rows {
                            let (to, from) = (&mut to[row * self.plane[1]..][..cols], &from[row * step[0]..]);
                            match step[1] {
                                2 => every_second(to, from),
                                step => to.iter_mut().zip(from.iter().step_by(step)).for_each(|(t, f)| *t = *f),
                            }
                        }
                    },
                );
            },
        );
    }

    /// As [`Patch::fill`] where the columns have both phases of stride 2: a row is read once for the two.
    #[inline(always)]
    fn fill_halves<'x>(&self, channel: &mut [f32], image: &impl Fn(usize) -> &'x [f32]) {
        let [vertical, horizontal] = &self.window.axes;
        let [(even, x), (odd, z)] = [0, 1].map(|px| horizontal.inside(px, self.tile.cols.start, self.plane[1]));
        let even_first = odd.is_empty() || x < z && !even.is_empty();
        for (py, phases) in channel.chunks_mut(2 * self.phase_len()).take(vertical.phases.len()).enumerate() {
            let (evens, odds) = phases.split_at_mut(self.phase_len());
            let (rows, y) = vertical.inside(py, self.tile.rows.start, self.plane[0]);
            for (i, n) in self.tile.images.clone().enumerate() {
                let image = image(n);
                for row in 0..rows.len() {
                    let from = &image[(y + row * vertical.stride) * horizontal.input..][..horizontal.input];
                    let at = (i * self.plane[0] + rows.start + row) * self.plane[1];
                    let evens = &mut evens[at + even.start..][..even.len()];
                    let odds = &mut odds[at + odd.start..][..odd.len()];
                    match even_first {
                        true => deinterleave(evens, odds, &from[x..]),
                        false => deinterleave(odds, evens, &from[z..]),
                    }
                }
            }
        }
    }

    /// Adds a channel to an input gradient: `out` begins at the channel's plane in the tile's first image.
    pub(crate) fn fold(&self, channel: &[f32], image_stride: usize, out: &mut [f32]) {
        vectorised(
            #[inline(always)]
            || {
                self.visit(
                    #[inline(always)]
                    |at, n, to, [rows, cols], step| {
                        let out = &mut out[(n - self.tile.images.start) * image_stride + to..];
                        for row in 0..rows {
                            let from = &channel[at + row * self.plane[1]..][..cols];
                            let to = &mut out[row * step[0]..];
                            match step[1] {
                                1 => to.iter_mut().zip(from).for_each(|(t, f)| *t += f),
                                step => to.iter_mut().step_by(step).zip(from).for_each(|(t, f)| *t += f),
                            }
                        }
                    },
                );
            },
        );
    }

    /// Visits the blocks of a channel that lie in the input: start in the channel, image, start in the input's plane,
    /// rows and columns, and the steps in the input's plane from row to row and column to column.
    #[inline(always)]
    fn visit(&self, mut block: impl FnMut(usize, usize, usize, [usize; 2], [usize; 2])) {
        let [vertical, horizontal] = &self.window.axes;
        let width = horizontal.input;
        let mut at = 0;
        for py in 0..vertical.phases.len() {
            let (rows, y) = vertical.inside(py, self.tile.rows.start, self.plane[0]);
            for px in 0..horizontal.phases.len() {
                let (cols, x) = horizontal.inside(px, self.tile.cols.start, self.plane[1]);
                for n in self.tile.images.clone() {
                    if !rows.is_empty() && !cols.is_empty() {
                        let (start, size) = (at + rows.start * self.plane[1] + cols.start, [rows.len(), cols.len()]);
                        block(
                            start,
                            n,
                            y * width + x,
                            size,
                            [vertical.stride.saturating_mul(width), horizontal.stride],
                        );
                    }
                    at += self.strides()[0];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ConvParams;

    #[test]
    fn tiles_cover_every_position_once() {
        for (images, output, target) in [(5, [3, 4], 30), (2, [7, 3], 9), (1, [2, 50], 16), (3, [2, 2], 1)] {
            let mut seen = vec![0; images * output[0] * output[1]];
            for tile in Tile::cut(0..images, output, target) {
                assert!(tile.len() <= target);
                for n in tile.images.clone() {
                    for y in tile.rows.clone() {
                        tile.cols.clone().for_each(|x| seen[(n * output[0] + y) * output[1] + x] += 1);
                    }
                }
            }
            assert!(seen.iter().all(|&count| count == 1), "{seen:?}");
        }
    }

    /// Every tap of every output position finds the padded input's value at its offset.
    #[test]
    fn taps_are_shifts() {
        let params =
            ConvParams { stride: [2, 3], pad_begin: [2, 1], pad_end: [1, 4], dilation: [3, 2], ..Default::default() };
        let g = ConvGeometry::new(3, 1, 1, [8, 11], [3, 4], &params).unwrap();
        let x: Vec<f32> = (0..g.input_len()).map(|i| i as f32 + 1.0).collect();
        let window = Window::new(&g);
        for target in [3, 9, 100] {
            for tile in Tile::cut(0..3, g.output(), target) {
                let patch = window.patch(&tile);
                let mut channel = vec![0.0; patch.channel_len()];
                patch.fill(&mut channel, |n| &x[n * 88..][..88]);
                for (tap, offset) in patch.tap_offsets().into_iter().enumerate() {
                    for (i, n) in tile.images.clone().enumerate() {
                        for (j, oy) in tile.rows.clone().enumerate() {
                            for (k, ox) in tile.cols.clone().enumerate() {
                                let y = (oy * 2 + tap / 4 * 3).wrapping_sub(2);
                                let x_at = (ox * 3 + tap % 4 * 2).wrapping_sub(1);
                                let want = if y < 8 && x_at < 11 { x[n * 88 + y * 11 + x_at] } else { 0.0 };
                                let [image, row] = patch.strides();
                                assert_eq!(channel[offset + i * image + j * row + k], want);
                            }
                        }
                    }
                }
            }
        }
    }
}
