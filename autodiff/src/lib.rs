//! Gradients of graphs, as more graph: a table of rules, one per primitive op, and one reverse walk.
//!
//! Rules are written with the same [`limbeck_graph::Var`] expressions as everything else, so gradients nest:
//! the gradient of a gradient, Jacobian-vector products and gradient penalties come from the same table.
#![forbid(unsafe_code)]

mod error;
mod extents;
mod rules;
mod walk;

pub use error::GradError;
pub use limbeck_graph::{COMPOSITES, batch_norm, compose, dropout, momentum};
pub use rules::{NON_DIFFERENTIABLE, Without, differentiable, has_gradient};
pub use walk::Differentiate;
