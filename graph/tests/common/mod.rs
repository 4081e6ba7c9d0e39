//! Reading the golden files of `tests/golden/ops_eval`.
#![allow(dead_code)] // each test file uses its part

use limbeck_graph::Attr;
use limbeck_tensor::{DType, Tensor};
use serde_json::Value as Json;
use std::path::PathBuf;

/// The golden files and the scripts that wrote them.
pub(crate) fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/ops_eval")
}

/// The entries of a list; none when it is missing.
pub(crate) fn list(json: &Json) -> &[Json] {
    json.as_array().map_or(&[], Vec::as_slice)
}

/// A number; JSON has no NaN and infinities, so those are text.
pub(crate) fn number(json: &Json) -> f64 {
    json.as_f64().unwrap_or_else(|| json.as_str().expect("number or its name").parse().expect("a number's name"))
}

/// The dtype of this name.
pub(crate) fn dtype(json: &Json) -> DType {
    let name = json.as_str().expect("dtype");
    (1..=26).filter_map(DType::from_onnx).find(|d| d.name() == name).expect("known dtype")
}

/// A tensor, written as its dtype, shape and elements.
pub(crate) fn tensor(json: &Json) -> Tensor {
    let dtype = dtype(&json["dtype"]);
    let shape: Vec<usize> = list(&json["shape"]).iter().map(|n| n.as_u64().expect("extent") as usize).collect();
    let data = list(&json["data"]);
    if dtype == DType::I64 {
        return Tensor::new(shape, data.iter().map(|v| v.as_i64().expect("integer")).collect()).expect("tensor");
    }
    Tensor::from_f64(dtype, shape, &data.iter().map(number).collect::<Vec<_>>()).expect("tensor")
}

/// An attribute: a number with a point is a float, an object a tensor.
pub(crate) fn attr(json: &Json) -> Attr {
    match json {
        Json::Number(n) if n.is_i64() => Attr::Int(n.as_i64().expect("integer")),
        Json::Number(_) => Attr::Float(number(json) as f32),
        Json::String(s) => s.as_str().into(),
        Json::Array(v) if v.iter().all(Json::is_i64) => {
            Attr::Ints(v.iter().map(|x| x.as_i64().expect("integer")).collect())
        }
        Json::Array(v) if v.iter().all(Json::is_string) => {
            Attr::Strs(v.iter().map(|x| x.as_str().expect("text").to_owned().into()).collect())
        }
        Json::Array(v) => Attr::Floats(v.iter().map(|x| number(x) as f32).collect()),
        _ => Attr::Tensor(tensor(json)),
    }
}
