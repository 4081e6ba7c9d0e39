//! The trainer: accumulation, clipping, early stopping, the guard against numbers that are not finite, and resuming, on
//! every engine, against what follows from their definitions.

use limbeck_distill::data::{Arrays, Dataset};
use limbeck_distill::optim::{AdamW, Optimiser, Sgd};
use limbeck_distill::{
    DistillError, Fit, GradOptions, Group, Hooks, Mode, Net, Report, Schedule, Step, Trainer, build_step, models,
    objective,
};
use limbeck_graph::Form;
use limbeck_runtime::{CompileOptions, Engine, StateRole, engines, noise};
use limbeck_tensor::{DType, Tensor, TensorMap};

const SGD: Sgd = Sgd { momentum: 0.0, nesterov: false };
const SAMPLES: usize = 16;

fn net() -> Net {
    models::mlp(&[3, 8, 4], 5).unwrap()
}

/// Three numbers a sample; the label is the largest of them, or the fourth class where all are small.
fn data() -> Arrays {
    let mut stream = noise::stream(7, 0, "samples");
    let x: Vec<f32> = (0..3 * SAMPLES).map(|_| stream.normal() as f32).collect();
    let label = |row: &[f32]| match (0..3).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() {
        best if row[best] > 0.2 => best as i64,
        _ => 3,
    };
    let y = x.chunks(3).map(label).collect();
    let mut tensors = TensorMap::new();
    tensors.insert("x".into(), Tensor::new([SAMPLES, 3], x).unwrap());
    tensors.insert("y".into(), Tensor::new([SAMPLES], y).unwrap());
    Arrays::new(tensors).unwrap()
}

