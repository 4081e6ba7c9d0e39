//! The transforms of tiles. Each is a matrix that is applied to both axes; the names are those of Lavin & Gray.

use super::field::Field;
use super::{CHANNELS, POINTS, Pixel, groups, groups_mut, pixels, pixels_mut};
use crate::matmul::Mat;
use crate::transpose::transpose;
use pulp::{Arch, Simd, WithSimd};
use std::marker::PhantomData;

/// A matrix that transforms one axis.
trait Axis<const FROM: usize, const TO: usize> {
    fn apply<S: Simd>(simd: S, from: [S::f32s; FROM]) -> [S::f32s; TO];
}

/// `B'`: what a tile of outputs sees of the input.
struct Input;

impl Axis<4, 4> for Input {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 4] {
        [simd.sub_f32s(a, c), simd.add_f32s(b, c), simd.sub_f32s(c, b), simd.sub_f32s(b, d)]
    }
}

/// `A'`: points to outputs.
struct Output;

impl Axis<4, 2> for Output {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 2] {
        [simd.add_f32s(simd.add_f32s(a, b), c), simd.sub_f32s(simd.sub_f32s(b, c), d)]
    }
}

/// `A`: the adjoint of [`Output`].
struct OutputGradient;

impl Axis<2, 4> for OutputGradient {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, [a, b]: [S::f32s; 2]) -> [S::f32s; 4] {
        [a, simd.add_f32s(a, b), simd.sub_f32s(a, b), simd.neg_f32s(b)]
    }
}

/// `G`.
struct Weight;

impl Axis<3, 4> for Weight {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, [a, b, c]: [S::f32s; 3]) -> [S::f32s; 4] {
        let half = simd.splat_f32s(0.5);
        let (outer, b) = (simd.mul_f32s(half, simd.add_f32s(a, c)), simd.mul_f32s(half, b));
        [a, simd.add_f32s(outer, b), simd.sub_f32s(outer, b), c]
    }
}

/// `G'`: the adjoint of [`Weight`].
struct WeightGradient;

impl Axis<4, 3> for WeightGradient {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 3] {
        let half = simd.splat_f32s(0.5);
        let (sum, difference) = (simd.mul_f32s(half, simd.add_f32s(b, c)), simd.mul_f32s(half, simd.sub_f32s(b, c)));
        [simd.add_f32s(a, sum), difference, simd.add_f32s(sum, d)]
    }
}

/// Transforms the tile that `read` gives by row and column, one vector of channels after the other.
#[inline(always)]
fn both<'p, S: Simd, T: Axis<FROM, TO>, const FROM: usize, const TO: usize>(
    simd: S,
    _: PhantomData<T>,
    read: impl Fn(usize, usize) -> &'p Pixel,
    mut write: impl FnMut(usize, usize, usize, S::f32s),
) {
    for vector in 0..CHANNELS / S::F32_LANES {
        let zero = simd.splat_f32s(0.0);
        let mut half = [[zero; FROM]; TO];
        for i in 0..FROM {
            let row = std::array::from_fn(
                #[inline(always)]
                |j| S::as_simd_f32s(read(i, j)).0[vector],
            );
            for (half, value) in half.iter_mut().zip(&T::apply(simd, row)) {
                half[i] = *value;
            }
        }
        for (j, col) in half.iter().enumerate() {
            for (i, value) in T::apply(simd, *col).iter().enumerate() {
                write(i, j, vector, *value);
            }
        }
    }
}

/// Transforms what tiles see of the input, to `[in_channels / 16, tile, point, 16]`.
pub(super) fn inputs(field: &Field, values: &[f32], corners: &[usize], v: &mut [f32]) {
    Arch::new().dispatch(ToPoints::<Input, 4> { field, values, corners, to: v, axis: PhantomData });
}

/// Transforms tiles of the output's gradient, to `[out_channels / 16, tile, point, 16]`.
pub(super) fn output_gradients(field: &Field, values: &[f32], corners: &[usize], m: &mut [f32]) {
    Arch::new().dispatch(ToPoints::<OutputGradient, 2> { field, values, corners, to: m, axis: PhantomData });
}

struct ToPoints<'a, T, const SIDE: usize> {
    field: &'a Field,
    values: &'a [f32],
    corners: &'a [usize],
    to: &'a mut [f32],
    axis: PhantomData<T>,
}

