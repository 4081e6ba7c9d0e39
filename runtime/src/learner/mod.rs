//! The learner: observe -> replay -> step -> gate -> commit, beside a session that keeps serving.
//!
//! # What a train step may ask for
//! These batch inputs are fed where the step's manifest lists them; another name is refused. `n` and `r` are the
//! extents that the manifest gives.
//!
//! | input | shape | what |
//! |---|---|---|
//! | `x` | `[n, ...]` | new rows: the latest observation's, then draws from the window; augmented if asked for |
//! | `y` | `[n]`, integer | their labels, or the teacher's classes where there are none |
//! | `row_weight` | `[n]` | 1, or 0 where the teacher is not sure enough |
//! | `replay_x` | `[r, ...]` | old rows |
//! | `replay_y` | `[r]`, integer | their labels |
//! | `replay_logits` | `[r, classes]` | the logits that were stored with them |
//!
//! The scalar `lr` is the learning rate. An average teacher is state `ema/NAME` for each `student/NAME` of the model.

mod augment;
mod choice;
mod feeds;
mod options;

pub use augment::Augment;
pub use options::{GateOptions, GateReport, LearnReport, LearnerOptions, TeacherKind};

use crate::bundle::sha256;
use crate::session::predict;
use crate::{
    Bundle, Engine, LedgerEntry, Program, Replay, RuntimeError, Session, StateRole, StateStore, StepManifest, rows,
};
use feeds::Observed;
use limbeck_tensor::{Tensor, TensorMap};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Steps in a row that may be skipped before learning is given up.
const MAX_SKIPPED: u64 = 20;

/// Learns on a device. Nothing runs by itself: the caller decides when to take a step, so that it can pause between any
/// two. The same seed, observations and calls give the same weights on one engine, processor kind and thread count.
pub struct Learner {
    bundle: Bundle,
    options: LearnerOptions,
    session: Arc<Session>,
    /// The model that serves, compiled once.
    serving: Arc<dyn Program>,
    shipped: StateStore,
    step_label: String,
    manifest: StepManifest,
    program: Box<dyn Program>,
    /// The candidate.
    store: StateStore,
    /// What a rollback returns to.
    promoted: Kept,
    replay: Option<Replay>,
    window: VecDeque<Observed>,
    latest: usize,
    position: u64,
    skipped_in_row: u64,
    gate: Option<Gate>,
    /// Hashes of what was observed and not yet committed.
    pending: Vec<String>,
    /// Gate score of the weights that were last committed, or opened.
    committed_score: f64,
    committed_position: u64,
    /// Whether a step ran since the last gate.
    trained: bool,
}

struct Kept {
    store: StateStore,
    replay: Option<Replay>,
    data: Vec<String>,
    score: f64,
    position: u64,
}

struct Gate {
    x: Tensor,
    labels: Vec<i64>,
    shipped: f64,
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, RuntimeError> {
    Err(RuntimeError::Learner { reason: reason.into() })
}

impl Learner {
    /// Opens a session on the bundle, compiles the step that the options name, and seeds replay.
    ///
    /// # Errors
    /// As [`Bundle::session`]; no step, form or gate as the options ask for, or none that the engine has; a step that asks
    /// for what is not in the table above, or whose manifest and model disagree about what is fed.
    pub fn new(bundle: Bundle, engine: &dyn Engine, options: LearnerOptions) -> Result<Learner, RuntimeError> {
        let (tested, _) = bundle.tested(engine, &options.compile)?;
        let (serving, shipped) = (tested.program(), tested.store());
        let session = Arc::new(tested);
        if !serving.state().iter().any(|s| bundle.shipped().contains_key(&s.name)) {
            return refuse("the model's weights are constants, so that none can be replaced; export it for learning");
        }
        let (step_label, manifest, program) = choice::choose_step(&bundle, engine, &options)?;
        let rate = |name: &str| name.starts_with("lr_") && !options.scalars.contains_key(name);
        if let Some(s) = manifest.scalars.iter().find(|s| rate(&s.name)) {
            return refuse(format!("the step has a learning rate `{}` of its own; give it in `scalars`", s.name));
        }
        feeds::check(&manifest, program.inputs())?;
        if let Some(name) = options.scalars.keys().find(|name| !manifest.scalars.iter().any(|s| s.name == **name)) {
            let known: Vec<&str> = manifest.scalars.iter().map(|s| s.name.as_str()).collect();
            return refuse(format!("the step has no scalar `{name}`; it has {known:?}"));
        }
        let mut store = engine.new_store();
        let needed = manifest.state.iter().map(|e| &e.name).chain(serving.state().iter().map(|s| &s.name));
        for name in needed {
            if let Some(tensor) = bundle.state().get(name) {
                store.insert(name.clone(), &tensor.aligned())?;
            }
        }
        session.adopt(&store)?;
        if options.teacher == TeacherKind::Ema && !manifest.names(StateRole::Average).any(|n| n.starts_with("ema/")) {
            return refuse("the step keeps no average (`ema/...`); choose the frozen teacher");
        }
        let replay = feeds::seeded_replay(&bundle, &manifest, &options)?;
        let mut learner = Learner {
            promoted: Kept { store: store.snapshot(), replay: replay.clone(), data: vec![], score: 0.0, position: 0 },
            bundle,
            session,
            serving,
            shipped,
            step_label,
            manifest,
            program,
            store,
            replay,
            window: VecDeque::new(),
            latest: 0,
            position: 0,
            skipped_in_row: 0,
            gate: None,
            pending: vec![],
            committed_score: 0.0,
            committed_position: 0,
            trained: false,
            options,
        };
        learner.open_gate()?;
        Ok(learner)
    }

