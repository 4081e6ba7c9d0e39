//! A node: operator, operands, attributes.

use crate::{Graph, ValueId};
use bytes::Bytes;
use indexmap::IndexMap;
use limbeck_tensor::Tensor;

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Attr {
    Int(i64),
    Float(f32),
    Str(Bytes),
    Tensor(Tensor),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strs(Vec<Bytes>),
    Graph(Box<Graph>),
    Graphs(Vec<Graph>),
    /// Kinds that are carried but not interpreted: an encoded AttributeProto.
    Raw(Bytes),
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Node {
    /// Operator type, such as `Conv`.
    pub op: String,
    /// Operator domain; "" is ai.onnx.
    pub domain: String,
    /// Which of several functions of this name (ONNX IR 10).
    pub overload: String,
    /// Name, may be empty.
    pub name: String,
    /// Operands; `None` is an absent optional one.
    pub inputs: Vec<Option<ValueId>>,
    /// Results; `None` is an absent optional one.
    pub outputs: Vec<Option<ValueId>>,
    /// Attributes by name, in file order.
    pub attrs: IndexMap<String, Attr>,
    /// The NodeProto as read.
    pub(crate) read: Option<Bytes>,
    /// The node is another by now and written anew; of what was read, attributes that stayed the same are taken.
    pub(crate) changed: bool,
    /// NodeProto fields that are not modelled (documentation, metadata), encoded.
    pub(crate) rest: Bytes,
}

impl Node {
    /// A node of ai.onnx without attributes.
    pub fn new(op: &str, inputs: &[ValueId], outputs: &[ValueId]) -> Node {
        Node {
            op: op.into(),
            inputs: inputs.iter().copied().map(Some).collect(),
            outputs: outputs.iter().copied().map(Some).collect(),
            ..Node::default()
        }
    }

    /// The NodeProto as read, while it holds.
    pub(crate) fn verbatim(&self) -> Option<&Bytes> {
        self.read.as_ref().filter(|_| !self.changed)
    }

    /// The node with one more attribute.
    pub fn with(mut self, name: &str, value: impl Into<Attr>) -> Node {
        self.attrs.insert(name.into(), value.into());
        self
    }

    /// The node in another domain.
    pub fn in_domain(mut self, domain: &str) -> Node {
        self.domain = domain.into();
        self
    }

    /// True for this operator ("ai.onnx" equals "").
    pub fn is(&self, domain: &str, op: &str) -> bool {
        self.op == op && self.domain_or_default() == domain
    }

    /// Domain with ai.onnx's long name shortened to "".
    pub fn domain_or_default(&self) -> &str {
        if self.domain == "ai.onnx" { "" } else { &self.domain }
    }

    /// `Conv`, or `domain::Op` outside ai.onnx.
    pub fn full_op(&self) -> String {
        match self.domain_or_default() {
            "" => self.op.clone(),
            domain => format!("{domain}::{}", self.op),
        }
    }

    /// Operand `i`, when present.
    pub fn input(&self, i: usize) -> Option<ValueId> {
        self.inputs.get(i).copied().flatten()
    }

    /// Result `i`, when present.
    pub fn output(&self, i: usize) -> Option<ValueId> {
        self.outputs.get(i).copied().flatten()
    }

    /// Integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attrs.get(name) {
            Some(Attr::Int(i)) => Some(*i),
            _ => None,
        }
    }

    /// Float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        match self.attrs.get(name) {
            Some(Attr::Float(f)) => Some(*f),
            _ => None,
        }
    }

    /// Integer-list attribute.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attrs.get(name) {
            Some(Attr::Ints(v)) => Some(v),
            _ => None,
        }
    }

    /// Float-list attribute.
    pub fn floats(&self, name: &str) -> Option<&[f32]> {
        match self.attrs.get(name) {
            Some(Attr::Floats(v)) => Some(v),
            _ => None,
        }
    }

    /// Text attribute.
    pub fn str(&self, name: &str) -> Option<&str> {
        match self.attrs.get(name) {
            Some(Attr::Str(s)) => std::str::from_utf8(s).ok(),
            _ => None,
        }
    }

    /// Tensor attribute.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match self.attrs.get(name) {
            Some(Attr::Tensor(t)) => Some(t),
            _ => None,
        }
    }

    /// Graph attribute.
    pub fn graph(&self, name: &str) -> Option<&Graph> {
        match self.attrs.get(name) {
            Some(Attr::Graph(g)) => Some(g),
            _ => None,
        }
    }

    /// A `metadata_props` entry of the node as it was read: exporters note there which module a node comes from.
    pub fn metadata(&self, key: &str) -> Option<String> {
        crate::onnx::node_metadata(&self.rest).into_iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// The tensor of a Constant node, in whichever of its forms.
    pub fn constant_value(&self) -> Option<Tensor> {
        if let Some(t) = self.tensor("value") {
            return Some(t.clone());
        }
        if let Some(i) = self.int("value_int") {
            return Some(Tensor::scalar(i));
        }
        if let Some(f) = self.float("value_float") {
            return Some(Tensor::scalar(f));
        }
        if let Some(v) = self.ints("value_ints") {
            return Tensor::new([v.len()], v.to_vec()).ok();
        }
        let v = self.floats("value_floats")?;
        Tensor::new([v.len()], v.to_vec()).ok()
    }

    /// Subgraphs of this node, in attribute order.
    pub fn subgraphs(&self) -> impl Iterator<Item = &Graph> {
        self.attrs.values().flat_map(|a| match a {
            Attr::Graph(g) => std::slice::from_ref(&**g),
            Attr::Graphs(v) => v.as_slice(),
            _ => &[],
        })
    }

    pub(crate) fn subgraphs_mut(&mut self) -> impl Iterator<Item = &mut Graph> {
        self.attrs.values_mut().flat_map(|a| match a {
            Attr::Graph(g) => std::slice::from_mut(&mut **g),
            Attr::Graphs(v) => v.as_mut_slice(),
            _ => &mut [],
        })
    }

    /// Values that this node reads: operands, and what its subgraphs capture.
    pub fn reads(&self) -> Vec<ValueId> {
        self.operands().collect()
    }

    /// As [`Node::reads`], one by one.
    pub(crate) fn operands(&self) -> impl Iterator<Item = ValueId> {
        let captured = self.subgraphs().flat_map(|g| g.captures.iter().map(|c| c.outer));
        self.inputs.iter().flatten().copied().chain(captured)
    }

    /// Reads `to` wherever it read `from`.
    pub fn replace_input(&mut self, from: ValueId, to: ValueId) {
        if !self.operands().any(|value| value == from) {
            return;
        }
        self.changed = true;
        for input in &mut self.inputs {
            if *input == Some(from) {
                *input = Some(to);
            }
        }
        for graph in self.subgraphs_mut() {
            for capture in &mut graph.captures {
                if capture.outer == from {
                    capture.outer = to;
                }
            }
        }
    }
}

macro_rules! attr_from {
    ($($t:ty => $e:expr;)*) => {
        $(impl From<$t> for Attr { fn from(v: $t) -> Attr { ($e)(v) } })*
    };
}
attr_from! {
    i64 => Attr::Int;
    usize => |v| Attr::Int(v as i64);
    f32 => Attr::Float;
    f64 => |v| Attr::Float(v as f32);
    &str => |v: &str| Attr::Str(Bytes::copy_from_slice(v.as_bytes()));
    Vec<i64> => Attr::Ints;
    &[i64] => |v: &[i64]| Attr::Ints(v.to_vec());
    Vec<usize> => |v: Vec<usize>| Attr::Ints(v.into_iter().map(|x| x as i64).collect());
    Vec<f32> => Attr::Floats;
    Tensor => Attr::Tensor;
    Graph => |g| Attr::Graph(Box::new(g));
}
