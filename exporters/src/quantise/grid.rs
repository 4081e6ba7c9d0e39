//! Scales and zero points. Formulas: ONNX Runtime's quantizer (`quant_utils.compute_scale_zp`), recomputed in f64.

use limbeck_tensor::DType;

/// An affine 8-bit grid: `real = scale * (q - zero)`.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Grid {
    /// Step, as f32 stores it.
    pub scale: f32,
    /// The integer that stands for 0.
    pub zero: i32,
}

/// Smallest and largest integer in use: all of u8, all of s8, or `[-127, 127]` for symmetric s8.
pub(crate) fn limits(dtype: DType, symmetric: bool) -> (f64, f64) {
    match (dtype, symmetric) {
        (DType::U8, _) => (0.0, 255.0),
        (_, true) => (-127.0, 127.0),
        (_, false) => (-128.0, 127.0),
    }
}

/// The grid of a range, widened to hold 0: `s = (max - min) / (qmax - qmin)`, `z = round(qmin - min / s)`, ties to even.
/// A range too small for f32 gives scale 1 and zero point 0.
pub fn asymmetric_grid(range: (f64, f64), (qmin, qmax): (f64, f64)) -> Grid {
    let (low, high) = (range.0.min(0.0), range.1.max(0.0));
    let scale = (high - low) / (qmax - qmin);
    if scale < f64::from(f32::MIN_POSITIVE) {
        return Grid { scale: 1.0, zero: 0 };
    }
    Grid { scale: scale as f32, zero: (qmin - low / scale).round_ties_even() as i32 }
}

/// The grid of a range around zero: `s = 2 max|x| / (qmax - qmin)`; the zero point is 0 for s8 and 128 for u8.
pub fn symmetric_grid(absmax: f64, (qmin, qmax): (f64, f64)) -> Grid {
    let scale = 2.0 * absmax / (qmax - qmin);
    if scale < f64::from(f32::MIN_POSITIVE) {
        return Grid { scale: 1.0, zero: 0 };
    }
    Grid { scale: scale as f32, zero: ((qmin + qmax) / 2.0).round_ties_even() as i32 }
}

/// An int8 weight with a scale for each output channel.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct QuantWeight {
    pub(crate) values: Vec<f64>,
    pub(crate) scales: Vec<f64>,
}

/// Quantises a weight symmetrically along an axis into `[-127, 127]`, or `[-64, 64]` when `reduce_range`. A scale that
/// would let the int32 bias overflow (`s_x s_w < 1.0001 * 2 max|b| / (2^32 - 2)`) is raised.
pub(crate) fn quantise_weight(
    values: &[f64],
    (extent, inner): (usize, usize),
    reduce_range: bool,
    bias: Option<(&[f64], f64)>,
) -> QuantWeight {
    let top = if reduce_range { 64.0 } else { 127.0 };
    let mut absmax = vec![0.0f64; extent];
    for (i, v) in values.iter().enumerate() {
        let c = i / inner % extent;
        absmax[c] = absmax[c].max(v.abs());
    }
    let mut scales: Vec<f64> = absmax.iter().map(|&m| symmetric_grid(m, (-top, top)).scale.into()).collect();
    if let Some((bias, x_scale)) = bias {
        for (s, b) in scales.iter_mut().zip(bias) {
            let least = 1.0001 * 2.0 * b.abs() / (f64::from(u32::MAX) - 1.0);
            if x_scale * *s < least {
                *s = f64::from((least / x_scale) as f32);
            }
        }
    }
    let values = values.iter().enumerate().map(|(i, v)| (v / scales[i / inner % extent]).round_ties_even());
    QuantWeight { values: values.map(|v| v.clamp(-top, top)).collect(), scales }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Made by `tests/golden/quant/make.py` with ONNX Runtime's quantizer.
    fn golden() -> Value {
        serde_json::from_str(include_str!("../../../tests/golden/quant/quant.json")).unwrap()
    }

    fn number(v: &Value, key: &str) -> f64 {
        v[key].as_f64().unwrap()
    }

    #[test]
    fn grids_are_those_of_onnxruntime() {
        let golden = golden();
        let cases = golden["grids"].as_array().unwrap();
        assert!(cases.len() > 100);
        for case in cases {
            let (low, high) = (number(case, "low"), number(case, "high"));
            let dtype = if case["type"] == "u8" { DType::U8 } else { DType::I8 };
            let symmetric = case["symmetric"].as_bool().unwrap();
            let limits = limits(dtype, symmetric);
            assert_eq!(limits, (number(case, "qmin"), number(case, "qmax")), "{case}");
            let grid = match symmetric {
                true => symmetric_grid(low.abs().max(high.abs()), limits),
                false => asymmetric_grid((f64::from(low as f32), f64::from(high as f32)), limits),
            };
            assert_eq!(f64::from(grid.zero), number(case, "zero"), "{case}");
            // The range is rounded to f32 there: one unit in the last place.
            let scale = number(case, "scale");
            assert!((f64::from(grid.scale) - scale).abs() <= 1.2e-7 * scale, "{case}: {grid:?}");
        }
    }

    #[test]
    fn weights_are_those_of_onnxruntime() {
        for case in golden()["weights"].as_array().unwrap() {
            let values: Vec<Vec<f64>> = serde_json::from_value(case["values"].clone()).unwrap();
            let reduce = case["reduce_range"].as_bool().unwrap();
            let flat: Vec<f64> = values.concat();
            let got = quantise_weight(&flat, (values.len(), values[0].len()), reduce, None);
            for (c, row) in case["rows"].as_array().unwrap().iter().enumerate() {
                let expected: Vec<f64> = serde_json::from_value(row["q"].clone()).unwrap();
                assert_eq!(&got.values[c * expected.len()..][..expected.len()], expected, "channel {c}");
                assert!((got.scales[c] - number(row, "scale")).abs() <= 1.2e-7 * got.scales[c]);
                assert_eq!(number(row, "zero"), 0.0);
            }
        }
    }

    #[test]
    fn a_large_bias_raises_the_scale_until_it_fits() {
        let x_scale = 1e-6;
        let got = quantise_weight(&[1e-4, 1e-4], (2, 1), false, Some((&[3.0, 1e-9], x_scale)));
        let stored = 3.0 / (got.scales[0] * x_scale);
        assert!(stored <= f64::from(i32::MAX) && stored > 0.99 * f64::from(i32::MAX), "{stored}");
        assert_eq!(got.scales[1], f64::from((1e-4f64 / 127.0) as f32));
    }
}
