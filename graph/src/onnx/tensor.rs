//! TensorProto and SparseTensorProto: every storage form to and from [`Tensor`], without copying data that
//! lies in the file as it lies in memory.

use super::proto::StringStringEntryProto;
use super::wire::{self, Content, Field, Message};
use crate::constants::Initializer;
use crate::types::MAX_RANK;
use bytes::Bytes;
use limbeck_tensor::{DType, Tensor, element_count};
use prost::Message as _;

/// A decoded TensorProto; its data still as stored.
#[derive(Debug, Default)]
pub(super) struct TensorProto {
    /// Name; empty inside attributes.
    pub(super) name: String,
    dims: Vec<i64>,
    data_type: i64,
    raw: Option<Bytes>,
    typed: Vec<Field>,
    strings: Vec<Bytes>,
    segmented: bool,
    external: Vec<StringStringEntryProto>,
    is_external: bool,
    /// Marked as a literal, see [`LITERAL`].
    pub(super) literal: bool,
}

/// Key of `TensorProto.metadata_props` (ONNX IR 10) that marks an initializer as a literal of the program, so that it
/// is none of the weights when the file is read again (see [`crate::Graph::is_literal`]).
const LITERAL: &str = "ai.limbeck.literal";

/// Where the data of a tensor lies outside the model file.
#[derive(Debug, PartialEq)]
pub(super) struct ExternalRef {
    /// Path relative to the model's folder.
    pub(super) location: String,
    /// First byte.
    pub(super) offset: u64,
    /// Number of bytes, when given.
    pub(super) length: Option<u64>,
}

impl TensorProto {
    /// Scans an encoded TensorProto.
    pub(super) fn decode(encoded: &Bytes) -> Result<TensorProto, String> {
        let mut t = TensorProto::default();
        for field in wire::fields(encoded) {
            let field = field?;
            match field.number {
                1 => integers(&field, |v| t.dims.push(v))?,
                2 => t.data_type = field.int()?,
                3 => t.segmented = true,
                4 | 5 | 7 | 10 | 11 => t.typed.push(field),
                6 => t.strings.push(field.bytes()?),
                8 => t.name = field.text()?.into(),
                9 => t.raw = Some(field.bytes()?),
                13 => t.external.push(entry(&field)?),
                14 => t.is_external = field.int()? == 1,
                16 => t.literal |= entry(&field)?.key == LITERAL,
                _ => {}
            }
        }
        Ok(t)
    }

    /// Element type, when it is one that Limbeck can hold.
    pub(super) fn dtype(&self) -> Option<DType> {
        i32::try_from(self.data_type).ok().and_then(DType::from_onnx)
    }

    fn shape(&self) -> Result<Vec<usize>, String> {
        if self.dims.len() > MAX_RANK {
            return Err(format!("its shape has {} dims, at most {MAX_RANK} are supported", self.dims.len()));
        }
        self.dims
            .iter()
            .map(|&d| usize::try_from(d).map_err(|_| format!("shape {:?} has an extent that is not a size", self.dims)))
            .collect()
    }

    /// Where the data lies, when it is not in the model file.
    pub(super) fn external(&self) -> Result<Option<ExternalRef>, String> {
        if !self.is_external {
            return Ok(None);
        }
        let entry = |key: &str| self.external.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => {
                text.parse::<u64>().map(Some).map_err(|_| format!("external data {key} '{text}' is not a size"))
            }
        };
        let location = entry("location").ok_or("external data has no location")?.to_owned();
        Ok(Some(ExternalRef { location, offset: number("offset")?.unwrap_or(0), length: number("length")? }))
    }

    /// The tensor; `file` is the content of the external file when there is one.
    pub(super) fn tensor(self, file: Option<&Bytes>) -> Result<Tensor, String> {
        let shape = self.shape()?;
        let dtype = self.dtype().ok_or_else(|| format!("element type {} is unknown", self.data_type))?;
        if self.segmented {
            return Err("is stored in segments, which ONNX runtimes do not support either".into());
        }
        let count = element_count(&shape).ok_or_else(|| format!("shape {shape:?} is too large to address"))?;
        if dtype == DType::String {
            return Tensor::strings(shape, self.strings).map_err(|e| e.to_string());
        }
        let needed = dtype.byte_len(count).ok_or_else(|| format!("shape {shape:?} is too large to address"))?;
        let data = if let (Some(at), Some(file)) = (self.external()?, file) {
            let start = usize::try_from(at.offset).map_err(|e| e.to_string())?;
            let length = at.length.map_or(Ok(needed), usize::try_from).map_err(|e| e.to_string())?;
            let end = start.checked_add(length).filter(|&end| end <= file.len()).ok_or_else(|| {
                format!("external data {start}+{length} lies outside '{}' ({} bytes)", at.location, file.len())
            })?;
            file.slice(start..end)
        } else if let Some(raw) = self.raw {
            raw
        } else {
            typed_data(&self.typed, dtype, needed)?
        };
        Tensor::from_bytes(dtype, shape, data).map_err(|e| e.to_string())
    }
}

