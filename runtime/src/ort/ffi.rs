//! What of the ort engine is unsafe besides its kernels and its counting: reading a library's version, tensors over ONNX
//! Runtime values, and `Run`.
//!
//! `Run` is called through the C API because `ort::Session::run` takes `&mut self`, while the C API documents `Run` as
//! safe to call from several threads on one session.

use super::{
    NAME,
    custom::{Keeper, Loaded},
    failed,
    program::element,
};
use crate::{RuntimeError, store::StateValue};
use limbeck_tensor::{Bytes, DType, Tensor};
use ort::AsPointer;
use ort_sys::{OrtMemoryInfo, OrtStatusPtr, OrtValue};
use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_void},
    path::Path,
    ptr::{NonNull, null, null_mut},
    slice,
    sync::{Arc, OnceLock},
};

/// The version that a shared library gives for itself. The library stays loaded if it is ONNX Runtime.
pub(super) fn library_version(path: &Path) -> Result<String, String> {
    // SAFETY: loading runs the library's initialisers, so the path must be one whose code may run: `probe` gives what the
    // user named, what lies in or directly beside the executable's folder, an installed wheel, and the loader's own path.
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| e.to_string())?;
    // SAFETY: `OrtGetApiBase` has this type in every release of ONNX Runtime.
    let get = unsafe { library.get::<unsafe extern "C" fn() -> *const ort_sys::OrtApiBase>(b"OrtGetApiBase") }
        .map_err(|_| "it does not export OrtGetApiBase".to_owned())?;
    // SAFETY: the function takes nothing and returns a pointer to static data, or null.
    let base = unsafe { get().as_ref() }.ok_or("OrtGetApiBase returned nothing")?;
    // SAFETY: the returned string is static and ends with a zero byte.
    let version = unsafe { CStr::from_ptr((base.GetVersionString)()) }.to_string_lossy().into_owned();
    // Unloading ONNX Runtime while its threads may live is not safe.
    std::mem::forget(library);
    Ok(version)
}

/// The error in a status of the C API.
pub(super) fn check(what: &str, status: OrtStatusPtr) -> Result<(), RuntimeError> {
    // SAFETY: `status` was just returned by the C API and is given up here.
    unsafe { ort::Error::result_from_status(status) }.map_err(|e| failed(what, e))
}

/// Names of the execution providers that the library was built with.
pub(super) fn available_providers() -> Vec<String> {
    let (mut names, mut count) = (null_mut::<*mut c_char>(), 0);
    // SAFETY: both out-pointers are valid for the call.
    let status = unsafe { (ort::api().GetAvailableProviders)(&mut names, &mut count) };
    if check("list its providers", status).is_err() || names.is_null() {
        return vec![];
    }
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: the library returned `count` strings that live until `ReleaseAvailableProviders`.
    let list = unsafe { slice::from_raw_parts(names, count) }
        .iter()
        .map(|&name| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
        .collect();
    // SAFETY: releases what the call above returned, once.
    let status = unsafe { (ort::api().ReleaseAvailableProviders)(names, count as _) };
    let _ = check("release its providers", status);
    list
}

/// Description of host memory, made once.
pub(super) fn host_memory() -> Result<*const OrtMemoryInfo, RuntimeError> {
    struct Info(NonNull<OrtMemoryInfo>);
    // SAFETY: a memory info is never changed after it was made.
    unsafe impl Send for Info {}
    unsafe impl Sync for Info {}
    static INFO: OnceLock<Info> = OnceLock::new();
    if INFO.get().is_none() {
        let mut info = null_mut();
        // SAFETY: the out-pointer is valid. If two threads come here, one info is leaked, once.
        let status = unsafe {
            (ort::api().CreateCpuMemoryInfo)(
                ort_sys::OrtAllocatorType::OrtDeviceAllocator,
                ort_sys::OrtMemType::OrtMemTypeDefault,
                &mut info,
            )
        };
        check("describe host memory", status)?;
        let info = NonNull::new(info).ok_or_else(|| failed("describe host memory", "it returned nothing"))?;
        let _ = INFO.set(Info(info));
    }
    INFO.get().map(|i| i.0.as_ptr().cast_const()).ok_or_else(|| failed("describe host memory", "it is lost"))
}

/// What keeps a value's memory alive.
#[derive(Clone)]
enum Owner {
    /// The value lies over a tensor's bytes.
    Tensor(#[allow(dead_code)] Tensor),
    /// A session's allocator owns the memory.
    Session(#[allow(dead_code)] Keeper),
}

/// The only owner of an `OrtValue`.
struct Handle(NonNull<OrtValue>);

// SAFETY: nothing writes to the tensor after it was made: `run` is given values as inputs only, and its outputs are new
// values. Reading it and releasing it are not bound to a thread.
unsafe impl Send for Handle {}
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer is valid and owned by this handle alone.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) };
    }
}

