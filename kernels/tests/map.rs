//! Maps against the same chain in float64, value by value, over random programs, shapes and thread counts.

use limbeck_kernels::{KernelError, MapInput, MapKernel, MapProgram, Parallelism};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A dense array in float64 under ONNX's rules: the oracle.
#[derive(Clone, Debug)]
struct Array {
    shape: Vec<usize>,
    values: Vec<f64>,
}

impl Array {
    fn at(&self, shape: &[usize], mut position: usize) -> f64 {
        let (mut offset, mut step) = (0, 1);
        for (axis, &extent) in shape.iter().enumerate().rev() {
            let index = position % extent;
            position /= extent;
            if let Some(own) = (axis + self.shape.len()).checked_sub(shape.len()) {
                offset += if self.shape[own] == 1 { 0 } else { index * step };
                step *= self.shape[own];
            }
        }
        self.values[offset]
    }
}

fn broadcast(shapes: &[&[usize]]) -> Vec<usize> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap();
    let extent = |axis: usize| {
        let own = |s: &&[usize]| (axis + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
        shapes.iter().map(own).max().unwrap()
    };
    (0..rank).map(extent).collect()
}

fn truth(x: bool) -> f64 {
    f64::from(u8::from(x))
}

fn evaluate(op: &str, args: &[&Array], axes: &[i64]) -> Array {
    let shape = broadcast(&args.iter().map(|a| &a.shape[..]).collect::<Vec<_>>());
    if op.starts_with("Reduce") {
        let [a] = args else { panic!() };
        let kept: Vec<usize> =
            shape.iter().enumerate().map(|(i, &d)| if axes.contains(&(i as i64)) { 1 } else { d }).collect();
        let count: usize = kept.iter().product();
        let mut groups = vec![vec![]; count];
        let numbers = Array { shape: kept.clone(), values: (0..count).map(|i| i as f64).collect() };
        for (i, &v) in a.values.iter().enumerate() {
            groups[numbers.at(&shape, i) as usize].push(v);
        }
        let mean = |g: &Vec<f64>| g.iter().sum::<f64>() / g.len() as f64;
        let reduce = |g: &Vec<f64>| match op {
            "ReduceSum" => g.iter().sum(),
            "ReduceMean" => mean(g),
            "ReduceVariance" => g.iter().map(|v| (v - mean(g)).powi(2)).sum::<f64>() / g.len() as f64,
            _ => g.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        };
        return Array { shape: kept, values: groups.iter().map(reduce).collect() };
    }
    let each = |i: usize| {
        let x: Vec<f64> = args.iter().map(|a| a.at(&shape, i)).collect();
        match op {
            "Identity" | "Cast" => x[0],
            "Neg" => -x[0],
            "Abs" => x[0].abs(),
            "Exp" => x[0].exp(),
            "Log" => x[0].ln(),
            "Sqrt" => x[0].sqrt(),
            "Reciprocal" => 1.0 / x[0],
            "Sigmoid" => 1.0 / (1.0 + (-x[0]).exp()),
            "Tanh" => x[0].tanh(),
            "Erf" => libm::erf(x[0]),
            "Relu" => x[0].max(0.0),
            "Sign" => {
                if x[0] == 0.0 {
                    0.0
                } else {
                    x[0].signum()
                }
            }
            "Not" => 1.0 - x[0],
            "Add" => x[0] + x[1],
            "Sub" => x[0] - x[1],
            "Mul" => x[0] * x[1],
            "Div" => x[0] / x[1],
            "Min" => x[0].min(x[1]),
            "Max" => x[0].max(x[1]),
            "Equal" => truth(x[0] == x[1]),
            "Less" => truth(x[0] < x[1]),
            "LessOrEqual" => truth(x[0] <= x[1]),
            "Greater" => truth(x[0] > x[1]),
            "GreaterOrEqual" => truth(x[0] >= x[1]),
            "And" => x[0] * x[1],
            "Or" => x[0].max(x[1]),
            "Where" => {
                if x[0] != 0.0 {
                    x[1]
                } else {
                    x[2]
                }
            }
            _ => panic!("{op}"),
        }
    };
    Array { values: (0..shape.iter().product()).map(each).collect(), shape }
}

