//! Convolutions of 3x3 taps and stride 1 with fewer multiplications (Winograd 1980; Lavin & Gray 2016, arXiv:1509.09308).
//!
//! Outputs are made in tiles of 2x2 from the 4x4 inputs that these see: `y = A' [(G w G') * (B' x B)] A`. The product `*`
//! is one by one, 16 multiplications in place of 36. Summed over channels it is 16 matrix products, one for each point of
//! the transformed tile. The weight gradient is the adjoint, `G' [(A gy A') * (B' x B)] G`, summed over tiles.
//!
//! Vectors hold channels: blocks of images are turned to `[channels / 16, position, 16]` on their way in, and back on
//! their way out, so that planes of any size fill vectors.

mod field;
mod product;
mod transform;

use crate::conv::flip;
use crate::geometry::ConvGeometry;
use crate::matmul::Mat;
use crate::parallel::{Parallelism, piece};
use crate::scratch::with_scratch;
use crate::share::Share;
use crate::tile::Tile;
use crate::transpose::transpose;
use field::Field;
use product::{Gradients, Products};
use std::ops::Range;

/// Channels that lie together: the values of the widest vector.
const CHANNELS: usize = 16;

/// Points of a transformed tile.
const POINTS: usize = 16;

/// Tiles that are transformed and multiplied at a time.
const TILES: usize = 16;

/// One value for each of 16 channels.
type Pixel = [f32; CHANNELS];

/// A transformed tile; one pixel more, so that a point of successive tiles goes to different sets of the cache.
type Points = [Pixel; POINTS + 1];

/// What is made of 16 channels at a time.
type Group = [Points; TILES];

/// Values of a [`Group`].
const GROUP_LEN: usize = size_of::<Group>() / size_of::<f32>();

/// Values of a block's outputs, or inputs if they have more channels: with those it stays in a second-level cache.
const BLOCK_VALUES: usize = 32 * 1024;

/// Largest product of channels: 4 MiB of transformed weights. With more, reading them costs what is saved.
const CHANNEL_PAIRS: usize = 256 * 256;

/// Whether transformed tiles are faster than columns, in all three passes.
///
/// Channels fill vectors, and padding lets the input gradient be a convolution. With fewer tiles than are multiplied at a
/// time, the transform of the weights costs what is saved. Planes may be tiny: of 1x1 and 3x3 positions, where half the
/// tiles' outputs and more are thrown away, batches still took two thirds of the time.
pub(crate) fn suits(g: &ConvGeometry) -> bool {
    let tiles = |plane: [usize; 2]| g.batch * plane[0].div_ceil(2) * plane[1].div_ceil(2);
    g.kernel == [3; 2]
        && g.stride == [1; 2]
        && g.dilation == [1; 2]
        && g.group == 1
        && g.in_channels.is_multiple_of(CHANNELS)
        && g.out_channels.is_multiple_of(CHANNELS)
        && g.in_channels * g.out_channels <= CHANNEL_PAIRS
        && g.pad_begin.iter().chain(&g.pad_end).all(|pad| *pad <= 2)
        && tiles(g.input).min(tiles(g.output)) >= TILES
}

/// Rows and columns of tiles in an image.
fn tile_grid(g: &ConvGeometry) -> [usize; 2] {
    g.output.map(|len| len.div_ceil(2))
}

/// Tiles of a block, whose [`Tile`] counts rows and columns of tiles.
fn block_target(g: &ConvGeometry) -> usize {
    (BLOCK_VALUES / 4 / g.in_channels.max(g.out_channels)).max(TILES)
}

/// What a block sees of the input.
fn input_field(g: &ConvGeometry, block: &Tile) -> Field {
    Field::new(block, g.input, g.pad_begin, 4, 0..g.in_channels)
}

/// The outputs of a block for some channels.
fn output_field(g: &ConvGeometry, block: &Tile, channels: Range<usize>) -> Field {
    Field::new(block, g.output, [0; 2], 2, channels)
}

/// Values of scratch one thread needs for a block.
pub(crate) fn scratch_len(g: &ConvGeometry) -> usize {
    let block = Tile::largest(g.batch, tile_grid(g), block_target(g));
    let fields = input_field(g, &block).len() + output_field(g, &block, 0..g.out_channels).len();
    fields + (g.in_channels + g.out_channels) / CHANNELS * GROUP_LEN
}

/// Values of scratch for weights, or for their gradient a thread.
pub(crate) fn weight_len(g: &ConvGeometry) -> usize {
    transformed_len(g) + g.weight_len() + CHANNELS * 9 * g.in_channels.max(g.out_channels)
}

/// `y = conv(x, w) + bias`.
pub(crate) fn forward(
    g: &ConvGeometry,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
    parallelism: Parallelism,
) {
    with_scratch([transformed_len(g), CHANNELS * g.patch_len()], |[u, turned]| {
        transform_weights(g, w, u, turned);
        convolve(g, x, u, bias, y, parallelism);
    });
}

/// `gx`, the convolution `transposed` of `gy` with flipped weights.
pub(crate) fn grad_input(
    g: &ConvGeometry,
    transposed: &ConvGeometry,
    w: &[f32],
    gy: &[f32],
    gx: &mut [f32],
    parallelism: Parallelism,
) {
    let lens = [w.len(), transformed_len(g), CHANNELS * transposed.patch_len()];
    with_scratch(lens, |[flipped, u, turned]| {
        flip(g, w, flipped);
        transform_weights(transposed, flipped, u, turned);
        convolve(transposed, gy, u, None, gx, parallelism);
    });
}

