//! Optimisers as graph: from parameters, gradients and state to their new values.

mod adamw;
mod dot;
mod sgd;

pub use adamw::AdamW;
pub use dot::{Dot, Split};
pub use sgd::Sgd;

use crate::{DistillError, StepBuilder};
use limbeck_graph::Var;

/// One trained value and what the optimiser needs to know of it.
#[derive(Clone, Copy)]
pub struct Trained<'c, 'n> {
    /// Name in the store.
    pub name: &'n str,
    /// Present value.
    pub value: Var<'c>,
    /// Gradient of the loss.
    pub grad: Var<'c>,
    /// Factor on the learning rate.
    pub lr_scale: f64,
    /// Decoupled (AdamW) or L2 (SGD) weight decay.
    pub weight_decay: f64,
}

/// An optimiser that turns one gradient per parameter into an update.
pub trait Optimiser {
    /// Declares the state it needs and returns the new value of each parameter, in order. `lr` is a rank-0 input.
    fn update<'c>(
        &self,
        step: &StepBuilder<'c>,
        params: &[Trained<'c, '_>],
        lr: Var<'c>,
    ) -> Result<Vec<Var<'c>>, DistillError>;
}