/// Cross-entropy with the labels on batches of `batch`.
fn step(batch: usize, optimiser: &dyn Optimiser, options: GradOptions) -> Step {
    let net = net();
    let mut step = build_step("fit", DType::F32, |s| {
        let x = s.batch("x", DType::F32, &[batch, 3])?;
        let y = s.batch("y", DType::I64, &[batch])?;
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

fn trainer(engine: &dyn Engine, step: &Step) -> Trainer {
    Trainer::new(engine, step, &CompileOptions { threads: 1, ..CompileOptions::default() }, 3).unwrap()
}

fn plain(epochs: u64) -> Fit {
    Fit::new(epochs, 0.1, Schedule::Constant)
}

fn numbers(trainer: &Trainer) -> Vec<f64> {
    trainer.weights("student").unwrap().values().flat_map(|t| t.to_f64_vec().unwrap()).collect()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |worst, (a, b)| f64::max(worst, (a - b).abs()))
}

#[test]
fn accumulated_batches_equal_one_large_batch() {
    for engine in engines() {
        let mut whole = trainer(engine, &step(SAMPLES, &SGD, GradOptions::default()));
        whole.fit(&data(), SAMPLES, &plain(3), Hooks::none()).unwrap();
        let options = GradOptions { accumulate: true, ..GradOptions::default() };
        let mut parts = trainer(engine, &step(4, &SGD, options));
        parts.fit(&data(), 4, &Fit { accumulate: 4, ..plain(3) }, Hooks::none()).unwrap();
        let start = numbers(&trainer(engine, &step(4, &SGD, GradOptions::default())));
        let difference = largest_difference(&numbers(&whole), &numbers(&parts));
        assert!(difference < 1e-6, "{}: {difference:e}", engine.name());
        assert!(largest_difference(&numbers(&whole), &start) > 1e-2, "{}: nothing was learned", engine.name());
    }
}

#[test]
fn clipping_bounds_the_length_of_a_step() {
    const LIMIT: f64 = 0.01;
    for engine in engines() {
        let options = GradOptions { clip_norm: Some(LIMIT), ..GradOptions::default() };
        let mut trainer = trainer(engine, &step(SAMPLES, &SGD, options));
        let before = numbers(&trainer);
        let mut rows = data().batch(&(0..SAMPLES).collect::<Vec<_>>()).unwrap();
        rows.insert("row_weight".into(), Tensor::new([SAMPLES], vec![1f32; SAMPLES]).unwrap());
        let report = trainer.run(&rows, &[("lr", 1.0)]).unwrap();
        assert!(report["grad_norm"] > 10.0 * LIMIT, "{report:?}");
        let moved = numbers(&trainer).iter().zip(&before).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        assert!((moved / LIMIT - 1.0).abs() < 1e-3, "{}: moved by {moved}", engine.name());
    }
}

#[test]
fn numbers_that_are_not_finite_change_nothing_and_end_training() {
    for engine in engines() {
        let mut trainer = trainer(engine, &step(4, &AdamW::default(), GradOptions::default()));
        let mut rows = data().batch(&[0, 1, 2, 3]).unwrap();
        rows.insert("row_weight".into(), Tensor::new([4], vec![1f32; 4]).unwrap());
        trainer.run(&rows, &[("lr", 0.01)]).unwrap();
        let before: Vec<_> = trainer.store().names().map(|n| trainer.store().get(n).unwrap()).collect();
        rows.insert("x".into(), Tensor::new([4, 3], vec![f32::MAX; 12]).unwrap());
        let mut end = None;
        for _ in 0..100 {
            match trainer.run(&rows, &[("lr", 0.01)]) {
                Ok(report) => assert_eq!(report["finite"], 0.0),
                Err(e) => {
                    end = Some(e);
                    break;
                }
            }
        }
        assert!(matches!(end, Some(DistillError::Diverged { .. })), "{}: {end:?}", engine.name());
        let after: Vec<_> = trainer.store().names().map(|n| trainer.store().get(n).unwrap()).collect();
        assert!(before.iter().zip(&after).all(|(a, b)| a.bytes() == b.bytes()), "{}", engine.name());
    }
}

/// Scores 1, 2, 3, 2, 2, ...: the third epoch is the best.
fn third_is_best(t: &Trainer) -> Result<f64, DistillError> {
    Ok(if t.epoch() <= 3 { t.epoch() as f64 } else { 2.0 })
}

#[test]
fn early_stopping_gives_the_best_epoch_back_even_across_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("checkpoint.safetensors");
    for engine in engines() {
        let step = step(4, &AdamW::default(), GradOptions::default());
        let fit = Fit { patience: Some(3), ..plain(20) };
        let mut best = trainer(engine, &step);
        best.fit(&data(), 4, &plain(3), Hooks::none()).unwrap();

        let mut stopped = trainer(engine, &step);
        let mut validate = third_is_best;
        // The file of the fifth epoch, two after the best.
        let mut save = |t: &Trainer, report: &Report| -> Result<(), DistillError> {
            assert_eq!(report["validation"], third_is_best(t)?);
            if t.epoch() == 5 { t.save(&file) } else { Ok(()) }
        };
        let hooks = Hooks { validate: Some(&mut validate), after_epoch: Some(&mut save), ..Hooks::none() };
        let history = stopped.fit(&data(), 4, &fit, hooks).unwrap();
        assert!(history.stopped_early && history.epochs.len() == 6, "{history:?}");
        assert_eq!(numbers(&stopped), numbers(&best), "{}", engine.name());

        let mut resumed = trainer(engine, &step);
        resumed.resume(&file).unwrap();
        let mut validate = third_is_best;
        let hooks = Hooks { validate: Some(&mut validate), ..Hooks::none() };
        let history = resumed.fit(&data(), 4, &fit, hooks).unwrap();
        assert!(history.stopped_early && history.epochs.len() == 1, "{history:?}");
        assert_eq!(numbers(&resumed), numbers(&best), "{}", engine.name());
    }
}

#[test]
fn patience_without_validation_is_refused() {
    let engine = engines()[0];
    let mut trainer = trainer(engine, &step(4, &SGD, GradOptions::default()));
    let error = trainer.fit(&data(), 4, &Fit { patience: Some(1), ..plain(2) }, Hooks::none()).unwrap_err();
    assert!(error.to_string().contains("patience"), "{error}");
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("checkpoint.safetensors");
    for engine in engines() {
        let options = GradOptions { accumulate: true, clip_norm: Some(1.0) };
        let step = step(3, &AdamW::default(), options);
        let fit = Fit { accumulate: 2, schedule: Schedule::Cosine { warmup: 0.2 }, ..plain(6) };
        let mut save = |t: &Trainer, _: &Report| if t.epoch() == 2 { t.save(&file) } else { Ok(()) };
        let mut straight = trainer(engine, &step);
        straight.fit(&data(), 3, &fit, Hooks { after_epoch: Some(&mut save), ..Hooks::none() }).unwrap();
        let mut resumed = trainer(engine, &step);
        resumed.resume(&file).unwrap();
        assert_eq!((resumed.epoch(), resumed.step()), (2, 12));
        resumed.fit(&data(), 3, &fit, Hooks::none()).unwrap();
        for name in straight.store().names() {
            let (a, b) = (straight.store().get(name).unwrap(), resumed.store().get(name).unwrap());
            assert_eq!(a.bytes(), b.bytes(), "{}: {name}", engine.name());
        }
    }
}

#[test]
fn a_checkpoint_of_another_step_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("checkpoint.safetensors");
    let engine = engines()[0];
    trainer(engine, &step(4, &SGD, GradOptions::default())).save(&file).unwrap();
    let mut other = trainer(engine, &step(4, &AdamW::default(), GradOptions::default()));
    let before = numbers(&other);
    let error = other.resume(&file).unwrap_err().to_string();
    assert!(error.contains("another step"), "{error}");
    assert_eq!(numbers(&other), before);
    assert_eq!(other.step(), 0);
}
