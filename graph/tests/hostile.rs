//! Graphs that state more than they hold: lengths, kernels and shapes that would not fit into memory are refused
//! by name, in time and memory of the size of the file.

use bytes::Bytes;
use limbeck_graph::{Attr, Cx, Dim, Form, Graph, Node, TensorType, ValueId};
use limbeck_tensor::DType;

const HUGE: usize = 1 << 62;

fn error(mut node: Node, types: &[TensorType]) -> String {
    let mut g = Graph::new("g");
    let inputs: Vec<ValueId> = types.iter().map(|ty| g.add_input("x", ty.clone())).collect();
    let y = g.add_value("y", None);
    (node.inputs, node.outputs) = (inputs.into_iter().map(Some).collect(), vec![Some(y)]);
    g.add_node(node);
    g.outputs.push(y);
    g.canonicalise().unwrap();
    g.infer_types().unwrap_err().to_string()
}

#[test]
fn a_declared_length_is_no_rank() {
    let x = TensorType::new(DType::F32, &[2, 3]);
    let huge = TensorType::new(DType::I64, &[HUGE]);
    for op in ["Reshape", "Expand", "Unsqueeze", "Squeeze", "Slice"] {
        let operands =
            if op == "Slice" { vec![x.clone(), huge.clone(), huge.clone()] } else { vec![x.clone(), huge.clone()] };
        let error = error(Node::new(op, &[], &[]), &operands);
        assert!(error.contains("'y'") && error.contains("at most 64"), "{op}: {error}");
    }
    let error_of_shape = error(Node::new("ConstantOfShape", &[], &[]), &[huge]);
    assert!(error_of_shape.contains("at most 64"), "{error_of_shape}");
}

#[test]
fn ranks_do_not_grow_from_node_to_node() {
    let wide = TensorType::with_dims(DType::F32, vec![Dim::Known(1); 60]);
    let axes = TensorType::new(DType::I64, &[50]);
    let error = error(Node::new("Unsqueeze", &[], &[]), &[wide, axes]);
    assert!(error.contains("110 dims"), "{error}");
}

fn lowering_error(op: &str, shapes: &[(DType, &[usize])], attrs: &[(&str, Attr)]) -> String {
    let cx = Cx::new("g", DType::F32);
    let inputs: Vec<_> = shapes.iter().map(|(dtype, s)| Some(cx.input("x", *dtype, s))).collect();
    let y = cx.op_n("ai.limbeck", op, &inputs, attrs, 1)[0];
    cx.output("y", y);
    cx.finish().unwrap().lowered(Form::Portable).unwrap_err().to_string()
}

#[test]
fn kernels_and_tables_that_cannot_be_lowered_are_named() {
    let ints = |v: &[i64]| Attr::Ints(v.to_vec());
    let (float, max) = (DType::F32, i64::from(i32::MAX));
    let image: (DType, &[usize]) = (float, &[1, 1, 4, 4]);
    let wide = [("kernel_shape", ints(&[max, max])), ("pads", ints(&[max - 4, max - 4, 0, 0]))];
    for op in ["MaxPoolGrad", "ConvGradWeight"] {
        let error = lowering_error(op, &[image, (float, &[1, 1, 1, 1])], &wide);
        assert!(error.contains(op) && error.contains("2147483647"), "{error}");
    }
    let shape = ("input_shape", ints(&[1, 1, 4, 4]));
    let error =
        lowering_error("AveragePoolGrad", &[(float, &[1, 1, 1, 1])], &[wide[0].clone(), wide[1].clone(), shape]);
    assert!(error.contains("2147483647"), "{error}");
    let error = lowering_error("MaxPoolGrad", &[image, (float, &[1, 1, 1, 1])], &[("kernel_shape", ints(&[2, 2]))]);
    assert!(error.contains("[3, 3]") && error.contains("[1, 1]"), "{error}");
    let rows = [("input_shape", ints(&[i64::MAX, 2]))];
    let error = lowering_error("GatherGrad", &[(DType::I64, &[3]), (float, &[3, 2])], &rows);
    assert!(error.contains("GatherGrad") && error.contains("rows"), "{error}");
    let empty = [("input_shape", ints(&[0])), ("kernel_shape", ints(&[1]))];
    lowering_error("ConvGradInput", &[(float, &[1, 1, 1]), (float, &[1, 1, 0])], &empty);
    let error = lowering_error(
        "ConvGradWeight",
        &[(float, &[1, 1 << 40, 4]), (float, &[1, 1, 4])],
        &[("kernel_shape", ints(&[1]))],
    );
    assert!(error.contains("too large"), "{error}");
}

#[test]
fn evaluating_a_pool_does_not_walk_a_kernel_that_is_too_large() {
    let cx = Cx::new("g", DType::F32);
    let max = i64::from(i32::MAX);
    let attrs = [
        ("kernel_shape", Attr::Ints(vec![max])),
        ("pads", Attr::Ints(vec![max, max])),
        ("count_include_pad", 1i64.into()),
    ];
    cx.output("y", cx.op("AveragePool", &[cx.floats(&[1, 1, 1], &[1.0])], &attrs));
    let error = cx.finish().unwrap().evaluate(&Default::default()).unwrap_err().to_string();
    assert!(error.contains("too large"), "{error}");
}

