//! ONNX bytes to [`Graph`]. The input is not trusted: every length, index, name and path is checked, nesting is
//! bounded, and nothing is allocated that the file does not pay for with bytes of its own.

use super::attribute::{kind_of, plain};
use super::external::{Files, Part};
use super::function;
use super::proto::{AttributeProto, OperatorSetIdProto, StringStringEntryProto, attribute_type};
use super::scope::{Scope, declare};
use super::tensor::{self, TensorProto};
use super::wire::{self, Field, Message};
use super::write;
use crate::constants::{External, Initializer};
use crate::{Attr, Graph, GraphError, Meta, Node, TensorType};
use bytes::{Bytes, BytesMut};
use prost::Message as _;
use std::collections::HashMap;
use std::path::Path;

/// Deepest nesting of subgraphs.
const MAX_DEPTH: usize = 32;
/// Bytes that all sparse initializers of a file together may take when made dense.
const MAX_DENSE: usize = 1 << 28;

/// Decodes a model; `file` is what errors call it.
pub(super) fn model(bytes: &Bytes, file: &str, folder: Option<&Path>) -> Result<Graph, GraphError> {
    let mut reader = Reader { files: Files::new(folder), external_uses: 0, dense: MAX_DENSE };
    let graph = reader.model(bytes).map_err(|reason| GraphError::Format { file: file.into(), reason })?;
    graph.verify().map_err(|e| GraphError::Format { file: file.into(), reason: e.to_string() })?;
    Ok(graph)
}

/// State of one reading.
pub(super) struct Reader<'a> {
    files: Files<'a>,
    /// How many tensors took their data from external files.
    external_uses: usize,
    /// Bytes that may still be spent on sparse tensors.
    dense: usize,
}

/// A node whose operands and attributes are still to be read from its encoded form.
pub(super) struct RawNode {
    node: Node,
    encoded: Bytes,
}

