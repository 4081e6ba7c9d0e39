//! The official node tests come back from the codec as they were, untouched and written wholly anew.
//!
//! `LIMBECK_NODE_TESTS` names their folder, one folder a case with `model.onnx`; `cargo xtask test` provides it.

mod any_bytes;

use any_bytes::{described, round_trip, touch};
use bytes::Bytes;
use limbeck_graph::Graph;
use std::io::Write;
use std::path::{Path, PathBuf};

fn models(folder: &Path) -> Vec<PathBuf> {
    let cases = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut models: Vec<PathBuf> = cases.map(|case| case.unwrap().path().join("model.onnx")).collect();
    models.sort();
    models
}

#[test]
fn node_tests_come_back() {
    let Some(folder) = std::env::var_os("LIMBECK_NODE_TESTS") else {
        // Written past the harness, which would keep it to itself.
        writeln!(std::io::stderr(), "NOT TESTED: ONNX's node tests (`cargo xtask test` generates them)").unwrap();
        return;
    };
    let models = models(Path::new(&folder));
    assert!(models.len() > 1000, "only {} node tests", models.len());
    for path in models {
        let raw = Bytes::from(std::fs::read(&path).unwrap());
        let graph = Graph::read(&path).unwrap_or_else(|e| panic!("{e}"));
        assert!(graph.to_bytes().unwrap() == raw, "{}: an untouched model is written otherwise", path.display());
        let mut anew = graph.clone();
        touch(&mut anew);
        let bytes = anew.to_bytes().unwrap();
        assert!(bytes == raw, "{}: a model written anew is encoded otherwise", path.display());
        let again = Graph::from_bytes(bytes, None).unwrap();
        assert_eq!(described(&again), described(&graph), "{}", path.display());
        round_trip(&anew);
    }
}
