//! The input gradient of a depthwise convolution.
//!
//! A stride `s` cuts the input's rows and columns into blocks of `s` positions. The positions at one place of their blocks
//! form a phase, which is a sum of shifted planes of the output gradient like any convolution of stride 1. Phases are
//! computed apart and put together at the end.

use super::sums::Shifts;
use super::{lens, plane, positions, wide_len};
use crate::geometry::ConvGeometry;
use crate::rows::{copy_block, interleave};
use crate::scratch::with_scratch;
use crate::share::Share;
use crate::tile::{Patch, Tile, Window};
use crate::vector::vectorised;
use pulp::Arch;

/// The phases that taps reach, `places` of the blocks' rows by places of their columns.
struct Phases {
    window: Window,
    places: [Vec<usize>; 2],
    /// For each phase: its taps, by number.
    taps: Vec<Vec<usize>>,
}

impl Phases {
    fn new(g: &ConvGeometry) -> Self {
        let (window, tap_places) = Window::adjoint(g);
        let places = tap_places.clone().map(|mut places| {
            places.sort_unstable();
            places.dedup();
            places
        });
        let [rows, cols] = &tap_places;
        let of = |place: [usize; 2]| {
            (0..g.taps()).filter(|tap| [rows[tap / cols.len()], cols[tap % cols.len()]] == place).collect()
        };
        let taps = places[0].iter().flat_map(|&y| places[1].iter().map(move |&x| of([y, x]))).collect();
        Self { window, places, taps }
    }

    fn target(&self) -> usize {
        positions(self.taps.len())
    }

    /// Writes a tile's phases, each in wide form, to their places in the channel's planes.
    #[inline(always)]
    fn join(&self, g: &ConvGeometry, layout: &Patch, tile: &Tile, wides: &[f32], share: &mut Share, channel: usize) {
        let ([image, row], [height, width]) = (layout.strides(), g.input);
        let [down, right] = g.stride;
        let (first, last) = (tile.cols.start * right, (tile.cols.end * right).min(width));
        let (across, len) = (self.places[1].len(), wide_len(layout));
        for (&y, wides) in self.places[0].iter().zip(wides.chunks(across * len)) {
            let end = height.saturating_sub(y).div_ceil(down).min(tile.rows.end);
            let rows = end.saturating_sub(tile.rows.start);
            if rows == 0 {
                continue;
            }
            let start = (tile.rows.start * down + y) * width + first;
            for (i, n) in tile.images.clone().enumerate() {
                let out = &mut share.from(n, channel)[start..];
                if right == 1 {
                    copy_block(out, down * width, &wides[i * image..], row, rows, last - first);
                    continue;
                }
                for r in 0..rows {
                    let to = &mut out[r * down * width..][..last - first];
                    let wide = |phase: usize| &wides[phase * len + i * image + r * row..][..tile.cols.len()];
                    if right == 2 && across == 2 {
                        interleave(to, wide(0), wide(1));
                        continue;
                    }
                    for (phase, &x) in self.places[1].iter().enumerate() {
                        to.iter_mut().skip(x).step_by(right).zip(wide(phase)).for_each(|(to, from)| *to = *from);
                    }
                }
            }
        }
    }
}

/// The blocks of the input.
fn blocks(g: &ConvGeometry) -> [usize; 2] {
    [0, 1].map(|axis| g.input[axis].div_ceil(g.stride[axis]))
}

pub(super) fn scratch_len(g: &ConvGeometry) -> usize {
    let phases = Phases::new(g);
    let tile = Tile::largest(g.batch, blocks(g), phases.target());
    lens(&phases.window.patch(&tile), phases.taps.len()).iter().sum()
}

/// The input gradient for the input channels of `share`.
pub(crate) fn grad_input(g: &ConvGeometry, w: &[f32], gy: &[f32], mut share: Share) {
    let phases = Phases::new(g);
    if phases.taps.len() < g.stride[0].saturating_mul(g.stride[1]) {
        share.fill(0.0);
    }
    for tile in Tile::cut(share.images.clone(), blocks(g), phases.target()) {
        let layout = phases.window.patch(&tile);
        let offsets = layout.tap_offsets();
        let pairs = |taps: &Vec<usize>| taps.iter().map(|&tap| (tap, offsets[tap])).collect();
        let taps: Vec<Vec<_>> = phases.taps.iter().map(pairs).collect();
        with_scratch(lens(&layout, taps.len()), |[patch, wides]| {
            patch.fill(0.0);
            for input in share.channels.clone() {
                let channels = input * g.group_out()..(input + 1) * g.group_out();
                for channel in channels.clone() {
                    layout.fill(patch, |n| plane(gy, g.out_channels, g.output_plane(), n, channel));
                    let weights = &w[channel * g.taps()..][..g.taps()];
                    let first = (channel == channels.start).then_some(0.0);
                    for (taps, out) in taps.iter().zip(wides.chunks_mut(wide_len(&layout))) {
                        Arch::new().dispatch(Shifts { out, first, patch, taps, weights });
                    }
                }
                vectorised(
                    #[inline(always)]
                    || phases.join(g, &layout, &tile, wides, &mut share, input),
                );
            }
        });
    }
}
