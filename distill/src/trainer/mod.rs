//! The trainer: runs a step over a data set with schedules, accumulation, early stopping, a guard against
//! numbers that are not finite, and checkpoints from which training resumes bit for bit.

mod checkpoint;
mod fit;
mod score;

pub use fit::{AfterEpoch, Augment, Fit, History, Hooks, Report, Schedule, Validate};
pub use score::{accuracy, argmax, concat_rows, predict};

use crate::data::{self, Dataset, data_error, epoch_batches};
use crate::{DistillError, Step};
use checkpoint::Settings;
use limbeck_runtime::{CompileOptions, Engine, Program, StateStore, StepManifest, noise};
use limbeck_tensor::{DType, Tensor, TensorMap};
use std::collections::BTreeMap;

/// Runs after which training without a single finite step is given up.
const MAX_BAD_STEPS: u32 = 20;
/// The metric that tells whether a run changed state.
const FINITE: &str = "finite";
/// The batch input that weighs rows.
const ROW_WEIGHT: &str = "row_weight";

/// A compiled step with its state.
pub struct Trainer {
    program: Box<dyn Program>,
    manifest: StepManifest,
    store: StateStore,
    seed: u64,
    step: u64,
    epoch: u64,
    bad_steps: u32,
    skipped: u64,
    best: Option<Best>,
    /// Class labels among the batch inputs, with the number of classes.
    labels: BTreeMap<String, usize>,
    /// Digest of the step.
    digest: String,
    /// Of the present or last fit.
    settings: Option<Settings>,
    /// Of the fit that wrote the checkpoint this trainer came from.
    resumed: Option<Settings>,
}

/// The state with the best validation score so far.
struct Best {
    score: f64,
    /// Epochs since then.
    since: u64,
    store: StateStore,
}

impl Trainer {
    /// Compiles a step and fills the store with its first values.
    pub fn new(engine: &dyn Engine, step: &Step, options: &CompileOptions, seed: u64) -> Result<Trainer, DistillError> {
        let program = engine.compile(&step.model()?, options)?;
        let mut store = engine.new_store();
        for (name, tensor) in &step.initial {
            store.insert(name.clone(), tensor)?;
        }
        Ok(Trainer {
            program,
            manifest: step.manifest.clone(),
            store,
            seed,
            step: 0,
            epoch: 0,
            bad_steps: 0,
            skipped: 0,
            best: None,
            labels: step.labels.clone(),
            digest: checkpoint::digest(step)?,
            settings: None,
            resumed: None,
        })
    }

    /// What a run takes, where the engine plans it (see [`limbeck_runtime::Program::memory`]).
    pub fn memory(&self) -> Option<limbeck_runtime::Memory> {
        self.program.memory()
    }

    /// What the last run took, where the engine counts it (see [`limbeck_runtime::Program::counted`]).
    pub fn counted(&self) -> Option<limbeck_runtime::Counted> {
        self.program.counted()
    }

    /// Runs so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Completed epochs.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The state between runs.
    pub fn store(&self) -> &StateStore {
        &self.store
    }

    /// The state between runs, to change: swap a teacher, re-initialise.
    pub fn store_mut(&mut self) -> &mut StateStore {
        &mut self.store
    }

    fn error(&self, reason: String) -> DistillError {
        DistillError::Step { name: self.manifest.name.clone(), reason }
    }

