//! Stage 5: the field. A stream of digits under slowly growing rotation and falling contrast is shown to the shipped
//! student, scored before each update.

use anyhow::Result;
use limbeck_distill::data::Arrays;
use limbeck_distill::optim::AdamW;
use limbeck_distill::{
    GradOptions, Group, Mode, Net, Step, Trainer, accuracy, argmax, build_step, lowering_for, objective,
};
use limbeck_graph::Lowering;
use limbeck_runtime::{Augment, Bundle, CompileOptions, Engine, Learner, LearnerOptions, Session, StateRole, noise};
use limbeck_tensor::{DType, Tensor, TensorMap};
use std::path::Path;
use std::sync::Arc;

use super::data::{CLASSES, SIDE, drift, rows};
use super::engine::SCORE_BATCH;

/// Samples of the stream.
const STREAM: usize = 1080;
/// Samples that arrive at once.
const ARRIVAL: usize = 12;
/// Steps after each arrival.
const STEPS: u64 = 4;
/// Share of the stream over which the drift grows; then it holds.
const GROWTH: f64 = 0.8;
/// Samples of the stream that the device remembers.
const WINDOW: usize = 96;
/// New samples in a step, half of them just arrived.
const NEW: usize = 24;
/// Replayed digits in a step.
const REPLAY: usize = 24;
/// Arrivals between two evaluations.
const EVALUATE_EVERY: usize = 15;

/// What is done with the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// Nothing.
    Frozen,
    /// Cross-entropy on what arrives.
    Naive,
    /// Self-distillation: an average of the student teaches it on what arrives, stored logits on replayed digits.
    SelfDistilled,
}

impl Arm {
    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Arm::Frozen => "frozen",
            Arm::Naive => "naive fine-tuning",
            Arm::SelfDistilled => "self-distillation + replay",
        }
    }
}

/// Accuracy at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Share of the stream seen, 0..=1.
    pub seen: f64,
    /// On the arrivals since the last moment, each scored before it was learned from; NaN at the start.
    pub prequential: f64,
    /// On field digits never trained on, under the present drift.
    pub new: f64,
    /// On the original test digits.
    pub old: f64,
}

/// The data of a run.
pub struct Field<'a> {
    /// Digits of the stream.
    pub stream: &'a Arrays,
    /// Digits to score new data with.
    pub field: &'a Arrays,
    /// The original test digits.
    pub original: &'a Arrays,
}

/// Drift at sample `t` of the stream.
fn progress(t: usize) -> f64 {
    (t as f64 / (GROWTH * (STREAM - 1) as f64)).min(1.0)
}

/// The step that a bundle ships: cross-entropy on new samples, whose labels are true ones or the average student's,
/// and the shipped student's logits on replayed digits.
pub fn device_step(net: &Net, form: impl Into<Lowering>) -> Result<Step> {
    let step = build_step("learn", DType::F32, |s| {
        let x = s.batch("x", DType::F32, &[NEW, 1, SIDE, SIDE])?;
        let y = s.batch("y", DType::I64, &[NEW])?;
        let weight = s.batch("row_weight", DType::F32, &[NEW])?;
        let replay_x = s.batch("replay_x", DType::F32, &[REPLAY, 1, SIDE, SIDE])?;
        let replay_logits = s.batch("replay_logits", DType::F32, &[REPLAY, CLASSES])?;
        let params = s.params("student", net, StateRole::Parameter)?;
        let average = s.params("ema", net, StateRole::Average)?;
        // One pass over new and replayed samples together.
        let out = net.apply(s.cx(), &[x.concat(&[replay_x], 0)], &params, Mode::Inference)?.first()?;
        let (new, old) = (out.slice(0, 0, NEW), out.slice(0, NEW, NEW + REPLAY));
        let taps = [("student_logits", new), ("labels", y)];
        let fit = objective::find("ce")?.loss(s.cx(), &taps, &[], Some(weight))?;
        let keep = objective::find("kd")?.loss(
            s.cx(),
            &[("student_logits", old), ("teacher_logits", replay_logits)],
            &[("temperature", 2.0)],
            None,
        )?;
        let loss = fit + keep * 2.0;
        s.loss("loss", loss);
        s.metric("fit", fit);
        s.metric("keep", keep);
        let group = Group { params: &params, lr_scale: 1.0, weight_decay: 0.0 };
        s.minimise("", loss, &[group], &AdamW::default(), GradOptions::default())?;
        s.average(&average, &params, s.scalar("average_decay", 0.98)?)
    })?;
    Ok(step.lowered(form)?)
}

/// Plain fine-tuning on the arrivals.
fn naive_step(net: &Net, form: impl Into<Lowering>) -> Result<Step> {
    let step = build_step("fine-tune", DType::F32, |s| {
        let x = s.batch("x", DType::F32, &[ARRIVAL, 1, SIDE, SIDE])?;
        let y = s.batch("y", DType::I64, &[ARRIVAL])?;
        let params = s.params("student", net, StateRole::Parameter)?;
        let out = net.apply(s.cx(), &[x], &params, Mode::Inference)?.first()?;
        let loss = objective::find("ce")?.loss(s.cx(), &[("student_logits", out), ("labels", y)], &[], None)?;
        s.loss("loss", loss);
        let group = Group { params: &params, lr_scale: 1.0, weight_decay: 0.0 };
        s.minimise("", loss, &[group], &AdamW::default(), GradOptions::default())
    })?;
    Ok(step.lowered(form)?)
}

