//! The transpose of a matrix, in squares of whole vectors.

use crate::matmul::Mat;
use pulp::{Arch, Simd, WithSimd};

/// The most values of a vector.
const WIDEST: usize = 16;

/// The numbers of a vector's lanes.
const LANE: [u32; WIDEST] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Writes the transpose of `a`, whose columns are adjacent, in rows of `out_stride` values.
pub(crate) fn transpose(a: Mat, out: &mut [f32], out_stride: usize) {
    Arch::new().dispatch(Transpose { a, out, out_stride });
}

struct Transpose<'a> {
    a: Mat<'a>,
    out: &'a mut [f32],
    out_stride: usize,
}

impl WithSimd for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.squares::<S, 16>(simd),
            8 => self.squares::<S, 8>(simd),
            4 => self.squares::<S, 4>(simd),
            _ => self.squares::<S, 1>(simd),
        }
    }
}

impl Transpose<'_> {
    #[inline(always)]
    fn squares<S: Simd, const LANES: usize>(self, simd: S) {
        let Self { a: Mat { data, rows, cols, row_stride, .. }, out, out_stride } = self;
        for col in (0..cols).step_by(LANES) {
            let width = LANES.min(cols - col);
            for row in (0..rows).step_by(LANES) {
                let height = LANES.min(rows - row);
                let (from, to) = (&data[row * row_stride + col..], &mut out[col * out_stride + row..]);
                if width == LANES && height == LANES {
                    let mut square: [S::f32s; LANES] = std::array::from_fn(
                        #[inline(always)]
                        |i| S::as_simd_f32s(&from[i * row_stride..][..LANES]).0[0],
                    );
                    turn(simd, &mut square);
                    for i in 0..LANES {
                        S::as_mut_simd_f32s(&mut to[i * out_stride..][..LANES]).0[0] = square[i];
                    }
                } else {
                    let mut square = [simd.splat_f32s(0.0); LANES];
                    for (line, from) in square.iter_mut().zip(from.chunks(row_stride)).take(height) {
                        *line = simd.partial_load_f32s(&from[..width]);
                    }
                    turn(simd, &mut square);
                    for (line, to) in square.iter().zip(to.chunks_mut(out_stride)).take(width) {
                        simd.partial_store_f32s(&mut to[..height], *line);
                    }
                }
            }
        }
    }
}

/// Transposes a square of as many vectors as a vector has values: the off-diagonal quarters change places, then those
/// of each quarter, and so on.
#[inline(always)]
fn turn<S: Simd, const LANES: usize>(simd: S, square: &mut [S::f32s; LANES]) {
    let (lane, _) = S::as_simd_u32s(&LANE);
    // A number of steps known to the compiler keeps the square in registers.
    for step in 1..5 {
        let half = LANES >> step;
        if half > 0 {
            let bit = simd.and_u32s(lane[0], simd.splat_u32s(half as u32));
            let first = simd.equal_u32s(bit, simd.splat_u32s(0));
            for pair in 0..LANES / 2 {
                let i = pair / half * 2 * half + pair % half;
                let (a, b) = (square[i], square[i + half]);
                square[i] = simd.select_f32s(first, a, simd.rotate_right_f32s(b, half));
                square[i + half] = simd.select_f32s(first, simd.rotate_left_f32s(a, half), b);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_and_remainders_are_covered() {
        for (rows, cols) in [(8, 16), (9, 17), (3, 5), (16, 7), (1, 20), (35, 33)] {
            let values: Vec<f32> = (0..rows * (cols + 2)).map(|i| i as f32).collect();
            let mut out = vec![-1.0; cols * (rows + 1)];
            transpose(Mat::new(&values, rows, cols, cols + 2), &mut out, rows + 1);
            for (at, value) in out.iter().enumerate() {
                let (col, row) = (at / (rows + 1), at % (rows + 1));
                assert_eq!(*value, if row < rows { values[row * (cols + 2) + col] } else { -1.0 });
            }
        }
    }
}