impl Reader<'_> {
    /// For parts of a model that is read already; external data is refused.
    pub(super) fn detached() -> Reader<'static> {
        Reader { files: Files::new(None), external_uses: 0, dense: MAX_DENSE }
    }

    fn model(&mut self, bytes: &Bytes) -> Result<Graph, String> {
        let mut meta = Meta::default();
        let (mut graph, mut rest, mut imports) = (None, Rest::default(), HashMap::new());
        for field in wire::fields(bytes) {
            let field = field.map_err(|e| format!("is damaged or not an ONNX model: {e}"))?;
            match field.number {
                1 => meta.ir_version = field.int()?,
                2 if !field.bytes()?.is_empty() => meta.producer = field.text()?.into(),
                7 if graph.is_some() => return Err("holds two graphs".into()),
                7 => graph = Some(field.bytes()?),
                8 => {
                    let id = OperatorSetIdProto::decode(field.bytes()?).map_err(|e| format!("opset import: {e}"))?;
                    let domain = if id.domain == "ai.onnx" { "" } else { &id.domain };
                    let first = *imports.entry(domain.to_owned()).or_insert(id.version);
                    if first != id.version {
                        let versions = format!("{first} and {}", id.version);
                        return Err(format!("imports domain '{}' at versions {versions}; keep one", id.domain));
                    }
                    keep_entry(&mut meta, write::opset(&id.domain, id.version), field.bytes()?);
                    meta.opsets.push((id.domain, id.version));
                }
                14 => {
                    let entry = StringStringEntryProto::decode(field.bytes()?).map_err(|e| format!("metadata: {e}"))?;
                    keep_entry(&mut meta, write::property(&entry.key, &entry.value), field.bytes()?);
                    meta.metadata.push((entry.key, entry.value));
                }
                25 => {
                    let function = field.bytes()?;
                    self.files.carry(Part::Function, &function).map_err(|e| format!("a function: {e}"))?;
                    meta.functions.push(function);
                }
                20 => {
                    self.files.carry(Part::Training, &field.bytes()?).map_err(|e| format!("training info: {e}"))?;
                    rest.keep(field);
                }
                _ => rest.keep(field),
            }
        }
        meta.rest = rest.finish();
        let graph = graph.ok_or("holds no graph; it is truncated or not an ONNX model")?;
        let mut graph = self.graph(&graph, 0)?;
        meta.carried = std::mem::take(&mut self.files.carried);
        graph.meta = meta;
        let own = write::undeclared(&graph);
        graph.meta.opsets.extend(own);
        Ok(graph)
    }

    fn graph(&mut self, bytes: &Bytes, depth: usize) -> Result<Graph, String> {
        if depth > MAX_DEPTH {
            return Err(format!("subgraphs are nested more than {MAX_DEPTH} deep"));
        }
        let graph = Graph { meta: Meta::default(), ..Graph::new("") };
        let mut scope = Scope::new(graph, depth > 0);
        let mut rest = Rest::default();
        let (mut nodes, mut weights, mut inputs, mut outputs, mut infos) = (vec![], vec![], vec![], vec![], vec![]);
        for field in wire::fields(bytes) {
            let field = field.map_err(|e| format!("graph: {e}"))?;
            match field.number {
                1 => nodes.push(field.bytes()?),
                2 if !field.bytes()?.is_empty() => scope.graph.name = field.text()?.into(),
                5 | 15 => weights.push((field.number == 15, field.bytes()?)),
                11 => inputs.push(field.bytes()?),
                12 => outputs.push(field.bytes()?),
                13 => infos.push(field.bytes()?),
                _ => rest.keep(field),
            }
        }
        scope.graph.rest = rest.finish();
        for raw in inputs {
            let id = declare(&mut scope, raw, "input")?;
            if !scope.provided.insert(id) {
                return Err(format!("input '{}' is listed twice", scope.graph.name_of(id)));
            }
            scope.inputs.insert(id);
            scope.graph.inputs.push(id);
        }
        for (sparse, raw) in weights {
            self.initializer(&mut scope, raw, sparse)?;
        }
        for raw in infos {
            declare(&mut scope, raw, "value")?;
        }
        let nodes = nodes.into_iter().map(|raw| raw_node(&mut scope, raw)).collect::<Result<Vec<_>, _>>()?;
        let outputs =
            outputs.into_iter().map(|raw| declare(&mut scope, raw, "output")).collect::<Result<Vec<_>, _>>()?;
        for raw in nodes {
            self.node(&mut scope, raw, depth)?;
        }
        for id in outputs {
            let name = scope.graph.name_of(id).to_owned();
            let id = scope.resolve(&name, |_| "the graph's output list".into())?;
            scope.graph.outputs.push(id);
        }
        scope.spare_unwritten();
        let mut graph = scope.graph;
        if !in_order(&graph) {
            graph.sort().map_err(|e| e.to_string())?;
        }
        Ok(graph)
    }

    fn initializer(&mut self, scope: &mut Scope, raw: Bytes, sparse: bool) -> Result<(), String> {
        let (name, mut init) = if sparse {
            let (name, tensor) = tensor::densify(&raw, self.dense)?;
            self.dense -= tensor.byte_len();
            (name, Initializer::new(tensor))
        } else {
            let t = TensorProto::decode(&raw).map_err(|e| format!("initializer: {e}"))?;
            (t.name.clone(), self.tensor(t)?)
        };
        if name.is_empty() {
            return Err("an initializer has no name".into());
        }
        init.sparse = sparse;
        init.raw = Some(raw);
        let id = scope.value(&name);
        if scope.graph.initializers.contains_key(&id) {
            return Err(format!("two initializers are called '{name}'"));
        }
        scope.provided.insert(id);
        if scope.graph.ty(id).is_none() {
            scope.graph.set_ty(id, Some(TensorType::of(&init.tensor)));
        }
        scope.graph.initializers.insert(id, init);
        Ok(())
    }

    fn tensor(&mut self, t: TensorProto) -> Result<Initializer, String> {
        let (name, literal) = (t.name.clone(), t.literal);
        let fail = |e: String| format!("tensor '{name}': {e}");
        let external = match t.external().map_err(fail)? {
            None => None,
            Some(at) => {
                self.external_uses += 1;
                Some(External { file: self.files.map(&at.location).map_err(fail)?, location: at.location })
            }
        };
        let tensor = t.tensor(external.as_ref().map(|e| &e.file)).map_err(fail)?;
        Ok(Initializer { external, literal, ..Initializer::new(tensor) })
    }

    pub(super) fn node(&mut self, scope: &mut Scope, raw: RawNode, depth: usize) -> Result<(), String> {
        let RawNode { mut node, encoded } = raw;
        let uses = self.external_uses;
        for field in wire::fields(&encoded) {
            let field = field?;
            match field.number {
                1 => {
                    let name = field.text()?;
                    let operand = (!name.is_empty()).then(|| scope.resolve(name, |graph| label(&node, graph)));
                    node.inputs.push(operand.transpose()?);
                }
                5 => {
                    let (name, attr) =
                        self.attribute(scope, field.bytes()?, &node, depth).map_err(|e| match depth {
                            0 => format!("{}: {e}", label(&node, &scope.graph)),
                            _ => e,
                        })?;
                    if node.attrs.contains_key(&name) {
                        return Err(format!("{}: attribute '{name}' is given twice", label(&node, &scope.graph)));
                    }
                    node.attrs.insert(name, attr);
                }
                _ => {}
            }
        }
        if self.external_uses > uses {
            // External data inside attributes is tracked by the decoded form only.
            node.changed = true;
        }
        scope.graph.push_in_order(node);
        Ok(())
    }

    pub(super) fn attribute(
        &mut self,
        scope: &mut Scope,
        raw: Bytes,
        node: &Node,
        depth: usize,
    ) -> Result<(String, Attr), String> {
        let a = AttributeProto::decode(raw.clone()).map_err(|e| format!("attribute: {e}"))?;
        let name = a.name.clone();
        if name.is_empty() {
            return Err("an attribute has no name".into());
        }
        if !a.ref_attr_name.is_empty() {
            return Ok((name, Attr::Raw(raw)));
        }
        let attr = match kind_of(&a) {
            attribute_type::TENSOR => {
                let t =
                    TensorProto::decode(&a.t.unwrap_or_default()).map_err(|e| format!("attribute '{name}': {e}"))?;
                if t.dtype().is_none() {
                    let attr = self.carried(&name, raw)?;
                    return Ok((name, attr));
                }
                Attr::Tensor(self.tensor(t).map_err(|e| format!("attribute '{name}': {e}"))?.tensor)
            }
            attribute_type::GRAPH => {
                let g = a.g.ok_or_else(|| format!("attribute '{name}' lacks its graph"))?;
                Attr::Graph(Box::new(self.subgraph(scope, &g, &name, node, depth)?))
            }
            attribute_type::GRAPHS => {
                let graphs = a.graphs.iter().map(|g| self.subgraph(scope, g, &name, node, depth));
                Attr::Graphs(graphs.collect::<Result<_, _>>()?)
            }
            _ => match plain(a) {
                Some(attr) => attr,
                None => self.carried(&name, raw)?,
            },
        };
        Ok((name, attr))
    }

    /// An attribute of a kind that is not decoded.
    fn carried(&mut self, name: &str, raw: Bytes) -> Result<Attr, String> {
        self.files.carry(Part::Attribute, &raw).map_err(|e| format!("attribute '{name}': {e}"))?;
        Ok(Attr::Raw(raw))
    }

    /// A subgraph, its captures resolved against `scope`.
    fn subgraph(
        &mut self,
        scope: &mut Scope,
        bytes: &Bytes,
        attribute: &str,
        node: &Node,
        depth: usize,
    ) -> Result<Graph, String> {
        let mut sub = self.graph(bytes, depth + 1).map_err(|e| format!("subgraph '{attribute}': {e}"))?;
        for i in 0..sub.captures.len() {
            let inner = sub.captures[i].inner;
            let name = sub.name_of(inner).to_owned();
            let reader = |graph: &Graph| format!("{}, in its subgraph '{attribute}',", label(node, graph));
            let outer = scope.resolve(&name, reader)?;
            sub.captures[i].outer = outer;
            // What the file declares stands, understood or not.
            if sub.value(inner).verbatim().is_none() {
                sub.set_ty(inner, scope.graph.ty(outer).cloned());
            }
        }
        Ok(sub)
    }
}

