//! The tensor: a dtype, a shape and shared immutable bytes in row-major order, little-endian.

use crate::{DType, Element, TensorError, element_count, narrow};
use bytes::Bytes;
use half::{bf16, f16};
use ndarray::{ArrayViewD, IxDyn};
use std::sync::Arc;

/// A dense tensor. Cloning shares the bytes, which may be owned or part of a mapped file. Bool is one byte an
/// element (0 or 1); types narrower than a byte are packed as ONNX packs them; strings are byte strings.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Data,
}

#[derive(Debug, Clone, PartialEq)]
enum Data {
    Bytes(Bytes),
    Strings(Arc<Vec<Bytes>>),
}

/// Lends a typed vector as bytes, so that `Bytes` can own it without a copy.
struct TypedVec<T>(Vec<T>);

impl<T: Element> AsRef<[u8]> for TypedVec<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl Tensor {
    /// A tensor that takes over `values`, row-major.
    pub fn new<T: Element>(shape: impl Into<Vec<usize>>, values: Vec<T>) -> Result<Tensor, TensorError> {
        Tensor::from_bytes(T::DTYPE, shape, Bytes::from_owner(TypedVec(values)))
    }

    /// A tensor over ready bytes, which may be a slice of a mapped file.
    ///
    /// # Errors
    /// Another number of bytes than the shape needs; strings; bytes of a bool tensor other than 0 and 1, which C++ code
    /// must never see.
    pub fn from_bytes(dtype: DType, shape: impl Into<Vec<usize>>, bytes: Bytes) -> Result<Tensor, TensorError> {
        let shape = shape.into();
        if dtype == DType::String {
            return Err(TensorError::Convert { from: DType::U8, to: DType::String });
        }
        let needed = element_count(&shape).and_then(|n| dtype.byte_len(n));
        match needed {
            None => Err(TensorError::TooLarge { shape, dtype }),
            Some(needed) if needed != bytes.len() => {
                Err(TensorError::Length { shape, dtype, needed, got: bytes.len() })
            }
            Some(_) if dtype == DType::Bool && bytes.iter().any(|&b| b > 1) => {
                let index = bytes.iter().position(|&b| b > 1).unwrap_or_default();
                Err(TensorError::NotBool { index, value: bytes[index] })
            }
            Some(_) => Ok(Tensor { dtype, shape, data: Data::Bytes(bytes) }),
        }
    }

    /// A tensor of byte strings.
    pub fn strings(shape: impl Into<Vec<usize>>, values: Vec<Bytes>) -> Result<Tensor, TensorError> {
        let shape = shape.into();
        let dtype = DType::String;
        match element_count(&shape) {
            None => Err(TensorError::TooLarge { shape, dtype }),
            Some(needed) if needed != values.len() => {
                Err(TensorError::Length { shape, dtype, needed, got: values.len() })
            }
            Some(_) => Ok(Tensor { dtype, shape, data: Data::Strings(Arc::new(values)) }),
        }
    }

    /// A tensor of truth values.
    pub fn bools(shape: impl Into<Vec<usize>>, values: &[bool]) -> Result<Tensor, TensorError> {
        let bytes: Vec<u8> = values.iter().map(|&b| b as u8).collect();
        Tensor::from_bytes(DType::Bool, shape, Bytes::from(bytes))
    }

