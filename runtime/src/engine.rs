//! Engines and programs: what compiles a model, and what runs it. Engines are an explicit list; each is behind the
//! feature of its name.

use crate::{Form, RuntimeError, store::StateStore};
use limbeck_tensor::{Bytes, DType, Tensor, io::TensorMap};
use std::{fmt, path::PathBuf};

/// A ready ONNX model: opset at most 20, external data beside it in `folder`, static shapes for train steps.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// The serialised `ModelProto`.
    pub bytes: Bytes,
    /// Folder that external data is relative to; without one such a model is refused.
    pub folder: Option<PathBuf>,
    /// Inputs and outputs that live in a [`StateStore`].
    pub state: Vec<StatePair>,
}

impl Model {
    /// A model without state or external data.
    pub fn new(bytes: impl Into<Bytes>) -> Model {
        Model { bytes: bytes.into(), ..Model::default() }
    }
}

/// The value kept in the store under `name` enters as graph input `input` and is replaced by graph output `output`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatePair {
    /// Name in the store.
    pub name: String,
    /// Graph input.
    pub input: String,
    /// Graph output; empty for state that this program only reads (a frozen or shared parameter set).
    pub output: String,
}

/// Where a program is to run. What cannot be had is an error at compile time, never a silent fallback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The CUDA device of this number; a node that it lacks is an error. State travels through host memory at every run.
    Cuda(i32),
    /// TensorRT on the CUDA device of this number, CUDA for nodes that TensorRT lacks; a node that both lack is an error.
    /// State travels through host memory at every run.
    TensorRt(i32),
}

/// How to compile a model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CompileOptions {
    /// Threads for one run; 0 means all cores.
    pub threads: usize,
    /// Where to run.
    pub device: Device,
    /// Let idle threads spin for a moment after a run too, not only within it: less latency at the next for much idle power.
    /// Only ort has it.
    pub spin: bool,
    /// Folder for compiled engines, so that only the first load takes minutes. Refused but for TensorRT.
    pub cache: Option<PathBuf>,
    /// Compute in float16. Refused but for TensorRT.
    pub half: bool,
    /// Count what runs take, for [`Program::counted`]: an allocation costs more then. Only ort on the processor has it.
    pub count: bool,
}

impl CompileOptions {
    /// Threads to use, the 0 resolved.
    pub fn thread_count(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        }
    }

    /// Refuses options that would change nothing on the device.
    #[cfg(any(feature = "tract", feature = "ort"))]
    pub(crate) fn check(&self, engine: &'static str) -> Result<(), RuntimeError> {
        if self.count && (engine != "ort" || self.device != Device::Cpu) {
            let what =
                format!("`count`: only ort on the processor counts its memory (the device is {:?})", self.device);
            return Err(RuntimeError::Unsupported { engine, what });
        }
        let idle = match (self.device, self.half, &self.cache) {
            (Device::TensorRt(_), ..) | (_, false, None) => return Ok(()),
            (_, true, _) => "`half`: only TensorRT lowers a model to float16; export a float16 model",
            (_, false, Some(_)) => "`cache`: only TensorRT compiles engines to keep; leave it out",
        };
        Err(RuntimeError::Unsupported { engine, what: format!("{idle} (the device is {:?})", self.device) })
    }
}

/// Name, type and extents of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueSpec {
    /// Name in the graph.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents, outermost first; `None` where any extent goes.
    pub dims: Vec<Option<usize>>,
}

impl ValueSpec {
    /// Whether a tensor of this type and shape may be passed here.
    pub fn accepts(&self, dtype: DType, shape: &[usize]) -> bool {
        dtype == self.dtype
            && shape.len() == self.dims.len()
            && self.dims.iter().zip(shape).all(|(d, &n)| d.is_none_or(|d| d == n))
    }
}

impl fmt::Display for ValueSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.dims.iter().map(|d| d.map_or("?".into(), |n| n.to_string())).collect();
        write!(f, "{} [{}]", self.dtype, dims.join(", "))
    }
}

/// State that a program keeps in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateSpec {
    /// Name in the store.
    pub name: String,
    /// The graph input it enters as, with type and extents.
    pub value: ValueSpec,
    /// Whether a run replaces it.
    pub updated: bool,
}

/// Memory that the values of a program take in a run, by liveness. What kernels use beside values is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The most bytes at one time: inputs, constants, state before and after the run, and what is computed.
    pub peak: u64,
    /// Bytes of constants and of state before the run, which are there throughout.
    pub given: u64,
    /// Values that get memory of their own in a run; the others take an operand's place.
    pub allocations: usize,
}

