//! Every gradient rule against central differences of the reference evaluator in float64, over the table of cases
//! in `tests/golden/gradients/cases.json`; and that the table covers every rule.

mod common;

use common::{Case, Feeds, Operand};
use limbeck_tensor::{DType, Tensor};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Step of the differences; their error is of the order of its square.
const STEP: f64 = 1e-5;

fn uniform(rng: &mut impl Rng, shape: &[usize], low: f64, high: f64) -> Tensor {
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.random_range(low..high)).collect();
    Tensor::new(shape, values).unwrap()
}

/// The operand that the table states, with random floats.
fn operand(spec: &Value, rng: &mut impl Rng) -> Operand {
    let list = |key: &str| {
        let shape =
            if spec["shape"].is_array() { common::extents(&spec["shape"]) } else { vec![spec[key].as_array()?.len()] };
        spec.get(key).map(|v| (shape, v))
    };
    if spec.is_null() {
        Operand::Absent
    } else if spec.is_array() {
        Operand::Input(uniform(rng, &common::extents(spec), -2.0, 2.0))
    } else if let Some(range) = spec.get("range") {
        let range = common::numbers(range);
        Operand::Input(uniform(rng, &common::extents(&spec["shape"]), range[0], range[1]))
    } else if let Some((shape, values)) = list("values") {
        Operand::Input(Tensor::new(shape, common::numbers(values)).unwrap())
    } else if let Some((shape, values)) = list("const") {
        Operand::Constant(Tensor::new(shape, common::numbers(values)).unwrap())
    } else if let Some((shape, values)) = list("int") {
        Operand::Constant(common::integers(spec["dtype"].as_str().unwrap_or("int64"), shape, values))
    } else {
        panic!("operand {spec}")
    }
}

/// The largest disagreement, over the inputs, between the derivative along a random direction and the gradient,
/// relative to the larger of 1 and the derivative.
fn disagreement(case: &Case, order: usize, rng: &mut ChaCha8Rng) -> Result<f64, String> {
    let graph = case.graph(DType::F64, order, |shape| uniform(rng, shape, -1.0, 1.0)).map_err(|e| e.to_string())?;
    let feeds = case.feeds();
    let at = |feeds: &Feeds| graph.evaluate(feeds).map_err(|e| e.to_string());
    let result = at(&feeds)?;
    let mut worst = 0.0f64;
    for (name, x) in &feeds {
        let direction = uniform(rng, x.shape(), -1.0, 1.0).to_f64_vec().unwrap();
        let loss = |step: f64| -> Result<f64, String> {
            let x_values = x.to_f64_vec().unwrap();
            let moved: Vec<f64> = x_values.iter().zip(&direction).map(|(x, d)| x + step * d).collect();
            let mut feeds = feeds.clone();
            feeds.insert(name.clone(), Tensor::new(x.shape(), moved).unwrap());
            Ok(at(&feeds)?["loss"].to_f64_vec().unwrap()[0])
        };
        let numeric = (loss(STEP)? - loss(-STEP)?) / (2.0 * STEP);
        let gradient = &result[&name.replace('x', "g")];
        if gradient.shape() != x.shape() || gradient.dtype() != x.dtype() {
            return Err(format!("gradient {:?} of an input {:?}", gradient.shape(), x.shape()));
        }
        let exact: f64 = gradient.to_f64_vec().unwrap().iter().zip(&direction).map(|(g, d)| g * d).sum();
        let difference = (numeric - exact).abs() / exact.abs().max(1.0);
        worst = if difference.is_nan() { f64::NAN } else { worst.max(difference) };
    }
    Ok(worst)
}

