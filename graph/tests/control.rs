//! If, Loop and Scan: graphs with bodies against ONNX Runtime's answers (`tests/golden/ops_eval/control.json`, which
//! `make_control.py` beside it wrote), the types of their results, and what is refused.

mod common;

use common::{folder, list, tensor};
use limbeck_graph::{Attr, Capture, Cx, Graph, Node, TensorType};
use limbeck_tensor::{DType, Tensor};
use serde_json::Value as Json;
use std::collections::BTreeMap;

fn read(name: &str) -> Graph {
    let mut graph = Graph::read(folder().join(format!("control/{name}.onnx"))).expect("model");
    graph.canonicalise().expect("canonical form");
    graph
}

fn tensors(json: &Json) -> BTreeMap<String, Tensor> {
    json.as_object().expect("tensors by name").iter().map(|(name, t)| (name.clone(), tensor(t))).collect()
}

#[test]
fn bodies_compute_what_onnx_runtime_does() {
    let file = std::fs::read(folder().join("control.json")).expect("file");
    let json: Json = serde_json::from_slice(&file).expect("JSON");
    assert!(list(&json).len() >= 7);
    for case in list(&json) {
        let name = case["model"].as_str().expect("name");
        let got = read(name).evaluate(&tensors(&case["inputs"])).unwrap_or_else(|e| panic!("{name}: {e}"));
        for (output, want) in tensors(&case["outputs"]) {
            let got = &got[&output];
            assert_eq!(TensorType::of(got), TensorType::of(&want), "{name}: {output}");
            let pairs = got.to_f64_vec().expect("floats").into_iter().zip(want.to_f64_vec().expect("floats"));
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-5, "{name}: {output} differs by {worst}");
        }
    }
}

#[test]
fn types_are_those_of_every_branch_and_iteration() {
    for (name, output, want) in [
        ("branches", "y", "float32[2, ?]"),
        ("power", "y", "float32[rows, 2]"),
        ("power", "all", "float32[?, rows, 2]"),
        ("growing", "y", "float32[?, 2]"),
        ("nested", "y", "float32[rows, t]"),
        ("scans", "h", "float32[n]"),
        ("scans", "all", "float32[t, n]"),
        ("scans", "parts", "float32[n, t]"),
    ] {
        let mut graph = read(name);
        let id = graph.find(output).expect("output");
        graph.set_ty(id, None);
        graph.infer_types().unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(graph.ty(id).map(ToString::to_string).as_deref(), Some(want), "{name}: {output}");
    }
}

/// `If(c) then op(x) else x`, with `x` `[n, 5]`.
fn chosen(op: &str, attrs: &[(&str, Attr)]) -> Graph {
    let mut graph = Graph::new("choice");
    let c = graph.add_input("c", TensorType::new(DType::Bool, &[]));
    let x = graph.add_input("x", TensorType::with_dims(DType::F32, vec!["n".into(), 5.into()]));
    let branch = |op: &str, attrs: &[(&str, Attr)]| {
        let mut branch = Graph::new("branch");
        branch.meta = Default::default();
        let inner = branch.add_value("inner", None);
        let y = branch.add_value("result", None);
        branch.captures.push(Capture { inner, outer: x });
        let node = attrs.iter().fold(Node::new(op, &[inner], &[y]), |n, (name, v)| n.with(name, v.clone()));
        branch.add_node(node);
        branch.outputs.push(y);
        Attr::Graph(Box::new(branch))
    };
    let y = graph.add_value("y", None);
    let node = Node::new("If", &[c], &[y]).with("then_branch", branch(op, attrs));
    graph.add_node(node.with("else_branch", branch("Identity", &[])));
    graph.outputs.push(y);
    graph
}

fn type_of_y(mut graph: Graph) -> Option<String> {
    graph.infer_types().expect("types");
    let y = graph.find("y").expect("y");
    graph.ty(y).map(ToString::to_string)
}

#[test]
fn a_branch_that_cannot_be_taken_says_nothing() {
    assert_eq!(type_of_y(chosen("Relu", &[])).as_deref(), Some("float32[n, 5]"));
    assert_eq!(type_of_y(chosen("Transpose", &[])).as_deref(), Some("float32[?, ?]"));
    let impossible = [("perm", Attr::Ints(vec![0, 1, 2]))];
    assert_eq!(type_of_y(chosen("Transpose", &impossible)).as_deref(), Some("float32[n, 5]"));
    // Nothing is known of what an unknown operator gives.
    assert_eq!(type_of_y(chosen("SequenceConstruct", &[])), None);
}

#[test]
fn loops_without_end_and_bodies_that_do_not_fit_are_errors() {
    let model = |inputs: &[DType]| {
        let cx = Cx::new("body", DType::F32);
        let inputs: Vec<_> = inputs.iter().map(|&dtype| cx.input("x", dtype, &[])).collect();
        cx.output("on", inputs[inputs.len() - 1].identity());
        let mut node = Node::new("Loop", &[], &[]).with("body", Attr::Graph(Box::new(cx.finish().expect("body"))));
        node.inputs = vec![None, None];
        let mut graph = Graph::new("loop");
        graph.add_node(node);
        graph
    };
    let error = model(&[DType::I64, DType::Bool]).evaluate(&BTreeMap::new()).expect_err("endless").to_string();
    assert!(error.contains("Loop") && error.contains("does not end within"), "{error}");
    let error = model(&[DType::Bool]).infer_types().expect_err("one input").to_string();
    assert!(error.contains("has 1 inputs, 2 are given"), "{error}");
}
