//! Nets as torch's exporters write them: what the report says of each, and that each trains on every engine as torch
//! trains the net it was made from. The files and torch's numbers come from `tests/golden/exports/make.py`.
#![allow(missing_docs)]

use limbeck::distill::optim::Sgd;
use limbeck::distill::{Finding, GradOptions, Group, Net, Remark, Role, Severity, Step, Verdict, build_step, form_for};
use limbeck::graph::Graph;
use limbeck::runtime::{CompileOptions, StateRole, engines};
use limbeck::tensor::{DType, Tensor};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

/// Which of torch's losses, before and after a step of SGD, the file reproduces.
#[derive(Clone, Copy, PartialEq)]
enum Same {
    Both,
    /// The export changed what is trained.
    Before,
    /// The export changed what is computed in training.
    Neither,
}

/// An exported file and what must be said of it.
struct Case {
    file: &'static str,
    /// Parameters of torch that the file does not have under their names.
    lost: &'static [&'static str],
    /// Parameters of the file that torch does not have under these names, with their number of elements.
    made: &'static [(&'static str, usize)],
    /// Remarks: severity, finding, parts of the names in their order.
    remarks: &'static [(Severity, Finding, &'static [&'static str])],
    same: Same,
}

use Finding::*;
use Severity::{Note, Warning};

const NORMS: &[&str] = &["BatchNormalization", "BatchNormalization"];
const FIRST: &[&str] = &["first.parametrizations.weight.original0", "first.parametrizations.weight.original1"];
const POSITIONS: &[&str] = &["positions"];

