//! What comes before a run: building a train step (forward, gradients, optimiser), lowering it, writing and reading it,
//! and an engine's loading of a model. How the cost of a model grows with its nodes, and the time and memory that many
//! weights take which nobody touches.

mod common;
mod scale;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use limbeck::graph::{Form, Graph};
use limbeck::runtime::{CompileOptions, engines};
use std::path::Path;
use std::time::Duration;

/// Bytes of weights of the heavy model.
const HEAVY: usize = 90_000_000;

/// Names the model that a process started by [`heavy`] copies.
const COPIED: &str = "LIMBECK_BENCH_COPIED";

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

/// Time by nodes: what is given per element should stay the same.
fn nodes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("nodes");
    for nodes in [200, 2_000, 20_000, 200_000] {
        let graph = scale::long(nodes).unwrap();
        let bytes = graph.to_bytes().unwrap();
        group.throughput(Throughput::Elements(graph.node_count() as u64));
        group.bench_function(BenchmarkId::new("read-verify-write", nodes), |b| {
            b.iter(|| copied(Graph::from_bytes(bytes.clone(), None).unwrap()).to_bytes().unwrap());
        });
        group
            .bench_function(BenchmarkId::new("gradient", nodes), |b| b.iter(|| scale::with_gradients(&graph).unwrap()));
    }
}

/// A model of many weights is read, verified and written; a process of its own says how much memory that takes.
fn heavy(criterion: &mut Criterion) {
    let folder = std::env::temp_dir().join(format!("limbeck-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("heavy.onnx");
    scale::heavy(HEAVY).unwrap().write(&path).unwrap();
    let mut group = criterion.benchmark_group("weights");
    group.throughput(Throughput::Bytes(std::fs::metadata(&path).unwrap().len()));
    group.bench_function("read-verify-write", |b| b.iter(|| copy(&path)));
    let child = std::process::Command::new(std::env::current_exe().unwrap()).env(COPIED, &path).status().unwrap();
    assert!(child.success());
    std::fs::remove_dir_all(folder).unwrap();
}

fn copied(graph: Graph) -> Graph {
    graph.verify().unwrap();
    graph
}

fn copy(path: &Path) {
    copied(Graph::read(path).unwrap()).write(path.with_extension("copy")).unwrap();
}

/// The most memory that this process has had resident, mapped files included, in bytes. Linux only.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    targets = nodes, heavy, construction, load
}

fn main() {
    let Some(path) = std::env::var_os(COPIED) else {
        benches();
        return Criterion::default().configure_from_args().final_summary();
    };
    copy(path.as_ref());
    let file = std::fs::metadata(&path).unwrap().len();
    match peak() {
        None => println!("peak memory: not known on this system"),
        Some(peak) => {
            println!("peak memory: {:.1} MB for a file of {:.1} MB", peak as f64 / 1e6, file as f64 / 1e6);
            assert!(peak * 10 < file * 13, "that is more than 1.3 times the file");
        }
    }
}
