use super::Form;
use crate::{Cx, Graph, ImportOptions, LIMBECK, Node, OPSET, TensorType};
use limbeck_tensor::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};

fn floats(values: &[f32]) -> Tensor {
    Tensor::new([values.len()], values.to_vec()).unwrap()
}

fn names(graph: &Graph) -> Vec<&str> {
    graph.outputs.iter().map(|&o| graph.name_of(o)).collect()
}

#[test]
fn an_input_keeps_its_default_and_stays_replaceable() {
    let mut g = Graph::new("g");
    let x = g.add_input("x", TensorType::new(DType::F32, &[2]));
    let gain = g.add_input("gain", TensorType::new(DType::F32, &[1]));
    g.set_initializer(gain, floats(&[1.0]));
    let y = g.add_value("y", None);
    g.add_node(Node::new("Mul", &[x, gain], &[y]));
    g.outputs.push(y);
    let lowered = g.lowered(Form::Portable).unwrap();
    assert_eq!(lowered.initializer(lowered.find("gain").unwrap()), Some(&floats(&[1.0])));
    let feeds = BTreeMap::from([("x".to_owned(), floats(&[1.0, 2.0])), ("gain".to_owned(), floats(&[3.0]))]);
    assert_eq!(lowered.evaluate(&feeds).unwrap()["y"], floats(&[3.0, 6.0]), "its default 1 is no constant");
}

#[test]
fn outputs_may_be_inputs_and_weights() {
    let mut g = Graph::new("g");
    let x = g.add_input("x", TensorType::new(DType::F32, &[2]));
    let w = g.add_initializer("w", floats(&[5.0]));
    let y = g.add_value("y", None);
    g.add_node(Node::new("StopGradient", &[x], &[y]).in_domain(crate::LIMBECK));
    g.outputs.extend([x, w, y]);
    for form in [Form::Portable, Form::Fused] {
        let lowered = g.lowered(form).unwrap();
        assert_eq!(names(&lowered), ["x", "w", "y"]);
        let out = lowered.evaluate(&BTreeMap::from([("x".to_owned(), floats(&[1.0, 2.0]))])).unwrap();
        assert_eq!([&out["x"], &out["w"], &out["y"]], [&floats(&[1.0, 2.0]), &floats(&[5.0]), &floats(&[1.0, 2.0])]);
    }
    let cx = Cx::new("g", DType::F32);
    let x = cx.input("x", DType::F32, &[2]);
    cx.output("x", x);
    cx.output("copy", x);
    assert_eq!(names(&cx.finish().unwrap()), ["x", "copy"]);
}

#[test]
fn the_newest_opset_in_use_is_declared() {
    let cx = Cx::new("g", DType::F32);
    let x = cx.input("x", DType::F32, &[1, 4, 2]);
    let ones = cx.constant(floats(&[1.0; 4]));
    cx.output("y", cx.op("GroupNormalization", &[x, ones, ones], &[("num_groups", 2i64.into())]));
    let g = cx.finish().unwrap();
    assert_eq!(g.opset(""), Some(21));
    assert_eq!(g.lowered(Form::Portable).unwrap().opset(""), Some(21));
    let cx = Cx::new("g", DType::F32);
    cx.output("y", cx.input("x", DType::F32, &[1]).relu());
    assert_eq!(cx.finish().unwrap().lowered(Form::Fused).unwrap().opset(""), Some(OPSET));
}

/// Two convolutions of one kind, a third of another, and the gradients of the first.
fn convolutions() -> Graph {
    let cx = Cx::new("g", DType::F32);
    let x = cx.input("x", DType::F32, &[2, 3, 6, 5]);
    let w = cx.input("w", DType::F32, &[3, 3, 3, 2]);
    let bias = cx.constant(floats(&[0.5, -1.0, 2.0]));
    let attrs = [("strides", vec![2i64, 1].into()), ("pads", vec![1i64, 0, 1, 1].into())];
    let y = cx.op("Conv", &[x, w], &attrs);
    let gy = y + 1.0;
    let grad = |op: &str, operands: [_; 2], name: &str, extents: &[i64]| {
        let attrs = [&attrs[..], &[("kernel_shape", vec![3i64, 2].into()), (name, extents.into())]].concat();
        cx.op_n(LIMBECK, op, &operands.map(Some), &attrs, 1)[0]
    };
    cx.output("y", y);
    cx.output("again", cx.op("Conv", &[x * 2.0, w], &attrs));
    cx.output("biased", cx.op("Conv", &[x, w, bias], &attrs));
    cx.output("gx", grad("ConvGradInput", [w, gy], "input_shape", &[6, 5]));
    cx.output("gw", grad("ConvGradWeight", [x, gy], "kernel_shape", &[3, 2]));
    cx.finish().unwrap()
}

#[test]
fn functions_define_the_fused_form() {
    let graph = convolutions();
    let ramp = |shape: [usize; 4], step: f64| {
        let values: Vec<f64> = (0..shape.iter().product()).map(|i| (i as f64 * step).sin()).collect();
        Tensor::from_f64(DType::F32, shape, &values).unwrap()
    };
    let feeds = BTreeMap::from([("x".to_owned(), ramp([2, 3, 6, 5], 0.7)), ("w".to_owned(), ramp([3, 3, 3, 2], 1.3))]);
    let expected = graph.evaluate(&feeds).unwrap();

    let fused = graph.lowered(Form::Fused).unwrap();
    let read = Graph::from_bytes(fused.to_bytes().unwrap(), None).unwrap();
    let own: Vec<(&str, &str)> =
        read.nodes().filter(|(_, n)| n.domain == LIMBECK).map(|(_, n)| (n.op.as_str(), n.overload.as_str())).collect();
    let kinds: BTreeSet<_> = own.iter().collect();
    assert_eq!((own.len(), kinds.len(), read.meta.functions.len()), (5, 4, 4), "{own:?}");
    assert_eq!(fused.to_bytes().unwrap(), read.to_bytes().unwrap());
    for graph in [&fused, &read] {
        assert_eq!(graph.evaluate(&feeds).unwrap(), expected, "the ops themselves");
    }

    let mut inlined = read.clone();
    assert_eq!(inlined.import(&ImportOptions::default()).unwrap().functions, 5);
    assert!(inlined.nodes().all(|(_, n)| n.domain.is_empty()) && inlined.opset(LIMBECK).is_none());
    for (name, got) in inlined.evaluate(&feeds).unwrap() {
        let (got, want) = (got.to_f64_vec().unwrap(), expected[&name].to_f64_vec().unwrap());
        let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs() / w.abs().max(1.0)).fold(0.0, f64::max);
        assert!(worst < 1e-5, "{name}: {worst:e}");
    }
}

#[test]
fn numbered_types_are_written_for_own_ops_alone() {
    let fused = convolutions().lowered(Form::Fused).unwrap();
    let bytes = fused.to_bytes().unwrap();
    let holds = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(holds(&bytes, "FusedConv_0") && holds(&bytes, "ConvGradWeight_3"));
    let mut other = Graph::new("g");
    let x = other.add_input("x", TensorType::new(DType::F32, &[2]));
    let y = other.add_value("y", None);
    other.add_node(Node { overload: "7".into(), ..Node::new("Twice", &[x], &[y]).in_domain("example.org") });
    other.outputs.push(y);
    let bytes = other.to_bytes().unwrap();
    assert!(!holds(&bytes, "Twice_7"));
    let read = Graph::from_bytes(bytes, None).unwrap();
    assert!(read.nodes().all(|(_, n)| n.op == "Twice" && n.overload == "7"));
}
