//! Nets, objectives, optimisers, train steps, the trainer and recipes: everything that turns a teacher into a
//! student.
#![forbid(unsafe_code)]

pub mod data;
mod error;
pub mod models;
mod net;
pub mod objective;
pub mod optim;
pub mod recipe;
mod step;
mod trainer;

pub use error::DistillError;
pub use net::{
    Finding, Mode, Net, Noise, Outputs, ParamSet, Remark, Role, Severity, Statistic, Stored, Trainability, Training,
    Verdict,
};
pub use step::{GradOptions, Group, Step, StepBuilder, build_step, inference_form_for, lowering_for};
pub use trainer::{
    AfterEpoch, Augment, Fit, History, Hooks, Report, Schedule, Trainer, Validate, accuracy, argmax, concat_rows,
    predict,
};
