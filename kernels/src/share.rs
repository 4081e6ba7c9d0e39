//! The parts of an output that threads have for themselves.

use crate::parallel::{Parallelism, piece};
use std::ops::Range;

/// A thread's share of an output `[images, channels, plane]`: images with all channels, or channels of one image.
pub(crate) struct Share<'a> {
    pub(crate) images: Range<usize>,
    pub(crate) channels: Range<usize>,
    pub(crate) plane: usize,
    out: &'a mut [f32],
}

impl<'a> Share<'a> {
    /// Cuts an output among threads; channels only in multiples of `whole`.
    pub(crate) fn cut(
        mut out: &'a mut [f32],
        batch: usize,
        channels: usize,
        plane: usize,
        whole: usize,
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
            let groups = channels / whole;
            let pieces = threads.div_ceil(batch).min(groups);
            for n in 0..batch {
                (0..pieces).for_each(|i| {
                    let groups = piece(groups, pieces, i);
                    push(n..n + 1, groups.start * whole..groups.end * whole);
                });
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
    pub(crate) fn groups(&self, size: usize) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let channels = self.channels.clone();
        let groups = channels.start / size..channels.end.div_ceil(size);
        groups.map(move |g| (g, channels.start.max(g * size)..channels.end.min((g + 1) * size)))
    }
}
