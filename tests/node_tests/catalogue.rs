//! The catalogue of operators, `docs/operators.md`, is what the tables of the crates and ONNX's node tests make of it.
//! `cargo xtask catalogue` (`LIMBECK_CATALOGUE=write`) writes it anew.

use crate::cases;
use limbeck::autodiff::{COMPOSITES, NON_DIFFERENTIABLE, Without, differentiable};
use limbeck::graph::{Graph, LIMBECK, ops};
use limbeck::runtime::{ENGINES, engine};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Of the cases of each operator: how many there are, and how many pass on each of [`ENGINES`].
type Counts = BTreeMap<String, (usize, Vec<usize>)>;

/// Cases that consist of one node of ai.onnx, by its operator.
fn counts(root: &Path) -> Counts {
    let failing: Vec<BTreeMap<String, String>> = ENGINES.iter().map(|name| cases::listed(name)).collect();
    let mut counts = Counts::new();
    for case in cases::all(root).iter().filter(|case| !case.name.contains("_expanded")) {
        let graph = Graph::read(&case.model).unwrap();
        let mut nodes = graph.nodes();
        let (Some((_, node)), None) = (nodes.next(), nodes.next()) else { continue };
        if node.domain_or_default().is_empty() {
            let (all, passing) = counts.entry(node.op.clone()).or_insert_with(|| (0, vec![0; ENGINES.len()]));
            *all += 1;
            for (passing, failing) in passing.iter_mut().zip(&failing) {
                *passing += usize::from(!failing.contains_key(&case.name));
            }
        }
    }
    counts
}

/// The operators of ai.onnx at opset 24, from the `onnx` package.
fn official() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gradients/operators.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn gradient(op: &str) -> &'static str {
    if differentiable().any(|rule| rule == op) {
        return "rule";
    } else if COMPOSITES.contains(&op) {
        return "composed";
    }
    match NON_DIFFERENTIABLE.iter().find(|(name, _)| *name == op).map(|(_, why)| why) {
        Some(Without::Discrete) => "zero",
        Some(Without::Random) => "zero (random)",
        Some(Without::Quantised) => "refused (quantised)",
        Some(Without::Container) => "refused (container)",
        Some(Without::ControlFlow) => "refused (control flow)",
        Some(Without::NotYet) => "refused (not written)",
        None => "none",
    }
}

fn row(page: &mut String, domain: &str, op: &str, engines: &str) {
    let key = if domain.is_empty() { op.to_owned() } else { format!("{domain}::{op}") };
    let known = ops::find(domain, op).is_some();
    // Of what draws at random the table knows the types alone.
    let drawn = NON_DIFFERENTIABLE.contains(&(op, Without::Random));
    let yes = |is: bool| if is { "yes" } else { "-" };
    let (infer, evaluate) = (yes(known), yes(known && !drawn));
    writeln!(page, "| {op} | yes | {infer} | {evaluate} | {} | {engines}", gradient(&key)).unwrap();
}

/// The page, for node tests of this version.
fn page(root: &Path, version: &str) -> String {
    let (counts, official) = (counts(root), official());
    let engines: Vec<String> =
        ENGINES.iter().map(|name| engine(name).map(|e| format!("{name} {}", e.describe().version)).unwrap()).collect();
    let mut page = format!(
        "# Operators

Made by `cargo xtask catalogue`; the test `catalogue` fails when it is out of date.

- **read**: files with it are read, and written as they were.
- **infer**, **evaluate**: the op table gives the types of its results, and its values (the reference evaluator).
- **gradient**: *rule*, a rule of its own; *composed*, the rules of what it is composed of; *zero*, where differentiation ends;
  *refused*, an error that names the node, with the reason; *none*, it ends or follows differentiation.
- **tract**, **ort**: how many of the single-node cases of tensors of numbers pass on the engine, as they are or imported, of
  those that ONNX {version} generates; `-` where it generates none. `tests/node_tests` lists each failure with its reason.
  The engines are {}.

## ai.onnx, opset 24

| operator | read | infer | evaluate | gradient | {} |
|---|---|---|---|---|{}
",
        engines.join(" and "),
        ENGINES.join(" | "),
        "---|".repeat(ENGINES.len()),
    );
    for op in &official {
        let engines = match counts.get(op) {
            Some((all, passing)) => passing.iter().map(|n| format!("{n}/{all} |")).collect::<Vec<_>>().join(" "),
            None => vec!["- |"; ENGINES.len()].join(" "),
        };
        row(&mut page, "", op, &engines);
    }
    let older: Vec<&str> = counts.keys().filter(|op| !official.contains(*op)).map(String::as_str).collect();
    writeln!(
        page,
        "\nOperators of older opsets become these once they have to be understood; of such the node tests have {}.\n",
        older.join(" and "),
    )
    .unwrap();
    let others: BTreeSet<&str> = ops::all().map(|op| op.domain).filter(|domain| !domain.is_empty()).collect();
    for domain in others {
        writeln!(page, "## {domain}\n").unwrap();
        if domain == LIMBECK {
            page.push_str(
                "Made by gradients; lowering puts them in other words, or leaves them to engines that have kernels for them.\n\n",
            );
        }
        page.push_str("| operator | read | infer | evaluate | gradient |\n|---|---|---|---|---|\n");
        let names: BTreeSet<&str> = ops::all().filter(|op| op.domain == domain).map(|op| op.name).collect();
        names.into_iter().for_each(|op| row(&mut page, domain, op, ""));
        page.push('\n');
    }
    page.truncate(page.trim_end().len());
    page.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[test]
fn the_page_is_up_to_date() {
    // Written past the harness, which would keep it to itself.
    let not_tested = |why: &str| writeln!(std::io::stderr(), "NOT TESTED: docs/operators.md: {why}").unwrap();
    let Some(root) = std::env::var_os("LIMBECK_NODE_TESTS").map(PathBuf::from) else {
        return not_tested("ONNX's node tests (`cargo xtask test` generates them)");
    };
    if let Some(Err(reason)) = ENGINES.iter().map(|name| engine(name)).find(Result::is_err) {
        return not_tested(&reason.to_string());
    }
    // The folder of the cases lies in one called after the version.
    let version = root.parent().and_then(Path::file_name).expect("a folder in another").to_string_lossy().into_owned();
    let (made, path) = (page(&root, &version), Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operators.md"));
    if std::env::var_os("LIMBECK_CATALOGUE").is_some_and(|to| to == "write") {
        std::fs::write(&path, &made).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = made.lines().zip(written.lines()).find(|(a, b)| a != b);
    assert!(made == written, "`cargo xtask catalogue` writes docs/operators.md anew; first difference: {differs:?}");
}