/// A protobuf field that holds bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = if number < 16 { vec![number << 3 | 2] } else { vec![number << 3 | 2 | 128, number >> 4] };
    let mut n = content.len();
    while n > 127 {
        out.push((n & 127) as u8 | 128);
        n >>= 7;
    }
    out.push(n as u8);
    out.extend_from_slice(content);
    out
}

fn import(domain: &str, version: u8) -> Vec<u8> {
    field(8, &[field(1, domain.as_bytes()), vec![0x10, version]].concat())
}

#[test]
fn subgraphs_do_not_copy_the_imports() {
    let imports: Vec<u8> = (0..300).flat_map(|i| import(&format!("domain.{i}"), 1)).collect();
    let graphs: Vec<u8> = (0..300).flat_map(|_| field(11, &field(2, b"g"))).collect();
    let attribute = [field(1, b"bodies"), graphs, vec![0xa0, 1, 10]].concat();
    let node = field(1, &[field(4, b"Many"), field(7, b"domain.0"), field(5, &attribute)].concat());
    let g = Graph::from_bytes(Bytes::from([imports, field(7, &node)].concat()), None).unwrap();
    assert_eq!(g.meta.opsets.len(), 300);
    let subs: Vec<&Graph> = g.nodes().flat_map(|(_, n)| n.subgraphs()).collect();
    assert_eq!(subs.len(), 300);
    assert!(subs.iter().all(|s| s.meta.opsets.is_empty() && s.meta.producer.is_empty()));
}

#[test]
fn imports_that_contradict_each_other_are_refused() {
    let read =
        |imports: &[Vec<u8>]| Graph::from_bytes([imports.concat(), field(7, &field(2, b"g"))].concat().into(), None);
    let error = read(&[import("", 20), import("ai.onnx", 13)]).unwrap_err().to_string();
    assert!(error.contains("'ai.onnx'") && error.contains("20 and 13"), "{error}");
    assert!(read(&[import("", 20), import("ai.onnx", 20), import("x", 1)]).is_ok());
}

#[test]
fn shapes_of_many_dims_are_refused_when_read() {
    let dims = field(2, &field(1, &[0x08, 1]).repeat(65));
    let ty = field(2, &field(1, &[vec![0x08, 1], dims].concat()));
    let info = field(11, &[field(1, b"wide"), ty].concat());
    let error = Graph::from_bytes(field(7, &info).into(), None).unwrap_err().to_string();
    assert!(error.contains("'wide'") && error.contains("65 dims"), "{error}");
    let tensor = field(5, &[[0x08, 1].repeat(65), vec![0x10, 1], field(8, b"deep"), field(9, &[0; 4])].concat());
    let error = Graph::from_bytes(field(7, &tensor).into(), None).unwrap_err().to_string();
    assert!(error.contains("'deep'") && error.contains("65 dims"), "{error}");
}

#[test]
fn functions_that_call_each_other_and_deep_types_are_carried_without_recursion() {
    let call = |op: &[u8]| field(7, &[field(1, b"a"), field(2, b"b"), field(4, op), field(7, b"f")].concat());
    let function = |name: &[u8], op: &[u8]| {
        field(25, &[field(1, name), field(4, b"a"), field(5, b"b"), call(op), field(10, b"f")].concat())
    };
    let node = field(1, &[field(1, b"x"), field(2, b"y"), field(4, b"Ping"), field(7, b"f")].concat());
    // sequence(sequence(...)), two thousand deep.
    let mut ty = field(1, &[0x08, 1]);
    for _ in 0..2000 {
        ty = field(4, &field(1, &ty));
    }
    let info = |number: u8, name: &[u8], ty: &[u8]| field(number, &[field(1, name), field(2, ty)].concat());
    let tensor = field(1, &[0x08, 1]);
    let graph = [node, info(11, b"x", &tensor), info(11, b"deep", &ty), info(12, b"y", &tensor)].concat();
    let model =
        [field(7, &graph), import("", 20), import("f", 1), function(b"Ping", b"Pong"), function(b"Pong", b"Ping")];
    let mut g = Graph::from_bytes(Bytes::from(model.concat()), None).unwrap();
    let error = g.import(&Default::default()).unwrap_err().to_string();
    assert!(error.contains("calls itself"), "{error}");
    let back = Graph::from_bytes(g.to_bytes().unwrap(), None).unwrap();
    assert_eq!((back.meta.functions.len(), back.inputs.len()), (2, 2));
    let fed = [("x".to_owned(), limbeck_tensor::Tensor::scalar(1f32))].into();
    let error = back.evaluate(&fed).unwrap_err().to_string();
    assert!(error.contains("deep") || error.contains("Ping"), "{error}");
}
