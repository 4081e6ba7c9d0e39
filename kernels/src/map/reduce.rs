//! Reductions of the rows of a block. Compilers do not keep several running totals in vector registers by themselves, so
//! these are written with vectors. The order of sums depends on the width of the processor's vectors.

use pulp::{Arch, Simd, WithSimd, bytemuck};

/// The sum of each row of `cols` values.
#[inline(always)]
pub(super) fn sums(values: &[f32], cols: usize, out: &mut [f32]) {
    Arch::new().dispatch(Rows { kind: Kind::Sum, values, others: values, cols, out });
}

/// The sum of products of each row with one of as many others.
#[inline(always)]
pub(super) fn sums_of_products(values: &[f32], others: &[f32], cols: usize, out: &mut [f32]) {
    Arch::new().dispatch(Rows { kind: Kind::Products, values, others, cols, out });
}

/// The largest value of each row, or NaN if one is.
#[inline(always)]
pub(super) fn largest(values: &[f32], cols: usize, out: &mut [f32]) {
    Arch::new().dispatch(Rows { kind: Kind::Largest, values, others: values, cols, out });
}

/// The variance of each row.
#[inline(always)]
pub(super) fn variances(values: &[f32], cols: usize, out: &mut [f32]) {
    Arch::new().dispatch(Rows { kind: Kind::Variance, values, others: values, cols, out });
}

/// For each row the sums of the deviations from its shift and of their squares.
#[inline(always)]
pub(super) fn deviations(values: &[f32], cols: usize, shifts: &[f32], sums: &mut [f32], squares: &mut [f32]) {
    Arch::new().dispatch(Deviations { values, cols, shifts, sums, squares });
}

/// The variance of values that are all this one: 0, or NaN if it is no finite number.
#[inline(always)]
pub(super) fn no_variance(value: f32) -> f32 {
    0.0 * value.abs()
}

/// The larger, or NaN if one is.
#[inline(always)]
pub(super) fn max(x: f32, y: f32) -> f32 {
    or_nan(if y > x { y } else { x }, y)
}

/// The smaller, or NaN if one is.
#[inline(always)]
pub(super) fn min(x: f32, y: f32) -> f32 {
    or_nan(if y < x { y } else { x }, y)
}

/// NaN if `y` is, else `x`. As bits, since a choice would become one with the comparison before it, which is a single
/// instruction when left alone; and if `y` is the same for all, so are its bits.
#[inline(always)]
fn or_nan(x: f32, y: f32) -> f32 {
    let nan = if y.is_nan() { f32::NAN.to_bits() } else { 0 };
    f32::from_bits(x.to_bits() | nan)
}

#[derive(Clone, Copy)]
enum Kind {
    Sum,
    Products,
    Largest,
    Variance,
}

struct Rows<'v> {
    kind: Kind,
    values: &'v [f32],
    others: &'v [f32],
    cols: usize,
    out: &'v mut [f32],
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let rows = self.out.iter_mut().zip(self.values.chunks_exact(self.cols));
        match self.kind {
            Kind::Sum => {
                for (out, row) in rows {
                    *out = sum(simd, row);
                }
            }
            Kind::Products => {
                for ((out, row), others) in rows.zip(self.others.chunks_exact(self.cols)) {
                    *out = sum_of_two(simd, row, others);
                }
            }
            Kind::Largest => {
                for (out, row) in rows {
                    *out = largest_of(simd, row);
                }
            }
            Kind::Variance => {
                let factor = 1.0 / self.cols as f32;
                for (out, row) in rows {
                    let [sum, squares] = deviations_of(simd, row, sum(simd, row) * factor);
                    let variance = (squares - sum * (sum * factor)) * factor;
                    // NaN stays.
                    *out = if variance < 0.0 { 0.0 } else { variance };
                }
            }
        }
    }
}

struct Deviations<'v> {
    values: &'v [f32],
    cols: usize,
    shifts: &'v [f32],
    sums: &'v mut [f32],
    squares: &'v mut [f32],
}

impl WithSimd for Deviations<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let to = self.sums.iter_mut().zip(self.squares);
        for ((row, &shift), (sum, square)) in self.values.chunks_exact(self.cols).zip(self.shifts).zip(to) {
            [*sum, *square] = deviations_of(simd, row, shift);
        }
    }
}

#[inline(always)]
fn sum<S: Simd>(simd: S, row: &[f32]) -> f32 {
    let add = |x, y| simd.add_f32s(x, y);
    let total = lanes::<S, _>(row, row, simd.splat_f32s(0.0), |total, a, _| add(total, a), add);
    simd.reduce_sum_f32s(add(total, simd.partial_load_f32s(S::as_simd_f32s(row).1)))
}

#[inline(always)]
fn sum_of_two<S: Simd>(simd: S, row: &[f32], others: &[f32]) -> f32 {
    let add = |total, a, b| simd.mul_add_f32s(a, b, total);
    let total = lanes::<S, _>(row, others, simd.splat_f32s(0.0), add, |x, y| simd.add_f32s(x, y));
    let [a, b] = [row, others].map(|values| simd.partial_load_f32s(S::as_simd_f32s(values).1));
    simd.reduce_sum_f32s(add(total, a, b))
}

