//! Sums and the largest of contiguous values. Compilers do not keep several running totals in vector registers by
//! themselves, so these are written with vectors.

use pulp::{Arch, Simd, WithSimd, bytemuck};

/// The sum. Its order depends on the width of the processor's vectors.
#[inline(always)]
pub(super) fn sum(values: &[f32]) -> f32 {
    reduce(values, values, Kind::Sum)
}

/// The sum of products of as many values.
#[inline(always)]
pub(super) fn sum_of_products(a: &[f32], b: &[f32]) -> f32 {
    reduce(a, b, Kind::Products)
}

/// The largest value, or NaN if one is.
#[inline(always)]
pub(super) fn largest(values: &[f32]) -> f32 {
    reduce(values, values, Kind::Largest)
}

/// The larger, or NaN if one is.
#[inline(always)]
pub(super) fn max(x: f32, y: f32) -> f32 {
    if x > y || x.is_nan() { x } else { y }
}

/// The sums of the deviations from a shift and of their squares.
#[inline(always)]
pub(super) fn deviations(values: &[f32], shift: f32) -> (f32, f32) {
    if values.len() >= SHORT {
        return Arch::new().dispatch(Deviations { values, shift });
    }
    let (mut sum, mut squares) = (0.0, 0.0);
    for value in values {
        let off = value - shift;
        sum += off;
        squares += off * off;
    }
    (sum, squares)
}

/// The variance of values that are all this one: 0, or NaN if it is no finite number.
#[inline(always)]
pub(super) fn no_variance(value: f32) -> f32 {
    0.0 * value.abs()
}

#[derive(Clone, Copy)]
enum Kind {
    Sum,
    Products,
    Largest,
}

/// Fewer values are taken one by one.
const SHORT: usize = 32;

#[inline(always)]
fn reduce(a: &[f32], b: &[f32], kind: Kind) -> f32 {
    match kind {
        _ if a.len() >= SHORT => Arch::new().dispatch(Reduction { a, b: &b[..a.len()], kind }),
        Kind::Sum => a.iter().sum(),
        Kind::Products => a.iter().zip(b).map(|(a, b)| a * b).sum(),
        Kind::Largest => a.iter().copied().fold(f32::NEG_INFINITY, max),
    }
}

struct Reduction<'v> {
    a: &'v [f32],
    b: &'v [f32],
    kind: Kind,
}

impl WithSimd for Reduction<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let add = |x, y| simd.add_f32s(x, y);
        match self.kind {
            Kind::Sum => self.lanes(simd, 0.0, |total, a, _| add(total, a), add).iter().sum(),
            Kind::Products => self.lanes(simd, 0.0, |total, a, b| simd.mul_add_f32s(a, b, total), add).iter().sum(),
            Kind::Largest => {
                let max = |x, y| {
                    let larger = simd.select_f32s(simd.greater_than_f32s(x, y), x, y);
                    simd.select_f32s(simd.equal_f32s(x, x), larger, x)
                };
                let lanes = self.lanes(simd, f32::NEG_INFINITY, |most, a, _| max(most, a), max);
                lanes.iter().copied().fold(f32::NEG_INFINITY, self::max)
            }
        }
    }
}

/// The most values of a vector.
const WIDEST: usize = 16;

impl Reduction<'_> {
    /// What each lane of a vector has in the end; lanes that do not exist are neutral.
    #[inline(always)]
    fn lanes<S: Simd>(
        &self,
        simd: S,
        neutral: f32,
        add: impl Fn(S::f32s, S::f32s, S::f32s) -> S::f32s,
        join: impl Fn(S::f32s, S::f32s) -> S::f32s,
    ) -> [f32; WIDEST] {
        let ((a, rest_a), (b, rest_b)) = (S::as_simd_f32s(self.a), S::as_simd_f32s(self.b));
        let ((fours_a, ones_a), (fours_b, ones_b)) = (a.as_chunks::<4>(), b.as_chunks::<4>());
        let [mut p, mut q, mut r, mut s] = [simd.splat_f32s(neutral); 4];
        for (a, b) in fours_a.iter().zip(fours_b) {
            p = add(p, a[0], b[0]);
            q = add(q, a[1], b[1]);
            r = add(r, a[2], b[2]);
            s = add(s, a[3], b[3]);
        }
        for (&a, &b) in ones_a.iter().zip(ones_b) {
            p = add(p, a, b);
        }
        let total = [join(join(p, q), join(r, s))];
        let mut lanes = [neutral; WIDEST];
        let found: &[f32] = bytemuck::cast_slice(&total);
        lanes.iter_mut().zip(found).for_each(|(lane, &v)| *lane = v);
        for (i, (&a, &b)) in rest_a.iter().zip(rest_b).enumerate() {
            lanes[i] = match self.kind {
                Kind::Sum => lanes[i] + a,
                Kind::Products => lanes[i] + a * b,
                Kind::Largest => max(lanes[i], a),
            };
        }
        lanes
    }
}

struct Deviations<'v> {
    values: &'v [f32],
    shift: f32,
}

impl WithSimd for Deviations<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (f32, f32) {
        let shift = simd.splat_f32s(self.shift);
        let ([mut p, mut q, mut r, mut s], [mut pp, mut qq, mut rr, mut ss]) =
            ([simd.splat_f32s(0.0); 4], [simd.splat_f32s(0.0); 4]);
        let (values, rest) = S::as_simd_f32s(self.values);
        let (fours, ones) = values.as_chunks::<4>();
        let add = |sum: &mut S::f32s, squares: &mut S::f32s, value| {
            let off = simd.sub_f32s(value, shift);
            *sum = simd.add_f32s(*sum, off);
            *squares = simd.mul_add_f32s(off, off, *squares);
        };
        for v in fours {
            add(&mut p, &mut pp, v[0]);
            add(&mut q, &mut qq, v[1]);
            add(&mut r, &mut rr, v[2]);
            add(&mut s, &mut ss, v[3]);
        }
        for &v in ones {
            add(&mut p, &mut pp, v);
        }
        let join = |p, q, r, s| simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(p, q), simd.add_f32s(r, s)));
        let (mut sum, mut squares) = (join(p, q, r, s), join(pp, qq, rr, ss));
        for value in rest {
            let off = value - self.shift;
            sum += off;
            squares += off * off;
        }
        (sum, squares)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_counts_every_value_once() {
        for len in 0..300 {
            let a: Vec<f32> = (0..len).map(|i| ((i * 7) % 23) as f32 - 11.0).collect();
            let b: Vec<f32> = (0..len).map(|i| ((i * 5) % 13) as f32).collect();
            // Small integers, whose sums are exact in any order.
            assert_eq!(sum(&a), a.iter().sum::<f32>());
            assert_eq!(sum_of_products(&a, &b), a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>());
            assert_eq!(largest(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let off: Vec<f32> = a.iter().map(|a| a - 2.0).collect();
            assert_eq!(deviations(&a, 2.0), (off.iter().sum(), off.iter().map(|v| v * v).sum()));
            for at in 0..len {
                let mut a = a.clone();
                a[at] = 100.0;
                assert_eq!(largest(&a), 100.0);
                a[at] = f32::NAN;
                assert!(largest(&a).is_nan() && sum(&a).is_nan() && sum_of_products(&a, &b).is_nan());
            }
        }
    }
}
