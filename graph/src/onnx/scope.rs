//! The names of a graph being read: what they stand for, what provides it, and how it is declared.

use super::proto::{TypeProto, ValueInfoProto};
use crate::types::MAX_RANK;
use crate::{Capture, Dim, Graph, TensorType, ValueId, ValueSet};
use bytes::Bytes;
use limbeck_tensor::DType;
use prost::Message as _;
use std::collections::BTreeMap;

/// A graph being read, and which of its values something provides.
pub(super) struct Scope {
    /// The graph as far as it is read.
    pub(super) graph: Graph,
    /// Its inputs.
    pub(super) inputs: ValueSet,
    /// Its outputs, as far as they are read.
    pub(super) outputs: ValueSet,
    /// Values that something provides.
    pub(super) provided: ValueSet,
    /// True in a subgraph.
    pub(super) nested: bool,
}

impl Scope {
    /// Nothing is known yet.
    pub(super) fn new(graph: Graph, nested: bool) -> Scope {
        let [inputs, outputs, provided] = <[ValueSet; 3]>::default();
        Scope { graph, inputs, outputs, provided, nested }
    }

    /// The value of this name, made when there is none.
    pub(super) fn value(&mut self, name: &str) -> ValueId {
        self.graph.find(name).unwrap_or_else(|| self.graph.add_value(name, None))
    }

    /// The value that `reader` means by `name`; in a subgraph, what the subgraph lacks is a capture.
    pub(super) fn resolve(&mut self, name: &str, reader: impl FnOnce(&Graph) -> String) -> Result<ValueId, String> {
        let known = self.graph.find(name).filter(|&id| self.provided.contains(id));
        if let Some(id) = known {
            return Ok(id);
        }
        if !self.nested {
            return Err(format!("{} reads '{name}', which nothing provides", reader(&self.graph)));
        }
        let inner = self.value(name);
        self.provided.insert(inner);
        // The enclosing graph fills in `outer` once it knows its own values.
        self.graph.captures.push(Capture { inner, outer: inner });
        Ok(inner)
    }

    /// Declared values that nothing here provides, or that are captured, have no place of their own in a written file.
    pub(super) fn spare_unwritten(&mut self) {
        let Graph { values, spare_infos, initializers, inputs, outputs, .. } = &mut self.graph;
        let listed: ValueSet = inputs.iter().chain(&*outputs).copied().collect();
        let mut first = BTreeMap::new();
        for (value, id) in values.iter().zip((0..).map(ValueId)) {
            if let Some(raw) = value.verbatim()
                && value.producer.is_none()
                && !initializers.contains_key(&id)
                && !listed.contains(id)
            {
                first.insert(id, raw.clone());
            }
        }
        // The declaration that counts stays the first of its value.
        for (id, later) in std::mem::take(spare_infos) {
            spare_infos.extend(first.remove(&id).map(|raw| (id, raw)));
            spare_infos.push((id, later));
        }
        spare_infos.extend(first);
    }
}

/// Reads a ValueInfoProto; the declaration that comes first counts, an output's over one in the list of values. Others
/// are kept as they are.
pub(super) fn declare(scope: &mut Scope, raw: Bytes, what: &str) -> Result<ValueId, String> {
    let info = ValueInfoProto::decode(raw.clone()).map_err(|e| format!("{what}: {e}"))?;
    if info.name.is_empty() {
        return Err(format!("an {what} of the graph has no name"));
    }
    let rank = info.ty.iter().flat_map(|t| &t.tensor).flat_map(|t| &t.shape).map(|s| s.dim.len()).max();
    if let Some(rank) = rank.filter(|&rank| rank > MAX_RANK) {
        return Err(format!("{what} '{}': its shape has {rank} dims, at most {MAX_RANK} are supported", info.name));
    }
    let id = scope.value(&info.name);
    let value = &mut scope.graph.values[id.0 as usize];
    if what == "output" && (scope.inputs.contains(id) || !scope.outputs.insert(id)) {
        scope.graph.output_infos.push((id, raw));
    } else if value.verbatim().is_some() && what != "output" {
        if what == "value" {
            scope.graph.spare_infos.push((id, raw));
        }
    } else {
        // A type that is not understood takes the place of what an earlier declaration says, not of a constant's own.
        let before = value.ty.take().filter(|_| info.ty.is_none() || value.verbatim().is_none());
        value.ty = tensor_type(info.ty).or(before);
        let changed = std::mem::take(&mut value.changed);
        if let Some(before) = value.read.replace(raw).filter(|_| !changed) {
            scope.graph.spare_infos.push((id, before));
        }
    }
    Ok(id)
}

/// The type, when it is that of a tensor of known elements.
pub(super) fn tensor_type(ty: Option<TypeProto>) -> Option<TensorType> {
    let tensor = ty?.tensor?;
    let dtype = DType::from_onnx(tensor.elem_type)?;
    let dims = tensor.shape.map(|s| s.dim.into_iter().map(|d| dim(d.value, d.param)).collect());
    Some(TensorType { dtype, dims })
}

fn dim(value: Option<i64>, param: Option<String>) -> Dim {
    match (value, param) {
        (Some(n), _) => usize::try_from(n).map_or(Dim::Unknown, Dim::Known),
        (None, Some(name)) if !name.is_empty() => Dim::Named(name.into()),
        _ => Dim::Unknown,
    }
}