#[inline(always)]
fn largest_of<S: Simd>(simd: S, row: &[f32]) -> f32 {
    let larger = |x, y| {
        let larger = simd.select_f32s(simd.greater_than_f32s(x, y), x, y);
        simd.select_f32s(simd.equal_f32s(x, x), larger, x)
    };
    let lanes = [lanes::<S, _>(row, row, simd.splat_f32s(f32::NEG_INFINITY), |most, a, _| larger(most, a), larger)];
    let lanes: &[f32] = bytemuck::cast_slice(&lanes);
    lanes.iter().chain(S::as_simd_f32s(row).1).copied().fold(f32::NEG_INFINITY, max)
}

#[inline(always)]
fn deviations_of<S: Simd>(simd: S, row: &[f32], shift: f32) -> [f32; 2] {
    let shifts = simd.splat_f32s(shift);
    let add = |[sum, squares]: [S::f32s; 2], off| [simd.add_f32s(sum, off), simd.mul_add_f32s(off, off, squares)];
    let join = |[a, b]: [S::f32s; 2], [c, d]: [S::f32s; 2]| [simd.add_f32s(a, c), simd.add_f32s(b, d)];
    let none = [simd.splat_f32s(0.0); 2];
    let total = lanes::<S, _>(row, row, none, |total, a, _| add(total, simd.sub_f32s(a, shifts)), join);
    let rest = S::as_simd_f32s(row).1;
    // Lanes that the rest does not fill deviate by nothing.
    let shifts = simd.partial_load_f32s(&[shift; WIDEST][..rest.len()]);
    add(total, simd.sub_f32s(simd.partial_load_f32s(rest), shifts)).map(|lanes| simd.reduce_sum_f32s(lanes))
}

/// The most values of a vector.
const WIDEST: usize = 16;

/// What each lane of a vector has in the end, without the values at the end that fill no vector.
#[inline(always)]
fn lanes<S: Simd, T: Copy>(
    a: &[f32],
    b: &[f32],
    none: T,
    add: impl Fn(T, S::f32s, S::f32s) -> T,
    join: impl Fn(T, T) -> T,
) -> T {
    let (a, b) = (S::as_simd_f32s(a).0, S::as_simd_f32s(b).0);
    let ((fours_a, ones_a), (fours_b, ones_b)) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    let [mut p, mut q, mut r, mut s] = [none; 4];
    for (a, b) in fours_a.iter().zip(fours_b) {
        p = add(p, a[0], b[0]);
        q = add(q, a[1], b[1]);
        r = add(r, a[2], b[2]);
        s = add(s, a[3], b[3]);
    }
    for (&a, &b) in ones_a.iter().zip(ones_b) {
        p = add(p, a, b);
    }
    join(join(p, q), join(r, s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_counts_every_value_once() {
        let one = |f: &dyn Fn(&mut [f32])| {
            let mut made = [0.0; 2];
            f(&mut made);
            made
        };
        for len in 1..300 {
            let a: Vec<f32> = (0..2 * len).map(|i| ((i * 7) % 23) as f32 - 11.0).collect();
            let b: Vec<f32> = (0..2 * len).map(|i| ((i * 5) % 13) as f32).collect();
            // Small integers, whose sums are exact in any order.
            let by_row = |f: &dyn Fn(&[f32]) -> f32, values: &[f32]| [f(&values[..len]), f(&values[len..])];
            let sum = |v: &[f32]| v.iter().sum::<f32>();
            let products: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a * b).collect();
            let off: Vec<f32> = a.iter().map(|a| a - 2.0).collect();
            let squares: Vec<f32> = off.iter().map(|v| v * v).collect();
            assert_eq!(one(&|out| sums(&a, len, out)), by_row(&sum, &a));
            assert_eq!(one(&|out| sums_of_products(&a, &b, len, out)), by_row(&sum, &products));
            assert_eq!(one(&|out| largest(&a, len, out)), by_row(&|v| v.iter().copied().fold(-99.0, f32::max), &a));
            assert_eq!(one(&|out| deviations(&a, len, &[2.0; 2], out, &mut [0.0; 2])), by_row(&sum, &off));
            assert_eq!(one(&|out| deviations(&a, len, &[2.0; 2], &mut [0.0; 2], out)), by_row(&sum, &squares));
            assert!(one(&|out| variances(&vec![-7.0; 2 * len], len, out)).iter().all(|v| (0.0..1e-10).contains(v)));
            for at in 0..len {
                let mut a = a.clone();
                a[at] = 100.0;
                assert_eq!(one(&|out| largest(&a, len, out))[0], 100.0);
                a[at] = f32::NAN;
                assert!(one(&|out| largest(&a, len, out))[0].is_nan());
                assert!(one(&|out| sums(&a, len, out))[0].is_nan());
                assert!(one(&|out| variances(&a, len, out))[0].is_nan());
            }
        }
    }
}
