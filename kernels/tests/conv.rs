//! Convolution and its gradients against direct sums in f64, adjoint identities, and thread counts.

use limbeck_kernels::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[derive(Debug, Clone, Copy)]
struct Case {
    batch: usize,
    channels: [usize; 2],
    input: [usize; 2],
    kernel: [usize; 2],
    params: ConvParams,
}

impl Case {
    fn geometry(&self) -> Result<ConvGeometry, KernelError> {
        ConvGeometry::new(self.batch, self.channels[0], self.channels[1], self.input, self.kernel, &self.params)
    }

    /// Calls `visit(output, input, weight)` with flat indices for every product of the convolution, from its definition.
    fn products(&self, output: [usize; 2], mut visit: impl FnMut(usize, usize, usize)) {
        let Case { batch, channels: [ins, outs], input: [h, w], kernel: [kh, kw], params: p } = *self;
        let (group_in, group_out) = (ins / p.group, outs / p.group);
        for n in 0..batch {
            for o in 0..outs {
                for (oy, ox) in (0..output[0]).flat_map(|y| (0..output[1]).map(move |x| (y, x))) {
                    for i in 0..group_in {
                        for (ky, kx) in (0..kh).flat_map(|y| (0..kw).map(move |x| (y, x))) {
                            let y = (oy * p.stride[0] + ky * p.dilation[0]) as isize - p.pad_begin[0] as isize;
                            let x = (ox * p.stride[1] + kx * p.dilation[1]) as isize - p.pad_begin[1] as isize;
                            if y < 0 || x < 0 || y >= h as isize || x >= w as isize {
                                continue;
                            }
                            let channel = n * ins + o / group_out * group_in + i;
                            visit(
                                ((n * outs + o) * output[0] + oy) * output[1] + ox,
                                (channel * h + y as usize) * w + x as usize,
                                ((o * group_in + i) * kh + ky) * kw + kx,
                            );
                        }
                    }
                }
            }
        }
    }
}

struct Tensors {
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
    gy: Vec<f32>,
}

impl Tensors {
    fn random(g: &ConvGeometry, channels: usize, rng: &mut ChaCha8Rng) -> Self {
        let mut draw = |len: usize| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect();
        Self { x: draw(g.input_len()), w: draw(g.weight_len()), bias: draw(channels), gy: draw(g.output_len()) }
    }

    /// Output without bias, input gradient and weight gradient; NaN in the buffers shows values never written.
    fn run(&self, g: &ConvGeometry, bias: Option<&[f32]>, parallelism: Parallelism) -> [Vec<f32>; 3] {
        let mut y = vec![f32::NAN; g.output_len()];
        let mut gx = vec![f32::NAN; g.input_len()];
        let mut gw = vec![f32::NAN; g.weight_len()];
        conv_forward(g, &self.x, &self.w, bias, &mut y, parallelism).unwrap();
        conv_grad_input(g, &self.w, &self.gy, &mut gx, parallelism).unwrap();
        conv_grad_weight(g, &self.x, &self.gy, &mut gw, parallelism).unwrap();
        [y, gx, gw]
    }
}

/// Threads of the test's own, which take tasks from the last to the first.
struct Own(usize);

impl Team for Own {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| (0..count).rev().for_each(|i| drop(scope.spawn(move || task(i)))));
    }
}

fn max_abs(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |max, v| v.abs().max(max))
}

/// Greatest difference over the greatest reference value; NaN counts as infinite.
fn error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let difference: Vec<f64> = got.iter().zip(want).map(|(g, w)| f64::from(*g) - w).collect();
    if difference.iter().any(|d| d.is_nan()) { f64::INFINITY } else { max_abs(&difference) / max_abs(want).max(1e-3) }
}

