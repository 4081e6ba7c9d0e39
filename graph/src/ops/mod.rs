//! The operators that Limbeck understands: for each its type inference and its reference evaluation, at
//! opset [`crate::OPSET`]. One explicit table; a family of ops a file.
//!
//! The table is about tensors of numbers. Sequences, optionals, text and image files have no operators here: models
//! that hold them are read, written and run by engines, and what depends on them has no inferred type.

mod activation;
mod arrange;
mod attention;
mod attributes;
mod bits;
mod boxes;
mod control;
mod conv;
mod einsum;
mod elementwise;
mod fill;
mod index;
mod logic;
mod loss;
pub(crate) mod map;
mod matmul;
mod norm;
mod pool;
mod quant;
mod random;
mod recurrent;
mod reduce;
pub(crate) mod resize;
mod sample;
mod select;
mod shape;
mod slice;
mod spectral;
mod support;
mod unpool;
mod util;
mod window;

pub(crate) use control::typed_body;
pub use control::{Looped, Slices};
pub use einsum::einsum_letters;
pub(crate) use support::extents;
pub use window::ConvAttrs;

use crate::types::{Dim, TensorType};
use crate::{Array, Graph, GraphError, Node, OpError, ValueId};
use limbeck_tensor::{DType, Tensor};
use std::collections::HashMap;

/// What Limbeck knows about an operator.
#[derive(Clone, Copy)]
pub struct OpSpec {
    /// Domain; "" is ai.onnx.
    pub domain: &'static str,
    /// Operator type.
    pub name: &'static str,
    /// Types of the outputs from the types (and known constants) of the inputs. Those behind the first that a body
    /// (of If, Loop, Scan) leaves open are missing.
    pub infer: fn(&InferCx) -> Result<Vec<TensorType>, OpError>,
    /// Values of the outputs. Slow and obvious; floats are rounded to their dtype by the caller.
    pub eval: fn(&EvalCx) -> Result<Vec<Array>, OpError>,
}

/// An ai.onnx operator of the table.
const fn op(
    name: &'static str,
    infer: fn(&InferCx) -> Result<Vec<TensorType>, OpError>,
    eval: fn(&EvalCx) -> Result<Vec<Array>, OpError>,
) -> OpSpec {
    OpSpec { domain: "", name, infer, eval }
}

/// An operator of Limbeck's own domain.
const fn own(
    name: &'static str,
    infer: fn(&InferCx) -> Result<Vec<TensorType>, OpError>,
    eval: fn(&EvalCx) -> Result<Vec<Array>, OpError>,
) -> OpSpec {
    OpSpec { domain: crate::LIMBECK, name, infer, eval }
}

/// Families of the table, in one explicit list.
const FAMILIES: &[&[OpSpec]] = &[
    elementwise::OPS,
    map::OPS,
    activation::OPS,
    logic::OPS,
    reduce::OPS,
    matmul::OPS,
    einsum::OPS,
    conv::OPS,
    pool::OPS,
    norm::OPS,
    shape::OPS,
    arrange::OPS,
    fill::OPS,
    index::OPS,
    slice::OPS,
    quant::OPS,
    recurrent::OPS,
    attention::OPS,
    loss::OPS,
    bits::OPS,
    spectral::OPS,
    sample::OPS,
    boxes::OPS,
    select::OPS,
    unpool::OPS,
    random::OPS,
    control::OPS,
    resize::OPS,
];

/// All operators.
pub fn all() -> impl Iterator<Item = &'static OpSpec> {
    FAMILIES.iter().flat_map(|f| f.iter())
}

/// The operator of this domain and name.
pub fn find(domain: &str, name: &str) -> Option<&'static OpSpec> {
    all().find(|o| o.name == name && o.domain == domain)
}

/// The operator of a node, or an error that names it or an attribute that it does not have.
pub fn spec_of(node: &Node, label: &str) -> Result<&'static OpSpec, GraphError> {
    let refuse = |reason: String| GraphError::Node { node: label.into(), op: node.full_op(), reason };
    let unknown = "Limbeck does not know this operator; only reading, writing and running on an engine work";
    let spec = find(node.domain_or_default(), &node.op).ok_or_else(|| refuse(unknown.into()))?;
    attributes::unknown(node).map_or(Ok(spec), |reason| Err(refuse(reason)))
}