/// A dense tensor in host memory that ONNX Runtime knows. It is never written after it was made. A clone shares it.
#[derive(Clone)]
pub(super) struct Value {
    // Dropped before `owner`, which keeps the memory.
    handle: Arc<Handle>,
    dtype: DType,
    shape: Vec<usize>,
    owner: Owner,
}

impl Value {
    /// A value over the bytes of a tensor, which are copied only if they are not aligned.
    pub(super) fn over(tensor: &Tensor) -> Result<Value, RuntimeError> {
        let element = element(tensor.dtype()).ok_or_else(|| RuntimeError::Unsupported {
            engine: NAME,
            what: format!("tensors of {}", tensor.dtype()),
        })?;
        let tensor = tensor.aligned();
        let shape: Vec<i64> = tensor.shape().iter().map(|&d| d as i64).collect();
        let bytes = tensor.bytes();
        let mut value = null_mut();
        // SAFETY: the bytes live as long as `owner` does; ONNX Runtime does not write to inputs, and nothing else makes
        // an output of this value. Length and shape agree, which `Tensor` guarantees and the library checks again.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                host_memory()?,
                bytes.as_ptr().cast_mut().cast::<c_void>(),
                bytes.len(),
                shape.as_ptr(),
                shape.len(),
                element,
                &mut value,
            )
        };
        check("take a tensor", status)?;
        let value = NonNull::new(value).ok_or_else(|| failed("take a tensor", "it returned nothing"))?;
        let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
        Ok(Value { handle: Arc::new(Handle(value)), dtype, shape, owner: Owner::Tensor(tensor) })
    }

    fn pointer(&self) -> *mut OrtValue {
        self.handle.0.as_ptr()
    }

    fn data(&self) -> *const u8 {
        let mut data = null_mut();
        // SAFETY: the value is a tensor in host memory.
        let status = unsafe { (ort::api().GetTensorMutableData)(self.pointer(), &mut data) };
        match check("read a tensor", status) {
            Ok(()) => data.cast::<u8>().cast_const(),
            Err(_) => null(),
        }
    }

    fn bytes(&self) -> &[u8] {
        let len = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).and_then(|n| self.dtype.byte_len(n));
        match (self.data(), len) {
            (data, Some(len)) if !data.is_null() && len > 0 => {
                // SAFETY: the tensor holds exactly `len` bytes, which live and stay unchanged as long as `self`.
                unsafe { slice::from_raw_parts(data, len) }
            }
            _ => &[],
        }
    }

    /// Takes over an output of `run`.
    fn output(value: NonNull<OrtValue>, dtype: DType, loaded: &Loaded) -> Result<Value, RuntimeError> {
        let handle = Arc::new(Handle(value));
        let mut out = Value { handle, dtype, shape: vec![], owner: Owner::Session(loaded.keeper()) };
        let mut is_tensor = 0;
        // SAFETY: the value is valid; the out-pointer too.
        check("inspect an output", unsafe { (ort::api().IsTensor)(value.as_ptr(), &mut is_tensor) })?;
        if is_tensor == 0 {
            return Err(failed("read an output", "it is not a tensor"));
        }
        let mut info = null_mut();
        // SAFETY: as above; `info` is released below, on every path.
        check("inspect an output", unsafe { (ort::api().GetTensorTypeAndShape)(value.as_ptr(), &mut info) })?;
        let read = || {
            let mut rank = 0;
            // SAFETY: `info` is valid and `dims` has room for `rank` entries.
            check("inspect an output", unsafe { (ort::api().GetDimensionsCount)(info, &mut rank) })?;
            let mut dims = vec![0i64; rank];
            check("inspect an output", unsafe { (ort::api().GetDimensions)(info, dims.as_mut_ptr(), rank) })?;
            let dims = dims.into_iter().map(|d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>();
            dims.ok_or_else(|| failed("inspect an output", "it has a negative extent"))
        };
        let shape = read();
        // SAFETY: releases what was returned above, once.
        unsafe { (ort::api().ReleaseTensorTypeAndShapeInfo)(info) };
        out.shape = shape?;
        Ok(out)
    }
}

