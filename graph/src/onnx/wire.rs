//! The protobuf wire format, as far as a codec needs it that keeps what it does not know: a scanner that
//! splits a message into fields without copying, and a writer that collects pieces whose lengths are known
//! before the first byte is written.

use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::io::Write;

/// What a field holds.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Varint(u64),
    Fixed32(u32),
    Fixed64(u64),
    Bytes(Bytes),
}

/// One field of a message.
#[derive(Debug, Clone)]
pub(super) struct Field {
    /// Field number.
    pub(super) number: u32,
    /// The field as encoded, key included.
    pub(super) raw: Bytes,
    /// Its decoded content.
    pub(super) content: Content,
}

impl Field {
    /// The length-delimited content.
    pub(super) fn bytes(&self) -> Result<Bytes, String> {
        match &self.content {
            Content::Bytes(b) => Ok(b.clone()),
            _ => Err(format!("field {} has the wrong wire type", self.number)),
        }
    }

    /// The content as text.
    pub(super) fn text(&self) -> Result<&str, String> {
        match &self.content {
            Content::Bytes(b) => std::str::from_utf8(b).map_err(|_| format!("field {} is not UTF-8", self.number)),
            _ => Err(format!("field {} has the wrong wire type", self.number)),
        }
    }

    /// The content as a signed integer.
    pub(super) fn int(&self) -> Result<i64, String> {
        match self.content {
            Content::Varint(v) => Ok(v.cast_signed()),
            _ => Err(format!("field {} has the wrong wire type", self.number)),
        }
    }
}

/// Iterates over the fields of an encoded message; the first defect ends it.
pub(super) fn fields(message: &Bytes) -> Fields {
    Fields { rest: message.clone() }
}

/// See [`fields`].
pub(super) struct Fields {
    rest: Bytes,
}

impl Iterator for Fields {
    type Item = Result<Field, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.scan();
        if field.is_err() {
            self.rest.clear();
        }
        Some(field)
    }
}

impl Fields {
    fn scan(&mut self) -> Result<Field, String> {
        let (key, mut at) = varint(&self.rest).ok_or("truncated key")?;
        let number = u32::try_from(key >> 3).ok().filter(|n| *n != 0 && *n < 1 << 29).ok_or("invalid field number")?;
        let truncated = || format!("field {number} is truncated");
        let take = |at: usize, n: usize| at.checked_add(n).filter(|end| *end <= self.rest.len()).ok_or_else(truncated);
        let content = match key & 7 {
            0 => {
                let (value, n) = varint(&self.rest[at..]).ok_or_else(truncated)?;
                at += n;
                Content::Varint(value)
            }
            1 => {
                let end = take(at, 8)?;
                let word = self.rest[at..end].try_into().map_err(|_| truncated())?;
                at = end;
                Content::Fixed64(u64::from_le_bytes(word))
            }
            2 => {
                let (len, n) = varint(&self.rest[at..]).ok_or_else(truncated)?;
                let start = at + n;
                at = take(start, usize::try_from(len).map_err(|_| truncated())?)?;
                Content::Bytes(self.rest.slice(start..at))
            }
            5 => {
                let end = take(at, 4)?;
                let word = self.rest[at..end].try_into().map_err(|_| truncated())?;
                at = end;
                Content::Fixed32(u32::from_le_bytes(word))
            }
            wire => return Err(format!("field {number} has wire type {wire}, which ONNX does not use")),
        };
        Ok(Field { number, raw: self.rest.split_to(at), content })
    }
}

/// The fields of a message whose numbers `keep` accepts, encoded.
pub(super) fn kept(message: &Bytes, keep: impl Fn(u32) -> bool) -> Bytes {
    let mut all = BytesMut::new();
    for field in fields(message).map_while(Result::ok).filter(|field| keep(field.number)) {
        all.extend_from_slice(&field.raw);
    }
    all.freeze()
}

/// A base-128 integer at the start of `bytes`, and how many bytes it takes.
pub(super) fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (i, &byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f).checked_shl(7 * i as u32)?;
        if byte < 0x80 {
            return Some((value, i + 1));
        }
    }
    None
}

/// Pieces up to this length are copied together; longer ones stay slices of where they came from.
const COPIED: usize = 1024;

/// Bytes that are written between two releases of mapped memory.
const PART: usize = 1 << 20;

/// A message being written: pieces in order, some of them slices of mapped files.
#[derive(Debug, Default)]
pub(super) struct Message {
    pieces: Vec<Bytes>,
    tail: Vec<u8>,
    len: usize,
}

