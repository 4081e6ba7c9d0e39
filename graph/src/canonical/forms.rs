//! The forms of single operators that changed between opsets, and how each becomes today's.

use super::infer;
use crate::ops::normalize_axis;
use crate::{Attr, Dim, Graph, Node, NodeId, OPSET, OpError, ValueId, op_bail};
use limbeck_tensor::{DType, Tensor};
use std::collections::HashSet;

/// One node being rewritten.
pub(super) struct Edit<'a> {
    pub(super) graph: &'a mut Graph,
    pub(super) id: NodeId,
    pub(super) label: &'a str,
    /// The opset that the node was written for.
    pub(super) from: i64,
    /// Values that are read or are outputs of the graph.
    pub(super) used: &'a HashSet<ValueId>,
    /// The nodes so far, in their new order.
    pub(super) order: &'a mut Vec<NodeId>,
}

impl Edit<'_> {
    fn node(&self) -> &Node {
        self.graph.node(self.id)
    }

    fn take(&mut self, attr: &str) -> Option<Attr> {
        if !self.node().attrs.contains_key(attr) {
            return None;
        }
        self.graph.node_mut(self.id).attrs.shift_remove(attr)
    }

    fn set(&mut self, attr: &str, value: impl Into<Attr>) {
        self.graph.node_mut(self.id).attrs.insert(attr.into(), value.into());
    }

    fn set_input(&mut self, at: usize, value: ValueId) {
        let inputs = &mut self.graph.node_mut(self.id).inputs;
        if inputs.len() <= at {
            inputs.resize(at + 1, None);
        }
        inputs[at] = Some(value);
    }

    fn constant(&mut self, what: &str, tensor: Tensor) -> ValueId {
        self.graph.add_literal(format!("{}.{what}", self.label), tensor)
    }

    fn ints(&mut self, what: &str, values: Vec<i64>) -> Result<ValueId, OpError> {
        Ok(self.constant(what, Tensor::new([values.len()], values)?))
    }

    /// Turns an integer-list attribute into operand `at`.
    fn ints_to_input(&mut self, attr: &str, at: usize) -> Result<(), OpError> {
        match self.take(attr) {
            None => Ok(()),
            Some(Attr::Ints(values)) => {
                let value = self.ints(attr, values)?;
                self.set_input(at, value);
                Ok(())
            }
            Some(_) => op_bail!("attribute '{attr}' is not a list of integers"),
        }
    }

    /// Turns a float attribute into the scalar operand `at` of the first operand's dtype.
    fn float_to_input(&mut self, attr: &str, at: usize) -> Result<(), OpError> {
        match self.take(attr) {
            None => Ok(()),
            Some(Attr::Float(value)) => {
                let dtype = self.dtype()?;
                let value = self.constant(attr, Tensor::from_f64(dtype, [], &[f64::from(value)])?);
                self.set_input(at, value);
                Ok(())
            }
            Some(_) => op_bail!("attribute '{attr}' is not a float"),
        }
    }

    fn dtype(&self) -> Result<DType, OpError> {
        let ty = self.node().input(0).and_then(|x| self.graph.ty(x));
        ty.map(|t| t.dtype).ok_or_else(|| OpError("the dtype of its first operand is unknown".into()))
    }

    /// Inserts a node with one new result before this one.
    fn before(&mut self, node: Node, what: &str) -> ValueId {
        let output = self.graph.add_value(format!("{}.{what}", self.label), None);
        let id = self.graph.push_node(Node { outputs: vec![Some(output)], ..node });
        self.order.push(id);
        infer(self.graph, id);
        output
    }

    /// Makes this node another operation with the same results.
    fn become_node(&mut self, op: &str, inputs: &[ValueId]) {
        let node = self.graph.node_mut(self.id);
        node.op = op.into();
        node.inputs = inputs.iter().copied().map(Some).collect();
        node.attrs.clear();
    }

    /// Drops results from `keep` on, which nothing may use.
    fn drop_outputs(&mut self, keep: usize) -> Result<(), OpError> {
        for output in self.node().outputs.iter().skip(keep).copied().collect::<Vec<_>>().into_iter().flatten() {
            if self.used.contains(&output) {
                op_bail!("result '{}' is used, which opset {OPSET} does not provide", self.graph.name_of(output));
            }
            self.graph.values[output.0 as usize].producer = None;
        }
        if self.node().outputs.len() > keep {
            self.graph.node_mut(self.id).outputs.truncate(keep);
        }
        Ok(())
    }
}

