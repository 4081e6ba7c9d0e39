//! The trainer: clipping, early stopping, the guard against numbers that are not finite, and resuming, on
//! every engine, against what follows from their definitions.

mod common;

use common::fit::{SAMPLES, SGD, data, largest_difference, net, numbers, plain, rows, samples, state, step, trainer};
use limbeck_distill::data::{Arrays, Dataset};
use limbeck_distill::optim::{AdamW, Sgd};
use limbeck_distill::{
    DistillError, Fit, GradOptions, Group, Hooks, Mode, Report, Schedule, Step, Trainer, build_step,
};
use limbeck_graph::Form;
use limbeck_runtime::{CompileOptions, StateRole, engines};
use limbeck_tensor::{DType, Tensor, TensorMap};

#[test]
fn clipping_bounds_the_length_of_a_step() {
    const LIMIT: f64 = 0.01;
    for engine in engines() {
        let options = GradOptions { clip_norm: Some(LIMIT), ..GradOptions::default() };
        let mut trainer = trainer(engine, &step(SAMPLES, &SGD, options));
        let before = numbers(&trainer);
        let report = trainer.run(&rows(&data(), &(0..SAMPLES).collect::<Vec<_>>()), &[("lr", 1.0)]).unwrap();
        assert!(report["grad_norm"] > 10.0 * LIMIT, "{report:?}");
        let moved = numbers(&trainer).iter().zip(&before).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        assert!((moved / LIMIT - 1.0).abs() < 1e-3, "{}: moved by {moved}", engine.name());
    }
}

#[test]
fn numbers_that_are_not_finite_change_nothing_and_end_training() {
    for engine in engines() {
        let mut trainer = trainer(engine, &step(4, &AdamW::default(), GradOptions::default()));
        let mut rows = rows(&data(), &[0, 1, 2, 3]);
        trainer.run(&rows, &[("lr", 0.01)]).unwrap();
        let before = state(&trainer);
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
        assert_eq!(before, state(&trainer), "{}", engine.name());
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
        assert_eq!(state(&straight), state(&resumed), "{}", engine.name());
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

#[test]
fn other_settings_than_the_checkpoint_s_are_refused_by_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("checkpoint.safetensors");
    let engine = engines()[0];
    let accumulating = GradOptions { accumulate: true, ..GradOptions::default() };
    let step_4 = step(4, &SGD, accumulating);
    let mut first = trainer(engine, &step_4);
    let mut save = |t: &Trainer, _: &Report| if t.epoch() == 1 { t.save(&file) } else { Ok(()) };
    first.fit(&data(), 4, &plain(2), Hooks { after_epoch: Some(&mut save), ..Hooks::none() }).unwrap();
    let resumed = || {
        let mut t = trainer(engine, &step_4);
        t.resume(&file).unwrap();
        t
    };
    let refused = |data: &Arrays, fit: &Fit| match resumed().fit(data, 4, fit, Hooks::none()) {
        Err(DistillError::Resume { key, .. }) => key,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&data(), &plain(3)), "epochs");
    assert_eq!(refused(&data(), &Fit { lr: 0.2, ..plain(2) }), "lr");
    assert_eq!(refused(&data(), &Fit { accumulate: 2, ..plain(2) }), "accumulate");
    assert_eq!(refused(&data(), &Fit { schedule: Schedule::Cosine { warmup: 0.1 }, ..plain(2) }), "schedule");
    assert_eq!(refused(&data(), &Fit { scalars: vec![("lr".into(), 0.1)], ..plain(2) }), "scalars.lr");
    assert_eq!(refused(&samples(8), &plain(2)), "samples");
    let mut other = trainer(engine, &step_4);
    let at_start = state(&other);
    other.resume(&file).unwrap();
    assert_ne!(state(&other), at_start);
    other.fit(&data(), 4, &plain(2), Hooks::none()).unwrap();
    assert_eq!(state(&other), state(&first));
    // Another seed, and a step of the same state that clips.
    let mut seeded = Trainer::new(engine, &step_4, &CompileOptions::default(), 4).unwrap();
    let error = seeded.resume(&file).unwrap_err();
    assert!(matches!(&error, DistillError::Resume { key, .. } if key == "seed"), "{error}");
    let mut clipped = trainer(engine, &step(4, &SGD, GradOptions { clip_norm: Some(1.0), ..accumulating }));
    let error = clipped.resume(&file).unwrap_err();
    assert!(matches!(&error, DistillError::Resume { key, .. } if key == "step"), "{error}");
    assert_eq!((state(&clipped), clipped.step()), (at_start, 0));
}

