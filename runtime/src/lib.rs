//! What the edge links: engines, sessions, bundles, learner.
//!
//! An [`Engine`] compiles ready ONNX bytes to a [`Program`]; state that a program updates (weights, optimiser state)
//! stays in engine memory, in a [`StateStore`].
#![deny(unsafe_code)]

mod bundle;
mod engine;
mod error;
#[cfg(any(feature = "tract", feature = "ort"))]
mod fused;
mod learner;
pub mod noise;
#[cfg(feature = "ort")]
mod ort;
mod replay;
pub mod rows;
mod session;
#[cfg_attr(not(any(feature = "tract", feature = "ort")), allow(dead_code))]
mod signature;
mod step;
mod store;
#[cfg(feature = "tract")]
mod tract;

pub use bundle::{
    Bundle, BundleManifest, FORMAT, FileEntry, Form, LedgerEntry, MANIFEST, ModelEntry, OpenReport, OutputCheck,
    SelfTestEntry, SelfTestReport, StepVariant, WeightsOrigin,
};
pub use engine::{
    CompileOptions, Counted, Device, ENGINES, Engine, EngineInfo, Memory, Model, Program, StatePair, StateSpec,
    ValueSpec, engine, engines,
};
pub use error::RuntimeError;
pub use learner::{Augment, GateOptions, GateReport, LearnReport, Learner, LearnerOptions, TeacherKind};
pub use limbeck_tensor as tensor;
pub use replay::{Replay, ReplayBatch, ReplayPolicy};
pub use session::Session;
pub use step::{Distribution, NoiseEntry, ScalarEntry, StateEntry, StateRole, StepManifest, TensorEntry};
pub use store::StateStore;
