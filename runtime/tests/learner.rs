//! The learner on a toy drift: it adapts with and without labels, forgets little, rolls back poison, and repeats.

mod common;

use common::{changed, message, rows, with_step, write};
use limbeck_runtime::{
    Bundle, CompileOptions, Distribution, Engine, FileEntry, Form, GateOptions, Learner, LearnerOptions, Model,
    NoiseEntry, ScalarEntry, StepManifest, StepVariant, TeacherKind, WeightsOrigin, engines, rows as score,
};
use limbeck_tensor::{Tensor, io::read_safetensors};
use std::collections::BTreeMap;

fn options() -> LearnerOptions {
    LearnerOptions {
        compile: CompileOptions { threads: 1, ..Default::default() },
        lr: 0.5,
        steps: 4,
        window: 48,
        gate: Some(GateOptions { max_drop: 0.05, max_total_drop: 0.1 }),
        seed: 3,
        ..Default::default()
    }
}

fn accuracy(learner: &Learner, x: &Tensor, y: &Tensor) -> f64 {
    let z = learner.session().predict(&[("x", x)]).unwrap();
    score::accuracy(&z["logits"], &y.to_i64_vec().unwrap()).unwrap()
}

/// Feeds 40 batches of 12 that turn from 0 to 52 degrees.
fn drift(learner: &mut Learner, labelled: bool) {
    for t in 0..40 {
        let (x, y) = rows(12, 52.0 * f64::from(t) / 39.0, 100 + t as u64);
        learner.observe(&x, labelled.then_some(&y)).unwrap();
        assert_eq!(learner.learn().unwrap().steps, 4);
    }
}

fn learner(bundle: Bundle, engine: &dyn Engine, options: LearnerOptions) -> Learner {
    Learner::new(bundle, engine, options).unwrap()
}

#[test]
fn one_step_is_torchs() {
    let e = read_safetensors(&common::folder().join("classifier.safetensors")).unwrap();
    let bytes = std::fs::read(common::folder().join("classifier_step.onnx")).unwrap();
    let model: Model = common::training().model(bytes.into());
    for engine in engines() {
        let program = engine.compile(&model, &CompileOptions::default()).unwrap();
        let mut store = engine.new_store();
        for (name, key) in [("student/w", "w"), ("student/b", "b"), ("ema/w", "ema_w"), ("ema/b", "ema_b")] {
            store.insert(name, &e[key].aligned()).unwrap();
        }
        let names = ["x", "y", "row_weight", "replay_x", "replay_logits", "lr"];
        let fed: Vec<(&str, Tensor)> = names.iter().map(|name| (*name, e[*name].aligned())).collect();
        let fed: Vec<(&str, &Tensor)> = fed.iter().map(|(name, t)| (*name, t)).collect();
        let loss = program.run(&mut store, &fed).unwrap()["loss"].to_f64_vec().unwrap()[0];
        assert!((loss - e["loss"].to_f64_vec().unwrap()[0]).abs() < 1e-6);
        for (name, key) in [("student/w", "w"), ("student/b", "b"), ("ema/w", "ema_w"), ("ema/b", "ema_b")] {
            let got = store.get(name).unwrap().to_f64_vec().unwrap();
            let want = e[&format!("{key}_next")].to_f64_vec().unwrap();
            assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 2e-6), "{name}: {got:?} {want:?}");
        }
    }
}

#[test]
fn it_follows_a_drift_and_forgets_little() {
    for engine in engines() {
        for labelled in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let mut learner = learner(write(dir.path(), labelled), engine, options());
            let ((new, new_y), (old, old_y)) = (rows(300, 52.0, 7), rows(300, 0.0, 8));
            let frozen = accuracy(&learner, &new, &new_y);
            drift(&mut learner, labelled);
            assert_eq!(accuracy(&learner, &new, &new_y), frozen, "a candidate serves before its gate");
            let verdict = learner.gate().unwrap();
            assert!(verdict.promoted && verdict.rows == 240, "{verdict:?}");
            let (now, kept) = (accuracy(&learner, &new, &new_y), accuracy(&learner, &old, &old_y));
            assert!(frozen < 0.85, "the drift is too weak to show anything: {frozen}");
            assert!(now > frozen + 0.1 && kept > 0.93, "labels {labelled}: {frozen} -> {now}, old {kept}");
        }
    }
}

#[test]
fn poison_is_rolled_back() {
    let dir = tempfile::tempdir().unwrap();
    for engine in engines() {
        let mut learner = learner(write(dir.path(), true), engine, options());
        let (x, y) = rows(48, 0.0, 9);
        learner.observe(&x, Some(&y)).unwrap();
        learner.learn().unwrap();
        assert!(learner.gate().unwrap().promoted);
        let before = learner.session().store().get("student/w").unwrap();
        let wrong = Tensor::new([48], y.to_i64_vec().unwrap().iter().map(|c| (c + 1) % 3).collect::<Vec<_>>()).unwrap();
        learner.observe(&x, Some(&wrong)).unwrap();
        for _ in 0..20 {
            learner.learn().unwrap();
        }
        let verdict = learner.gate().unwrap();
        assert!(!verdict.promoted && verdict.after < verdict.before - 0.1, "{verdict:?}");
        assert_eq!(learner.session().store().get("student/w").unwrap(), before);
        assert!(message(learner.learn()).contains("rolled back"), "the poison is still in the window");
        // What was promoted before is not lost, and the poison's hash is not in the ledger.
        let line = learner.commit().unwrap().unwrap();
        assert_eq!((line.data.len(), line.runs), (1, 4));
        assert!(learner.commit().unwrap().is_none(), "nothing new to commit");
    }
}

