//! Gradients collected over several runs, and averages of weights, on every engine, against one large batch and against
//! closed forms.

mod common;

use common::fit::{SAMPLES, SGD, data, largest_difference, numbers, plain, rows, samples, state, step, trainer};
use common::machine::machines;
use limbeck_distill::optim::AdamW;
use limbeck_distill::{Fit, GradOptions, Group, Hooks, ParamSet, Trainer, build_step};
use limbeck_runtime::{StateRole, engines};
use limbeck_tensor::{DType, Tensor, TensorMap};
use std::collections::BTreeMap;

const ACCUMULATE: GradOptions = GradOptions { clip_norm: None, accumulate: true };

#[test]
fn accumulated_batches_equal_one_large_batch() {
    // The last of 10 samples in fours fill half a batch.
    for count in [SAMPLES, 10] {
        for engine in engines() {
            let mut whole = trainer(engine, &step(count, &SGD, GradOptions::default()));
            whole.fit(&samples(count), count, &plain(3), Hooks::none()).unwrap();
            let mut parts = trainer(engine, &step(4, &SGD, ACCUMULATE));
            let fit = Fit { accumulate: count.div_ceil(4) as u64, ..plain(3) };
            parts.fit(&samples(count), 4, &fit, Hooks::none()).unwrap();
            let start = numbers(&trainer(engine, &step(4, &SGD, ACCUMULATE)));
            let difference = largest_difference(&numbers(&whole), &numbers(&parts));
            assert!(difference < 1e-6, "{}: {difference:e}", engine.name());
            assert!(largest_difference(&numbers(&whole), &start) > 1e-2, "{}: nothing was learned", engine.name());
        }
    }
}

/// Runs with the sample 0 infinite.
fn bad() -> TensorMap {
    let mut bad = rows(&data(), &[0, 1, 2, 3]);
    bad.insert("x".into(), Tensor::new([4, 3], vec![f32::INFINITY; 12]).unwrap());
    bad
}

fn run(t: &mut Trainer, batch: &TensorMap, apply: bool) {
    t.run(batch, &[("lr", 0.1), ("apply", f64::from(u8::from(apply)))]).unwrap();
}

#[test]
fn a_run_that_is_not_finite_does_not_count() {
    let (a, b) = (rows(&data(), &[0, 1, 2, 3]), rows(&data(), &[4, 5, 6, 7]));
    for engine in engines() {
        for optimiser in [&SGD as &dyn limbeck_distill::optim::Optimiser, &AdamW::default()] {
            let fresh = || trainer(engine, &step(4, optimiser, ACCUMULATE));
            let mut clean = fresh();
            run(&mut clean, &a, false);
            run(&mut clean, &b, true);
            let mut disturbed = fresh();
            run(&mut disturbed, &a, false);
            run(&mut disturbed, &bad(), false);
            run(&mut disturbed, &b, true);
            assert_eq!(state(&clean), state(&disturbed), "{}", engine.name());
            // At the end of a collection it takes the update and the sums with it.
            let mut emptied = fresh();
            run(&mut emptied, &b, false);
            run(&mut emptied, &bad(), true);
            assert_eq!(state(&emptied), state(&fresh()), "{}", engine.name());
            run(&mut emptied, &a, false);
            run(&mut emptied, &b, true);
            assert_eq!(state(&clean), state(&emptied), "{}", engine.name());
        }
    }
}

#[test]
fn an_average_follows_what_the_store_holds() {
    // The gradient of a w is a; w moves only where `apply` holds, and the order of the calls does not matter.
    let (start, slope, lr, decay) = (1.0, 0.5, 0.25, 0.5);
    for early in [true, false] {
        for mut machine in machines() {
            let float = machine.float;
            let step = build_step("average", float, |s| {
                let set = |name: &str, role| {
                    let w = s.state(&format!("{name}/w"), common::floats(float, &[1], &[start]), role)?;
                    Ok::<_, limbeck_distill::DistillError>(ParamSet::new(name, BTreeMap::from([("w".to_owned(), w)])))
                };
                let (params, average) = (set("student", StateRole::Parameter)?, set("ema", StateRole::Average)?);
                let w = params.get("w").expect("declared above");
                let decay = s.scalar("decay", decay)?;
                if early {
                    s.average(&average, &params, decay)?;
                }
                let loss = (w * slope).sum(&[]);
                s.loss("loss", loss);
                let group = Group { params: &params, lr_scale: 1.0, weight_decay: 0.0 };
                s.minimise("", loss, &[group], &SGD, ACCUMULATE)?;
                if early { Ok(()) } else { s.average(&average, &params, decay) }
            });
            let loaded = machine.load(step.unwrap());
            let number = |v: f64| Tensor::from_f64(float, [], &[v]).unwrap();
            let (mut w, mut a) = (start, start);
            for apply in [false, true, false, true] {
                let apply_number = f64::from(u8::from(apply));
                let feeds = TensorMap::from([("apply".into(), number(apply_number)), ("decay".into(), number(decay))]);
                machine.run(&loaded, feeds, lr);
                w -= apply_number * lr * slope;
                a = decay * a + (1.0 - decay) * w;
                assert_eq!(machine.get("student/w").to_f64_vec().unwrap(), [w], "{}", machine.name);
                assert_eq!(machine.get("ema/w").to_f64_vec().unwrap(), [a], "{}", machine.name);
            }
        }
    }
}

#[test]
fn what_is_collected_is_state_of_the_optimiser() {
    let step = step(4, &SGD, ACCUMULATE);
    let sums: Vec<&str> = step.manifest.names(StateRole::Optimiser).collect();
    assert!(sums.contains(&"accumulated.weight") && sums.len() == 5, "{sums:?}");
    assert_eq!(step.initial["accumulated.weight"].dtype(), DType::F32);
}