/// What type inference sees of a node.
pub struct InferCx<'a> {
    /// The node, its attributes foremost.
    pub node: &'a Node,
    /// Types of the inputs; `None` for absent ones and for values of unknown type.
    pub inputs: Vec<Option<&'a TensorType>>,
    /// Values of inputs that are known constants.
    pub constants: Vec<Option<Tensor>>,
    /// The graph around the node, whose values subgraphs capture.
    pub outer: &'a Graph,
}

impl<'a> InferCx<'a> {
    /// Type of input `i`, which must be present.
    pub fn ty(&self, i: usize) -> Result<&'a TensorType, OpError> {
        self.inputs.get(i).copied().flatten().ok_or_else(|| OpError(format!("input {i} is missing or of unknown type")))
    }

    /// True when input `i` is connected.
    pub fn has(&self, i: usize) -> bool {
        self.node.input(i).is_some()
    }

    /// Dtype of input `i`.
    pub fn dtype(&self, i: usize) -> Result<DType, OpError> {
        Ok(self.ty(i)?.dtype)
    }

    /// Dims of input `i`; `None` when its rank is unknown.
    pub fn dims(&self, i: usize) -> Result<Option<&'a [Dim]>, OpError> {
        Ok(self.ty(i)?.dims.as_deref())
    }

    /// Integers of the constant input `i`; `None` when it is absent or not constant.
    pub fn const_ints(&self, i: usize) -> Option<Vec<i64>> {
        self.constants.get(i)?.as_ref()?.to_i64_vec().ok()
    }
}

/// What evaluation sees of a node.
pub struct EvalCx<'a> {
    /// The node, its attributes foremost.
    pub node: &'a Node,
    /// Values of the inputs; `None` for absent ones.
    pub inputs: Vec<Option<&'a Array>>,
    /// Values of the graph around the node, which subgraphs capture.
    pub outer: &'a HashMap<ValueId, Array>,
}

impl<'a> EvalCx<'a> {
    /// Input `i`, which must be present.
    pub fn array(&self, i: usize) -> Result<&'a Array, OpError> {
        self.opt(i).ok_or_else(|| OpError(format!("input {i} is missing")))
    }

    /// Input `i` when present.
    pub fn opt(&self, i: usize) -> Option<&'a Array> {
        self.inputs.get(i).copied().flatten()
    }

    /// Integers of input `i` as a flat list, when present.
    pub fn ints(&self, i: usize) -> Result<Option<Vec<i64>>, OpError> {
        self.opt(i).map(|a| Ok(a.i()?.iter().copied().collect())).transpose()
    }
}

/// `axis` counted from the front, for a tensor of `rank`.
pub fn normalize_axis(axis: i64, rank: usize) -> Result<usize, OpError> {
    let n = rank as i64;
    if axis < -n || axis >= n {
        return Err(OpError(format!("axis {axis} is outside a tensor of rank {rank}")));
    }
    Ok(if axis < 0 { axis + n } else { axis } as usize)
}

/// Dims of two tensors broadcast together (numpy rules); an error gives both.
pub fn broadcast_dims(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, OpError> {
    let rank = a.len().max(b.len());
    let one = Dim::Known(1);
    let at = |s: &[Dim], i: usize| if i + s.len() >= rank { s[i + s.len() - rank].clone() } else { one.clone() };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (Dim::Known(1), y) => Ok(y),
            (x, Dim::Known(1)) => Ok(x),
            (Dim::Known(x), Dim::Known(y)) => {
                let show = |s: &[Dim]| s.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                Err(OpError(format!("shapes [{}] and [{}] do not broadcast ({x} against {y})", show(a), show(b))))
            }
            (Dim::Known(x), _) | (_, Dim::Known(x)) => Ok(Dim::Known(x)),
            _ => Ok(Dim::Unknown),
        })
        .collect()
}

/// Concrete shapes broadcast together.
pub fn broadcast_shapes(a: &[usize], b: &[usize]) -> Result<Vec<usize>, OpError> {
    let dims = |s: &[usize]| s.iter().map(|&n| Dim::Known(n)).collect::<Vec<_>>();
    Ok(broadcast_dims(&dims(a), &dims(b))?.iter().filter_map(Dim::known).collect())
}
