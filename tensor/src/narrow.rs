//! Numbers that the machine has no types for: floats of 4 and 8 bits, integers of 4 bits. What each code stands for, the
//! code of a number, and how codes lie in bytes.

use crate::DType;

/// How a float of at most 8 bits is laid out: a sign (where there is one), exponent, mantissa.
#[derive(Clone, Copy)]
struct Layout {
    signed: bool,
    mantissa: u32,
    bias: i32,
    /// Code of the largest finite magnitude; magnitudes ascend with their codes.
    largest: u8,
    beyond: Beyond,
}

/// What a magnitude becomes that rounds to more than the largest.
#[derive(Clone, Copy, PartialEq)]
enum Beyond {
    /// Infinity, whose code is the next; NaNs follow.
    Infinity,
    /// NaN, whose code is the next.
    Nan,
    /// NaN, which has the code of -0.
    NegativeZero,
    /// The largest; there is no NaN, which becomes -0.
    Largest,
}

impl Layout {
    fn of(dtype: DType) -> Option<Layout> {
        let (signed, mantissa, bias, largest, beyond) = match dtype {
            DType::F8E4M3FN => (true, 3, 7, 0x7e, Beyond::Nan),
            DType::F8E4M3FNUZ => (true, 3, 8, 0x7f, Beyond::NegativeZero),
            DType::F8E5M2 => (true, 2, 15, 0x7b, Beyond::Infinity),
            DType::F8E5M2FNUZ => (true, 2, 16, 0x7f, Beyond::NegativeZero),
            DType::F8E8M0 => (false, 0, 127, 0xfe, Beyond::Nan),
            DType::F4E2M1 => (true, 1, 1, 0x7, Beyond::Largest),
            _ => return None,
        };
        Some(Layout { signed, mantissa, bias, largest, beyond })
    }

    /// The bit of the sign; 0 without one.
    fn sign(self) -> u8 {
        match (self.signed, self.beyond) {
            (false, _) => 0,
            (true, Beyond::Largest) => 0x8,
            (true, _) => 0x80,
        }
    }

    fn nan(self) -> u8 {
        match self.beyond {
            // The quiet one.
            Beyond::Infinity => self.largest + 3,
            Beyond::Nan => self.largest + 1,
            Beyond::NegativeZero | Beyond::Largest => self.sign(),
        }
    }

    /// The finite number of a code without sign.
    fn magnitude(self, code: u8) -> f64 {
        let (exponent, fraction) = (i32::from(code >> self.mantissa), f64::from(code & ((1 << self.mantissa) - 1)));
        let one = f64::from(1u8 << self.mantissa);
        // Without a mantissa and a sign there are no numbers below the first power.
        let (power, steps) = if exponent == 0 && self.signed { (1, fraction) } else { (exponent, one + fraction) };
        steps / one * 2f64.powi(power - self.bias)
    }

    fn decode(self, code: u8) -> f64 {
        let magnitude = code & !self.sign();
        let value = match self.beyond {
            Beyond::NegativeZero if code == self.sign() => return f64::NAN,
            Beyond::Infinity if magnitude == self.largest + 1 => f64::INFINITY,
            _ if magnitude > self.largest => f64::NAN,
            _ => self.magnitude(magnitude),
        };
        if code == magnitude { value } else { -value }
    }

    /// The code of each number: of the nearest, the even one of two.
    fn encoder(self) -> impl Fn(f64) -> u8 {
        let grid: Vec<f64> = (0..=self.largest).map(|code| self.magnitude(code)).collect();
        move |x| {
            let sign = if x.is_sign_negative() { self.sign() } else { 0 };
            if x.is_nan() || (x < 0.0 && !self.signed) {
                return self.nan() | if matches!(self.beyond, Beyond::Infinity | Beyond::Nan) { sign } else { 0 };
            }
            let x = x.abs();
            let below = grid.partition_point(|v| *v <= x).saturating_sub(1);
            // Beyond the largest the grid goes on as ahead of it.
            let last = below == grid.len() - 1;
            let above = if last { 2.0 * grid[below] - grid[below - 1] } else { grid[below + 1] };
            let (down, up) = (x - grid[below], above - x);
            let code = below as u8 + u8::from(down > up || (down == up && below % 2 == 1));
            match self.beyond {
                Beyond::Largest => code.min(self.largest) | sign,
                Beyond::NegativeZero if code > self.largest => self.nan(),
                Beyond::NegativeZero if code == 0 => 0,
                _ => code | sign,
            }
        }
    }
}

impl DType {
    /// True for floats of 8 bits and fewer, which are stored and converted and not computed with.
    pub fn is_narrow_float(self) -> bool {
        Layout::of(self).is_some()
    }

    /// The largest number of a float type of 8 bits or fewer.
    pub fn largest_narrow(self) -> Option<f64> {
        Layout::of(self).map(|layout| layout.magnitude(layout.largest))
    }
}

