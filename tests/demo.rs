//! The demo: every stage runs, and what does not depend on luck holds. With `LIMBECK_TEST_FULL` (`cargo xtask test --full`)
//! on all splits and every engine, with the demo's claims; else on one split.
#![allow(missing_docs)]

use limbeck::runtime::engines;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

#[test]
fn every_stage_of_the_demo_runs() {
    if std::env::var_os("LIMBECK_TEST_FULL").is_none() {
        check(&demo("tract", 1));
        return;
    }
    for engine in engines() {
        let facts = demo(engine.name(), 5);
        check(&facts);
        check_claims(&facts);
    }
}

fn number(v: &Value) -> f64 {
    v.as_f64().unwrap()
}

fn mean(v: &Value) -> f64 {
    let all: Vec<f64> = v.as_array().unwrap().iter().map(number).collect();
    all.iter().sum::<f64>() / all.len() as f64
}

/// Runs the demo and checks its files; what it says.
fn demo(engine: &str, splits: usize) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let mut command = Command::new(env!("CARGO_BIN_EXE_limbeck"));
    command.args(["--json", "demo", "--engine", engine, "--splits", &splits.to_string(), "--out"]).arg(&out);
    let run = command.output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    check_files(&out, splits);
    serde_json::from_slice(&run.stdout).unwrap()
}

fn check_files(out: &Path, splits: usize) {
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    for heading in ["Compression", "Bundle", "In the field", "Engines"] {
        assert!(page.contains(heading));
    }
    let loads = ["src=\"http", "href=\"http", "url(http", "@import"];
    assert!(loads.iter().all(|l| !page.contains(l)), "the page is self-contained");
    for file in ["bundle-0/bundle.json", "models/student-int8.onnx", "recipe/digits.toml", "test-digits.safetensors"] {
        assert!(out.join(file).is_file(), "{file}");
    }
    assert!(!out.join(format!("bundle-{splits}")).exists());
}

fn stage<'f>(facts: &'f Value, name: &str) -> &'f Value {
    facts["compression"].as_array().unwrap().iter().find(|s| s["after"] == name).unwrap()
}

/// Accuracies at the end of the stream without labels, on one kind of digits, by run.
fn field(facts: &Value, device: &str, what: &str) -> Vec<f64> {
    let field = facts["field"].as_array().unwrap();
    let of = |f: &&Value| f["device"] == device && (f["labels"] == false || device == "frozen");
    let runs = field.iter().find(of).unwrap()[what].as_array().unwrap();
    runs.iter().map(|run| number(run.as_array().unwrap().last().unwrap())).collect()
}

fn check(facts: &Value) {
    let (teacher, student) = (number(&facts["teacher"]["parameters"]), number(&facts["student"]["parameters"]));
    assert!(student * 8.0 <= teacher, "the student has {student} parameters, the teacher {teacher}");
    for kind in ["labels_alone", "distilled"] {
        assert_eq!(facts["student"][kind].as_array().unwrap().len(), 3, "three seeds");
    }
    let pruned = number(&stage(facts, "pruned")["parameters"][0]);
    assert!(pruned <= 0.6 * student, "{pruned} of {student} parameters are left after pruning");
    assert!(number(&stage(facts, "block removed")["parameters"][0]) < pruned);
    // In quantise-dequantise form the scales of so small a net weigh as much as int8 saves over the folded one.
    assert!(number(&stage(facts, "int8")["bytes"][0]) < 0.5 * number(&stage(facts, "distilled")["bytes"][0]));
    assert!(stage(facts, "int8")["int_nodes"].as_u64() >= Some(5));
    assert!(facts["compression"].as_array().unwrap().iter().all(|s| number(&s["latency_ms"][0]) > 0.0));
    // The drift is hard enough, and learning without labels helps and forgets little.
    assert!(field(facts, "frozen", "new")[0] < 0.8);
    assert!(field(facts, "self-distillation + replay", "new")[0] > field(facts, "frozen", "new")[0]);
    assert!(field(facts, "self-distillation + replay", "old")[0] > 0.9);
}

/// What the README says of all splits, with room for the arithmetic of another machine.
fn check_claims(facts: &Value) {
    assert!(mean(&facts["teacher"]["accuracy"]) >= 0.98, "{facts:#}");
    let lost = mean(&stage(facts, "distilled")["accuracy"]) - mean(&stage(facts, "int8")["accuracy"]);
    assert!(lost <= 0.015, "compression costs {lost}");
    let end = |device: &str, what: &str| {
        let runs = field(facts, device, what);
        runs.iter().sum::<f64>() / runs.len() as f64
    };
    assert!(end("self-distillation + replay", "new") > end("naive fine-tuning", "new"));
    assert!(end("self-distillation + replay", "old") > end("naive fine-tuning", "old"));
}