/// Inputs with the first being `truths` of bool type; checks every result of the program with one and several threads.
fn check(ops: &[&str], args: &[[i64; 3]], results: &[i64], axes: &[i64], inputs: &[Array], bools: &[bool]) {
    let flat: Vec<i64> = args.iter().flatten().copied().collect();
    let program = MapProgram::new(inputs.len(), ops, &flat, results, axes).unwrap();
    let shapes: Vec<&[usize]> = inputs.iter().map(|a| &a.shape[..]).collect();
    let kernel = MapKernel::new(&program, &shapes).unwrap_or_else(|e| panic!("{ops:?} {shapes:?} {axes:?}: {e}"));
    let mut values = inputs.to_vec();
    for (op, args) in ops.iter().zip(args) {
        let operands: Vec<&Array> = args.iter().filter(|a| **a >= 0).map(|&a| &values[a as usize]).collect();
        values.push(evaluate(op, &operands, axes));
    }
    let floats: Vec<Vec<f32>> = inputs.iter().map(|a| a.values.iter().map(|&v| v as f32).collect()).collect();
    let bytes: Vec<Vec<u8>> = inputs.iter().map(|a| a.values.iter().map(|&v| v as u8).collect()).collect();
    let fed: Vec<MapInput> = (0..inputs.len())
        .map(|i| if bools[i] { MapInput::Bool(&bytes[i]) } else { MapInput::F32(&floats[i]) })
        .collect();
    let mut first: Option<Vec<Vec<f32>>> = None;
    for threads in [1, 2, 3] {
        let mut outputs: Vec<Vec<f32>> =
            kernel.output_shapes().iter().map(|s| vec![f32::NAN; s.iter().product()]).collect();
        let mut slices: Vec<&mut [f32]> = outputs.iter_mut().map(|o| &mut o[..]).collect();
        kernel.run(&fed, &mut slices, Parallelism::new(threads)).unwrap();
        for ((output, &result), shape) in outputs.iter().zip(results).zip(kernel.output_shapes()) {
            let want = &values[result as usize];
            assert_eq!(&want.shape, shape, "{ops:?}");
            let largest = want.values.iter().fold(1.0f64, |m, v| m.max(v.abs()));
            for (i, (got, want)) in output.iter().zip(&want.values).enumerate() {
                let error = (f64::from(*got) - want).abs();
                assert!(error <= 2e-6 * largest, "{ops:?} {shapes:?} {axes:?} [{i}]: {got} instead of {want}");
            }
        }
        match &first {
            None => first = Some(outputs),
            Some(first) => {
                for (a, b) in first.iter().flatten().zip(outputs.iter().flatten()) {
                    assert!((a - b).abs() <= 1e-5 * a.abs().max(1.0), "threads change {a} to {b}");
                }
            }
        }
    }
}

fn random(rng: &mut ChaCha8Rng, shape: &[usize]) -> Array {
    Array {
        shape: shape.to_vec(),
        values: (0..shape.iter().product()).map(|_| f64::from(rng.random_range(0.2f32..1.8))).collect(),
    }
}

/// A shape that broadcasts to `full`.
fn narrowed(rng: &mut ChaCha8Rng, full: &[usize]) -> Vec<usize> {
    let skipped = rng.random_range(0..=full.len());
    full[skipped..].iter().map(|&d| if rng.random_bool(0.4) { 1 } else { d }).collect()
}

const UNARY: &[&str] =
    &["Neg", "Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Sigmoid", "Tanh", "Erf", "Relu", "Sign", "Identity"];
const BINARY: &[&str] = &["Add", "Sub", "Mul", "Div", "Min", "Max"];

