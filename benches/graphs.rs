//! What comes before a run: building a train step (forward, gradients, optimiser), lowering it, writing and reading it,
//! and an engine's loading of a model.

mod common;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use limbeck::graph::{Form, Graph};
use limbeck::runtime::{CompileOptions, engines};
use std::time::Duration;

/// The nets of all benches, and one of a step with more than 2,000 nodes.
fn cases() -> Vec<common::Case> {
    let deep = common::deep().unwrap();
    let nodes = common::train_step(&deep).unwrap().graph.node_count();
    assert!(nodes > 2000, "the deep step has {nodes} nodes");
    common::cases().unwrap().into_iter().chain([deep]).collect()
}

fn construction(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("graph");
    for case in cases() {
        let step = common::train_step(&case).unwrap();
        let bytes = step.bytes().unwrap();
        group.bench_function(BenchmarkId::new("build", case.name), |b| {
            b.iter(|| common::train_step(&case).unwrap());
        });
        group.bench_function(BenchmarkId::new("lower", case.name), |b| {
            b.iter(|| step.graph.lowered(Form::Portable).unwrap());
        });
        group.bench_function(BenchmarkId::new("write", case.name), |b| b.iter(|| step.bytes().unwrap()));
        group.bench_function(BenchmarkId::new("read", case.name), |b| {
            b.iter(|| Graph::from_bytes(bytes.clone(), None).unwrap().verify().unwrap());
        });
    }
}

fn load(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("load");
    for case in cases() {
        for engine in engines() {
            group.bench_function(BenchmarkId::new(format!("model/{}", engine.name()), case.name), |b| {
                b.iter(|| common::inference(&case.net, engine, 1, 1).unwrap());
            });
            let step = common::lowered(&common::train_step(&case).unwrap(), engine).unwrap();
            let model = step.model().unwrap();
            let options = CompileOptions { threads: 1, ..CompileOptions::default() };
            group.bench_function(BenchmarkId::new(format!("step/{}", engine.name()), case.name), |b| {
                b.iter(|| engine.compile(&model, &options).unwrap());
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    targets = construction, load
}
criterion_main!(benches);