    /// Runs the step once. Noise is drawn for (seed, step); scalars that are not given take their defaults, but for
    /// learning rates (`lr`, `lr_...`), which have none.
    ///
    /// A run whose loss, gradients or updates are not finite changes nothing and reports `finite` = 0; after 20 such runs
    /// in a row training is given up.
    ///
    /// # Errors
    /// A scalar that the step lacks, a learning rate that is not given, labels out of range, what the engine refuses.
    pub fn run(&mut self, batch: &TensorMap, scalars: &[(&str, f64)]) -> Result<Report, DistillError> {
        for (field, &classes) in &self.labels {
            if let Some(labels) = batch.get(field) {
                data::check_labels(field, labels, classes)?;
            }
        }
        let fed = self.fed(scalars)?;
        let feeds: Vec<(&str, &Tensor)> = self
            .manifest
            .batch
            .iter()
            .filter_map(|e| batch.get_key_value(&e.name))
            .map(|(n, t)| (n.as_str(), t))
            .chain(fed.iter().map(|(n, t)| (n.as_str(), t)))
            .collect();
        let outputs = self.program.run(&mut self.store, &feeds)?;
        let mut report = Report::new();
        for (name, tensor) in &outputs {
            if let [value] = tensor.to_f64_vec()?[..] {
                report.insert(name.clone(), value);
            }
        }
        self.step += 1;
        if is_finite(&report) {
            self.bad_steps = 0;
        } else {
            self.bad_steps += 1;
            self.skipped += 1;
            tracing::warn!(step = self.step, "loss, gradient or update is not finite; nothing was changed");
            if self.bad_steps >= MAX_BAD_STEPS {
                return Err(DistillError::Diverged {
                    step: self.step,
                    reason: format!(
                        "{MAX_BAD_STEPS} runs in a row gave a loss, gradient or update that is not finite; lower the \
                         learning rate, clip gradients, or check the data"
                    ),
                });
            }
        }
        Ok(report)
    }

    /// What one run is fed beside the batch: numbers and noise.
    fn fed(&self, scalars: &[(&str, f64)]) -> Result<Vec<(String, Tensor)>, DistillError> {
        let known = &self.manifest.scalars;
        if let Some((unknown, _)) = scalars.iter().find(|(n, _)| !known.iter().any(|e| e.name == *n)) {
            let known: Vec<&str> = known.iter().map(|e| e.name.as_str()).collect();
            return Err(self.error(format!("has no scalar input '{unknown}'; it has {known:?}")));
        }
        let mut fed = vec![];
        for entry in known {
            let given = scalars.iter().find(|(n, _)| *n == entry.name).map(|(_, v)| *v);
            if given.is_none() && is_of(&entry.name, "lr") {
                return Err(
                    self.error(format!("the learning rate '{}' has no default; give it at every run", entry.name))
                );
            }
            let dtype = self.program.inputs().iter().find(|i| i.name == entry.name).map_or(DType::F32, |i| i.dtype);
            fed.push((entry.name.clone(), Tensor::from_f64(dtype, [], &[given.unwrap_or(entry.default)])?));
        }
        for entry in &self.manifest.noise {
            fed.push((entry.name.clone(), noise::draw(self.seed, self.step, entry)?));
        }
        Ok(fed)
    }

    /// Trains for `fit.epochs` epochs in all, counted from the trainer's first; a resumed trainer does the rest.
    pub fn fit(
        &mut self,
        data: &dyn Dataset,
        batch: usize,
        fit: &Fit,
        mut hooks: Hooks<'_>,
    ) -> Result<History, DistillError> {
        self.check_fit(data, batch, fit, hooks.validate.is_some())?;
        let settings = self.settings(data, batch, fit);
        self.check_settings(&settings)?;
        self.settings = Some(settings);
        let per_epoch = data.len().div_ceil(batch) as u64;
        let total = fit.epochs * per_epoch;
        let mut history = History::default();
        let skipped_before = self.skipped;
        while self.epoch < fit.epochs && !self.out_of_patience(fit) {
            let mut means = fit::Means::default();
            for (i, (indices, weights)) in
                epoch_batches(data.len(), batch, self.seed, self.epoch).into_iter().enumerate()
            {
                let i = i as u64;
                let mut rows = data.batch(&indices)?;
                for (field, &classes) in &self.labels {
                    if let Some(labels) = rows.get(field) {
                        data::check_labels_of(field, labels, classes, |row| indices.get(row).copied().unwrap_or(row))?;
                    }
                }
                if let Some(augment) = hooks.augment {
                    augment(&mut rows, &mut noise::stream(self.seed, self.step, "augment"))?;
                }
                let weight = weights.iter().copied().map(f64::from).sum();
                rows.insert(ROW_WEIGHT.into(), Tensor::new([batch], weights)?);
                let factor = fit.schedule.factor(self.epoch * per_epoch + i, total);
                let last = (i + 1).is_multiple_of(fit.accumulate) || i + 1 == per_epoch;
                let scalars = self.scalars(fit, factor, last);
                let scalars: Vec<(&str, f64)> = scalars.iter().map(|(n, v)| (n.as_str(), *v)).collect();
                means.add(&self.run(&rows, &scalars)?, weight);
            }
            let mut means = means.report();
            self.epoch += 1;
            if let Some(validate) = hooks.validate.as_mut() {
                let score = validate(self)?;
                history.validation.push(score);
                means.insert("validation".into(), score);
                self.remember(score);
            }
            if let Some(after) = hooks.after_epoch.as_mut() {
                after(self, &means)?;
            }
            history.epochs.push(means);
        }
        history.stopped_early = self.epoch < fit.epochs;
        history.skipped = self.skipped - skipped_before;
        if let (Some(_), Some(best)) = (fit.patience, &self.best) {
            self.store = best.store.snapshot();
        }
        Ok(history)
    }

