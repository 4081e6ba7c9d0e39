//! Batched matrix products of dense tensors, whose axes may lie in another order than the product's.

use crate::error::{KernelError, check_len};
use crate::matmul::{Mat, matmul};
use crate::parallel::{Parallelism, piece};

/// A product `out[i] = a[i] b[i]` of matrices that lie in dense tensors. The axes of each may be in any order in memory as
/// long as the innermost belongs to the matrices of the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    /// Extents of the axes over which products repeat.
    batch: Vec<usize>,
    rows: usize,
    cols: usize,
    /// What is summed over.
    depth: usize,
    a: Strides,
    b: Strides,
    out: Strides,
    /// Values of `a`, `b` and `out`.
    lens: [usize; 3],
}

/// Distances in memory along the axes of a product.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Strides {
    batch: Vec<usize>,
    row: usize,
    col: usize,
}

impl Strides {
    /// The matrix of this size that begins where the data does.
    fn view<'a>(&self, data: &'a [f32], rows: usize, cols: usize) -> Mat<'a> {
        Mat { data, rows, cols, row_stride: self.row, col_stride: self.col }
    }
}

impl Product {
    /// The product of a tensor of shape `a` and one of shape `b`, whose axes are first put in order: axis `i` of the factor
    /// `[batch.., rows, depth]` is axis `order_a[i]` of `a`, and so for `[batch.., depth, cols]` or, for one that serves all
    /// products, `[depth, cols]` and `b`. Axis `i` of the result is axis `order_out[i]` of `[batch.., rows, cols]`.
    ///
    /// # Errors
    /// Fewer than two axes, orders that are none of the axes, extents that do not multiply, sizes that overflow, a result
    /// whose innermost axis is one of the batch.
    pub fn new(
        (a, order_a): (&[usize], &[usize]),
        (b, order_b): (&[usize], &[usize]),
        order_out: &[usize],
    ) -> Result<Product, KernelError> {
        let fail = |reason: String| Err(KernelError::Product { reason });
        let (left, a_strides, a_len) = ordered(a, order_a)?;
        let (right, mut b_strides, b_len) = ordered(b, order_b)?;
        let ([batch @ .., rows, depth], [own @ .., inner, cols]) = (&left[..], &right[..]) else {
            return fail(format!("{a:?} and {b:?} are no matrices"));
        };
        if depth != inner || !own.is_empty() && own != batch {
            return fail(format!("matrices {left:?} and {right:?} do not multiply"));
        }
        let result = [batch, &[*rows, *cols]].concat();
        if !is_order(order_out, result.len()) {
            return fail(format!("{order_out:?} is no order of the result's {} axes", result.len()));
        }
        if order_out.last().is_none_or(|&axis| axis < batch.len()) {
            return fail(format!("with {order_out:?} the innermost axis of the result is one of the batch"));
        }
        let shape: Vec<usize> = order_out.iter().map(|&axis| result[axis]).collect();
        let (strides, out_len) = dense(&shape)?;
        let mut out_strides = vec![0; result.len()];
        order_out.iter().zip(strides).for_each(|(&axis, stride)| out_strides[axis] = stride);
        b_strides.batch.resize(batch.len(), 0);
        let [out_batch @ .., row, col] = &out_strides[..] else { return fail("a result is a matrix".into()) };
        let out = Strides { batch: out_batch.to_vec(), row: *row, col: *col };
        let mut product = Product {
            batch: batch.to_vec(),
            rows: *rows,
            cols: *cols,
            depth: *depth,
            a: a_strides,
            b: b_strides,
            out,
            lens: [a_len, b_len, out_len],
        };
        product.merge();
        Ok(product)
    }

    /// Products that share `b` and follow each other in memory become one with more rows.
    fn merge(&mut self) {
        while let (Some(&n), Some(&a), Some(0), Some(&out)) =
            (self.batch.last(), self.a.batch.last(), self.b.batch.last(), self.out.batch.last())
        {
            if a != self.rows * self.a.row || out != self.rows * self.out.row {
                return;
            }
            self.rows *= n;
            self.batch.pop();
            for strides in [&mut self.a, &mut self.b, &mut self.out] {
                strides.batch.pop();
            }
        }
    }

    /// Floating point operations, infinity if they are more than a float can count.
    pub fn flops(&self) -> f64 {
        let sizes = self.batch.iter().chain([&self.rows, &self.cols, &self.depth]);
        2.0 * sizes.map(|&n| n as f64).product::<f64>()
    }

    /// Computes the products; what `out` held is overwritten. The result is the same at every run with one thread count.
    ///
    /// # Errors
    /// A slice whose length is not the product's.
    pub fn run(&self, a: &[f32], b: &[f32], out: &mut [f32], parallelism: Parallelism) -> Result<(), KernelError> {
        check_len("a", a, self.lens[0])?;
        check_len("b", b, self.lens[1])?;
        check_len("out", out, self.lens[2])?;
        if out.is_empty() {
            return Ok(());
        }
        if self.depth == 0 {
            out.fill(0.0);
            return Ok(());
        }
        parallelism.for_each(self.shares(out, parallelism.threads()), |share| self.compute(a, b, share));
        Ok(())
    }

