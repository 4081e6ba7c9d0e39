//! Sessions: padding, warm-up, memory of streaming models, weights and programs that are replaced while requests run.

mod common;

use common::{message, write};
use limbeck_runtime::{CompileOptions, Engine, Model, Session, StatePair, StateStore, engines, rows};
use limbeck_tensor::{DType, Tensor, TensorMap};
use std::sync::atomic::{AtomicBool, Ordering};

/// Student weights that are all `value`.
fn all(value: f32) -> TensorMap {
    let of = |shape: &[usize]| Tensor::new(shape, vec![value; shape.iter().product()]).unwrap();
    TensorMap::from([("student/w".into(), of(&[2, 3])), ("student/b".into(), of(&[3]))])
}

#[test]
fn a_session_pads_warms_up_and_takes_new_weights_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = write(dir.path(), true);
    let (w, b) = common::circle(4.0);
    for engine in engines() {
        let session = bundle.session(engine, &CompileOptions { threads: 1, ..Default::default() }).unwrap();
        session.warm_up().unwrap();
        for n in [1, 8, 19] {
            let (x, _) = common::rows(n, 10.0, n as u64);
            let got = session.predict(&[("x", &x)]).unwrap()["logits"].to_f64_vec().unwrap();
            let want = common::logits(&x, &w, &b).to_f64_vec().unwrap();
            assert_eq!(got.len(), want.len());
            assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-5), "{n} rows");
        }
        assert!(message(session.predict(&[("x", &Tensor::zeros(DType::F32, [0, 2]).unwrap())])).contains("x"));
        assert!(message(session.run(&[])).contains("x"));

        // Every answer is of the one or the other weights, never of both: all weights are 1, or all are 2.
        let (ones, done) = (Tensor::new([8, 2], vec![1f32; 16]).unwrap(), AtomicBool::new(false));
        let mut stores = [session.store(), session.store()];
        for (store, value) in stores.iter_mut().zip([1.0, 2.0]) {
            all(value).iter().for_each(|(name, t)| store.insert(name.clone(), t).unwrap());
        }
        session.adopt(&stores[0]).unwrap();
        std::thread::scope(|scope| {
            let asking = || {
                let mut seen = [0u32; 2];
                while !done.load(Ordering::Relaxed) || seen == [0; 2] {
                    let z = session.run(&[("x", &ones)]).unwrap()["logits"].to_vec::<f32>().unwrap();
                    let value = z[0] / 3.0;
                    assert!((value == 1.0 || value == 2.0) && z.iter().all(|v| *v == z[0]), "{z:?}");
                    seen[value as usize - 1] += 1;
                }
            };
            let threads = [scope.spawn(asking), scope.spawn(asking)];
            for i in 0..200 {
                session.adopt(&stores[i % 2]).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            threads.into_iter().for_each(|t| t.join().unwrap());
        });
        assert!(message(session.adopt(&engine.new_store())).contains("student/"));
    }
}

/// A model with memory: w' = w + 1; y = w'[index].
fn counting(engine: &dyn Engine) -> Session {
    let pair = StatePair { name: "memory".into(), input: "w".into(), output: "w1".into() };
    let bytes = std::fs::read(common::folder().join("gather.onnx")).unwrap();
    let model = Model { state: vec![pair], ..Model::new(bytes) };
    let zeros = TensorMap::from([("memory".into(), Tensor::new([4], vec![0f32; 4]).unwrap())]);
    Session::new(engine, &model, &zeros, &CompileOptions { threads: 1, ..Default::default() }).unwrap()
}

#[test]
fn memory_goes_with_a_swap_to_another_engine() {
    let index = Tensor::new([2], vec![0i64, 1]).unwrap();
    for from in engines() {
        for to in engines() {
            let (session, other) = (counting(from), counting(to));
            let next = || session.run(&[("index", &index)]).unwrap()["y"].to_vec::<f32>().unwrap()[0];
            assert_eq!([next(), next()], [1.0, 2.0]);
            session.swap(other.program(), other.store()).unwrap();
            assert_eq!([next(), next()], [3.0, 4.0], "{} to {}", from.name(), to.name());
            session.reset();
            assert_eq!(next(), 1.0);
        }
    }
}

#[test]
fn weights_and_programs_are_replaced_together() {
    // Whatever the order in which two threads replace them, what serves belongs together and no swap is lost.
    let dir = tempfile::tempdir().unwrap();
    let bundle = write(dir.path(), true);
    let opened: Vec<Session> =
        engines().into_iter().map(|e| bundle.session(e, &CompileOptions::default()).unwrap()).collect();
    let (session, done) = (bundle.session(engines()[0], &CompileOptions::default()).unwrap(), AtomicBool::new(false));
    let stores: Vec<StateStore> = opened.iter().map(Session::store).collect();
    let x = common::rows(8, 0.0, 1).0;
    std::thread::scope(|scope| {
        let adopting = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // Refused while the other engine serves.
                stores.iter().for_each(|store| drop(session.adopt(store)));
            }
        });
        let lost = (0..2000).find(|i| {
            let next = &opened[i % opened.len()];
            let swapped = session.swap(next.program(), next.store()).and_then(|()| session.run(&[("x", &x)]));
            swapped.is_err() || session.program().engine() != next.program().engine()
        });
        done.store(true, Ordering::Relaxed);
        adopting.join().unwrap();
        assert_eq!(lost, None, "this swap failed or was undone");
    });
}

#[test]
fn nothing_is_allocated_for_a_batch_that_only_a_file_declares() {
    let model = Model::new(std::fs::read(common::folder().join("huge.onnx")).unwrap());
    for engine in engines() {
        let made = Session::new(engine, &model, &TensorMap::new(), &CompileOptions::default());
        let error = message(made);
        assert!(error.contains("input `x`") && error.contains("smaller batch"), "{}: {error}", engine.name());
    }
}

#[test]
fn a_model_with_memory_keeps_it_between_calls() {
    for engine in engines() {
        let session = counting(engine);
        let index = Tensor::new([2], vec![0i64, 1]).unwrap();
        let next = || session.run(&[("index", &index)]).unwrap()["y"].to_vec::<f32>().unwrap()[0];
        session.warm_up().unwrap();
        assert_eq!([next(), next(), next()], [1.0, 2.0, 3.0]);
        session.reset();
        assert_eq!(next(), 1.0);
        assert!(message(session.predict(&[("index", &index)])).contains("memory"));
    }
    assert_eq!(rows::argmax(&[1.0, 3.0, 3.0]), 1);
}
