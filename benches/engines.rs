//! Inference of one sample, a train step, and the whole trainer loop (shuffling and gathering of rows, step, means) over a
//! data set, for each net, engine and thread count.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use limbeck::distill::data::Arrays;
use limbeck::distill::{Fit, Hooks, Schedule, Trainer};
use limbeck::runtime::{CompileOptions, engines};
use std::time::Duration;

/// Batches of an epoch of the trainer loop.
const BATCHES: usize = 8;

fn inference(criterion: &mut Criterion) {
    for case in common::cases().unwrap() {
        let mut group = criterion.benchmark_group(format!("inference/{}", case.name));
        let x = common::batch(&case).unwrap()["x"].rows(0..1).unwrap().aligned();
        for engine in engines() {
            for threads in [1, 2] {
                let program = common::inference(&case.net, engine, 1, threads).unwrap();
                group.bench_function(BenchmarkId::new(engine.name(), threads), |b| {
                    b.iter(|| program.infer(&[("x", &x)]).unwrap());
                });
            }
        }
    }
}

fn train_step(criterion: &mut Criterion) {
    for case in common::cases().unwrap() {
        let mut group = criterion.benchmark_group(format!("train_step/{}", case.name));
        let step = common::train_step(&case).unwrap();
        let batch = common::batch(&case).unwrap();
        for engine in engines() {
            let step = common::lowered(&step, engine).unwrap();
            for threads in [1, 2] {
                let options = CompileOptions { threads, ..CompileOptions::default() };
                let mut trainer = Trainer::new(engine, &step, &options, 0).unwrap();
                group.bench_function(BenchmarkId::new(engine.name(), threads), |b| {
                    // A rate of zero: the work is the same and the numbers stay what they are.
                    b.iter(|| trainer.run(&batch, &[("lr", 0.0)]).unwrap());
                });
            }
        }
    }
}

/// An epoch of [`BATCHES`] batches; throughput in samples.
fn trainer_loop(criterion: &mut Criterion) {
    for case in common::cases().unwrap() {
        let mut group = criterion.benchmark_group(format!("trainer_loop/{}", case.name));
        let samples = BATCHES * case.batch;
        group.throughput(Throughput::Elements(samples as u64));
        let data = Arrays::new(common::samples(&case, samples).unwrap()).unwrap();
        let step = common::train_step(&case).unwrap();
        for engine in engines() {
            let step = common::lowered(&step, engine).unwrap();
            for threads in [1, 2] {
                let options = CompileOptions { threads, ..CompileOptions::default() };
                let mut trainer = Trainer::new(engine, &step, &options, 0).unwrap();
                group.bench_function(BenchmarkId::new(engine.name(), threads), |b| {
                    b.iter(|| {
                        // A rate of zero, as above; a fit goes on from the last epoch of the one before.
                        let fit = Fit::new(trainer.epoch() + 1, 0.0, Schedule::Constant);
                        trainer.fit(&data, case.batch, &fit, Hooks::none()).unwrap()
                    });
                });
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    targets = inference, train_step, trainer_loop
}
criterion_main!(benches);