fn check(case: &Case, rng: &mut ChaCha8Rng) {
    let g = case.geometry().unwrap();
    let t = Tensors::random(&g, case.channels[1], rng);
    let mut want = [vec![0.0; t.gy.len()], vec![0.0; t.x.len()], vec![0.0; t.w.len()]];
    case.products(g.output(), |o, i, k| {
        let [y, gx, gw] = &mut want;
        y[o] += f64::from(t.x[i]) * f64::from(t.w[k]);
        gx[i] += f64::from(t.gy[o]) * f64::from(t.w[k]);
        gw[k] += f64::from(t.gy[o]) * f64::from(t.x[i]);
    });
    let plane = g.output()[0] * g.output()[1];
    let bias = |o: usize| f64::from(t.bias[o / plane % case.channels[1]]);
    let with_bias: Vec<f64> = want[0].iter().enumerate().map(|(o, y)| y + bias(o)).collect();
    let one = t.run(&g, None, Parallelism::Serial);
    for threads in [1, 2, 3] {
        let parallelism = Parallelism::new(threads);
        let got = t.run(&g, None, parallelism);
        for (i, name) in ["y", "gx", "gw"].into_iter().enumerate() {
            let (exact, serial) =
                (error(&got[i], &want[i]), error(&got[i], &one[i].iter().map(|v| f64::from(*v)).collect::<Vec<_>>()));
            assert!(exact < 1e-5, "{name}: error {exact:e} with {threads} threads, {case:?}");
            assert!(serial < 1e-5, "{name}: {serial:e} from one thread with {threads} threads, {case:?}");
        }
        let [y, ..] = t.run(&g, Some(&t.bias), parallelism);
        let exact = error(&y, &with_bias);
        assert!(exact < 1e-5, "y with bias: error {exact:e} with {threads} threads, {case:?}");
        assert_eq!(got, t.run(&g, None, parallelism), "two runs differ with {threads} threads, {case:?}");
        let team = Own(threads);
        assert_eq!(got, t.run(&g, None, Parallelism::Team(&team)), "a team of {threads} threads differs, {case:?}");
    }
    let inner = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let norm = |a: &[f32]| inner(a, a).sqrt();
    let [y, gx, gw] = &one;
    let (forward, by_input, by_weight) = (inner(&t.gy, y), inner(gx, &t.x), inner(gw, &t.w));
    let scale = norm(&t.gy) * norm(y) + 1e-3;
    assert!((forward - by_input).abs() < 1e-5 * scale, "<gy, y> = {forward}, <gx, x> = {by_input}, {case:?}");
    assert!((forward - by_weight).abs() < 1e-5 * scale, "<gy, y> = {forward}, <gw, w> = {by_weight}, {case:?}");
}

#[test]
fn random_shapes() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut checked = 0;
    while checked < 300 {
        let mut pick = |options: &[usize]| options[rng.random_range(0..options.len())];
        let group = pick(&[1, 1, 1, 2, 3]);
        let one_dimensional = pick(&[0, 0, 0, 1]) == 1;
        let mut pair =
            |options: &[usize], flat: usize| [if one_dimensional { flat } else { pick(options) }, pick(options)];
        let case = Case {
            input: pair(&[1, 2, 4, 5, 7, 8, 11, 13], 1),
            kernel: pair(&[1, 1, 2, 3, 3, 5], 1),
            params: ConvParams {
                group,
                stride: pair(&[1, 1, 1, 2, 3], 1),
                pad_begin: pair(&[0, 1, 1, 2, 4], 0),
                pad_end: pair(&[0, 1, 1, 2, 3], 0),
                dilation: pair(&[1, 1, 1, 2, 3], 1),
            },
            batch: pick(&[1, 2, 3, 5]),
            channels: [group * pick(&[1, 2, 3, 8]), group * pick(&[1, 2, 5, 8, 17])],
        };
        if matches!(case.geometry(), Err(KernelError::KernelTooLarge { .. })) {
            continue;
        }
        check(&case, &mut rng);
        checked += 1;
    }
}

/// Channels in sixteens, stride 1 and enough tiles are what transformed tiles are for; some cases have too few.
#[test]
fn transformed_tiles() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for _ in 0..60 {
        let mut pick = |options: &[usize]| options[rng.random_range(0..options.len())];
        let mut pair = |options: &[usize]| [pick(options), pick(options)];
        let case = Case {
            input: pair(&[3, 4, 5, 7, 8, 9, 12]),
            kernel: [3, 3],
            params: ConvParams { pad_begin: pair(&[0, 1, 1, 2]), pad_end: pair(&[0, 1, 1, 2]), ..Default::default() },
            channels: pair(&[16, 16, 32, 48]),
            batch: pick(&[1, 2, 3, 7]),
        };
        check(&case, &mut rng);
    }
}

