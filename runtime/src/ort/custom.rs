//! Limbeck's own operators as custom operators of ONNX Runtime, through its C API.
//!
//! Every operator is declared alike: any number of operands of any type, any number of float32 results. What it really
//! takes is checked when a kernel is made for a node ([`FusedOp::parse`]) and at every call, so that a node which does
//! not fit is an error at load. Kernels have no state, so that concurrent runs share them.

use super::{failed, ffi::check};
use crate::{
    RuntimeError,
    fused::{Attributes, DOMAIN, Elements, FusedError, FusedOp, OPS, Operand},
};
use limbeck_kernels::Parallelism;
use ort::{AsPointer, session::builder::SessionBuilder};
use ort_sys::{
    ONNXTensorElementDataType as Element, OrtApi, OrtCustomOp, OrtCustomOpDomain,
    OrtCustomOpInputOutputCharacteristic as Characteristic, OrtErrorCode, OrtKernelContext, OrtKernelInfo, OrtMemType,
    OrtStatusPtr, OrtValue,
};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    ffi::{CStr, CString, c_char, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::{NonNull, null, null_mut},
    slice,
    sync::{Mutex, PoisonError},
};

/// The domain with its operators for one thread count. It lives as long as the process, since sessions hold pointers
/// into it.
pub(super) struct Operators(NonNull<OrtCustomOpDomain>);

// SAFETY: after `Operators::new` nothing writes to the domain; sessions only read it.
unsafe impl Send for Operators {}
unsafe impl Sync for Operators {}

/// The operator that ONNX Runtime knows by the pointer to `table`, which therefore comes first.
#[repr(C)]
struct Operator {
    table: OrtCustomOp,
    op_type: &'static str,
    name: CString,
    /// Where kernels compute; `None` is the caller's thread alone.
    pool: Option<&'static ThreadPool>,
}

/// What is made for one node.
struct Kernel {
    op: FusedOp,
    pool: Option<&'static ThreadPool>,
}

thread_local! {
    /// Per operator type, the kernels made on this thread since `counted` began.
    static MADE: RefCell<BTreeMap<&'static str, usize>> = const { RefCell::new(BTreeMap::new()) };
}

/// What `load` returns, and how many kernels ONNX Runtime made for each operator type meanwhile. It makes them on the
/// thread that creates the session.
pub(super) fn counted<T>(load: impl FnOnce() -> T) -> (T, BTreeMap<&'static str, usize>) {
    MADE.take();
    let loaded = load();
    (loaded, MADE.take())
}

impl Operators {
    /// The operators whose kernels use so many threads. All sessions of one count share them and their pool.
    pub(super) fn with_threads(threads: usize) -> Result<&'static Operators, RuntimeError> {
        static ALL: Mutex<BTreeMap<usize, &'static Operators>> = Mutex::new(BTreeMap::new());
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(operators) = all.get(&threads) {
            return Ok(operators);
        }
        let operators: &'static Operators = Box::leak(Box::new(Operators::new(threads)?));
        all.insert(threads, operators);
        Ok(operators)
    }

    fn new(threads: usize) -> Result<Operators, RuntimeError> {
        const WHAT: &str = "register its operators";
        let named = |name: &str| CString::new(name).map_err(|e| failed(WHAT, e));
        let pool: Option<&'static ThreadPool> = match threads {
            0 | 1 => None,
            _ => {
                let builder = ThreadPoolBuilder::new().num_threads(threads);
                let builder = builder.thread_name(|i| format!("limbeck-ort-{i}"));
                Some(Box::leak(Box::new(builder.build().map_err(|e| failed("start its threads", e))?)))
            }
        };
        let mut domain = null_mut();
        // SAFETY: the name ends with a zero byte and is copied; the out-pointer is valid.
        check(WHAT, unsafe { (ort::api().CreateCustomOpDomain)(named(DOMAIN)?.as_ptr(), &mut domain) })?;
        let domain = NonNull::new(domain).ok_or_else(|| failed(WHAT, "it returned nothing"))?;
        for &op_type in OPS {
            let operator = Box::leak(Box::new(Operator { table: table(), op_type, name: named(op_type)?, pool }));
            // SAFETY: the domain is valid. The operator is never freed; the pointer is to all of it, `table` first.
            let status = unsafe { (ort::api().CustomOpDomain_Add)(domain.as_ptr(), (&raw const *operator).cast()) };
            check(WHAT, status)?;
        }
        Ok(Operators(domain))
    }

    /// Makes a session that is built know the operators.
    pub(super) fn register(&'static self, builder: &SessionBuilder) -> Result<(), RuntimeError> {
        // SAFETY: both pointers are valid; the domain outlives every session.
        let status = unsafe { (ort::api().AddCustomOpDomain)(builder.ptr().cast_mut(), self.0.as_ptr()) };
        check("register its operators", status)
    }
}