#[test]
fn a_learning_rate_that_is_not_finite_changes_nothing() {
    for engine in engines() {
        for optimiser in [&SGD as &dyn limbeck_distill::optim::Optimiser, &AdamW::default()] {
            let mut trainer = trainer(engine, &step(4, optimiser, GradOptions::default()));
            let before = state(&trainer);
            for lr in [f64::INFINITY, f64::NAN] {
                let report = trainer.run(&rows(&data(), &[0, 1, 2, 3]), &[("lr", lr)]).unwrap();
                assert_eq!(report["finite"], 0.0);
                assert_eq!(state(&trainer), before, "{}: {lr}", engine.name());
            }
        }
    }
}

/// Two optimiser calls, on a student and on a critic.
fn two_rates() -> Step {
    let net = net();
    let mut step = build_step("two", DType::F32, |s| {
        let x = s.batch("x", DType::F32, &[4, 3])?;
        s.batch("row_weight", DType::F32, &[4])?;
        for (label, set) in [("", "student"), ("critic", "critic")] {
            let params = s.params(set, &net, StateRole::Parameter)?;
            let loss = net.apply(s.cx(), &[x], &params, Mode::Training)?.first()?.square().mean(&[]);
            s.loss(&format!("loss_{set}"), loss);
            let group = Group { params: &params, lr_scale: 1.0, weight_decay: 0.0 };
            s.minimise(label, loss, &[group], &SGD, GradOptions::default())?;
        }
        Ok(())
    })
    .unwrap();
    step.graph = step.graph.lowered(Form::Portable).unwrap();
    step
}

#[test]
fn every_learning_rate_is_fed_and_can_have_a_peak_of_its_own() {
    let engine = engines()[0];
    let weights = |t: &Trainer, set: &str| -> Vec<f64> {
        t.weights(set).unwrap().values().flat_map(|t| t.to_f64_vec().unwrap()).collect()
    };
    let mut same = trainer(engine, &two_rates());
    same.fit(&data(), 4, &plain(1), Hooks::none()).unwrap();
    assert_eq!(weights(&same, "student"), weights(&same, "critic"));
    assert!(largest_difference(&weights(&same, "critic"), &numbers(&trainer(engine, &two_rates()))) > 1e-3);
    let mut apart = trainer(engine, &two_rates());
    apart.fit(&data(), 4, &Fit { scalars: vec![("lr_critic".into(), 0.0)], ..plain(1) }, Hooks::none()).unwrap();
    assert_eq!(weights(&apart, "student"), weights(&same, "student"));
    assert_eq!(weights(&apart, "critic"), numbers(&trainer(engine, &two_rates())));
}

#[test]
fn scalars_that_are_unknown_or_missing_are_named() {
    let mut t = trainer(engines()[0], &two_rates());
    let batch = rows(&data(), &[0, 1, 2, 3]);
    let message = |r: Result<Report, DistillError>| r.unwrap_err().to_string();
    let unknown = message(t.run(&batch, &[("lr", 0.1), ("lr_critic", 0.1), ("temprature", 2.0)]));
    assert!(unknown.contains("'temprature'") && unknown.contains("lr_critic"), "{unknown}");
    assert!(message(t.run(&batch, &[("lr", 0.1)])).contains("'lr_critic' has no default"));
    let fit = Fit { scalars: vec![("temprature".into(), 2.0)], ..plain(1) };
    assert!(t.fit(&data(), 4, &fit, Hooks::none()).unwrap_err().to_string().contains("'temprature'"));
}