    /// Parts of the result for so many threads: one for each of the first axis of the batch, if it comes first in memory,
    /// and rows of products that there are no more of. What lies in pieces between each other stays together.
    fn shares<'o>(&self, out: &'o mut [f32], threads: usize) -> Vec<Share<'o>> {
        let outer = match (self.batch.first(), self.out.batch.first()) {
            (Some(&n), Some(&stride)) if n * stride == out.len() => Some(n),
            _ => None,
        };
        let inner = &self.batch[usize::from(outer.is_some())..];
        let blocks = outer.unwrap_or(1);
        let cuts = match inner.is_empty() && self.out.col == 1 {
            true => threads.div_ceil(blocks).clamp(1, self.rows),
            false => 1,
        };
        let block = out.len() / blocks;
        let mut shares = vec![];
        for (at, mut rest) in out.chunks_mut(block).enumerate() {
            for cut in 0..cuts {
                let rows = piece(self.rows, cuts, cut);
                let len = if cuts == 1 { rest.len() } else { rows.len() * self.out.row };
                let (out, later) = rest.split_at_mut(len);
                shares.push(Share { outer: outer.map(|_| at), first: rows.start, rows: rows.len(), out });
                rest = later;
            }
        }
        shares
    }

    fn compute(&self, a: &[f32], b: &[f32], share: Share) {
        let skipped = usize::from(share.outer.is_some());
        let inner = &self.batch[skipped..];
        let start = |strides: &Strides| share.outer.map_or(0, |at| at * strides.batch[0]);
        let (a_start, b_start) = (start(&self.a) + share.first * self.a.row, start(&self.b));
        for number in 0..inner.iter().product() {
            let at = |strides: &Strides| {
                let axes = inner.iter().zip(&strides.batch[skipped..]).rev();
                axes.fold((0, number), |(sum, rest), (&n, &stride)| (sum + rest % n * stride, rest / n)).0
            };
            let a = self.a.view(&a[a_start + at(&self.a)..], share.rows, self.depth);
            let b = self.b.view(&b[b_start + at(&self.b)..], self.depth, self.cols);
            let out = &mut share.out[at(&self.out)..];
            match self.out.col {
                1 => matmul(out, self.out.row, a, b, false),
                col => matmul(out, col, b.transposed(), a.transposed(), false),
            }
        }
    }
}

/// What one thread computes in one go.
struct Share<'o> {
    /// Place on the first axis of the batch, `None` for all that there are.
    outer: Option<usize>,
    /// Rows of each product.
    first: usize,
    rows: usize,
    out: &'o mut [f32],
}

/// Whether these are the axes of so many, each once.
fn is_order(order: &[usize], rank: usize) -> bool {
    order.len() == rank && (0..rank).all(|axis| order.contains(&axis))
}

/// Distances along the axes of a dense tensor, and its length.
fn dense(shape: &[usize]) -> Result<(Vec<usize>, usize), KernelError> {
    let mut strides = vec![0; shape.len()];
    let mut len = 1usize;
    for (stride, &n) in strides.iter_mut().zip(shape).rev() {
        *stride = len;
        len = len.checked_mul(n).ok_or(KernelError::Overflow { what: "a matrix product" })?;
    }
    Ok((strides, len))
}

