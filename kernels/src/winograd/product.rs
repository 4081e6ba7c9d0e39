//! Products of transformed tiles: for each point a matrix product, in blocks whose sums stay in registers.

use super::{CHANNELS, Group, POINTS, Pixel, groups, groups_mut, pixels, pixels_mut};
use pulp::{Arch, Simd, WithSimd};

/// `m[point] = v[point] u[point]` for each point. Tiles beyond the first `tiles` may be computed too.
pub(super) struct Products<'a> {
    /// `[in_channels / 16, tile, point, 16]`.
    pub(super) v: &'a [f32],
    /// `[point, out_channels / 16, in_channels, 16]`.
    pub(super) u: &'a [f32],
    /// Groups of outputs in `u`, and the first that `m` has.
    pub(super) out_groups: usize,
    pub(super) first_group: usize,
    /// `[groups of outputs, tile, point, 16]`.
    pub(super) m: &'a mut [f32],
    pub(super) tiles: usize,
}

impl Products<'_> {
    pub(super) fn run(self) {
        Arch::new().dispatch(self);
    }

    /// In blocks of `ROWS` tiles and 16 outputs, which are `VECTORS` vectors.
    #[inline(always)]
    fn blocks<S: Simd, const ROWS: usize, const VECTORS: usize>(self, simd: S) {
        let v = groups(self.v);
        let (u, _) = pixels(self.u).as_chunks::<CHANNELS>();
        for point in 0..POINTS {
            for (group, m) in groups_mut(self.m).iter_mut().enumerate() {
                let u = &u[(point * self.out_groups + self.first_group + group) * v.len()..][..v.len()];
                for (block, m) in m.as_chunks_mut::<ROWS>().0.iter_mut().take(self.tiles.div_ceil(ROWS)).enumerate() {
                    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
                    for (v, u) in v.iter().zip(u) {
                        let v = &v.as_chunks::<ROWS>().0[block];
                        for (input, u) in u.iter().enumerate() {
                            let (u, _) = S::as_simd_f32s(u);
                            for row in 0..ROWS {
                                let v = simd.splat_f32s(v[row][point][input]);
                                for i in 0..VECTORS {
                                    sums[row][i] = simd.mul_add_f32s(v, u[i], sums[row][i]);
                                }
                            }
                        }
                    }
                    for row in 0..ROWS {
                        S::as_mut_simd_f32s(&mut m[row][point]).0.copy_from_slice(&sums[row]);
                    }
                }
            }
        }
    }
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match CHANNELS / S::F32_LANES {
            1 if self.tiles > 12 => self.blocks::<S, 16, 1>(simd),
            1 => self.blocks::<S, 4, 1>(simd),
            2 => self.blocks::<S, 4, 2>(simd),
            4 => self.blocks::<S, 4, 4>(simd),
            _ => self.blocks::<S, 1, 16>(simd),
        }
    }
}

/// `sum[point] += m[point]' v[point]` for each point, over the first `tiles` tiles.
pub(super) struct Gradients<'a> {
    /// `[in_channels / 16, tile, point, 16]`.
    pub(super) v: &'a [f32],
    /// `[out_channels / 16, tile, point, 16]`.
    pub(super) m: &'a [f32],
    pub(super) tiles: usize,
    /// `[point, out_channels / 16, in_channels / 16, 16 (out), 16 (in)]`.
    pub(super) sum: &'a mut [f32],
}

impl Gradients<'_> {
    pub(super) fn run(self) {
        Arch::new().dispatch(self);
    }

    /// In blocks of `ROWS` outputs and 16 inputs, which are `VECTORS` vectors.
    #[inline(always)]
    fn blocks<S: Simd, const ROWS: usize, const VECTORS: usize>(self, simd: S) {
        let (v, m) = (groups(self.v), groups(self.m));
        let squares = pixels_mut(self.sum).as_chunks_mut::<CHANNELS>().0;
        for (at, square) in squares.iter_mut().enumerate() {
            let (point, pair) = (at / (m.len() * v.len()), at % (m.len() * v.len()));
            let (m, v): (&Group, &Group) = (&m[pair / v.len()], &v[pair % v.len()]);
            for (block, sum) in square.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
                let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
                for (m, v) in m.iter().zip(v).take(self.tiles) {
                    let (m, (v, _)) = (&m[point].as_chunks::<ROWS>().0[block], S::as_simd_f32s(&v[point]));
                    for row in 0..ROWS {
                        let m = simd.splat_f32s(m[row]);
                        for i in 0..VECTORS {
                            sums[row][i] = simd.mul_add_f32s(m, v[i], sums[row][i]);
                        }
                    }
                }
                for row in 0..ROWS {
                    let row_sum: &mut Pixel = &mut sum[row];
                    for (sum, more) in S::as_mut_simd_f32s(row_sum).0.iter_mut().zip(sums[row]) {
                        *sum = simd.add_f32s(*sum, more);
                    }
                }
            }
        }
    }
}

impl WithSimd for Gradients<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match CHANNELS / S::F32_LANES {
            1 => self.blocks::<S, 16, 1>(simd),
            2 => self.blocks::<S, 4, 2>(simd),
            4 => self.blocks::<S, 4, 4>(simd),
            _ => self.blocks::<S, 1, 16>(simd),
        }
    }
}