/// Little-endian bytes from the `*_data` field that belongs to `dtype`.
fn typed_data(fields: &[Field], dtype: DType, needed: usize) -> Result<Bytes, String> {
    let number = match dtype {
        DType::F32 | DType::C64 => 4,
        DType::F64 | DType::C128 => 10,
        DType::I64 => 7,
        DType::U32 | DType::U64 => 11,
        _ => 5,
    };
    let mut chunks = fields.iter().filter(|f| f.number == number);
    let fixed = matches!(number, 4 | 10);
    // Packed floats lie in the file as in memory.
    if let (true, Some(Field { content: Content::Bytes(b), .. }), 1) =
        (fixed, chunks.clone().next(), chunks.clone().count())
    {
        return Ok(b.clone());
    }
    if dtype.bits() == 6 {
        return packed_sixes(chunks);
    }
    let width = dtype.bits().div_ceil(8).min(8);
    let mut data = Vec::new();
    chunks.try_for_each(|field| {
        match (&field.content, fixed) {
            (Content::Bytes(b), true) => data.extend_from_slice(b),
            (Content::Fixed32(w), true) => data.extend_from_slice(&w.to_le_bytes()),
            (Content::Fixed64(w), true) => data.extend_from_slice(&w.to_le_bytes()),
            _ => integers(field, |v| data.extend_from_slice(&v.to_le_bytes()[..width]))?,
        }
        if data.len() > needed {
            return Err(format!("holds more than the {needed} bytes that its shape needs"));
        }
        Ok::<_, String>(())
    })?;
    Ok(Bytes::from(data))
}

/// Elements of six bits, stored one an entry, as a stream of bits with the lowest first.
fn packed_sixes<'a>(mut chunks: impl Iterator<Item = &'a Field>) -> Result<Bytes, String> {
    let (mut data, mut at) = (Vec::new(), 0usize);
    chunks.try_for_each(|field| {
        integers(field, |v| {
            let bits = (v as u16 & 0x3f) << (at % 8);
            data.resize((at + 6).div_ceil(8), 0);
            for (byte, bits) in data[at / 8..].iter_mut().zip(bits.to_le_bytes()) {
                *byte |= bits;
            }
            at += 6;
        })
    })?;
    Ok(Bytes::from(data))
}

/// Integers of a repeated field, packed or not.
fn integers(field: &Field, mut each: impl FnMut(i64)) -> Result<(), String> {
    match &field.content {
        Content::Varint(v) => each(v.cast_signed()),
        Content::Bytes(b) => {
            let mut rest = &b[..];
            while !rest.is_empty() {
                let (v, n) = wire::varint(rest).ok_or_else(|| format!("field {} is truncated", field.number))?;
                each(v.cast_signed());
                rest = &rest[n..];
            }
        }
        _ => return Err(format!("field {} has the wrong wire type", field.number)),
    }
    Ok(())
}

