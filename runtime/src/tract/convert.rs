//! Tensors in and out of tract.

use super::{NAME, failed};
use crate::{RuntimeError, store::StateValue};
use half::f16;
use limbeck_tensor::{Bytes, DType, Element, Tensor};
use std::sync::Arc;
use tract_onnx::{
    prelude as tract,
    tract_hir::internal::{Datum, DatumType, SymbolValues, TDim, TractResult},
};

/// A value in tract's memory. The `Arc` inside is kept by the store, so tract never overwrites it.
pub(super) struct TractValue {
    pub(super) value: tract::TValue,
    dtype: DType,
}

impl StateValue for TractValue {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.value.shape()
    }

    fn to_tensor(&self) -> Result<Tensor, RuntimeError> {
        struct Shared(tract::TValue);
        impl AsRef<[u8]> for Shared {
            fn as_ref(&self) -> &[u8] {
                self.0.as_bytes()
            }
        }
        let bytes = Bytes::from_owner(Shared(self.value.clone()));
        Ok(Tensor::from_bytes(self.dtype, self.value.shape(), bytes)?)
    }
}

impl TractValue {
    /// Takes over a result. Shape arithmetic, which tract does on symbols, becomes int64 with the symbols' values.
    pub(super) fn from_result(value: tract::TValue, symbols: &SymbolValues) -> Result<TractValue, RuntimeError> {
        let convert = || -> TractResult<tract::TValue> {
            if value.datum_type() == TDim::datum_type() {
                let dims = value.try_as_plain_ram()?;
                let dims = dims.as_slice::<TDim>()?.iter().map(|d| d.eval_to_i64(symbols));
                return Ok(tract::Tensor::from_shape(value.shape(), &dims.collect::<TractResult<Vec<_>>>()?)?.into());
            }
            if value.as_plain_ram_storage().is_none() {
                return Ok((*value).clone().into_plain_ram()?.into());
            }
            Ok(value.clone())
        };
        let value = convert().map_err(|e| failed("read a result", e))?;
        let dtype = dtype(value.datum_type()).ok_or_else(|| RuntimeError::Unsupported {
            engine: NAME,
            what: format!("results of type {:?}", value.datum_type()),
        })?;
        Ok(TractValue { value, dtype })
    }
}

/// Copies a tensor into tract's memory, as a value for a store.
pub(super) fn upload(tensor: &Tensor) -> Result<Arc<dyn StateValue>, RuntimeError> {
    Ok(Arc::new(TractValue { value: to_tract(tensor)?, dtype: tensor.dtype() }))
}

/// Copies a tensor into tract's memory.
pub(super) fn to_tract(tensor: &Tensor) -> Result<tract::TValue, RuntimeError> {
    fn copy<T: Element + Datum>(tensor: &Tensor) -> Result<TractResult<tract::Tensor>, RuntimeError> {
        Ok(match tensor.as_slice::<T>() {
            Ok(values) => tract::Tensor::from_shape(tensor.shape(), values),
            Err(_) => tract::Tensor::from_shape(tensor.shape(), &tensor.to_vec::<T>()?),
        })
    }
    let copied = match tensor.dtype() {
        DType::F32 => copy::<f32>(tensor)?,
        DType::F64 => copy::<f64>(tensor)?,
        DType::F16 => copy::<f16>(tensor)?,
        DType::I8 => copy::<i8>(tensor)?,
        DType::I16 => copy::<i16>(tensor)?,
        DType::I32 => copy::<i32>(tensor)?,
        DType::I64 => copy::<i64>(tensor)?,
        DType::U8 => copy::<u8>(tensor)?,
        DType::U16 => copy::<u16>(tensor)?,
        DType::U32 => copy::<u32>(tensor)?,
        DType::U64 => copy::<u64>(tensor)?,
        DType::Bool => {
            let values: Vec<bool> = tensor.to_vec::<u8>()?.into_iter().map(|b| b != 0).collect();
            tract::Tensor::from_shape(tensor.shape(), &values)
        }
        other => return Err(RuntimeError::Unsupported { engine: NAME, what: format!("tensors of {other}") }),
    };
    copied.map(tract::TValue::from).map_err(|e| failed("copy a tensor in", e))
}

fn dtype(datum: DatumType) -> Option<DType> {
    Some(match datum.unquantized() {
        DatumType::F32 => DType::F32,
        DatumType::F64 => DType::F64,
        DatumType::F16 => DType::F16,
        DatumType::I8 => DType::I8,
        DatumType::I16 => DType::I16,
        DatumType::I32 => DType::I32,
        DatumType::I64 => DType::I64,
        DatumType::U8 => DType::U8,
        DatumType::U16 => DType::U16,
        DatumType::U32 => DType::U32,
        DatumType::U64 => DType::U64,
        DatumType::Bool => DType::Bool,
        _ => return None,
    })
}
