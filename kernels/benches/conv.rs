//! Times of the three convolution passes on the layers of ResNet-8, DS-CNN, MobileNetV2-0.35 and the digits
//! nets, at 1 and 2 threads.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use limbeck_kernels::*;
use std::time::Duration;

/// Kernel size and padding on either side of an axis.
type Window = [[usize; 2]; 2];

const K1: Window = [[1, 1], [0, 0]];
const K3: Window = [[3, 3], [1, 1]];
const K10X4: Window = [[10, 4], [5, 1]];

/// Name, batch, channels, input, window, stride and groups.
type Layer = (&'static str, usize, [usize; 2], [usize; 2], Window, usize, usize);

const LAYERS: &[Layer] = &[
    ("resnet8/3-16@32", 32, [3, 16], [32, 32], K3, 1, 1),
    ("resnet8/16-16@32", 32, [16, 16], [32, 32], K3, 1, 1),
    ("resnet8/16-32@32s2", 32, [16, 32], [32, 32], K3, 2, 1),
    ("resnet8/32-32@16", 32, [32, 32], [16, 16], K3, 1, 1),
    ("resnet8/32-64@16s2", 32, [32, 64], [16, 16], K3, 2, 1),
    ("resnet8/64-64@8", 32, [64, 64], [8, 8], K3, 1, 1),
    ("resnet8/16-32@32s2k1", 32, [16, 32], [32, 32], K1, 2, 1),
    ("resnet8/16-16@32b1", 1, [16, 16], [32, 32], K3, 1, 1),
    ("digits/1-16@8", 64, [1, 16], [8, 8], K3, 1, 1),
    ("digits/8-8@8", 64, [8, 8], [8, 8], K3, 1, 1),
    ("digits/16-16@8", 32, [16, 16], [8, 8], K3, 1, 1),
    ("digits/32-32@4", 32, [32, 32], [4, 4], K3, 1, 1),
    ("digits/16-32@8s2", 32, [16, 32], [8, 8], K3, 2, 1),
    ("digits/16-16@8b1", 1, [16, 16], [8, 8], K3, 1, 1),
    ("digits/64-64@4b1", 1, [64, 64], [4, 4], K3, 1, 1),
    ("dscnn/1-64@49x10", 32, [1, 64], [49, 10], K10X4, 2, 1),
    ("dscnn/64dw@25x5", 32, [64, 64], [25, 5], K3, 1, 64),
    ("dscnn/64-64@25x5", 32, [64, 64], [25, 5], K1, 1, 1),
    ("dscnn/64dw@25x5b1", 1, [64, 64], [25, 5], K3, 1, 64),
    ("dscnn/64-64@25x5b1", 1, [64, 64], [25, 5], K1, 1, 1),
    ("mobilenet/3-16@96s2", 16, [3, 16], [96, 96], K3, 2, 1),
    ("mobilenet/16dw@48", 16, [16, 16], [48, 48], K3, 1, 16),
    ("mobilenet/8-48@48", 16, [8, 48], [48, 48], K1, 1, 1),
    ("mobilenet/48dw@48s2", 16, [48, 48], [48, 48], K3, 2, 48),
    ("mobilenet/48-8@24", 16, [48, 8], [24, 24], K1, 1, 1),
    ("mobilenet/96dw@24s2", 16, [96, 96], [24, 24], K3, 2, 96),
    ("mobilenet/144dw@12s2", 16, [144, 144], [12, 12], K3, 2, 144),
    ("mobilenet/96dw@24", 16, [96, 96], [24, 24], K3, 1, 96),
    ("mobilenet/96dw@12", 16, [96, 96], [12, 12], K3, 1, 96),
    ("mobilenet/192dw@6s2", 16, [192, 192], [6, 6], K3, 2, 192),
    ("mobilenet/288dw@6", 16, [288, 288], [6, 6], K3, 1, 288),
    ("mobilenet/336dw@3", 16, [336, 336], [3, 3], K3, 1, 336),
    ("mobilenet/56-336@3", 16, [56, 336], [3, 3], K1, 1, 1),
    ("mobilenet/112-1280@3", 16, [112, 1280], [3, 3], K1, 1, 1),
    ("mobilenet/48dw@48s2b1", 1, [48, 48], [48, 48], K3, 2, 48),
];

fn passes(criterion: &mut Criterion) {
    for &(name, batch, [ins, outs], input, [kernel, pad], stride, group) in LAYERS {
        let params = ConvParams { group, stride: [stride; 2], pad_begin: pad, pad_end: pad, ..Default::default() };
        let geometry = ConvGeometry::new(batch, ins, outs, input, kernel, &params).unwrap();
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

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300));
    targets = passes
}
criterion_main!(benches);
