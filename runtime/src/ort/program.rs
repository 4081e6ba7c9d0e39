//! A compiled ONNX Runtime session.

use super::{NAME, custom::Loaded, failed, ffi};
use crate::{
    RuntimeError,
    engine::{Counted, Device, Program, StatePair, StateSpec, ValueSpec, guarded},
    signature::{Argument, Signature, Slot},
    store::{StateStore, StateValue},
};
use limbeck_tensor::{DType, Tensor, io::TensorMap};
use ort::value::{Outlet, TensorElementType, ValueType};
use ort_sys::ONNXTensorElementDataType as Element;
use std::{any::Any, ffi::CString, sync::Arc};

pub(super) struct OrtProgram {
    loaded: Loaded,
    signature: Signature,
    provider: &'static str,
    input_names: Vec<CString>,
    output_names: Vec<CString>,
    output_types: Vec<DType>,
}

impl OrtProgram {
    pub(super) fn new(loaded: Loaded, state: &[StatePair], device: Device) -> Result<OrtProgram, RuntimeError> {
        let specs = |outlets: &[Outlet]| outlets.iter().map(spec).collect::<Result<Vec<_>, _>>();
        let names =
            |specs: &[ValueSpec]| specs.iter().map(|s| CString::new(s.name.as_str())).collect::<Result<Vec<_>, _>>();
        let (inputs, outputs) = (specs(loaded.session.inputs())?, specs(loaded.session.outputs())?);
        let zero = |e| failed("read the model", format!("a name holds a zero byte: {e}"));
        let (input_names, output_names) = (names(&inputs).map_err(zero)?, names(&outputs).map_err(zero)?);
        let output_types = outputs.iter().map(|s| s.dtype).collect();
        // Each provider was required at registration, and the session would not be here if a node had fallen to the CPU.
        let provider = match device {
            Device::Cpu => "CPUExecutionProvider",
            Device::Cuda(_) => "CUDAExecutionProvider",
            Device::TensorRt(_) => "TensorrtExecutionProvider or CUDAExecutionProvider",
        };
        let signature = Signature::new(NAME, inputs, outputs, state)?;
        Ok(OrtProgram { loaded, signature, provider, input_names, output_names, output_types })
    }
}

impl Program for OrtProgram {
    fn engine(&self) -> &'static str {
        NAME
    }

    fn provider(&self) -> &str {
        self.provider
    }

    fn inputs(&self) -> &[ValueSpec] {
        &self.signature.inputs
    }

    fn outputs(&self) -> &[ValueSpec] {
        &self.signature.outputs
    }

    fn state(&self) -> &[StateSpec] {
        &self.signature.state
    }

    fn counted(&self) -> Option<Counted> {
        self.loaded.counter.as_ref().map(|counter| counter.counted())
    }

    fn run(&self, store: &mut StateStore, feeds: &[(&str, &Tensor)]) -> Result<TensorMap, RuntimeError> {
        let arguments = self.signature.arguments(store, feeds)?;
        // Feeds are wrapped for this run; state is in the library's form already.
        let wrapped = (arguments.iter())
            .map(|argument| match argument {
                Argument::Feed(tensor) => ffi::Value::over(tensor).map(Some),
                Argument::State(_) => Ok(None),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let inputs = (arguments.iter().zip(&wrapped))
            .map(|(argument, wrapped)| match (argument, wrapped) {
                (_, Some(value)) => Ok(value),
                (Argument::State(value), None) => state_value(&***value),
                (Argument::Feed(_), None) => Err(failed("run the model", "a feed was not wrapped")),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let results = guarded(NAME, "run the model", || {
            ffi::run(&self.loaded, &self.input_names, &inputs, &self.output_names, &self.output_types)
        })?;
        let (mut outputs, mut updates) = (TensorMap::new(), Vec::new());
        for (slot, value) in self.signature.sinks().iter().zip(results) {
            match *slot {
                Slot::Free(i) => {
                    outputs.insert(self.signature.outputs[i].name.clone(), value.to_tensor()?);
                }
                Slot::State(i) => {
                    self.signature.check_update(i, &value)?;
                    let value: Arc<dyn StateValue> = Arc::new(value);
                    updates.push((self.signature.state[i].name.clone(), value));
                }
            }
        }
        store.commit(updates);
        Ok(outputs)
    }
}

fn state_value(value: &dyn StateValue) -> Result<&ffi::Value, RuntimeError> {
    (value as &dyn Any)
        .downcast_ref::<ffi::Value>()
        .ok_or(RuntimeError::OtherEngine { store: "another engine", program: NAME })
}

fn spec(outlet: &Outlet) -> Result<ValueSpec, RuntimeError> {
    let name = outlet.name().to_owned();
    let unsupported = |what: String| RuntimeError::Unsupported { engine: NAME, what };
    let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
        return Err(unsupported(format!("`{name}`, which is {}; only tensors go in and out", outlet.dtype())));
    };
    let dtype = dtype(*ty).ok_or_else(|| unsupported(format!("`{name}`, whose element type is {ty}")))?;
    Ok(ValueSpec { name, dtype, dims: shape.iter().map(|&d| usize::try_from(d).ok()).collect() })
}

fn dtype(element: TensorElementType) -> Option<DType> {
    use TensorElementType as E;
    Some(match element {
        E::Float32 => DType::F32,
        E::Float64 => DType::F64,
        E::Float16 => DType::F16,
        E::Bfloat16 => DType::BF16,
        E::Int8 => DType::I8,
        E::Int16 => DType::I16,
        E::Int32 => DType::I32,
        E::Int64 => DType::I64,
        E::Uint8 => DType::U8,
        E::Uint16 => DType::U16,
        E::Uint32 => DType::U32,
        E::Uint64 => DType::U64,
        E::Bool => DType::Bool,
        E::String => DType::String,
        E::Int4 => DType::I4,
        E::Uint4 => DType::U4,
        E::Float8E4M3FN => DType::F8E4M3FN,
        E::Float8E4M3FNUZ => DType::F8E4M3FNUZ,
        E::Float8E5M2 => DType::F8E5M2,
        E::Float8E5M2FNUZ => DType::F8E5M2FNUZ,
        E::Float8E8M0 => DType::F8E8M0,
        E::Float4E2M1 => DType::F4E2M1,
        E::Uint2 => DType::U2,
        E::Int2 => DType::I2,
        _ => return None,
    })
}

/// ONNX Runtime's number of an element type, for types that a tensor can bring.
pub(super) fn element(dtype: DType) -> Option<Element> {
    use Element::*;
    Some(match dtype {
        DType::F32 => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        DType::U8 => ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        DType::I8 => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        DType::U16 => ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        DType::I16 => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        DType::I32 => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        DType::I64 => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        DType::Bool => ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        DType::F16 => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        DType::F64 => ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        DType::U32 => ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        DType::U64 => ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        DType::BF16 => ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        DType::U4 => ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT4,
        DType::I4 => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4,
        DType::F8E4M3FN => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN,
        DType::F8E4M3FNUZ => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FNUZ,
        DType::F8E5M2 => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2,
        DType::F8E5M2FNUZ => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2FNUZ,
        DType::F8E8M0 => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E8M0,
        DType::F4E2M1 => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT4E2M1,
        DType::U2 => ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT2,
        DType::I2 => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT2,
        _ => return None,
    })
}
