//! Numbers that `tests/golden/models/generator.py` makes too, so that the golden files hold no weights.

use limbeck::tensor::Tensor;
use serde_json::Value;

/// FNV-1a, 64 bits.
fn seed(name: &str) -> u64 {
    let step = |h: u64, byte: u8| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
    name.bytes().fold(0xCBF2_9CE4_8422_2325, step)
}

/// SplitMix64 (Steele and others, 2014), seeded with the name.
fn words(name: &str, count: usize) -> impl Iterator<Item = u64> {
    let mut state = seed(name);
    (0..count).map(move |_| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

/// Multiples of 2^-23 in -1..1.
fn signs(name: &str, count: usize) -> impl Iterator<Item = f64> {
    words(name, count).map(|w| ((w >> 40) as f64 - f64::from(1 << 23)) / f64::from(1 << 23))
}

/// Numbers in offset-scale..offset+scale, rounded to f32.
pub(crate) fn floats(name: &str, shape: &[usize], scale: f64, offset: f64) -> Tensor {
    let values = signs(name, shape.iter().product()).map(|v| (v * scale + offset) as f32).collect();
    Tensor::new(shape, values).unwrap()
}

/// Classes in 0..below.
pub(crate) fn integers(name: &str, shape: &[usize], below: u64) -> Tensor {
    let values = words(name, shape.iter().product()).map(|w| (w % below) as i64).collect();
    Tensor::new(shape, values).unwrap()
}

/// How far `found` is from the tensor of which `known` tells norm, projections and entries, as a share of its norm or
/// of `floor` where that is larger. A difference of norm d changes the norm and each entry by at most d, and a
/// projection by d / sqrt(3) in the mean.
pub(crate) fn error(name: &str, found: &[f64], known: &Value, floor: f64) -> f64 {
    let norm = found.iter().map(|v| v * v).sum::<f64>().sqrt();
    let number = |v: &Value| v.as_f64().unwrap();
    let mut differences = vec![norm - number(&known["norm"])];
    for (k, projection) in known["projections"].as_array().unwrap().iter().enumerate() {
        let own: f64 = signs(&format!("projection {k}/{name}"), found.len()).zip(found).map(|(s, v)| s * v).sum();
        differences.push((own - number(projection)) * 3f64.sqrt());
    }
    for (w, entry) in words(&format!("entries/{name}"), 4).zip(known["entries"].as_array().unwrap()) {
        differences.push(found[(w % found.len() as u64) as usize] - number(entry));
    }
    // f64::max would pass over NaN.
    let worst = differences.iter().map(|d| d.abs()).fold(0.0, |a: f64, d| if d.is_nan() || d > a { d } else { a });
    worst / number(&known["norm"]).max(floor)
}
