//! Times of the three convolution passes on the layers of ResNet-8, DS-CNN and the digits nets, at 1 and 2 threads.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use limbeck_kernels::*;
use std::time::Duration;

/// Name, batch, channels, input, kernel size, stride and groups; padding keeps the size at stride 1.
type Layer = (&'static str, usize, [usize; 2], [usize; 2], usize, usize, usize);

const LAYERS: &[Layer] = &[
    ("resnet8/3-16@32", 32, [3, 16], [32, 32], 3, 1, 1),
    ("resnet8/16-16@32", 32, [16, 16], [32, 32], 3, 1, 1),
    ("resnet8/16-32@32s2", 32, [16, 32], [32, 32], 3, 2, 1),
    ("resnet8/32-32@16", 32, [32, 32], [16, 16], 3, 1, 1),
    ("resnet8/64-64@8", 32, [64, 64], [8, 8], 3, 1, 1),
    ("digits/1-16@8", 64, [1, 16], [8, 8], 3, 1, 1),
    ("digits/8-8@8", 64, [8, 8], [8, 8], 3, 1, 1),
    ("digits/16-16@8", 32, [16, 16], [8, 8], 3, 1, 1),
    ("digits/32-32@4", 32, [32, 32], [4, 4], 3, 1, 1),
    ("digits/16-32@8s2", 32, [16, 32], [8, 8], 3, 2, 1),
    ("digits/16-16@8b1", 1, [16, 16], [8, 8], 3, 1, 1),
    ("digits/64-64@4b1", 1, [64, 64], [4, 4], 3, 1, 1),
    ("dscnn/64dw@25x5", 32, [64, 64], [25, 5], 3, 1, 64),
    ("dscnn/64-64@25x5", 32, [64, 64], [25, 5], 1, 1, 1),
];

fn passes(criterion: &mut Criterion) {
    for &(name, batch, [ins, outs], input, kernel, stride, group) in LAYERS {
        let pad = [kernel / 2; 2];
        let params = ConvParams { group, stride: [stride; 2], pad_begin: pad, pad_end: pad, ..Default::default() };
        let geometry = ConvGeometry::new(batch, ins, outs, input, [kernel; 2], &params).unwrap();
        let values = |len: usize| (0..len).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
        let (mut x, mut w, mut y) =
            (values(geometry.input_len()), values(geometry.weight_len()), values(geometry.output_len()));
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(geometry.flops() as u64));
        for threads in [1, 2] {
            let parallelism = Parallelism::new(threads);
            group.bench_function(BenchmarkId::new("forward", threads), |b| {
                b.iter(|| conv_forward(&geometry, &x, &w, None, &mut y, parallelism).unwrap());
            });
            group.bench_function(BenchmarkId::new("grad_input", threads), |b| {
                b.iter(|| conv_grad_input(&geometry, &w, &y, &mut x, parallelism).unwrap());
            });
            group.bench_function(BenchmarkId::new("grad_weight", threads), |b| {
                b.iter(|| conv_grad_weight(&geometry, &x, &y, &mut w, parallelism).unwrap());
            });
            // Each pass feeds on the last one's output: back to values of order one.
            (x, w, y) = (values(x.len()), values(w.len()), values(y.len()));
        }
        group.finish();
    }
}

fn optimiser(criterion: &mut Criterion) {
    let grads: Vec<f32> = (0..1 << 18).map(|i| (i as f32 * 0.7).sin()).collect();
    let (mut params, mut velocity) = (grads.clone(), vec![0.0; grads.len()]);
    let settings = SgdMomentum { lr: 1e-6, momentum: 0.9, weight_decay: 1e-4 };
    let mut group = criterion.benchmark_group("sgd_momentum/262144");
    group.throughput(Throughput::Elements(grads.len() as u64));
    for threads in [1, 2] {
        group.bench_function(threads.to_string(), |b| {
            b.iter(|| sgd_momentum_update(&mut params, &grads, &mut velocity, &settings, Parallelism::new(threads)));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300));
    targets = passes, optimiser
}
criterion_main!(benches);
