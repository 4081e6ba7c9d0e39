//! Every objective against torch in float64: loss and gradients, row weights, teachers without gradient, errors; on
//! the reference evaluator and on every engine. `tests/golden/objectives/make.py` says what a case holds.

mod common;

use common::{Feeds, floats, golden, relative_error, tensor};
use limbeck_autodiff::Differentiate;
use limbeck_distill::objective::{self, Objective, Side};
use limbeck_graph::{Cx, Form, Graph, Var};
use limbeck_runtime::{CompileOptions, Model, noise};
use limbeck_tensor::{DType, Tensor};
use serde_json::Value;
use std::collections::BTreeSet;

/// Rows appended to test that a weight of 0 excludes them.
const PADDING: usize = 2;

struct Built {
    graph: Graph,
    feeds: Feeds,
    /// Names of float taps without gradient.
    fixed: Vec<String>,
}

/// A tensor with rows of junk appended.
fn padded(t: &Tensor) -> Tensor {
    let mut shape = t.shape().to_vec();
    let width: usize = shape[1..].iter().product();
    shape[0] += PADDING;
    let mut values = t.to_f64_vec().unwrap();
    let junk = if t.dtype() == DType::I64 { 0.0 } else { 3.0 };
    values.extend(vec![junk; PADDING * width]);
    Tensor::from_f64(t.dtype(), shape, &values).unwrap()
}

