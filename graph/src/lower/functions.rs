//! What the fused form's own ops mean, in the file itself: a model-local function in standard ops for each, so that a
//! runtime without kernels for them runs the very same file.
//!
//! The portable lowering depends on attributes and shapes, so an op has a function for each combination that occurs,
//! told apart by its overload (in files by a number in the op's type).

use super::{FUSED_OPS, Form, lower_node};
use crate::onnx::function::{self, Function};
use crate::{Cx, Graph, GraphError, LIMBECK, Node, TensorType, Var};
use bytes::Bytes;
use limbeck_tensor::DType;
use std::collections::HashMap;

/// Defines every own op of a lowered graph.
pub(super) fn define(graph: &mut Graph) -> Result<(), GraphError> {
    let mut numbers: HashMap<String, usize> = HashMap::new();
    for id in graph.node_ids() {
        let node = graph.node(id);
        if node.domain != LIMBECK || !FUSED_OPS.contains(&node.op.as_str()) {
            continue;
        }
        // Absent operands at the end are no parameters of the function.
        let present = node.inputs.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        let operands: Vec<Option<TensorType>> =
            node.inputs[..present].iter().map(|v| v.and_then(|v| graph.ty(v).cloned())).collect();
        // What the body depends on, in print.
        let case = format!("{} {:?} {operands:?} {}", node.op, node.attrs, node.outputs.len());
        let number = match numbers.get(&case) {
            Some(&number) => number,
            None => {
                let number = numbers.len();
                let body = body(node, &operands, &graph.label(id), number)?;
                graph.meta.functions.push(body);
                numbers.insert(case, number);
                number
            }
        };
        let node = graph.node_mut(id);
        node.inputs.truncate(present);
        node.overload = number.to_string();
    }
    Ok(())
}

/// The encoded function for a node with operands of these types.
fn body(node: &Node, types: &[Option<TensorType>], label: &str, number: usize) -> Result<Bytes, GraphError> {
    let fail = |reason: String| GraphError::Node { node: label.into(), op: node.full_op(), reason };
    let cx = Cx::new(&node.op, DType::F32);
    let operand = |(i, ty): (usize, &Option<TensorType>)| match ty {
        Some(ty) => match ty.concrete() {
            Some(shape) => Ok(Some(cx.input(&format!("operand{i}"), ty.dtype, &shape))),
            None => Err(fail(format!("operand {i} has no concrete shape, but {ty}"))),
        },
        None => Err(fail(format!("operand {i} is left out or has no type"))),
    };
    let operands = types.iter().enumerate().map(operand).collect::<Result<Vec<Option<Var<'_>>>, _>>()?;
    let results = lower_node(&cx, node, &operands, Form::Portable);
    let results = results.ok_or_else(|| fail("has no form in standard ops".into()))?;
    results.iter().enumerate().for_each(|(i, &result)| cx.output(&format!("result{i}"), result));
    let function = Function {
        domain: LIMBECK.into(),
        name: node.op.clone(),
        overload: number.to_string(),
        body: cx.finish().map_err(|e| fail(e.to_string()))?,
        defaults: HashMap::new(),
    };
    function::encode(&function, node.attrs.keys().map(String::as_str))
}
