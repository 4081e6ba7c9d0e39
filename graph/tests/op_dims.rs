//! Inference of named dims against ONNX's own: single nodes whose operands have names for extents, and the types that
//! `onnx.shape_inference` gives their results (`tests/golden/ops_eval/dims.json`, which `make_dims.py` beside it wrote).

mod common;

use common::{attr, dtype, folder, list, tensor};
use limbeck_graph::{Dim, Graph, Node, TensorType, infer_node};
use serde_json::Value as Json;

/// Results (operator and number of the output) of which ONNX knows less than Limbeck, or what is wrong: Limbeck's type,
/// ONNX's, and why.
const DIFFERENT: &[(&str, &str, &str, &str)] = &[
    ("Conv 0", "float32[n, 6, h, w]", "float32[n, 6, ?, ?]", KEPT),
    ("AveragePool 0", "float32[n, 4, h, 8]", "float32[n, 4, ?, 8]", KEPT),
    ("Resize 0", "float32[n, 3, 16, 4]", "float32[?, 3, 16, 4]", UNTOUCHED),
    ("Resize 0", "float32[n, c, ?, ?]", "float32[?, ?, ?, ?]", UNTOUCHED),
    ("Resize 0", "float32[n, 3, 7, 8]", "float32[?, 3, 7, 8]", UNTOUCHED),
    ("Resize 0", "float32[n, 3, 4, 5]", "float32[?, 3, 4, 5]", UNTOUCHED),
    ("Attention 1", "float32[n, 2, t, 4]", "nothing", CACHE),
    ("Attention 2", "float32[n, 2, t, 6]", "nothing", CACHE),
    ("Attention 2", "float32[n, 2, t, 3]", "nothing", CACHE),
    ("Attention 1", "float32[n, 2, ?, 4]", "float32[...]", CACHE),
    ("Attention 2", "float32[n, 2, ?, 6]", "float32[...]", CACHE),
    ("Attention 3", "float32[n, 2, s, t]", "float32[n, 2, s, 0]", KEYS),
    ("Attention 3", "float32[n, 2, 3, ?]", "float32[n, 2, 3, 3]", KEYS),
    ("STFT 0", "float32[n, 3, 5, 2]", "float32[?, 3, 8, 2]", "onesided is the default, and the batch stays"),
    ("Unique 2", "int64[t]", "int64[?]", "each slice has its number"),
    ("Col2Im 0", "float32[n, 2, 4, 4]", "float32[?, 2, 4, 4]", "the batch stays"),
    ("Col2Im 0", "float32[n, ?, 4, 4]", "float32[?, ?, 4, 4]", "the batch stays"),
];

const KEPT: &str = "a window that its padding makes up for keeps the extent";
const UNTOUCHED: &str = "axes that are not resized, or by 1, keep their names";
const CACHE: &str = "keys and values come out as they went in, behind the cache";
const KEYS: &str = "a query has a score for each key, those of the cache included";

fn dims(json: &Json) -> Option<Vec<Dim>> {
    let dim = |d: &Json| match (d.as_u64(), d.as_str()) {
        (Some(n), _) => Dim::Known(n as usize),
        (_, Some(name)) => Dim::from(name),
        _ => Dim::Unknown,
    };
    json.as_array().map(|dims| dims.iter().map(dim).collect())
}

fn ty(json: &Json) -> Option<TensorType> {
    (!json.is_null()).then(|| TensorType { dtype: dtype(&json["type"]), dims: dims(&json["dims"]) })
}

/// The types that Limbeck infers for the node of a case.
fn inferred(case: &Json) -> Result<Vec<TensorType>, String> {
    let mut graph = Graph::new("case");
    let mut node = Node::new(case["op"].as_str().expect("op"), &[], &[]);
    for (name, value) in case["attrs"].as_object().expect("attrs") {
        node.attrs.insert(name.clone(), attr(value));
    }
    for input in list(&case["inputs"]) {
        node.inputs.push(match ty_or_constant(input) {
            None => None,
            Some(Ok(ty)) => Some(graph.add_input("x", ty)),
            Some(Err(tensor)) => Some(graph.add_initializer("x", tensor)),
        });
    }
    node.outputs = list(&case["outputs"]).iter().map(|_| Some(graph.add_value("y", None))).collect();
    infer_node(&graph, &node, "case").map_err(|e| e.to_string())
}

fn ty_or_constant(json: &Json) -> Option<Result<TensorType, limbeck_tensor::Tensor>> {
    match json.get("type") {
        Some(_) => ty(json).map(Ok),
        None => (!json.is_null()).then(|| Err(tensor(json))),
    }
}

#[test]
fn named_dims_are_those_of_onnx() {
    let file = std::fs::read(folder().join("dims.json")).expect("file");
    let json: Json = serde_json::from_slice(&file).expect("JSON");
    let (mut failures, mut used) = (vec![], vec![false; DIFFERENT.len()]);
    for case in list(&json) {
        let op = case["op"].as_str().expect("op");
        let types = match inferred(case) {
            Ok(types) => types,
            Err(e) => {
                failures.push(format!("{op} {}: {e}", case["attrs"]));
                continue;
            }
        };
        for (i, want) in list(&case["outputs"]).iter().enumerate() {
            let show = |ty: Option<&TensorType>| ty.map_or("nothing".to_owned(), ToString::to_string);
            let (ours, theirs) = (show(types.get(i)), show(ty(want).as_ref()));
            if ours == theirs {
                continue;
            }
            let label = format!("{op} {i}");
            match DIFFERENT.iter().position(|d| (d.0, d.1, d.2) == (&*label, &*ours, &*theirs)) {
                Some(at) => used[at] = true,
                None => failures.push(format!("(\"{label}\", \"{ours}\", \"{theirs}\", \"\"), // {}", case["attrs"])),
            }
        }
    }
    let unused = DIFFERENT.iter().zip(&used).filter(|(_, used)| !**used);
    failures.extend(unused.map(|(d, _)| format!("{d:?} is listed and no case differs so")));
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
