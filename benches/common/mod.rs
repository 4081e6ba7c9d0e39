//! The nets, the train step and the data that benches and peers share.
#![allow(dead_code)] // each bench uses its own part

use anyhow::Result;
use limbeck::digits::nets;
use limbeck::distill::optim::Sgd;
use limbeck::distill::{GradOptions, Group, Net, Step, build_step, form_for, models, objective};
use limbeck::graph::Graph;
use limbeck::runtime::{CompileOptions, Engine, Model, Program, StateRole, noise};
use limbeck::tensor::{DType, Tensor, TensorMap};

/// A net with the batch its train step is timed at.
pub(crate) struct Case {
    /// Name in tables.
    pub(crate) name: &'static str,
    /// The net; input `x`, output `logits`.
    pub(crate) net: Net,
    /// Shape of one sample.
    pub(crate) sample: &'static [usize],
    /// Samples of a train step.
    pub(crate) batch: usize,
    /// Classes.
    pub(crate) classes: usize,
}

/// Seed of all weights and data.
const SEED: u64 = 0;

/// The three nets: the student of the digits demo, ResNet-8, and a transformer of two layers of width 128.
pub(crate) fn cases() -> Result<Vec<Case>> {
    Ok(vec![
        Case { name: "digits-student", net: nets::student(SEED)?, sample: &[1, 8, 8], batch: 32, classes: 10 },
        Case { name: "resnet8", net: models::resnet8(SEED)?, sample: &[3, 32, 32], batch: 32, classes: 10 },
        Case {
            name: "transformer",
            net: models::transformer(2, 128, 4, 64, 10, SEED)?,
            sample: &[64, 128],
            batch: 16,
            classes: 10,
        },
    ])
}

/// A net whose train step has more than 2,000 nodes: a narrow transformer of 14 layers.
pub(crate) fn deep() -> Result<Case> {
    let net = models::transformer(14, 32, 2, 8, 10, SEED)?;
    Ok(Case { name: "transformer-14", net, sample: &[8, 32], batch: 4, classes: 10 })
}

/// `0.1 CE + 0.9 T² KL` at T = 4 on given teacher logits, batch statistics where the net has batch normalisation, SGD with
/// momentum 0.9.
pub(crate) fn train_step(case: &Case) -> Result<Step> {
    Ok(build_step("bench", DType::F32, |s| {
        let x = s.batch("x", DType::F32, &[&[case.batch], case.sample].concat())?;
        let labels = s.class_labels("y", &[case.batch], case.classes)?;
        let teacher = s.batch("teacher_logits", DType::F32, &[case.batch, case.classes])?;
        let params = s.params("student", &case.net, StateRole::Parameter)?;
        let out = s.apply(&case.net, &[x], &params, &params)?;
        let student = out.first()?;
        let ce = objective::find("ce")?.loss(s.cx(), &[("student_logits", student), ("labels", labels)], &[], None)?;
        let taps = [("student_logits", student), ("teacher_logits", teacher)];
        let kd = objective::find("kd")?.loss(s.cx(), &taps, &[("temperature", 4.0)], None)?;
        let loss = ce * 0.1 + kd * 0.9;
        s.loss("loss", loss);
        let group = Group { params: &params, lr_scale: 1.0, weight_decay: 0.0 };
        s.minimise("", loss, &[group], &Sgd { momentum: 0.9, nesterov: false }, GradOptions::default())
    })?)
}

/// The step in the form that the engine runs best.
pub(crate) fn lowered(step: &Step, engine: &dyn Engine) -> Result<Step> {
    nets::lowered(step.clone(), form_for(engine))
}

/// A batch of seeded noise with labels and teacher logits.
pub(crate) fn batch(case: &Case) -> Result<TensorMap> {
    let mut stream = noise::stream(SEED, 0, "bench");
    let mut normal = |shape: Vec<usize>| {
        let values = (0..shape.iter().product()).map(|_| stream.normal() as f32).collect();
        Tensor::new(shape, values)
    };
    let mut rows = TensorMap::new();
    rows.insert("x".into(), normal([&[case.batch], case.sample].concat())?);
    rows.insert("teacher_logits".into(), normal(vec![case.batch, case.classes])?);
    let labels = (0..case.batch).map(|i| (i * 7 % case.classes) as i64).collect();
    rows.insert("y".into(), Tensor::new([case.batch], labels)?);
    Ok(rows)
}

/// An inference program at a fixed batch.
pub(crate) fn inference(net: &Net, engine: &dyn Engine, batch: usize, threads: usize) -> Result<Box<dyn Program>> {
    let mut graph: Graph = net.graph().clone();
    graph.bind_dims(&[("batch", batch)])?;
    let model = Model::new(graph.lowered(form_for(engine))?.to_bytes()?);
    Ok(engine.compile(&model, &CompileOptions { threads, ..CompileOptions::default() })?)
}
