//! Every operator of the table against other implementations: inference and evaluation of the single nodes in
//! `tests/golden/ops_eval/cases_*.json`, which `make_*.py` beside them wrote with ONNX Runtime and the ONNX
//! reference evaluator.

mod common;

use common::{attr, folder, list, tensor};
use limbeck_graph::{Attr, COMPOSITES, Cx, Dim, Graph, Node, TensorType, ValueId, compose, infer_node, ops};
use limbeck_tensor::{DType, Tensor};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

/// A node with its operands and the results to expect.
struct Case {
    label: String,
    node: Node,
    inputs: Vec<Option<Tensor>>,
    outputs: Vec<Option<Tensor>>,
}

fn optional(json: &Json) -> Option<Tensor> {
    (!json.is_null()).then(|| tensor(json))
}

fn cases() -> Vec<Case> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder()).expect("folder").map(|e| e.expect("entry").path()).collect();
    files.retain(|f| f.file_name().is_some_and(|n| n.to_string_lossy().starts_with("cases_")));
    files.sort();
    let mut all = vec![];
    for file in files {
        let json: Json = serde_json::from_slice(&std::fs::read(&file).expect("file")).expect("JSON");
        for (i, case) in list(&json).iter().enumerate() {
            let op = case["op"].as_str().expect("op");
            let mut node = Node::new(op, &[], &[]).in_domain(case["domain"].as_str().unwrap_or_default());
            for (name, value) in case["attrs"].as_object().expect("attrs") {
                node.attrs.insert(name.clone(), attr(value));
            }
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            all.push(Case {
                label: format!("{name} line {}, {op} {}", i + 2, case["attrs"]),
                node,
                inputs: list(&case["inputs"]).iter().map(optional).collect(),
                outputs: list(&case["outputs"]).iter().map(optional).collect(),
            });
        }
    }
    all
}

impl Case {
    /// The node in a graph of its own, operands added by `add`; outputs are `y0`, `y1`, ...
    fn graph(&self, inputs: &[Option<Tensor>], add: impl Fn(&mut Graph, String, &Tensor) -> ValueId) -> (Graph, Node) {
        let mut graph = Graph::new("case");
        let mut node = self.node.clone();
        for (i, input) in inputs.iter().enumerate() {
            node.inputs.push(input.as_ref().map(|t| add(&mut graph, format!("x{i}"), t)));
        }
        for (i, output) in self.outputs.iter().enumerate() {
            node.outputs.push(output.as_ref().map(|_| graph.add_value(format!("y{i}"), None)));
        }
        graph.outputs = node.outputs.iter().flatten().copied().collect();
        graph.add_node(node.clone());
        (graph, node)
    }

    fn with_constants(&self, inputs: &[Option<Tensor>]) -> (Graph, Node) {
        self.graph(inputs, |graph, name, t| graph.add_initializer(name, t.clone()))
    }
}

/// Relative and absolute tolerance: the last digits of narrow floats; for f32 the oracles' own rounding.
fn tolerance(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::F64 => (1e-12, 1e-13),
        DType::F32 => (1e-5, 1e-6),
        DType::F16 => (1e-3, 1e-6),
        DType::BF16 => (8e-3, 1e-6),
        _ => (0.0, 0.0),
    }
}

fn difference(got: &Tensor, want: &Tensor) -> Option<String> {
    if got.dtype() != want.dtype() || got.shape() != want.shape() {
        return Some(format!("{} instead of {}", TensorType::of(got), TensorType::of(want)));
    }
    let (relative, absolute) = tolerance(want.dtype());
    let (got, want) = (got.to_f64_vec().expect("numbers"), want.to_f64_vec().expect("numbers"));
    let close = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= absolute + relative * b.abs();
    let at = got.iter().zip(&want).position(|(a, b)| !close(*a, *b))?;
    Some(format!("element {at} is {} instead of {}", got[at], want[at]))
}

/// What inference is told of the extents of operand `i`.
type Vagueness = fn(usize, &Tensor) -> Option<Vec<Dim>>;

