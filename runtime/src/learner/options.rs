//! What a learner is told, and what it tells.

use super::Augment;
use crate::{CompileOptions, Form, ReplayPolicy};
use std::collections::BTreeMap;

/// How a device is to learn. The defaults suit a small classifier.
#[derive(Debug, Clone, PartialEq)]
pub struct LearnerOptions {
    /// Name of the train step; `None` takes the bundle's first.
    pub step: Option<String>,
    /// Form of the step; `None` takes the bundle's first that the engine has ([`Engine::forms`](crate::Engine::forms))
    /// and `max_bytes` allows. [`Learner::step_name`](super::Learner::step_name) tells which.
    pub form: Option<Form>,
    /// Largest predicted peak memory of a step, in bytes; `None` is no limit.
    pub max_bytes: Option<u64>,
    /// Threads and device of the engine.
    pub compile: CompileOptions,
    /// Train steps for each [`Learner::learn`](super::Learner::learn).
    pub steps: u64,
    /// Of each step's new rows, how many come from the latest observation, in its order; the others are drawn from the
    /// window, with replacement. `None` is half of them.
    pub latest_rows: Option<usize>,
    /// Newest observed rows to draw from.
    pub window: usize,
    /// Learning rate: the step's scalar `lr`.
    pub lr: f64,
    /// Other scalars of the step, in place of their defaults.
    pub scalars: BTreeMap<String, f64>,
    /// Who labels rows that come without a label.
    pub teacher: TeacherKind,
    /// Rows that the teacher is less sure of (its largest probability) get no weight; 0 takes all.
    pub min_confidence: f64,
    /// Random warp of the new rows; the teacher sees them unwarped.
    pub augment: Option<Augment>,
    /// Bytes of replay.
    pub replay_bytes: usize,
    /// Which rows replay keeps.
    pub replay_policy: ReplayPolicy,
    /// Whether observed rows enter replay, with the serving student's logits, beside those of the bundle.
    pub remember: bool,
    /// When a candidate is promoted; `None` promotes unseen.
    pub gate: Option<GateOptions>,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for LearnerOptions {
    fn default() -> LearnerOptions {
        LearnerOptions {
            step: None,
            form: None,
            max_bytes: None,
            compile: CompileOptions::default(),
            steps: 4,
            latest_rows: None,
            window: 96,
            lr: 3e-3,
            scalars: BTreeMap::new(),
            teacher: TeacherKind::Ema,
            min_confidence: 0.0,
            augment: None,
            replay_bytes: 4 << 20,
            replay_policy: ReplayPolicy::default(),
            remember: false,
            gate: Some(GateOptions::default()),
            seed: 0,
        }
    }
}

/// Who labels rows that come without a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TeacherKind {
    /// The student as it was shipped.
    Frozen,
    /// The average of the student's weights that the step keeps in `ema/...`.
    #[default]
    Ema,
}

/// When a candidate is promoted. Scores are accuracies on the bundle's held-out rows, or agreements with the shipped
/// student where these have no labels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateOptions {
    /// Largest drop from the weights that serve now.
    pub max_drop: f64,
    /// Largest drop from the shipped weights, so that small drops do not add up.
    pub max_total_drop: f64,
}

impl Default for GateOptions {
    fn default() -> GateOptions {
        GateOptions { max_drop: 0.02, max_total_drop: 0.05 }
    }
}

/// What a call of [`Learner::learn`](super::Learner::learn) did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LearnReport {
    /// Steps run.
    pub steps: u64,
    /// Steps that changed nothing because a loss or gradient was not finite.
    pub skipped: u64,
    /// Losses and metrics of the last step, by name.
    pub metrics: BTreeMap<String, f64>,
}

/// What a gate decided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateReport {
    /// Whether the candidate serves now; if not, everything is as it was at the last promotion.
    pub promoted: bool,
    /// Score of the shipped weights.
    pub shipped: f64,
    /// Score of the weights that served before.
    pub before: f64,
    /// Score of the candidate.
    pub after: f64,
    /// Held-out rows; 0 without a gate, where the scores mean nothing.
    pub rows: usize,
}
