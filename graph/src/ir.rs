//! The graph: values, nodes, initializers, inputs and outputs. Ids stay valid while the graph is edited;
//! removed nodes leave a hole.

use crate::constants::Initializer;
use crate::names::Names;
use crate::types::{Dim, TensorType};
use crate::{GraphError, Node};
use bytes::Bytes;
use hashbrown::DefaultHashBuilder;
use indexmap::IndexMap;
use limbeck_tensor::DType;
use std::collections::{BTreeMap, HashMap};

/// Names a value of one graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) u32);

/// Names a node of one graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

/// An edge of the graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// ONNX name, unique in its graph.
    pub name: String,
    /// Tensor type, when declared or inferred. Sequences, optionals and maps have none.
    pub ty: Option<TensorType>,
    pub(crate) producer: Option<NodeId>,
    /// The ValueInfoProto as read.
    pub(crate) read: Option<Bytes>,
    /// The name or the type is another by now: only what was read besides still holds.
    pub(crate) changed: bool,
    /// The name is another by now: what was read with it is written anew.
    pub(crate) renamed: bool,
}

impl Value {
    /// The ValueInfoProto as read, while it holds.
    pub(crate) fn verbatim(&self) -> Option<&Bytes> {
        self.read.as_ref().filter(|_| !self.changed)
    }
}

/// A value that a subgraph takes from the graph around it.
#[derive(Debug, Clone, PartialEq)]
pub struct Capture {
    /// Value inside the subgraph.
    pub inner: ValueId,
    /// Value of the enclosing graph.
    pub outer: ValueId,
}

/// What an ONNX model says besides its graph. Empty in subgraphs read from a file: the model's holds for them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Meta {
    /// IR version of the file.
    pub ir_version: i64,
    /// (domain, version); "" is ai.onnx.
    pub opsets: Vec<(String, i64)>,
    /// Key and value of `metadata_props`.
    pub metadata: Vec<(String, String)>,
    /// Name of the program that made the file.
    pub producer: String,
    /// Model-local functions, encoded FunctionProtos.
    pub functions: Vec<Bytes>,
    /// Entries of `opsets` and `metadata` as read, where they are not encoded as they would be written; by the latter.
    pub(crate) entries: HashMap<Bytes, Bytes>,
    /// External files that functions and undecoded attributes refer to, by location.
    pub(crate) carried: BTreeMap<String, Bytes>,
    /// All other fields of the ModelProto, encoded.
    pub(crate) rest: Bytes,
}

/// A model or a subgraph.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    /// Name of the graph.
    pub name: String,
    /// Inputs in order. An input may also be an initializer (a default).
    pub inputs: Vec<ValueId>,
    /// Outputs in order.
    pub outputs: Vec<ValueId>,
    /// Facts about the model.
    pub meta: Meta,
    /// For subgraphs: values of the enclosing graph that are used here.
    pub captures: Vec<Capture>,
    pub(crate) values: Vec<Value>,
    pub(crate) nodes: Vec<Option<Node>>,
    pub(crate) order: Vec<NodeId>,
    pub(crate) initializers: IndexMap<ValueId, Initializer, DefaultHashBuilder>,
    pub(crate) names: Names,
    /// Declarations (ValueInfoProtos) beside the one that counts, written as long as the value's own is untouched.
    pub(crate) spare_infos: Vec<(ValueId, Bytes)>,
    /// Declarations in the list of outputs beside the one that counts: of inputs, and of values listed again.
    pub(crate) output_infos: Vec<(ValueId, Bytes)>,
    /// GraphProto fields that are not modelled, encoded.
    pub(crate) rest: Bytes,
}

/// Opset that the builder emits and that op specs describe.
pub const OPSET: i64 = 20;
/// ONNX IR version that the builder emits (with `overload` of functions).
pub const IR_VERSION: i64 = 10;
/// Domain of Limbeck's own ops.
pub const LIMBECK: &str = "ai.limbeck";

impl Graph {
    /// An empty graph at opset [`OPSET`].
    pub fn new(name: impl Into<String>) -> Graph {
        Graph {
            name: name.into(),
            inputs: vec![],
            outputs: vec![],
            meta: Meta {
                ir_version: IR_VERSION,
                opsets: vec![(String::new(), OPSET)],
                producer: "limbeck".into(),
                ..Meta::default()
            },
            captures: vec![],
            values: vec![],
            nodes: vec![],
            order: vec![],
            initializers: IndexMap::default(),
            names: Names::default(),
            spare_infos: vec![],
            output_infos: vec![],
            rest: Bytes::new(),
        }
    }

    /// The float type that the graph computes in: that of its first float value, float32 without one.
    pub(crate) fn float(&self) -> DType {
        let first = self.value_ids().filter_map(|v| self.ty(v)).find(|t| t.dtype.is_float());
        first.map_or(DType::F32, |t| t.dtype)
    }

    /// Version of an imported domain ("" is ai.onnx).
    pub fn opset(&self, domain: &str) -> Option<i64> {
        fn short(domain: &str) -> &str {
            if domain == "ai.onnx" { "" } else { domain }
        }
        self.meta.opsets.iter().find(|(d, _)| short(d) == short(domain)).map(|(_, v)| *v)
    }