#[test]
fn what_is_committed_opens_again_and_runs_repeat() {
    for engine in engines() {
        let run = || {
            let dir = tempfile::tempdir().unwrap();
            let mut learner = learner(write(dir.path(), true), engine, options());
            drift(&mut learner, false);
            learner.gate().unwrap();
            let line = learner.commit().unwrap().unwrap();
            assert_eq!((line.sequence, line.data.len()), (1, 40));
            let bundle = Bundle::open(dir.path()).unwrap();
            assert_eq!(bundle.report().origin, WeightsOrigin::Slot { slot: "a".into(), sequence: 1 });
            let session = bundle.session(engine, &CompileOptions { threads: 1, ..Default::default() }).unwrap();
            let (x, _) = rows(30, 45.0, 7);
            let (a, b) = (session.predict(&[("x", &x)]).unwrap(), learner.session().predict(&[("x", &x)]).unwrap());
            assert_eq!(a, b);
            // The average and all else goes on where it was.
            let again = Learner::new(bundle, engine, options()).unwrap();
            assert_eq!(again.session().store().get("ema/w").unwrap(), learner.session().store().get("ema/w").unwrap());
            line.weights
        };
        assert_eq!(run(), run(), "the same seed and data give the same weights");
    }
}

#[test]
fn it_pauses_between_steps_and_remembers_within_its_budget() {
    let dir = tempfile::tempdir().unwrap();
    for engine in engines() {
        let small = LearnerOptions { remember: true, replay_bytes: 70 * 28, ..options() };
        let mut learner = learner(write(dir.path(), true), engine, small);
        let (x, y) = rows(30, 20.0, 9);
        assert!(message(learner.step()).contains("observed"));
        let said = learner.observe(&x, Some(&y)).unwrap();
        assert_eq!(said.shape(), [30, 3]);
        assert_eq!(learner.learn_while(|done| done < 2).unwrap().steps, 2);
        assert_eq!(learner.position(), 2);
        let replay = learner.replay().unwrap();
        assert_eq!((replay.len(), replay.bytes(), replay.seen()), (70, 70 * 28, 90));
    }
}

#[test]
fn the_frozen_teacher_keeps_its_opinion() {
    let dir = tempfile::tempdir().unwrap();
    for engine in engines() {
        let new = rows(300, 52.0, 7);
        let end = |teacher| {
            let mut learner = learner(write(dir.path(), true), engine, LearnerOptions { teacher, ..options() });
            drift(&mut learner, false);
            learner.gate().unwrap();
            accuracy(&learner, &new.0, &new.1)
        };
        assert!(end(TeacherKind::Ema) > end(TeacherKind::Frozen) + 0.05);
    }
}

#[test]
fn what_cannot_be_done_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = write(dir.path(), true);
    for engine in engines() {
        let with = |options: LearnerOptions| message(Learner::new(bundle.clone(), engine, options));
        assert!(with(LearnerOptions { step: Some("other".into()), ..options() }).contains("adapt (portable)"));
        assert!(with(LearnerOptions { max_bytes: Some(100), ..options() }).contains("4096"));
        assert!(with(LearnerOptions { replay_bytes: 10, ..options() }).contains("budget"));
        let mut learner = learner(bundle.clone(), engine, options());
        let (x, _) = rows(4, 0.0, 1);
        let labels = |v: Vec<i64>| Tensor::new([v.len()], v).unwrap();
        assert!(message(learner.observe(&x, Some(&labels(vec![0, 1, 2])))).contains("3, for 4 rows"));
        assert!(message(learner.observe(&x, Some(&labels(vec![0, 1, 2, 3])))).contains("3 is not a class"));
        let nan = Tensor::new([1, 2], vec![f32::NAN, 0.0]).unwrap();
        assert!(message(learner.observe(&nan, None)).contains("finite"));
        assert!(message(learner.observe(&Tensor::new([1, 3], vec![0f32; 3]).unwrap(), None)).contains("`x`"));
    }
}

