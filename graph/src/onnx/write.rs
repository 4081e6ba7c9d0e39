//! [`Graph`] to ONNX bytes. The encoded model is a list of pieces: small ones made here, large ones slices of
//! the mapped file or of tensors. All lengths are known before the first byte is written.

use super::proto::attribute_type;
use super::wire::{ByNumber, Message};
use super::{external, tensor};
use crate::{Attr, Dim, Graph, GraphError, LIMBECK, Node, Value, ValueId};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
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

fn domains<'a>(graph: &'a Graph, found: &mut HashSet<&'a str>) {
    for (_, node) in graph.nodes() {
        found.insert(node.domain_or_default());
        node.subgraphs().for_each(|g| domains(g, found));
    }
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
        m.put(1, |m| m.int(1, meta.ir_version));
        if !meta.producer.is_empty() {
            m.put(2, |m| m.text(2, &meta.producer));
        }
        let body = self.graph(graph, &HashMap::new())?;
        m.put(7, |m| m.message(7, body));
        let mut used = HashSet::new();
        domains(graph, &mut used);
        let own = (used.contains(LIMBECK) && graph.opset(LIMBECK).is_none()).then(|| (LIMBECK.to_owned(), 1));
        for (domain, version) in meta.opsets.iter().chain(&own) {
            let mut id = Message::default();
            id.text(1, domain);
            id.int(2, *version);
            m.put(8, |m| m.message(8, id));
        }
        for (key, value) in &meta.metadata {
            let mut entry = Message::default();
            entry.text(1, key);
            entry.text(2, value);
            m.put(14, |m| m.message(14, entry));
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
            let verbatim = node.raw.clone().filter(|_| {
                let clean = |id: &ValueId| !renamed.contains_key(id) && !graph.renamed.contains(id);
                let all_clean = renamed.is_empty() && graph.renamed.is_empty();
                all_clean || node.reads().iter().chain(node.outputs.iter().flatten()).all(clean)
            });
            match verbatim {
                Some(raw) => m.put(1, |m| m.bytes(1, raw)),
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
            let raw = init.raw.as_ref().filter(|_| init.external.is_none() || !self.embed);
            match raw {
                Some(raw) => {
                    let number = if init.sparse { 15 } else { 5 };
                    m.put(number, |m| m.bytes(number, raw.clone()));
                    if let Some(external) = &init.external {
                        self.external.insert(external.location.clone(), external.file.clone());
                    }
                }
                None => m.put(5, |m| m.message(5, tensor::encode(graph.name_of(*id), &init.tensor))),
            }
        }
        for &id in &graph.inputs {
            m.put(11, |m| value_info(m, 11, graph.value(id), name_of(id)));
        }
        let mut again: HashMap<ValueId, VecDeque<&Bytes>> = HashMap::new();
        for (id, raw) in graph.output_infos.iter().filter(|(id, _)| graph.value(*id).raw.is_some()) {
            again.entry(*id).or_default().push_back(raw);
        }
        let mut seen: HashSet<ValueId> = graph.inputs.iter().copied().collect();
        for &id in &graph.outputs {
            let own = if seen.insert(id) { None } else { again.get_mut(&id).and_then(VecDeque::pop_front) };
            match own.filter(|_| name_of(id) == graph.name_of(id)) {
                Some(raw) => m.put(12, |m| m.bytes(12, raw.clone())),
                None => m.put(12, |m| value_info(m, 12, graph.value(id), name_of(id))),
            }
        }
        let listed: HashSet<ValueId> = graph.inputs.iter().chain(&graph.outputs).copied().collect();
        for id in graph.value_ids().filter(|id| !listed.contains(id)) {
            let value = graph.value(id);
            let computed = value.producer.is_some() && (value.raw.is_some() || value.ty.is_some());
            if computed || (value.raw.is_some() && graph.initializer(id).is_some()) {
                m.put(13, |m| value_info(m, 13, value, &value.name));
            }
        }
        for (_, raw) in graph.spare_infos.iter().filter(|(id, _)| graph.value(*id).raw.is_some()) {
            m.put(13, |m| m.bytes(13, raw.clone()));
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
        m.text_unless_empty(3, &node.name);
        m.text(4, &node.op);
        for (name, attr) in &node.attrs {
            match attr {
                Attr::Raw(raw) => m.bytes(5, raw.clone()),
                attr => {
                    let attribute = self.attribute(graph, name, attr, name_of)?;
                    m.message(5, attribute);
                }
            }
        }
        m.text_unless_empty(7, &node.domain);
        m.text_unless_empty(8, &node.overload);
        m.encoded(node.rest.clone());
        Ok(m)
    }

    fn attribute<'g>(
        &mut self,
        graph: &Graph,
        name: &str,
        attr: &Attr,
        name_of: &impl Fn(ValueId) -> &'g str,
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
                m.message(5, tensor::encode("", t));
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
        m.int(20, i64::from(kind));
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

/// A ValueInfoProto as field `number`.
fn value_info(m: &mut Message, number: u32, value: &Value, name: &str) {
    if let Some(raw) = value.raw.as_ref().filter(|_| value.name == name) {
        m.bytes(number, raw.clone());
        return;
    }
    let mut info = Message::default();
    info.text(1, name);
    if let Some(ty) = &value.ty {
        let mut tensor = Message::default();
        tensor.int(1, i64::from(ty.dtype.to_onnx()));
        if let Some(dims) = &ty.dims {
            let mut shape = Message::default();
            for d in dims {
                let mut dim = Message::default();
                match d {
                    Dim::Known(n) => dim.int(1, *n as i64),
                    Dim::Named(n) => dim.text(2, n),
                    Dim::Unknown => {}
                }
                shape.message(1, dim);
            }
            tensor.message(2, shape);
        }
        let mut ty = Message::default();
        ty.message(1, tensor);
        info.message(2, ty);
    }
    m.message(number, info);
}