const CASES: &[Case] = &[
    Case {
        file: "cnn.dynamo",
        lost: &["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"],
        made: &[("stem.weight_bias", 4)],
        remarks: &[(Warning, FoldedNormalisation, &["node_Conv_27", "node_Conv_28"])],
        same: Same::Neither,
    },
    Case { file: "cnn.dynamo_raw", lost: &[], made: &[], remarks: &[(Note, Normalisation, NORMS)], same: Same::Both },
    Case { file: "cnn.script", lost: &[], made: &[], remarks: &[(Note, Normalisation, NORMS)], same: Same::Both },
    Case {
        file: "cnn.script_fold",
        lost: &["stem.weight", "norm1.weight", "norm1.bias", "conv.weight", "conv.bias", "norm2.weight", "norm2.bias"],
        made: &[("onnx::Conv_26", 72), ("onnx::Conv_27", 4), ("onnx::Conv_29", 144), ("onnx::Conv_30", 4)],
        remarks: &[
            (Warning, FoldedNormalisation, &["/stem/Conv", "/conv/Conv"]),
            (Note, Renamed, &["onnx::Conv_26", "onnx::Conv_27", "onnx::Conv_29", "onnx::Conv_30"]),
        ],
        same: Same::Neither,
    },
    Case {
        file: "cnn.script_train",
        lost: &[],
        made: &[],
        remarks: &[(Note, Dropout, &["/drop/Dropout"]), (Note, Normalisation, NORMS)],
        same: Same::Neither,
    },
    Case {
        file: "encoder.dynamo",
        // The bias of the projection is zero at first: the exporter's optimiser leaves it out.
        lost: &[
            "layer.self_attn.in_proj_weight",
            "layer.self_attn.out_proj.bias",
            "layer.linear1.weight",
            "layer.linear2.weight",
            "head.weight",
        ],
        made: &[("val_0", 192), ("val_86", 96), ("val_88", 96), ("val_92", 24)],
        remarks: &[(Note, Renamed, &["val_0", "val_86", "val_88", "val_92"])],
        same: Same::Before,
    },
    Case { file: "encoder.dynamo_raw", lost: &[], made: &[], remarks: &[], same: Same::Both },
    Case { file: "encoder.script", lost: &[], made: &[], remarks: &[], same: Same::Both },
    Case {
        file: "encoder.script_fold",
        lost: &["layer.self_attn.in_proj_weight", "layer.linear1.weight", "layer.linear2.weight", "head.weight"],
        made: &[
            ("onnx::MatMul_170", 192),
            ("onnx::MatMul_209", 96),
            ("onnx::MatMul_210", 96),
            ("onnx::MatMul_211", 24),
        ],
        remarks: &[(Note, Renamed, &["onnx::MatMul_170", "onnx::MatMul_209", "onnx::MatMul_210", "onnx::MatMul_211"])],
        same: Same::Both,
    },
    Case {
        file: "fresh.dynamo",
        lost: &["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"],
        made: &[],
        remarks: &[
            (Warning, FoldedNormalisation, &["node_Conv_36", "node_Conv_39"]),
            (Note, Separated, &["after.weight", "after.bias"]),
        ],
        same: Same::Neither,
    },
    Case { file: "fresh.dynamo_raw", lost: &[], made: &[], remarks: &[(Note, Normalisation, NORMS)], same: Same::Both },
    Case {
        file: "fresh.script",
        lost: &[],
        made: &[],
        remarks: &[
            (Note, Normalisation, NORMS),
            (
                Note,
                Separated,
                &[
                    "after.bias",
                    "after.weight",
                    "before.bias",
                    "before.weight",
                    "norm2.running_var",
                    "norm2.running_mean",
                    "norm2.bias",
                    "norm2.weight",
                    "norm1.running_var",
                    "norm1.running_mean",
                ],
            ),
        ],
        same: Same::Both,
    },
    Case {
        file: "fresh.script_fold",
        lost: &["stem.weight", "norm1.weight", "norm1.bias", "conv.weight", "norm2.weight", "norm2.bias"],
        made: &[("onnx::Conv_31", 72), ("onnx::Conv_32", 4), ("onnx::Conv_34", 144), ("onnx::Conv_35", 4)],
        remarks: &[
            (Warning, FoldedNormalisation, &["/stem/Conv", "/conv/Conv"]),
            (Note, Renamed, &["onnx::Conv_31", "onnx::Conv_34", "onnx::Conv_35", "onnx::Conv_32"]),
            (Note, Separated, &["onnx::Conv_35", "onnx::Conv_32", "after.bias", "after.weight"]),
        ],
        same: Same::Neither,
    },
    Case {
        file: "group.dynamo",
        lost: &["norm.weight", "norm.bias"],
        made: &[("val_21", 4), ("val_23", 4)],
        remarks: &[(Note, Renamed, &["val_21", "val_23"])],
        same: Same::Both,
    },
    Case { file: "group.dynamo_raw", lost: &[], made: &[], remarks: &[], same: Same::Both },
    Case { file: "group.script", lost: &[], made: &[], remarks: &[], same: Same::Both },
    Case {
        file: "group.script_fold",
        lost: &["norm.weight", "norm.bias"],
        made: &[("onnx::Mul_26", 4), ("onnx::Add_27", 4)],
        remarks: &[(Note, Renamed, &["onnx::Mul_26", "onnx::Add_27"])],
        same: Same::Both,
    },
    Case {
        file: "linear3d.dynamo",
        lost: &["first.weight", "second.weight"],
        made: &[("positions", 20), ("val_0", 30), ("val_2", 18)],
        remarks: &[(Warning, Table, POSITIONS), (Note, Renamed, &["val_0", "val_2"])],
        same: Same::Both,
    },
    Case {
        file: "linear3d.dynamo_raw",
        lost: &[],
        made: &[("positions", 20)],
        remarks: &[(Warning, Table, POSITIONS)],
        same: Same::Both,
    },
    Case {
        file: "linear3d.script",
        lost: &[],
        made: &[("positions", 20)],
        remarks: &[(Warning, Table, POSITIONS)],
        same: Same::Both,
    },
    Case {
        file: "linear3d.script_fold",
        lost: &["first.weight", "second.weight"],
        made: &[("positions", 20), ("onnx::MatMul_14", 30), ("onnx::MatMul_15", 18)],
        remarks: &[(Warning, Table, POSITIONS), (Note, Renamed, &["onnx::MatMul_14", "onnx::MatMul_15"])],
        same: Same::Both,
    },
    Case {
        file: "lstm.dynamo",
        lost: &["lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0", "head.weight"],
        made: &[("val_41", 48), ("val_42", 36), ("val_64", 24), ("val_80", 6)],
        remarks: &[(Note, Renamed, &["val_41", "val_42", "val_64", "val_80"])],
        same: Same::Both,
    },
    Case { file: "lstm.dynamo_raw", lost: &[], made: &[], remarks: &[], same: Same::Both },
    Case { file: "lstm.script", lost: &[], made: &[], remarks: &[], same: Same::Both },
    Case {
        file: "lstm.script_fold",
        lost: &["lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0", "head.weight"],
        made: &[("onnx::LSTM_117", 48), ("onnx::LSTM_118", 36), ("onnx::LSTM_119", 24), ("onnx::MatMul_122", 6)],
        remarks: &[(Note, Renamed, &["onnx::LSTM_117", "onnx::LSTM_118", "onnx::LSTM_119", "onnx::MatMul_122"])],
        same: Same::Both,
    },
    Case {
        file: "tied.dynamo",
        // The tied weight has two names, of which dynamo takes the other.
        lost: &["embedding.weight", "hidden.weight"],
        made: &[("out.weight", 42), ("val_0", 36), ("val_2", 42)],
        remarks: &[(Warning, Copied, &["val_2", "out.weight"]), (Note, Renamed, &["val_0", "val_2"])],
        same: Same::Before,
    },
    Case {
        file: "tied.dynamo_raw",
        lost: &["embedding.weight"],
        made: &[("out.weight", 42)],
        remarks: &[(Note, Tied, &["out.weight"])],
        same: Same::Both,
    },
    Case {
        file: "tied.script",
        lost: &[],
        made: &[],
        remarks: &[(Note, Tied, &["embedding.weight"])],
        same: Same::Both,
    },
    Case {
        file: "tied.script_fold",
        lost: &["hidden.weight"],
        made: &[("onnx::MatMul_11", 36), ("onnx::MatMul_12", 42)],
        remarks: &[
            (Warning, Copied, &["onnx::MatMul_12", "embedding.weight"]),
            (Note, Renamed, &["onnx::MatMul_11", "onnx::MatMul_12"]),
        ],
        same: Same::Before,
    },
    Case {
        file: "weight_norm.dynamo",
        lost: FIRST,
        made: &[("mul", 30)],
        remarks: &[(Warning, FoldedExpression, &["mul"])],
        same: Same::Before,
    },
    Case {
        file: "weight_norm.dynamo_raw",
        lost: &[],
        made: &[],
        remarks: &[(Note, Expression, FIRST)],
        same: Same::Both,
    },
    Case { file: "weight_norm.script", lost: &[], made: &[], remarks: &[(Note, Expression, FIRST)], same: Same::Both },
    Case {
        file: "weight_norm.script_fold",
        lost: &[],
        made: &[],
        remarks: &[(Note, Expression, FIRST)],
        same: Same::Both,
    },
];

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
    step.graph = step.graph.lowered(form_for(engine)).unwrap();
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
