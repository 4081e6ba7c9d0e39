//! Distillation objectives: a file each (both sides of a game share one), listed in one table. An entry names its
//! source, formula, the tensors it taps and its parameters; `build` writes the formula. Gradients, both engines, checks
//! and the catalogue follow.

mod ce;
mod derpp;
mod dmd;
mod dsm;
mod gan;
mod hint;
mod kd;
mod lwf;
mod r1;
mod rkd;
mod scm;
mod self_distill;

pub use scm::scm_tangents;

use crate::DistillError;
use limbeck_graph::{Cx, Var};
use std::collections::BTreeMap;

/// All objectives.
pub static ALL: &[&Objective] = &[
    &ce::CE,
    &kd::KD,
    &hint::HINT,
    &rkd::RKD,
    &derpp::DERPP,
    &lwf::LWF,
    &self_distill::SELF_DISTILL,
    &dmd::DMD,
    &dsm::DSM,
    &gan::GENERATOR,
    &gan::CRITIC,
    &r1::R1,
    &scm::SCM,
];

/// Where a tapped tensor comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The student: gradient flows into it.
    Student,
    /// A teacher, a snapshot or a cache: no gradient.
    Teacher,
    /// The data: labels, masks.
    Data,
}

/// A tensor that an objective needs.
#[derive(Debug, Clone, Copy)]
pub struct Tap {
    /// Name, such as `student_logits`.
    pub name: &'static str,
    /// Shape in words: `[batch, classes]`.
    pub shape: &'static str,
    /// Where it comes from.
    pub side: Side,
}

/// A number that an objective takes.
#[derive(Debug, Clone, Copy)]
pub struct Param {
    /// Name, such as `temperature`.
    pub name: &'static str,
    /// Value when none is given.
    pub default: f64,
    /// Smallest allowed value.
    pub min: f64,
    /// Largest allowed value.
    pub max: f64,
    /// What it does, with its unit.
    pub about: &'static str,
}

/// The formula of an objective: from taps and parameters to a scalar loss.
pub type BuildFn = for<'c> fn(&Terms<'c>) -> Result<Var<'c>, DistillError>;

/// A distillation objective.
pub struct Objective {
    /// Name in recipes and on the command line.
    pub name: &'static str,
    /// What it is, in a line.
    pub title: &'static str,
    /// Paper, with the section or equation.
    pub source: &'static str,
    /// The formula, in plain text.
    pub formula: &'static str,
    /// Tensors it needs.
    pub taps: &'static [Tap],
    /// Numbers it takes.
    pub params: &'static [Param],
    /// Writes the loss.
    pub build: BuildFn,
}

/// What a formula is written from.
pub struct Terms<'c> {
    /// The construction.
    pub cx: &'c Cx,
    objective: &'static Objective,
    taps: BTreeMap<String, Var<'c>>,
    params: BTreeMap<String, f64>,
    row_weight: Option<Var<'c>>,
    /// The row weights over their sum.
    row_share: Option<Var<'c>>,
}

impl<'c> Terms<'c> {
    /// A tapped tensor; teacher and data tensors carry no gradient.
    pub fn tap(&self, name: &str) -> Result<Var<'c>, DistillError> {
        let spec = self.objective.taps.iter().find(|t| t.name == name);
        let var = self.taps.get(name).copied();
        match (spec, var) {
            (Some(spec), Some(var)) if spec.side == Side::Student => Ok(var),
            (Some(_), Some(var)) if var.dtype().is_float() => Ok(var.stop_gradient()),
            (Some(_), Some(var)) => Ok(var),
            _ => Err(self.objective.error(format!("tap '{name}' is missing; it needs {}", self.objective.tap_list()))),
        }
    }

    /// A parameter.
    pub fn param(&self, name: &str) -> f64 {
        self.params.get(name).copied().unwrap_or(f64::NAN)
    }

    /// Mean over the batch of one number per row `[batch]`, weighted by the row weights when there are any, so
    /// that padded rows (weight 0) do not count. Any other shape, and another number of rows than of weights, are errors.
    pub fn batch_mean(&self, per_row: Var<'c>) -> Result<Var<'c>, DistillError> {
        let shape = per_row.shape();
        self.cx.check()?;
        if shape.len() != 1 {
            return Err(
                self.error(format!("gives {shape:?} numbers instead of one a row; flatten its taps to [batch, ...]"))
            );
        }
        let Some((w, share)) = self.row_weight.zip(self.row_share) else { return Ok(per_row.mean(&[])) };
        if w.shape() != shape {
            return Err(self.error(format!("has {} rows, but the row weight is {:?}", shape[0], w.shape())));
        }
        Ok((per_row * share).sum(&[]))
    }

    /// Cross-entropy of two taps, logits `[batch, classes]` and integer labels `[batch]`, one number per row.
    pub fn cross_entropy(&self, logits: &str, labels: &str) -> Result<Var<'c>, DistillError> {
        let (z, y) = (self.tap(logits)?, self.tap(labels)?);
        let (have, want) = (y.shape(), z.shape());
        if want.split_last().is_none_or(|(_, rows)| rows != have) {
            return Err(
                self.error(format!("'{labels}' is {have:?}, but must be '{logits}' {want:?} without its last axis"))
            );
        }
        if y.dtype().is_float() {
            return Err(self.error(format!("'{labels}' is {}; labels are integers", y.dtype())));
        }
        Ok(cross_entropy_rows(z, y))
    }

    /// A tap with one number per row of another, `[batch]`.
    pub fn number_per_row(&self, name: &str, of: (&str, Var<'c>)) -> Result<Var<'c>, DistillError> {
        let numbers = self.tap(name)?;
        self.same_rows((name, numbers), of)?;
        match numbers.rank() {
            1 => Ok(numbers),
            _ => Err(self.error(format!("'{name}' is {:?}; it must be [batch]", numbers.shape()))),
        }
    }

    /// That two tensors have as many rows.
    pub fn same_rows(&self, a: (&str, Var<'c>), b: (&str, Var<'c>)) -> Result<(), DistillError> {
        let (x, y) = (a.1.shape(), b.1.shape());
        match (x.first(), y.first()) {
            (Some(m), Some(n)) if m == n => Ok(()),
            _ => Err(self.error(format!("'{}' is {x:?}, but '{}' is {y:?}; their rows must be the same", a.0, b.0))),
        }
    }

    /// The row weights `[batch]`, when rows are weighted.
    pub fn row_weight(&self) -> Option<Var<'c>> {
        self.row_weight
    }

    /// That two tensors have one shape; an error that names both otherwise.
    pub fn same_shape(&self, a: (&str, Var<'c>), b: (&str, Var<'c>)) -> Result<(), DistillError> {
        let (x, y) = (a.1.shape(), b.1.shape());
        if x == y {
            return Ok(());
        }
        Err(self.error(format!("'{}' is {x:?}, but '{}' is {y:?}; project one to the other's shape", a.0, b.0)))
    }

    /// An error of this objective.
    pub fn error(&self, reason: impl Into<String>) -> DistillError {
        self.objective.error(reason.into())
    }
}

