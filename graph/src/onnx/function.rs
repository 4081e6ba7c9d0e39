//! Model-local functions, decoded when they are to be inlined. Until then the model carries them as they were read. Those
//! that lowering makes are encoded here.

use super::proto::{AttributeProto, OperatorSetIdProto};
use super::read::{Reader, raw_node};
use super::scope::Scope;
use super::wire::{self, Message};
use super::write;
use crate::{Attr, Graph, GraphError, LIMBECK, Meta, Node};
use bytes::Bytes;
use prost::Message as _;
use std::borrow::Cow;
use std::collections::HashMap;

/// A function: a graph whose attributes may refer to those of the node that calls it.
pub(crate) struct Function {
    /// Domain and name, by which nodes call it, and which of several of that name.
    pub(crate) domain: String,
    pub(crate) name: String,
    pub(crate) overload: String,
    /// What is computed. Its inputs, in order, are the call's operands; its metadata has the opsets.
    pub(crate) body: Graph,
    /// Attributes that a call may leave out.
    pub(crate) defaults: HashMap<String, Attr>,
}

/// Decodes a FunctionProto. External data is refused: what a function refers to is carried, not read.
pub(crate) fn decode(bytes: &Bytes) -> Result<Function, String> {
    let mut reader = Reader::detached();
    let graph = Graph { meta: Meta::default(), ..Graph::new("") };
    let mut scope = Scope::new(graph, false);
    let (mut name, mut domain, mut overload) = (String::new(), String::new(), String::new());
    let (mut nodes, mut outputs, mut defaults) = (vec![], vec![], vec![]);
    for field in wire::fields(bytes) {
        let field = field?;
        match field.number {
            1 => name = field.text()?.into(),
            4 => {
                let id = scope.value(field.text()?);
                if !scope.provided.insert(id) {
                    return Err(format!("function '{name}' lists an input twice"));
                }
                scope.inputs.insert(id);
                scope.graph.inputs.push(id);
            }
            5 => outputs.push(field.text()?.to_owned()),
            7 => nodes.push(field.bytes()?),
            9 => {
                let id = OperatorSetIdProto::decode(field.bytes()?).map_err(|e| e.to_string())?;
                scope.graph.meta.opsets.push((id.domain, id.version));
            }
            10 => domain = field.text()?.into(),
            11 => defaults.push(field.bytes()?),
            13 => overload = field.text()?.into(),
            _ => {}
        }
    }
    split_overload(&domain, &mut name, &mut overload);
    scope.graph.name = name.clone();
    let at = |e: String| format!("function '{domain}.{name}': {e}");
    let nodes = nodes.into_iter().map(|raw| raw_node(&mut scope, raw)).collect::<Result<Vec<_>, _>>().map_err(at)?;
    for raw in nodes {
        reader.node(&mut scope, raw, 0).map_err(at)?;
    }
    for output in outputs {
        let id = scope.resolve(&output, |_| "the output list".into()).map_err(at)?;
        scope.graph.outputs.push(id);
    }
    let call = Node { op: name.clone(), domain: domain.clone(), ..Node::default() };
    let defaults = defaults.into_iter().map(|raw| reader.attribute(&mut scope, raw, &call, 0));
    let defaults = defaults.collect::<Result<_, _>>().map_err(at)?;
    let mut body = scope.graph;
    body.sort().map_err(|e| at(e.to_string()))?;
    Ok(Function { domain, name, overload, body, defaults })
}

/// Encodes a FunctionProto whose calls may have these attributes. What the body's graph stores become Constant nodes.
pub(crate) fn encode<'a>(function: &Function, attributes: impl Iterator<Item = &'a str>) -> Result<Bytes, GraphError> {
    let Function { domain, name, overload, body, defaults: _ } = function;
    let mut m = Message::default();
    let (name, overload) = with_overload(domain, name, overload);
    m.text(1, &name);
    body.inputs.iter().for_each(|&id| m.text(4, body.name_of(id)));
    body.outputs.iter().for_each(|&id| m.text(5, body.name_of(id)));
    attributes.for_each(|attribute| m.text(6, attribute));
    for (id, tensor) in body.initializers() {
        m.message(7, write::node(body, &Node::new("Constant", &[], &[id]).with("value", tensor.clone()))?);
    }
    for (_, node) in body.nodes() {
        m.message(7, write::node(body, node)?);
    }
    for (domain, version) in &body.meta.opsets {
        m.message(9, write::opset(domain, *version));
    }
    m.text(10, domain);
    m.text(13, overload);
    Ok(m.into_bytes())
}

/// Type and overload of an operator as files have them. ONNX Runtime up to 1.20 at least does not know overloads and runs
/// any function of the type, so for Limbeck's own operators the number of the overload is part of the type,
/// `FusedConv_2`.
pub(super) fn with_overload<'a>(domain: &str, op: &'a str, overload: &'a str) -> (Cow<'a, str>, &'a str) {
    match domain == LIMBECK && is_number(overload) {
        true => (format!("{op}_{overload}").into(), ""),
        false => (op.into(), overload),
    }
}

/// Undoes [`with_overload`].
pub(super) fn split_overload(domain: &str, op: &mut String, overload: &mut String) {
    let Some((base, number)) = op.rsplit_once('_').filter(|_| domain == LIMBECK && overload.is_empty()) else { return };
    if !base.is_empty() && is_number(number) {
        *overload = number.into();
        op.truncate(base.len());
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// The caller's attribute that an encoded attribute of a function's node stands for.
pub(crate) fn reference(raw: &Bytes) -> Option<String> {
    let attribute = AttributeProto::decode(raw.clone()).ok()?;
    (!attribute.ref_attr_name.is_empty()).then_some(attribute.ref_attr_name)
}

/// An encoded attribute under another name.
pub(crate) fn renamed(raw: &Bytes, name: &str) -> Bytes {
    let mut message = Message::default();
    message.text(1, name);
    message.encoded(wire::kept(raw, |number| number != 1));
    message.into_bytes()
}
