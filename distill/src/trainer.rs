//! The trainer: runs a step over a data set with schedules, accumulation, early stopping, a guard against
//! numbers that are not finite, and checkpoints from which training resumes bit for bit.

use crate::data::{Dataset, epoch_batches};
use crate::{DistillError, Step};
use limbeck_runtime::{CompileOptions, Engine, Program, StateStore, StepManifest, noise};
use limbeck_tensor::{Tensor, TensorError, TensorMap, io};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Runs after which training without a single finite step is given up.
const MAX_BAD_STEPS: u32 = 20;

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
}

/// The state with the best validation score so far.
struct Best {
    score: f64,
    /// Epochs since then.
    since: u64,
    store: StateStore,
}

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
    /// Runs whose gradients are summed before an update (needs a step built with `accumulate`).
    pub accumulate: u64,
    /// Epochs without improvement of the validation score after which training ends, with the state of the best epoch;
    /// none: it goes on to the last epoch and ends with that one's state.
    pub patience: Option<u64>,
    /// Other scalar inputs of the step.
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
    /// Mean of every reported number, per epoch.
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

impl Trainer {
    /// Compiles a step and fills the store with its first values.
    pub fn new(engine: &dyn Engine, step: &Step, options: &CompileOptions, seed: u64) -> Result<Trainer, DistillError> {
        let program = engine.compile(&step.model()?, options)?;
        let mut store = engine.new_store();
        for (name, tensor) in &step.initial {
            store.insert(name.clone(), tensor)?;
        }
        let manifest = step.manifest.clone();
        Ok(Trainer { program, manifest, store, seed, step: 0, epoch: 0, bad_steps: 0, skipped: 0, best: None })
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

    /// Runs the step once. `scalars` not given take their defaults; noise is drawn for (seed, step).
    ///
    /// A run whose loss or gradients are not finite changes nothing and reports `finite` = 0; after 20 such runs in a
    /// row training is given up.
    pub fn run(&mut self, batch: &TensorMap, scalars: &[(&str, f64)]) -> Result<Report, DistillError> {
        let mut fed: Vec<(String, Tensor)> = vec![];
        for entry in &self.manifest.scalars {
            let given = scalars.iter().find(|(n, _)| *n == entry.name).map(|(_, v)| *v);
            fed.push((entry.name.clone(), Tensor::scalar(given.unwrap_or(entry.default) as f32)));
        }
        for entry in &self.manifest.noise {
            fed.push((entry.name.clone(), noise::draw(self.seed, self.step, entry)?));
        }
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
        let finite = report.get("finite").copied().unwrap_or(1.0) > 0.5;
        self.step += 1;
        if finite {
            self.bad_steps = 0;
        } else {
            self.bad_steps += 1;
            self.skipped += 1;
            tracing::warn!(step = self.step, "loss or gradient is not finite; nothing was changed");
            if self.bad_steps >= MAX_BAD_STEPS {
                return Err(DistillError::Diverged {
                    step: self.step,
                    reason: format!(
                        "{MAX_BAD_STEPS} runs in a row gave a loss or gradient that is not finite; lower the learning \
                         rate, clip gradients, or check the data"
                    ),
                });
            }
        }
        Ok(report)
    }

    /// Trains for `fit.epochs` epochs in all, counted from the trainer's first; a resumed trainer does the rest.
    pub fn fit(
        &mut self,
        data: &dyn Dataset,
        batch: usize,
        fit: &Fit,
        mut hooks: Hooks<'_>,
    ) -> Result<History, DistillError> {
        if data.is_empty() || batch == 0 {
            let reason = format!("{} samples in batches of {batch}: nothing to train on", data.len());
            return Err(DistillError::Data { source_name: "training set".into(), reason });
        }
        if fit.patience.is_some() && hooks.validate.is_none() {
            let reason = "patience needs a validation score to watch: give validation data, or no patience".into();
            return Err(DistillError::Data { source_name: "validation set".into(), reason });
        }
        let per_epoch = data.len().div_ceil(batch) as u64;
        let total = fit.epochs * per_epoch;
        let mut history = History::default();
        let skipped_before = self.skipped;
        while self.epoch < fit.epochs && !self.out_of_patience(fit) {
            let mut sums = Report::new();
            for (i, (indices, weights)) in
                epoch_batches(data.len(), batch, self.seed, self.epoch).into_iter().enumerate()
            {
                let mut rows = data.batch(&indices)?;
                if let Some(augment) = hooks.augment {
                    augment(&mut rows, &mut noise::stream(self.seed, self.step, "augment"))?;
                }
                rows.insert("row_weight".into(), Tensor::new([batch], weights)?);
                let at = self.epoch * per_epoch + i as u64;
                let mut scalars: Vec<(&str, f64)> = fit.scalars.iter().map(|(n, v)| (n.as_str(), *v)).collect();
                scalars.push(("lr", fit.lr * fit.schedule.factor(at, total)));
                if fit.accumulate > 1 {
                    let nth = i as u64 % fit.accumulate + 1;
                    let last = nth == fit.accumulate || i as u64 + 1 == per_epoch;
                    scalars.push(("apply", if last { 1.0 } else { 0.0 }));
                    scalars.push(("accumulated", nth as f64));
                }
                for (name, value) in self.run(&rows, &scalars)? {
                    *sums.entry(name).or_insert(0.0) += value / per_epoch as f64;
                }
            }
            self.epoch += 1;
            if let Some(validate) = hooks.validate.as_mut() {
                let score = validate(self)?;
                history.validation.push(score);
                sums.insert("validation".into(), score);
                self.remember(score);
            }
            if let Some(after) = hooks.after_epoch.as_mut() {
                after(self, &sums)?;
            }
            history.epochs.push(sums);
        }
        history.stopped_early = self.epoch < fit.epochs;
        history.skipped = self.skipped - skipped_before;
        if let (Some(_), Some(best)) = (fit.patience, &self.best) {
            self.store = best.store.snapshot();
        }
        Ok(history)
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

    /// Writes all state, the position and the best state so far, atomically, as one safetensors file.
    pub fn save(&self, path: &Path) -> Result<(), DistillError> {
        let mut all = TensorMap::new();
        let mut put = |prefix: &str, store: &StateStore| -> Result<(), DistillError> {
            for name in store.names() {
                all.insert(format!("{prefix}/{name}"), store.get(name)?);
            }
            Ok(())
        };
        put("state", &self.store)?;
        if let Some(best) = &self.best {
            put("best", &best.store)?;
            all.insert("best_score".into(), Tensor::scalar(best.score));
            all.insert("best_since".into(), Tensor::scalar(best.since));
        }
        let position = vec![self.step, self.epoch, self.seed, self.skipped, self.bad_steps.into()];
        all.insert("position".into(), Tensor::new([5], position)?);
        Ok(io::write_safetensors(path, &all)?)
    }

    /// Continues from a file of [`Trainer::save`]; what follows equals an uninterrupted run bit for bit.
    ///
    /// # Errors
    /// A file that is no checkpoint, or that of a step with other state.
    pub fn resume(&mut self, path: &Path) -> Result<(), DistillError> {
        let format = |reason: String| TensorError::Format { path: path.to_owned(), reason };
        let all = io::read_safetensors(path)?;
        let required = |name: &str| all.get(name).ok_or_else(|| format(format!("is no checkpoint: it lacks '{name}'")));
        let [step, epoch, seed, skipped, bad_steps] = required("position")?.to_vec::<u64>()?[..] else {
            return Err(format("has a 'position' of the wrong length".into()).into());
        };
        let bad_steps = u32::try_from(bad_steps).map_err(|_| format("has an impossible 'position'".into()))?;
        self.store = self.read_state(&all, "state", path)?;
        self.best = match all.get("best_score") {
            None => None,
            Some(score) => {
                let number = |t: &Tensor| -> Result<f64, DistillError> {
                    t.to_f64_vec()?.first().copied().ok_or_else(|| format("has an empty 'best_score'".into()).into())
                };
                let since = number(required("best_since")?)? as u64;
                Some(Best { score: number(score)?, since, store: self.read_state(&all, "best", path)? })
            }
        };
        (self.step, self.epoch, self.seed, self.skipped, self.bad_steps) = (step, epoch, seed, skipped, bad_steps);
        Ok(())
    }

    /// The state under a prefix of a checkpoint, checked against the step's.
    fn read_state(&self, all: &TensorMap, prefix: &str, path: &Path) -> Result<StateStore, DistillError> {
        let format = |reason: String| TensorError::Format { path: path.to_owned(), reason };
        let mut store = self.store.snapshot();
        for entry in &self.manifest.state {
            let tensor = all
                .get(&format!("{prefix}/{}", entry.name))
                .ok_or_else(|| format(format!("lacks '{}'; it belongs to another step", entry.name)))?;
            if tensor.shape() != entry.shape || tensor.dtype().name() != entry.dtype {
                let got = format!("{}{:?}", tensor.dtype(), tensor.shape());
                let want = format!("{}{:?}", entry.dtype, entry.shape);
                return Err(format(format!("'{}' is {got}, but the step has {want}", entry.name)).into());
            }
            store.insert(entry.name.clone(), &tensor.aligned())?;
        }
        Ok(store)
    }
}

/// Outputs of an inference program over all rows of `x`, in batches of `batch` (the program's fixed batch); the last
/// batch is filled up and cut.
pub fn predict(program: &dyn Program, input: &str, x: &Tensor, batch: usize) -> Result<TensorMap, DistillError> {
    let rows = x.shape().first().copied().unwrap_or(0);
    let mut parts: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
    for start in (0..rows).step_by(batch.max(1)) {
        let indices: Vec<usize> = (start..start + batch).map(|i| i.min(rows - 1)).collect();
        let outputs = program.infer(&[(input, &crate::data::gather_rows(x, &indices)?)])?;
        for (name, tensor) in outputs {
            parts.entry(name).or_default().push(tensor.rows(0..batch.min(rows - start))?);
        }
    }
    parts.into_iter().map(|(name, list)| Ok((name, concat_rows(&list)?))).collect()
}

/// Tensors of one dtype and row shape under one another.
pub fn concat_rows(parts: &[Tensor]) -> Result<Tensor, DistillError> {
    let Some(first) = parts.first() else {
        return Err(DistillError::Data { source_name: "rows".into(), reason: "nothing to join".into() });
    };
    let mut shape = first.shape().to_vec();
    let mut bytes = vec![];
    shape[0] = 0;
    for part in parts {
        shape[0] += part.shape()[0];
        bytes.extend_from_slice(&part.bytes());
    }
    Ok(Tensor::from_bytes(first.dtype(), shape, bytes.into())?.aligned())
}

/// Share of rows whose largest logit is the label's, 0..=1.
pub fn accuracy(logits: &Tensor, labels: &Tensor) -> Result<f64, DistillError> {
    let classes = logits.shape().last().copied().unwrap_or(1).max(1);
    let (logits, labels) = (logits.to_f64_vec()?, labels.to_i64_vec()?);
    let hits = logits.chunks(classes).zip(&labels).filter(|(row, y)| argmax(row) as i64 == **y).count();
    Ok(hits as f64 / labels.len().max(1) as f64)
}

/// Index of the largest number, the first of equals.
pub fn argmax(row: &[f64]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, &v)| if v > row[best] { i } else { best })
}
