//! Old operator forms become today's without a change of value: the outputs of ONNX Runtime on the old form
//! (`models/old.*.npy`, made by `models/make.py`) are the reference.

use limbeck_graph::{Cx, Graph, Node, OPSET, TensorType, ValueId};
use limbeck_tensor::{DType, Tensor, io::read_npy};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models")
}

fn npy(name: &str) -> Tensor {
    read_npy(&models().join(name)).unwrap()
}

fn old_agrees(graph: &Graph) {
    let out = graph.evaluate(&BTreeMap::from([("x".to_owned(), npy("old.x.npy"))])).unwrap();
    let (y, expected) = (out["y"].to_f64_vec().unwrap(), npy("old.y.npy").to_f64_vec().unwrap());
    assert_eq!(y.len(), expected.len());
    let worst = y.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-6, "{worst}");
    assert_eq!(out["at"].to_i64_vec().unwrap(), npy("old.at.npy").to_i64_vec().unwrap());
}

#[test]
fn opset_9_forms_keep_their_values() {
    let mut g = Graph::read(models().join("old.onnx")).unwrap();
    g.canonicalise().unwrap();
    assert_eq!((g.opset(""), g.meta.ir_version), (Some(OPSET), 10));
    assert!(!g.nodes().any(|(_, n)| n.op == "Constant"));
    old_agrees(&g);
    let mut again = Graph::from_bytes(g.to_bytes().unwrap(), None).unwrap();
    old_agrees(&again);
    // A second pass finds nothing to do.
    let nodes = again.node_count();
    again.canonicalise().unwrap();
    assert_eq!(again.node_count(), nodes);
}

#[test]
fn bound_and_folded_graphs_keep_their_values() {
    let mut g = Graph::read(models().join("old.onnx")).unwrap();
    g.canonicalise().unwrap();
    let unknown = g.bind_dims(&[("batch", 2)]).unwrap_err().to_string();
    assert!(unknown.contains("'batch'") && unknown.contains("it has n"), "{unknown}");
    g.bind_dims(&[("n", 2)]).unwrap();
    assert!(g.nodes().any(|(_, n)| n.op == "Shape"), "the flattened softmax asks for its shape");
    assert_eq!(g.fold_constants().unwrap(), 1);
    assert!(!g.nodes().any(|(_, n)| n.op == "Shape"));
    for output in g.nodes().flat_map(|(_, n)| n.outputs.iter().flatten()) {
        g.shape(*output).unwrap();
    }
    old_agrees(&g);
}

#[test]
fn upsample_becomes_resize() {
    let mut g = Graph::read(models().join("upsample.onnx")).unwrap();
    g.canonicalise().unwrap();
    let (_, node) = g.nodes().next().unwrap();
    assert_eq!((node.op.as_str(), node.str("mode")), ("Resize", Some("linear")));
    assert_eq!(node.str("coordinate_transformation_mode"), Some("asymmetric"));
    assert_eq!((node.inputs.len(), node.input(1)), (3, None));
}

#[test]
fn group_normalization_of_opset_18_keeps_its_values() {
    let mut g = Graph::new("g");
    let x = g.add_input("x", TensorType::new(DType::F64, &[1, 4, 2]));
    let scale = g.add_initializer("scale", Tensor::new([2], vec![2.0f64, 3.0]).unwrap());
    let bias = g.add_initializer("bias", Tensor::new([2], vec![0.5f64, -0.5]).unwrap());
    let y = g.add_value("y", None);
    let node = Node::new("GroupNormalization", &[x, scale, bias], &[y]);
    g.add_node(node.with("num_groups", 2i64).with("epsilon", 0.0f32));
    g.outputs.push(y);
    g.meta.opsets = vec![(String::new(), 18)];
    g.canonicalise().unwrap();
    assert_eq!(g.opset(""), Some(21), "the form with an entry a channel");
    // Group 0 holds 1, 3, 5, 7 (mean 4, variance 5), group 1 holds 0, 0, 2, 2 (mean 1, variance 1).
    let x = Tensor::new([1, 4, 2], vec![1.0f64, 3.0, 5.0, 7.0, 0.0, 0.0, 2.0, 2.0]).unwrap();
    let y = g.evaluate(&BTreeMap::from([("x".to_owned(), x)])).unwrap()["y"].to_f64_vec().unwrap();
    let r = 5f64.sqrt();
    let expected = [-6.0 / r + 0.5, -2.0 / r + 0.5, 2.0 / r + 0.5, 6.0 / r + 0.5, -3.5, -3.5, 2.5, 2.5];
    assert!(y.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{y:?}");
}

#[test]
fn what_has_no_canonical_form_is_named() {
    let refused = |opset: i64, node: fn(ValueId, ValueId, ValueId) -> Node| {
        let mut g = Graph::new("g");
        let x = g.add_input("x", TensorType::new(DType::F32, &[2, 2]));
        let (y, mask) = (g.add_value("y", None), g.add_value("mask", None));
        let node = node(x, y, mask);
        g.outputs.extend(node.outputs.iter().flatten());
        g.add_node(node);
        g.meta.opsets = vec![(String::new(), opset)];
        g.canonicalise().unwrap_err().to_string()
    };
    let error = refused(7, |x, y, _| Node::new("Add", &[x, x], &[y]).with("broadcast", 1i64));
    assert!(error.contains("'y' (Add)") && error.contains("broadcast"), "{error}");
    let error = refused(9, |x, y, mask| Node::new("Dropout", &[x], &[y, mask]));
    assert!(error.contains("'mask'"), "{error}");
    let error = refused(21, |x, y, _| Node::new("QuantizeLinear", &[x, x], &[y]).with("block_size", 32i64));
    assert!(error.contains("blocked"), "{error}");
    assert!(refused(6, |x, y, _| Node::new("Relu", &[x], &[y])).contains("opset 6"));
    assert!(refused(99, |x, y, _| Node::new("Relu", &[x], &[y])).contains("opset 99"));
}

#[test]
fn folding_stops_at_inputs_and_large_results() {
    let cx = Cx::new("g", DType::F32);
    let x = cx.input("x", DType::F32, &[2, 3]);
    let small = cx.floats(&[3], &[1.0, 2.0, 3.0]) * cx.scalar(2.0) + 1.0;
    let large = cx.floats(&[1, 1], &[3.0]).expand(&[512, 512]).sum(&[]);
    cx.output("y", (x * small).sum(&[]) + large);
    let mut g = cx.finish().unwrap();
    let feed = BTreeMap::from([("x".to_owned(), Tensor::new([2, 3], vec![1f32; 6]).unwrap())]);
    let before = g.evaluate(&feed).unwrap();
    assert!(g.fold_constants().unwrap() >= 2);
    let ops: Vec<&str> = g.nodes().map(|(_, n)| n.op.as_str()).collect();
    assert_eq!(ops, ["Expand", "ReduceSum", "Mul", "ReduceSum", "Add"]);
    assert_eq!(g.evaluate(&feed).unwrap(), before);
    assert_eq!(before["y"].to_f64_vec().unwrap(), [2.0 * 15.0 + 3.0 * 512.0 * 512.0]);
}
