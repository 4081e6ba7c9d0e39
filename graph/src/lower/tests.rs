use super::Form;
use crate::{Cx, Graph, Node, OPSET, TensorType};
use limbeck_tensor::{DType, Tensor};
use std::collections::BTreeMap;

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
