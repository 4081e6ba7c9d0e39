//! Cases of the gradient rules: from JSON to graphs. `tests/golden/gradients/make.py` says what a case holds.
#![allow(dead_code)] // each test file uses its part

pub(crate) mod loops;

use limbeck_autodiff::{COMPOSITES, Differentiate, GradError, compose};
use limbeck_graph::{Attr, Cx, Graph, LIMBECK, Node, Var};
use limbeck_tensor::{DType, Tensor};
use serde_json::Value;
use std::collections::BTreeMap;

/// Named tensors.
pub(crate) type Feeds = BTreeMap<String, Tensor>;

/// A golden file of this folder.
pub(crate) fn golden(file: &str) -> Value {
    let path = format!("{}/../tests/golden/gradients/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A list of numbers that are extents.
pub(crate) fn extents(v: &Value) -> Vec<usize> {
    v.as_array().expect("a shape").iter().map(|n| n.as_u64().expect("an extent") as usize).collect()
}

/// A list of numbers.
pub(crate) fn numbers(v: &Value) -> Vec<f64> {
    v.as_array().expect("numbers").iter().map(|n| n.as_f64().expect("a number")).collect()
}

/// The tensor `{"shape": .., "data": ..}` as floats.
pub(crate) fn floats(dtype: DType, v: &Value) -> Tensor {
    Tensor::from_f64(dtype, extents(&v["shape"]), &numbers(&v["data"])).expect("shape and data agree")
}

/// Integers of the dtype with this name.
pub(crate) fn integers(dtype: &str, shape: Vec<usize>, data: &Value) -> Tensor {
    let values: Vec<i64> = data.as_array().expect("integers").iter().map(|n| n.as_i64().expect("an integer")).collect();
    match dtype {
        "int64" => Tensor::new(shape, values).expect("shape and data agree"),
        "bool" => {
            Tensor::bools(shape, &values.iter().map(|&v| v != 0).collect::<Vec<_>>()).expect("shape and data agree")
        }
        name => {
            let dtype = [DType::I8, DType::U8].into_iter().find(|d| d.name() == name).expect("a known dtype");
            Tensor::from_f64(dtype, shape, &values.iter().map(|&v| v as f64).collect::<Vec<_>>()).expect("in range")
        }
    }
}

/// An operand of a case.
pub(crate) enum Operand {
    /// Not connected.
    Absent,
    /// Part of the graph.
    Constant(Tensor),
    /// An input of the graph, differentiated.
    Input(Tensor),
}

/// The operand that a case of `gradients.json` states, with floats of this type.
pub(crate) fn operand(v: &Value, float: DType) -> Operand {
    if v.is_null() {
        return Operand::Absent;
    }
    let tensor = match v["dtype"].as_str().expect("a dtype") {
        "float" => floats(float, v),
        integer => integers(integer, extents(&v["shape"]), &v["data"]),
    };
    if v["const"] == true { Operand::Constant(tensor) } else { Operand::Input(tensor) }
}

/// The worst relative error of the gradients of a case of `gradients.json`, and of its loss where that is above 1, in what
/// a graph of [`Case::graph`] gave.
pub(crate) fn worst_error(v: &Value, result: &Feeds) -> Result<f64, String> {
    let loss = v["loss"].as_f64().expect("a loss");
    let mut worst = (result["loss"].to_f64_vec().expect("a number")[0] - loss).abs() / loss.abs().max(1.0);
    for (i, reference) in v["grads"].as_array().expect("gradients").iter().enumerate().filter(|(_, g)| !g.is_null()) {
        let found = &result[&format!("g{i}")];
        if found.shape() != extents(&reference["shape"]) {
            return Err(format!("gradient {i} has shape {:?}", found.shape()));
        }
        let e = relative_error(&found.to_f64_vec().expect("numbers"), &numbers(&reference["data"]));
        worst = if e.is_nan() { f64::NAN } else { worst.max(e) };
    }
    Ok(worst)
}

/// One operation, its operands, and a cotangent for each float output.
pub(crate) struct Case {
    /// Operator with its domain.
    pub(crate) op: String,
    /// Attributes.
    pub(crate) attrs: Vec<(String, Attr)>,
    /// Operands in order.
    pub(crate) operands: Vec<Operand>,
    /// Number of outputs.
    pub(crate) outputs: usize,
}

impl Case {
    /// Operator, attributes and number of outputs of the JSON case, with these operands.
    pub(crate) fn new(case: &Value, operands: Vec<Operand>) -> Case {
        let attr = |v: &Value| match v {
            Value::Array(list) => Attr::Ints(list.iter().map(|n| n.as_i64().expect("an integer")).collect()),
            Value::String(text) => Attr::from(text.as_str()),
            Value::Number(n) => n.as_i64().map_or_else(|| n.as_f64().expect("a number").into(), Attr::Int),
            other => panic!("attribute {other}"),
        };
        let attrs = case["attrs"].as_object().into_iter().flatten();
        Case {
            op: case["op"].as_str().expect("op").to_owned(),
            attrs: attrs.map(|(k, v)| (k.clone(), attr(v))).collect(),
            operands,
            outputs: case["outputs"].as_u64().unwrap_or(1) as usize,
        }
    }

    /// `op {attributes}`, for messages.
    pub(crate) fn label(&self) -> String {
        let shapes: Vec<String> = self
            .operands
            .iter()
            .map(|o| match o {
                Operand::Absent => "-".into(),
                Operand::Constant(t) | Operand::Input(t) => format!("{:?}", t.shape()),
            })
            .collect();
        format!("{} {:?} of {}", self.op, self.attrs, shapes.join(" "))
    }

    /// The differentiated operands by name: `x0`, `x1`, ...
    pub(crate) fn feeds(&self) -> Feeds {
        let input = |(i, o): (usize, &Operand)| match o {
            Operand::Input(t) => Some((format!("x{i}"), t.clone())),
            _ => None,
        };
        self.operands.iter().enumerate().filter_map(input).collect()
    }

    /// The operands in `cx` and the float results. A quantisation is followed by its inverse, and so is Unique, whose
    /// number of results the operands decide.
    pub(crate) fn build<'c>(&self, cx: &'c Cx) -> (Vec<Option<Var<'c>>>, Vec<Var<'c>>) {
        let operands: Vec<Option<Var<'c>>> = self
            .operands
            .iter()
            .enumerate()
            .map(|(i, o)| match o {
                Operand::Absent => None,
                Operand::Constant(t) => Some(cx.constant(t.clone())),
                Operand::Input(t) => Some(cx.input(&format!("x{i}"), t.dtype(), t.shape())),
            })
            .collect();
        let attrs: Vec<(&str, Attr)> = self.attrs.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
        let (domain, op) = match self.op.split_once("::") {
            Some((_, op)) => (LIMBECK, op),
            None => ("", self.op.as_str()),
        };
        let mut node = Node::new(op, &[], &[]).in_domain(domain);
        node.attrs.extend(self.attrs.iter().cloned());
        node.outputs = vec![None; self.outputs];
        let composed = if COMPOSITES.contains(&op) { compose(cx, &node, &operands) } else { None };
        let mut outputs = composed.unwrap_or_else(|| cx.op_n(domain, op, &operands, &attrs, self.outputs));
        if op == "QuantizeLinear" {
            let again: Vec<Option<Var<'c>>> = [&[Some(outputs[0])], &operands[1..]].concat();
            outputs = cx.op_n("", "DequantizeLinear", &again, &attrs, 1);
        }
        if op == "Unique" && !cx.has_error() {
            let axis = attrs.iter().find(|(name, _)| *name == "axis");
            let again = axis.map_or(0, |(_, axis)| if let Attr::Int(axis) = axis { *axis } else { 0 });
            outputs = vec![outputs[0].gather(outputs[2], again)];
        }
        outputs.retain(|y| y.dtype().is_float());
        (operands, outputs)
    }

    /// A graph with the output `loss`, the sum of results times `cotangents` (made from the results' shapes), and
    /// the gradients `g0`, `g1`, ... of the inputs. At order 2 the results are the gradients of order 1.
    pub(crate) fn graph(
        &self,
        float: DType,
        order: usize,
        mut cotangents: impl FnMut(&[usize]) -> Tensor,
    ) -> Result<Graph, GradError> {
        let cx = Cx::new("case", float);
        let (operands, mut results) = self.build(&cx);
        cx.check()?;
        let wanted: Vec<(usize, Var<'_>)> = operands
            .iter()
            .enumerate()
            .filter_map(|(i, v)| matches!(self.operands[i], Operand::Input(_)).then_some((i, (*v)?)))
            .collect();
        let wrt: Vec<Var<'_>> = wanted.iter().map(|(_, v)| *v).collect();
        let mut loss = cx.scalar_of(0.0, float);
        for _ in 0..order {
            let terms = results.iter().map(|y| (y.cast(float) * cx.constant(cotangents(&y.shape()))).sum(&[]));
            loss = terms.reduce(|a, b| a + b).expect("a float result");
            results = cx.grad(loss, &wrt)?;
        }
        cx.output("loss", loss);
        for ((i, _), g) in wanted.iter().zip(results) {
            cx.output(&format!("g{i}"), g);
        }
        Ok(cx.finish()?)
    }
}

/// Largest absolute difference over the largest absolute value of `reference` (or over 1 where that is 0).
pub(crate) fn relative_error(found: &[f64], reference: &[f64]) -> f64 {
    assert_eq!(found.len(), reference.len());
    let scale = reference.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let error = found
        .iter()
        .zip(reference)
        .fold(0.0f64, |m, (a, b)| if (a - b).is_nan() { f64::NAN } else { m.max((a - b).abs()) });
    error / if scale == 0.0 { 1.0 } else { scale }
}
