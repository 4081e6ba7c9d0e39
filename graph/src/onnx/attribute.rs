//! Attributes as a file encodes them: their kinds, and which of a changed node's can be written as they were read.

use super::proto::{AttributeProto, attribute_type};
use super::tensor::TensorProto;
use super::wire;
use crate::Attr;
use bytes::Bytes;
use prost::Message as _;
use std::collections::{HashMap, HashSet};

/// The attribute's type; files before IR version 2 leave it to the field that is set.
pub(super) fn kind_of(a: &AttributeProto) -> i32 {
    use attribute_type::*;
    let present = [
        (a.f.is_some(), FLOAT),
        (a.i.is_some(), INT),
        (a.s.is_some(), STRING),
        (a.t.is_some(), TENSOR),
        (a.g.is_some(), GRAPH),
        (!a.floats.is_empty(), FLOATS),
        (!a.ints.is_empty(), INTS),
        (!a.strings.is_empty(), STRINGS),
        (!a.graphs.is_empty(), GRAPHS),
    ];
    if a.kind != 0 { a.kind } else { present.iter().find(|(set, _)| *set).map_or(0, |(_, kind)| *kind) }
}

/// An attribute that holds neither tensors nor graphs.
pub(super) fn plain(a: AttributeProto) -> Option<Attr> {
    Some(match kind_of(&a) {
        attribute_type::FLOAT => Attr::Float(a.f.unwrap_or_default()),
        attribute_type::INT => Attr::Int(a.i.unwrap_or_default()),
        attribute_type::STRING => Attr::Str(a.s.unwrap_or_default()),
        attribute_type::FLOATS => Attr::Floats(a.floats),
        attribute_type::INTS => Attr::Ints(a.ints),
        attribute_type::STRINGS => Attr::Strs(a.strings),
        _ => return None,
    })
}

/// What is kept of a NodeProto that is written anew.
#[derive(Default)]
pub(super) struct Former {
    /// The encoded attributes, by name.
    pub(super) attributes: HashMap<String, Bytes>,
    /// Text fields that are there, but empty.
    pub(super) empty: HashSet<u32>,
}

impl Former {
    /// Scans a NodeProto.
    pub(super) fn of(node: &Bytes) -> Former {
        let mut former = Former::default();
        for field in wire::fields(node).map_while(Result::ok) {
            let Ok(content) = field.bytes() else { continue };
            if content.is_empty() {
                former.empty.insert(field.number);
            } else if let (5, Ok(attribute)) = (field.number, AttributeProto::decode(content.clone())) {
                former.attributes.insert(attribute.name, content);
            }
        }
        former
    }
}

/// True when an encoded attribute holds just this value, in the model file. Subgraphs are never compared.
pub(super) fn says(encoded: &Bytes, attr: &Attr) -> bool {
    let Ok(a) = AttributeProto::decode(encoded.clone()) else { return false };
    match attr {
        Attr::Graph(_) | Attr::Graphs(_) => false,
        Attr::Tensor(tensor) => {
            let is_tensor = kind_of(&a) == attribute_type::TENSOR;
            let stored = a.t.filter(|_| is_tensor).and_then(|t| TensorProto::decode(&t).ok());
            let inside = stored.filter(|t| matches!(t.external(), Ok(None))).and_then(|t| t.tensor(None).ok());
            inside.as_ref() == Some(tensor)
        }
        attr => a.ref_attr_name.is_empty() && plain(a).as_ref() == Some(attr),
    }
}
