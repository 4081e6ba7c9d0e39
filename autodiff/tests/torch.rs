//! Every gradient rule against torch in float64, ties and kinks included; and the same graphs in float32.

mod common;

use common::{Case, Operand};
use limbeck_tensor::DType;
use serde_json::Value;

fn operand(v: &Value, float: DType) -> Operand {
    if v.is_null() {
        return Operand::Absent;
    }
    let tensor = match v["dtype"].as_str().unwrap() {
        "float" => common::floats(float, v),
        integer => common::integers(integer, common::extents(&v["shape"]), &v["data"]),
    };
    if v["const"] == true { Operand::Constant(tensor) } else { Operand::Input(tensor) }
}

/// The worst relative error of the gradients of a case, and of its loss where that is above 1.
fn error(v: &Value, case: &Case, float: DType) -> Result<f64, String> {
    let mut cotangents = v["cotangents"].as_array().unwrap().iter();
    let graph =
        case.graph(float, 1, |_| common::floats(float, cotangents.next().unwrap())).map_err(|e| e.to_string())?;
    let result = graph.evaluate(&case.feeds()).map_err(|e| e.to_string())?;
    let loss = v["loss"].as_f64().expect("a loss");
    let mut worst = (result["loss"].to_f64_vec().unwrap()[0] - loss).abs() / loss.abs().max(1.0);
    for (i, reference) in v["grads"].as_array().unwrap().iter().enumerate().filter(|(_, g)| !g.is_null()) {
        let found = &result[&format!("g{i}")];
        if found.shape() != common::extents(&reference["shape"]) {
            return Err(format!("gradient {i} has shape {:?}", found.shape()));
        }
        let e = common::relative_error(&found.to_f64_vec().unwrap(), &common::numbers(&reference["data"]));
        worst = if e.is_nan() { f64::NAN } else { worst.max(e) };
    }
    Ok(worst)
}

fn check(float: DType, tolerance: f64) {
    let mut failures = vec![];
    for v in common::golden("gradients.json").as_array().unwrap() {
        // The specification quantises float32 and narrower only.
        if float == DType::F64 && v["op"] == "QuantizeLinear" {
            continue;
        }
        let operands = v["inputs"].as_array().unwrap().iter().map(|o| operand(o, float)).collect();
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
