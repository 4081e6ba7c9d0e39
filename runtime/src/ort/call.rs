//! What ONNX Runtime tells a custom operator through its C API: of the node that a kernel is made for, and of a call.

use crate::fused::{Attributes, Elements, FusedError};
use limbeck_kernels::Team;
use ort_sys::{ONNXTensorElementDataType as Element, OrtKernelContext, OrtKernelInfo, OrtStatusPtr, OrtValue};
use std::{
    ffi::{CStr, CString, c_char, c_void},
    marker::PhantomData,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::{null, null_mut},
    slice,
    sync::atomic::{AtomicBool, Ordering},
};

/// The error in a status of the C API.
pub(super) fn ask(status: OrtStatusPtr) -> Result<(), FusedError> {
    // SAFETY: `status` was just returned by the C API and is given up here.
    unsafe { ort::Error::result_from_status(status) }.map_err(FusedError::new)
}

/// The node that a kernel is made for; the pointer is valid during `create`.
pub(super) struct Node(pub(super) *const OrtKernelInfo);

impl Node {
    pub(super) fn operands(&self) -> Result<usize, FusedError> {
        let mut count = 0;
        // SAFETY: both pointers are valid.
        ask(unsafe { (ort::api().KernelInfo_GetInputCount)(self.0, &mut count) })?;
        Ok(count)
    }

    pub(super) fn results(&self) -> Result<usize, FusedError> {
        let mut count = 0;
        // SAFETY: both pointers are valid.
        ask(unsafe { (ort::api().KernelInfo_GetOutputCount)(self.0, &mut count) })?;
        Ok(count)
    }

    /// What `read` gets for an attribute. That there is none the library tells in words only, of several wordings.
    fn attribute<T>(
        &self,
        name: &str,
        read: impl FnOnce(*const c_char) -> Result<T, FusedError>,
    ) -> Result<Option<T>, FusedError> {
        let key = CString::new(name).map_err(FusedError::new)?;
        match read(key.as_ptr()) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.to_string().contains("No attribute with") => Ok(None),
            Err(error) => Err(FusedError::new(format!("attribute {name}: {error}"))),
        }
    }
}

impl Attributes for Node {
    fn int(&self, name: &str) -> Result<Option<i64>, FusedError> {
        self.attribute(name, |key| {
            let mut value = 0;
            // SAFETY: all pointers are valid; the key ends with a zero byte.
            ask(unsafe { (ort::api().KernelInfoGetAttribute_int64)(self.0, key, &mut value) })?;
            Ok(value)
        })
    }

    fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, FusedError> {
        self.attribute(name, |key| {
            let mut len = 0;
            // SAFETY: as above; without a place for values the call gives their number.
            ask(unsafe { (ort::api().KernelInfoGetAttributeArray_int64)(self.0, key, null_mut(), &mut len) })?;
            let mut values = vec![0; len];
            // SAFETY: there is place for `len` values.
            ask(unsafe { (ort::api().KernelInfoGetAttributeArray_int64)(self.0, key, values.as_mut_ptr(), &mut len) })?;
            Ok(values)
        })
    }

    fn string(&self, name: &str) -> Result<Option<String>, FusedError> {
        self.attribute(name, |key| {
            let mut len = 0;
            // SAFETY: as above; without a place for the text the call gives its length with the zero byte at its end.
            ask(unsafe { (ort::api().KernelInfoGetAttribute_string)(self.0, key, null_mut(), &mut len) })?;
            let mut text = vec![0u8; len];
            // SAFETY: there is place for `len` bytes.
            ask(unsafe {
                (ort::api().KernelInfoGetAttribute_string)(self.0, key, text.as_mut_ptr().cast(), &mut len)
            })?;
            let text = CStr::from_bytes_until_nul(&text).map_err(FusedError::new)?;
            Ok(text.to_string_lossy().into_owned())
        })
    }
}