/// A factor with its axes in order: shape, distances, and the tensor's length.
fn ordered(shape: &[usize], order: &[usize]) -> Result<(Vec<usize>, Strides, usize), KernelError> {
    if shape.len() < 2 || !is_order(order, shape.len()) {
        let reason = format!("{order:?} is no order of the axes of a matrix or more of shape {shape:?}");
        return Err(KernelError::Product { reason });
    }
    let (strides, len) = dense(shape)?;
    let mut batch: Vec<usize> = order.iter().map(|&axis| strides[axis]).collect();
    let matrix = batch.split_off(order.len() - 2);
    let strides = Strides { batch, row: matrix[0], col: matrix[1] };
    Ok((order.iter().map(|&axis| shape[axis]).collect(), strides, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 + seed * 11) % 19) as f32 - 9.0).collect()
    }

    /// All orders of the axes of so many.
    fn orders(rank: usize) -> Vec<Vec<usize>> {
        if rank == 0 {
            return vec![vec![]];
        }
        let longer = |order: Vec<usize>| (0..rank).map(move |at| [&order[..at], &[rank - 1], &order[at..]].concat());
        orders(rank - 1).into_iter().flat_map(longer).collect()
    }

    /// The shape that has these extents once its axes are in order, and the place of each of its values then.
    fn stored(extents: &[usize], order: &[usize]) -> (Vec<usize>, Vec<usize>) {
        let mut shape = vec![0; extents.len()];
        order.iter().zip(extents).for_each(|(&axis, &n)| shape[axis] = n);
        let places = (0..extents.iter().product()).map(|at: usize| {
            let mut index = vec![0; shape.len()];
            let mut rest = at;
            for axis in (0..shape.len()).rev() {
                index[axis] = rest % shape[axis];
                rest /= shape[axis];
            }
            order.iter().zip(extents).fold(0, |place, (&axis, &n)| place * n + index[axis])
        });
        let places = places.collect();
        (shape, places)
    }

    /// Compares with the definition: small integers, whose sums are exact in any order.
    fn check(batch: &[usize], [rows, cols, depth]: [usize; 3], orders: [&[usize]; 3], shared: bool) {
        let count: usize = batch.iter().product();
        let left = [batch, &[rows, depth]].concat();
        let right = if shared { vec![depth, cols] } else { [batch, &[depth, cols]].concat() };
        let [(a_shape, a_places), (b_shape, b_places)] = [stored(&left, orders[0]), stored(&right, orders[1])];
        let product = Product::new((&a_shape, orders[0]), (&b_shape, orders[1]), orders[2]).unwrap();
        let (a, b) = (numbers(a_places.len(), 1), numbers(b_places.len(), 2));
        let sorted = |values: &[f32], places: &[usize]| {
            let mut sorted = vec![0.0; values.len()];
            places.iter().zip(values).for_each(|(&place, &value)| sorted[place] = value);
            sorted
        };
        let (left, right) = (sorted(&a, &a_places), sorted(&b, &b_places));
        let entry = |i: usize, r: usize, c: usize| {
            let own = if shared { 0 } else { i };
            (0..depth).map(|d| left[(i * rows + r) * depth + d] * right[(own * depth + d) * cols + c]).sum::<f32>()
        };
        // Axis i of the result is axis order[i] of the product, so the places are those of the inverse order.
        let mut inverse = vec![0; orders[2].len()];
        orders[2].iter().enumerate().for_each(|(i, &axis)| inverse[axis] = i);
        let (_, places) = stored(&[batch, &[rows, cols]].concat(), &inverse);
        for threads in [1, 2, 5] {
            let mut out = vec![f32::NAN; count * rows * cols];
            product.run(&a, &b, &mut out, Parallelism::new(threads)).unwrap();
            for (got, place) in out.iter().zip(&places) {
                let (i, r, c) = (place / (rows * cols), place / cols % rows, place % cols);
                assert_eq!(*got, entry(i, r, c), "{batch:?} {rows} {cols} {depth} {orders:?} {shared} {threads}");
            }
        }
    }

    #[test]
    fn agrees_with_the_definition() {
        for (batch, rows, cols, depth) in [(1, 1, 1, 1), (3, 5, 7, 4), (2, 33, 17, 40), (1, 70, 3, 129), (4, 2, 9, 0)] {
            for a in [[0, 1, 2], [0, 2, 1]] {
                for b in [[0, 1, 2], [0, 2, 1]] {
                    check(&[batch], [rows, cols, depth], [&a, &b, &[0, 1, 2]], false);
                    check(&[batch], [rows, cols, depth], [&a, &b.map(|x| x.saturating_sub(1))[1..], &[0, 1, 2]], true);
                }
            }
        }
    }

    #[test]
    fn axes_lie_in_any_order() {
        let all = orders(4);
        for (i, a) in all.iter().enumerate() {
            for out in all.iter().filter(|out| out[3] > 1) {
                check(&[3, 2], [5, 4, 6], [a, &all[(i * 7 + 3) % all.len()], out], false);
            }
        }
        for out in orders(3).iter().filter(|out| out[2] > 0) {
            check(&[9], [8, 12, 5], [&[1, 0, 2], &[1, 0], out], true);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let plain: &[usize] = &[0, 1, 2];
        let new =
            |a: &[usize], b: &[usize], out: &[usize]| Product::new((a, &plain[..a.len()]), (b, &plain[..b.len()]), out);
        let product = new(&[2, 2, 2], &[2, 2, 2], plain).unwrap();
        let (a, mut out) = ([0.0; 8], [0.0; 8]);
        assert!(product.run(&a[..7], &a, &mut out, Parallelism::Serial).is_err());
        assert!(product.run(&a, &a[..4], &mut out, Parallelism::Serial).is_err());
        assert!(product.run(&a, &a, &mut out[..4], Parallelism::Serial).is_err());
        for (a, b, out) in [
            (&[2, 3][..], &[4, 3][..], &[0, 1][..]),
            (&[2, 3, 4], &[3, 4, 3], plain),
            (&[2], &[2, 2], &[0]),
            (&[2, 2], &[2, 2], &[0, 0]),
            (&[2, 2], &[2, 2], plain),
            (&[2, 2, 2], &[2, 2, 2], &[1, 2, 0]),
            (&[usize::MAX, 2, 2], &[2, 2], plain),
        ] {
            assert!(new(a, b, out).is_err(), "{a:?} {b:?} {out:?}");
        }
        assert!(Product::new((&[2, 2], &[0, 2]), (&[2, 2], &[0, 1]), &[0, 1]).is_err());
    }
}
