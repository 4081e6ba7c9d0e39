//! What can go wrong while distilling.

use limbeck_autodiff::GradError;
use limbeck_exporters::ExportError;
use limbeck_graph::GraphError;
use limbeck_runtime::RuntimeError;
use limbeck_tensor::TensorError;

/// Error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DistillError {
    /// A net is not what is needed.
    #[error("net: {reason}")]
    Net {
        /// What is wrong.
        reason: String,
    },
    /// An objective's taps or parameters are wrong.
    #[error("objective '{name}': {reason}")]
    Objective {
        /// Name of the objective.
        name: String,
        /// Tap or parameter that is wrong, and the remedy.
        reason: String,
    },
    /// A train step cannot be assembled.
    #[error("train step '{name}': {reason}")]
    Step {
        /// Name of the step.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Data cannot be read or does not fit.
    #[error("data {source_name}: {reason}")]
    Data {
        /// File or data set.
        source_name: String,
        /// What is wrong.
        reason: String,
    },
    /// A recipe is not what it should be.
    #[error("recipe {file}: {reason}")]
    Recipe {
        /// The file.
        file: String,
        /// Key or value that is wrong.
        reason: String,
    },
    /// Training produced numbers that are not finite, again and again.
    #[error("training diverged at step {step}: {reason}")]
    Diverged {
        /// Step at which it was given up.
        step: u64,
        /// What was seen, and the remedy.
        reason: String,
    },
    /// Training goes on from a checkpoint with other settings.
    #[error(
        "the checkpoint was written with {key} = {then}, now it is {now}; go on with the former value, or start anew"
    )]
    Resume {
        /// The setting that differs.
        key: String,
        /// Its value in the checkpoint.
        then: String,
        /// Its value now.
        now: String,
    },
    /// Differentiation failed.
    #[error(transparent)]
    Grad(#[from] GradError),
    /// A graph problem.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// An engine, bundle or store problem.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// An exporter problem.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A tensor or file problem.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}