/// One input channel a group, with padding beyond the kernel, strides beyond it and rows of all remainders.
#[test]
fn depthwise_shapes() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let mut checked = 0;
    while checked < 200 {
        let mut pick = |options: &[usize]| options[rng.random_range(0..options.len())];
        let mut pair = |options: &[usize]| [pick(options), pick(options)];
        let mut case = Case {
            input: pair(&[1, 2, 3, 5, 6, 8, 9, 12, 17, 24, 31, 48]),
            kernel: pair(&[1, 2, 3, 3, 3, 5, 7]),
            params: ConvParams {
                stride: pair(&[1, 2, 2, 2, 3, 5]),
                pad_begin: pair(&[0, 1, 1, 2, 3, 7]),
                pad_end: pair(&[0, 1, 1, 2, 3, 7]),
                dilation: pair(&[1, 1, 1, 2, 3]),
                group: pick(&[1, 2, 5, 8]),
            },
            batch: pick(&[1, 2, 3, 7]),
            channels: [0; 2],
        };
        case.channels = [case.params.group, case.params.group * pick(&[1, 1, 2])];
        if matches!(case.geometry(), Err(KernelError::KernelTooLarge { .. })) {
            continue;
        }
        check(&case, &mut rng);
        checked += 1;
    }
}

/// Shapes that the random ones do not reach: long rows (tiles within a row), maps of several tiles, many channels.
#[test]
fn chosen_shapes() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let same = ConvParams { pad_begin: [1; 2], pad_end: [1; 2], ..Default::default() };
    let halved = ConvParams { stride: [2; 2], ..same };
    let line = |stride| ConvParams { stride: [1, stride], pad_begin: [0, 4], pad_end: [0, 3], ..Default::default() };
    let case = |batch, channels, input, kernel, params| Case { batch, channels, input, kernel, params };
    for case in [
        case(1, [2, 3], [1, 1501], [1, 9], line(1)),
        case(2, [2, 3], [1, 1501], [1, 9], line(3)),
        case(2, [3, 4], [40, 37], [3, 3], same),
        case(2, [3, 4], [40, 37], [3, 3], halved),
        case(5, [16, 16], [8, 8], [3, 3], same),
        case(5, [16, 32], [8, 8], [3, 3], halved),
        case(3, [64, 32], [4, 4], [3, 3], same),
        case(2, [16, 16], [130, 71], [3, 3], same),
        case(1, [16, 16], [3, 1101], [3, 3], same),
        case(30, [32, 16], [3, 3], [3, 3], same),
        case(4, [128, 144], [7, 7], [3, 3], same),
        case(2, [16, 32], [16, 16], [1, 1], ConvParams { stride: [2; 2], ..Default::default() }),
        case(2, [24, 9], [9, 9], [1, 1], Default::default()),
        case(2, [10, 7], [40, 37], [1, 1], Default::default()),
        case(3, [12, 8], [9, 9], [1, 1], ConvParams { group: 4, ..Default::default() }),
        case(2, [600, 3], [3, 3], [3, 3], same),
        case(3, [6, 6], [60, 50], [3, 3], ConvParams { group: 6, ..same }),
        case(3, [6, 12], [60, 50], [3, 3], ConvParams { group: 6, ..halved }),
        case(2, [2, 2], [3, 4], [2, 2], ConvParams { group: 2, stride: [usize::MAX, 1 << 60], ..same }),
        case(1, [1, 4], [1, 2], [1, 1], ConvParams { pad_begin: [0, 5], pad_end: [3, 0], stride: [3, 4], ..same }),
    ] {
        check(&case, &mut rng);
    }
}

#[test]
fn wrong_lengths_are_refused() {
    let g = ConvGeometry::new(1, 1, 1, [3, 3], [2, 2], &ConvParams::default()).unwrap();
    let (mut y, mut gx, mut gw) = ([0.0; 4], [0.0; 9], [0.0; 4]);
    let wrong = |what, got, expected| Err(KernelError::Length { what, got, expected });
    let serial = Parallelism::Serial;
    assert_eq!(conv_forward(&g, &[0.0; 8], &[0.0; 4], None, &mut y, serial), wrong("x", 8, 9));
    assert_eq!(conv_forward(&g, &[0.0; 9], &[0.0; 4], Some(&[]), &mut y, serial), wrong("bias", 0, 1));
    assert_eq!(conv_grad_input(&g, &[0.0; 5], &[0.0; 4], &mut gx, serial), wrong("w", 5, 4));
    assert_eq!(conv_grad_weight(&g, &[0.0; 9], &[0.0; 3], &mut gw, serial), wrong("gy", 3, 4));
}
