//! A small problem for the trainer.

use limbeck_distill::data::{Arrays, Dataset};
use limbeck_distill::optim::{Optimiser, Sgd};
use limbeck_distill::{Fit, GradOptions, Group, Mode, Net, Schedule, Step, Trainer, build_step, models, objective};
use limbeck_graph::Form;
use limbeck_runtime::{CompileOptions, Engine, StateRole, noise};
use limbeck_tensor::{DType, Tensor, TensorMap};

/// Without momentum.
pub(crate) const SGD: Sgd = Sgd { momentum: 0.0, nesterov: false };
/// Samples of [`data`].
pub(crate) const SAMPLES: usize = 16;

/// A perceptron of 3, 8 and 4.
pub(crate) fn net() -> Net {
    models::mlp(&[3, 8, 4], 5).unwrap()
}

/// [`SAMPLES`] samples of three numbers; the label is the largest of them, or the fourth class where all are small.
pub(crate) fn data() -> Arrays {
    samples(SAMPLES)
}

/// As [`data`], of any number.
pub(crate) fn samples(count: usize) -> Arrays {
    let mut stream = noise::stream(7, 0, "samples");
    let x: Vec<f32> = (0..3 * count).map(|_| stream.normal() as f32).collect();
    let label = |row: &[f32]| match (0..3).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() {
        best if row[best] > 0.2 => best as i64,
        _ => 3,
    };
    let y = x.chunks(3).map(label).collect();
    let mut tensors = TensorMap::new();
    tensors.insert("x".into(), Tensor::new([count, 3], x).unwrap());
    tensors.insert("y".into(), Tensor::new([count], y).unwrap());
    Arrays::new(tensors).unwrap()
}

/// Cross-entropy with the labels on batches of `batch`.
pub(crate) fn step(batch: usize, optimiser: &dyn Optimiser, options: GradOptions) -> Step {
    let net = net();
    let mut step = build_step("fit", DType::F32, |s| {
        let x = s.batch("x", DType::F32, &[batch, 3])?;
        let y = s.class_labels("y", &[batch], 4)?;
        let weight = s.batch("row_weight", DType::F32, &[batch])?;
        let params = s.params("student", &net, StateRole::Parameter)?;
        let logits = net.apply(s.cx(), &[x], &params, Mode::Training)?.first()?;
        let taps = [("student_logits", logits), ("labels", y)];
        let loss = objective::find("ce")?.loss(s.cx(), &taps, &[], Some(weight))?;
        s.loss("loss", loss);
        let group = Group { params: &params, lr_scale: 1.0, weight_decay: 0.0 };
        s.minimise("", loss, &[group], optimiser, options)
    })
    .unwrap();
    step.graph = step.graph.lowered(Form::Portable).unwrap();
    step
}

/// A trainer of seed 3 on one thread.
pub(crate) fn trainer(engine: &dyn Engine, step: &Step) -> Trainer {
    Trainer::new(engine, step, &CompileOptions { threads: 1, ..CompileOptions::default() }, 3).unwrap()
}

/// Learning rate 0.1 throughout.
pub(crate) fn plain(epochs: u64) -> Fit {
    Fit::new(epochs, 0.1, Schedule::Constant)
}

/// The student's weights.
pub(crate) fn numbers(trainer: &Trainer) -> Vec<f64> {
    trainer.weights("student").unwrap().values().flat_map(|t| t.to_f64_vec().unwrap()).collect()
}

/// Between two lists of numbers.
pub(crate) fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |worst, (a, b)| f64::max(worst, (a - b).abs()))
}

/// The samples at these places, each of weight 1.
pub(crate) fn rows(data: &Arrays, indices: &[usize]) -> TensorMap {
    let mut rows = data.batch(indices).unwrap();
    rows.insert("row_weight".into(), Tensor::new([indices.len()], vec![1f32; indices.len()]).unwrap());
    rows
}

/// All state of a trainer, bit for bit.
pub(crate) fn state(trainer: &Trainer) -> Vec<(String, Vec<u8>)> {
    let store = trainer.store();
    store.names().map(|n| (n.to_owned(), store.get(n).unwrap().bytes().to_vec())).collect()
}
