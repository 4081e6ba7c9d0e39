//! The cases on tract itself, as its documentation loads a model: what the importer and Limbeck's engine add is measured
//! against this.

use super::{Case, difference, first_success};
use limbeck::tensor::{Bytes, DType, Element, Tensor};
use tract_onnx::prelude::{
    Datum, Framework, InferenceModelExt, IntoRunnable, TValue, TVec, Tensor as TractTensor, TractResult, TypedModel,
};
use tract_onnx::tract_core::internal::bail;

pub(crate) fn run(case: &Case) -> Result<(), String> {
    first_success(|operands| {
        let (graph, feeds) = operands.arrange(case)?;
        let bytes = graph.to_bytes().map_err(|e| e.to_string())?;
        let run = || -> TractResult<TVec<TValue>> {
            let model: TypedModel = tract_onnx::onnx().model_for_read(&mut &bytes[..])?.into_optimized()?;
            model.into_runnable()?.run(feeds.iter().map(|(_, t)| to_tract(t)).collect::<TractResult<_>>()?)
        };
        let results = run().map_err(|e| format!("{e:#}"))?;
        let named = case.outputs.iter().zip(&results);
        let found = named.map(|((name, _), value)| Ok((name.clone(), from_tract(value).map_err(|e| e.to_string())?)));
        difference(&found.collect::<Result<_, String>>()?, &case.outputs)
    })
}

fn to_tract(tensor: &Tensor) -> TractResult<TValue> {
    fn copy<T: Element + Datum>(tensor: &Tensor) -> TractResult<TractTensor> {
        TractTensor::from_shape(tensor.shape(), &tensor.to_vec::<T>()?)
    }
    Ok(match tensor.dtype() {
        DType::F32 => copy::<f32>(tensor)?,
        DType::F64 => copy::<f64>(tensor)?,
        DType::F16 => copy::<half::f16>(tensor)?,
        DType::I8 => copy::<i8>(tensor)?,
        DType::I16 => copy::<i16>(tensor)?,
        DType::I32 => copy::<i32>(tensor)?,
        DType::I64 => copy::<i64>(tensor)?,
        DType::U8 => copy::<u8>(tensor)?,
        DType::U16 => copy::<u16>(tensor)?,
        DType::U32 => copy::<u32>(tensor)?,
        DType::U64 => copy::<u64>(tensor)?,
        DType::Bool => {
            let values: Vec<bool> = tensor.bytes().iter().map(|&b| b != 0).collect();
            TractTensor::from_shape(tensor.shape(), &values)?
        }
        other => bail!("tract has no {other}"),
    }
    .into())
}

fn from_tract(value: &TValue) -> TractResult<Tensor> {
    const DTYPES: &[DType] = &[
        DType::F32,
        DType::F64,
        DType::F16,
        DType::I8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
        DType::Bool,
    ];
    let name = format!("{:?}", value.datum_type().unquantized());
    let Some(dtype) = DTYPES.iter().find(|d| format!("{d:?}") == name) else { bail!("a result of {name}") };
    Ok(Tensor::from_bytes(*dtype, value.shape(), Bytes::copy_from_slice(value.as_bytes()))?)
}