impl StateValue for Value {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn to_tensor(&self) -> Result<Tensor, RuntimeError> {
        struct Shared(Value);
        impl AsRef<[u8]> for Shared {
            fn as_ref(&self) -> &[u8] {
                self.0.bytes()
            }
        }
        Ok(Tensor::from_bytes(self.dtype, self.shape.clone(), Bytes::from_owner(Shared(self.clone())))?)
    }
}

/// Puts a tensor into a store, over its own bytes.
pub(super) fn upload(tensor: &Tensor) -> Result<Arc<dyn StateValue>, RuntimeError> {
    Ok(Arc::new(Value::over(tensor)?))
}

/// Runs a session once. `outputs` gives each output's name and type, which the session declares.
pub(super) fn run(
    loaded: &Loaded,
    input_names: &[CString],
    inputs: &[&Value],
    output_names: &[CString],
    output_types: &[DType],
) -> Result<Vec<Value>, RuntimeError> {
    if input_names.len() != inputs.len() || output_names.len() != output_types.len() {
        return Err(failed("run the model", "names and values differ in number"));
    }
    let name_pointers = |names: &[CString]| names.iter().map(|n| n.as_ptr()).collect::<Vec<_>>();
    let (in_names, out_names) = (name_pointers(input_names), name_pointers(output_names));
    let values: Vec<*const OrtValue> = inputs.iter().map(|v| v.pointer().cast_const()).collect();
    let mut results = vec![null_mut::<OrtValue>(); output_names.len()];
    if let Some(counter) = &loaded.counter {
        counter.start();
    }
    // SAFETY: all arrays have the lengths given; names end with zero bytes; a null entry of `results` asks the library
    // to allocate that output in host memory. The C API allows concurrent calls on one session, and the session is not
    // changed by them, so a mutable pointer from a shared reference is only what the C signature asks for.
    let status = unsafe {
        (ort::api().Run)(
            loaded.session.ptr().cast_mut(),
            null(),
            in_names.as_ptr(),
            values.as_ptr(),
            values.len(),
            out_names.as_ptr(),
            out_names.len(),
            results.as_mut_ptr(),
        )
    };
    let ran = check("run the model", status);
    // Every result is wrapped before anything can fail, so that all are released.
    let taken: Vec<_> = (results.into_iter().zip(output_types))
        .map(|(value, &dtype)| {
            let value = NonNull::new(value).ok_or_else(|| failed("run the model", "an output is empty"))?;
            Value::output(value, dtype, loaded)
        })
        .collect();
    ran?;
    let mut outputs = taken.into_iter().collect::<Result<Vec<Value>, _>>()?;
    // A graph may pass an input through as an output; it then lies in the input's memory.
    let by_place: HashMap<*const u8, &Value> = inputs.iter().map(|input| (input.data(), *input)).collect();
    for output in &mut outputs {
        if let Some(input) = by_place.get(&output.data()).filter(|input| !input.data().is_null()) {
            output.owner = input.owner.clone();
        }
    }
    Ok(outputs)
}
