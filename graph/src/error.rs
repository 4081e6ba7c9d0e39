//! What can go wrong with graphs and the files that hold them.

use limbeck_tensor::TensorError;
use std::path::PathBuf;

/// Error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// A model file is damaged or is not ONNX.
    #[error("{file}: {reason}")]
    Format {
        /// The file, or what stands for it.
        file: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A node cannot be typed, evaluated or built.
    #[error("node '{node}' ({op}): {reason}")]
    Node {
        /// Name of the node, or of its first output.
        node: String,
        /// Operator, with its domain when it is not ai.onnx.
        op: String,
        /// What is wrong: operands, shapes, attribute.
        reason: String,
    },
    /// An expression could not be built.
    #[error("{at}: {reason}")]
    Build {
        /// Source line that called the builder.
        at: String,
        /// What is wrong: op, operands, shapes.
        reason: String,
    },
    /// A value, input or output does not exist or is not what is needed.
    #[error("value '{name}': {reason}")]
    Value {
        /// ONNX name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The graph breaks one of its own rules.
    #[error("invalid graph '{graph}': {reason}")]
    Invalid {
        /// Name of the graph.
        graph: String,
        /// The rule and what breaks it.
        reason: String,
    },
    /// A tensor problem.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// Why an op could not be typed or evaluated; the caller adds the node.
#[derive(Debug)]
pub struct OpError(pub String);

impl<T: std::fmt::Display> From<T> for OpError {
    fn from(reason: T) -> Self {
        OpError(reason.to_string())
    }
}

/// Returns an [`OpError`] with a formatted reason.
#[macro_export]
macro_rules! op_bail {
    ($($arg:tt)*) => { return Err($crate::OpError(format!($($arg)*))) };
}
