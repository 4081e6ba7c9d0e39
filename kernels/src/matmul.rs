//! The one door to the `gemm` crates: a safe, checked, single-threaded `f32` matrix product.

/// A read-only strided view of `rows x cols` values.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
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
    #[should_panic(expected = "left view")]
    fn a_view_beyond_its_slice_is_refused() {
        matmul(&mut [0.0; 4], 2, Mat::new(&[0.0; 3], 2, 2, 2), Mat::new(&[0.0; 4], 2, 2, 2), false);
    }
}