/// A SparseTensorProto as name and dense tensor of at most `limit` bytes.
pub(super) fn densify(encoded: &Bytes, limit: usize) -> Result<(String, Tensor), String> {
    let (mut values, mut indices, mut dims) = (None, None, Vec::new());
    for field in wire::fields(encoded) {
        let field = field?;
        match field.number {
            1 => values = Some(TensorProto::decode(&field.bytes()?)?),
            2 => indices = Some(TensorProto::decode(&field.bytes()?)?),
            3 => integers(&field, |v| dims.push(v))?,
            _ => {}
        }
    }
    let (values, indices) = values.zip(indices).ok_or("sparse tensor without values or indices")?;
    let name = values.name.clone();
    let dense = || {
        let shape = TensorProto { dims, ..TensorProto::default() }.shape()?;
        if values.external()?.is_some() || indices.external()?.is_some() {
            return Err("sparse data outside the model file is not supported".to_owned());
        }
        let (values, indices) = (values.tensor(None)?, indices.tensor(None)?);
        let dtype = values.dtype();
        let width = dtype.bits() / 8;
        let count = element_count(&shape).ok_or_else(|| format!("shape {shape:?} is too large to address"))?;
        let size = dtype.byte_len(count).filter(|&n| n <= limit && width > 0);
        let size = size.ok_or_else(|| format!("{dtype}{shape:?} is too large, or too narrow, to be made dense"))?;
        let (n, rank) = (values.len(), shape.len());
        let places = indices.to_i64_vec().map_err(|e| e.to_string())?;
        let linear = indices.shape() == [n];
        if !linear && indices.shape() != [n, rank] {
            return Err(format!("indices {:?} do not fit {n} values of rank {rank}", indices.shape()));
        }
        let stored = values.bytes();
        let mut data = vec![0u8; size];
        for i in 0..n {
            let outside = || format!("index {i} lies outside {shape:?}");
            let place = if linear {
                usize::try_from(places[i]).ok()
            } else {
                places[i * rank..(i + 1) * rank].iter().zip(&shape).try_fold(0usize, |at, (&p, &extent)| {
                    let p = usize::try_from(p).ok().filter(|&p| p < extent)?;
                    Some(at * extent + p)
                })
            };
            let place = place.filter(|&p| p < count).ok_or_else(outside)?;
            data[place * width..(place + 1) * width].copy_from_slice(&stored[i * width..(i + 1) * width]);
        }
        Tensor::from_bytes(dtype, shape, Bytes::from(data)).map_err(|e| e.to_string())
    };
    match dense() {
        Ok(tensor) => Ok((name, tensor)),
        Err(e) => Err(format!("sparse tensor '{name}': {e}")),
    }
}

fn entry(field: &Field) -> Result<StringStringEntryProto, String> {
    StringStringEntryProto::decode(field.bytes()?).map_err(|e| e.to_string())
}

/// The fields of an encoded TensorProto that are neither its name nor about its data.
pub(crate) fn rest(encoded: &Bytes) -> Bytes {
    wire::kept(encoded, |number| !matches!(number, 1..=11 | 13 | 14))
}

/// The TensorProto of an initializer that keeps whether it is a literal.
pub(super) fn encode_initializer(name: &str, init: &Initializer) -> Message {
    let mut m = encode(name, &init.tensor, Bytes::new());
    let marks = |field: &Field| field.number == 16 && entry(field).is_ok_and(|e| e.key == LITERAL);
    for field in wire::fields(&init.rest()).flatten().filter(|field| !marks(field)) {
        m.encoded(field.raw);
    }
    if init.literal {
        let mut mark = Message::default();
        mark.text(1, LITERAL);
        m.message(16, mark);
    }
    m
}

/// An encoded TensorProto (or, `sparse`, SparseTensorProto) under another name; the data is not copied.
pub(super) fn renamed(encoded: &Bytes, sparse: bool, name: &str) -> Message {
    let mut m = Message::default();
    for field in wire::fields(encoded).flatten() {
        match (sparse, field.number, &field.content) {
            (true, 1, Content::Bytes(values)) => m.message(1, renamed(values, false, name)),
            (false, 8, _) => m.text(8, name),
            _ => m.encoded(field.raw),
        }
    }
    m
}

/// A TensorProto of this name and data, with `rest` fields; the data is a piece of its own.
pub(super) fn encode(name: &str, tensor: &Tensor, rest: Bytes) -> Message {
    let mut m = Message::default();
    for &d in tensor.shape() {
        m.int(1, d as i64);
    }
    m.int(2, i64::from(tensor.dtype().to_onnx()));
    match tensor.as_strings() {
        Ok(strings) => {
            strings.iter().for_each(|s| m.bytes(6, s.clone()));
            m.text_unless_empty(8, name);
        }
        Err(_) => {
            m.text_unless_empty(8, name);
            m.bytes(9, tensor.bytes());
        }
    }
    m.encoded(rest);
    m
}
