//! Golden files of `tests/golden/objectives`, from JSON to tensors, and what runs steps.
#![allow(dead_code)] // each test file uses its part

pub(crate) mod fit;
pub(crate) mod machine;
pub(crate) mod nets;

use limbeck_tensor::{DType, Tensor, TensorMap};
use serde_json::Value;

/// Named tensors.
pub(crate) type Feeds = TensorMap;

/// A golden file.
pub(crate) fn golden(file: &str) -> Value {
    let path = format!("{}/../tests/golden/objectives/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A list of numbers.
pub(crate) fn numbers(v: &Value) -> Vec<f64> {
    v.as_array().expect("numbers").iter().map(|n| n.as_f64().expect("a number")).collect()
}

/// Extents.
pub(crate) fn extents(v: &Value) -> Vec<usize> {
    numbers(v).into_iter().map(|n| n as usize).collect()
}

/// Floats of a shape.
pub(crate) fn floats(dtype: DType, shape: &[usize], values: &[f64]) -> Tensor {
    Tensor::from_f64(dtype, shape, values).expect("shape and data agree")
}

/// The tensor `{"shape", "dtype", "data"}`; floats become `float`.
pub(crate) fn tensor(float: DType, v: &Value) -> Tensor {
    let dtype = if v["dtype"] == "int64" { DType::I64 } else { float };
    floats(dtype, &extents(&v["shape"]), &numbers(&v["data"]))
}

/// The largest size among numbers.
pub(crate) fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |a, v| a.max(v.abs()))
}

/// The largest difference over the largest reference, which counts as no less than `floor`; NaN when lengths differ
/// or a number is NaN.
pub(crate) fn relative_error(found: &[f64], reference: &[f64], floor: f64) -> f64 {
    if found.len() != reference.len() {
        return f64::NAN;
    }
    let differences = found.iter().zip(reference).map(|(f, r)| (f - r).abs());
    // f64::max would pass over NaN.
    let worst = differences.fold(0.0, |a: f64, d| if d.is_nan() || d > a { d } else { a });
    if worst == 0.0 { 0.0 } else { worst / largest(reference).max(floor) }
}
