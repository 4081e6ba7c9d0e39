//! Every gradient rule against torch in float64, ties and kinks included; and the same graphs in float32.

mod common;

use common::Case;
use limbeck_tensor::DType;
use serde_json::Value;

fn error(v: &Value, case: &Case, float: DType) -> Result<f64, String> {
    let mut cotangents = v["cotangents"].as_array().unwrap().iter();
    let graph =
        case.graph(float, 1, |_| common::floats(float, cotangents.next().unwrap())).map_err(|e| e.to_string())?;
    common::worst_error(v, &graph.evaluate(&case.feeds()).map_err(|e| e.to_string())?)
}

fn check(float: DType, tolerance: f64) {
    let mut failures = vec![];
    for v in common::golden("gradients.json").as_array().unwrap() {
        // The specification quantises float32 and narrower only.
        if float == DType::F64 && v["op"] == "QuantizeLinear" {
            continue;
        }
        let operands = v["inputs"].as_array().unwrap().iter().map(|o| common::operand(o, float)).collect();
        let case = Case::new(v, operands);
        match error(v, &case, float) {
            Ok(e) if e <= tolerance => {}
            Ok(e) => failures.push(format!("{}: relative error {e:e}", case.label())),
            Err(e) => failures.push(format!("{}: {e}", case.label())),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn float64_agrees_with_torch() {
    check(DType::F64, 1e-9);
}

#[test]
fn float32_agrees_with_torch() {
    check(DType::F32, 1e-5);
}
