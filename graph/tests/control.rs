//! If, Loop and Scan: graphs with bodies against ONNX Runtime's answers (`tests/golden/ops_eval/control.json`, which
//! `make_control.py` beside it wrote), the types of their results, and what is refused.

mod common;

use common::{folder, list, tensor};
use limbeck_graph::{Attr, Capture, Cx, Form, Graph, ImportOptions, Node, TensorType};
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

/// A Loop of `trips` iterations of `h <- w h` on `h` `[2]`, whose body holds a Scan of `h <- h v` over `x` `[3, 2]`; `w` and `v`
/// are weights of the bodies. Without a condition, or with one that the data decide.
fn nested(trips: i64, open: bool) -> Graph {
    let cx = Cx::new("nested", DType::F32);
    let (h, x) = (cx.input("h", DType::F32, &[2]), cx.input("x", DType::F32, &[3, 2]));
    let row = || TensorType::new(DType::F32, &[2]);
    let loop_body = cx.body("loop");
    loop_body.operand("i", TensorType::new(DType::I64, &[]));
    let go = loop_body.operand("go", TensorType::new(DType::Bool, &[]));
    let state = loop_body.operand("h", row());
    let scan_body = loop_body.body("scan");
    let [inner, slice] = ["h", "x"].map(|name| scan_body.operand(name, row()));
    let v = scan_body.initializer("v", Tensor::new([2], vec![0.5f32, -2.0]).expect("v"));
    scan_body.result(inner * v + slice);
    let scan_body = Attr::from(scan_body.finish_body().expect("body"));
    let operands = [Some(state), Some(loop_body.capture(&cx, x.id()))];
    let scanned = loop_body.op_n("", "Scan", &operands, &[("body", scan_body), ("num_scan_inputs", 1i64.into())], 1);
    let w = loop_body.initializer("w", Tensor::new([2], vec![1.5f32, 0.5]).expect("w"));
    let next = scanned[0] * w;
    loop_body.result(if open { next.sum(&[]).less(loop_body.scalar(10.0)) } else { go });
    loop_body.result(next);
    loop_body.result(next * 2.0);
    let body = Attr::from(loop_body.finish_body().expect("body"));
    let y = cx.op_n("", "Loop", &[Some(cx.constant(Tensor::scalar(trips))), None, Some(h)], &[("body", body)], 2);
    cx.output("y", y[0]);
    cx.output("all", y[1]);
    cx.finish().expect("graph")
}

fn evaluated(graph: &Graph) -> BTreeMap<String, Tensor> {
    let feeds = [("h", vec![2], vec![1f32, -1.0]), ("x", vec![3, 2], vec![0.5, 1.0, -0.5, 2.0, 0.0, 1.0])];
    let feeds = feeds.map(|(name, shape, v)| (name.to_owned(), Tensor::new(shape, v).expect("feed")));
    graph.evaluate(&feeds.into()).expect("values")
}

#[test]
fn the_number_of_iterations_is_known_where_nothing_ends_them() {
    let ty = |graph: &Graph, name| graph.find(name).and_then(|id| graph.ty(id)).map(ToString::to_string);
    for (open, want) in [(false, "float32[4, 2]"), (true, "float32[?, 2]")] {
        assert_eq!(ty(&nested(4, open), "all").as_deref(), Some(want));
    }
    assert_eq!(ty(&nested(i64::MAX, true), "all").as_deref(), Some("float32[?, 2]"));
}

#[test]
fn graphs_with_bodies_are_lowered_instantiated_and_written() {
    for open in [false, true] {
        let graph = nested(4, open);
        let want = evaluated(&graph);
        for form in [Form::Portable, Form::Fused] {
            let lowered = graph.lowered(form).expect("lowered");
            let read = Graph::from_bytes(lowered.to_bytes().expect("bytes"), None).expect("read");
            assert_eq!(evaluated(&read), want);
        }
        let cx = Cx::new("around", DType::F32);
        let inputs = [cx.input("h", DType::F32, &[2]), cx.input("x", DType::F32, &[3, 2])];
        cx.set_scope("inner/");
        let map = cx.inline(&graph, &graph.inputs.iter().copied().zip(inputs).collect()).expect("instance");
        cx.output("y", map[&graph.outputs[0]]);
        let around = cx.finish().expect("graph");
        assert_eq!(evaluated(&around)["y"], want["y"]);
    }
}

#[test]
fn import_makes_weights_of_bodies_weights_of_the_graph() {
    let mut graph = nested(4, true);
    let want = evaluated(&graph);
    assert_eq!(graph.initializers().filter(|(id, _)| !graph.is_literal(*id)).count(), 0);
    graph.import(&ImportOptions::default()).expect("imported");
    let weights = graph.initializers().map(|(id, _)| id).filter(|&id| !graph.is_literal(id));
    let mut names: Vec<&str> = weights.map(|id| graph.name_of(id)).collect();
    names.sort_unstable();
    assert_eq!(names, ["loop/scan/v", "loop/w"]);
    let read = Graph::from_bytes(graph.to_bytes().expect("bytes"), None).expect("read");
    assert_eq!(evaluated(&read), want);
}

/// Equal nodes become one, and a body that captured the one that goes reads the other.
#[test]
fn captures_follow_values_that_are_merged() {
    let cx = Cx::new("merged", DType::F32);
    let (h, x) = (cx.input("h", DType::F32, &[2]), cx.input("x", DType::F32, &[3, 2]));
    let (kept, same) = (h.sin(), h.sin());
    let body = cx.body("scan");
    let [inner, slice] = ["h", "x"].map(|name| body.operand(name, TensorType::new(DType::F32, &[2])));
    body.result(inner * body.capture(&cx, same.id()) + slice);
    let body = Attr::from(body.finish_body().expect("body"));
    let attrs = [("body", body), ("num_scan_inputs", 1i64.into())];
    cx.output("y", cx.op_n("", "Scan", &[Some(kept), Some(x)], &attrs, 1)[0]);
    let graph = cx.finish().expect("graph");
    let lowered = graph.lowered(Form::Portable).expect("lowered");
    assert_eq!(lowered.nodes().filter(|(_, n)| n.op == "Sin").count(), 1);
    lowered.verify().expect("sound");
    assert_eq!(evaluated(&lowered), evaluated(&graph));
}