/// The functions by which ONNX Runtime asks and calls an operator. It never passes a null pointer to them.
fn table() -> OrtCustomOp {
    unsafe extern "system" fn name(op: *const OrtCustomOp) -> *const c_char {
        // SAFETY: `op` is the pointer that `Operators::new` registered, to an `Operator` that is never freed.
        unsafe { &*op.cast::<Operator>() }.name.as_ptr()
    }
    unsafe extern "system" fn provider(_: *const OrtCustomOp) -> *const c_char {
        null()
    }
    unsafe extern "system" fn one(_: *const OrtCustomOp) -> usize {
        1
    }
    unsafe extern "system" fn any_type(_: *const OrtCustomOp, _: usize) -> Element {
        Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED
    }
    unsafe extern "system" fn float(_: *const OrtCustomOp, _: usize) -> Element {
        Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
    }
    unsafe extern "system" fn variadic(_: *const OrtCustomOp, _: usize) -> Characteristic {
        Characteristic::INPUT_OUTPUT_VARIADIC
    }
    unsafe extern "system" fn host(_: *const OrtCustomOp, _: usize) -> OrtMemType {
        OrtMemType::OrtMemTypeDefault
    }
    unsafe extern "system" fn no(_: *const OrtCustomOp) -> c_int {
        0
    }
    unsafe extern "system" fn first(_: *const OrtCustomOp) -> c_int {
        1
    }
    unsafe extern "system" fn last(_: *const OrtCustomOp) -> c_int {
        c_int::MAX
    }
    OrtCustomOp {
        version: ort_sys::ORT_API_VERSION,
        CreateKernel: None,
        GetName: Some(name),
        GetExecutionProviderType: Some(provider),
        GetInputType: Some(any_type),
        GetInputTypeCount: Some(one),
        GetOutputType: Some(float),
        GetOutputTypeCount: Some(one),
        KernelCompute: None,
        KernelDestroy: Some(destroy),
        GetInputCharacteristic: Some(variadic),
        GetOutputCharacteristic: Some(variadic),
        GetInputMemoryType: Some(host),
        GetVariadicInputMinArity: Some(first),
        GetVariadicInputHomogeneity: Some(no),
        GetVariadicOutputMinArity: Some(first),
        GetVariadicOutputHomogeneity: Some(first),
        CreateKernelV2: Some(create),
        KernelComputeV2: Some(compute),
        InferOutputShapeFn: None,
        GetStartVersion: Some(first),
        GetEndVersion: Some(last),
        GetMayInplace: None,
        ReleaseMayInplace: None,
        GetAliasMap: None,
        ReleaseAliasMap: None,
    }
}

/// Makes the kernel of a node.
unsafe extern "system" fn create(
    op: *const OrtCustomOp,
    _: *const OrtApi,
    info: *const OrtKernelInfo,
    kernel: *mut *mut c_void,
) -> OrtStatusPtr {
    status(|| {
        // SAFETY: `op` is the pointer that `Operators::new` registered, to an `Operator` that is never freed.
        let operator = unsafe { &*op.cast::<Operator>() };
        let node = Node(info);
        let op = FusedOp::parse(operator.op_type, node.operands()?, node.results()?, &node)?;
        let made = Box::new(Kernel { op, pool: operator.pool });
        MADE.with_borrow_mut(|counts| *counts.entry(operator.op_type).or_default() += 1);
        // SAFETY: the library passes the place for the kernel and gives what is written there to `compute` and `destroy`.
        unsafe { *kernel = Box::into_raw(made).cast() };
        Ok(())
    })
}

unsafe extern "system" fn destroy(kernel: *mut c_void) {
    // SAFETY: the library gives back what `create` made, once, when no run uses it any more.
    let kernel = unsafe { Box::from_raw(kernel.cast::<Kernel>()) };
    // A panic must not reach the library, and there is nothing to do about one here.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(kernel)));
}

/// Runs a kernel once.
unsafe extern "system" fn compute(kernel: *mut c_void, context: *mut OrtKernelContext) -> OrtStatusPtr {
    status(|| {
        // SAFETY: `kernel` is what `create` made. It is never written to, so that runs on several threads may share it.
        let kernel = unsafe { &*kernel.cast::<Kernel>() };
        kernel.run(&Call(context)).map_err(|e| FusedError::new(format!("{}: {e}", kernel.op.op_type())))
    })
}

