//! The ONNX codec. Reading maps the file and splits it without copying; nodes and weights that nobody touches
//! are written back verbatim, straight from the mapping; what is not modelled is carried along.

mod attribute;
mod external;
pub(crate) mod function;
mod info;
mod proto;
mod read;
mod scope;
mod tensor;
mod wire;
mod write;

pub(crate) use tensor::rest as tensor_rest;

use crate::{Graph, GraphError};
use bytes::Bytes;
use limbeck_tensor::Tensor;
use prost::Message as _;
use std::path::Path;

/// Name and value of a serialised TensorProto, as the `.pb` files of ONNX's tests hold them. External data is refused.
pub fn read_tensor_proto(bytes: &Bytes) -> Result<(String, Tensor), GraphError> {
    let read = || {
        let proto = tensor::TensorProto::decode(bytes)?;
        if proto.external()?.is_some() {
            return Err("its data lies outside of it".to_owned());
        }
        Ok((proto.name.clone(), proto.tensor(None)?))
    };
    read().map_err(|reason: String| GraphError::Format { file: "tensor".into(), reason })
}

/// Entries of `metadata_props` among the fields of a NodeProto that are only carried; damaged ones are passed over.
pub(crate) fn node_metadata(rest: &Bytes) -> Vec<(String, String)> {
    let entries = wire::fields(rest).flatten().filter(|field| field.number == 9);
    let entries = entries.filter_map(|field| proto::StringStringEntryProto::decode(field.bytes().ok()?).ok());
    entries.map(|entry| (entry.key, entry.value)).collect()
}

impl Graph {
    /// Reads a model. The file stays mapped as long as the graph or any of its tensors lives, so it must not be
    /// rewritten in place (replacing it by rename, as [`Graph::write`] does, is fine). External data must lie in
    /// the model's folder. Errors name the file and the node or tensor at fault.
    pub fn read(path: impl AsRef<Path>) -> Result<Graph, GraphError> {
        let path = path.as_ref();
        let bytes = limbeck_tensor::map_file(path)?;
        let folder = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        read::model(&bytes, &path.display().to_string(), Some(folder))
    }

    /// Decodes a model that is in memory. `folder` is where external data may lie; without it external data
    /// is refused.
    pub fn from_bytes(bytes: Bytes, folder: Option<&Path>) -> Result<Graph, GraphError> {
        read::model(&bytes, "model bytes", folder)
    }

    /// Writes the model, replacing `path` atomically. External files that untouched initializers and parts that are
    /// only carried refer to are written beside it under the same relative names; one that exists there with other
    /// content is an error, found before anything is written.
    /// `StopGradient` and `WithGrad` are written as `Identity`.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), GraphError> {
        write::to_file(self, path.as_ref())
    }

    /// The encoded model, external data embedded, of less than 2 GiB. External data of parts that are only carried
    /// (functions, sparse attributes) cannot be embedded and is an error.
    pub fn to_bytes(&self) -> Result<Bytes, GraphError> {
        write::to_bytes(self)
    }
}