/// Chains of random operators; every operand is kept positive and small, so that errors do not grow.
#[test]
fn random_chains_agree_with_float64() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for round in 0..400 {
        let rank = rng.random_range(0..5);
        let big = round % 4 == 0;
        let full: Vec<usize> =
            (0..rank).map(|_| [1, 2, 3, 7, 16, if big { 70 } else { 5 }][rng.random_range(0..6)]).collect();
        let mut inputs = vec![random(&mut rng, &full)];
        for _ in 0..rng.random_range(1..4) {
            let shape = narrowed(&mut rng, &full);
            inputs.push(random(&mut rng, &shape));
        }
        let n = inputs.len() as i64;
        let (mut ops, mut args) = (vec![], vec![]);
        // Values of the full shape, kept between 0.2 and 1.8 by a sigmoid after each operator.
        let mut wide = vec![0];
        for _ in 0..rng.random_range(1..6) {
            let a = wide[rng.random_range(0..wide.len())];
            let b = rng.random_range(0..n);
            if rng.random_bool(0.5) {
                ops.push(UNARY[rng.random_range(0..UNARY.len())]);
                args.push([a, -1, -1]);
            } else {
                ops.push(BINARY[rng.random_range(0..BINARY.len())]);
                args.push(if rng.random_bool(0.5) { [a, b, -1] } else { [b, a, -1] });
            }
            ops.push("Sigmoid");
            args.push([n + ops.len() as i64 - 2, -1, -1]);
            wide.push(n + ops.len() as i64 - 1);
        }
        let last = *wide.last().unwrap();
        let mut results = vec![last];
        let mut axes: Vec<i64> = (0..rank as i64).filter(|_| rng.random_bool(0.5)).collect();
        match round % 3 {
            // Sums over any axes.
            0 => {
                for op in ["ReduceSum", "ReduceMean", "ReduceVariance"] {
                    ops.push(op);
                    args.push([last, -1, -1]);
                    results.push(n + ops.len() as i64 - 1);
                }
            }
            // Rows that are normalised, as a softmax and a layer normalisation are.
            1 if rank > 0 => {
                axes = vec![rank as i64 - 1];
                for op in ["ReduceVariance", "ReduceMax", "ReduceMean", "ReduceSum"] {
                    ops.push(op);
                    args.push([last, -1, -1]);
                }
                let at = n + ops.len() as i64;
                ops.extend(["Sub", "Exp", "ReduceSum", "Div", "Mul", "Sqrt"]);
                args.extend([
                    [last, at - 3, -1],
                    [at, -1, -1],
                    [at + 1, -1, -1],
                    [at + 1, at + 2, -1],
                    [at - 2, at - 1, -1],
                ]);
                args.push([at + 4, -1, -1]);
                results.extend([at + 3, at + 5, at - 3, at - 4]);
            }
            _ => axes.clear(),
        }
        let bools = vec![false; inputs.len()];
        check(&ops, &args, &results, &axes, &inputs, &bools);
    }
}

#[test]
fn truth_values_choose() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for shape in [vec![3, 40], vec![5, 7, 300], vec![2000]] {
        let x = random(&mut rng, &shape);
        let y = random(&mut rng, &shape);
        let threshold = Array { shape: vec![], values: vec![1.0] };
        for mask_shape in [vec![], vec![1; shape.len()], shape.clone(), narrowed(&mut rng, &shape)] {
            let len = mask_shape.iter().product();
            let mask = Array { shape: mask_shape, values: (0..len).map(|_| truth(rng.random_bool(0.5))).collect() };
            let ops = ["Greater", "LessOrEqual", "Or", "And", "Not", "Where", "Where", "Equal", "Cast", "ReduceSum"];
            let args = [
                [0, 1, -1],
                [0, 2, -1],
                [4, 5, -1],
                [6, 3, -1],
                [7, -1, -1],
                [8, 0, 1],
                [3, 9, 2],
                [10, 2, -1],
                [11, -1, -1],
                [12, -1, -1],
            ];
            let axes: Vec<i64> = (0..shape.len() as i64).collect();
            let inputs = [x.clone(), y.clone(), threshold.clone(), mask];
            check(&ops, &args, &[9, 10, 12, 13], &axes, &inputs, &[false, false, false, true]);
        }
    }
}