impl Objective {
    fn error(&self, reason: String) -> DistillError {
        DistillError::Objective { name: self.name.into(), reason }
    }

    fn tap_list(&self) -> String {
        self.taps.iter().map(|t| format!("{} {}", t.name, t.shape)).collect::<Vec<_>>().join(", ")
    }

    /// The loss on these taps. Unknown taps and parameters, and parameters out of range, are errors by name.
    pub fn loss<'c>(
        &'static self,
        cx: &'c Cx,
        taps: &[(&str, Var<'c>)],
        params: &[(&str, f64)],
        row_weight: Option<Var<'c>>,
    ) -> Result<Var<'c>, DistillError> {
        if let Some((name, _)) = taps.iter().find(|(n, _)| !self.taps.iter().any(|t| t.name == *n)) {
            return Err(self.error(format!("has no tap '{name}'; it has {}", self.tap_list())));
        }
        let mut values: BTreeMap<String, f64> = self.params.iter().map(|p| (p.name.into(), p.default)).collect();
        for (name, value) in params {
            let Some(spec) = self.params.iter().find(|p| p.name == *name) else {
                let known: Vec<&str> = self.params.iter().map(|p| p.name).collect();
                return Err(self.error(format!("has no parameter '{name}'; it has {known:?}")));
            };
            if !(spec.min..=spec.max).contains(value) {
                let reason = format!("{name} = {value} is outside {}..={}", spec.min, spec.max);
                return Err(self.error(reason));
            }
            values.insert((*name).into(), *value);
        }
        let taps = taps.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        let row_share = row_weight.map(|w| w / w.sum(&[]));
        let loss = (self.build)(&Terms { cx, objective: self, taps, params: values, row_weight, row_share })?;
        cx.check()?;
        Ok(loss)
    }
}

/// The objective of this name.
pub fn find(name: &str) -> Result<&'static Objective, DistillError> {
    ALL.iter().copied().find(|o| o.name == name).ok_or_else(|| DistillError::Objective {
        name: name.into(),
        reason: format!("unknown; there are {:?}", ALL.iter().map(|o| o.name).collect::<Vec<_>>()),
    })
}

/// Cross-entropy of integer labels `[batch]` with logits `[batch, classes]`, one number per row, in nats.
pub fn cross_entropy_rows<'c>(logits: Var<'c>, labels: Var<'c>) -> Var<'c> {
    let classes = logits.dim(-1);
    -(labels.one_hot(classes).cast(logits.dtype()) * logits.log_softmax(-1)).sum(&[-1])
}

/// `KL(softmax(target) ‖ softmax(logits))` over the last axis, one number per row, in nats. Gradient flows into
/// both unless the caller stops it.
pub fn kl_rows<'c>(target_logits: Var<'c>, logits: Var<'c>) -> Var<'c> {
    let log_p = target_logits.log_softmax(-1);
    (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(&[-1])
}

/// Mean squared difference of two tensors of one shape `[batch, ...]`, one number per row.
pub fn mse_rows<'c>(a: Var<'c>, b: Var<'c>) -> Var<'c> {
    (a - b).flatten().square().mean(&[-1])
}

/// Huber's function with width 1, elementwise: `x²/2` within 1 of 0, else `|x| - 1/2`.
pub fn smooth_l1(x: Var<'_>) -> Var<'_> {
    let size = x.abs();
    let core = size.at_most(1.0);
    core * (size - core * 0.5)
}

/// One number per row `[batch]` as `[batch, 1, ...]`, to go with `like`.
pub fn per_row<'c>(rows: Var<'c>, like: Var<'c>) -> Var<'c> {
    let mut shape = vec![1; like.rank()];
    if let Some(first) = shape.first_mut() {
        *first = rows.len();
    }
    rows.reshape(&shape)
}
