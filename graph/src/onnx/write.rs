//! [`Graph`] to ONNX bytes. The encoded model is a list of pieces: small ones made here, large ones slices of
//! the mapped file or of tensors. All lengths are known before the first byte is written.

use super::attribute::{Former, says};
use super::proto::attribute_type;
use super::wire::{self, ByNumber, Message};
use super::{external, function, info, tensor};
use crate::{Attr, Graph, GraphError, LIMBECK, Node, ValueId, ValueSet};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;

/// Largest message that protobuf readers accept.
const MAX_BYTES: usize = i32::MAX as usize;

pub(super) fn to_file(graph: &Graph, path: &Path) -> Result<(), GraphError> {
    let mut writer = Writer { embed: false, external: BTreeMap::new() };
    let message = writer.model(graph, &path.display().to_string())?;
    external::write_all(&writer.external, path)?;
    limbeck_tensor::replace_file_with(path, |w| message.write(w))?;
    Ok(())
}

pub(super) fn to_bytes(graph: &Graph) -> Result<Bytes, GraphError> {
    let mut writer = Writer { embed: true, external: BTreeMap::new() };
    Ok(writer.model(graph, "model bytes")?.into_bytes())
}

impl Graph {
    /// Replaces the builder's `StopGradient` and `WithGrad` by `Identity` of their first operand, subgraphs
    /// included, and removes what only gradients needed. [`Graph::write`] does this by itself.
    pub fn lower_primitives(&mut self) {
        for id in self.node_ids() {
            let node = self.node(id);
            if is_primitive(node) {
                let node = self.node_mut(id);
                node.op = "Identity".into();
                node.domain = String::new();
                node.inputs.truncate(1);
                node.attrs.clear();
            } else if node.subgraphs().any(has_primitives) {
                self.node_mut(id).subgraphs_mut().for_each(Graph::lower_primitives);
            }
        }
        self.remove_dead();
    }
}

fn is_primitive(node: &Node) -> bool {
    node.is(LIMBECK, "StopGradient") || node.is(LIMBECK, "WithGrad")
}

fn has_primitives(graph: &Graph) -> bool {
    graph.nodes().any(|(_, n)| is_primitive(n) || n.subgraphs().any(has_primitives))
}

fn uses_own_ops(graph: &Graph) -> bool {
    graph.nodes().any(|(_, n)| n.domain == LIMBECK || n.subgraphs().any(uses_own_ops))
}

/// State of one writing.
struct Writer {
    /// Embed external data instead of referring to it.
    embed: bool,
    /// External files that the written model refers to.
    external: BTreeMap<String, Bytes>,
}

impl Writer {
    fn model(&mut self, graph: &Graph, file: &str) -> Result<Message, GraphError> {
        if has_primitives(graph) {
            let mut lowered = graph.clone();
            lowered.lower_primitives();
            return self.model(&lowered, file);
        }
        let mut m = ByNumber::default();
        let meta = &graph.meta;
        if meta.ir_version != 0 {
            m.put(1, |m| m.int(1, meta.ir_version));
        }
        if !meta.producer.is_empty() {
            m.put(2, |m| m.text(2, &meta.producer));
        }
        let body = self.graph(graph, &HashMap::new())?;
        m.put(7, |m| m.message(7, body));
        let own = undeclared(graph);
        let entry = |message: Message| {
            let written = message.into_bytes();
            meta.entries.get(&written).cloned().unwrap_or(written)
        };
        for (domain, version) in meta.opsets.iter().chain(&own) {
            m.put(8, |m| m.bytes(8, entry(opset(domain, *version))));
        }
        for (key, value) in &meta.metadata {
            m.put(14, |m| m.bytes(14, entry(property(key, value))));
        }
        for function in &meta.functions {
            m.put(25, |m| m.bytes(25, function.clone()));
        }
        m.rest(&meta.rest);
        if let Some(location) = meta.carried.keys().next().filter(|_| self.embed) {
            let reason =
                format!("a function or an undecoded attribute keeps data in '{location}'; write a file instead");
            return Err(GraphError::Format { file: file.into(), reason });
        }
        self.external.extend(meta.carried.clone());
        let message = m.finish();
        if message.len() > MAX_BYTES {
            let reason = format!("the model takes {} bytes, but protobuf readers stop at 2 GiB", message.len());
            return Err(GraphError::Format { file: file.into(), reason });
        }
        Ok(message)
    }

