//! ValueInfoProtos, written: declarations of values keep what they say besides name and type, and types of kinds that are
//! not modelled.

use super::proto::ValueInfoProto;
use super::scope::tensor_type;
use super::wire::{self, Message};
use crate::ir::Value;
use crate::types::{Dim, TensorType};
use bytes::Bytes;
use prost::Message as _;

/// True when the type that was read, of a modelled kind or not, is still the value's.
pub(super) fn holds(value: &Value) -> bool {
    let same = |read: &Bytes| ValueInfoProto::decode(read.clone()).is_ok_and(|info| tensor_type(info.ty) == value.ty);
    value.verbatim().is_some() || value.read.as_ref().is_some_and(same)
}

/// True when there is something to declare of a value; of a constant, only what a file said.
pub(super) fn is_declared(value: &Value, constant: bool) -> bool {
    if constant { value.read.is_some() } else { value.ty.is_some() || holds(value) }
}

/// The declaration `read`, under this name.
pub(super) fn named(read: &Bytes, name: &str) -> Message {
    let mut info = Message::default();
    if ValueInfoProto::decode(read.clone()).is_ok_and(|info| info.name == name) {
        info.encoded(read.clone());
        return info;
    }
    info.text(1, name);
    info.encoded(wire::kept(read, |number| number > 1));
    info
}

/// The declaration of a value, under this name.
pub(super) fn encode(value: &Value, name: &str) -> Message {
    let mut info = Message::default();
    if let Some(read) = value.verbatim().filter(|_| name == value.name) {
        info.encoded(read.clone());
        return info;
    }
    if let Some(read) = value.read.as_ref().filter(|_| holds(value)) {
        return named(read, name);
    }
    info.text(1, name);
    if let Some(ty) = &value.ty {
        info.message(2, type_proto(ty));
    }
    if let Some(read) = &value.read {
        info.encoded(wire::kept(read, |number| number > 2));
    }
    info
}

fn type_proto(ty: &TensorType) -> Message {
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
    ty
}