    /// The value with this id.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// Name of a value.
    pub fn name_of(&self, id: ValueId) -> &str {
        &self.value(id).name
    }

    /// Type of a value, when known.
    pub fn ty(&self, id: ValueId) -> Option<&TensorType> {
        self.value(id).ty.as_ref()
    }

    /// Declares or corrects the type of a value.
    pub fn set_ty(&mut self, id: ValueId, ty: Option<TensorType>) {
        let value = &mut self.values[id.0 as usize];
        if value.ty != ty {
            value.ty = ty;
            value.changed = true;
        }
    }

    /// Concrete shape of a value; an error names the value and what is unknown.
    pub fn shape(&self, id: ValueId) -> Result<Vec<usize>, GraphError> {
        let value = self.value(id);
        value.ty.as_ref().and_then(TensorType::concrete).ok_or_else(|| GraphError::Value {
            name: value.name.clone(),
            reason: match &value.ty {
                Some(t) if t.dims.iter().flatten().any(|d| matches!(d, Dim::Named(_))) => {
                    format!("its shape {t} has named dims; give them numbers first (bind_dims, --dim NAME=N)")
                }
                Some(t) => format!(
                    "its shape {t} is not fully known: it depends on data, or on shapes that are not folded yet \
                     (canonicalise, then bind_dims or fold_shapes)"
                ),
                None => "its type is unknown".into(),
            },
        })
    }

    /// All value ids.
    pub fn value_ids(&self) -> impl ExactSizeIterator<Item = ValueId> + use<> {
        (0..self.values.len() as u32).map(ValueId)
    }

    /// The value of this name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.names.find(&self.values, name)
    }

    /// As [`Graph::find`], with an error that lists what comes close.
    pub fn require(&self, name: &str) -> Result<ValueId, GraphError> {
        self.find(name).ok_or_else(|| {
            let all = self.values.iter().map(|v| v.name.as_str());
            let mut near: Vec<&str> = all.filter(|n| n.contains(name) || name.contains(*n)).collect();
            near.sort_unstable();
            near.truncate(5);
            let hint = if near.is_empty() { String::new() } else { format!("; there are {}", near.join(", ")) };
            GraphError::Value { name: name.into(), reason: format!("no such value in graph '{}'{hint}", self.name) }
        })
    }

    /// Adds a value; a taken or empty name gets a suffix.
    pub fn add_value(&mut self, name: impl Into<String>, ty: Option<TensorType>) -> ValueId {
        let mut name = name.into();
        if name.is_empty() {
            name.push('v');
        }
        if self.find(&name).is_some() {
            name = self.free_name(&name);
        }
        let id = ValueId(self.values.len() as u32);
        self.values.push(Value { name, ty, producer: None, read: None, changed: false, renamed: false });
        self.names.insert(&self.values, id);
        id
    }

    /// `base`, with a suffix when a value has that name.
    pub(crate) fn free_name(&self, base: &str) -> String {
        let mut name = base.to_owned();
        let mut n = self.values.len();
        while self.find(&name).is_some() {
            name = format!("{base}.{n}");
            n += 1;
        }
        name
    }

    /// Renames a value; the name must be free.
    pub fn rename(&mut self, id: ValueId, name: &str) -> Result<(), GraphError> {
        match self.find(name) {
            Some(other) if other == id => return Ok(()),
            Some(_) => {
                return Err(GraphError::Value { name: name.into(), reason: "name is already taken".into() });
            }
            None => {}
        }
        self.names.remove(&self.values, id);
        let value = &mut self.values[id.0 as usize];
        value.name = name.to_owned();
        (value.changed, value.renamed) = (true, true);
        self.names.insert(&self.values, id);
        Ok(())
    }

    /// Adds a graph input.
    pub fn add_input(&mut self, name: impl Into<String>, ty: TensorType) -> ValueId {
        let id = self.add_value(name, Some(ty));
        self.inputs.push(id);
        id
    }

    /// Node that computes a value.
    pub fn producer(&self, id: ValueId) -> Option<NodeId> {
        self.value(id).producer
    }

    /// The node with this id, which must not have been removed.
    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0 as usize].as_ref().expect("node ids held by callers are live")
    }

    /// A node to change: operator, attributes and operands. From then on it is written anew instead of verbatim. Its
    /// outputs stay those it was added with: to change them remove the node and add another ([`Graph::verify`] tells).
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        let node = self.nodes[id.0 as usize].as_mut().expect("node ids held by callers are live");
        node.changed = true;
        node
    }

    /// Node ids in execution order.
    pub fn node_ids(&self) -> Vec<NodeId> {
        self.order.clone()
    }

    /// Nodes in execution order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.order.iter().map(|&id| (id, self.node(id)))
    }

    /// Number of nodes.
    pub fn node_count(&self) -> usize {
        self.order.len()
    }

    /// Value of a metadata key.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.meta.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Sets a metadata key.
    pub fn set_metadata(&mut self, key: &str, value: impl Into<String>) {
        self.meta.metadata.retain(|(k, _)| k != key);
        self.meta.metadata.push((key.into(), value.into()));
    }
}