    /// A GraphProto. `renamed` gives captures whose outer value is called otherwise than in here.
    fn graph(&mut self, graph: &Graph, renamed: &HashMap<ValueId, String>) -> Result<Message, GraphError> {
        for (id, name) in renamed {
            if graph.find(name).is_some_and(|other| other != *id) {
                let reason = "a captured value was renamed to what a value of the subgraph is called".into();
                return Err(GraphError::Value { name: name.clone(), reason });
            }
        }
        let name_of = |id: ValueId| renamed.get(&id).map_or_else(|| graph.name_of(id), String::as_str);
        let mut m = ByNumber::default();
        for (_, node) in graph.nodes() {
            let clean = |id: ValueId| !graph.value(id).renamed && (renamed.is_empty() || !renamed.contains_key(&id));
            match node.verbatim().filter(|_| node.operands().chain(node.outputs.iter().flatten().copied()).all(clean)) {
                Some(raw) => m.put(1, |m| m.bytes(1, raw.clone())),
                None => {
                    let node = self.node(graph, node, &name_of)?;
                    m.put(1, |m| m.message(1, node));
                }
            }
        }
        if !graph.name.is_empty() {
            m.put(2, |m| m.text(2, &graph.name));
        }
        for (id, init) in &graph.initializers {
            let (raw, name) =
                (init.raw.as_ref().filter(|_| init.external.is_none() || !self.embed), graph.name_of(*id));
            let number = if init.sparse && raw.is_some() { 15 } else { 5 };
            m.put(number, |m| match raw {
                Some(raw) if graph.value(*id).renamed => m.message(number, tensor::renamed(raw, init.sparse, name)),
                Some(raw) => m.bytes(number, raw.clone()),
                None => m.message(number, tensor::encode_initializer(name, init)),
            });
            if let (Some(external), true) = (&init.external, raw.is_some()) {
                self.external.insert(external.location.clone(), external.file.clone());
            }
        }
        for &id in &graph.inputs {
            m.put(11, |m| m.message(11, info::encode(graph.value(id), name_of(id))));
        }
        let mut again: HashMap<ValueId, VecDeque<&Bytes>> = HashMap::new();
        for (id, raw) in graph.output_infos.iter().filter(|(id, _)| info::holds(graph.value(*id))) {
            again.entry(*id).or_default().push_back(raw);
        }
        let mut seen: ValueSet = graph.inputs.iter().copied().collect();
        for &id in &graph.outputs {
            let own = if seen.insert(id) { None } else { again.get_mut(&id).and_then(VecDeque::pop_front) };
            m.put(12, |m| match own {
                Some(raw) => m.message(12, info::named(raw, name_of(id))),
                None => m.message(12, info::encode(graph.value(id), name_of(id))),
            });
        }
        let listed: ValueSet = graph.inputs.iter().chain(&graph.outputs).copied().collect();
        for id in graph.value_ids().filter(|&id| !listed.contains(id)) {
            let value = graph.value(id);
            let constant = graph.initializer(id).is_some();
            if (constant || value.producer.is_some()) && info::is_declared(value, constant) {
                m.put(13, |m| m.message(13, info::encode(value, &value.name)));
            }
        }
        for (id, raw) in graph.spare_infos.iter().filter(|(id, _)| info::holds(graph.value(*id))) {
            m.put(13, |m| m.message(13, info::named(raw, name_of(*id))));
        }
        m.rest(&graph.rest);
        Ok(m.finish())
    }

