//! Limbeck's own operators as custom operators of ONNX Runtime, through its C API.
//!
//! Every operator is declared alike: any number of operands of any type, any number of float32 results. What it really
//! takes is checked when a kernel is made for a node ([`FusedOp::parse`]) and at every call, so that a node which does
//! not fit is an error at load. Kernels have no state, so that concurrent runs share them.

use super::{
    NAME,
    call::{Call, Input, Node},
    count::Counter,
    failed,
    ffi::check,
};
use crate::{
    RuntimeError,
    fused::{DOMAIN, Elements, FusedError, FusedOp, op_of},
};
use limbeck_kernels::Parallelism;
use ort::{
    AsPointer,
    session::{Session, SharedSessionInner, builder::SessionBuilder},
};
use ort_sys::{
    ONNXTensorElementDataType as Element, OrtApi, OrtCustomOp, OrtCustomOpDomain,
    OrtCustomOpInputOutputCharacteristic as Characteristic, OrtErrorCode, OrtKernelContext, OrtKernelInfo, OrtMemType,
    OrtStatusPtr,
};
use std::{
    collections::BTreeMap,
    ffi::{CString, c_char, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::{NonNull, null, null_mut},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// The domain with the operators of one model. Its sessions point into it, so it must outlive them.
pub(super) struct Operators {
    domain: NonNull<OrtCustomOpDomain>,
    operators: Vec<Arc<Operator>>,
}

// SAFETY: after `Operators::new` nothing writes to the domain; sessions only read it, and counters are atomic.
unsafe impl Send for Operators {}
unsafe impl Sync for Operators {}

impl Drop for Operators {
    fn drop(&mut self) {
        // SAFETY: the domain is valid and released once, after the sessions that use it (`Loaded`).
        unsafe { (ort::api().ReleaseCustomOpDomain)(self.domain.as_ptr()) };
    }
}

/// The operator that ONNX Runtime knows by the pointer to `table`, which therefore comes first.
#[repr(C)]
struct Operator {
    table: OrtCustomOp,
    op: &'static str,
    /// The type in the file.
    name: CString,
    /// How many threads the session has.
    threads: usize,
    /// Kernels made so far.
    made: AtomicUsize,
}

/// What is made for one node.
struct Kernel {
    op: FusedOp,
    threads: usize,
}

impl Operators {
    /// The operators of these types, given as the file has them and as [`OPS`](crate::fused::OPS) does.
    pub(super) fn new(types: &[(&str, &'static str)], threads: usize) -> Result<Operators, RuntimeError> {
        const WHAT: &str = "register its operators";
        let named = |name: &str| CString::new(name).map_err(|e| failed(WHAT, e));
        let mut domain = null_mut();
        // SAFETY: the name ends with a zero byte and is copied; the out-pointer is valid.
        check(WHAT, unsafe { (ort::api().CreateCustomOpDomain)(named(DOMAIN)?.as_ptr(), &mut domain) })?;
        let domain = NonNull::new(domain).ok_or_else(|| failed(WHAT, "it returned nothing"))?;
        let mut all = Operators { domain, operators: vec![] };
        for &(name, op) in types {
            let operator =
                Arc::new(Operator { table: table(op), op, name: named(name)?, threads, made: AtomicUsize::new(0) });
            // SAFETY: both are valid. The operator keeps its place as long as the domain lives, and the pointer is to all
            // of it, `table` first.
            let status = unsafe { (ort::api().CustomOpDomain_Add)(domain.as_ptr(), Arc::as_ptr(&operator).cast()) };
            all.operators.push(operator);
            check(WHAT, status)?;
        }
        Ok(all)
    }

    /// Kernels made so far for operators of a type, as the file has it.
    fn kernels(&self, name: &str) -> usize {
        let of = self.operators.iter().filter(|o| o.name.as_bytes() == name.as_bytes());
        of.map(|o| o.made.load(Ordering::Relaxed)).sum()
    }
}

/// A session, and the operators that it points into.
pub(super) struct Loaded {
    // Dropped before `operators` and `counter`.
    pub(super) session: Session,
    operators: Option<Arc<Operators>>,
    /// The allocator that counts what the session takes.
    pub(super) counter: Option<Arc<Counter>>,
}

/// Keeps a session, its operators and its allocator.
#[derive(Clone)]
pub(super) struct Keeper {
    // Dropped before the others.
    _session: Arc<SharedSessionInner>,
    _operators: Option<Arc<Operators>>,
    _counter: Option<Arc<Counter>>,
}

impl Loaded {
    /// Loads a model whose nodes of Limbeck's own operators are counted by type, with kernels of so many threads for them.
    /// Its memory comes from `counter` if it is loaded within [`Counter::with`].
    ///
    /// # Errors
    /// An unknown type of node; what ONNX Runtime says; nodes without kernels, which would run as the functions that the
    /// file defines them by.
    pub(super) fn new(
        mut builder: SessionBuilder,
        model: &[u8],
        nodes: &BTreeMap<String, usize>,
        threads: usize,
        counter: Option<Arc<Counter>>,
    ) -> Result<Loaded, RuntimeError> {
        let known = |name: &String| op_of(name).ok_or_else(|| format!("{DOMAIN}.{name}"));
        let types: Vec<_> = nodes.keys().map(|name| known(name).map(|op| (name.as_str(), op))).collect();
        let unknown: Vec<String> = types.iter().filter_map(|t| t.clone().err()).collect();
        if !unknown.is_empty() {
            return Err(RuntimeError::UnsupportedOps { engine: NAME, ops: unknown });
        }
        let types: Vec<_> = types.into_iter().flatten().collect();
        let operators = match types.is_empty() {
            true => None,
            false => Some(Arc::new(Operators::new(&types, threads)?)),
        };
        if let Some(operators) = &operators {
            // SAFETY: both pointers are valid. The only session made of the builder, which ends here, is kept with the
            // operators by `Loaded` and every `Keeper`, and dropped before them.
            let status = unsafe { (ort::api().AddCustomOpDomain)(builder.ptr().cast_mut(), operators.domain.as_ptr()) };
            check("register its operators", status)?;
        }
        let session = builder.commit_from_memory(model).map_err(|e| failed("load the model", e))?;
        drop(builder);
        for (name, count) in types.iter().map(|&(name, _)| (name, nodes[name])) {
            let made = operators.as_ref().map_or(0, |o| o.kernels(name));
            if made != count {
                let reason = format!("it has {count} nodes {DOMAIN}.{name}, but {made} kernels were made for them");
                return Err(failed("load the model", reason));
            }
        }
        Ok(Loaded { session, operators, counter })
    }

    /// What a value in the session's memory holds on to.
    pub(super) fn keeper(&self) -> Keeper {
        let (operators, counter) = (self.operators.clone(), self.counter.clone());
        Keeper { _session: self.session.inner(), _operators: operators, _counter: counter }
    }
}

/// Operands and results of a map that may share their memory: as many as most maps have, each with each.
const SHARED: [usize; 2] = [16, 8];

/// Pairs of the numbers of an operand and a result.
type Pairs = [[c_int; SHARED[0] * SHARED[1]]; 2];

/// All pairs of [`SHARED`].
static PAIRS: Pairs = {
    let mut pairs = [[0; SHARED[0] * SHARED[1]]; 2];
    let mut i = 0;
    while i < pairs[0].len() {
        pairs[0][i] = (i / SHARED[1]) as c_int;
        pairs[1][i] = (i % SHARED[1]) as c_int;
        i += 1;
    }
    pairs
};

/// The functions by which ONNX Runtime asks and calls an operator. It never passes a null pointer to them.
fn table(op: &str) -> OrtCustomOp {
    unsafe extern "system" fn shared(operands: *mut *mut c_int, results: *mut *mut c_int) -> usize {
        // SAFETY: the library passes the places for two pointers. It reads what they point to and gives them back to `keep`.
        unsafe {
            *operands = PAIRS[0].as_ptr().cast_mut();
            *results = PAIRS[1].as_ptr().cast_mut();
        }
        PAIRS[0].len()
    }
    unsafe extern "system" fn keep(_: *mut c_int, _: *mut c_int) {}
    let is_map = op == "Map";
    unsafe extern "system" fn name(op: *const OrtCustomOp) -> *const c_char {
        // SAFETY: `op` is the pointer that `Operators::new` registered, to an `Operator` that lives.
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
        GetMayInplace: if is_map { Some(shared) } else { None },
        ReleaseMayInplace: if is_map { Some(keep) } else { None },
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
        // SAFETY: `op` is the pointer that `Operators::new` registered, to an `Operator` that lives.
        let operator = unsafe { &*op.cast::<Operator>() };
        let node = Node(info);
        let op = FusedOp::parse(operator.op, node.operands()?, node.results()?, &node)?;
        let made = Box::new(Kernel { op, threads: operator.threads });
        operator.made.fetch_add(1, Ordering::Relaxed);
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
        // SAFETY: `kernel` is what `create` made. Runs on several threads may share it: what changes in it
        // lies behind a lock.
        let kernel = unsafe { &*kernel.cast::<Kernel>() };
        kernel.run(&Call::new(context)).map_err(|e| FusedError::new(format!("{}: {e}", kernel.op.op_type())))
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

impl Kernel {
    fn run(&self, call: &Call) -> Result<(), FusedError> {
        let inputs = (0..call.operands()?).map(|i| call.input(i)).collect::<Result<Vec<_>, _>>()?;
        let shapes: Vec<&[usize]> = inputs.iter().map(Input::shape).collect();
        let plan = self.op.plan(&shapes)?;
        let threads = plan.worth_threads(self.threads);
        let results = plan.output_shapes().iter().enumerate().map(|(i, shape)| call.result(i, shape));
        let results = results.collect::<Result<Vec<_>, _>>()?;
        // An operand in the memory of a result is read there if the kernel can, else copied first.
        let mut spans: Vec<_> = results.iter().map(|memory| memory.span()).zip(0..).collect();
        spans.retain(|(span, _)| !span.is_empty());
        spans.sort_unstable_by_key(|(span, _)| span.start);
        let mut places = vec![None; inputs.len()];
        let mut copies: Vec<Option<Vec<f32>>> = vec![None; inputs.len()];
        for (i, input) in inputs.iter().enumerate() {
            // Results lie apart from each other: only the last that begins before the operand ends may be there.
            let own = input.span();
            let last = spans.partition_point(|(span, _)| span.start < own.end).checked_sub(1);
            let Some(j) = last.map(|last| &spans[last]).filter(|(span, _)| span.end > own.start).map(|(_, j)| *j)
            else {
                continue;
            };
            if plan.in_place(i).contains(&j) {
                places[i] = Some(j);
            } else {
                copies[i] = Some(input.elements()?.floats()?.to_vec());
            }
        }
        let operands = (inputs.iter().zip(&places).zip(&copies))
            .map(|((input, place), copy)| match (place, copy) {
                (&Some(j), _) => Ok(Elements::Result(j)),
                (None, Some(copy)) => Ok(Elements::F32(copy)),
                (None, None) => input.elements(),
            })
            .collect::<Result<Vec<_>, _>>()?;
        // SAFETY: each is taken once, and `operands` refers to no operand that lies in one.
        let mut results: Vec<&mut [f32]> = results.into_iter().map(|memory| unsafe { memory.elements() }).collect();
        let team = call.team(threads);
        let parallelism = if threads > 1 { Parallelism::Team(&team) } else { Parallelism::Serial };
        plan.run(&operands, &mut results, parallelism)
    }
}