    /// That a fit is possible and leaves nothing out.
    fn check_fit(&self, data: &dyn Dataset, batch: usize, fit: &Fit, validates: bool) -> Result<(), DistillError> {
        let samples = data.len();
        if samples == 0 || batch == 0 {
            return Err(data_error(
                "training set",
                format!("{samples} samples in batches of {batch}: nothing to train on"),
            ));
        }
        if fit.patience.is_some() && !validates {
            let reason = "patience needs a validation score to watch: give validation data, or no patience";
            return Err(data_error("validation set", reason));
        }
        if !samples.is_multiple_of(batch) && !self.manifest.batch.iter().any(|e| e.name == ROW_WEIGHT) {
            return Err(self.error(format!(
                "{samples} samples in batches of {batch} fill up the last batch with samples of weight 0, but the step has \
                 no input '{ROW_WEIGHT}' that tells them apart; declare it, or choose a batch that divides the samples"
            )));
        }
        match fit.accumulate {
            0 => Err(self.error("accumulate = 0: an update needs at least one run".into())),
            1 => Ok(()),
            _ if self.manifest.scalars.iter().any(|e| is_of(&e.name, "apply")) => Ok(()),
            n => Err(self.error(format!("accumulate = {n} needs a step built with GradOptions::accumulate"))),
        }
    }

    /// Scalars of one run of a fit: every learning rate at its peak times `factor`, and whether to update.
    fn scalars(&self, fit: &Fit, factor: f64, update: bool) -> BTreeMap<String, f64> {
        let mut all: BTreeMap<String, f64> = fit.scalars.iter().cloned().collect();
        for entry in &self.manifest.scalars {
            if is_of(&entry.name, "lr") {
                let peak = all.get(&entry.name).copied().unwrap_or(fit.lr);
                all.insert(entry.name.clone(), peak * factor);
            } else if is_of(&entry.name, "apply") {
                all.insert(entry.name.clone(), if update { 1.0 } else { 0.0 });
            }
        }
        all
    }

    fn out_of_patience(&self, fit: &Fit) -> bool {
        matches!((fit.patience, &self.best), (Some(patience), Some(best)) if best.since >= patience)
    }

    /// Keeps the state if no earlier epoch scored as high; a score that is not a number is no improvement.
    fn remember(&mut self, score: f64) {
        match &mut self.best {
            Some(best) if score > best.score => *best = Best { score, since: 0, store: self.store.snapshot() },
            Some(best) => best.since += 1,
            None if score.is_nan() => {}
            None => self.best = Some(Best { score, since: 0, store: self.store.snapshot() }),
        }
    }

    /// The weights of a set (`student`), by the net's names.
    pub fn weights(&self, set: &str) -> Result<TensorMap, DistillError> {
        let prefix = format!("{set}/");
        let mut weights = TensorMap::new();
        for entry in &self.manifest.state {
            use limbeck_runtime::StateRole::{Average, Buffer, Frozen, Parameter};
            if !matches!(entry.role, Parameter | Buffer | Average | Frozen) {
                continue;
            }
            if let Some(name) = entry.name.strip_prefix(&prefix) {
                weights.insert(name.into(), self.store.get(&entry.name)?);
            }
        }
        Ok(weights)
    }
}

/// Whether a run changed state.
fn is_finite(report: &Report) -> bool {
    report.get(FINITE).is_none_or(|v| *v > 0.5)
}

/// Whether a scalar belongs to a family that has one member per optimiser call: `lr`, `lr_critic`.
fn is_of(name: &str, family: &str) -> bool {
    name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}