/// Values of transformed weights, or of their gradient.
fn transformed_len(g: &ConvGeometry) -> usize {
    POINTS * g.in_channels * g.out_channels
}

/// Writes `[point, out_channels / 16, in_channels, 16]` to `u`; `turned` has space for 16 outputs' weights.
fn transform_weights(g: &ConvGeometry, w: &[f32], u: &mut [f32], turned: &mut [f32]) {
    let depth = g.patch_len();
    for (group, w) in w.chunks(CHANNELS * depth).enumerate() {
        transpose(Mat::new(w, CHANNELS, depth, depth), turned, CHANNELS);
        transform::weights(turned, group, g.out_channels / CHANNELS, u);
    }
}

/// `y = conv(x, w) + bias` with transformed weights.
fn convolve(g: &ConvGeometry, x: &[f32], u: &[f32], bias: Option<&[f32]>, y: &mut [f32], parallelism: Parallelism) {
    let shares = Share::cut(y, g.batch, g.out_channels, g.output_plane(), CHANNELS, parallelism);
    parallelism.for_each(shares, |share| convolve_share(g, x, u, bias, share));
}

/// As [`convolve`], for the output channels of `share`.
fn convolve_share(g: &ConvGeometry, x: &[f32], u: &[f32], bias: Option<&[f32]>, mut share: Share) {
    let channels = share.channels.clone();
    let bias = bias.map(|bias| &bias[channels.clone()]);
    let groups = [g.in_channels / CHANNELS, channels.len() / CHANNELS];
    let (out_groups, first_group) = (g.out_channels / CHANNELS, channels.start / CHANNELS);
    for block in Tile::cut(share.images.clone(), tile_grid(g), block_target(g)) {
        let (input, output) = (input_field(g, &block), output_field(g, &block, channels.clone()));
        let (from, to) = (input.corners(), output.corners());
        let lens = [input.len(), output.len(), groups[0] * GROUP_LEN, groups[1] * GROUP_LEN];
        with_scratch(lens, |[x_field, y_field, v, m]| {
            input.gather(x, g.in_channels, x_field);
            for (from, to) in from.chunks(TILES).zip(to.chunks(TILES)) {
                transform::inputs(&input, x_field, from, v);
                Products { v, u, out_groups, first_group, m, tiles: to.len() }.run();
                transform::outputs(&output, m, bias, to, y_field);
            }
            for image in block.images.clone() {
                output.scatter(y_field, image, share.from(image, channels.start));
            }
        });
    }
}

/// The weight gradient, summed per thread over a range of blocks.
pub(crate) fn grad_weight(g: &ConvGeometry, x: &[f32], gy: &[f32], gw: &mut [f32], parallelism: Parallelism) {
    let [rows, cols] = tile_grid(g);
    let target = block_target(g).min((g.batch * rows * cols).div_ceil(parallelism.threads()));
    let blocks = Tile::cut(0..g.batch, [rows, cols], target);
    let pieces = parallelism.threads().min(blocks.len());
    let partial_len = transformed_len(g);
    with_scratch([pieces * partial_len], |[partials]| {
        let ranges = (0..pieces).map(|i| &blocks[piece(blocks.len(), pieces, i)]);
        parallelism.for_each(ranges.zip(partials.chunks_mut(partial_len)).collect(), |(blocks, partial)| {
            partial.fill(0.0);
            blocks.iter().for_each(|block| add_gradients(g, x, gy, block, partial));
        });
        let (sum, others) = partials.split_at_mut(partial_len);
        for partial in others.chunks(partial_len) {
            sum.iter_mut().zip(partial).for_each(|(sum, p)| *sum += p);
        }
        transform::weight_gradients(sum, g.in_channels, gw);
    });
}

/// Adds a block's part to the transformed weight gradient `[point, out_channels / 16, in_channels / 16, 16, 16]`.
fn add_gradients(g: &ConvGeometry, x: &[f32], gy: &[f32], block: &Tile, sum: &mut [f32]) {
    let (input, output) = (input_field(g, block), output_field(g, block, 0..g.out_channels));
    let (at_x, at_y) = (input.corners(), output.corners());
    let groups = [g.in_channels / CHANNELS, g.out_channels / CHANNELS];
    let lens = [input.len(), output.len(), groups[0] * GROUP_LEN, groups[1] * GROUP_LEN];
    with_scratch(lens, |[x_field, gy_field, v, m]| {
        input.gather(x, g.in_channels, x_field);
        output.gather(gy, g.out_channels, gy_field);
        for (at_x, at_y) in at_x.chunks(TILES).zip(at_y.chunks(TILES)) {
            transform::inputs(&input, x_field, at_x, v);
            transform::output_gradients(&output, gy_field, at_y, m);
            Gradients { v, m, tiles: at_x.len(), sum }.run();
        }
    });
}

#[inline(always)]
fn pixels(values: &[f32]) -> &[Pixel] {
    values.as_chunks().0
}

#[inline(always)]
fn pixels_mut(values: &mut [f32]) -> &mut [Pixel] {
    values.as_chunks_mut().0
}

#[inline(always)]
fn groups(values: &[f32]) -> &[Group] {
    let (points, _): (&[Points], _) = pixels(values).as_chunks();
    points.as_chunks().0
}

#[inline(always)]
fn groups_mut(values: &mut [f32]) -> &mut [Group] {
    let (points, _): (&mut [Points], _) = pixels_mut(values).as_chunks_mut();
    points.as_chunks_mut().0
}