/// ONNX Runtime's form of a result; a panic becomes an error too.
fn status(f: impl FnOnce() -> Result<(), FusedError>) -> OrtStatusPtr {
    let reason = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => return OrtStatusPtr::default(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "a kernel panicked".into(),
    };
    let reason = CString::new(reason.replace('\0', " ")).unwrap_or_default();
    // SAFETY: the message ends with a zero byte and is copied.
    unsafe { (ort::api().CreateStatus)(OrtErrorCode::ORT_FAIL, reason.as_ptr()) }
}

/// The error in a status of the C API.
fn ask(status: OrtStatusPtr) -> Result<(), FusedError> {
    // SAFETY: `status` was just returned by the C API and is given up here.
    unsafe { ort::Error::result_from_status(status) }.map_err(FusedError::new)
}

/// The node that a kernel is made for; the pointer is valid during `create`.
struct Node(*const OrtKernelInfo);

impl Node {
    fn operands(&self) -> Result<usize, FusedError> {
        let mut count = 0;
        // SAFETY: both pointers are valid.
        ask(unsafe { (ort::api().KernelInfo_GetInputCount)(self.0, &mut count) })?;
        Ok(count)
    }

    fn results(&self) -> Result<usize, FusedError> {
        let mut count = 0;
        // SAFETY: both pointers are valid.
        ask(unsafe { (ort::api().KernelInfo_GetOutputCount)(self.0, &mut count) })?;
        Ok(count)
    }

    /// What `read` gets for an attribute. That there is none the library tells in words only.
    fn attribute<T>(
        &self,
        name: &str,
        read: impl FnOnce(*const c_char) -> Result<T, FusedError>,
    ) -> Result<Option<T>, FusedError> {
        let key = CString::new(name).map_err(FusedError::new)?;
        match read(key.as_ptr()) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.to_string().contains("No attribute with name") => Ok(None),
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

/// A call of a kernel; the pointer is valid during `compute`.
struct Call(*mut OrtKernelContext);

/// An operand's type, extents, and the start of its elements.
struct Input {
    element: Element,
    shape: Vec<usize>,
    data: *const u8,
}

impl Kernel {
    fn run(&self, call: &Call) -> Result<(), FusedError> {
        let inputs = (0..call.operands()?).map(|i| call.input(i)).collect::<Result<Vec<_>, _>>()?;
        let operands = inputs.iter().map(Input::operand).collect::<Result<Vec<_>, _>>()?;
        let shapes: Vec<&[usize]> = operands.iter().map(|o| o.shape).collect();
        let shapes = self.op.output_shapes(&shapes)?;
        let results = shapes.iter().enumerate().map(|(i, shape)| call.result(i, shape));
        let mut results = results.collect::<Result<Vec<_>, _>>()?;
        match self.pool {
            Some(pool) => {
                let parallelism = Parallelism::new(pool.current_num_threads());
                pool.install(|| self.op.run(&operands, &mut results, parallelism))
            }
            None => self.op.run(&operands, &mut results, Parallelism::Serial),
        }
    }
}

impl Call {
    fn operands(&self) -> Result<usize, FusedError> {
        let mut count = 0;
        // SAFETY: both pointers are valid.
        ask(unsafe { (ort::api().KernelContext_GetInputCount)(self.0, &mut count) })?;
        Ok(count)
    }

    fn input(&self, index: usize) -> Result<Input, FusedError> {
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

    /// The memory of a result of this shape.
    fn result(&self, index: usize, shape: &[usize]) -> Result<&mut [f32], FusedError> {
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
        let data = place::<f32>(data.cast::<u8>().cast_const())?;
        match len {
            0 => Ok(&mut []),
            // SAFETY: the library allocated `len` floats for this result of this call. No operand and no other result
            // lies there, since the operator declares nothing that may be computed in place, and `Kernel::run` asks for
            // each result once. Any bits are a float.
            _ => Ok(unsafe { slice::from_raw_parts_mut(data.cast_mut(), len) }),
        }
    }
}

impl Input {
    fn operand(&self) -> Result<Operand<'_>, FusedError> {
        let len = length(&self.shape)?;
        // SAFETY (of both): the tensor has `len` elements of this type, which live and stay unchanged during the call.
        let elements = match self.element {
            Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT if len == 0 => Elements::F32(&[]),
            Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT => {
                Elements::F32(unsafe { slice::from_raw_parts(place::<f32>(self.data)?, len) })
            }
            Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL if len == 0 => Elements::Bool(&[]),
            Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL => {
                Elements::Bool(unsafe { slice::from_raw_parts(place::<u8>(self.data)?, len) })
            }
            other => return Err(FusedError::new(format!("takes float32 and bool tensors, got {other:?}"))),
        };
        Ok(Operand { shape: &self.shape, elements })
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