    /// A rank-0 tensor.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor { dtype: T::DTYPE, shape: vec![], data: Data::Bytes(Bytes::from_owner(TypedVec(vec![value]))) }
    }

    /// All zeros (false). Errors when the size does not fit memory addressing, and for strings.
    pub fn zeros(dtype: DType, shape: impl Into<Vec<usize>>) -> Result<Tensor, TensorError> {
        let shape = shape.into();
        match element_count(&shape).and_then(|n| dtype.byte_len(n)) {
            // A Vec<u64> keeps the bytes aligned for every element type.
            Some(len) => {
                let bytes = Bytes::from_owner(TypedVec(vec![0u64; len.div_ceil(8)])).slice(..len);
                Tensor::from_bytes(dtype, shape, bytes)
            }
            None => Err(TensorError::TooLarge { shape, dtype }),
        }
    }

    /// Rounds `values` to `dtype` (any real or bool type, integers of at least 4 bits; integers saturate, ties to even).
    pub fn from_f64(dtype: DType, shape: impl Into<Vec<usize>>, values: &[f64]) -> Result<Tensor, TensorError> {
        fn put<T: Element>(shape: Vec<usize>, v: &[f64], f: impl Fn(f64) -> T) -> Result<Tensor, TensorError> {
            Tensor::new(shape, v.iter().map(|&x| f(x)).collect())
        }
        let s = shape.into();
        match dtype {
            DType::F32 => put(s, values, |x| x as f32),
            DType::F64 => put(s, values, |x| x),
            DType::F16 => put(s, values, f16::from_f64),
            DType::BF16 => put(s, values, bf16::from_f64),
            DType::I8 => put(s, values, |x| x.round_ties_even() as i8),
            DType::I16 => put(s, values, |x| x.round_ties_even() as i16),
            DType::I32 => put(s, values, |x| x.round_ties_even() as i32),
            DType::I64 => put(s, values, |x| x.round_ties_even() as i64),
            DType::U8 => put(s, values, |x| x.round_ties_even() as u8),
            DType::U16 => put(s, values, |x| x.round_ties_even() as u16),
            DType::U32 => put(s, values, |x| x.round_ties_even() as u32),
            DType::U64 => put(s, values, |x| x.round_ties_even() as u64),
            DType::Bool => Tensor::bools(s, &values.iter().map(|&x| x != 0.0).collect::<Vec<_>>()),
            to => match narrow::encode(to, values) {
                Some(bytes) => Tensor::from_bytes(to, s, bytes.into()),
                None => Err(TensorError::Convert { from: DType::F64, to }),
            },
        }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        // What was made has a number of elements; a 0 among the extents makes any others harmless.
        element_count(&self.shape).unwrap_or(0)
    }

    /// True when there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The raw bytes; empty for strings.
    pub fn bytes(&self) -> Bytes {
        match &self.data {
            Data::Bytes(b) => b.clone(),
            Data::Strings(_) => Bytes::new(),
        }
    }

    /// Bytes that the elements occupy.
    pub fn byte_len(&self) -> usize {
        match &self.data {
            Data::Bytes(b) => b.len(),
            Data::Strings(s) => s.iter().map(Bytes::len).sum(),
        }
    }

    /// The byte strings of a string tensor.
    pub fn as_strings(&self) -> Result<&[Bytes], TensorError> {
        match &self.data {
            Data::Strings(s) => Ok(s),
            Data::Bytes(_) => Err(TensorError::DType { have: self.dtype, want: DType::String }),
        }
    }

    fn raw(&self, want: DType) -> Result<&[u8], TensorError> {
        match &self.data {
            // Bool is readable as u8.
            Data::Bytes(b) if want == self.dtype || (want == DType::U8 && self.dtype == DType::Bool) => Ok(b),
            _ => Err(TensorError::DType { have: self.dtype, want }),
        }
    }

    /// The elements in place. Fails for another dtype (bool reads as `u8`) and for mapped data that is
    /// not aligned; [`Tensor::to_vec`] copies in that case.
    pub fn as_slice<T: Element>(&self) -> Result<&[T], TensorError> {
        let raw = self.raw(T::DTYPE)?;
        bytemuck::try_cast_slice(raw).map_err(|_| TensorError::Misaligned { dtype: self.dtype })
    }

    /// A copy of the elements, whatever their alignment.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, TensorError> {
        Ok(bytemuck::pod_collect_to_vec(self.raw(T::DTYPE)?))
    }

    /// The same tensor with its bytes aligned for direct access, copied only when they are not.
    pub fn aligned(&self) -> Tensor {
        let Data::Bytes(b) = &self.data else { return self.clone() };
        if (b.as_ptr() as usize).is_multiple_of(16) || self.dtype.bits() <= 8 {
            return self.clone();
        }
        let words: Vec<u128> = {
            let mut w = vec![0u128; b.len().div_ceil(16)];
            bytemuck::cast_slice_mut::<u128, u8>(&mut w)[..b.len()].copy_from_slice(b);
            w
        };
        struct Words(Vec<u128>);
        impl AsRef<[u8]> for Words {
            fn as_ref(&self) -> &[u8] {
                bytemuck::cast_slice(&self.0)
            }
        }
        let data = Data::Bytes(Bytes::from_owner(Words(words)).slice(..b.len()));
        Tensor { dtype: self.dtype, shape: self.shape.clone(), data }
    }

    /// An ndarray view of aligned data.
    pub fn view<T: Element>(&self) -> Result<ArrayViewD<'_, T>, TensorError> {
        let slice = self.as_slice::<T>()?;
        ArrayViewD::from_shape(IxDyn(&self.shape), slice).map_err(|_| TensorError::Length {
            shape: self.shape.clone(),
            dtype: self.dtype,
            needed: self.len(),
            got: slice.len(),
        })
    }

    /// The elements as `f64` (every real and bool type, integers of at least 4 bits).
    pub fn to_f64_vec(&self) -> Result<Vec<f64>, TensorError> {
        fn get<T: Element>(t: &Tensor, f: impl Fn(T) -> f64) -> Result<Vec<f64>, TensorError> {
            Ok(t.to_vec::<T>()?.into_iter().map(f).collect())
        }
        match self.dtype {
            DType::F32 => get::<f32>(self, f64::from),
            DType::F64 => get::<f64>(self, |x| x),
            DType::F16 => get::<f16>(self, f64::from),
            DType::BF16 => get::<bf16>(self, f64::from),
            DType::I8 => get::<i8>(self, f64::from),
            DType::I16 => get::<i16>(self, f64::from),
            DType::I32 => get::<i32>(self, f64::from),
            DType::I64 => get::<i64>(self, |x| x as f64),
            DType::U8 | DType::Bool => get::<u8>(self, f64::from),
            DType::U16 => get::<u16>(self, f64::from),
            DType::U32 => get::<u32>(self, f64::from),
            DType::U64 => get::<u64>(self, |x| x as f64),
            from => {
                narrow::decode(from, &self.bytes(), self.len()).ok_or(TensorError::Convert { from, to: DType::F64 })
            }
        }
    }

    /// The elements of an integer or bool tensor as `i64`; `u64` values beyond `i64::MAX` are refused.
    pub fn to_i64_vec(&self) -> Result<Vec<i64>, TensorError> {
        fn get<T: Element + Into<i64>>(t: &Tensor) -> Result<Vec<i64>, TensorError> {
            Ok(t.to_vec::<T>()?.into_iter().map(Into::into).collect())
        }
        let refuse = TensorError::Convert { from: self.dtype, to: DType::I64 };
        match self.dtype {
            DType::I8 => get::<i8>(self),
            DType::I16 => get::<i16>(self),
            DType::I32 => get::<i32>(self),
            DType::I64 => get::<i64>(self),
            DType::U8 | DType::Bool => get::<u8>(self),
            DType::U16 => get::<u16>(self),
            DType::U32 => get::<u32>(self),
            DType::U64 => {
                self.to_vec::<u64>()?.into_iter().map(|x| i64::try_from(x).ok()).collect::<Option<_>>().ok_or(refuse)
            }
            dtype => narrow::decode_ints(dtype, &self.bytes(), self.len()).ok_or(refuse),
        }
    }

    /// Converts to another real, integer or bool type (integers saturate, ties to even).
    pub fn cast(&self, to: DType) -> Result<Tensor, TensorError> {
        if to == self.dtype {
            return Ok(self.clone());
        }
        Tensor::from_f64(to, self.shape.clone(), &self.to_f64_vec()?)
    }

    /// The same elements under another shape with as many elements.
    pub fn reshape(&self, shape: impl Into<Vec<usize>>) -> Result<Tensor, TensorError> {
        let shape = shape.into();
        if element_count(&shape) != Some(self.len()) {
            let needed = element_count(&shape).and_then(|n| self.dtype.byte_len(n)).unwrap_or(usize::MAX);
            return Err(TensorError::Length { shape, dtype: self.dtype, needed, got: self.byte_len() });
        }
        Ok(Tensor { shape, ..self.clone() })
    }

    /// Rows `range` along the first axis, sharing the bytes. Types of at least 8 bits.
    pub fn rows(&self, range: std::ops::Range<usize>) -> Result<Tensor, TensorError> {
        let (Some((&n, rest)), Data::Bytes(b)) = (self.shape.split_first(), &self.data) else {
            return Err(TensorError::Convert { from: self.dtype, to: self.dtype });
        };
        let row = element_count(rest).and_then(|n| self.dtype.byte_len(n)).unwrap_or(0);
        if range.start > range.end || range.end > n || self.dtype.bits() < 8 {
            let needed = range.end.saturating_mul(row);
            return Err(TensorError::Length { shape: self.shape.clone(), dtype: self.dtype, needed, got: b.len() });
        }
        let mut shape = vec![range.len()];
        shape.extend_from_slice(rest);
        Tensor::from_bytes(self.dtype, shape, b.slice(range.start * row..range.end * row))
    }

    /// True when no element is NaN or infinite (integers always are finite).
    pub fn all_finite(&self) -> bool {
        match (self.dtype, &self.data) {
            (DType::F32, Data::Bytes(_)) => match self.as_slice::<f32>() {
                Ok(s) => s.iter().all(|x| x.is_finite()),
                Err(_) => self.to_f64_vec().is_ok_and(|v| v.iter().all(|x| x.is_finite())),
            },
            (d, _) if d.is_float() => self.to_f64_vec().is_ok_and(|v| v.iter().all(|x| x.is_finite())),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owned_values_are_not_copied() {
        let v = vec![1f32, 2.0, 3.0];
        let p = v.as_ptr();
        let t = Tensor::new([3], v).unwrap();
        assert_eq!(t.as_slice::<f32>().unwrap().as_ptr(), p);
        assert_eq!(t.clone().as_slice::<f32>().unwrap().as_ptr(), p);
    }

    #[test]
    fn wrong_lengths_and_types_are_named() {
        assert!(Tensor::new([2, 2], vec![1f32; 3]).unwrap_err().to_string().contains("[2, 2]"));
        assert!(Tensor::zeros(DType::F32, [usize::MAX, 2]).is_err());
        assert!(Tensor::scalar(1i64).as_slice::<f32>().unwrap_err().to_string().contains("int64"));
    }

    #[test]
    fn bools_are_zero_or_one() {
        let made = |bytes: &'static [u8]| Tensor::from_bytes(DType::Bool, [3], Bytes::from_static(bytes));
        assert_eq!(made(&[0, 1, 1]).unwrap(), Tensor::bools([3], &[false, true, true]).unwrap());
        assert!(made(&[0, 1, 255]).unwrap_err().to_string().contains("element 2 of a bool tensor is 255"));
    }

    #[test]
    fn misaligned_bytes_copy() {
        let b = Bytes::from_owner(vec![0u8, 0, 0, 128, 63, 0, 0, 0, 64]).slice(1..9);
        let t = Tensor::from_bytes(DType::F32, [2], b).unwrap();
        assert_eq!(t.to_vec::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(t.aligned().as_slice::<f32>().unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn casts_round_ties_to_even_and_saturate() {
        let t = Tensor::new([4], vec![0.5f64, 1.5, -300.0, 300.0]).unwrap();
        assert_eq!(t.cast(DType::I8).unwrap().to_vec::<i8>().unwrap(), [0, 2, -128, 127]);
        assert_eq!(t.rows(1..3).unwrap().to_vec::<f64>().unwrap(), [1.5, -300.0]);
    }

    #[test]
    fn four_bit_values_pack() {
        assert!(Tensor::from_bytes(DType::I4, [3], Bytes::from_static(&[0, 1])).is_ok());
        assert!(Tensor::from_bytes(DType::I4, [3], Bytes::from_static(&[0])).is_err());
    }
}
