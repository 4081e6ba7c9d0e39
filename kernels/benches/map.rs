//! Maps as train steps have them, for one and two threads. Values a second.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use limbeck_kernels::{MapInput, MapKernel, MapProgram, Parallelism};

/// Name, shapes of the inputs, operators, operands, results, axes.
type Case = (&'static str, &'static [&'static [usize]], &'static str, &'static [i64], &'static [i64], &'static [i64]);

const IMAGES: &[usize] = &[32, 16, 32, 32];
const CHANNELS: &[usize] = &[1, 16, 1, 1];
const TOKENS: &[usize] = &[16, 64, 128];

/// The activations of three stages of a small MobileNetV2.
const WIDE: &[usize] = &[32, 96, 48, 48];
const MIDDLE: &[usize] = &[32, 192, 12, 12];
const NARROW: &[usize] = &[32, 384, 6, 6];

/// A batch normalisation with ReLU6, given centred values: what a step forward makes of them, and the gradient, with sums
/// for the scale and the bias.
const NORMALISE: &str = "Mul Add Max Min";
const NORMALISE_ARGS: &[i64] = &[0, 1, -1, 5, 2, -1, 6, 3, -1, 7, 4, -1];
const GRADIENT: &str = "Mul Add Max Min Greater Less And Cast Mul ReduceSum Mul ReduceSum";
const GRADIENT_ARGS: &[i64] = &[
    0, 1, -1, 6, 2, -1, 7, 3, -1, 8, 4, -1, 7, 3, -1, 7, 4, -1, 10, 11, -1, 12, -1, -1, 13, 5, -1, 14, -1, -1, 14, 0,
    -1, 16, -1, -1,
];
const AXPY: &str = "Mul Add Add Add";
const AXPY_ARGS: &[i64] = &[0, 1, -1, 5, 2, -1, 6, 3, -1, 7, 4, -1];

const CASES: &[Case] = &[
    ("sum of two", &[IMAGES, IMAGES], "Add", &[0, 1, -1], &[2], &[]),
    (
        "normalise, rectify",
        &[IMAGES, CHANNELS, CHANNELS, CHANNELS],
        "Sub Mul Add Relu",
        &[0, 1, -1, 4, 2, -1, 5, 3, -1, 6, -1, -1],
        &[7],
        &[],
    ),
    (
        "variance of channels",
        &[IMAGES, CHANNELS],
        "Sub Mul ReduceMean",
        &[0, 1, -1, 2, 2, -1, 3, -1, -1],
        &[4],
        &[0, 2, 3],
    ),
    ("mean of channels", &[IMAGES], "ReduceMean", &[0, -1, -1], &[1], &[0, 2, 3]),
    (
        "mean and variance of channels",
        &[IMAGES],
        "ReduceMean ReduceVariance",
        &[0, -1, -1, 0, -1, -1],
        &[1, 2],
        &[0, 2, 3],
    ),
    (
        "mean and variance of channels of 12x12",
        &[&[32, 64, 12, 12]],
        "ReduceMean ReduceVariance",
        &[0, -1, -1, 0, -1, -1],
        &[1, 2],
        &[0, 2, 3],
    ),
    (
        "mean and variance of channels of 6x6",
        &[&[32, 192, 6, 6]],
        "ReduceMean ReduceVariance",
        &[0, -1, -1, 0, -1, -1],
        &[1, 2],
        &[0, 2, 3],
    ),
    (
        "mean and variance of channels of 3x3",
        &[&[32, 384, 3, 3]],
        "ReduceMean ReduceVariance",
        &[0, -1, -1, 0, -1, -1],
        &[1, 2],
        &[0, 2, 3],
    ),
    (
        "mean and variance of columns",
        &[&[1024, 512]],
        "ReduceMean ReduceVariance",
        &[0, -1, -1, 0, -1, -1],
        &[1, 2],
        &[0],
    ),
    (
        "gradient of a normalisation",
        &[IMAGES, IMAGES, IMAGES, CHANNELS],
        "Sign Mul Mul ReduceSum ReduceSum",
        &[0, -1, -1, 1, 4, -1, 5, 2, -1, 5, -1, -1, 6, -1, -1],
        &[5, 7, 8],
        &[0, 2, 3],
    ),
    (
        "softmax",
        &[&[16, 4, 64, 64]],
        "ReduceMax Sub Exp ReduceSum Div",
        &[0, -1, -1, 0, 1, -1, 2, -1, -1, 3, -1, -1, 3, 4, -1],
        &[5],
        &[3],
    ),
    (
        "layer normalisation",
        &[TOKENS, &[128], &[128], &[]],
        "ReduceMean Sub Mul ReduceMean Add Sqrt Div Mul Add",
        &[0, -1, -1, 0, 4, -1, 5, 5, -1, 6, -1, -1, 7, 3, -1, 8, -1, -1, 5, 9, -1, 10, 1, -1, 11, 2, -1],
        &[12],
        &[2],
    ),
    (
        "GELU of a biased product",
        &[&[16, 64, 512], &[512], &[], &[], &[]],
        "Add Mul Erf Add Mul Mul",
        &[0, 1, -1, 5, 2, -1, 6, -1, -1, 7, 3, -1, 5, 4, -1, 9, 8, -1],
        &[10],
        &[],
    ),
    ("normalise, clip 48x48", &[WIDE, &[1, 96, 1, 1], &[1, 96, 1, 1], &[], &[]], NORMALISE, NORMALISE_ARGS, &[8], &[]),
    (
        "gradient of normalise, clip 48x48",
        &[WIDE, &[1, 96, 1, 1], &[1, 96, 1, 1], &[], &[], WIDE],
        GRADIENT,
        GRADIENT_ARGS,
        &[9, 14, 15, 17],
        &[0, 2, 3],
    ),
    ("add two 48x48", &[WIDE, &[1, 96, 1, 1], &[1, 96, 1, 1], WIDE, WIDE], AXPY, AXPY_ARGS, &[8], &[]),
    (
        "normalise, clip 12x12",
        &[MIDDLE, &[1, 192, 1, 1], &[1, 192, 1, 1], &[], &[]],
        NORMALISE,
        NORMALISE_ARGS,
        &[8],
        &[],
    ),
    (
        "gradient of normalise, clip 12x12",
        &[MIDDLE, &[1, 192, 1, 1], &[1, 192, 1, 1], &[], &[], MIDDLE],
        GRADIENT,
        GRADIENT_ARGS,
        &[9, 14, 15, 17],
        &[0, 2, 3],
    ),
    ("add two 12x12", &[MIDDLE, &[1, 192, 1, 1], &[1, 192, 1, 1], MIDDLE, MIDDLE], AXPY, AXPY_ARGS, &[8], &[]),
    (
        "normalise, clip 6x6",
        &[NARROW, &[1, 384, 1, 1], &[1, 384, 1, 1], &[], &[]],
        NORMALISE,
        NORMALISE_ARGS,
        &[8],
        &[],
    ),
    (
        "gradient of normalise, clip 6x6",
        &[NARROW, &[1, 384, 1, 1], &[1, 384, 1, 1], &[], &[], NARROW],
        GRADIENT,
        GRADIENT_ARGS,
        &[9, 14, 15, 17],
        &[0, 2, 3],
    ),
    ("add two 6x6", &[NARROW, &[1, 384, 1, 1], &[1, 384, 1, 1], NARROW, NARROW], AXPY, AXPY_ARGS, &[8], &[]),
    ("bias gradient", &[&[1024, 512]], "ReduceSum", &[0, -1, -1], &[1], &[0]),
];

fn maps(criterion: &mut Criterion) {
    for &(name, shapes, ops, args, results, axes) in CASES {
        let ops: Vec<&str> = ops.split(' ').collect();
        let program = MapProgram::new(shapes.len(), &ops, args, results, axes).unwrap();
        let kernel = MapKernel::new(&program, shapes).unwrap();
        let inputs: Vec<Vec<f32>> =
            (shapes.iter()).map(|s| (0..s.iter().product()).map(|i| (i % 97) as f32 * 0.01 + 0.1).collect()).collect();
        let fed: Vec<MapInput> = inputs.iter().map(|v| MapInput::F32(v)).collect();
        let mut outputs: Vec<Vec<f32>> = kernel.output_shapes().iter().map(|s| vec![0.0; s.iter().product()]).collect();
        let mut group = criterion.benchmark_group(format!("map/{name}"));
        group.throughput(Throughput::Elements(shapes[0].iter().product::<usize>() as u64));
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            group.bench_function(BenchmarkId::from_parameter(threads), |b| {
                pool.install(|| {
                    b.iter(|| {
                        let mut slices: Vec<&mut [f32]> = outputs.iter_mut().map(|o| &mut o[..]).collect();
                        kernel.run(&fed, &mut slices, Parallelism::new(threads)).unwrap();
                    });
                });
            });
        }
    }
}

criterion_group!(benches, maps);
criterion_main!(benches);
