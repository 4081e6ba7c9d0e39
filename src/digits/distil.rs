//! Stages 1 and 2: the teacher, and students with and without it.

use anyhow::Result;
use limbeck_distill::data::Arrays;
use limbeck_distill::{Fit, Hooks, Net, Schedule, Trainer, concat_rows, lowering_for};
use limbeck_runtime::{CompileOptions, Engine, noise};
use limbeck_tensor::TensorMap;

use super::data::{Split, training_warp, warped};
use super::engine::outputs;
use super::nets::{self, BATCH, TEACHER_HINT};

/// Copies of the training set in the pool of stored teacher outputs: the plain one and five warped ones.
const COPIES: u64 = 6;
const OPTIONS: CompileOptions = CompileOptions {
    threads: 1,
    device: limbeck_runtime::Device::Cpu,
    spin: false,
    cache: None,
    half: false,
    count: false,
};

/// A trained net with the loss of each epoch.
pub struct Trained {
    /// The net with its weights.
    pub net: Net,
    /// Mean training loss per epoch.
    pub losses: Vec<f64>,
}

fn schedule(warmup: f64) -> Schedule {
    Schedule::Cosine { warmup }
}

fn losses(history: &limbeck_distill::History, name: &str) -> Vec<f64> {
    history.epochs.iter().filter_map(|e| e.get(name).copied()).collect()
}

/// Trains the teacher on augmented digits with smoothed labels, 16 epochs.
pub fn train_teacher(split: &Split, engine: &dyn Engine, seed: u64, epochs: u64) -> Result<Trained> {
    let net = nets::teacher(seed)?;
    let step = nets::label_step(&net, 0.1, lowering_for(engine))?;
    let mut trainer = Trainer::new(engine, &step, &OPTIONS, seed)?;
    let augment = |batch: &mut TensorMap, stream: &mut noise::Stream| {
        if let Some(x) = batch.get_mut("x") {
            *x = warped(x, |_| training_warp(stream))?;
        }
        Ok(())
    };
    let hooks = Hooks { augment: Some(&augment), ..Hooks::none() };
    let history = trainer.fit(&split.train, BATCH, &Fit::new(epochs, 0.01, schedule(0.2)), hooks)?;
    Ok(Trained { net: net.reweighted(&trainer.weights("student")?)?, losses: losses(&history, "loss") })
}

/// The training set and warped copies of it, with the teacher's logits and feature stored beside them.
pub fn teacher_pool(split: &Split, teacher: &Net, engine: &dyn Engine, seed: u64) -> Result<Arrays> {
    let x = split.train.get("x")?;
    let y = split.train.get("y")?;
    let mut images = vec![x.clone()];
    for copy in 1..COPIES {
        let mut stream = noise::stream(seed, copy, "pool");
        images.push(warped(x, |_| training_warp(&mut stream))?);
    }
    let images = concat_rows(&images)?;
    let labels = concat_rows(&vec![y.clone(); COPIES as usize])?;
    let mut graph = teacher.graph().clone();
    let hint = graph.require(TEACHER_HINT)?;
    graph.outputs.push(hint);
    let mut out = outputs(&graph, engine, &images)?;
    let mut fields = TensorMap::new();
    fields.insert("x".into(), images);
    fields.insert("y".into(), labels);
    for (field, output) in [("teacher_logits", "logits"), ("teacher_feature", TEACHER_HINT)] {
        let tensor = out.remove(output).ok_or_else(|| anyhow::anyhow!("the teacher has no output '{output}'"))?;
        fields.insert(field.into(), tensor);
    }
    Ok(Arrays::new(fields)?)
}

/// How a student is taught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Teaching {
    /// Labels alone.
    Labels,
    /// Labels, softened logits and the feature hint.
    Hint,
    /// Labels and softened logits: recovery after surgery.
    Recovery,
}

/// Trains a student on the pool for a number of passes over as many samples as the training set has.
pub fn train_student(
    net: &Net,
    pool: &Arrays,
    engine: &dyn Engine,
    teaching: Teaching,
    passes: u64,
    seed: u64,
) -> Result<Trained> {
    let form = lowering_for(engine);
    let (step, loss, warmup) = match teaching {
        Teaching::Labels => (nets::label_step(net, 0.0, form)?, "loss", 0.2),
        Teaching::Hint => (nets::distil_step(net, true, seed, form)?, "total", 0.2),
        Teaching::Recovery => (nets::distil_step(net, false, seed, form)?, "total", 0.1),
    };
    let mut trainer = Trainer::new(engine, &step, &OPTIONS, seed)?;
    // The pool holds COPIES copies, so that one epoch over it is COPIES passes.
    let fit = Fit::new((passes / COPIES).max(1), 0.01, schedule(warmup));
    let history = trainer.fit(pool, BATCH, &fit, Hooks::none())?;
    Ok(Trained { net: net.reweighted(&trainer.weights("student")?)?, losses: losses(&history, loss) })
}