/// The codes of packed elements, the first in the lowest bits.
fn unpacked(dtype: DType, bytes: &[u8], count: usize) -> impl Iterator<Item = u8> {
    let halves = |b: &u8| [b & 0xf, b >> 4];
    let (one, two) = if dtype.bits() == 4 { (&bytes[..0], bytes) } else { (bytes, &bytes[..0]) };
    one.iter().copied().chain(two.iter().flat_map(halves)).take(count)
}

fn packed(dtype: DType, codes: Vec<u8>) -> Vec<u8> {
    if dtype.bits() == 8 {
        return codes;
    }
    codes.chunks(2).map(|pair| (pair[0] & 0xf) | (pair.get(1).unwrap_or(&0) << 4)).collect()
}

/// The numbers of the elements in these bytes; `None` for a type of another width.
pub(crate) fn decode(dtype: DType, bytes: &[u8], count: usize) -> Option<Vec<f64>> {
    if let Some(layout) = Layout::of(dtype) {
        return Some(unpacked(dtype, bytes, count).map(|code| layout.decode(code)).collect());
    }
    Some(decode_ints(dtype, bytes, count)?.into_iter().map(|v| v as f64).collect())
}

/// The integers of the elements in these bytes; `None` for other types than those of 4 bits.
pub(crate) fn decode_ints(dtype: DType, bytes: &[u8], count: usize) -> Option<Vec<i64>> {
    let value: fn(u8) -> i64 = match dtype {
        DType::U4 => |code| code.into(),
        DType::I4 => |code| (((code << 4) as i8) >> 4).into(),
        _ => return None,
    };
    Some(unpacked(dtype, bytes, count).map(value).collect())
}

/// The bytes of the elements nearest to these numbers; `None` for a type of another width.
pub(crate) fn encode(dtype: DType, values: &[f64]) -> Option<Vec<u8>> {
    let codes = match Layout::of(dtype) {
        Some(layout) => {
            let code = layout.encoder();
            values.iter().map(|&x| code(x)).collect()
        }
        None if matches!(dtype, DType::I4 | DType::U4) => {
            let (low, high) = dtype.int_range()?;
            values.iter().map(|x| x.round_ties_even().clamp(low as f64, high as f64) as i8 as u8).collect()
        }
        None => return None,
    };
    Some(packed(dtype, codes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOATS: [DType; 6] =
        [DType::F8E4M3FN, DType::F8E4M3FNUZ, DType::F8E5M2, DType::F8E5M2FNUZ, DType::F8E8M0, DType::F4E2M1];

    #[test]
    fn every_number_has_its_code() {
        for dtype in FLOATS {
            let layout = Layout::of(dtype).unwrap();
            let code = layout.encoder();
            let last = if dtype.bits() == 4 { 0xf } else { 0xff };
            for c in (0..=last).filter(|&c| !layout.decode(c).is_nan()) {
                assert_eq!(code(layout.decode(c)), c, "{dtype}");
            }
        }
    }

    /// Limits from the papers that the ONNX specification names (OCP MX, FP8 formats for deep learning).
    #[test]
    fn limits_are_those_of_the_formats() {
        let largest = FLOATS.map(|d| d.largest_narrow().unwrap());
        assert_eq!(largest, [448.0, 240.0, 57344.0, 57344.0, 2f64.powi(127), 6.0]);
        let smallest = FLOATS.map(|d| Layout::of(d).unwrap().magnitude(u8::from(d != DType::F8E8M0)));
        assert_eq!(smallest, [-9, -10, -16, -17, -127, -1].map(|p| 2f64.powi(p)));
    }

    #[test]
    fn ties_go_to_the_even_code_and_what_is_beyond_overflows() {
        let values = |dtype, values: &[f64]| decode(dtype, &encode(dtype, values).unwrap(), values.len()).unwrap();
        assert_eq!(values(DType::F4E2M1, &[0.25, 0.75, 2.5, 5.0, 9.0, -0.1]), [0.0, 1.0, 2.0, 4.0, 6.0, 0.0]);
        assert_eq!(values(DType::F8E4M3FN, &[464.0]), [448.0]);
        assert!(values(DType::F8E4M3FN, &[464.1])[0].is_nan());
        assert_eq!(
            values(DType::F8E5M2, &[61439.0, 61440.0, f64::NEG_INFINITY]),
            [57344.0, f64::INFINITY, -f64::INFINITY]
        );
        assert!(
            values(DType::F8E5M2FNUZ, &[61440.0, -0.0]).iter().zip([true, false]).all(|(v, nan)| v.is_nan() == nan)
        );
        assert_eq!(values(DType::I4, &[-9.0, -1.0, 7.5]), [-8.0, -1.0, 7.0]);
        assert_eq!(values(DType::U4, &[-1.0, 15.0, 99.0]), [0.0, 15.0, 15.0]);
    }
}