#[test]
fn a_step_whose_manifest_and_model_disagree_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write(root, true);
    let noise =
        |shape: &[usize]| NoiseEntry { name: "z".into(), shape: shape.to_vec(), distribution: Distribution::Uniform };
    for engine in engines() {
        let said = |change: &dyn Fn(&mut StepManifest)| {
            let mut step = common::training();
            change(&mut step);
            message(Learner::new(with_step(root, &step), engine, options()))
        };
        for (error, what) in [
            (said(&|m| m.batch.truncate(4)), "takes `replay_logits`, which its manifest does not list"),
            (said(&|m| m.scalars.clear()), "takes `lr`, which its manifest does not list"),
            (said(&|m| m.noise.push(noise(&[2]))), "lists `z`, which its model does not take"),
            (said(&|m| m.noise.push(noise(&[1 << 40]))), "lists `z`"),
            (said(&|m| m.batch[1].dtype = "float32".into()), "`y` is float32 [16], its model int64 [16]"),
            (said(&|m| (0..3).for_each(|i| m.batch[i].shape[0] = 1 << 40)), "`x` is float32 [1099511627776, 2]"),
            (said(&|m| m.batch[4].shape = vec![16, 4]), "`replay_logits` is float32 [16, 4]"),
            (said(&|m| m.scalars.push(ScalarEntry { name: "x".into(), default: 0.0 })), "`x` is a number []"),
            (said(&|m| m.scalars.push(m.scalars[0].clone())), "`lr` twice"),
            (
                said(&|m| m.scalars.push(ScalarEntry { name: "lr_head".into(), default: 0.0 })),
                "learning rate `lr_head`",
            ),
        ] {
            assert!(error.contains(what), "{}: {error}", engine.name());
        }
        let unknown = BTreeMap::from([("temperature".to_owned(), 1.0)]);
        let bundle = with_step(root, &common::training());
        let error = message(Learner::new(bundle, engine, LearnerOptions { scalars: unknown, ..options() }));
        assert!(error.contains("no scalar `temperature`") && error.contains("lr"), "{error}");
    }
}

#[test]
fn the_first_form_that_the_engine_has_is_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write(root, true);
    std::fs::copy(root.join("step.onnx"), root.join("fused.onnx")).unwrap();
    std::fs::copy(root.join("step.json"), root.join("fused.json")).unwrap();
    let bundle = changed(root, |m| {
        let of = |file| FileEntry::of(root, file).unwrap();
        let (onnx, manifest) = (of("fused.onnx"), of("fused.json"));
        m.steps
            .insert(0, StepVariant { form: Form::Fused, onnx, manifest, predicted_bytes: 8192, ..m.steps[0].clone() });
    });
    for engine in engines() {
        let fused = engine.forms().contains(&Form::Fused);
        let chosen = |o: LearnerOptions| learner(bundle.clone(), engine, o).step_name().to_owned();
        assert_eq!(chosen(options()), if fused { "adapt (fused)" } else { "adapt (portable)" });
        assert_eq!(chosen(LearnerOptions { max_bytes: Some(5000), ..options() }), "adapt (portable)");
        assert_eq!(chosen(LearnerOptions { form: Some(Form::Portable), ..options() }), "adapt (portable)");
        if !fused {
            let error =
                message(Learner::new(bundle.clone(), engine, LearnerOptions { form: Some(Form::Fused), ..options() }));
            assert!(error.contains("adapt (fused)") && error.contains("portable form"), "{error}");
        }
    }
}

#[test]
fn a_candidate_with_any_value_that_is_not_finite_is_rolled_back() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write(root, true);
    // The model does not serve with the average, but a commit would keep it.
    let path = root.join("state.safetensors");
    let mut state = read_safetensors(&path).unwrap();
    state.insert("ema/b".into(), Tensor::new([3], vec![f32::NAN; 3]).unwrap());
    limbeck_tensor::io::write_safetensors(&path, &state).unwrap();
    let bundle = changed(root, |m| m.state = FileEntry::of(root, "state.safetensors").unwrap());
    for engine in engines() {
        let frozen = LearnerOptions { teacher: TeacherKind::Frozen, ..options() };
        let mut learner = learner(bundle.clone(), engine, frozen);
        let (x, y) = rows(48, 0.0, 9);
        learner.observe(&x, Some(&y)).unwrap();
        learner.learn().unwrap();
        assert!(!learner.gate().unwrap().promoted);
        assert!(learner.commit().unwrap().is_none());
    }
}

#[test]
fn skipped_steps_are_forgotten_with_the_candidate() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write(root, true);
    std::fs::copy(common::folder().join("skipping_step.onnx"), root.join("step.onnx")).unwrap();
    changed(root, |m| m.steps[0].onnx = FileEntry::of(root, "step.onnx").unwrap());
    let mut step = common::training();
    step.batch.truncate(1);
    step.state.truncate(2);
    step.metrics.push("finite".into());
    let bundle = with_step(root, &step);
    for engine in engines() {
        let never = GateOptions { max_drop: -1.0, max_total_drop: 0.0 };
        let o = LearnerOptions { teacher: TeacherKind::Frozen, gate: Some(never), steps: 15, ..options() };
        let mut learner = learner(bundle.clone(), engine, o);
        for _ in 0..2 {
            learner.observe(&rows(16, 0.0, 9).0, None).unwrap();
            assert_eq!(learner.learn().unwrap().skipped, 15);
            assert!(!learner.gate().unwrap().promoted);
        }
        learner.observe(&rows(16, 0.0, 9).0, None).unwrap();
        learner.learn().unwrap();
        assert!(message(learner.learn()).contains("20 steps in a row"));
    }
}