impl<T: Axis<SIDE, 4>, const SIDE: usize> WithSimd for ToPoints<'_, T, SIDE> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (plane, width) = (self.field.plane(), self.field.width());
        for (group, to) in groups_mut(self.to).iter_mut().enumerate() {
            let from = &pixels(self.values)[group * plane..];
            for (to, corner) in to.iter_mut().zip(self.corners) {
                both(
                    simd,
                    self.axis,
                    #[inline(always)]
                    |i, j| &from[corner + i * width + j],
                    #[inline(always)]
                    |i, j, vector, value| S::as_mut_simd_f32s(&mut to[i * 4 + j]).0[vector] = value,
                );
            }
        }
    }
}

/// Transforms `m`, `[channels / 16, tile, point, 16]`, to outputs and adds `bias`, `[channels]`.
pub(super) fn outputs(field: &Field, m: &[f32], bias: Option<&[f32]>, corners: &[usize], values: &mut [f32]) {
    Arch::new().dispatch(ToOutputs { field, m, bias, corners, values });
}

struct ToOutputs<'a> {
    field: &'a Field,
    m: &'a [f32],
    bias: Option<&'a [f32]>,
    corners: &'a [usize],
    values: &'a mut [f32],
}

impl WithSimd for ToOutputs<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (plane, width) = (self.field.plane(), self.field.width());
        for (group, from) in groups(self.m).iter().enumerate() {
            let bias = self.bias.map_or([0.0; CHANNELS], |bias| pixels(bias)[group]);
            let (bias, _) = S::as_simd_f32s(&bias);
            let to = &mut pixels_mut(self.values)[group * plane..];
            for (from, corner) in from.iter().zip(self.corners) {
                both(
                    simd,
                    PhantomData::<Output>,
                    #[inline(always)]
                    |i, j| &from[i * 4 + j],
                    #[inline(always)]
                    |i, j, vector, value| {
                        let (to, _) = S::as_mut_simd_f32s(&mut to[corner + i * width + j]);
                        to[vector] = simd.add_f32s(value, bias[vector]);
                    },
                );
            }
        }
    }
}

/// Transforms the weights `[in_channels, 3, 3, 16]` of group `group` of outputs to their places in
/// `[point, groups, in_channels, 16]`.
pub(super) fn weights(w: &[f32], group: usize, groups: usize, u: &mut [f32]) {
    Arch::new().dispatch(WeightPoints { w, group, groups, u });
}

struct WeightPoints<'a> {
    w: &'a [f32],
    group: usize,
    groups: usize,
    u: &'a mut [f32],
}

impl WithSimd for WeightPoints<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (w, _) = pixels(self.w).as_chunks::<9>();
        let u = pixels_mut(self.u);
        for (input, taps) in w.iter().enumerate() {
            both(
                simd,
                PhantomData::<Weight>,
                #[inline(always)]
                |i, j| &taps[i * 3 + j],
                #[inline(always)]
                |i, j, vector, value| {
                    let at = ((i * 4 + j) * self.groups + self.group) * w.len() + input;
                    S::as_mut_simd_f32s(&mut u[at]).0[vector] = value;
                },
            );
        }
    }
}

/// Transforms `sum`, `[point, out_channels / 16, in_channels / 16, 16 (out), 16 (in)]`, to the gradient
/// `[out_channels, in_channels, 3, 3]`.
pub(super) fn weight_gradients(sum: &[f32], in_channels: usize, gw: &mut [f32]) {
    Arch::new().dispatch(WeightGradients { sum, in_channels, gw });
}

struct WeightGradients<'a> {
    sum: &'a [f32],
    in_channels: usize,
    gw: &'a mut [f32],
}

impl WithSimd for WeightGradients<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { sum, in_channels, gw } = self;
        let (sum, groups) = (pixels(sum), in_channels / CHANNELS);
        let pairs = sum.len() / POINTS;
        let mut taps = [[0.0; CHANNELS]; 9];
        for pair in 0..pairs {
            both(
                simd,
                PhantomData::<WeightGradient>,
                #[inline(always)]
                |i, j| &sum[(i * 4 + j) * pairs + pair],
                #[inline(always)]
                |i, j, vector, value| S::as_mut_simd_f32s(&mut taps[i * 3 + j]).0[vector] = value,
            );
            let (square, row) = (pair / CHANNELS, pair % CHANNELS);
            let (out, input) = (square / groups * CHANNELS + row, square % groups * CHANNELS);
            let to = &mut gw[(out * in_channels + input) * taps.len()..];
            transpose(Mat::new(taps.as_flattened(), taps.len(), CHANNELS, CHANNELS), to, taps.len());
        }
    }
}
