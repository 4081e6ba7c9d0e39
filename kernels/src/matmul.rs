//! The one door to the `gemm` crates: a safe, checked, single-threaded `f32` matrix product, and a transpose.

use crate::vector::vectorised;

/// A read-only strided view of `rows x cols` values.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Rows of `row_stride` values, of which the first `cols` count.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The same values with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// `out = a b`, or `out += a b` with `accumulate`; `out` is `a.rows x b.cols` in rows of `out_stride` values.
///
/// # Panics
/// If the inner sizes differ or a view reaches beyond its slice: an error in this crate, not in its input.
#[allow(unsafe_code)]
pub(crate) fn matmul(out: &mut [f32], out_stride: usize, a: Mat, b: Mat, accumulate: bool) {
    assert_eq!(a.cols, b.rows, "inner sizes");
    let (rows, cols, depth) = (a.rows, b.cols, a.cols);
    assert!(inside(out.len(), rows, cols, out_stride, 1), "output view");
    assert!(inside(a.data.len(), rows, depth, a.row_stride, a.col_stride), "left view");
    assert!(inside(b.data.len(), depth, cols, b.row_stride, b.col_stride), "right view");
    // SAFETY: every element (r, c) of each view lies at offset r * row_stride + c * col_stride, which grows in r and c;
    // `inside` has checked that the last one is within the slice, so all reads and writes are in bounds and all offsets
    // fit an isize. `out` is borrowed exclusively and so overlaps neither operand; the call uses this thread only.
    unsafe {
        // The micro-kernel writes columns, so it is given the transposed product: out' = b' a'.
        gemm_f32::gemm::f32::get_gemm_fn()(
            cols,
            rows,
            depth,
            out.as_mut_ptr(),
            out_stride as isize,
            1,
            accumulate,
            b.data.as_ptr(),
            b.row_stride as isize,
            b.col_stride as isize,
            a.data.as_ptr(),
            a.row_stride as isize,
            a.col_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm_common::Parallelism::None,
        );
    }
}

/// Writes the transpose of `a`, whose columns are adjacent, in rows of `out_stride` values.
pub(crate) fn transpose(a: Mat, out: &mut [f32], out_stride: usize) {
    vectorised(
        #[inline(always)]
        || transpose_blocks(a, out, out_stride),
    );
}

/// Blocks of 8 x 8 keep both sides in whole vectors; what remains goes value by value.
#[inline(always)]
fn transpose_blocks(a: Mat, out: &mut [f32], out_stride: usize) {
    const SIDE: usize = 8;
    debug_assert_eq!(a.col_stride, 1);
    let (rows, cols) = (a.rows / SIDE * SIDE, a.cols / SIDE * SIDE);
    for row in (0..rows).step_by(SIDE) {
        for col in (0..cols).step_by(SIDE) {
            let mut block = [[0.0; SIDE]; SIDE];
            for (i, line) in block.iter_mut().enumerate() {
                line.copy_from_slice(&a.data[(row + i) * a.row_stride + col..][..SIDE]);
            }
            for i in 0..SIDE {
                let line: [f32; SIDE] = std::array::from_fn(|j| block[j][i]);
                out[(col + i) * out_stride + row..][..SIDE].copy_from_slice(&line);
            }
        }
    }
    for row in 0..a.rows {
        for col in if row < rows { cols } else { 0 }..a.cols {
            out[col * out_stride + row] = a.data[row * a.row_stride + col];
        }
    }
}

/// Whether all of a strided view lies within `len` values.
fn inside(len: usize, rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> bool {
    if rows == 0 || cols == 0 {
        return true;
    }
    let last = (rows - 1).checked_mul(row_stride).zip((cols - 1).checked_mul(col_stride));
    let last = last.and_then(|(row, col)| row.checked_add(col));
    last.is_some_and(|last| last < len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_transposed_and_accumulating() {
        // a = [[1, 2], [3, 4], [5, 6]] in rows of 3; b = [[1, 0, 2], [0, 1, 1]] stored transposed.
        let a = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0, 5.0, 6.0];
        let b = [1.0, 0.0, 0.0, 1.0, 2.0, 1.0];
        let mut out = vec![10.0; 12];
        let (a, b) = (Mat::new(&a, 3, 2, 3), Mat::new(&b, 3, 2, 2).transposed());
        matmul(&mut out, 4, a, b, true);
        assert_eq!(out, [11., 12., 14., 10., 13., 14., 20., 10., 15., 16., 26., 10.]);
        matmul(&mut out, 4, a, b, false);
        assert_eq!(out, [1., 2., 4., 10., 3., 4., 10., 10., 5., 6., 16., 10.]);
    }

    #[test]
    fn transpose_covers_blocks_and_remainders() {
        for (rows, cols) in [(8, 16), (9, 17), (3, 5), (16, 7)] {
            let values: Vec<f32> = (0..rows * (cols + 2)).map(|i| i as f32).collect();
            let mut out = vec![-1.0; cols * (rows + 1)];
            transpose(Mat::new(&values, rows, cols, cols + 2), &mut out, rows + 1);
            for (at, value) in out.iter().enumerate() {
                let (col, row) = (at / (rows + 1), at % (rows + 1));
                assert_eq!(*value, if row < rows { values[row * (cols + 2) + col] } else { -1.0 });
            }
        }
    }

    #[test]
    #[should_panic(expected = "left view")]
    fn a_view_beyond_its_slice_is_refused() {
        matmul(&mut [0.0; 4], 2, Mat::new(&[0.0; 3], 2, 2, 2), Mat::new(&[0.0; 4], 2, 2, 2), false);
    }
}
