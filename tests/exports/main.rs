//! Nets as torch's exporters write them: what the report says of each, and that each trains on every engine as torch
//! trains the net it was made from. The files and torch's numbers come from `tests/golden/exports/make.py`.
#![allow(missing_docs)]

#[path = "../models/anew.rs"]
mod anew;
mod cases;

use cases::{CASES, Case, POSITIONS, Same};
use limbeck::distill::Finding::{Dropout, Separated};
use limbeck::distill::Severity::{Note, Warning};
use limbeck::distill::optim::Sgd;
use limbeck::distill::{GradOptions, Group, Net, Remark, Role, Step, Verdict, build_step, lowering_for};
use limbeck::graph::Graph;
use limbeck::runtime::{CompileOptions, StateRole, engines};
use limbeck::tensor::{DType, Tensor};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/exports")
}

fn torch() -> Value {
    let text = std::fs::read_to_string(folder().join("exports.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn net(file: &str) -> Net {
    Net::from_graph(Graph::read(folder().join(format!("{file}.onnx"))).unwrap()).unwrap()
}

fn extents(v: &Value) -> Vec<usize> {
    v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
}

fn tensor(v: &Value, dtype: DType) -> Tensor {
    let data: Vec<f64> = v["data"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect();
    Tensor::from_f64(dtype, extents(&v["shape"]), &data).unwrap()
}

impl Case {
    /// What torch says of the net.
    fn reference<'v>(&self, torch: &'v Value) -> &'v Value {
        &torch["nets"][self.file.split('.').next().unwrap()]
    }
}

#[test]
fn every_file_has_a_case() {
    let mut files: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .filter_map(|f| Some(f.unwrap().file_name().to_str()?.strip_suffix(".onnx")?.to_owned()))
        .collect();
    files.sort();
    assert_eq!(files, CASES.iter().map(|c| c.file).collect::<Vec<_>>());
}

#[test]
fn the_report_tells_parameters_and_what_the_exporter_did_to_them() {
    let torch = torch();
    for case in CASES {
        let file = case.file;
        let (net, reference) = (net(file), case.reference(&torch));
        let report = net.report();
        let mut expected: BTreeMap<String, usize> = BTreeMap::new();
        for (name, shape) in reference["parameters"].as_object().unwrap() {
            expected.insert(name.clone(), extents(shape).iter().product());
        }
        for name in case.lost {
            assert!(expected.remove(*name).is_some(), "{file}: torch has no '{name}'");
        }
        expected.extend(case.made.iter().map(|(name, len)| ((*name).to_owned(), *len)));
        let of = |role| report.stored.iter().filter(move |s| s.role == role);
        let found: BTreeMap<String, usize> =
            of(Role::Parameter).map(|s| (s.name.clone(), s.shape.iter().product())).collect();
        assert_eq!(found, expected, "{file}");
        assert_eq!(report.numbers, expected.values().sum::<usize>(), "{file}");
        // Where normalisation is left, so are its statistics.
        let is_statistic = |name: &&String| name.contains("running") && !case.lost.contains(&"norm1.weight");
        let buffers: BTreeSet<&String> =
            reference["buffers"].as_object().unwrap().keys().filter(is_statistic).collect();
        assert_eq!(of(Role::Buffer).map(|s| &s.name).collect::<BTreeSet<_>>(), buffers, "{file}");

        // Dropout is in the file that was exported for training alone, and missed in all others.
        let trains = file.ends_with("_train");
        let missed = |r: &&Remark| r.finding == Dropout && r.message.contains("no Dropout");
        assert_eq!(report.remarks.iter().filter(missed).count(), usize::from(!trains), "{file}");
        let remarks: Vec<&Remark> = report.remarks.iter().filter(|r| !missed(r)).collect();
        let found: Vec<_> = remarks.iter().map(|r| (r.severity, r.finding)).collect();
        assert_eq!(found, case.remarks.iter().map(|r| (r.0, r.1)).collect::<Vec<_>>(), "{file}: {report:#?}");
        for (remark, (severity, _, names)) in remarks.into_iter().zip(case.remarks) {
            assert_eq!(remark.names.len(), names.len(), "{file}: {remark:?}");
            assert!(remark.names.iter().zip(*names).all(|(name, part)| name.contains(part)), "{file}: {remark:?}");
            assert!(*severity == Note || !remark.remedy.is_empty(), "{file}: {remark:?}");
        }
        let verdict = match case.remarks.first() {
            Some((Warning, ..)) => Verdict::TrainableWithRemarks,
            _ => Verdict::Trainable,
        };
        assert_eq!(report.verdict, verdict, "{file}");
    }
}

#[test]
fn a_file_that_was_read_and_written_is_the_same_to_training() {
    for case in CASES {
        let net = net(case.file);
        let again = Net::from_graph(Graph::from_bytes(net.graph().to_bytes().unwrap(), None).unwrap()).unwrap();
        assert_eq!(again.stored(), net.stored(), "{}", case.file);
        let mut report = net.report();
        report.remarks.retain(|r| r.finding != Separated);
        assert_eq!(again.report(), report, "{}", case.file);
    }
}

#[test]
fn a_file_written_anew_is_the_same_to_onnx_runtime() {
    // What is exported for training draws its dropout.
    for case in CASES.iter().filter(|case| !case.file.ends_with("_train")) {
        let path = folder().join(format!("{}.onnx", case.file));
        let graph = Graph::read(&path).unwrap();
        let feed = |&id: &_| {
            let (dtype, shape) = (graph.ty(id).unwrap().dtype, graph.shape(id).unwrap());
            let float = |i: usize| (i * 37 % 23) as f64 / 8.0 - 1.3;
            let values = (0..shape.iter().product()).map(|i| if dtype.is_float() { float(i) } else { (i % 2) as f64 });
            let values: Vec<f64> = values.collect();
            (graph.name_of(id).to_owned(), Tensor::from_f64(dtype, shape, &values).unwrap())
        };
        anew::check(&path, &graph.inputs.iter().map(feed).collect());
    }
}

/// Element type of the input.
fn dtype(net: &Net) -> DType {
    net.graph().ty(net.graph().inputs[0]).unwrap().dtype
}

/// A step of SGD on the mean squared error.
fn step(net: &Net, reference: &Value, engine: &dyn limbeck::runtime::Engine) -> Step {
    let mut step = build_step("export", DType::F32, |s| {
        let x = s.batch("x", dtype(net), &extents(&reference["x"]["shape"]))?;
        let target = s.batch("target", DType::F32, &extents(&reference["target"]["shape"]))?;
        let params = s.params("student", net, StateRole::Parameter)?;
        let loss = (s.apply(net, &[x], &params, &params)?.first()? - target).square().mean(&[]);
        s.loss("loss", loss);
        let group = Group { params: &params, lr_scale: 1.0, weight_decay: 0.0 };
        s.minimise("", loss, &[group], &Sgd { momentum: 0.0, nesterov: false }, GradOptions::default())
    })
    .unwrap();
    step = step.lowered(lowering_for(engine)).unwrap();
    step
}

#[test]
fn every_file_trains_on_every_engine_as_torch_trains_the_net() {
    let torch = torch();
    let lr = torch["lr"].as_f64().unwrap();
    for case in CASES {
        let (file, reference) = (case.file, case.reference(&torch));
        let fixed: Vec<&str> = POSITIONS.iter().copied().filter(|&p| case.made.iter().any(|m| m.0 == p)).collect();
        let net = net(file).with_constants(&fixed).unwrap();
        let expected: Vec<f64> = reference["losses"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect();
        for engine in engines() {
            let step = step(&net, reference, engine);
            let x = tensor(&reference["x"], dtype(&net));
            let mut feeds = vec![("x", x), ("target", tensor(&reference["target"], DType::F32))];
            feeds.push(("lr", Tensor::scalar(lr as f32)));
            // Noise that drops nothing, the same in both runs.
            for noise in &step.manifest.noise {
                let ones = vec![1.0; noise.shape.iter().product()];
                feeds.push((&noise.name, Tensor::from_f64(DType::F32, noise.shape.clone(), &ones).unwrap()));
            }
            let program = engine.compile(&step.model().unwrap(), &CompileOptions::default()).unwrap();
            let mut store = engine.new_store();
            for (name, value) in &step.initial {
                store.insert(name.clone(), value).unwrap();
            }
            let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(name, value)| (*name, value)).collect();
            let losses = [0, 1].map(|_| {
                let outputs = program.run(&mut store, &feeds).unwrap();
                outputs.iter().find(|(name, _)| name.as_str() == "loss").unwrap().1.to_f64_vec().unwrap()[0]
            });
            let name = engine.name();
            assert!(losses[1] < losses[0], "{file} on {name}: {losses:?}");
            let alike = |i: usize| (losses[i] - expected[i]).abs() < 1e-5 * expected[i];
            let same = match (alike(0), alike(1)) {
                (true, true) => Same::Both,
                (true, false) => Same::Before,
                _ => Same::Neither,
            };
            assert!(same == case.same, "{file} on {name}: {losses:?}, torch {expected:?}");
        }
    }
}

#[test]
fn the_command_prints_the_report() {
    let inspect = |file: &str, more: &[&str]| {
        let path = folder().join(format!("{file}.onnx"));
        let args = [&["inspect", path.to_str().unwrap(), "--training"], more].concat();
        let out = Command::new(env!("CARGO_BIN_EXE_limbeck")).args(&args).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let facts: Value = serde_json::from_str(&inspect("tied.dynamo", &["--json"])).unwrap();
    let training = &facts["training"];
    assert_eq!(training["verdict"], "trainable_with_remarks");
    assert_eq!(training["remarks"][0]["finding"], "copied");
    assert_eq!(training["remarks"][0]["names"], serde_json::json!(["val_2", "out.weight"]));
    assert_eq!(training["stored"][0]["role"], "parameter");
    let text = inspect("cnn.script_fold", &[]);
    for part in ["training: trainable with remarks", "warning: ", "BatchNormalization is folded", "remedy: ", "'stem'"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}