impl Message {
    /// Encoded length in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn put_varint(&mut self, mut value: u64) {
        loop {
            let low = (value & 0x7f) as u8;
            value >>= 7;
            self.len += 1;
            if value == 0 {
                self.tail.push(low);
                return;
            }
            self.tail.push(low | 0x80);
        }
    }

    /// Appends fields that are already encoded.
    pub(super) fn encoded(&mut self, fields: Bytes) {
        self.len += fields.len();
        if fields.len() <= COPIED {
            self.tail.extend_from_slice(&fields);
            return;
        }
        if !self.tail.is_empty() {
            self.pieces.push(Bytes::from(std::mem::take(&mut self.tail)));
        }
        self.pieces.push(fields);
    }

    /// Appends the fields of another message.
    pub(super) fn append(&mut self, other: Message) {
        for piece in other.pieces {
            self.encoded(piece);
        }
        self.len += other.tail.len();
        self.tail.extend_from_slice(&other.tail);
    }

    /// An integer or enum field.
    pub(super) fn int(&mut self, number: u32, value: i64) {
        self.put_varint(u64::from(number) << 3);
        self.put_varint(value.cast_unsigned());
    }

    /// A float field.
    pub(super) fn float(&mut self, number: u32, value: f32) {
        self.put_varint(u64::from(number) << 3 | 5);
        self.tail.extend_from_slice(&value.to_le_bytes());
        self.len += 4;
    }

    /// A bytes field.
    pub(super) fn bytes(&mut self, number: u32, value: Bytes) {
        self.put_varint(u64::from(number) << 3 | 2);
        self.put_varint(value.len() as u64);
        self.encoded(value);
    }

    /// A text field.
    pub(super) fn text(&mut self, number: u32, value: &str) {
        self.put_varint(u64::from(number) << 3 | 2);
        self.put_varint(value.len() as u64);
        self.tail.extend_from_slice(value.as_bytes());
        self.len += value.len();
    }

    /// A text field that is left out when empty.
    pub(super) fn text_unless_empty(&mut self, number: u32, value: &str) {
        if !value.is_empty() {
            self.text(number, value);
        }
    }

    /// An embedded message.
    pub(super) fn message(&mut self, number: u32, value: Message) {
        self.put_varint(u64::from(number) << 3 | 2);
        self.put_varint(value.len as u64);
        self.append(value);
    }

    /// Writes the message.
    pub(super) fn write(&self, to: &mut dyn Write) -> std::io::Result<()> {
        self.pieces.iter().try_for_each(|piece| stream(piece, to))?;
        to.write_all(&self.tail)
    }

    /// The message in one piece.
    pub(super) fn into_bytes(self) -> Bytes {
        if self.pieces.is_empty() {
            return Bytes::from(self.tail);
        }
        let mut all = Vec::with_capacity(self.len);
        for piece in &self.pieces {
            all.extend_from_slice(piece);
        }
        all.extend_from_slice(&self.tail);
        Bytes::from(all)
    }
}

/// Writes bytes that may be mapped, never keeping more than a part of them in memory.
pub(super) fn stream(bytes: &[u8], to: &mut dyn Write) -> std::io::Result<()> {
    bytes.chunks(PART).try_for_each(|part| {
        to.write_all(part)?;
        if bytes.len() >= PART {
            limbeck_tensor::release_pages(part);
        }
        Ok(())
    })
}

/// Top-level fields of a message, written in the order of their numbers as protobuf writers do; fields of
/// equal number keep their order.
#[derive(Debug, Default)]
pub(super) struct ByNumber {
    fields: BTreeMap<u32, Message>,
}

impl ByNumber {
    /// Adds one field made by `write`.
    pub(super) fn put(&mut self, number: u32, write: impl FnOnce(&mut Message)) {
        write(self.fields.entry(number).or_default());
    }

    /// Adds fields kept from a file, but those that are there already.
    pub(super) fn rest(&mut self, rest: &Bytes) {
        let there: Vec<u32> = self.fields.keys().copied().collect();
        for field in fields(rest).flatten().filter(|field| !there.contains(&field.number)) {
            self.put(field.number, |m| m.encoded(field.raw));
        }
    }

    /// The whole message.
    pub(super) fn finish(self) -> Message {
        let mut all = Message::default();
        self.fields.into_values().for_each(|fields| all.append(fields));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_and_long_ones_are_not_copied() {
        let long = Bytes::from(vec![7u8; 5000]);
        let mut inner = Message::default();
        inner.int(1, -2);
        inner.bytes(9, long.clone());
        let mut m = Message::default();
        m.text(2, "name");
        m.float(3, 1.5);
        m.message(4, inner);
        let len = m.len();
        assert!(m.pieces.iter().any(|p| p.as_ptr() == long.as_ptr()));
        let encoded = m.into_bytes();
        assert_eq!(encoded.len(), len);
        let all: Vec<Field> = fields(&encoded).collect::<Result<_, _>>().unwrap();
        assert_eq!(all.iter().map(|f| f.number).collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(all[0].text().unwrap(), "name");
        assert!(matches!(all[1].content, Content::Fixed32(w) if f32::from_bits(w) == 1.5));
        let nested: Vec<Field> = fields(&all[2].bytes().unwrap()).collect::<Result<_, _>>().unwrap();
        assert_eq!(nested[0].int().unwrap(), -2);
        let back = nested[1].bytes().unwrap();
        assert_eq!(back, long);
        // A slice of the encoded message, not a copy.
        assert!(encoded.as_ptr_range().contains(&back.as_ptr()));
    }

    #[test]
    fn defects_end_the_scan() {
        for bad in [&[0x0a, 5, 1][..], &[0x80], &[0x00, 1], &[0x0b], &[0x08], &[0x0d, 1, 2], &[0xff; 12]] {
            let all: Vec<_> = fields(&Bytes::copy_from_slice(bad)).collect();
            assert!(all.len() == 1 && all[0].is_err(), "{bad:?}");
        }
    }

    #[test]
    fn huge_lengths_are_refused() {
        let mut bad = vec![0x0a];
        bad.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        assert!(fields(&Bytes::from(bad)).next().unwrap().is_err());
    }
}
