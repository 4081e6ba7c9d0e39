//! What can stop differentiation.

use limbeck_graph::GraphError;

/// Error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GradError {
    /// An op on the path from a parameter to the loss has no gradient rule.
    #[error("node '{node}' ({op}) lies between a differentiated value and the loss, but has no gradient: {reason}")]
    NoRule {
        /// Name of the node.
        node: String,
        /// Operator with its domain.
        op: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The value to differentiate is not a float scalar.
    #[error("'{name}' cannot be differentiated: {reason}")]
    NotScalar {
        /// Name of the value.
        name: String,
        /// What it is instead.
        reason: String,
    },
    /// Values and what accompanies them (cotangents, tangents) do not fit together.
    #[error("{what}s do not fit: {reason}")]
    Mismatch {
        /// `cotangent` or `tangent`.
        what: &'static str,
        /// Counts, or the value with both types.
        reason: String,
    },
    /// A graph problem.
    #[error(transparent)]
    Graph(#[from] GraphError),
}