/// Remembers an entry that would be written otherwise.
fn keep_entry(meta: &mut Meta, written: Message, read: Bytes) {
    let written = written.into_bytes();
    if written != read {
        meta.entries.insert(written, read);
    }
}

/// Scans a NodeProto and claims its outputs.
pub(super) fn raw_node(scope: &mut Scope, raw: Bytes) -> Result<RawNode, String> {
    let mut node = Node::default();
    let (mut outputs, mut rest) = (vec![], Rest::default());
    for field in wire::fields(&raw) {
        let field = field.map_err(|e| format!("node '{}': {e}", node.name))?;
        match field.number {
            1 => _ = field.text()?,
            2 => outputs.push(field),
            3 => node.name = field.text()?.into(),
            4 => node.op = field.text()?.into(),
            5 => _ = field.bytes()?,
            7 => node.domain = field.text()?.into(),
            8 => node.overload = field.text()?.into(),
            _ => rest.keep(field),
        }
    }
    function::split_overload(&node.domain, &mut node.op, &mut node.overload);
    if node.op.is_empty() {
        return Err(format!("node '{}' has no operator", node.name));
    }
    for output in outputs {
        let name = output.text()?;
        let id = (!name.is_empty()).then(|| scope.value(name));
        if id.is_some_and(|id| !scope.provided.insert(id)) {
            return Err(format!(
                "node '{}' ({}) assigns '{name}', which has a value already",
                node.name,
                node.full_op()
            ));
        }
        node.outputs.push(id);
    }
    node.rest = rest.finish();
    node.read = Some(raw.clone());
    Ok(RawNode { node, encoded: raw })
}

/// What errors call a node that is not in the graph yet.
fn label(node: &Node, graph: &Graph) -> String {
    let first = node.outputs.iter().flatten().next().map_or("", |&o| graph.name_of(o));
    format!("node '{}' ({})", if node.name.is_empty() { first } else { &node.name }, node.full_op())
}

/// True when every operand comes before its readers.
fn in_order(graph: &Graph) -> bool {
    let mut later: Vec<bool> = graph.value_ids().map(|id| graph.producer(id).is_some()).collect();
    graph.nodes().all(|(_, node)| {
        let ready = node.operands().all(|v| !later[v.0 as usize]);
        node.outputs.iter().flatten().for_each(|o| later[o.0 as usize] = false);
        ready
    })
}

/// Collects fields that are carried verbatim.
#[derive(Default)]
struct Rest(Vec<Bytes>);

impl Rest {
    fn keep(&mut self, field: Field) {
        self.0.push(field.raw);
    }

    fn finish(mut self) -> Bytes {
        if self.0.len() == 1 {
            return self.0.remove(0);
        }
        let mut all = BytesMut::with_capacity(self.0.iter().map(Bytes::len).sum());
        self.0.iter().for_each(|b| all.extend_from_slice(b));
        all.freeze()
    }
}