    /// The session that serves; it follows every promotion.
    pub fn session(&self) -> Arc<Session> {
        self.session.clone()
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Name and form of the step in use, such as `field (fused)`.
    pub fn step_name(&self) -> &str {
        &self.step_label
    }

    /// Replay, where the step uses it or observations are remembered.
    pub fn replay(&self) -> Option<&Replay> {
        self.replay.as_ref()
    }

    /// Replay, to load what an earlier run saved.
    pub fn replay_mut(&mut self) -> Option<&mut Replay> {
        self.replay.as_mut()
    }

    /// Steps run so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Takes in rows `[n, ...]`, with one integer label each where labels are known. Returns the serving student's
    /// logits for them, `[n, classes]`: what it said before it learned from them.
    ///
    /// # Errors
    /// Rows or labels that do not fit the model.
    pub fn observe(&mut self, x: &Tensor, labels: Option<&Tensor>) -> Result<Tensor, RuntimeError> {
        let n = rows::count(x)?;
        let labels = labels.map(Tensor::to_i64_vec).transpose()?;
        let data = |what: &str, reason: String| Err(RuntimeError::Data { what: what.into(), reason });
        if n == 0 || !x.all_finite() {
            return data("observed rows", "are none, or not finite".into());
        }
        let logits = self.logits(&self.session.store(), x)?;
        let classes = logits.shape().last().copied().unwrap_or(0) as i64;
        if let Some(labels) = &labels {
            if labels.len() != n {
                return data("labels", format!("are {}, for {n} rows", labels.len()));
            }
            if let Some(label) = labels.iter().find(|y| !(0..classes).contains(*y)) {
                return data("labels", format!("{label} is not a class; there are {classes}"));
            }
        }
        if self.options.remember
            && let Some(replay) = &mut self.replay
        {
            let known = match &labels {
                Some(labels) => labels.clone(),
                None => rows::classes(&logits)?,
            };
            replay.add(x, &known, &logits)?;
        }
        let mut content = x.bytes().to_vec();
        for i in 0..n {
            let label = labels.as_ref().map(|l| l[i]);
            content.extend(label.unwrap_or(-1).to_le_bytes());
            self.window.push_back(Observed { x: rows::gather(x, &[i])?, label });
        }
        self.pending.push(sha256(&content));
        self.latest = n;
        while self.window.len() > self.options.window.max(n) {
            self.window.pop_front();
        }
        Ok(logits)
    }

    /// Takes the train steps that the options set for one observation.
    ///
    /// # Errors
    /// As [`Learner::step`].
    pub fn learn(&mut self) -> Result<LearnReport, RuntimeError> {
        self.learn_while(|_| true)
    }

    /// As [`Learner::learn`], but asks `go_on` before every step, with the number of steps done in this call.
    ///
    /// # Errors
    /// As [`Learner::step`].
    pub fn learn_while(&mut self, mut go_on: impl FnMut(u64) -> bool) -> Result<LearnReport, RuntimeError> {
        let mut report = LearnReport::default();
        while report.steps < self.options.steps && go_on(report.steps) {
            let metrics = self.step()?;
            report.steps += 1;
            report.skipped += u64::from(skipped(&metrics));
            report.metrics = metrics;
        }
        Ok(report)
    }

    /// Takes one train step of the candidate; the session does not see it before [`Learner::gate`]. Returns losses and
    /// metrics by name.
    ///
    /// # Errors
    /// Nothing observed, a replay without rows, a failure of the engine (the candidate is then unchanged); too many
    /// steps in a row whose loss or gradient is not finite.
    pub fn step(&mut self) -> Result<BTreeMap<String, f64>, RuntimeError> {
        let fed = self.feeds()?;
        let feeds: Vec<(&str, &Tensor)> = fed.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let outputs = self.program.run(&mut self.store, &feeds)?;
        self.position += 1;
        self.trained = true;
        let mut metrics = BTreeMap::new();
        for (name, tensor) in &outputs {
            if let [value] = tensor.to_f64_vec()?[..] {
                metrics.insert(name.clone(), value);
            }
        }
        self.skipped_in_row = if skipped(&metrics) { self.skipped_in_row + 1 } else { 0 };
        match self.skipped_in_row {
            MAX_SKIPPED.. => refuse(format!(
                "{MAX_SKIPPED} steps in a row gave a loss or gradient that is not finite; lower the learning rate"
            )),
            _ => Ok(metrics),
        }
    }

    /// Judges the candidate on held-out rows: it serves from now on, or everything learned and remembered since the
    /// last promotion is dropped, the window included.
    ///
    /// # Errors
    /// A failure of the engine.
    pub fn gate(&mut self) -> Result<GateReport, RuntimeError> {
        let before = self.promoted.score;
        let (after, shipped, rows) = match &self.gate {
            Some(gate) => (self.score(gate, &self.store)?, gate.shipped, gate.labels.len()),
            None => (before, before, 0),
        };
        let finite = self.finite()?;
        let promoted = finite
            && match self.options.gate {
                Some(o) => after >= before - o.max_drop && after >= shipped - o.max_total_drop,
                None => true,
            };
        if promoted {
            self.session.adopt(&self.store)?;
            let mut data = std::mem::take(&mut self.promoted.data);
            data.append(&mut self.pending);
            let position = if self.trained { self.position } else { self.promoted.position };
            let (store, replay) = (self.store.snapshot(), self.replay.clone());
            self.promoted = Kept { store, replay, data, score: after, position };
        } else {
            self.store = self.promoted.store.snapshot();
            self.replay = self.promoted.replay.clone();
            self.window.clear();
            self.latest = 0;
            self.pending.clear();
            self.skipped_in_row = 0;
            tracing::info!(before, after, shipped, finite, "the candidate was rolled back");
        }
        self.trained = false;
        Ok(GateReport { promoted, shipped, before, after, rows })
    }

    /// Writes what was last promoted into the bundle, so that it survives a restart. `None` when nothing was learned
    /// since the last commit.
    ///
    /// # Errors
    /// As [`Bundle::commit`].
    pub fn commit(&mut self) -> Result<Option<LedgerEntry>, RuntimeError> {
        if self.promoted.position == self.committed_position {
            return Ok(None);
        }
        let mut weights = TensorMap::new();
        for name in self.promoted.store.names() {
            weights.insert(name.into(), self.promoted.store.get(name)?);
        }
        let metric = if self.bundle.gate()?.is_some_and(|g| g.contains_key("y")) { "accuracy" } else { "agreement" };
        let scores = |score: f64| match self.gate {
            Some(_) => BTreeMap::from([(metric.to_owned(), score)]),
            None => BTreeMap::new(),
        };
        let entry = LedgerEntry {
            sequence: 0,
            weights: String::new(),
            step: self.step_label.clone(),
            runs: self.promoted.position,
            data: self.promoted.data.clone(),
            before: scores(self.committed_score),
            after: scores(self.promoted.score),
        };
        let entry = self.bundle.commit(&weights, &entry)?;
        self.promoted.data.clear();
        self.committed_score = self.promoted.score;
        self.committed_position = self.promoted.position;
        Ok(Some(entry))
    }

    fn open_gate(&mut self) -> Result<(), RuntimeError> {
        if self.options.gate.is_none() {
            return Ok(());
        }
        let Some(map) = self.bundle.gate()? else {
            return refuse(
                "the bundle has no held-out rows to judge a candidate on; export it with some, or set no gate",
            );
        };
        let x = map["x"].aligned();
        let labels = match map.get("y") {
            Some(y) => y.to_i64_vec()?,
            None => rows::classes(&self.logits(&self.shipped, &x)?)?,
        };
        let mut gate = Gate { x, labels, shipped: 0.0 };
        gate.shipped = self.score(&gate, &self.shipped)?;
        self.promoted.score = self.score(&gate, &self.store)?;
        self.committed_score = self.promoted.score;
        self.gate = Some(gate);
        Ok(())
    }

    fn score(&self, gate: &Gate, store: &StateStore) -> Result<f64, RuntimeError> {
        rows::accuracy(&self.logits(store, &gate.x)?, &gate.labels)
    }

    /// Whether every value of the candidate is finite, those that only a later step or commit reads included.
    fn finite(&self) -> Result<bool, RuntimeError> {
        for name in self.store.names() {
            if !self.store.get(name)?.all_finite() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The model's first output for rows, with the weights of `store`.
    fn logits(&self, store: &StateStore, x: &Tensor) -> Result<Tensor, RuntimeError> {
        let (inputs, outputs) = (self.serving.inputs(), self.serving.outputs());
        let ([input], Some(output)) = (inputs, outputs.first()) else {
            return refuse("the model has several inputs, or no output; a learner feeds one and reads the first");
        };
        let mut all = predict(&*self.serving, store, &[(&input.name, x)])?;
        all.remove(&output.name).ok_or_else(|| RuntimeError::NoValue { name: output.name.clone() })
    }
}

fn skipped(metrics: &BTreeMap<String, f64>) -> bool {
    metrics.get("finite").is_some_and(|v| *v < 0.5)
}
