//! Batched matrix products on plain slices.

use crate::error::{KernelError, check_len};
use crate::matmul::{Mat, matmul};
use crate::parallel::{Parallelism, piece};

/// Sizes of a batched product `out[i] = op(a[i]) op(b[i])` of row-major matrices, `op` being the transpose or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// Number of products.
    pub batch: usize,
    /// Rows of the result.
    pub rows: usize,
    /// Columns of the result.
    pub cols: usize,
    /// What is summed over.
    pub depth: usize,
    /// Whether `a[i]` is stored as `[depth, rows]`.
    pub transpose_a: bool,
    /// Whether `b[i]` is stored as `[cols, depth]`.
    pub transpose_b: bool,
    /// Whether one `b` serves all products.
    pub shared_b: bool,
}

impl Product {
    /// Floating point operations, infinity if they are more than a float can count.
    pub fn flops(&self) -> f64 {
        2.0 * [self.batch, self.rows, self.cols, self.depth].iter().map(|&n| n as f64).product::<f64>()
    }

    /// Computes the products; what `out` held is overwritten. The result is the same at every run with one thread count.
    ///
    /// # Errors
    /// A slice whose length is not the product's.
    pub fn run(&self, a: &[f32], b: &[f32], out: &mut [f32], parallelism: Parallelism) -> Result<(), KernelError> {
        let len = |sizes: [usize; 3]| {
            let total = sizes.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
            total.ok_or(KernelError::Overflow { what: "a matrix product" })
        };
        check_len("a", a, len([self.batch, self.rows, self.depth])?)?;
        check_len("b", b, len([if self.shared_b { 1 } else { self.batch }, self.depth, self.cols])?)?;
        check_len("out", out, len([self.batch, self.rows, self.cols])?)?;
        if out.is_empty() {
            return Ok(());
        }
        if self.depth == 0 {
            out.fill(0.0);
            return Ok(());
        }
        // Products that share b are one with more rows.
        let whole = match self.shared_b && !self.transpose_a {
            true => Product { batch: 1, rows: self.batch * self.rows, ..*self },
            false => *self,
        };
        parallelism.for_each(whole.shares(out, parallelism.threads()), |share| whole.compute(a, b, share));
        Ok(())
    }

    /// Parts of the result for so many threads: whole products, or rows of each.
    fn shares<'o>(&self, out: &'o mut [f32], threads: usize) -> Vec<Share<'o>> {
        let cuts = threads.div_ceil(self.batch).clamp(1, self.rows);
        let mut shares = vec![];
        let mut rest = out;
        for product in 0..self.batch {
            for cut in 0..cuts {
                let rows = piece(self.rows, cuts, cut);
                let (out, later) = rest.split_at_mut(rows.len() * self.cols);
                shares.push(Share { product, first: rows.start, rows: rows.len(), out });
                rest = later;
            }
        }
        shares
    }

    fn compute(&self, a: &[f32], b: &[f32], share: Share) {
        let (size_a, size_b) = (self.rows * self.depth, self.depth * self.cols);
        let a = &a[share.product * size_a..][..size_a];
        let b = if self.shared_b { b } else { &b[share.product * size_b..][..size_b] };
        let a = match self.transpose_a {
            true => Mat::new(&a[share.first..], self.depth, share.rows, self.rows).transposed(),
            false => Mat::new(&a[share.first * self.depth..], share.rows, self.depth, self.depth),
        };
        let b = match self.transpose_b {
            true => Mat::new(b, self.cols, self.depth, self.depth).transposed(),
            false => Mat::new(b, self.depth, self.cols, self.cols),
        };
        matmul(share.out, self.cols, a, b, false);
    }
}

/// Rows of one product.
struct Share<'o> {
    product: usize,
    first: usize,
    rows: usize,
    out: &'o mut [f32],
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 + seed * 11) % 19) as f32 - 9.0).collect()
    }

    /// Small integers, whose sums are exact in any order.
    #[test]
    fn agrees_with_the_definition() {
        for (batch, rows, cols, depth) in [(1, 1, 1, 1), (3, 5, 7, 4), (2, 33, 17, 40), (1, 70, 3, 129), (4, 2, 9, 0)] {
            for flags in 0..8 {
                let [transpose_a, transpose_b, shared_b] = [1, 2, 4].map(|bit| flags & bit != 0);
                let product = Product { batch, rows, cols, depth, transpose_a, transpose_b, shared_b };
                let a = numbers(batch * rows * depth, 1);
                let b = numbers(if shared_b { 1 } else { batch } * depth * cols, 2);
                let at = |i: usize, r: usize, c: usize| {
                    let own = if shared_b { 0 } else { i };
                    let left =
                        |d| if transpose_a { a[(i * depth + d) * rows + r] } else { a[(i * rows + r) * depth + d] };
                    let right =
                        |d| if transpose_b { b[(own * cols + c) * depth + d] } else { b[(own * depth + d) * cols + c] };
                    (0..depth).map(|d| left(d) * right(d)).sum::<f32>()
                };
                for threads in [1, 2, 5] {
                    let mut out = vec![f32::NAN; batch * rows * cols];
                    product.run(&a, &b, &mut out, Parallelism::new(threads)).unwrap();
                    for (at_out, got) in out.iter().enumerate() {
                        let (i, r, c) = (at_out / (rows * cols), at_out / cols % rows, at_out % cols);
                        assert_eq!(*got, at(i, r, c), "{product:?} {threads}");
                    }
                }
            }
        }
    }

    #[test]
    fn lengths_are_checked() {
        let product =
            Product { batch: 2, rows: 2, cols: 2, depth: 2, transpose_a: false, transpose_b: false, shared_b: false };
        let (a, mut out) = ([0.0; 8], [0.0; 8]);
        assert!(product.run(&a[..7], &a, &mut out, Parallelism::Serial).is_err());
        assert!(product.run(&a, &a[..4], &mut out, Parallelism::Serial).is_err());
        assert!(product.run(&a, &a, &mut out[..4], Parallelism::Serial).is_err());
        let huge = Product { batch: usize::MAX, ..product };
        assert!(huge.run(&a, &a, &mut out, Parallelism::Serial).is_err());
    }
}
