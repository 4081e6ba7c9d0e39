//! Parts of images with adjacent channels.

use super::CHANNELS;
use crate::matmul::Mat;
use crate::tile::Tile;
use crate::transpose::transpose;
use std::ops::Range;

/// The positions that a block of tiles covers in an image tensor, laid out
/// `[image, channels / 16, row, column, 16]`.
pub(super) struct Field {
    block: Tile,
    channels: Range<usize>,
    /// Rows and columns of the tensor's planes.
    tensor: [usize; 2],
    /// Rows and columns of the field.
    size: [usize; 2],
    /// The rows and columns of the field that lie in the planes.
    inside: [Range<usize>; 2],
    /// Where in the planes the first of them lies.
    start: [usize; 2],
}

impl Field {
    /// Tiles of `side` x `side` positions, two apart, the first of which begins `pad` before the planes.
    pub(super) fn new(block: &Tile, tensor: [usize; 2], pad: [usize; 2], side: usize, channels: Range<usize>) -> Self {
        let tiles = [&block.rows, &block.cols];
        let size = tiles.map(|tiles| 2 * (tiles.len() - 1) + side);
        let first = tiles.map(|tiles| 2 * tiles.start);
        let inside = [0, 1].map(|axis| {
            let begin = pad[axis].saturating_sub(first[axis]).min(size[axis]);
            begin..(tensor[axis] + pad[axis]).saturating_sub(first[axis]).clamp(begin, size[axis])
        });
        let start = [0, 1].map(|axis| (first[axis] + inside[axis].start).saturating_sub(pad[axis]));
        Self { block: block.clone(), channels, tensor, size, inside, start }
    }

    /// Positions of one image.
    pub(super) fn plane(&self) -> usize {
        self.size[0] * self.size[1]
    }

    /// Values of all images and channels.
    pub(super) fn len(&self) -> usize {
        self.block.images.len() * self.plane() * self.channels.len()
    }

    /// Positions of a row.
    pub(super) fn width(&self) -> usize {
        self.size[1]
    }

    /// The first position of each tile, counted from the block's first image's first 16 channels.
    pub(super) fn corners(&self) -> Vec<usize> {
        let (image_len, block) = (self.plane() * self.channels.len() / CHANNELS, &self.block);
        let mut corners = Vec::with_capacity(block.len());
        for image in 0..block.images.len() {
            for row in 0..block.rows.len() {
                let row = image * image_len + 2 * row * self.width();
                corners.extend((0..block.cols.len()).map(|col| row + 2 * col));
            }
        }
        corners
    }

    /// Reads the field from a tensor with `all` channels, zeros where it lies outside.
    pub(super) fn gather(&self, from: &[f32], all: usize, to: &mut [f32]) {
        let plane = self.tensor[0] * self.tensor[1];
        let [rows, cols] = &self.inside;
        let mut planes = to.chunks_mut(self.plane() * CHANNELS);
        for image in self.block.images.clone() {
            for channel in self.channels.clone().step_by(CHANNELS) {
                let Some(to) = planes.next() else { return };
                for (row, to) in to.chunks_mut(self.width() * CHANNELS).enumerate() {
                    if !rows.contains(&row) || cols.is_empty() {
                        to.fill(0.0);
                        continue;
                    }
                    to[..cols.start * CHANNELS].fill(0.0);
                    to[cols.end * CHANNELS..].fill(0.0);
                    let at = (self.start[0] + row - rows.start) * self.tensor[1] + self.start[1];
                    let from = &from[(image * all + channel) * plane + at..];
                    transpose(Mat::new(from, CHANNELS, cols.len(), plane), &mut to[cols.start * CHANNELS..], CHANNELS);
                }
            }
        }
    }

    /// Writes the field's values of an image to its planes.
    pub(super) fn scatter(&self, from: &[f32], image: usize, to: &mut [f32]) {
        let plane = self.tensor[0] * self.tensor[1];
        let [rows, cols] = self.inside.clone().map(|range| range.len());
        let len = self.plane() * self.channels.len();
        let from = &from[(image - self.block.images.start) * len..][..len];
        for (from, to) in from.chunks(self.plane() * CHANNELS).zip(to.chunks_mut(CHANNELS * plane)) {
            let to = &mut to[self.start[0] * self.tensor[1] + self.start[1]..];
            if self.width() == self.tensor[1] {
                transpose(Mat::new(from, rows * cols, CHANNELS, CHANNELS), to, plane);
                continue;
            }
            for row in 0..rows {
                let from = &from[row * self.width() * CHANNELS..];
                transpose(Mat::new(from, cols, CHANNELS, CHANNELS), &mut to[row * self.tensor[1]..], plane);
            }
        }
    }
}
