//! The demo on one split: every stage runs, and what does not depend on luck holds.
#![allow(missing_docs)]

use std::process::Command;

#[test]
fn every_stage_of_the_demo_runs() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let mut command = Command::new(env!("CARGO_BIN_EXE_limbeck"));
    let run = command.args(["--json", "demo", "--splits", "1", "--out"]).arg(&out).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let facts: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    let number = |v: &serde_json::Value| v.as_f64().unwrap();

    let (teacher, student) = (number(&facts["teacher"]["parameters"]), number(&facts["student"]["parameters"]));
    assert!(student * 8.0 <= teacher, "the student has {student} parameters, the teacher {teacher}");
    assert!(number(&facts["teacher"]["accuracy"][0]) >= 0.98, "{facts:#}");
    for kind in ["labels_alone", "distilled"] {
        assert_eq!(facts["student"][kind].as_array().unwrap().len(), 3, "three seeds");
    }
    let stages = facts["compression"].as_array().unwrap();
    let of = |name: &str| stages.iter().find(|s| s["after"] == name).unwrap();
    let pruned = number(&of("pruned")["parameters"][0]);
    assert!(pruned <= 0.6 * student, "{pruned} of {student} parameters are left after pruning");
    assert!(number(&of("block removed")["parameters"][0]) < pruned);
    assert!(number(&of("int8")["bytes"][0]) < number(&of("normalisation folded")["bytes"][0]));
    assert!(of("int8")["int_nodes"].as_u64() >= Some(5));
    assert!(stages.iter().all(|s| number(&s["latency_ms"][0]) > 0.0));

    let field = facts["field"].as_array().unwrap();
    let end = |device: &str, what: &str| {
        let run = field.iter().find(|f| f["device"] == device && (f["labels"] == false || device == "frozen")).unwrap();
        number(run[what][0].as_array().unwrap().last().unwrap())
    };
    // The drift is hard enough, and learning without labels helps and forgets little.
    assert!(end("frozen", "new") < 0.8);
    assert!(end("self-distillation + replay", "new") > end("frozen", "new"));
    assert!(end("self-distillation + replay", "old") > 0.9);

    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    for heading in ["Compression", "Bundle", "In the field", "Engines"] {
        assert!(page.contains(heading));
    }
    let loads = ["src=\"http", "href=\"http", "url(http", "@import"];
    assert!(loads.iter().all(|l| !page.contains(l)), "the page is self-contained");
    for file in ["bundle-0/bundle.json", "models/student-int8.onnx", "recipe/digits.toml", "test-digits.safetensors"] {
        assert!(out.join(file).is_file(), "{file}");
    }
    assert!(!out.join("bundle-1").exists());
}
