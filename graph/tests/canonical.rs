//! Old operator forms become today's without a change of value: the outputs of ONNX Runtime on the old form
//! (`models/old.*.npy`, made by `models/make.py`) are the reference.

use limbeck_graph::{Attr, Cx, Dim, Graph, Node, OPSET, TensorType, ValueId};
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
    assert!(g.nodes().any(|(_, n)| n.op == "Shape"), "the flattened softmax asks for its shape");
    g.bind_dims(&[("n", 2)]).unwrap();
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
    assert!(refused(6, |x, y, _| Node::new("Relu", &[x], &[y])).contains("opset 6"));
    assert!(refused(99, |x, y, _| Node::new("Relu", &[x], &[y])).contains("opset 99"));
}

#[test]
fn what_came_after_the_canonical_opset_keeps_its_own() {
    let mut g = Graph::new("g");
    let (x, scale) = (TensorType::new(DType::F32, &[4, 4]), TensorType::new(DType::F32, &[2, 4]));
    let (x, scale) = (g.add_input("x", x), g.add_input("scale", scale));
    let y = g.add_value("y", None);
    g.outputs.push(y);
    g.add_node(Node::new("QuantizeLinear", &[x, scale], &[y]).with("block_size", 2i64).with("axis", 0i64));
    g.meta.opsets = vec![(String::new(), 24)];
    g.canonicalise().unwrap();
    assert_eq!(g.opset(""), Some(21));
    assert_eq!(g.nodes().next().unwrap().1.int("block_size"), Some(2));
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

/// y = relu(x * (w * 2)) flattened as torch writes `x.view(x.size(0), -1)`, then a product with a matrix.
fn viewed(rows: Dim) -> Graph {
    let mut g = Graph::new("view");
    let x = g.add_input("x", TensorType::with_dims(DType::F32, vec![rows, 2.into(), 3.into()]));
    let w = g.add_initializer("w", Tensor::new([3], vec![1f32, 2.0, 3.0]).unwrap());
    let two = g.add_initializer("two", Tensor::scalar(2f32));
    let matrix = g.add_initializer("matrix", Tensor::new([6, 1], vec![1f32; 6]).unwrap());
    let mut op = |op: &str, inputs: &[ValueId], attr: Option<(&str, Attr)>| {
        let output = g.add_value(op.to_lowercase(), None);
        let node = Node::new(op, inputs, &[output]);
        g.add_node(attr.into_iter().fold(node, |node, (name, value)| node.with(name, value)));
        output
    };
    let doubled = op("Mul", &[w, two], None);
    let scaled = op("Mul", &[x, doubled], None);
    let shape = op("Shape", &[x], None);
    let first = op("Constant", &[], Some(("value", Tensor::scalar(0i64).into())));
    let size = op("Gather", &[shape, first], None);
    let axes = op("Constant", &[], Some(("value_ints", vec![0i64].into())));
    let size = op("Unsqueeze", &[size, axes], None);
    let rest = op("Constant", &[], Some(("value_ints", vec![-1i64].into())));
    let target = op("Concat", &[size, rest], Some(("axis", 0i64.into())));
    let flat = op("Reshape", &[scaled, target], None);
    let y = op("MatMul", &[flat, matrix], None);
    g.outputs.push(y);
    g
}

#[test]
fn shapes_computed_from_dims_become_known_and_weights_stay() {
    let mut named = viewed("batch".into());
    named.canonicalise().unwrap();
    let error = named.shape(named.outputs[0]).unwrap_err().to_string();
    assert!(error.contains("bind_dims") && error.contains("fold_shapes"), "{error}");
    named.bind_dims(&[("batch", 2)]).unwrap();
    let mut known = viewed(2.into());
    known.canonicalise().unwrap();
    assert_eq!(known.fold_shapes().unwrap(), 4);
    let feed = BTreeMap::from([("x".to_owned(), Tensor::new([2, 2, 3], vec![1f32; 12]).unwrap())]);
    for g in [named, known] {
        let ops: Vec<&str> = g.nodes().map(|(_, n)| n.op.as_str()).collect();
        assert_eq!(ops, ["Mul", "Mul", "Reshape", "MatMul"], "weights are not folded");
        assert_eq!(g.shape(g.outputs[0]).unwrap(), [2, 1]);
        // The weights, and the one shape that is left of its expression.
        assert_eq!(g.initializers().filter(|(id, _)| g.is_literal(*id)).count(), 1);
        let y = g.evaluate(&feed).unwrap()[g.name_of(g.outputs[0])].clone();
        assert_eq!(y, Tensor::new([2, 1], vec![24f32, 24.0]).unwrap());
    }
}

#[test]
fn folding_needs_the_canonical_forms() {
    let mut g = viewed(2.into());
    g.meta.opsets = vec![(String::new(), 13)];
    assert!(g.fold_shapes().unwrap_err().to_string().contains("canonicalise"));
    assert!(g.fold_constants().unwrap_err().to_string().contains("canonicalise"));
    let mut g = viewed("batch".into());
    g.meta.opsets = vec![(String::new(), 13)];
    g.bind_dims(&[("batch", 2)]).unwrap();
    assert!(g.nodes().any(|(_, n)| n.op == "Shape"), "dims of other forms are only bound");
}

#[test]
fn inference_adds_to_what_is_declared_and_names_contradictions() {
    let typed = |declared: Option<TensorType>| {
        let mut g = Graph::new("g");
        let x = g.add_input("x", TensorType::with_dims(DType::F32, vec!["batch".into(), 3.into()]));
        let (u, y) = (g.add_value("u", None), g.add_value("y", declared));
        g.add_node(Node::new("NonZero", &[x], &[u]));
        g.add_node(Node::new("Relu", &[x], &[y]));
        g.outputs.extend([u, y]);
        g
    };
    let dims = |first: Dim| Some(TensorType::with_dims(DType::F32, vec![first, Dim::Unknown]));
    for (declared, want) in [
        (dims(4.into()), "float32[4, 3]"),
        (dims("n".into()), "float32[batch, 3]"),
        (dims(Dim::Unknown), "float32[batch, 3]"),
    ] {
        let mut g = typed(declared);
        let u = g.find("u").unwrap();
        g.set_ty(u, Some(TensorType::with_dims(DType::I64, vec![Dim::Unknown, "found".into()])));
        g.infer_types().unwrap();
        assert_eq!(g.ty(g.find("y").unwrap()).unwrap().to_string(), want);
        assert_eq!(g.ty(u).unwrap().to_string(), "int64[2, found]", "a declared name stays where nothing is inferred");
    }
    for declared in
        [TensorType::new(DType::F32, &[2, 4]), TensorType::new(DType::F32, &[2]), TensorType::new(DType::F64, &[2, 3])]
    {
        let error = typed(Some(declared.clone())).infer_types().unwrap_err().to_string();
        assert!(
            error.contains("'y'") && error.contains(&declared.to_string()) && error.contains("float32[batch, 3]"),
            "{error}"
        );
    }
}

/// Powers of two as scales, in blocks as microscaling formats have them: exact there and back. The result's type is then to
/// be stated.
#[test]
fn scales_may_be_powers_of_two() {
    let model = |output: Option<DType>| {
        let mut g = Graph::new("g");
        g.meta.opsets = vec![(String::new(), 24)];
        let x = g.add_input("x", TensorType::new(DType::F32, &[2, 4]));
        let scale = Tensor::from_f64(DType::F8E8M0, [2, 2], &[0.5, 4.0, 1.0, 0.25]).unwrap();
        let scale = g.add_initializer("scale", scale);
        let (q, y) = (g.add_value("q", None), g.add_value("y", None));
        let node = Node::new("QuantizeLinear", &[x, scale], &[q]).with("block_size", 2i64);
        g.add_node(node.with("output_dtype", i64::from(DType::F4E2M1.to_onnx())));
        let mut node = Node::new("DequantizeLinear", &[q, scale], &[y]).with("block_size", 2i64);
        if let Some(output) = output {
            node = node.with("output_dtype", i64::from(output.to_onnx()));
        }
        g.add_node(node);
        g.outputs.push(y);
        g
    };
    let mut g = model(Some(DType::F32));
    g.canonicalise().unwrap();
    assert_eq!(g.opset(""), Some(24));
    // On the grid of float4e2m1 0, 0.5, 1, 1.5, 2, 3, 4, 6 after division; ties to even, ends saturated.
    let x = vec![1f32, -0.75, 25.0, 9.0, 5.0, 2.5, -0.1, 100.0];
    let back = [1.0, -0.75, 24.0, 8.0, 4.0, 2.0, -0.125, 1.5];
    let fed = [("x".to_owned(), Tensor::new([2, 4], x).unwrap())].into();
    assert_eq!(g.evaluate(&fed).unwrap()["y"].to_f64_vec().unwrap(), back);
    let error = model(None).infer_types().unwrap_err().to_string();
    assert!(error.contains("output_dtype"), "{error}");
}

/// The types that an operator takes came with opsets of their own, which the canonical form has to declare.
#[test]
fn types_newer_than_the_canonical_opset_raise_it() {
    let quantised = |dtype: DType, block: i64| {
        let mut g = Graph::new("g");
        g.meta.opsets = vec![(String::new(), 24)];
        let x = g.add_input("x", TensorType::new(DType::F32, &[2, 4]));
        let scale = g.add_initializer("scale", Tensor::new([2, 2], vec![1f32; 4]).unwrap());
        let one = g.add_initializer("one", Tensor::scalar(1f32));
        let zero =
            g.add_initializer("zero", Tensor::zeros(dtype, if block > 0 { vec![2, 2] } else { vec![] }).unwrap());
        let y = g.add_value("y", None);
        let node = Node::new("QuantizeLinear", &[x, if block > 0 { scale } else { one }, zero], &[y]);
        g.add_node(if block > 0 { node.with("block_size", block) } else { node });
        g.outputs.push(y);
        g.canonicalise().unwrap();
        let ty = g.ty(y).map(ToString::to_string);
        assert_eq!(ty, Some(format!("{dtype}[2, 4]")));
        g.opset("").unwrap()
    };
    assert_eq!(quantised(DType::U8, 0), OPSET);
    assert_eq!(quantised(DType::F8E4M3FN, 0), OPSET);
    assert_eq!([DType::I16, DType::U16, DType::I4, DType::U4].map(|dtype| quantised(dtype, 0)), [21; 4]);
    assert_eq!(quantised(DType::U8, 2), 21);
    assert_eq!(quantised(DType::F4E2M1, 0), 23);
    for (dtype, opset) in [(DType::F8E8M0, 24), (DType::F8E5M2, OPSET)] {
        let mut g = Graph::new("g");
        g.meta.opsets = vec![(String::new(), 24)];
        let x = g.add_input("x", TensorType::new(DType::F32, &[3]));
        let y = g.add_value("y", None);
        let node = Node::new("Cast", &[x], &[y]).with("to", i64::from(dtype.to_onnx())).with("round_mode", "nearest");
        g.add_node(node);
        g.outputs.push(y);
        g.canonicalise().unwrap();
        assert_eq!(g.opset(""), Some(opset), "{dtype}");
        assert_eq!(g.nodes().next().unwrap().1.str("round_mode").is_some(), dtype == DType::F8E8M0);
        let fed = [("x".to_owned(), Tensor::new([3], vec![1f32, 1.4, 1.6]).unwrap())];
        let rounded = if dtype == DType::F8E8M0 { [1.0, 1.0, 2.0] } else { [1.0, 1.5, 1.5] };
        assert_eq!(g.evaluate(&fed.into()).unwrap()["y"].to_f64_vec().unwrap(), rounded);
    }
}