/// Gives a node its canonical form.
pub(super) fn rewrite(e: &mut Edit) -> Result<(), OpError> {
    let from = e.from;
    match e.node().op.clone().as_str() {
        "Squeeze" | "Unsqueeze" | "ReduceSum" if from < 13 => e.ints_to_input("axes", 1)?,
        "ReduceMax" | "ReduceMin" | "ReduceMean" | "ReduceProd" | "ReduceL1" | "ReduceL2" | "ReduceLogSum"
        | "ReduceLogSumExp" | "ReduceSumSquare"
            if from < 18 =>
        {
            e.ints_to_input("axes", 1)?;
        }
        "Clip" if from < 11 => {
            e.float_to_input("min", 1)?;
            e.float_to_input("max", 2)?;
        }
        "Slice" if from < 10 => {
            e.ints_to_input("starts", 1)?;
            e.ints_to_input("ends", 2)?;
            e.ints_to_input("axes", 3)?;
        }
        "Pad" if from < 11 => {
            e.ints_to_input("pads", 1)?;
            e.float_to_input("value", 2)?;
        }
        "Split" if from < 18 => {
            e.ints_to_input("split", 1)?;
            if e.node().input(1).is_none() {
                let parts = e.node().outputs.len();
                e.set("num_outputs", parts);
            }
        }
        "TopK" if from < 10 => {
            let k = e.node().int("k").ok_or("attribute 'k' is missing")?;
            e.take("k");
            let k = e.ints("k", vec![k])?;
            e.set_input(1, k);
        }
        "Dropout" if from < 12 => dropout(e)?,
        "BatchNormalization" if from < 14 => batch_normalization(e)?,
        "Softmax" | "LogSoftmax" | "Hardmax" if from < 13 => flattened_softmax(e)?,
        "Upsample" => upsample(e)?,
        "Resize" if from < 11 => {
            let scales = e.node().input(1).ok_or("has no scales")?;
            resize(e, scales)?;
        }
        "Scatter" => e.graph.node_mut(e.id).op = "ScatterElements".into(),
        "RoiAlign" if from < 16 => e.set("coordinate_transformation_mode", "output_half_pixel"),
        "GridSample" if from < 20 => match e.node().str("mode") {
            Some("bilinear") => e.set("mode", "linear"),
            Some("bicubic") => e.set("mode", "cubic"),
            _ => {}
        },
        "DFT" if from < 20 => {
            let axis = e.node().int("axis").unwrap_or(1);
            e.take("axis");
            let axis = e.constant("axis", Tensor::scalar(axis));
            e.set_input(2, axis);
        }
        "GroupNormalization" if from < 21 => group_normalization(e)?,
        // Only conversions to float8e8m0 look at it.
        "Cast" if from > 23 && e.node().int("to") != Some(DType::F8E8M0.to_onnx().into()) => _ = e.take("round_mode"),
        "CastLike" if from > 23 => {
            let like = e.node().input(1).and_then(|like| e.graph.ty(like));
            if like.is_some_and(|ty| ty.dtype != DType::F8E8M0) {
                e.take("round_mode");
            }
        }
        "Scan" if from < 9 => op_bail!("the batched form of opset 8 is not supported"),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "And" | "Or" | "Xor" | "Equal" | "Greater" | "Less" => {
            if let Some(attr) = ["axis", "broadcast"].iter().find(|a| e.node().attrs.contains_key(**a)) {
                op_bail!("attribute '{attr}' belongs to opset 6 and has no meaning at opset {from}");
            }
        }
        _ => {}
    }
    Ok(())
}

