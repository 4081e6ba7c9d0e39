//! What can go wrong in the runtime; every message names the thing and the remedy.

use crate::engine::ValueSpec;
use limbeck_tensor::{DType, TensorError};

/// Error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// No engine has this name.
    #[error("no engine is called `{name}`; there are {known:?}")]
    UnknownEngine {
        /// Name asked for.
        name: String,
        /// Names there are.
        known: &'static [&'static str],
    },
    /// The engine exists but was left out of this build.
    #[error("the engine `{engine}` is not in this build; compile limbeck with the feature `{engine}`")]
    NotCompiledIn {
        /// Engine, which is also the name of its feature.
        engine: &'static str,
    },
    /// An engine's shared library was not found, or is too old.
    #[error(
        "no usable ONNX Runtime library (1.{oldest} or later): {}. Install it (`pip install onnxruntime`, or a release \
         of github.com/microsoft/onnxruntime) and name it with ORT_DYLIB_PATH, or use the engine `tract`",
        tried.join("; ")
    )]
    Library {
        /// Smallest minor version that would do.
        oldest: u32,
        /// Each candidate and why it was refused.
        tried: Vec<String>,
    },
    /// The engine could not be started, load the model or prepare it.
    #[error("{engine} could not {what}: {reason}")]
    Engine {
        /// Engine.
        engine: &'static str,
        /// What it was doing.
        what: String,
        /// What it said; names the node where it knows it.
        reason: String,
    },
    /// The model uses operators that the engine does not have.
    #[error(
        "{engine} does not have {}; simplify the model with `limbeck export`, or use another engine",
        ops.join(", ")
    )]
    UnsupportedOps {
        /// Engine.
        engine: &'static str,
        /// Each as `domain.OpType (node)`.
        ops: Vec<String>,
    },
    /// The engine cannot do what was asked (a device, an option, a type).
    #[error("{engine} does not support {what}")]
    Unsupported {
        /// Engine.
        engine: &'static str,
        /// What was asked.
        what: String,
    },
    /// The engine panicked; the process goes on.
    #[error("{engine} panicked while it tried to {what}: {reason}")]
    Panic {
        /// Engine.
        engine: &'static str,
        /// What it was doing.
        what: String,
        /// The panic's message.
        reason: String,
    },
    /// An input was not fed.
    #[error("input `{}` is missing; expected {expected}", expected.name)]
    MissingInput {
        /// The input.
        expected: ValueSpec,
    },
    /// A feed names no input of the program.
    #[error("`{input}` is not an input; the inputs are {known:?}")]
    UnknownInput {
        /// Name fed.
        input: String,
        /// Inputs there are.
        known: Vec<String>,
    },
    /// Two feeds have one name.
    #[error("input `{input}` was fed twice")]
    RepeatedInput {
        /// Name fed.
        input: String,
    },
    /// A feed or a state value has the wrong type or shape.
    #[error("input `{}` got {dtype} {shape:?}, but expected {expected}", expected.name)]
    InputMismatch {
        /// The input.
        expected: ValueSpec,
        /// Type given.
        dtype: DType,
        /// Shape given.
        shape: Vec<usize>,
    },
    /// The store lacks a value that the program reads.
    #[error("the store has no value `{name}`, which input `{}` needs; insert {expected}", expected.name)]
    MissingState {
        /// Name in the store.
        name: String,
        /// The input it enters as.
        expected: ValueSpec,
    },
    /// The store was asked for a value that it does not have.
    #[error("the store has no value `{name}`")]
    NoValue {
        /// Name asked for.
        name: String,
    },
    /// The store was made by another engine than the program.
    #[error("the store belongs to {store}, the program to {program}; make the store with the program's engine")]
    OtherEngine {
        /// Engine of the store.
        store: &'static str,
        /// Engine of the program.
        program: &'static str,
    },
    /// A state pair that does not fit the model.
    #[error("state `{name}`: {reason}")]
    StatePair {
        /// Name in the store.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A manifest that is not what it should be.
    #[error("{file}: {reason}")]
    Manifest {
        /// The file, or what stands for it.
        file: String,
        /// Key or value that is wrong.
        reason: String,
    },
    /// A file of a bundle is not the one that was shipped.
    #[error("{}: {reason}; install the bundle again", file.display())]
    Tampered {
        /// The file.
        file: std::path::PathBuf,
        /// What differs.
        reason: String,
    },
    /// An engine does not reproduce a bundle's vectors.
    #[error(
        "self-test: {engine} gives `{tensor}` with a difference of {difference:e}, {tolerance:e} is allowed; use another \
         engine, or one that is built for this processor"
    )]
    SelfTest {
        /// Engine.
        engine: &'static str,
        /// Output that differs.
        tensor: String,
        /// max|got - want| / max(max|want|, 1e-3).
        difference: f64,
        /// The largest that is allowed.
        tolerance: f64,
    },
    /// Rows, labels or values that do not fit.
    #[error("{what}: {reason}")]
    Data {
        /// What does not fit.
        what: String,
        /// Why, and what would.
        reason: String,
    },
    /// The learner cannot do what its options ask for.
    #[error("the learner cannot run: {reason}")]
    Learner {
        /// Option, bundle entry or input that stands in the way, and the remedy.
        reason: String,
    },
    /// A tensor or a tensor file.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}
