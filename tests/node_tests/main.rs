//! The official ONNX node tests on every engine, through the importer where the engine needs it; and the same cases on
//! tract alone, side by side. `cargo xtask test` generates them with the `onnx` package (`LIMBECK_NODE_TESTS`).
#![allow(missing_docs)]

mod plain_tract;

use limbeck::graph::{Graph, ImportOptions, read_tensor_proto};
use limbeck::runtime::{CompileOptions, Engine, Model, engines};
use limbeck::tensor::{Bytes, DType, Tensor, TensorMap, map_file};
use std::collections::BTreeMap;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One node with values for its operands and results.
struct Case {
    name: String,
    model: PathBuf,
    inputs: Vec<(String, Tensor)>,
    outputs: Vec<(String, Tensor)>,
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

/// All folders of cases, sorted.
fn folders(root: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

/// The first result that is not what is expected, by the tolerances of ONNX's own runner.
fn difference(found: &TensorMap, expected: &[(String, Tensor)]) -> Result<(), String> {
    for (name, wanted) in expected {
        let got = found.get(name).ok_or_else(|| format!("output {name} is missing"))?;
        if (got.dtype(), got.shape()) != (wanted.dtype(), wanted.shape()) {
            let (a, b) = ((got.dtype(), got.shape()), (wanted.dtype(), wanted.shape()));
            return Err(format!("output {name} is {a:?}, not {b:?}"));
        }
        let (Ok(got), Ok(wanted)) = (got.to_f64_vec(), wanted.to_f64_vec()) else {
            // Types that have no numbers here: float8, int4 and the like.
            if got.bytes() == wanted.bytes() {
                continue;
            }
            return Err(format!("output {name} has other bytes"));
        };
        let near =
            |(a, b): (&f64, &f64)| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-7 + 1e-3 * b.abs();
        if let Some(i) = got.iter().zip(&wanted).position(|p| !near(p)) {
            return Err(format!("output {name}[{i}] is {}, not {}", got[i], wanted[i]));
        }
    }
    Ok(())
}

/// How the operands reach the node. An exporter stores shapes, axes and weights in the file; the tests feed them, which an
/// engine that wants them constant cannot run.
#[derive(Debug, Clone, Copy)]
enum Operands {
    Fed,
    /// The first is fed, the others are stored.
    FirstFed,
    Stored,
}

const OPERANDS: &[Operands] = &[Operands::Fed, Operands::FirstFed, Operands::Stored];

impl Operands {
    /// The model with its operands in place, and what is left to feed.
    fn arrange(self, case: &Case) -> Result<(Graph, Vec<(&str, &Tensor)>), String> {
        let mut graph = Graph::read(&case.model).map_err(|e| e.to_string())?;
        let fed = match self {
            Operands::Fed => case.inputs.len(),
            Operands::FirstFed => 1,
            Operands::Stored => 0,
        };
        let (feeds, stored) = case.inputs.split_at(fed.min(case.inputs.len()));
        for (name, value) in stored {
            graph.fix_input(name, value).map_err(|e| e.to_string())?;
        }
        Ok((graph, feeds.iter().map(|(n, t)| (n.as_str(), t)).collect()))
    }
}

fn on_engine(engine: &dyn Engine, case: &Case) -> Result<(), String> {
    let run = |bytes: Bytes, feeds: &[(&str, &Tensor)]| {
        let options = CompileOptions { threads: 1, ..CompileOptions::default() };
        let program = engine.compile(&Model::new(bytes), &options).map_err(|e| e.to_string())?;
        difference(&program.infer(feeds).map_err(|e| e.to_string())?, &case.outputs)
    };
    if engine.name() == "ort" {
        let (graph, feeds) = Operands::Fed.arrange(case)?;
        return run(graph.to_bytes().map_err(|e| e.to_string())?, &feeds);
    }
    first_success(|operands| {
        let (mut graph, feeds) = operands.arrange(case)?;
        graph.import(&ImportOptions::default()).map_err(|e| format!("import: {e}"))?;
        run(graph.to_bytes().map_err(|e| e.to_string())?, &feeds)
    })
}

/// Tries the arrangements in turn; the first error if none succeeds.
fn first_success(f: impl Fn(Operands) -> Result<(), String>) -> Result<(), String> {
    let first = f(OPERANDS[0]);
    if first.is_ok() || OPERANDS[1..].iter().any(|&o| f(o).is_ok()) { Ok(()) } else { first }
}

/// Runs `f` on all cases, two at a time; what failed, by name.
fn failures(cases: &[Case], f: impl Fn(&Case) -> Result<(), String> + Sync) -> BTreeMap<String, String> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = catch_unwind(AssertUnwindSafe(|| f(case))).unwrap_or_else(|_| Err("panicked".into()));
            if let Err(reason) = result {
                failed.lock().unwrap().insert(case.name.clone(), reason);
            }
        }
    };
    std::thread::scope(|s| {
        s.spawn(work);
        s.spawn(work);
    });
    failed.into_inner().unwrap()
}

#[test]
fn engines_agree_with_the_node_tests() {
    let Some(root) = std::env::var_os("LIMBECK_NODE_TESTS").map(PathBuf::from) else {
        writeln!(std::io::stderr(), "NOT TESTED: ONNX's node tests (`cargo xtask test` generates them)").unwrap();
        return;
    };
    let folders = folders(&root);
    let cases: Vec<Case> = folders.iter().filter_map(|f| case(f)).collect();
    println!("{} of {} cases are of tensors of numbers", cases.len(), folders.len());
    for engine in engines() {
        let failed = failures(&cases, |case| on_engine(engine, case));
        println!("{}: {} of {} pass", engine.name(), cases.len() - failed.len(), cases.len());
        let mut text = String::new();
        for (name, reason) in &failed {
            text += &format!("{name}\t{}\n", reason.replace('\n', " "));
        }
        std::fs::write(format!("/tmp/node_{}.txt", engine.name()), text).unwrap();
    }
    let failed = failures(&cases, plain_tract::run);
    println!("plain tract: {} of {} pass", cases.len() - failed.len(), cases.len());
}
