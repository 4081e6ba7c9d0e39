//! Arrays of the reference evaluator: every float computed in f64 and rounded to its dtype after each node,
//! every integer and bool in i64.

use crate::OpError;
use limbeck_tensor::{DType, Tensor};
use ndarray::{ArrayD, IxDyn};

/// A value during reference evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// The dtype that the value has in the graph.
    pub dtype: DType,
    /// The elements.
    pub data: ArrayData,
}

/// Elements of an [`Array`].
#[derive(Debug, Clone, PartialEq)]
pub enum ArrayData {
    /// Values of floats, those of 8 bits and fewer included.
    Float(ArrayD<f64>),
    /// Integers; bools as 0 and 1.
    Int(ArrayD<i64>),
}

impl Array {
    /// Floats of this dtype.
    pub fn float(dtype: DType, data: ArrayD<f64>) -> Array {
        Array { dtype, data: ArrayData::Float(data) }
    }

    /// Integers or bools of this dtype.
    pub fn int(dtype: DType, data: ArrayD<i64>) -> Array {
        Array { dtype, data: ArrayData::Int(data) }
    }

    /// Extents.
    pub fn shape(&self) -> &[usize] {
        match &self.data {
            ArrayData::Float(a) => a.shape(),
            ArrayData::Int(a) => a.shape(),
        }
    }

    /// The floats, or an error.
    pub fn f(&self) -> Result<&ArrayD<f64>, OpError> {
        match &self.data {
            ArrayData::Float(a) => Ok(a),
            ArrayData::Int(_) => Err(OpError(format!("a float tensor is needed, this one is {}", self.dtype))),
        }
    }

    /// The integers (or bools), or an error.
    pub fn i(&self) -> Result<&ArrayD<i64>, OpError> {
        match &self.data {
            ArrayData::Int(a) => Ok(a),
            ArrayData::Float(_) => Err(OpError(format!("an integer tensor is needed, this one is {}", self.dtype))),
        }
    }

    /// Any numbers as f64.
    pub fn to_f64(&self) -> ArrayD<f64> {
        match &self.data {
            ArrayData::Float(a) => a.clone(),
            ArrayData::Int(a) => a.mapv(|x| x as f64),
        }
    }

    /// Rounds floats to the dtype's precision and wraps integers into its range. Floats of 8 bits and fewer are rounded by
    /// what makes them, which knows what becomes of those out of range.
    pub fn rounded(mut self) -> Array {
        match (&mut self.data, self.dtype) {
            (ArrayData::Float(a), DType::F32) => a.mapv_inplace(|x| f64::from(x as f32)),
            (ArrayData::Float(a), DType::F16) => a.mapv_inplace(|x| half::f16::from_f64(x).to_f64()),
            (ArrayData::Float(a), DType::BF16) => a.mapv_inplace(|x| half::bf16::from_f64(x).to_f64()),
            (ArrayData::Int(a), DType::I4) => a.mapv_inplace(|x| i64::from(((x as i8) << 4) >> 4)),
            (ArrayData::Int(a), DType::U4) => a.mapv_inplace(|x| x & 0xf),
            (ArrayData::Int(a), DType::I8) => a.mapv_inplace(|x| i64::from(x as i8)),
            (ArrayData::Int(a), DType::U8) => a.mapv_inplace(|x| i64::from(x as u8)),
            (ArrayData::Int(a), DType::I16) => a.mapv_inplace(|x| i64::from(x as i16)),
            (ArrayData::Int(a), DType::U16) => a.mapv_inplace(|x| i64::from(x as u16)),
            (ArrayData::Int(a), DType::I32) => a.mapv_inplace(|x| i64::from(x as i32)),
            (ArrayData::Int(a), DType::U32) => a.mapv_inplace(|x| i64::from(x as u32)),
            _ => {}
        }
        self
    }

    /// From a tensor.
    pub fn from_tensor(tensor: &Tensor) -> Result<Array, OpError> {
        let shape = IxDyn(tensor.shape());
        let dtype = tensor.dtype();
        if dtype.is_float() || dtype.is_narrow_float() {
            Ok(Array::float(dtype, ArrayD::from_shape_vec(shape, tensor.to_f64_vec()?)?))
        } else {
            Ok(Array::int(dtype, ArrayD::from_shape_vec(shape, tensor.to_i64_vec()?)?))
        }
    }

    /// To a tensor of the array's dtype.
    pub fn to_tensor(&self) -> Result<Tensor, OpError> {
        let shape = self.shape().to_vec();
        match &self.data {
            ArrayData::Float(a) => Ok(Tensor::from_f64(self.dtype, shape, &a.iter().copied().collect::<Vec<_>>())?),
            ArrayData::Int(a) => ints_to_tensor(self.dtype, shape, a),
        }
    }
}

/// Integers wrapped into the range of their dtype.
fn ints_to_tensor(dtype: DType, shape: Vec<usize>, a: &ArrayD<i64>) -> Result<Tensor, OpError> {
    macro_rules! wrapped {
        ($t:ty) => {
            Tensor::new(shape, a.iter().map(|&x| x as $t).collect::<Vec<_>>())
        };
    }
    Ok(match dtype {
        DType::I8 => wrapped!(i8),
        DType::I16 => wrapped!(i16),
        DType::I32 => wrapped!(i32),
        DType::I64 => wrapped!(i64),
        DType::U8 => wrapped!(u8),
        DType::U16 => wrapped!(u16),
        DType::U32 => wrapped!(u32),
        DType::U64 => wrapped!(u64),
        _ => Tensor::from_f64(dtype, shape, &a.iter().map(|&x| x as f64).collect::<Vec<_>>()),
    }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_keep_every_bit() {
        let wide = Tensor::new([2], vec![(1u64 << 53) + 1, u64::MAX >> 1]).unwrap();
        assert_eq!(Array::from_tensor(&wide).unwrap().to_tensor().unwrap(), wide);
        for dtype in [DType::I8, DType::U8, DType::I16, DType::U16, DType::I32, DType::U32, DType::I64, DType::Bool] {
            let small = Tensor::from_f64(dtype, [2], &[0.0, 1.0]).unwrap();
            assert_eq!(Array::from_tensor(&small).unwrap().to_tensor().unwrap(), small);
        }
        let huge = Tensor::new([1], vec![u64::MAX]).unwrap();
        assert!(Array::from_tensor(&huge).is_err(), "beyond what an Array holds");
    }
}