#[test]
fn labels_out_of_range_name_field_sample_and_value() {
    let mut tensors = data().tensors().clone();
    let mut labels = tensors["y"].to_vec::<i64>().unwrap();
    labels[7] = 4;
    tensors.insert("y".into(), Tensor::new([SAMPLES], labels).unwrap());
    let mut t = trainer(engines()[0], &step(4, &SGD, GradOptions::default()));
    let error = t.fit(&Arrays::new(tensors).unwrap(), 4, &plain(1), Hooks::none()).unwrap_err().to_string();
    assert!(["data y", "sample 7", "label 4", "0..4"].iter().all(|part| error.contains(part)), "{error}");
}

#[test]
fn what_a_fit_needs_of_its_step_is_checked() {
    let engine = engines()[0];
    let message = |step: &Step, samples: &Arrays, fit: &Fit| {
        trainer(engine, step).fit(samples, 4, fit, Hooks::none()).unwrap_err().to_string()
    };
    let plain_step = step(4, &SGD, GradOptions::default());
    assert!(message(&plain_step, &data(), &Fit { accumulate: 2, ..plain(1) }).contains("GradOptions::accumulate"));
    assert!(message(&plain_step, &data(), &Fit { accumulate: 0, ..plain(1) }).contains("accumulate = 0"));
    let unweighted = build_step("unweighted", DType::F32, |s| {
        let x = s.batch("x", DType::F32, &[4, 3])?;
        s.loss("loss", x.mean(&[]));
        Ok(())
    });
    assert!(message(&unweighted.unwrap(), &samples(10), &plain(1)).contains("'row_weight'"));
}

#[test]
fn limits_that_let_no_gradient_through_are_refused() {
    for limit in [0.0, -1.0, f64::NAN] {
        let built = build_step("clipped", DType::F32, |s| {
            let net = net();
            let params = s.params("student", &net, StateRole::Parameter)?;
            let x = s.batch("x", DType::F32, &[4, 3])?;
            let loss = net.apply(s.cx(), &[x], &params, Mode::Training)?.first()?.square().mean(&[]);
            let group = Group { params: &params, lr_scale: 1.0, weight_decay: 0.0 };
            s.minimise(
                "",
                loss,
                &[group],
                &Sgd { momentum: 0.9, nesterov: false },
                GradOptions { clip_norm: Some(limit), accumulate: false },
            )
        });
        let error = built.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("clip_norm"), "{error}");
    }
}

/// Drops the sample at place 3 to infinity, so that its run is not finite.
struct OneBad(Arrays);

impl Dataset for OneBad {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn batch(&self, indices: &[usize]) -> Result<TensorMap, DistillError> {
        let mut rows = self.0.batch(indices)?;
        if indices.contains(&3) {
            rows.insert("x".into(), Tensor::new([indices.len(), 3], vec![f32::INFINITY; 3 * indices.len()])?);
        }
        Ok(rows)
    }
}

#[test]
fn means_of_an_epoch_weigh_samples_and_leave_out_runs_that_are_not_finite() {
    for engine in engines() {
        // At learning rate 0 the mean over an epoch is that of all samples at the first weights.
        let fit = Fit { lr: 0.0, ..plain(1) };
        let one = |data: &dyn Dataset, batch: usize| {
            let mut t = trainer(engine, &step(batch, &SGD, GradOptions::default()));
            t.fit(data, batch, &fit, Hooks::none()).unwrap().epochs.remove(0)
        };
        let (whole, parts) = (one(&samples(10), 10), one(&samples(10), 4));
        assert!((whole["loss"] - parts["loss"]).abs() < 1e-6, "{}: {whole:?} {parts:?}", engine.name());
        let bad = one(&OneBad(samples(10)), 4);
        assert!(bad["loss"].is_finite() && (bad["finite"] - 2.0 / 3.0).abs() < 1e-9, "{}: {bad:?}", engine.name());
    }
}
