//! Limbeck: distils a trained network into a small student, ships it as ONNX and keeps it learning on the device.
#![doc = ""]
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod cli;
pub mod digits;
pub mod report;

pub use limbeck_autodiff as autodiff;
pub use limbeck_distill as distill;
pub use limbeck_exporters as exporters;
pub use limbeck_graph as graph;
pub use limbeck_runtime as runtime;
pub use limbeck_targets as targets;
pub use limbeck_tensor as tensor;
