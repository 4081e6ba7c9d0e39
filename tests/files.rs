//! Passes, bundles and steps from file to file, as a user makes them.
#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use limbeck::distill::models::{ResNet, Stage};
use limbeck::graph::{Attr, Cx, Graph};
use limbeck::runtime::noise;
use limbeck::tensor::{DType, Tensor, TensorMap, io};

const SHAPE: [usize; 4] = [8, 1, 8, 8];

fn limbeck(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_limbeck")).arg("--json").args(args).output().expect("the command starts")
}

fn facts(args: &[&str]) -> serde_json::Value {
    let out = limbeck(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn fails_naming(args: &[&str], code: i32, names: &[&str]) {
    let out = limbeck(args);
    let text = String::from_utf8_lossy(&out.stderr) + String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
    assert!(names.iter().all(|name| text.contains(name)), "{args:?} should name {names:?}: {text}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// A small residual network and a batch for it.
fn prepare(folder: &Path) -> (PathBuf, PathBuf) {
    let stages = vec![Stage { channels: 16, stride: 2, blocks: vec![16, 16, 16] }];
    let net = ResNet { input: [1, 8, 8], stem: 8, stages, classes: 4 }.build(3).unwrap();
    let model = folder.join("net.onnx");
    net.graph().write(&model).unwrap();
    let mut stream = noise::stream(1, 0, "x");
    let x = (0..SHAPE.iter().product()).map(|_| stream.normal() as f32).collect();
    let mut feeds = TensorMap::new();
    feeds.insert("x".into(), Tensor::new(SHAPE, x).unwrap());
    let file = folder.join("x.safetensors");
    io::write_safetensors(&file, &feeds).unwrap();
    (model, file)
}

fn outputs(model: &Path, feeds: &Path, engine: &str) -> Vec<f64> {
    let out = model.with_extension(format!("{engine}.safetensors"));
    let args = ["run", text(model), "--feeds", text(feeds), "--engine", engine, "--out", text(&out)];
    facts(&args);
    io::read_safetensors(&out).unwrap()["logits"].to_f64_vec().unwrap()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (a, b)| f64::max(m, (a - b).abs()))
}

#[test]
fn passes_go_from_file_to_file_and_engines_agree_on_the_results() {
    let folder = tempfile::tempdir().unwrap();
    let (model, feeds) = prepare(folder.path());
    let to = |name: &str| folder.path().join(name);
    let before = outputs(&model, &feeds, "reference");

    facts(&["export", "fold", text(&model), "--out", text(&to("folded.onnx"))]);
    assert!(largest_difference(&outputs(&to("folded.onnx"), &feeds, "reference"), &before) < 1e-4);

    let args = ["export", "prune", text(&model), "--keep", "0.75", "--round-to", "4", "--max-per-round", "0.6"];
    let pruned = facts(&[&args[..], &["--out", text(&to("pruned.onnx"))]].concat());
    assert!(pruned["bytes_after"].as_u64() < pruned["bytes_before"].as_u64(), "{pruned:#}");

    let args = ["export", "reduce", text(&model), "--feeds", text(&feeds), "--share", "0.34"];
    let reduced = facts(&[&args[..], &["--out", text(&to("reduced.onnx"))]].concat());
    let blocks = reduced["pass"]["blocks"].as_array().unwrap();
    assert_eq!((blocks.len(), blocks[0]["removed"].as_bool()), (3, Some(false)), "the first is protected: {reduced:#}");
    assert_eq!(blocks.iter().filter(|b| b["removed"] == true).count(), 1);

    for (profile, board) in [("server", "x86-server"), ("tract", "raspberry-pi-4")] {
        let int8 = to(&format!("{profile}.onnx"));
        let args = ["export", "quantise", text(&model), "--feeds", text(&feeds), "--profile", profile];
        let done = facts(&[&args[..], &["--board", board, "--out", text(&int8)]].concat());
        assert!(done["int_nodes"].as_u64() > Some(0), "{done:#}");
        let scale = before.iter().fold(0.0, |m, v| f64::max(m, v.abs()));
        assert!(largest_difference(&outputs(&int8, &feeds, "reference"), &before) < 0.1 * scale);
    }
    for name in ["folded", "pruned", "reduced", "server", "tract"] {
        let file = to(&format!("{name}.onnx"));
        // Of two roundings to int8 each may fall on the other side.
        let tolerance = if ["server", "tract"].contains(&name) { "0.05" } else { "1e-4" };
        facts(&["compare", text(&file), "--feeds", text(&feeds), "--tolerance", tolerance]);
    }
    fails_naming(&["export", "reduce", text(&model), "--out", text(&to("no.onnx"))], 1, &["--feeds"]);
    fails_naming(&["export", "fold", text(&model), "--out", "/nowhere/no.onnx"], 1, &["/nowhere/no.onnx"]);
}

#[test]
fn a_bundle_is_written_tested_and_refused_when_tampered_with() {
    let folder = tempfile::tempdir().unwrap();
    let (model, feeds) = prepare(folder.path());
    let bundle = folder.path().join("bundle");
    let args = ["bundle", "write", text(&model), "--feeds", text(&feeds), "--licence", "MIT", "--out", text(&bundle)];
    let written = facts(&args);
    assert_eq!(written["name"], "net");
    for engine in limbeck::runtime::engines() {
        let test = facts(&["bundle", "self-test", text(&bundle), "--engine", engine.name()]);
        assert_eq!(test["reproduced"], true, "{test:#}");
    }
    assert_eq!(facts(&["bundle", "info", text(&bundle)])["licence"], "MIT");
    fails_naming(&args, 1, &["exists"]);

    let state = bundle.join("state.safetensors");
    let whole = fs::read(&state).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&state, &damaged).unwrap();
    fails_naming(&["bundle", "info", text(&bundle)], 1, &["state.safetensors"]);
    fs::write(&state, &whole[..whole.len() - 1]).unwrap();
    fails_naming(&["bundle", "self-test", text(&bundle)], 1, &["state.safetensors"]);
    fs::write(&state, &whole).unwrap();
    facts(&["bundle", "self-test", text(&bundle)]);
}

#[test]
fn compare_needs_something_to_compare_with() {
    let folder = tempfile::tempdir().unwrap();
    let (model, feeds) = prepare(folder.path());
    let agreed = facts(&["compare", text(&model), "--feeds", text(&feeds)]);
    assert_eq!(agreed["agree"], true);
    // An operator that nobody knows.
    let mut graph = Graph::read(&model).unwrap();
    let relu = graph.nodes().find(|(_, n)| n.op == "Relu").unwrap().0;
    graph.node_mut(relu).op = "Rectify".into();
    let odd = folder.path().join("odd.onnx");
    graph.write(&odd).unwrap();
    fails_naming(&["compare", text(&odd), "--feeds", text(&feeds)], 1, &["Rectify"]);
}

#[test]
fn an_unknown_operator_on_the_way_to_the_loss_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let cx = Cx::new("odd", DType::F32);
    let x = cx.input("x", DType::F32, &[2, 3]);
    let w = cx.initializer("w", Tensor::new([3, 3], vec![1f32; 9]).unwrap());
    cx.output("loss", x.matmul(w).relu().sum(&[]));
    let mut graph = cx.finish().unwrap();
    let relu = graph.nodes().find(|(_, n)| n.op == "Relu").unwrap().0;
    let node = graph.node_mut(relu);
    (node.op, node.domain) = ("Foo".into(), "com.acme".into());
    let model = folder.path().join("odd.onnx");
    graph.write(&model).unwrap();
    let x = folder.path().join("x.npy");
    io::write_npy(&x, &Tensor::new([2, 3], vec![1f32; 6]).unwrap()).unwrap();
    let out = folder.path().join("g.safetensors");
    let feeds = format!("x={}", text(&x));
    let args = ["grad", text(&model), "--loss", "loss", "--feeds", &feeds, "--out", text(&out)];
    fails_naming(&args, 1, &["com.acme", "Foo"]);
    assert!(!out.exists());
}

#[test]
fn old_operators_run_alike_on_every_engine() {
    let folder = tempfile::tempdir().unwrap();
    let cx = Cx::new("old", DType::F32);
    let x = cx.input("x", DType::F32, &[2, 3, 4, 4]);
    cx.output("logits", x.mean_keep(&[2, 3]).relu());
    let mut graph = cx.finish().unwrap();
    // As opset 13 writes it: axes as an attribute.
    let mean = graph.nodes().find(|(_, n)| n.op == "ReduceMean").unwrap().0;
    let node = graph.node_mut(mean);
    node.inputs.truncate(1);
    node.attrs.insert("axes".into(), Attr::Ints(vec![2, 3]));
    graph.meta.opsets = vec![(String::new(), 13)];
    let model = folder.path().join("old.onnx");
    graph.write(&model).unwrap();
    let x = folder.path().join("x.npy");
    let values = (0..96).map(|i| i as f32 / 10.0).collect::<Vec<_>>();
    io::write_npy(&x, &Tensor::new([2, 3, 4, 4], values.clone()).unwrap()).unwrap();
    let feeds = format!("x={}", text(&x));
    let engines = limbeck::runtime::engines().into_iter().map(|e| e.name());
    for engine in std::iter::once("reference").chain(engines) {
        let out = folder.path().join("y.npy");
        facts(&["run", text(&model), "--feeds", &feeds, "--engine", engine, "--out", text(&out)]);
        let got = io::read_npy(&out).unwrap().to_f64_vec().unwrap();
        let means: Vec<f64> = values.chunks(16).map(|c| c.iter().map(|&v| f64::from(v)).sum::<f64>() / 16.0).collect();
        assert!(largest_difference(&got, &means) < 1e-5, "{engine}: {got:?}");
    }
}

#[test]
fn an_imported_model_is_static_and_answers_alike() {
    let folder = tempfile::tempdir().unwrap();
    let (model, feeds) = prepare(folder.path());
    let out = folder.path().join("static.onnx");
    let import = ["import", text(&model), "--out", text(&out)];
    facts(&[&import[..], &["--dim", "batch=8"]].concat());
    let inputs = facts(&["inspect", text(&out)])["inputs"].to_string();
    assert!(inputs.contains("float32[8, 1, 8, 8]"), "{inputs}");
    assert_eq!(outputs(&out, &feeds, "reference"), outputs(&model, &feeds, "reference"));
    for (more, names) in [
        (["--dim", "height=3"], ["height", "batch"]),
        (["--fix", "y=1"], ["y", "\"x\""]),
        (["--fix", "x=one"], ["x=one", "number"]),
    ] {
        fails_naming(&[&import[..], &more].concat(), 1, &names);
    }
}

#[test]
fn a_model_without_inputs_needs_no_feeds() {
    let folder = tempfile::tempdir().unwrap();
    let cx = Cx::new("constant", DType::F32);
    let w = cx.initializer("w", Tensor::new([2], vec![1f32, -2.0]).unwrap());
    cx.output("logits", w.relu());
    let model = folder.path().join("constant.onnx");
    cx.finish().unwrap().write(&model).unwrap();
    facts(&["run", text(&model), "--engine", "reference"]);
    let x = folder.path().join("x.npy");
    io::write_npy(&x, &Tensor::new([1], vec![1f32]).unwrap()).unwrap();
    let feeds = format!("x={}", text(&x));
    fails_naming(&["run", text(&model), "--engine", "reference", "--feeds", &feeds], 1, &["no input 'x'"]);
}

#[test]
fn options_of_the_demo_do_not_get_lost() {
    fails_naming(&["--engine", "ort", "doctor"], 2, &["--engine", "doctor"]);
    fails_naming(&["demo", "--splits", "9"], 2, &["splits"]);
    assert!(facts(&["doctor"])["engines"].as_array().unwrap().len() == 2);
}