/// Plays the stream to the student of a bundle, opened as a device opens it, and returns accuracies over time.
pub fn play(
    folder: &Path,
    net: &Net,
    arm: Arm,
    labelled: bool,
    data: &Field<'_>,
    engine: &dyn Engine,
    seed: u64,
) -> Result<Vec<Moment>> {
    let count = data.stream.get("y")?.len();
    let order: Vec<usize> = (0..STREAM.div_ceil(count))
        .flat_map(|pass| noise::stream(seed, pass as u64, "field order").permutation(count))
        .take(STREAM)
        .collect();
    let x = drift(&rows(data.stream, "x", &order)?, progress)?;
    let y = rows(data.stream, "y", &order)?;
    let mut device = Device::open(folder, net, arm, engine, seed)?;
    let mut moments = vec![];
    let (mut hits, mut scored) = (0.0, 0usize);
    moments.push(evaluate(&device, data, 0, f64::NAN)?);
    for arrival in 0..STREAM / ARRIVAL {
        let (from, to) = (arrival * ARRIVAL, (arrival + 1) * ARRIVAL);
        let (new_x, new_y) = (x.rows(from..to)?.aligned(), y.rows(from..to)?.aligned());
        let logits = device.learn(&new_x, labelled.then_some(&new_y))?;
        hits += accuracy(&logits, &new_y)? * ARRIVAL as f64;
        scored += ARRIVAL;
        if (arrival + 1) % EVALUATE_EVERY == 0 {
            moments.push(evaluate(&device, data, to, hits / scored as f64)?);
            (hits, scored) = (0.0, 0);
        }
    }
    Ok(moments)
}

fn evaluate(device: &Device, data: &Field<'_>, seen: usize, prequential: f64) -> Result<Moment> {
    let now = progress(seen.saturating_sub(1));
    let new = accuracy(&device.logits(&drift(data.field.get("x")?, |_| now)?)?, data.field.get("y")?)?;
    let old = accuracy(&device.logits(data.original.get("x")?)?, data.original.get("y")?)?;
    Ok(Moment { seen: seen as f64 / STREAM as f64, prequential, new, old })
}

/// A device in the field.
enum Device {
    /// Serves what was shipped.
    Frozen(Arc<Session>),
    /// Fine-tunes on what arrives.
    Naive(Arc<Session>, Box<Trainer>),
    /// Learns as Limbeck does.
    Learning(Box<Learner>),
}

impl Device {
    fn open(folder: &Path, net: &Net, arm: Arm, engine: &dyn Engine, seed: u64) -> Result<Device> {
        let compile = CompileOptions { threads: 1, ..CompileOptions::default() };
        let bundle = Bundle::open(folder)?;
        Ok(match arm {
            Arm::Frozen => Device::Frozen(bundle.session(engine, &compile)?.into()),
            Arm::Naive => {
                let step = naive_step(net, lowering_for(engine))?;
                let trainer = Trainer::new(engine, &step, &compile, seed)?;
                Device::Naive(bundle.session(engine, &compile)?.into(), trainer.into())
            }
            Arm::SelfDistilled => {
                let options = LearnerOptions {
                    compile,
                    steps: STEPS,
                    latest_rows: Some(ARRIVAL),
                    window: WINDOW,
                    lr: 3e-3,
                    augment: Some(Augment { degrees: 8.0, shift: 0.5, zoom: 0.05 }),
                    gate: None,
                    seed,
                    ..LearnerOptions::default()
                };
                Device::Learning(Learner::new(bundle, engine, options)?.into())
            }
        })
    }

    /// Answers for what arrives, then learns from it. Returns the answers' logits.
    fn learn(&mut self, x: &Tensor, labels: Option<&Tensor>) -> Result<Tensor> {
        match self {
            Device::Frozen(session) => predicted(session, x),
            Device::Naive(session, trainer) => {
                let logits = predicted(session, x)?;
                let own: Vec<i64> = logits.to_f64_vec()?.chunks(CLASSES).map(|r| argmax(r) as i64).collect();
                let mut feeds = TensorMap::new();
                feeds.insert("x".into(), x.clone());
                feeds.insert("y".into(), labels.map_or_else(|| Tensor::new([ARRIVAL], own), |y| Ok(y.clone()))?);
                for _ in 0..STEPS {
                    trainer.run(&feeds, &[("lr", 5e-4)])?;
                }
                session.adopt(trainer.store())?;
                Ok(logits)
            }
            Device::Learning(learner) => {
                let logits = learner.observe(x, labels)?;
                learner.learn()?;
                learner.gate()?;
                Ok(logits)
            }
        }
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Device::Frozen(session) | Device::Naive(session, _) => predicted(session, x),
            Device::Learning(learner) => predicted(&learner.session(), x),
        }
    }
}

fn predicted(session: &Session, x: &Tensor) -> Result<Tensor> {
    session.predict(&[("x", x)])?.remove("logits").ok_or_else(|| anyhow::anyhow!("no output 'logits'"))
}

/// Inference with the weights as read-only state: what a device serves while it learns.
pub fn serving_step(net: &Net, form: impl Into<Lowering>) -> Result<Step> {
    let step = build_step("serve", DType::F32, |s| {
        let x = s.batch("x", DType::F32, &[SCORE_BATCH, 1, SIDE, SIDE])?;
        let params = s.params("student", net, StateRole::Parameter)?;
        let logits = net.apply(s.cx(), &[x], &params, Mode::Inference)?.first()?;
        s.metric("logits", logits);
        Ok(())
    })?;
    Ok(step.lowered(form)?)
}