fn report(failures: Vec<String>) {
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Operators whose results are drawn: of their cases the types alone are compared.
const DRAWN: [&str; 6] =
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"];

/// Operators whose attributes hold graphs: the node tests and `tests/control.rs` have their cases.
const WITH_GRAPHS: [&str; 3] = ["If", "Loop", "Scan"];

/// The axes of output `i` whose extents depend on values.
fn counted(case: &Case, i: usize) -> Vec<usize> {
    let rank = case.inputs.first().and_then(Option::as_ref).map_or(0, |t| t.shape().len());
    let axis = case.node.int("axis").map_or(0, |a| if a < 0 { a + rank as i64 } else { a } as usize);
    match (case.node.op.as_str(), i) {
        ("NonZero", _) => vec![1],
        ("NonMaxSuppression", _) | ("Unique", 1 | 3) => vec![0],
        ("Compress" | "Unique", 0) => vec![axis],
        _ => vec![],
    }
}

#[test]
fn evaluation_equals_the_oracle() {
    let mut failures = vec![];
    for case in cases() {
        let (graph, _) = case.with_constants(&case.inputs);
        match graph.evaluate(&BTreeMap::new()) {
            Err(e) if DRAWN.contains(&&*case.node.op) && e.to_string().contains("draws from a generator") => {}
            Ok(_) if DRAWN.contains(&&*case.node.op) => failures.push(format!("{} is evaluated", case.label)),
            Err(e) => failures.push(format!("{}: {e}", case.label)),
            Ok(got) => {
                for (i, want) in case.outputs.iter().enumerate() {
                    let Some(want) = want else { continue };
                    if let Some(d) = difference(&got[&format!("y{i}")], want) {
                        failures.push(format!("{}: output {i}: {d}", case.label));
                    }
                }
            }
        }
    }
    report(failures);
}

#[test]
fn inference_equals_the_oracle() {
    let mut failures = vec![];
    for case in cases() {
        let (graph, node) = case.with_constants(&case.inputs);
        match infer_node(&graph, &node, "case") {
            Err(e) => failures.push(format!("{}: {e}", case.label)),
            Ok(types) => {
                for (i, want) in case.outputs.iter().enumerate() {
                    let Some(mut want) = want.as_ref().map(TensorType::of) else { continue };
                    for axis in counted(&case, i) {
                        want.dims.iter_mut().for_each(|dims| dims[axis] = Dim::Unknown);
                    }
                    if types.get(i) != Some(&want) {
                        failures.push(format!("{}: output {i} is {:?} instead of {want}", case.label, types.get(i)));
                    }
                }
            }
        }
    }
    report(failures);
}

/// With operands that are not constants and whose extents are named, unknown, or not even counted, inference must
/// still succeed and may leave out but never contradict.
#[test]
fn inference_of_vague_types_does_not_contradict() {
    let vague: [Vagueness; 4] = [
        |_, t| TensorType::of(t).dims,
        |i, t| Some((0..t.shape().len()).map(|d| Dim::from(format!("x{i}d{d}").as_str())).collect()),
        |_, t| Some(vec![Dim::Unknown; t.shape().len()]),
        |_, _| None,
    ];
    let mut failures = vec![];
    for case in cases() {
        for (variant, dims) in vague.iter().enumerate() {
            let mut graph = Graph::new("case");
            let mut node = case.node.clone();
            for (i, input) in case.inputs.iter().enumerate() {
                let ty = |t: &Tensor| TensorType { dtype: t.dtype(), dims: dims(i, t) };
                node.inputs.push(input.as_ref().map(|t| graph.add_input(format!("x{i}"), ty(t))));
            }
            for output in &case.outputs {
                node.outputs.push(output.as_ref().map(|_| graph.add_value("y", None)));
            }
            match infer_node(&graph, &node, "case") {
                Err(e) => failures.push(format!("{} (variant {variant}): {e}", case.label)),
                Ok(types) => {
                    for (ty, want) in types.iter().zip(&case.outputs) {
                        let Some(want) = want else { continue };
                        let fits = ty.dtype == want.dtype()
                            && ty.dims.as_ref().is_none_or(|dims| {
                                dims.len() == want.shape().len()
                                    && dims.iter().zip(want.shape()).all(|(d, &n)| d.known().is_none_or(|k| k == n))
                            });
                        if !fits {
                            let want = TensorType::of(want);
                            failures.push(format!("{} (variant {variant}): {ty} contradicts {want}", case.label));
                        }
                    }
                }
            }
        }
    }
    report(failures);
}

/// Operands of another dtype, rank, extent or none at all must never panic.
#[test]
fn wrong_operands_give_errors_not_panics() {
    let wrong = [
        None,
        Some(Tensor::bools([], &[true]).expect("tensor")),
        Some(Tensor::new([2], vec![0i64, -3]).expect("tensor")),
        Some(Tensor::new([1, 1], vec![i64::MIN]).expect("tensor")),
        Some(Tensor::new([0], Vec::<f32>::new()).expect("tensor")),
        Some(Tensor::new([], vec![f32::NAN]).expect("tensor")),
        Some(Tensor::new([1, 2, 3, 1], vec![-1.5f32; 6]).expect("tensor")),
        Some(Tensor::new([1, 1, 1, 1, 1, 2], vec![7u8; 2]).expect("tensor")),
    ];
    let mut failures = BTreeSet::new();
    for case in cases() {
        for i in 0..case.inputs.len() {
            for replacement in &wrong {
                let mut inputs = case.inputs.clone();
                inputs[i] = replacement.clone();
                let (graph, node) = case.with_constants(&inputs);
                let run = || (infer_node(&graph, &node, "case").is_ok(), graph.evaluate(&BTreeMap::new()).is_ok());
                if catch_unwind(AssertUnwindSafe(run)).is_err() {
                    let shown = replacement.as_ref().map_or("nothing".into(), |t| TensorType::of(t).to_string());
                    failures.insert(format!("{}: panics with {shown} as input {i}", case.label));
                }
            }
        }
    }
    report(failures.into_iter().collect());
}

/// Attributes of another kind, and numbers beyond all reason in place of those that an operator takes.
fn wrong_attributes(attr: &Attr) -> Vec<Attr> {
    let numbers = [0, -1, 3, 40, i64::from(i32::MAX), i64::MAX, i64::MIN];
    match attr {
        Attr::Int(_) => numbers.into_iter().map(Attr::Int).chain([Attr::Float(0.5)]).collect(),
        Attr::Float(_) => [0.0, -1.0, 1e30, f32::NAN, f32::INFINITY].into_iter().map(Attr::Float).collect(),
        Attr::Ints(list) => {
            let each = |n: i64| Attr::Ints(vec![n; list.len()]);
            let longer = Attr::Ints([&list[..], &[1]].concat());
            numbers.into_iter().map(each).chain([longer, Attr::Ints(vec![]), Attr::Int(1)]).collect()
        }
        Attr::Str(_) => vec!["".into(), "NOTHING".into(), Attr::Int(1)],
        _ => vec![Attr::Int(1), Attr::Strs(vec![])],
    }
}

#[test]
fn wrong_attributes_give_errors_not_panics() {
    let mut failures = BTreeSet::new();
    for case in cases() {
        for (name, attr) in &case.node.attrs {
            for wrong in wrong_attributes(attr) {
                let (graph, mut node) = case.with_constants(&case.inputs);
                node.attrs.insert(name.clone(), wrong.clone());
                let mut changed = graph.clone();
                let id = changed.node_ids()[0];
                changed.node_mut(id).attrs.insert(name.clone(), wrong.clone());
                let run = || (infer_node(&graph, &node, "case").is_ok(), changed.evaluate(&BTreeMap::new()).is_ok());
                if catch_unwind(AssertUnwindSafe(run)).is_err() {
                    failures.insert(format!("{}: panics with {name} = {wrong:?}", case.label));
                }
            }
        }
    }
    report(failures.into_iter().collect());
}

#[test]
fn every_operator_has_a_case() {
    let covered: BTreeSet<(String, String)> = cases().into_iter().map(|c| (c.node.domain, c.node.op)).collect();
    let has =
        |o: &&ops::OpSpec| WITH_GRAPHS.contains(&o.name) || covered.contains(&(o.domain.to_owned(), o.name.to_owned()));
    report(ops::all().filter(|o| !has(o)).map(|o| format!("{} has no case", o.name)).collect());
}

#[test]
fn integer_division_by_zero_is_an_error() {
    for op in ["Div", "Mod"] {
        let mut graph = Graph::new("zero");
        let a = graph.add_initializer("a", Tensor::scalar(7i64));
        let b = graph.add_initializer("b", Tensor::scalar(0i64));
        let y = graph.add_value("y", None);
        graph.add_node(Node::new(op, &[a, b], &[y]));
        graph.outputs.push(y);
        let error = graph.evaluate(&BTreeMap::new()).expect_err("no quotient").to_string();
        assert!(error.contains("division by zero"), "{error}");
    }
}

/// Forms that have no composition: the operator, and what the error says.
const NOT_COMPOSED: [(&str, &str); 6] = [
    ("DFT", "onesided"),
    ("GRU", "activation"),
    ("LSTM", "activation"),
    ("RNN", "activation"),
    ("RoiAlign", "mode 'max'"),
    ("RoiAlign", "sampling_ratio 0"),
];

/// With an output shape the composition counts indices in the smaller tensor, as the operator's node test does; the oracle here
/// counts them in the result.
fn counts_otherwise(case: &Case) -> bool {
    case.node.op == "MaxUnpool" && case.inputs.len() == 3
}

#[test]
fn compositions_equal_the_oracle() {
    let (mut failures, mut composed) = (vec![], 0);
    for case in cases().into_iter().filter(|c| c.node.domain.is_empty() && COMPOSITES.contains(&&*c.node.op)) {
        if counts_otherwise(&case) {
            continue;
        }
        let cx = Cx::new("composed", DType::F32);
        let operands: Vec<_> = case.inputs.iter().map(|t| t.clone().map(|t| cx.constant(t))).collect();
        let mut node = case.node.clone();
        node.outputs = vec![None; case.outputs.len()];
        let results = compose(&cx, &node, &operands).expect("a composite");
        for (i, result) in results.iter().enumerate().filter(|(i, _)| case.outputs[*i].is_some()) {
            cx.output(&format!("y{i}"), *result);
        }
        match cx.finish().and_then(|graph| graph.evaluate(&BTreeMap::new())) {
            Err(e) if NOT_COMPOSED.iter().any(|(op, why)| *op == node.op && e.to_string().contains(why)) => {}
            Err(e) => failures.push(format!("{}: {e}", case.label)),
            Ok(got) => {
                composed += 1;
                for (i, want) in case.outputs.iter().enumerate().filter_map(|(i, want)| Some((i, want.as_ref()?))) {
                    if let Some(d) = difference(&got[&format!("y{i}")], want) {
                        failures.push(format!("{}: output {i}: {d}", case.label));
                    }
                }
            }
        }
    }
    assert!(composed > 100, "only {composed} cases were composed");
    report(failures);
}