    fn node<'g>(
        &mut self,
        graph: &Graph,
        node: &Node,
        name_of: &impl Fn(ValueId) -> &'g str,
    ) -> Result<Message, GraphError> {
        let mut m = Message::default();
        for (number, operands) in [(1, &node.inputs), (2, &node.outputs)] {
            for operand in operands {
                m.text(number, operand.map_or("", name_of));
            }
        }
        let read = node.read.as_ref().map(Former::of).unwrap_or_default();
        let text = |m: &mut Message, number: u32, text: &str| {
            if !text.is_empty() || read.empty.contains(&number) {
                m.text(number, text);
            }
        };
        text(&mut m, 3, &node.name);
        let (op, overload) = function::with_overload(&node.domain, &node.op, &node.overload);
        m.text(4, &op);
        for (name, attr) in &node.attrs {
            match (attr, read.attributes.get(name)) {
                (Attr::Raw(raw), _) => m.bytes(5, raw.clone()),
                (attr, Some(raw)) if says(raw, attr) => m.bytes(5, raw.clone()),
                (attr, read) => {
                    let attribute = self.attribute(graph, name, attr, name_of, read.unwrap_or(&Bytes::new()))?;
                    m.message(5, attribute);
                }
            }
        }
        // In the order of their numbers, as protobuf writers do.
        m.encoded(wire::kept(&node.rest, |number| number < 7));
        text(&mut m, 7, &node.domain);
        text(&mut m, 8, overload);
        m.encoded(wire::kept(&node.rest, |number| number > 8));
        Ok(m)
    }

    /// An AttributeProto; `read` is the encoded one that it takes the place of, or empty.
    fn attribute<'g>(
        &mut self,
        graph: &Graph,
        name: &str,
        attr: &Attr,
        name_of: &impl Fn(ValueId) -> &'g str,
        read: &Bytes,
    ) -> Result<Message, GraphError> {
        use attribute_type::*;
        let mut m = Message::default();
        m.text(1, name);
        let kind = match attr {
            Attr::Float(v) => {
                m.float(2, *v);
                FLOAT
            }
            Attr::Int(v) => {
                m.int(3, *v);
                INT
            }
            Attr::Str(v) => {
                m.bytes(4, v.clone());
                STRING
            }
            Attr::Tensor(t) => {
                m.message(5, tensor::encode("", t, Bytes::new()));
                TENSOR
            }
            Attr::Graph(g) => {
                m.message(6, self.subgraph(graph, g, name_of)?);
                GRAPH
            }
            Attr::Floats(v) => {
                v.iter().for_each(|&x| m.float(7, x));
                FLOATS
            }
            Attr::Ints(v) => {
                v.iter().for_each(|&x| m.int(8, x));
                INTS
            }
            Attr::Strs(v) => {
                v.iter().for_each(|s| m.bytes(9, s.clone()));
                STRINGS
            }
            Attr::Graphs(v) => {
                for g in v {
                    m.message(11, self.subgraph(graph, g, name_of)?);
                }
                GRAPHS
            }
            // Written by the caller, whole.
            Attr::Raw(_) => return Ok(m),
        };
        m.encoded(wire::kept(read, |number| number == 13));
        m.int(20, i64::from(kind));
        m.encoded(wire::kept(read, |number| number > 23));
        Ok(m)
    }

    fn subgraph<'g>(
        &mut self,
        graph: &Graph,
        sub: &Graph,
        name_of: &impl Fn(ValueId) -> &'g str,
    ) -> Result<Message, GraphError> {
        let captured = sub.captures.iter().filter(|c| (c.outer.0 as usize) < graph.value_ids().len());
        let renamed =
            captured.map(|c| (c.inner, name_of(c.outer))).filter(|(inner, name)| sub.name_of(*inner) != *name);
        let renamed: HashMap<ValueId, String> = renamed.map(|(id, name)| (id, name.to_owned())).collect();
        self.graph(sub, &renamed)
    }
}

/// A NodeProto of a graph in memory.
pub(super) fn node(graph: &Graph, node: &Node) -> Result<Message, GraphError> {
    let mut writer = Writer { embed: true, external: BTreeMap::new() };
    writer.node(graph, node, &|id| graph.name_of(id))
}

/// The import of Limbeck's own domain, if a graph uses it and does not declare it.
pub(super) fn undeclared(graph: &Graph) -> Option<(String, i64)> {
    (graph.opset(LIMBECK).is_none() && uses_own_ops(graph)).then(|| (LIMBECK.to_owned(), 1))
}

/// An entry of the imported opsets.
pub(super) fn opset(domain: &str, version: i64) -> Message {
    let mut m = Message::default();
    m.text(1, domain);
    m.int(2, version);
    m
}

/// An entry of the model's metadata.
pub(super) fn property(key: &str, value: &str) -> Message {
    let mut m = Message::default();
    m.text(1, key);
    m.text(2, value);
    m
}
