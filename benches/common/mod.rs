//! The nets, the train step and the data that benches and peers share.
#![allow(dead_code)] // each bench uses its own part

use anyhow::{Context, Result};
use limbeck::digits::nets;
use limbeck::distill::optim::Sgd;
use limbeck::distill::{
    GradOptions, Group, Net, Step, build_step, inference_form_for, lowering_for, models, objective,
};
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
    /// What the parameters of its last block and its classifier begin with.
    pub(crate) last: &'static [&'static str],
}

/// Seed of all weights and data.
const SEED: u64 = 0;

/// Widths of the autoencoder's layers. Its 640 outputs count as logits, so that all nets have one loss.
const AUTOENCODER: [usize; 11] = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640];

/// The nets: the student of the digits demo, and those of `benches/peers`.
pub(crate) fn cases() -> Result<Vec<Case>> {
    let case = |name, net, sample, batch, classes, last| Case { name, net, sample, batch, classes, last };
    Ok(vec![
        case("digits-student", nets::student(SEED)?, &[1, 8, 8], 32, 10, &["stage2", "fc"]),
        case("resnet8", models::resnet8(SEED)?, &[3, 32, 32], 32, 10, &["block2", "fc"]),
        case("resnet8-plain", models::resnet8_plain(SEED)?, &[3, 32, 32], 32, 10, &["block2", "fc"]),
        case("ds-cnn", models::ds_cnn(SEED)?, &[1, 49, 10], 32, 12, &["block3", "fc"]),
        case("mobilenet-v2-0.35", models::mobilenet_v2(0.35, 96, 10, SEED)?, &[3, 96, 96], 16, 10, &["last", "fc"]),
        case(
            "transformer",
            models::transformer(2, 128, 4, 64, 10, SEED)?,
            &[64, 128],
            16,
            10,
            &["layer1", "norm", "fc"],
        ),
        case("autoencoder", models::mlp(&AUTOENCODER, SEED)?, &[640], 64, 640, &["layer8", "layer9"]),
    ])
}

/// The net of this name, for steps of so many samples.
pub(crate) fn case(name: &str, batch: usize) -> Result<Case> {
    let case = cases()?.into_iter().find(|c| c.name == name).with_context(|| format!("no net '{name}'"))?;
    Ok(Case { batch, ..case })
}

/// A net whose train step has more than 2,000 nodes: a narrow transformer of 14 layers.
pub(crate) fn deep() -> Result<Case> {
    let net = models::transformer(14, 32, 2, 8, 10, SEED)?;
    Ok(Case { name: "transformer-14", net, sample: &[8, 32], batch: 4, classes: 10, last: &[] })
}

/// `0.1 CE + 0.9 T² KL` at T = 4 on given teacher logits, batch statistics where the net has batch normalisation, SGD with
/// momentum 0.9.
pub(crate) fn train_step(case: &Case) -> Result<Step> {
    step(case, &|_| true)
}

/// The same for the last block and the classifier alone; the rest is constant and runs as in inference.
pub(crate) fn sparse_step(case: &Case) -> Result<Step> {
    step(case, &|name| case.last.iter().any(|start| name.starts_with(start)))
}

fn step(case: &Case, trains: &dyn Fn(&str) -> bool) -> Result<Step> {
    Ok(build_step("bench", DType::F32, |s| {
        let x = s.batch("x", DType::F32, &[&[case.batch], case.sample].concat())?;
        let labels = s.class_labels("y", &[case.batch], case.classes)?;
        let teacher = s.batch("teacher_logits", DType::F32, &[case.batch, case.classes])?;
        let params = s.params_where("student", &case.net, StateRole::Parameter, trains)?;
        let trained = params.filter(trains);
        let out = s.apply(&case.net, &[x], &params, &trained)?;
        let student = out.first()?;
        let ce = objective::find("ce")?.loss(s.cx(), &[("student_logits", student), ("labels", labels)], &[], None)?;
        let taps = [("student_logits", student), ("teacher_logits", teacher)];
        let kd = objective::find("kd")?.loss(s.cx(), &taps, &[("temperature", 4.0)], None)?;
        let loss = ce * 0.1 + kd * 0.9;
        s.loss("loss", loss);
        let group = Group { params: &trained, lr_scale: 1.0, weight_decay: 0.0 };
        s.minimise("", loss, &[group], &Sgd { momentum: 0.9, nesterov: false }, GradOptions::default())
    })?)
}

/// The step in the form that the engine runs best.
pub(crate) fn lowered(step: &Step, engine: &dyn Engine) -> Result<Step> {
    Ok(step.clone().lowered(lowering_for(engine))?)
}

/// A batch of seeded noise with labels and teacher logits.
pub(crate) fn batch(case: &Case) -> Result<TensorMap> {
    samples(case, case.batch)
}

/// So many samples of seeded noise with labels and teacher logits.
pub(crate) fn samples(case: &Case, count: usize) -> Result<TensorMap> {
    let mut stream = noise::stream(SEED, 0, "bench");
    let mut normal = |shape: Vec<usize>| {
        let values = (0..shape.iter().product()).map(|_| stream.normal() as f32).collect();
        Tensor::new(shape, values)
    };
    let mut rows = TensorMap::new();
    rows.insert("x".into(), normal([&[count], case.sample].concat())?);
    rows.insert("teacher_logits".into(), normal(vec![count, case.classes])?);
    let labels = (0..count).map(|i| (i * 7 % case.classes) as i64).collect();
    rows.insert("y".into(), Tensor::new([count], labels)?);
    Ok(rows)
}

/// An inference program at a fixed batch.
pub(crate) fn inference(net: &Net, engine: &dyn Engine, batch: usize, threads: usize) -> Result<Box<dyn Program>> {
    let model = Model::new(bound(net, batch)?.lowered(inference_form_for(engine))?.to_bytes()?);
    Ok(engine.compile(&model, &CompileOptions { threads, ..CompileOptions::default() })?)
}

/// The graph of a net at a fixed batch.
pub(crate) fn bound(net: &Net, batch: usize) -> Result<Graph> {
    let mut graph: Graph = net.graph().clone();
    graph.bind_dims(&[("batch", batch)])?;
    Ok(graph)
}
