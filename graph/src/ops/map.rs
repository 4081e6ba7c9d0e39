//! Maps: chains of element-wise operators and reductions that a kernel computes in one pass over memory.
//!
//! `ai.limbeck.Map` takes any number of tensors and gives the results that its attributes name:
//!
//! | attribute | what |
//! |---|---|
//! | `ops` | the operators of ai.onnx, in order, between spaces |
//! | `args` | three operands an operator: an input's number, or the number of inputs plus that of an earlier operator; -1 for none |
//! | `results` | the values that are outputs, numbered alike |
//! | `axes` | what `ReduceSum`, `ReduceMean` and `ReduceMax` reduce over, keeping extents of 1 |
//!
//! A `Cast` gives float32.

use super::{EvalCx, InferCx, OpSpec, own};
use crate::types::TensorType;
use crate::{Array, Attr, Graph, Node, OpError, ValueId, op_bail};
use limbeck_tensor::{DType, Tensor};
use std::collections::HashMap;

pub(super) const OPS: &[OpSpec] = &[own("Map", infer, eval)];

/// The most operators of a map.
const MOST_OPS: usize = 1024;

/// Operators of maps that work value by value, with their numbers of operands.
pub(crate) const ELEMENT_WISE: &[(&str, usize)] = &[
    ("Abs", 1),
    ("Add", 2),
    ("And", 2),
    ("Cast", 1),
    ("Div", 2),
    ("Equal", 2),
    ("Erf", 1),
    ("Exp", 1),
    ("Greater", 2),
    ("GreaterOrEqual", 2),
    ("Less", 2),
    ("LessOrEqual", 2),
    ("Log", 1),
    ("Max", 2),
    ("Min", 2),
    ("Mul", 2),
    ("Neg", 1),
    ("Not", 1),
    ("Or", 2),
    ("Reciprocal", 1),
    ("Relu", 1),
    ("Sigmoid", 1),
    ("Sign", 1),
    ("Sqrt", 1),
    ("Sub", 2),
    ("Tanh", 1),
    ("Where", 3),
];

/// Whether this operator of ai.onnx is one of them.
pub(crate) fn is_element_wise(op: &str) -> bool {
    ELEMENT_WISE.iter().any(|(name, _)| *name == op)
}

/// Operators of maps that reduce.
pub(crate) const REDUCTIONS: &[&str] = &["ReduceMax", "ReduceMean", "ReduceSum"];

/// The chain as a graph of standard operators, for inputs of these types.
pub(crate) fn body(node: &Node, inputs: &[&TensorType]) -> Result<Graph, OpError> {
    let ops: Vec<&str> = node.str("ops").unwrap_or_default().split_whitespace().collect();
    let ints = |name: &str| node.ints(name).unwrap_or_default();
    let (args, results, axes) = (ints("args"), ints("results"), ints("axes"));
    if ops.is_empty() || ops.len() > MOST_OPS || args.len() != 3 * ops.len() || results.is_empty() {
        op_bail!(
            "{} operators (1 to {MOST_OPS}) need three args each and a result, not {args:?}, {results:?}",
            ops.len()
        );
    }
    let mut graph = Graph::new("Map");
    let mut values: Vec<ValueId> =
        inputs.iter().enumerate().map(|(i, ty)| graph.add_input(format!("x{i}"), (*ty).clone())).collect();
    let at = |values: &[ValueId], i: i64| usize::try_from(i).ok().and_then(|i| values.get(i).copied());
    let axes = graph.add_literal("axes", Tensor::new([axes.len()], axes.to_vec()).map_err(|e| OpError(e.to_string()))?);
    for (i, (op, args)) in ops.iter().zip(args.chunks(3)).enumerate() {
        let reduces = REDUCTIONS.contains(op);
        let arity = ELEMENT_WISE.iter().find(|(name, _)| name == op).map(|&(_, arity)| arity);
        let Some(arity) = arity.or(reduces.then_some(1)) else { op_bail!("operator {i} is '{op}', which no map has") };
        let operands: Option<Vec<ValueId>> = args[..arity].iter().map(|&arg| at(&values, arg)).collect();
        let Some(mut operands) = operands else { op_bail!("operator {i}, {op}, has the operands {args:?}") };
        if reduces {
            operands.push(axes);
        }
        let value = graph.add_value(format!("v{i}"), None);
        let cast = (*op == "Cast").then_some(("to", Attr::Int(i64::from(DType::F32.to_onnx()))));
        let mut made = Node::new(op, &operands, &[value]);
        made.attrs.extend(cast.map(|(name, value)| (name.to_owned(), value)));
        graph.add_node(made);
        values.push(value);
    }
    for &result in results {
        match at(&values, result).filter(|_| result >= inputs.len() as i64) {
            Some(value) => graph.outputs.push(value),
            None => op_bail!("the result {result} is no operator of the map"),
        }
    }
    graph.infer_types().map_err(|e| OpError(e.to_string()))?;
    Ok(graph)
}

fn infer(cx: &InferCx) -> Result<Vec<TensorType>, OpError> {
    let inputs = (0..cx.inputs.len()).map(|i| cx.ty(i)).collect::<Result<Vec<_>, _>>()?;
    let body = body(cx.node, &inputs)?;
    let typed = |&id: &ValueId| body.ty(id).cloned().ok_or_else(|| OpError("a result has no type".into()));
    body.outputs.iter().map(typed).collect()
}

fn eval(cx: &EvalCx) -> Result<Vec<Array>, OpError> {
    let inputs: Vec<Array> = (0..cx.inputs.len()).map(|i| cx.array(i).cloned()).collect::<Result<_, _>>()?;
    let types: Vec<TensorType> = inputs.iter().map(|a| TensorType::new(a.dtype, a.shape())).collect();
    let body = body(cx.node, &types.iter().collect::<Vec<_>>())?;
    body.call(inputs, &HashMap::new()).map_err(|e| OpError(e.to_string()))
}