/// Before opset 12 the ratio was an attribute and training could not be asked for.
fn dropout(e: &mut Edit) -> Result<(), OpError> {
    if let Some(Attr::Float(ratio)) = e.take("ratio") {
        let ratio = e.constant("ratio", Tensor::scalar(ratio));
        e.set_input(1, ratio);
    }
    // The mask was of the data's type then.
    if e.from < 10 { e.drop_outputs(1) } else { Ok(()) }
}

/// Before opset 14 more than one result meant training.
fn batch_normalization(e: &mut Edit) -> Result<(), OpError> {
    if let Some(Attr::Int(0)) = e.take("spatial") {
        op_bail!("spatial=0 (a mean for every position) was dropped by later opsets");
    }
    if e.node().outputs.iter().skip(1).any(Option::is_some) {
        e.drop_outputs(3)?;
        e.set("training_mode", 1i64);
        return Ok(());
    }
    e.drop_outputs(1)
}

/// Before opset 13 these worked on the matrix that results from flattening at `axis`.
fn flattened_softmax(e: &mut Edit) -> Result<(), OpError> {
    let axis = e.node().int("axis").unwrap_or(1);
    let x = e.node().input(0).ok_or("has no operand")?;
    if let Some(dims) = e.graph.ty(x).and_then(|t| t.dims.as_ref()) {
        let at = normalize_axis(axis, dims.len())?;
        if dims[at + 1..].iter().all(|d| *d == Dim::Known(1)) {
            e.set("axis", at);
            return Ok(());
        }
    }
    let op = e.node().op.clone();
    let flat = e.before(Node::new("Flatten", &[x], &[]).with("axis", axis), "flat");
    let soft = e.before(Node::new(&op, &[flat], &[]).with("axis", 1i64), "soft");
    let shape = e.before(Node::new("Shape", &[x], &[]), "shape");
    e.become_node("Reshape", &[soft, shape]);
    Ok(())
}

fn upsample(e: &mut Edit) -> Result<(), OpError> {
    let scales = match e.take("scales") {
        Some(Attr::Floats(scales)) => e.constant("scales", Tensor::new([scales.len()], scales)?),
        _ => e.node().input(1).ok_or("has no scales")?,
    };
    e.graph.node_mut(e.id).op = "Resize".into();
    resize(e, scales)
}

/// Upsample, and Resize of opset 10, read pixel `floor(x / scale)`.
fn resize(e: &mut Edit, scales: ValueId) -> Result<(), OpError> {
    let x = e.node().input(0).ok_or("has no operand")?;
    e.graph.node_mut(e.id).inputs = vec![Some(x), None, Some(scales)];
    e.set("coordinate_transformation_mode", "asymmetric");
    e.set("nearest_mode", "floor");
    Ok(())
}

/// Before opset 21 scale and bias had one entry a group, from then on one a channel.
fn group_normalization(e: &mut Edit) -> Result<(), OpError> {
    let groups = e.node().int("num_groups").filter(|g| *g > 0).ok_or("num_groups is missing")?;
    let dims = e.node().input(0).and_then(|x| e.graph.ty(x)?.dims.as_ref()?.get(1)?.known());
    let channels = dims.and_then(|c| i64::try_from(c).ok()).ok_or("the number of channels is unknown")?;
    for (at, name) in [(1, "scale"), (2, "bias")] {
        let per_group = e.node().input(at).ok_or_else(|| OpError(format!("operand {at} is missing")))?;
        let axes = e.ints("axes", vec![1])?;
        let column = e.before(Node::new("Unsqueeze", &[per_group, axes], &[]), name);
        let shape = e.ints("shape", vec![groups, channels / groups])?;
        let table = e.before(Node::new("Expand", &[column, shape], &[]), name);
        let shape = e.ints("shape", vec![channels])?;
        let per_channel = e.before(Node::new("Reshape", &[table, shape], &[]), name);
        e.set_input(at, per_channel);
    }
    Ok(())
}
