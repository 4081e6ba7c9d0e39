//! Maps on every engine, at sizes where threads share them: the fused form of chains that networks and their gradients
//! have against the reference evaluator, alike for one and several threads, and the same at every run.

use limbeck::autodiff::Differentiate;
use limbeck::graph::{Cx, Form, Graph, Var};
use limbeck::runtime::{CompileOptions, Model, engines, noise};
use limbeck::tensor::{DType, Tensor, TensorMap};

fn input<'c>(cx: &'c Cx, name: &str, shape: &[usize]) -> Var<'c> {
    cx.input(name, DType::F32, shape)
}

type Build = for<'c> fn(&'c Cx) -> (Var<'c>, Vec<Var<'c>>);

/// Formulas with the values that their gradients are taken with respect to.
const FORMULAS: &[(&str, Build)] = &[
    ("softmax", |cx| {
        let x = input(cx, "x", &[6, 40, 70]);
        (x.softmax(-1) * input(cx, "w", &[6, 40, 70]), vec![x])
    }),
    ("layer normalisation, GELU", |cx| {
        let (x, scale, bias) = (input(cx, "x", &[9, 31, 130]), input(cx, "scale", &[130]), input(cx, "bias", &[130]));
        let y = cx.op("LayerNormalization", &[x, scale, bias], &[("axis", (-1i64).into())]);
        (cx.op("Gelu", &[y], &[]) * x, vec![x, scale, bias])
    }),
    ("batch statistics", |cx| {
        let x = input(cx, "x", &[8, 5, 17, 19]);
        let (scale, bias) = (input(cx, "scale", &[1, 5, 1, 1]), input(cx, "bias", &[1, 5, 1, 1]));
        let centred = x - x.mean_keep(&[0, 2, 3]);
        let variance = centred.square().mean_keep(&[0, 2, 3]);
        ((centred * (scale / (variance + 1e-5).sqrt()) + bias).relu() * x, vec![x, scale, bias])
    }),
    ("bias of rows", |cx| {
        let (x, bias) = (input(cx, "x", &[300, 129]), input(cx, "bias", &[129]));
        ((x + bias).tanh() * x.sigmoid(), vec![x, bias])
    }),
    ("distillation", |cx| {
        let (student, teacher) = (input(cx, "student", &[33, 10]), input(cx, "teacher", &[33, 10]));
        let (p, q) = ((teacher / 4.0).softmax(-1), (student / 4.0).log_softmax(-1));
        (p * ((teacher / 4.0).log_softmax(-1) - q) * 16.0, vec![student])
    }),
    ("choice by a scalar and a mask", |cx| {
        let (x, y) = (input(cx, "x", &[50_000]), input(cx, "y", &[50_000]));
        let finite = x.sum(&[]).equals(x.sum(&[]));
        (finite.select(x.greater(y).select(x * 2.0, y.exp()), y), vec![x, y])
    }),
    // Equal updates of weights of several shapes, which one map makes, small ones and some for several threads.
    ("guarded updates", |cx| {
        let shapes: [&[usize]; 5] = [&[3, 5, 3, 3], &[7], &[300, 700], &[1, 9, 1, 1], &[]];
        let rate = input(cx, "rate", &[]);
        let weights: Vec<Var> = shapes.iter().enumerate().map(|(i, s)| input(cx, &format!("w{i}"), s)).collect();
        let updates: Vec<Var> = weights
            .iter()
            .enumerate()
            .map(|(i, &w)| w - rate * (input(cx, &format!("velocity{i}"), &w.shape()) * 0.9 + w.tanh()))
            .collect();
        let total = updates.iter().map(|u| u.sum(&[])).reduce(|a, b| a + b).unwrap_or(rate);
        let finite = total.equals(total);
        for (i, (&old, &new)) in weights.iter().zip(&updates).enumerate() {
            cx.output(&format!("next{i}"), finite.select(new, old));
        }
        (total.reshape(&[1, 1]) * rate, vec![rate])
    }),
];

fn graph(build: Build) -> Graph {
    let cx = Cx::new("g", DType::F32);
    let (y, wrt) = build(&cx);
    let loss = y.square().mean(&[]);
    for (i, gradient) in cx.grad(loss, &wrt).unwrap().into_iter().enumerate() {
        cx.output(&format!("gradient{i}"), gradient);
    }
    cx.output("loss", loss);
    cx.output("result", y);
    cx.finish().unwrap()
}

fn feeds(graph: &Graph) -> TensorMap {
    let feed = |&id: &_| {
        let name = graph.name_of(id).to_owned();
        let shape = graph.shape(id).unwrap();
        let mut stream = noise::stream(0, 0, &name);
        let values = (0..shape.iter().product()).map(|_| stream.normal() as f32).collect();
        (name, Tensor::new(shape, values).unwrap())
    };
    graph.inputs.iter().map(feed).collect()
}

/// Largest difference over the largest expected value.
fn difference(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()));
    let (got, want) = (got.to_f64_vec().unwrap(), want.to_f64_vec().unwrap());
    let largest = want.iter().fold(1e-20f64, |m, v| m.max(v.abs()));
    got.iter().zip(&want).map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() / largest }).fold(0.0, f64::max)
}

#[test]
fn fused_chains_agree_with_the_reference_on_every_engine() {
    for (name, build) in FORMULAS {
        let graph = graph(*build);
        let (fed, fused) = (feeds(&graph), graph.lowered(Form::Fused).unwrap());
        assert!(fused.nodes().any(|(_, n)| n.domain == "ai.limbeck"), "{name}");
        let want = graph.evaluate(&fed).unwrap();
        let fed: Vec<(&str, &Tensor)> = fed.iter().map(|(n, t)| (n.as_str(), t)).collect();
        for engine in engines() {
            let mut single: Option<TensorMap> = None;
            for threads in [1, 2, 3] {
                let options = CompileOptions { threads, ..CompileOptions::default() };
                let model = Model::new(fused.to_bytes().unwrap());
                let program = engine.compile(&model, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
                let got = program.infer(&fed).unwrap();
                for (output, want) in &want {
                    let error = difference(&got[output], want);
                    assert!(
                        error <= 3e-6,
                        "{name} on {}, {threads} threads: {output} is off by {error}",
                        engine.name()
                    );
                }
                let again = program.infer(&fed).unwrap();
                assert!(got.iter().all(|(k, v)| v.bytes() == again[k].bytes()), "{name}: two runs differ");
                match &single {
                    None => single = Some(got),
                    Some(single) => got.iter().for_each(|(k, v)| {
                        assert!(difference(v, &single[k]) <= 1e-6, "{name}: {k} depends on threads");
                    }),
                }
            }
        }
    }
}
