//! Building graphs as expressions: a [`Cx`] owns the graph under construction, a [`Var`] is a copyable handle to
//! one of its values, so that an objective reads like its formula.

mod bodies;
mod cx;
mod inline;
mod operators;
mod var;
mod var_ops;

pub use cx::Cx;
pub use inline::Rewrite;
pub use var::Var;
