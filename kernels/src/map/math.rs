//! Functions of one `f32` without branches or calls, so that loops over them become vector code. Each is within a few
//! units in the last place of the exact value; the coefficients are least-maximum fits of this project.

/// `e^x`. Infinite above 88.73, 0 below -103.98, NaN for NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer that stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first with few enough digits that its multiples are exact.
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2[0]) - n * LN2[1];
    let p = polynomial(r, [0.5, 0.166_665_18, 0.041_666_206, 0.008_368_888, 0.001_395_048_6]);
    let value = p * (r * r) + r + 1.0;
    // Two factors, since 2^128 and 2^-150 are no floats.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    value * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// The natural logarithm; -inf at 0, NaN below.
#[inline(always)]
pub(super) fn log(x: f32) -> f32 {
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // Subnormal numbers are brought up first.
    let tiny = x < f32::MIN_POSITIVE;
    let scaled = if tiny { x * 8_388_608.0 } else { x };
    let down = if tiny { -23.0 } else { 0.0 };
    // The mantissa between sqrt(1/2) and sqrt(2).
    let bits = scaled.to_bits() as i32;
    let exponent = (bits.wrapping_sub(0x3f35_04f3)) >> 23;
    let mantissa = f32::from_bits(bits.wrapping_sub(exponent << 23) as u32);
    let n = exponent as f32 + down;
    let f = mantissa - 1.0;
    // log m = 2 atanh(s), s = f / (2 + f).
    let s = f / (2.0 + f);
    let z = s * s;
    let series = polynomial(z, [2.0 / 3.0, 2.0 / 5.0, 2.0 / 7.0, 2.0 / 9.0]) * z * s;
    let value = n * LN2[0] + (2.0 * s + (series + n * LN2[1]));
    let value = if x == f32::INFINITY { x } else { value };
    let value = if x == 0.0 { f32::NEG_INFINITY } else { value };
    // Also for NaN itself.
    if x >= 0.0 { value } else { f32::NAN }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let z = x * x;
    let p = polynomial(z, [-0.333_332_78, 0.133_313_29, -0.053_729_23, 0.020_601_999, -0.005_660_780_5]);
    let near = x + x * z * p;
    let far = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    if z < 0.39 { near } else { far.copysign(x) }
}

/// The error function, an odd quotient of polynomials up to 4; beyond, it is 1.
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    // All are positive: nothing cancels.
    let over =
        [std::f32::consts::FRAC_2_SQRT_PI, 0.192_535_27, 0.055_610_6, 0.004_200_044, 4.066_467_2e-4, 6.621_761_7e-6];
    let under = [1.0, 0.503_963_35, 0.117_270_81, 0.016_227_148, 0.001_409_825, 7.134_78e-5, 2.508_878e-7];
    let z = x * x;
    let near = x * polynomial(z, over) / polynomial(z, under);
    // NaN takes the second form, which keeps it.
    if z > 16.0 { 1f32.copysign(x) } else { near }
}

/// `c[0] + c[1] x + c[2] x^2 + ...`.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, c: [f32; N]) -> f32 {
    let mut sum = c[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum * x + c[i];
    }
    sum
}

/// `2^n` for n from -126 to 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error over `range` in units of the last place of the exact value.
    fn worst(range: [f64; 2], f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        let points = (0..=200_000).map(|i| (range[0] + (range[1] - range[0]) * f64::from(i) / 200_000.0) as f32);
        let error = |x: f32| {
            let want = exact(f64::from(x));
            (f64::from(f(x)) - want).abs() / f64::from(f32::EPSILON) / want.abs().max(1e-30)
        };
        points.map(error).fold(0.0, f64::max)
    }

    #[test]
    fn close_to_the_exact_values() {
        assert!(worst([-87.0, 88.0], exp, f64::exp) < 2.0);
        assert!(worst([1e-6, 1e-3], log, f64::ln) < 2.0);
        assert!(worst([1e-3, 4.0], log, f64::ln) < 2.0);
        assert!(worst([4.0, 1e30], log, f64::ln) < 2.0);
        assert!(worst([-80.0, 80.0], sigmoid, |x| 1.0 / (1.0 + (-x).exp())) < 4.0);
        assert!(worst([-10.0, 10.0], tanh, f64::tanh) < 4.0);
        assert!(worst([-5.0, 5.0], erf, libm::erf) < 4.0);
    }

    #[test]
    fn limits_and_nan() {
        assert_eq!([exp(0.0), exp(f32::NEG_INFINITY), exp(f32::INFINITY), exp(-1e9)], [1.0, 0.0, f32::INFINITY, 0.0]);
        assert_eq!([log(1.0), log(0.0), log(f32::INFINITY)], [0.0, f32::NEG_INFINITY, f32::INFINITY]);
        assert!((f64::from(log(1e-40)) - f64::from(1e-40f32).ln()).abs() < 1e-5);
        assert!((exp(-100.0) / 3.8e-44 - 1.0).abs() < 0.1, "subnormal results keep what digits they have");
        assert_eq!([tanh(30.0), tanh(-30.0), tanh(0.0)], [1.0, -1.0, 0.0]);
        assert_eq!([erf(9.0), erf(-9.0), erf(0.0)], [1.0, -1.0, 0.0]);
        assert_eq!([sigmoid(100.0), sigmoid(-200.0)], [1.0, 0.0]);
        for f in [exp, log, sigmoid, tanh, erf] {
            assert!(f(f32::NAN).is_nan());
        }
        assert!(log(-1.0).is_nan());
    }
}
