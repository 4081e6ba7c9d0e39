//! The learner on a toy drift: it adapts with and without labels, forgets little, rolls back poison, and repeats.

mod common;

use common::{message, rows, write};
use limbeck_runtime::{
    Bundle, CompileOptions, Engine, GateOptions, Learner, LearnerOptions, Model, StateRole, TeacherKind, WeightsOrigin,
    engines, rows as score,
};
use limbeck_tensor::{Tensor, io::read_safetensors};

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
    assert_eq!(common::training().names(StateRole::Average).count(), 2);
}