/// A call of a kernel; the pointer is valid during `compute`, which `'c` does not outlive.
pub(super) struct Call<'c>(*mut OrtKernelContext, PhantomData<&'c mut ()>);

/// An operand's type, extents, and the start of its elements.
pub(super) struct Input {
    element: Element,
    shape: Vec<usize>,
    data: *const u8,
}

impl<'c> Call<'c> {
    /// The call that ONNX Runtime makes with this context.
    pub(super) fn new(context: *mut OrtKernelContext) -> Call<'c> {
        Call(context, PhantomData)
    }

    pub(super) fn operands(&self) -> Result<usize, FusedError> {
        let mut count = 0;
        // SAFETY: both pointers are valid.
        ask(unsafe { (ort::api().KernelContext_GetInputCount)(self.0, &mut count) })?;
        Ok(count)
    }

    pub(super) fn input(&self, index: usize) -> Result<Input, FusedError> {
        let mut value: *const OrtValue = null();
        // SAFETY: both pointers are valid; the index is below the number of operands.
        ask(unsafe { (ort::api().KernelContext_GetInput)(self.0, index, &mut value) })?;
        if value.is_null() {
            return Err(FusedError::new(format!("operand {index} is left out")));
        }
        let mut info = null_mut();
        // SAFETY: the value is a tensor, as the operator declares; `info` is released below, on every path.
        ask(unsafe { (ort::api().GetTensorTypeAndShape)(value, &mut info) })?;
        let read = || -> Result<_, FusedError> {
            let (mut element, mut rank) = (Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, 0);
            // SAFETY: `info` is valid and `dims` has room for `rank` entries.
            ask(unsafe { (ort::api().GetTensorElementType)(info, &mut element) })?;
            ask(unsafe { (ort::api().GetDimensionsCount)(info, &mut rank) })?;
            let mut dims = vec![0i64; rank];
            ask(unsafe { (ort::api().GetDimensions)(info, dims.as_mut_ptr(), rank) })?;
            let shape = dims.into_iter().map(usize::try_from).collect::<Result<Vec<_>, _>>();
            Ok((element, shape.map_err(FusedError::new)?))
        };
        let read = read();
        // SAFETY: releases what was returned above, once.
        unsafe { (ort::api().ReleaseTensorTypeAndShapeInfo)(info) };
        let (element, shape) = read?;
        let mut data = null_mut();
        // SAFETY: the value is a tensor in host memory, since the operator is registered for the processor. It is only
        // read, though the C signature asks for a mutable pointer.
        ask(unsafe { (ort::api().GetTensorMutableData)(value.cast_mut(), &mut data) })?;
        Ok(Input { element, shape, data: data.cast::<u8>().cast_const() })
    }

    /// So many threads of the session.
    pub(super) fn team(&self, count: usize) -> Threads<'_> {
        Threads { count, call: self }
    }

    /// The memory of a result of this shape. It may be that of an operand that nothing else needs.
    pub(super) fn result(&self, index: usize, shape: &[usize]) -> Result<Memory<'c>, FusedError> {
        let dims: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
        let mut value = null_mut();
        // SAFETY: all pointers are valid and `dims` has the length given. An index past the results is an error.
        ask(unsafe { (ort::api().KernelContext_GetOutput)(self.0, index, dims.as_ptr(), dims.len(), &mut value) })?;
        if value.is_null() {
            return Err(FusedError::new(format!("result {index} is left out")));
        }
        let mut data = null_mut();
        // SAFETY: the value is a tensor of float32, as the operator declares, in host memory.
        ask(unsafe { (ort::api().GetTensorMutableData)(value, &mut data) })?;
        let len = length(shape)?;
        let data = if len == 0 { null() } else { place::<f32>(data.cast::<u8>().cast_const())? };
        Ok(Memory { data: data.cast_mut(), len, call: PhantomData })
    }
}