/// Batch statistics of images, one of the shapes that networks have.
#[test]
fn channel_statistics_of_images() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for shape in [[4, 16, 9, 11], [2, 3, 40, 41], [8, 32, 1, 1], [1, 5, 2, 2]] {
        let (x, mean) = (random(&mut rng, &shape), random(&mut rng, &[1, shape[1], 1, 1]));
        let ops = ["Sub", "Mul", "ReduceSum", "ReduceMean"];
        let args = [[0, 1, -1], [2, 2, -1], [2, -1, -1], [3, -1, -1]];
        check(&ops, &args, &[2, 4, 5], &[0, 2, 3], &[x, mean], &[false; 2]);
    }
}

/// Mean and variance of values around `centre`, over all layouts: as exact as with a pass for each, whatever the centre.
#[test]
fn variances_of_values_far_from_zero() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let shapes: [(&[usize], &[i64]); 12] = [
        (&[5, 16, 9, 11], &[0, 2, 3]),
        (&[3, 7, 40, 41], &[0, 2, 3]),
        (&[9, 130, 3, 3], &[0, 2, 3]),
        (&[4, 33, 6, 6], &[0, 2, 3]),
        (&[70, 32, 1, 1], &[0, 2, 3]),
        (&[300, 17], &[0]),
        (&[37, 700], &[0]),
        (&[5, 6, 40, 7], &[0, 2]),
        (&[3, 5000], &[0, 1]),
        (&[50, 21], &[1]),
        (&[4, 3, 3001], &[2]),
        (&[2, 3, 5], &[]),
    ];
    for (shape, axes) in shapes {
        for centre in [0.0, -1000.0] {
            // Later values lie elsewhere than the first.
            let len: usize = shape.iter().product();
            let value = |i: usize| centre + f64::from(rng.random_range(-1.0f32..1.0)) + f64::from(2 * i > len);
            let values: Vec<f32> = (0..len).map(value).map(|v| v as f32).collect();
            let x = Array { shape: shape.to_vec(), values: values.iter().map(|&v| f64::from(v)).collect() };
            let want = ["ReduceMean", "ReduceVariance"].map(|op| evaluate(op, &[&x], axes).values);
            for (ops, args, results) in [
                ("ReduceMean ReduceVariance", &[0, -1, -1, 0, -1, -1][..], &[1, 2][..]),
                ("ReduceVariance ReduceMean", &[0, -1, -1, 0, -1, -1], &[2, 1]),
                ("ReduceMean Identity ReduceVariance", &[0, -1, -1, 0, -1, -1, 2, -1, -1], &[1, 3]),
            ] {
                let ops: Vec<&str> = ops.split(' ').collect();
                let program = MapProgram::new(1, &ops, args, results, axes).unwrap();
                let kernel = MapKernel::new(&program, &[shape]).unwrap();
                for threads in [1, 2, 3] {
                    let run = || {
                        let mut made = [vec![0.0; want[0].len()], vec![0.0; want[0].len()]];
                        let mut slices: Vec<&mut [f32]> = made.iter_mut().map(|o| &mut o[..]).collect();
                        kernel.run(&[MapInput::F32(&values)], &mut slices, Parallelism::new(threads)).unwrap();
                        made
                    };
                    let made = run();
                    assert_eq!(made, run());
                    for (made, (want, scale)) in made.iter().zip(want.iter().zip([centre.abs().max(1.0), 1.0])) {
                        for (got, want) in made.iter().zip(want) {
                            let error = (f64::from(*got) - want).abs() / scale;
                            assert!(error <= 5e-7, "{shape:?} {axes:?} {ops:?}: {got} instead of {want}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn numbers_that_are_none_are_not_lost() {
    let program =
        MapProgram::new(1, &["Relu", "ReduceMax", "ReduceSum"], &[0, -1, -1, 0, -1, -1, 1, -1, -1], &[1, 2, 3], &[1]);
    let kernel = MapKernel::new(&program.unwrap(), &[&[1, 40]]).unwrap();
    let mut x = vec![-1.0f32; 40];
    x[7] = f32::NAN;
    let (mut a, mut b, mut c) = ([0.0; 40], [0.0], [0.0]);
    kernel.run(&[MapInput::F32(&x)], &mut [&mut a, &mut b, &mut c], Parallelism::Serial).unwrap();
    assert!(a[7].is_nan() && b[0].is_nan() && c[0].is_nan());
}

/// The larger and the smaller of values and a number, whichever of them is none.
#[test]
fn limits_that_are_no_numbers_are_not_lost() {
    let ops = ["Max", "Min", "Max", "Min", "Max"];
    let args = [0, 1, -1, 0, 1, -1, 1, 0, -1, 1, 0, -1, 0, 2, -1];
    let program = MapProgram::new(3, &ops, &args, &[3, 4, 5, 6, 7], &[]).unwrap();
    let kernel = MapKernel::new(&program, &[&[37], &[], &[37]]).unwrap();
    let run = |at: usize, limit: f32| {
        let (mut x, mut y) = ([1.0f32; 37], [1.0f32; 37]);
        (x[at], y[(at + 1) % 37]) = (f32::NAN, f32::NAN);
        let mut made = [[0.0f32; 37]; 5];
        let mut slices: Vec<&mut [f32]> = made.iter_mut().map(|o| &mut o[..]).collect();
        let inputs = [MapInput::F32(&x), MapInput::F32(&[limit]), MapInput::F32(&y)];
        kernel.run(&inputs, &mut slices, Parallelism::Serial).unwrap();
        made
    };
    for at in 0..37 {
        let [larger, smaller, same_larger, same_smaller, both] = run(at, 0.5);
        for i in 0..37 {
            for (made, want) in [(larger, 1.0), (same_larger, 1.0), (smaller, 0.5), (same_smaller, 0.5)] {
                assert!(if i == at { made[i].is_nan() } else { made[i] == want });
            }
            assert_eq!(both[i].is_nan(), i == at || i == (at + 1) % 37);
        }
        assert!(run(at, f32::NAN)[..4].iter().flatten().all(|v| v.is_nan()));
    }
}

/// A batch normalisation with a clipped activation and its gradient, in the order that train steps have.
#[test]
fn gradients_of_clipped_activations() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let ops = "Mul Add Max Min Greater Less And Cast Mul ReduceSum Mul ReduceSum";
    let args = [
        [0, 1, -1],
        [6, 2, -1],
        [7, 3, -1],
        [8, 4, -1],
        [7, 3, -1],
        [7, 4, -1],
        [10, 11, -1],
        [12, -1, -1],
        [13, 5, -1],
        [14, -1, -1],
        [14, 0, -1],
        [16, -1, -1],
    ];
    let mut swapped = args;
    swapped[6] = [11, 10, -1];
    swapped[8] = [5, 13, -1];
    for shape in [[3, 5, 24, 25], [2, 19, 12, 12], [3, 40, 6, 6], [2, 130, 3, 3], [40, 7, 1, 1]] {
        let channels = [1, shape[1], 1, 1];
        let number = |value: f64| Array { shape: vec![], values: vec![value] };
        let [x, gradient] = [(); 2].map(|()| random(&mut rng, &shape));
        let [scale, bias] = [(); 2].map(|()| random(&mut rng, &channels));
        let inputs = [x, scale, bias, number(1.5), number(2.5), gradient];
        for args in [args, swapped] {
            let ops: Vec<&str> = ops.split(' ').collect();
            check(&ops, &args, &[9, 14, 15, 17], &[0, 2, 3], &inputs, &[false; 6]);
            check(&ops[..8], &args[..8], &[9, 13], &[0, 2, 3], &inputs, &[false; 6]);
        }
    }
}

/// An input that is needed no more lends its memory to a result.
#[test]
fn results_may_replace_inputs() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let (x, y, scale) = (random(&mut rng, &[7, 900]), random(&mut rng, &[7, 900]), random(&mut rng, &[900]));
    let [fx, fy, fs] = [&x, &y, &scale].map(|a| a.values.iter().map(|&v| v as f32).collect::<Vec<f32>>());
    let args = [0, 1, -1, 3, 2, -1, 4, 0, -1, 5, -1, -1];
    let program = MapProgram::new(3, &["Sub", "Mul", "Add", "ReduceSum"], &args, &[4, 5, 6], &[1]).unwrap();
    let kernel = MapKernel::new(&program, &[&[7, 900], &[7, 900], &[900]]).unwrap();
    assert_eq!([kernel.in_place(0), kernel.in_place(2)], [vec![0, 1], vec![]]);
    for threads in [1, 3] {
        let (mut a, mut b, mut c) = (vec![0.0; 6300], vec![0.0; 6300], vec![0.0; 7]);
        let parallelism = Parallelism::new(threads);
        let inputs = [MapInput::F32(&fx), MapInput::F32(&fy), MapInput::F32(&fs)];
        kernel.run(&inputs, &mut [&mut a, &mut b, &mut c], parallelism).unwrap();
        let (mut own_a, mut own_b, mut own_c) = (fy.clone(), fx.clone(), vec![0.0; 7]);
        let inputs = [MapInput::Output(1), MapInput::Output(0), MapInput::F32(&fs)];
        kernel.run(&inputs, &mut [&mut own_a, &mut own_b, &mut own_c], parallelism).unwrap();
        assert_eq!((a, b, c), (own_a, own_b, own_c));
        let shared = [MapInput::F32(&fx), MapInput::F32(&fy), MapInput::Output(0)];
        assert!(kernel.run(&shared, &mut [&mut [0.0; 6300], &mut [0.0; 6300], &mut [0.0; 7]], parallelism).is_err());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |result: Result<MapKernel, KernelError>, reason: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    };
    let program =
        |ops: &[&str], args: &[i64], results: &[i64], axes: &[i64]| MapProgram::new(2, ops, args, results, axes);
    let kernel = |p: Result<MapProgram, KernelError>, shapes: &[&[usize]]| MapKernel::new(&p?, shapes);
    let add = || program(&["Add"], &[0, 1, -1], &[2], &[]);
    refused(kernel(add(), &[&[2], &[3]]), "do not broadcast");
    refused(kernel(add(), &[&[2]]), "2");
    refused(kernel(add(), &[&[0, 3], &[1]]), "no values");
    refused(kernel(add(), &[&[usize::MAX, 2], &[1]]), "overflows");
    refused(kernel(program(&["Frobnicate"], &[0, 1, -1], &[2], &[]), &[&[1], &[1]]), "Frobnicate");
    refused(kernel(program(&["Add"], &[0, 2, -1], &[2], &[]), &[&[1], &[1]]), "operands");
    refused(kernel(program(&["Add"], &[0, 1, -1], &[1], &[]), &[&[1], &[1]]), "no operators");
    refused(kernel(program(&["ReduceSum"], &[0, -1, -1], &[2], &[4]), &[&[2], &[1]]), "axis 4");
    let goes_on = program(&["ReduceSum", "Add"], &[0, -1, -1, 2, 1, -1], &[3], &[0]);
    refused(kernel(goes_on, &[&[5, 4], &[1]]), "innermost");
    let mut out = [0.0; 2];
    let add = MapKernel::new(&add().unwrap(), &[&[2], &[1]]).unwrap();
    assert!(add.run(&[MapInput::F32(&[1.0; 2])], &mut [&mut out], Parallelism::Serial).is_err());
    assert!(add.run(&[MapInput::F32(&[1.0; 3]), MapInput::F32(&[1.0])], &mut [&mut out], Parallelism::Serial).is_err());
    assert!(
        add.run(&[MapInput::F32(&[1.0; 2]), MapInput::F32(&[1.0])], &mut [&mut [0.0]], Parallelism::Serial).is_err()
    );
}