/// Checks the derivatives of this order for every case without the key `except`, which holds the reason.
fn check(order: usize, except: &str) {
    let cases = common::golden("cases.json");
    let mut failures = vec![];
    for (i, spec) in cases.as_array().unwrap().iter().enumerate() {
        if spec.get("numeric").is_some() || spec.get(except).is_some() {
            continue;
        }
        for draw in 0..2 {
            let mut rng = ChaCha8Rng::seed_from_u64(1000 * draw + i as u64);
            let operands = spec["in"].as_array().unwrap().iter().map(|o| operand(o, &mut rng)).collect();
            let case = Case::new(spec, operands);
            match disagreement(&case, order, &mut rng) {
                Ok(d) if d < 1e-7 => {}
                Ok(d) => failures.push(format!("{}: off by {d:e}", case.label())),
                Err(e) => failures.push(format!("{}: {e}", case.label())),
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_rule_agrees_with_differences() {
    check(1, "numeric");
}

#[test]
fn every_rule_can_be_differentiated_again() {
    check(2, "second");
}

/// Rules whose derivative is not that of the value, or which refuse, and those of operators with bodies (`loops.rs`): tested
/// on their own.
const APART: [&str; 5] = ["QuantizeLinear", "Range", "ai.limbeck::WithGrad", "Loop", "Scan"];

#[test]
fn the_table_covers_every_rule() {
    let cases = common::golden("cases.json");
    let ops = |of: &dyn Fn(&Value) -> bool| -> BTreeSet<String> {
        let cases = cases.as_array().unwrap().iter().filter(|c| of(c));
        cases.map(|c| c["op"].as_str().unwrap().to_owned()).collect()
    };
    let composites = limbeck_autodiff::COMPOSITES.iter().copied();
    let rules: BTreeSet<String> = limbeck_autodiff::differentiable().chain(composites).map(str::to_owned).collect();
    let mut numeric = ops(&|c| c.get("numeric").is_none());
    numeric.extend(APART.map(str::to_owned));
    assert_eq!(rules, numeric, "rules and the ops of the table");
    let golden = common::golden("gradients.json");
    let stated = |v: &Value| (v["op"].clone(), v.get("attrs").cloned().unwrap_or_else(|| serde_json::json!({})));
    let of = |v: &Value| v.as_array().unwrap().iter().map(stated).collect::<Vec<_>>();
    assert_eq!(of(&golden), of(&cases), "make.py has to be run again");
}

/// Limbeck's own ops that refuse by name, being fused after differentiation, and the one that ends it.
const OWN_WITHOUT: [&str; 4] =
    ["ai.limbeck::FusedConv", "ai.limbeck::FusedMatMul", "ai.limbeck::Map", "ai.limbeck::StopGradient"];

/// All ops of ai.onnx at the builder's opset (`operators.json`, from the onnx package) and Limbeck's own have exactly
/// one of a rule, a composition, and a reason to have none.
#[test]
fn every_operator_has_a_rule_or_a_composition_or_is_listed() {
    let golden = common::golden("operators.json");
    let official = golden.as_array().unwrap().iter().map(|op| op.as_str().unwrap().to_owned());
    let own = limbeck_graph::ops::all().filter(|o| !o.domain.is_empty()).map(|o| format!("{}::{}", o.domain, o.name));
    let all: BTreeSet<String> = official.chain(own).collect();
    let without = limbeck_autodiff::NON_DIFFERENTIABLE.iter().map(|(op, _)| *op);
    let covered = limbeck_autodiff::differentiable().chain(limbeck_autodiff::COMPOSITES.iter().copied());
    let mut times = BTreeMap::<String, usize>::new();
    for op in covered.chain(without).chain(OWN_WITHOUT) {
        *times.entry(op.to_owned()).or_default() += 1;
    }
    let missing: Vec<_> = all.iter().filter(|op| !times.contains_key(*op)).collect();
    let unknown: Vec<_> = times.keys().filter(|op| !all.contains(*op)).collect();
    let twice: Vec<_> = times.iter().filter(|(_, n)| **n > 1).collect();
    assert!(missing.is_empty() && unknown.is_empty() && twice.is_empty(), "{missing:?} {unknown:?} {twice:?}");
    let not_in_the_table: Vec<_> =
        limbeck_graph::ops::all().filter(|o| o.domain.is_empty() && !all.contains(o.name)).map(|o| o.name).collect();
    assert!(not_in_the_table.is_empty(), "{not_in_the_table:?} are no ops of the opset");
}
