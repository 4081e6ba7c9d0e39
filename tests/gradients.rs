//! Every gradient rule on every engine: the graphs that `autodiff/tests/torch.rs` evaluates, lowered to each form that an
//! engine takes, in float32 against torch in float64; and those of Loop and Scan, which `autodiff/tests/loops.rs` compares with
//! differences, against the reference evaluator in float64.
#![allow(missing_docs)]

#[path = "../autodiff/tests/common/mod.rs"]
mod common;

use common::Case;
use common::loops::CASES;
use limbeck::graph::Graph;
use limbeck::runtime::{CompileOptions, Engine, Form, Model, engines};
use limbeck::tensor::{DType, Tensor, TensorMap};
use serde_json::Value;

/// Relative error that a gradient may have.
const TOLERANCE: f64 = 1e-5;

/// Cases with a larger error, by engine, form and the start of their labels, the error and why. One that needs no more than the
/// others fails the test.
const LESS_EXACT: &[(&str, Form, &str, f64, &str)] = &[(
    "tract",
    Form::Portable,
    "QuantizeLinear [(\"axis\", Int(1))]",
    3e-5,
    "round(x / s) - x / s cancels, and tract multiplies by 1 / s, which rounds twice",
)];

/// Cases that an engine cannot run: its name, the start of their labels and why. One that runs fails the test.
const LACKING: &[(&str, &str, &str)] = &[("tract", "Unique", "tract has no Unique")];

/// Loops and Scans that an engine cannot run: its name, the start of their names and why. One that runs fails the test.
const LACKING_LOOPS: &[(&str, &str, &str)] = &[("tract", "loop", "tract has no Loop")];

/// What the engine gives of a graph in this form.
fn run(graph: &Graph, engine: &dyn Engine, form: Form, feeds: &TensorMap) -> Result<TensorMap, String> {
    let form = match form {
        Form::Portable => limbeck::graph::Form::Portable,
        Form::Fused => limbeck::graph::Form::Fused,
    };
    let bytes = graph.lowered(form).and_then(|lowered| lowered.to_bytes()).map_err(|e| e.to_string())?;
    let options = CompileOptions { threads: 1, ..CompileOptions::default() };
    let program = engine.compile(&Model::new(bytes), &options).map_err(|e| e.to_string())?;
    let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
    program.infer(&feeds).map_err(|e| e.to_string())
}

/// The worst relative error of loss and gradients of a case.
fn error(v: &Value, case: &Case, engine: &dyn Engine, form: Form) -> Result<f64, String> {
    let mut cotangents = v["cotangents"].as_array().unwrap().iter();
    let graph = case.graph(DType::F32, 1, |_| common::floats(DType::F32, cotangents.next().unwrap()));
    let result = run(&graph.map_err(|e| e.to_string())?, engine, form, &case.feeds())?;
    common::worst_error(v, &result)
}

#[test]
fn gradients_on_every_engine_agree_with_torch() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gradients/gradients.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = golden.as_array().unwrap();
    let (mut failures, mut run) = (vec![], 0);
    for engine in engines() {
        for &form in engine.forms() {
            for v in cases {
                let case = Case::new(
                    v,
                    v["inputs"].as_array().unwrap().iter().map(|o| common::operand(o, DType::F32)).collect(),
                );
                let label = case.label();
                let listed = LESS_EXACT
                    .iter()
                    .find(|(name, of, start, ..)| (*name, *of) == (engine.name(), form) && label.starts_with(start));
                let lacking =
                    LACKING.iter().find(|(name, start, _)| *name == engine.name() && label.starts_with(start));
                run += 1;
                match (error(v, &case, engine, form), listed) {
                    (Err(_), None) if lacking.is_some() => {}
                    (Ok(_), _) if lacking.is_some() => {
                        failures.push(format!("{} {form:?}: {label} runs, though: {lacking:?}", engine.name()));
                    }
                    (Ok(e), None) if e <= TOLERANCE => {}
                    (Ok(e), Some((.., allowed, _))) if e > TOLERANCE && e <= *allowed => {}
                    (Ok(e), Some((.., why))) if e <= TOLERANCE => {
                        failures.push(format!("{} {form:?}: {label} is exact, though: {why}", engine.name()));
                    }
                    (Ok(e), _) => failures.push(format!("{} {form:?}: {label}: relative error {e:e}", engine.name())),
                    (Err(e), _) => failures.push(format!("{} {form:?}: {label}: {e}", engine.name())),
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} of {run}:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn gradients_of_loops_on_every_engine_agree_with_the_reference() {
    let mut failures = vec![];
    for case in CASES {
        let graph = case.graph(DType::F32, 1).unwrap();
        let want = case.graph(DType::F64, 1).unwrap().evaluate(&case.feeds(DType::F64)).unwrap();
        for engine in engines() {
            for &form in engine.forms() {
                let found = run(&graph, engine, form, &case.feeds(DType::F32));
                let lacking =
                    LACKING_LOOPS.iter().find(|(of, start, _)| *of == engine.name() && case.name.starts_with(start));
                let label = format!("{} {form:?}: {}", engine.name(), case.name);
                match (found, lacking) {
                    (Err(_), Some(_)) => {}
                    (Ok(_), Some((.., why))) => failures.push(format!("{label} runs, though: {why}")),
                    (Err(e), None) => failures.push(format!("{label}: {e}")),
                    (Ok(found), None) => failures.extend(want.iter().filter_map(|(name, want)| {
                        let [found, want] = [&found[name], want].map(|t| t.to_f64_vec().unwrap());
                        let e = common::relative_error(&found, &want);
                        (e.is_nan() || e > TOLERANCE).then(|| format!("{label}: {name} has a relative error of {e:e}"))
                    })),
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
