//! What can go wrong while exporting.

use limbeck_graph::GraphError;
use limbeck_runtime::RuntimeError;
use limbeck_tensor::TensorError;

/// Error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A pass cannot do what was asked.
    #[error("{pass}: {reason}")]
    Pass {
        /// Name of the pass.
        pass: &'static str,
        /// Node, tensor or option that stands in the way, and the remedy.
        reason: String,
    },
    /// A graph problem.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// An engine or bundle problem.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A tensor or file problem.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}
