//! The official ONNX node tests on every engine, through the importer where the engine needs it; and the same cases on
//! tract alone, side by side. `cargo xtask test` generates them with the `onnx` package (`LIMBECK_NODE_TESTS`).
#![allow(missing_docs)]

mod cases;
mod catalogue;
mod plain_tract;

use cases::{Case, all, listed};
use limbeck::graph::{Graph, ImportOptions};
use limbeck::runtime::{CompileOptions, Engine, Model, engines};
use limbeck::tensor::{Tensor, TensorMap};
use std::collections::BTreeMap;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is fed, by name.
type Feeds<'a> = Vec<(&'a str, &'a Tensor)>;

/// The first result that is not what is expected, by the tolerances of ONNX's own runner.
fn difference(found: &TensorMap, expected: &[(String, Tensor)]) -> Result<(), String> {
    for (name, wanted) in expected {
        let got = found.get(name).ok_or_else(|| format!("output {name} is missing"))?;
        if (got.dtype(), got.shape()) != (wanted.dtype(), wanted.shape()) {
            let (a, b) = ((got.dtype(), got.shape()), (wanted.dtype(), wanted.shape()));
            return Err(format!("output {name} is {a:?}, not {b:?}"));
        }
        let exact = wanted.dtype().is_narrow_float();
        let numbers = |t: &Tensor| t.to_f64_vec().map_err(|e| format!("output {name}: {e}"));
        let (got, wanted) = (numbers(got)?, numbers(wanted)?);
        // As the backend tests of ONNX, and the last digits of the largest number, which a sum of many loses.
        let largest = wanted.iter().filter(|w| w.is_finite()).fold(0f64, |m, w| m.max(w.abs()));
        let near = |(a, b): (&f64, &f64)| {
            // Types may have several codes for NaN.
            a == b || (a.is_nan() && b.is_nan()) || (!exact && (a - b).abs() <= 1e-7 + 1e-3 * b.abs() + 1e-6 * largest)
        };
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
    fn arrange(self, case: &Case) -> Result<(Graph, Feeds<'_>), String> {
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

/// The file as it is, or else as `limbeck import` writes it.
fn on_engine(engine: &dyn Engine, case: &Case) -> Result<(), String> {
    let run = |graph: &Graph, feeds: &[(&str, &Tensor)]| {
        let bytes = graph.to_bytes().map_err(|e| e.to_string())?;
        let options = CompileOptions { threads: 1, ..CompileOptions::default() };
        let program = engine.compile(&Model::new(bytes), &options).map_err(|e| e.to_string())?;
        difference(&program.infer(feeds).map_err(|e| e.to_string())?, &case.outputs)
    };
    let (graph, feeds) = Operands::Fed.arrange(case)?;
    run(&graph, &feeds).or_else(|as_it_is| {
        let imported = first_success(|operands| {
            let (mut graph, feeds) = operands.arrange(case)?;
            graph.import(&ImportOptions::default()).map_err(|e| e.to_string())?;
            run(&graph, &feeds)
        });
        imported.map_err(|_| as_it_is)
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
    let cases = all(&root);
    println!("{} cases are of tensors of numbers", cases.len());
    let mut wrong = vec![];
    let mut passed = BTreeMap::new();
    for engine in engines() {
        let (failed, listed) = (failures(&cases, |case| on_engine(engine, case)), listed(engine.name()));
        passed.insert(engine.name(), cases.len() - failed.len());
        println!("{}: {} of {} pass", engine.name(), cases.len() - failed.len(), cases.len());
        for (name, reason) in failed.iter().filter(|(name, _)| !listed.contains_key(*name)) {
            wrong.push(format!("{} {name}: {}", engine.name(), reason.replace('\n', " ")));
        }
        for (name, reason) in listed.iter().filter(|(name, _)| !failed.contains_key(*name)) {
            wrong.push(format!("{} {name} passes, take it off the list: {reason}", engine.name()));
        }
    }
    let plain = cases.len() - failures(&cases, plain_tract::run).len();
    println!("tract without Limbeck: {plain} of {} pass", cases.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(passed.get("tract").is_none_or(|&ours| ours > plain), "the importer adds nothing: {passed:?}");
}