/// Memory that an engine's allocator was asked for in a run: what is computed, results included, and what kernels take
/// beside values. State, constants and what is fed are not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// The most bytes at one time.
    pub peak: u64,
    /// Blocks of memory that were given.
    pub allocations: usize,
}

/// What an engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// Name, as [`engine`] takes it.
    pub name: &'static str,
    /// Version of the engine itself.
    pub version: String,
    /// The shared library in use, for engines that have one.
    pub library: Option<PathBuf>,
    /// Execution providers that the library was built with; what a program really uses is [`Program::provider`].
    pub providers: Vec<String>,
}

/// Compiles models. Engines are process-wide.
pub trait Engine: Send + Sync {
    /// `tract` or `ort`.
    fn name(&self) -> &'static str;

    /// Version, library and providers.
    fn describe(&self) -> EngineInfo;

    /// The forms of train steps that it has the operators for.
    fn forms(&self) -> &'static [Form];

    /// The form in which it is given networks whose weights are constants.
    fn inference_form(&self) -> Form;

    /// Loads, checks and optimises a model.
    ///
    /// # Errors
    /// A malformed model, operators or a device that the engine lacks, state pairs that do not fit the graph.
    fn compile(&self, model: &Model, options: &CompileOptions) -> Result<Box<dyn Program>, RuntimeError>;

    /// An empty store for this engine's programs.
    fn new_store(&self) -> StateStore;
}

/// A compiled model. Several threads may run one program at once, each with its own store.
pub trait Program: Send + Sync {
    /// Name of the engine.
    fn engine(&self) -> &'static str;

    /// The provider that really runs it. Where it has one to hand nodes to, both are named: how they share the nodes the
    /// library does not tell.
    fn provider(&self) -> &str;

    /// What is to be fed at each run, in the graph's order; state is not among them.
    fn inputs(&self) -> &[ValueSpec];

    /// What a run returns, in the graph's order; state is not among them.
    fn outputs(&self) -> &[ValueSpec];

    /// What a run reads from and writes to the store.
    fn state(&self) -> &[StateSpec];

    /// What a run takes, for engines that plan it themselves and shapes that are known before a run.
    fn memory(&self) -> Option<Memory> {
        None
    }

    /// What the last run took, with [`CompileOptions::count`]; runs at the same time are counted together.
    fn counted(&self) -> Option<Counted> {
        None
    }

    /// Runs once: reads state from the store, replaces the updated state and returns the other outputs by name.
    ///
    /// # Errors
    /// Feeds or state that are missing, unknown or of another type or shape; a failure of the engine. The store is then
    /// as it was before.
    fn run(&self, store: &mut StateStore, feeds: &[(&str, &Tensor)]) -> Result<TensorMap, RuntimeError>;

    /// Runs a program that has no state.
    ///
    /// # Errors
    /// As [`Program::run`].
    fn infer(&self, feeds: &[(&str, &Tensor)]) -> Result<TensorMap, RuntimeError> {
        self.run(&mut engine(self.engine())?.new_store(), feeds)
    }
}

/// Names of all engines, in order of preference for a device without accelerator libraries.
pub const ENGINES: &[&str] = &["tract", "ort"];

/// The engine of this name.
///
/// # Errors
/// An unknown name, an engine left out of the build, a library that is missing or too old.
pub fn engine(name: &str) -> Result<&'static dyn Engine, RuntimeError> {
    match name {
        #[cfg(feature = "tract")]
        "tract" => Ok(crate::tract::engine()),
        #[cfg(not(feature = "tract"))]
        "tract" => Err(RuntimeError::NotCompiledIn { engine: "tract" }),
        #[cfg(feature = "ort")]
        "ort" => Ok(crate::ort::engine()?),
        #[cfg(not(feature = "ort"))]
        "ort" => Err(RuntimeError::NotCompiledIn { engine: "ort" }),
        _ => Err(RuntimeError::UnknownEngine { name: name.into(), known: ENGINES }),
    }
}

/// The engines that can be used here; [`engine`] tells why another cannot.
pub fn engines() -> Vec<&'static dyn Engine> {
    ENGINES.iter().filter_map(|name| engine(name).ok()).collect()
}

/// Runs `f`, which calls into an engine, and turns a panic into an error.
#[cfg(any(feature = "tract", feature = "ort"))]
pub(crate) fn guarded<T>(
    engine: &'static str,
    what: &str,
    f: impl FnOnce() -> Result<T, RuntimeError>,
) -> Result<T, RuntimeError> {
    // What `f` leaves behind on a panic is dropped by every caller: a half-built program, or the values of one run.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let reason = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_else(|| "no message".into());
        Err(RuntimeError::Panic { engine, what: what.into(), reason })
    })
}