/// The graph of a case: `loss`, `grad.NAME` for each reference gradient, and `grad.NAME` of the fixed float taps.
fn build(case: &Value, float: DType, pad: bool) -> Built {
    let objective = objective::find(case["objective"].as_str().unwrap()).unwrap();
    let cx = Cx::new("objective", float);
    let mut feeds = Feeds::new();
    let mut input = |name: &str, t: Tensor| {
        feeds.insert(name.into(), t.clone());
        cx.input(name, t.dtype(), t.shape())
    };
    let mut taps: Vec<(&str, Var<'_>)> = vec![];
    for (name, v) in case["taps"].as_object().unwrap() {
        let t = tensor(float, v);
        taps.push((name, input(name, if pad { padded(&t) } else { t })));
    }
    let weights: Vec<(&str, Var<'_>)> =
        case["weights"].as_object().unwrap().iter().map(|(k, v)| (k.as_str(), input(k, tensor(float, v)))).collect();
    let batch = taps[0].1.dim(0);
    let row_weight = match &case["row_weight"] {
        Value::Null if !pad => None,
        v => {
            let mut values = if v.is_null() { vec![1.0; batch - PADDING] } else { common::numbers(&v["data"]) };
            values.resize(batch, 0.0);
            Some(input("row_weight", Tensor::from_f64(float, [batch], &values).unwrap()))
        }
    };
    let mut wrt: Vec<(&str, Var<'_>)> =
        taps.iter().chain(&weights).copied().filter(|v| v.1.dtype().is_float()).collect();
    if case["net"] == true {
        let (x, w1, w2) = (taps[0].1, weights[0].1, weights[1].1);
        taps.push(("real_score", x.matmul(w1).tanh().matmul(w2)));
    }
    let params: Vec<(&str, f64)> =
        case["params"].as_object().unwrap().iter().map(|(k, v)| (k.as_str(), v.as_f64().unwrap())).collect();
    let loss = objective.loss(&cx, &taps, &params, row_weight).unwrap();
    assert_eq!(loss.shape(), [0usize; 0], "the loss is a scalar");
    let given = case["grads"].as_object().unwrap();
    let fixed = wrt.iter().map(|v| v.0.to_owned()).filter(|n| !given.contains_key(n)).collect();
    wrt.sort_by_key(|v| v.0);
    let vars: Vec<Var<'_>> = wrt.iter().map(|v| v.1).collect();
    let grads = cx.grad(loss, &vars).unwrap();
    cx.output("loss", loss);
    for ((name, _), grad) in wrt.iter().zip(grads) {
        cx.output(&format!("grad.{name}"), grad);
    }
    Built { graph: cx.finish().unwrap(), feeds, fixed }
}

fn label(case: &Value) -> String {
    format!("{} {} {}", case["objective"], case["seed"], case["params"])
}

/// What is wrong with the results of a case.
fn faults(case: &Value, fixed: &[String], found: &Feeds, tolerance: f64) -> Vec<String> {
    let mut faults = vec![];
    let grads = case["grads"].as_object().unwrap();
    // A gradient counts as no smaller than a thousandth of the largest.
    let floor = grads.values().map(|v| common::largest(&common::numbers(&v["data"]))).fold(0.0, f64::max) * 1e-3;
    let mut check = |what: &str, found: &[f64], reference: &[f64], floor: f64| {
        let e = relative_error(found, reference, floor);
        if e.is_nan() || e > tolerance {
            faults.push(format!("{}: {what}: relative error {e:e}", label(case)));
        }
    };
    check("loss", &found["loss"].to_f64_vec().unwrap(), &[case["loss"].as_f64().unwrap()], 0.0);
    for (name, v) in grads {
        let mut reference = common::numbers(&v["data"]);
        let grad = found[&format!("grad.{name}")].to_f64_vec().unwrap();
        // Padded rows have no gradient.
        reference.resize(grad.len(), 0.0);
        check(name, &grad, &reference, floor);
    }
    for name in fixed {
        if found[&format!("grad.{name}")].to_f64_vec().unwrap().iter().any(|&g| g != 0.0) {
            faults.push(format!("{}: gradient flows into {name}", label(case)));
        }
    }
    faults
}

fn evaluate_all(float: DType, pad: bool, tolerance: f64) {
    let mut all = vec![];
    for case in golden("objectives.json").as_array().unwrap() {
        let built = build(case, float, pad);
        let found = built.graph.evaluate(&built.feeds).unwrap_or_else(|e| panic!("{}: {e}", label(case)));
        all.extend(faults(case, &built.fixed, &found, tolerance));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn float64_agrees_with_torch() {
    evaluate_all(DType::F64, false, 1e-9);
}

#[test]
fn float32_agrees_with_torch() {
    evaluate_all(DType::F32, false, 1e-5);
}

#[test]
fn padded_rows_change_nothing() {
    evaluate_all(DType::F64, true, 1e-9);
}

/// Objectives whose value is a surrogate: its gradient is stated, not that of the value.
const STATED_GRADIENT: [&str; 2] = ["dmd", "scm"];

/// The largest disagreement of a case between central differences along a random direction and the gradient.
fn disagreement(case: &Value, direction: &mut noise::Stream) -> f64 {
    const STEP: f64 = 1e-5;
    let Built { graph, feeds, .. } = build(case, DType::F64, false);
    let gradients = graph.evaluate(&feeds).unwrap();
    let mut worst = 0.0;
    for name in case["grads"].as_object().unwrap().keys() {
        let x = &feeds[name];
        let along: Vec<f64> = (0..x.len()).map(|_| direction.normal()).collect();
        let loss = |step: f64| {
            let moved: Vec<f64> = x.to_f64_vec().unwrap().iter().zip(&along).map(|(x, d)| x + step * d).collect();
            let mut feeds = feeds.clone();
            feeds.insert(name.clone(), floats(DType::F64, x.shape(), &moved));
            graph.evaluate(&feeds).unwrap()["loss"].to_f64_vec().unwrap()[0]
        };
        let numeric = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
        let gradient = gradients[&format!("grad.{name}")].to_f64_vec().unwrap();
        let exact: f64 = gradient.iter().zip(&along).map(|(g, d)| g * d).sum();
        let difference = (numeric - exact).abs() / exact.abs().max(1.0);
        worst = if difference.is_nan() { f64::NAN } else { f64::max(worst, difference) };
    }
    worst
}

#[test]
fn every_gradient_agrees_with_differences() {
    let golden = golden("objectives.json");
    for o in objective::ALL.iter().filter(|o| !STATED_GRADIENT.contains(&o.name)) {
        for case in golden.as_array().unwrap().iter().filter(|c| c["objective"] == o.name) {
            let off = disagreement(case, &mut noise::stream(1, 0, o.name));
            assert!(off < 1e-7, "{}: off by {off:e}", label(case));
        }
    }
}

#[test]
fn every_engine_agrees_with_torch() {
    let mut all = vec![];
    for engine in limbeck_runtime::engines() {
        for case in golden("objectives.json").as_array().unwrap() {
            let built = build(case, DType::F32, true);
            let bytes = built.graph.lowered(Form::Portable).and_then(|g| g.to_bytes()).unwrap();
            let options = CompileOptions { threads: 1, ..CompileOptions::default() };
            let name = engine.name();
            let program =
                engine.compile(&Model::new(bytes), &options).unwrap_or_else(|e| panic!("{name}: {}: {e}", label(case)));
            // An engine has no input for what the loss does not depend on.
            let known: BTreeSet<&str> = program.inputs().iter().map(|i| i.name.as_str()).collect();
            let feeds: Vec<(&str, &Tensor)> =
                built.feeds.iter().map(|(k, v)| (k.as_str(), v)).filter(|f| known.contains(f.0)).collect();
            match program.infer(&feeds) {
                Ok(found) => {
                    all.extend(faults(case, &built.fixed, &found, 1e-5).into_iter().map(|f| format!("{name}: {f}")));
                }
                Err(e) => all.push(format!("{name}: {}: {e}", label(case))),
            }
        }
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn every_objective_has_goldens_for_every_student_tap() {
    let golden = golden("objectives.json");
    for o in objective::ALL {
        let cases: Vec<&Value> = golden.as_array().unwrap().iter().filter(|c| c["objective"] == o.name).collect();
        assert!(cases.len() >= 3, "{} has {} goldens", o.name, cases.len());
        for case in cases {
            for tap in o.taps.iter().filter(|t| t.side == Side::Student) {
                let computed = case["net"] == true && case["taps"].get(tap.name).is_none();
                assert!(computed || case["grads"].get(tap.name).is_some(), "{}: no gradient for {}", o.name, tap.name);
            }
            for param in o.params {
                assert!(case["params"].get(param.name).is_some(), "{}: no value for {}", o.name, param.name);
            }
        }
    }
}

#[test]
fn entries_are_complete_and_defaults_in_range() {
    let names: BTreeSet<&str> = objective::ALL.iter().map(|o| o.name).collect();
    assert_eq!(names.len(), objective::ALL.len(), "two objectives of one name");
    for o in objective::ALL {
        assert!(![o.title, o.source, o.formula].contains(&""), "{}", o.name);
        assert!(o.taps.iter().all(|t| t.shape.starts_with("[batch")), "{}: a tap without batch", o.name);
        for p in o.params {
            assert!((p.min..=p.max).contains(&p.default), "{}: default of {}", o.name, p.name);
        }
    }
}

/// The message of the error on these inputs.
fn refusal(o: &'static Objective, taps: &[(&str, &[usize])], params: &[(&str, f64)]) -> String {
    let cx = Cx::new("refused", DType::F64);
    let taps: Vec<(&str, Var<'_>)> = taps.iter().map(|(n, s)| (*n, cx.input(n, DType::F64, s))).collect();
    o.loss(&cx, &taps, params, None).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn wrong_taps_and_parameters_are_refused_by_name() {
    let find = |name| objective::find(name).unwrap();
    let logits: [(&str, &[usize]); 2] = [("student_logits", &[2, 3]), ("teacher_logits", &[2, 3])];
    for (message, expected) in [
        (refusal(find("kd"), &logits[..1], &[]), "'teacher_logits' is missing"),
        (refusal(find("kd"), &[logits[0], logits[1], ("labels", &[2])], &[]), "no tap 'labels'"),
        (refusal(find("kd"), &logits, &[("tau", 2.0)]), "no parameter 'tau'"),
        (refusal(find("kd"), &logits, &[("temperature", 0.0)]), "temperature = 0 is outside"),
        (refusal(find("kd"), &logits, &[("temperature", f64::NAN)]), "temperature = NaN is outside"),
        (refusal(find("hint"), &[("student_feature", &[2, 3]), ("teacher_feature", &[2, 4])], &[]), "[2, 4]"),
        (refusal(find("lwf"), &[logits[0], ("teacher_logits", &[2, 4])], &[]), "has 4 classes"),
        (objective::find("kl").map(|_| ()).unwrap_err().to_string(), "'kl': unknown"),
    ] {
        assert!(message.contains(expected), "'{message}' should hold '{expected}'");
    }
}

/// The message of the error on taps of these dtypes and shapes, with a row weight of this shape.
fn misfit(name: &str, taps: &[(&str, DType, &[usize])], row_weight: Option<&[usize]>) -> String {
    let cx = Cx::new("refused", DType::F64);
    let taps: Vec<(&str, Var<'_>)> = taps.iter().map(|(n, d, s)| (*n, cx.input(n, *d, s))).collect();
    let weight = row_weight.map(|s| cx.input("row_weight", DType::F64, s));
    let loss = objective::find(name).unwrap().loss(&cx, &taps, &[], weight);
    loss.map(|l| format!("{name} is built: {:?}", l.shape())).unwrap_or_else(|e| e.to_string())
}

#[test]
fn shapes_that_would_broadcast_are_refused_by_name() {
    let float = |name: &'static str, shape: &'static [usize]| (name, DType::F64, shape);
    let logits = float("student_logits", &[4, 3]);
    let labels = |dtype, shape: &'static [usize]| ("labels", dtype, shape);
    let score = float("fake_score", &[4, 1]);
    let denoised = [float("denoised", &[4, 2]), float("sample", &[4, 2])];
    let velocity = [
        float("velocity", &[4, 2]),
        float("velocity_tangent", &[4, 2]),
        float("teacher_velocity", &[4, 2]),
        float("x_t", &[4, 2]),
        float("weight", &[4]),
    ];
    for (message, expected) in [
        (misfit("ce", &[logits, labels(DType::I64, &[4, 1])], None), "'labels' is [4, 1]"),
        (misfit("ce", &[logits, labels(DType::I64, &[1])], None), "'labels' is [1]"),
        (misfit("ce", &[logits, labels(DType::F64, &[4])], None), "labels are integers"),
        (misfit("ce", &[float("student_logits", &[4, 2, 3]), labels(DType::I64, &[4, 2])], None), "one a row"),
        (misfit("ce", &[logits, labels(DType::I64, &[4])], Some(&[4, 1])), "row weight is [4, 1]"),
        (misfit("ce", &[logits, labels(DType::I64, &[4])], Some(&[1])), "row weight is [1]"),
        (misfit("kd", &[logits, float("teacher_logits", &[1, 3])], None), "'teacher_logits' is [1, 3]"),
        (misfit("lwf", &[logits, float("teacher_logits", &[1, 2])], None), "'teacher_logits' is [1, 2]"),
        (misfit("rkd", &[float("student_feature", &[4, 2]), float("teacher_feature", &[1, 2])], None), "rows"),
        (misfit("rkd", &[float("student_feature", &[4, 2]), float("teacher_feature", &[4, 2])], Some(&[1])), "rows"),
        (misfit("gan_generator", &[score], Some(&[4, 1])), "row weight is [4, 1]"),
        (misfit("dsm", &[denoised[0], denoised[1], float("weight", &[4, 1])], None), "'weight' is [4, 1]"),
        (misfit("scm", &[&velocity[..], &[float("t", &[4, 1])]].concat(), None), "'t' is [4, 1]"),
        (
            misfit("scm", &[&velocity[..4], &[float("t", &[4]), float("weight", &[1])]].concat(), None),
            "'weight' is [1]",
        ),
    ] {
        assert!(message.contains(expected), "'{message}' should hold '{expected}'");
    }
}

#[test]
fn relations_of_a_single_row_that_counts_are_zero() {
    for float in [DType::F32, DType::F64] {
        let cx = Cx::new("relations", float);
        let [s, t] = ["s", "t"].map(|name| cx.input(name, float, &[3, 2]));
        let w = cx.input("w", float, &[3]);
        let taps = [("student_feature", s), ("teacher_feature", t)];
        let loss = objective::find("rkd").unwrap().loss(&cx, &taps, &[], Some(w)).unwrap();
        let grad = cx.grad(loss, &[s]).unwrap()[0];
        cx.output("loss", loss);
        cx.output("grad", grad);
        let feeds = Feeds::from([
            ("s".into(), floats(float, &[3, 2], &[0.5, 1.0, -1.0, 0.25, 3.0, 3.0])),
            ("t".into(), floats(float, &[3, 2], &[0.75, -0.5, 0.5, 1.0, 3.0, 3.0])),
            ("w".into(), floats(float, &[3], &[1.0, 0.0, 0.0])),
        ]);
        let found = cx.finish().unwrap().evaluate(&feeds).unwrap();
        assert_eq!(found["loss"].to_f64_vec().unwrap(), [0.0]);
        assert_eq!(found["grad"].to_f64_vec().unwrap(), [0.0; 6]);
    }
}

#[test]
fn relations_ignore_rotation_and_scale_and_stay_finite_on_duplicates() {
    let teacher = [0.5, 1.0, -1.0, 0.25, 0.75, -0.5, 0.5, 1.0];
    // A quarter turn and a factor of 3; the first and the last sample are the same.
    let student: Vec<f64> = teacher.chunks(2).flat_map(|p| [-3.0 * p[1], 3.0 * p[0]]).collect();
    let cx = Cx::new("relations", DType::F64);
    let s = cx.input("s", DType::F64, &[4, 2]);
    let t = cx.input("t", DType::F64, &[4, 2]);
    let loss = objective::find("rkd").unwrap().loss(&cx, &[("student_feature", s), ("teacher_feature", t)], &[], None);
    let loss = loss.unwrap();
    let grad = cx.grad(loss, &[s]).unwrap()[0];
    cx.output("loss", loss);
    cx.output("grad", grad);
    let feeds = Feeds::from([
        ("s".into(), floats(DType::F64, &[4, 2], &student)),
        ("t".into(), floats(DType::F64, &[4, 2], &teacher)),
    ]);
    let found = cx.finish().unwrap().evaluate(&feeds).unwrap();
    assert!(found["loss"].to_f64_vec().unwrap()[0].abs() < 1e-9);
    assert!(found["grad"].all_finite());
}
