//! ONNX's node tests: reading them, and those that are known to fail on an engine.

use limbeck::graph::{Graph, read_tensor_proto};
use limbeck::tensor::{DType, Tensor, map_file};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One node with values for its operands and results.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) model: PathBuf,
    pub(crate) inputs: Vec<(String, Tensor)>,
    pub(crate) outputs: Vec<(String, Tensor)>,
}

/// Reads the tensors `input_0.pb`, `input_1.pb`, ... in the order of `names`; `None` when one is no tensor.
fn tensors(folder: &Path, kind: &str, names: &[String]) -> Option<Vec<(String, Tensor)>> {
    let read = |(i, name): (usize, &String)| {
        let bytes = map_file(&folder.join(format!("{kind}_{i}.pb"))).ok()?;
        Some((name.clone(), read_tensor_proto(&bytes).ok()?.1.aligned()))
    };
    names.iter().enumerate().map(read).collect()
}

/// The case in this folder; `None` when what goes in or comes out is no tensor of numbers.
fn case(folder: &Path) -> Option<Case> {
    let model = folder.join("model.onnx");
    let graph = Graph::read(&model).unwrap_or_else(|e| panic!("{}: {e}", model.display()));
    let plain = |&v: &_| graph.ty(v).is_some_and(|t| t.dtype != DType::String);
    if !graph.inputs.iter().chain(&graph.outputs).all(plain) {
        return None;
    }
    let names = |values: &[_]| values.iter().map(|&v| graph.name_of(v).to_owned()).collect::<Vec<_>>();
    let data = folder.join("test_data_set_0");
    Some(Case {
        name: folder.file_name()?.to_string_lossy().into_owned(),
        inputs: tensors(&data, "input", &names(&graph.inputs))?,
        outputs: tensors(&data, "output", &names(&graph.outputs))?,
        model,
    })
}

/// All cases of tensors of numbers below this folder, sorted.
pub(crate) fn all(root: &Path) -> Vec<Case> {
    let folders = std::fs::read_dir(root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let mut folders: Vec<PathBuf> = folders.map(|e| e.unwrap().path()).collect();
    folders.sort();
    folders.iter().filter_map(|f| case(f)).collect()
}

/// Cases that are known to fail on an engine, with the reason: lines of `case: reason`.
pub(crate) fn listed(engine: &str) -> BTreeMap<String, String> {
    let path = format!("{}/tests/node_tests/{engine}.txt", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let entry = |line: &str| line.split_once(": ").map(|(case, reason)| (case.to_owned(), reason.to_owned()));
    text.lines().map(|line| entry(line).unwrap_or_else(|| panic!("{path}: '{line}' has no reason"))).collect()
}