/// The memory of a result during a call.
pub(super) struct Memory<'c> {
    data: *mut f32,
    len: usize,
    call: PhantomData<&'c mut ()>,
}

impl<'c> Memory<'c> {
    /// Its addresses.
    pub(super) fn span(&self) -> Range<usize> {
        self.data as usize..self.data as usize + self.len * size_of::<f32>()
    }

    /// Its elements.
    ///
    /// # Safety
    /// The memory of each result is taken once, and nothing refers to operands that lie in it.
    pub(super) unsafe fn elements(self) -> &'c mut [f32] {
        match self.len {
            0 => &mut [],
            // SAFETY: the library allocated `len` floats for this result of this call, apart from all other results. The
            // caller answers for the rest. Any bits are a float.
            _ => unsafe { slice::from_raw_parts_mut(self.data, self.len) },
        }
    }
}

/// The session's own threads, during a call.
pub(super) struct Threads<'c> {
    count: usize,
    call: &'c Call<'c>,
}

/// What [`Threads::run`] hands to the library for its threads.
struct Work<'w> {
    task: &'w (dyn Fn(usize) + Sync),
    failed: AtomicBool,
}

impl Team for Threads<'_> {
    fn threads(&self) -> usize {
        self.count
    }

    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        unsafe extern "C" fn one(work: *mut c_void, i: usize) {
            // SAFETY: `work` is the pointer to a `Work` below, which lives until the library's call has returned. Only shared
            // references to it exist, and all of it may be used by several threads at once.
            let work = unsafe { &*work.cast::<Work>().cast_const() };
            // A panic must not reach the library.
            if catch_unwind(AssertUnwindSafe(|| (work.task)(i))).is_err() {
                work.failed.store(true, Ordering::Relaxed);
            }
        }
        let work = Work { task, failed: AtomicBool::new(false) };
        let data = (&raw const work).cast_mut().cast();
        // SAFETY: the context is that of a call that runs. The library calls `one` with `data` and each number below `count`
        // and returns when all have returned.
        let ran = ask(unsafe { (ort::api().KernelContext_ParallelFor)(self.call.0, one, count, 0, data) });
        // Both end in an error of the call: who computes a result has no other way to say that it is not there.
        if let Err(error) = ran {
            panic!("its threads: {error}");
        }
        assert!(!work.failed.into_inner(), "a kernel panicked");
    }
}

impl Input {
    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Bytes of an element, of the types that are taken.
    fn size(&self) -> usize {
        if self.element == Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL { 1 } else { size_of::<f32>() }
    }

    /// Its addresses.
    pub(super) fn span(&self) -> Range<usize> {
        let start = self.data as usize;
        start..start.saturating_add(length(&self.shape).unwrap_or(0).saturating_mul(self.size()))
    }

    pub(super) fn elements(&self) -> Result<Elements<'_>, FusedError> {
        let len = length(&self.shape)?;
        // SAFETY (of both): the tensor has `len` elements of this type, which live and stay unchanged during the call.
        Ok(match self.element {
            Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT if len == 0 => Elements::F32(&[]),
            Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT => {
                Elements::F32(unsafe { slice::from_raw_parts(place::<f32>(self.data)?, len) })
            }
            Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL if len == 0 => Elements::Bool(&[]),
            Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL => {
                Elements::Bool(unsafe { slice::from_raw_parts(place::<u8>(self.data)?, len) })
            }
            other => return Err(FusedError::new(format!("takes float32 and bool tensors, got {other:?}"))),
        })
    }
}

fn length(shape: &[usize]) -> Result<usize, FusedError> {
    let len = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    len.ok_or_else(|| FusedError::new(format!("the size of {shape:?} overflows")))
}

/// A pointer to elements, checked.
fn place<T>(data: *const u8) -> Result<*const T, FusedError> {
    let data = data.cast::<T>();
    if data.is_null() || !data.is_aligned() {
        return Err(FusedError::new("a tensor's memory is missing or not aligned"));
    }
    Ok(data)
}
