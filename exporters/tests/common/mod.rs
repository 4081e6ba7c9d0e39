//! Small seeded networks with BatchNormalization, for the passes' tests.
#![allow(dead_code)] // each test file uses its part

use limbeck_graph::{Attr, Cx, Graph, Var};
use limbeck_tensor::{DType, Tensor, TensorMap};

/// A seeded stream of numbers in [-1, 1) (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub(crate) fn tensor(&mut self, shape: &[usize], low: f64, high: f64) -> Tensor {
        let n = shape.iter().product();
        let values: Vec<f64> = (0..n).map(|_| low + (high - low) * (self.next() + 1.0) / 2.0).collect();
        Tensor::from_f64(DType::F32, shape, &values).unwrap()
    }
}

/// Layers with seeded weights.
pub(crate) struct Layers<'c> {
    pub(crate) cx: &'c Cx,
    pub(crate) random: Random,
}

impl<'c> Layers<'c> {
    pub(crate) fn weight(&mut self, name: &str, shape: &[usize], low: f64, high: f64) -> Var<'c> {
        self.cx.initializer(name, self.random.tensor(shape, low, high))
    }

    pub(crate) fn conv(&mut self, name: &str, x: Var<'c>, out: usize, kernel: usize, group: usize) -> Var<'c> {
        let shape = [out, x.shape()[1] / group, kernel, kernel];
        let bound = (3.0 / (shape[1] * kernel * kernel) as f64).sqrt();
        let w = self.weight(&format!("{name}.weight"), &shape, -bound, bound);
        let pads = vec![(kernel / 2) as i64; 4];
        self.cx.op("Conv", &[x, w], &[("pads", Attr::Ints(pads)), ("group", group.into())])
    }

    pub(crate) fn norm(&mut self, name: &str, x: Var<'c>) -> Var<'c> {
        let c = [x.shape()[1]];
        let scale = self.weight(&format!("{name}.scale"), &c, 0.5, 1.5);
        let bias = self.weight(&format!("{name}.bias"), &c, -0.5, 0.5);
        let mean = self.weight(&format!("{name}.mean"), &c, -0.3, 0.3);
        let var = self.weight(&format!("{name}.var"), &c, 0.4, 1.6);
        self.cx.op("BatchNormalization", &[x, scale, bias, mean, var], &[])
    }

    pub(crate) fn conv_norm(&mut self, name: &str, x: Var<'c>, out: usize, kernel: usize, group: usize) -> Var<'c> {
        let y = self.conv(name, x, out, kernel, group);
        self.norm(&format!("{name}.bn"), y)
    }

    pub(crate) fn linear(&mut self, name: &str, x: Var<'c>, out: usize) -> Var<'c> {
        let bound = (3.0 / x.shape()[1] as f64).sqrt();
        let w = self.weight(&format!("{name}.weight"), &[out, x.shape()[1]], -bound, bound);
        let b = self.weight(&format!("{name}.bias"), &[out], -0.2, 0.2);
        x.gemm(w, Some(b), false, true)
    }
}

/// Builds a network from input `x` to output `y`.
pub(crate) fn build(seed: u64, shape: &[usize], f: impl for<'c> FnOnce(&mut Layers<'c>, Var<'c>) -> Var<'c>) -> Graph {
    let cx = Cx::new("test", DType::F32);
    {
        let mut layers = Layers { cx: &cx, random: Random::new(seed) };
        let x = cx.input("x", DType::F32, shape);
        let y = f(&mut layers, x);
        cx.output("y", y);
    }
    cx.finish().unwrap()
}

/// A ResNet with BN: stem, two identity blocks at 16, a projection block to 24, pool, linear.
pub(crate) fn resnet(seed: u64) -> Graph {
    build(seed, &[2, 3, 8, 8], |l, x| {
        let mut x = l.conv_norm("stem", x, 16, 3, 1).relu();
        for i in 0..2 {
            let a = l.conv_norm(&format!("b{i}.a"), x, 16, 3, 1).relu();
            x = (l.conv_norm(&format!("b{i}.b"), a, 16, 3, 1) + x).relu();
        }
        let a = l.conv_norm("b2.a", x, 24, 3, 1).relu();
        let b = l.conv_norm("b2.b", a, 24, 3, 1);
        let skip = l.conv_norm("b2.skip", x, 24, 1, 1);
        let pooled = (b + skip).relu().global_average_pool().flatten();
        l.linear("fc", pooled, 5)
    })
}

/// Feeds for [`build`]'s input.
pub(crate) fn feeds(graph: &Graph, seed: u64) -> TensorMap {
    let shape = graph.shape(graph.inputs[0]).unwrap();
    TensorMap::from([("x".to_owned(), Random::new(seed).tensor(&shape, -1.0, 1.0))])
}
