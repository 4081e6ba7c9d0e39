//! How to go through the data, and what came of it.

use super::Trainer;
use crate::DistillError;
use limbeck_runtime::noise;
use limbeck_tensor::TensorMap;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Numbers that one run reported.
pub type Report = BTreeMap<String, f64>;

/// Learning rate over the course of training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// The same throughout.
    Constant,
    /// A linear rise over the first `warmup` share, then half a cosine down to 0.
    Cosine {
        /// Share of the steps, 0..1.
        warmup: f64,
    },
    /// A rise to the peak over the first share, then down to 0, both linear.
    Triangle {
        /// Share of the steps at which the peak is reached, 0..1.
        peak: f64,
    },
}

impl Schedule {
    /// Factor on the learning rate at `step` of `total`.
    pub fn factor(self, step: u64, total: u64) -> f64 {
        let t = (step as f64 + 0.5) / (total.max(1) as f64);
        match self {
            Schedule::Constant => 1.0,
            Schedule::Cosine { warmup } if t < warmup => t / warmup,
            Schedule::Cosine { warmup } => {
                0.5 * (1.0 + (std::f64::consts::PI * (t - warmup) / (1.0 - warmup).max(1e-9)).cos())
            }
            Schedule::Triangle { peak } if t < peak => t / peak,
            Schedule::Triangle { peak } => ((1.0 - t) / (1.0 - peak).max(1e-9)).max(0.0),
        }
    }
}

/// How to go through the data.
#[derive(Debug, Clone)]
pub struct Fit {
    /// Passes over the data.
    pub epochs: u64,
    /// Peak learning rate.
    pub lr: f64,
    /// Its course.
    pub schedule: Schedule,
    /// Runs whose gradients are collected before an update; more than 1 needs a step built with `accumulate`.
    pub accumulate: u64,
    /// Epochs without improvement of the validation score after which training ends, with the state of the best epoch;
    /// none: it goes on to the last epoch and ends with that one's state.
    pub patience: Option<u64>,
    /// Other scalar inputs of the step. A learning rate by its name (`lr_critic`) has this peak instead of `lr`; all
    /// learning rates take the same course.
    pub scalars: Vec<(String, f64)>,
}

impl Fit {
    /// Plain settings: no accumulation, no early stopping.
    pub fn new(epochs: u64, lr: f64, schedule: Schedule) -> Fit {
        Fit { epochs, lr, schedule, accumulate: 1, patience: None, scalars: vec![] }
    }
}

/// What a fit did.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Mean of every reported number over the samples of an epoch, without runs and values that are not finite;
    /// `finite` is the share of finite runs.
    pub epochs: Vec<Report>,
    /// Validation score after each epoch, when one was asked for.
    pub validation: Vec<f64>,
    /// True when patience ended it.
    pub stopped_early: bool,
    /// Runs that changed nothing because a number was not finite.
    pub skipped: u64,
}

/// Changes a batch before it is fed: augmentation. Gets the batch and a stream seeded for this step.
pub type Augment<'f> = dyn Fn(&mut TensorMap, &mut noise::Stream) -> Result<(), DistillError> + Sync + 'f;

/// Scores the present weights; higher is better.
pub type Validate<'f> = dyn FnMut(&Trainer) -> Result<f64, DistillError> + 'f;

/// Sees the trainer and the epoch's means after each epoch: progress, checkpoints.
pub type AfterEpoch<'f> = dyn FnMut(&Trainer, &Report) -> Result<(), DistillError> + 'f;

/// What a fit calls after each epoch.
pub struct Hooks<'f> {
    /// Changes each batch.
    pub augment: Option<&'f Augment<'f>>,
    /// Scores the present weights; higher is better.
    pub validate: Option<&'f mut Validate<'f>>,
    /// Sees the trainer after each epoch and its validation, whose score it finds as `validation`: progress, checkpoints.
    pub after_epoch: Option<&'f mut AfterEpoch<'f>>,
}

impl<'f> Hooks<'f> {
    /// No hooks.
    pub fn none() -> Hooks<'f> {
        Hooks { augment: None, validate: None, after_epoch: None }
    }
}

/// Means of reported numbers, in which a run counts by the weight of its rows.
#[derive(Default)]
pub(super) struct Means(BTreeMap<String, (f64, f64)>);

impl Means {
    /// Adds a run whose rows weigh `weight` together.
    pub(super) fn add(&mut self, report: &Report, weight: f64) {
        let finite = super::is_finite(report);
        for (name, &value) in report {
            let (sum, total) = self.0.entry(name.clone()).or_default();
            match name.as_str() {
                super::FINITE => (*sum, *total) = (*sum + value, *total + 1.0),
                _ if finite && value.is_finite() => (*sum, *total) = (*sum + weight * value, *total + weight),
                _ => {}
            }
        }
    }

    /// The means; NaN where no run was finite.
    pub(super) fn report(self) -> Report {
        self.0.into_iter().map(|(name, (sum, total))| (name, sum / total)).collect()
    }
}
