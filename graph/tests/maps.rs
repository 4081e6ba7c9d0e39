//! The fused form: what becomes a map, and that it means the same as the nodes that it stands for.

use limbeck_graph::ops::broadcast_shapes;
use limbeck_graph::{Cx, Form, Graph, Var};
use limbeck_tensor::{DType, Tensor, TensorMap};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Numbers of maps, and of all other nodes.
fn counts(graph: &Graph) -> [usize; 2] {
    let maps = graph.nodes().filter(|(_, n)| n.is("ai.limbeck", "Map")).count();
    [maps, graph.node_count() - maps]
}

fn feeds(graph: &Graph, seed: u64) -> TensorMap {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let feed = |&id: &_| {
        let ty = graph.ty(id).unwrap();
        let shape = ty.concrete().unwrap();
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.random_range(-1.5..1.5)).collect();
        (graph.name_of(id).to_owned(), Tensor::from_f64(ty.dtype, shape, &values).unwrap())
    };
    graph.inputs.iter().map(feed).collect()
}

/// The fused form gives what the graph gives, read back from a file and without Limbeck's own operators too.
fn check(graph: &Graph) -> Graph {
    let fused = graph.lowered(Form::Fused).unwrap();
    let feeds = feeds(graph, 7);
    let want = graph.evaluate(&feeds).unwrap();
    let mut inlined = Graph::from_bytes(fused.to_bytes().unwrap(), None).unwrap();
    inlined.import(&Default::default()).unwrap();
    assert!(inlined.nodes().all(|(_, n)| n.domain != "ai.limbeck"), "functions define every own operator");
    for form in [&fused, &inlined] {
        let got = form.evaluate(&feeds).unwrap();
        for (name, want) in &want {
            let (got, want) = (&got[name], want);
            assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()), "{name}");
            for (a, b) in got.to_f64_vec().unwrap().iter().zip(want.to_f64_vec().unwrap()) {
                let near = (a - b).abs() <= 2e-5 * b.abs().max(1.0) || (a.is_nan() && b.is_nan());
                assert!(near, "{name}: {a} instead of {b}");
            }
        }
    }
    fused
}

fn built(f: impl FnOnce(&Cx)) -> Graph {
    let cx = Cx::new("g", DType::F32);
    f(&cx);
    cx.finish().unwrap()
}

#[test]
fn rows_are_one_map() {
    type Formula = for<'c> fn(Var<'c>) -> Var<'c>;
    let formulas: [(&str, Formula); 4] = [
        ("softmax", |x| x.softmax(-1)),
        ("log-softmax", |x| x.log_softmax(2)),
        ("normalisation", |x| {
            let cx = x.cx();
            let (scale, bias) = (cx.input("scale", DType::F32, &[9]), cx.input("bias", DType::F32, &[9]));
            cx.op("LayerNormalization", &[x, scale, bias], &[("axis", (-1i64).into())])
        }),
        ("gelu", |x| x.cx().op("Gelu", &[x * 2.0], &[])),
    ];
    for (name, formula) in formulas {
        let graph = built(|cx| cx.output("y", formula(cx.input("x", DType::F32, &[4, 3, 9]))));
        assert_eq!(counts(&check(&graph)), [1, 0], "{name}");
    }
}

#[test]
fn batch_statistics_are_taken_first() {
    let graph = built(|cx| {
        let x = cx.input("x", DType::F32, &[4, 3, 5, 5]);
        let centred = x - x.mean_keep(&[0, 2, 3]);
        let variance = centred.square().mean_keep(&[0, 2, 3]);
        cx.output("y", (centred / (variance + 1e-5).sqrt()).relu());
    });
    // The mean; the variance; its root; the result.
    assert_eq!(counts(&check(&graph))[0], 3, "mean, centred with its variance, result; the root alone is small");
}

#[test]
fn a_path_through_another_node_keeps_groups_apart() {
    let graph = built(|cx| {
        let x = cx.input("x", DType::F32, &[6, 6]);
        let a = (x * 2.0).tanh();
        let product = a.matmul(x);
        cx.output("y", (a + product).exp() * x);
    });
    assert_eq!(counts(&check(&graph)), [2, 1]);
}

#[test]
fn truth_values_leave_maps_as_bools() {
    let graph = built(|cx| {
        let x = cx.input("x", DType::F32, &[3, 4]);
        let above = (x * 2.0).greater(x.exp());
        cx.output("above", above);
        cx.output("chosen", above.select(x, -x));
        cx.output("sum", (x * x).sum(&[1]));
        cx.output("all", x.abs().sum(&[]));
    });
    check(&graph);
}

#[test]
fn equal_nodes_are_computed_once() {
    let graph = built(|cx| {
        let x = cx.input("x", DType::F32, &[3, 3]);
        cx.output("y", x.matmul(x) + x.matmul(x).relu());
    });
    for form in [Form::Portable, Form::Fused] {
        let lowered = graph.lowered(form).unwrap();
        assert_eq!(lowered.nodes().filter(|(_, n)| n.op.ends_with("MatMul")).count(), 1);
    }
    check(&graph);
}

/// Graphs of random operators on a few values of different shapes.
#[test]
fn random_graphs_mean_the_same() {
    for seed in 0..150 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let graph = built(|cx| {
            let shapes: [&[usize]; 5] = [&[4, 6], &[6], &[4, 1], &[], &[2, 4, 6]];
            let mut values: Vec<Var> =
                shapes.iter().enumerate().map(|(i, shape)| cx.input(&format!("x{i}"), DType::F32, shape)).collect();
            for _ in 0..rng.random_range(3..25) {
                let x = values[rng.random_range(0..values.len())];
                let y = values[rng.random_range(0..values.len())];
                if broadcast_shapes(&x.shape(), &y.shape()).is_err() {
                    continue;
                }
                let rank = x.rank() as i64;
                values.push(match rng.random_range(0..12) {
                    0 => x + y,
                    1 => x * y.tanh(),
                    2 => (x - y).sigmoid(),
                    3 => x.greater(y).select(x, y),
                    4 if rank > 0 => x.mean_keep(&[rank - 1]),
                    5 if rank > 0 => x.sum(&[0]) * 0.1,
                    6 if rank > 0 => x.softmax(-1),
                    7 if rank > 1 => x.mean_keep(&[0]),
                    8 if rank > 1 => x.t().tanh(),
                    9 => x.mean(&[]),
                    10 if rank > 0 => x.max_keep(&[rank - 1]) - x,
                    _ => x.abs().sqrt() + y.cast(DType::F32),
                });
            }
            for (i, &value) in values.iter().rev().take(3).enumerate() {
                cx.output(&format!("y{i}"), value);
            }
        });
        check(&graph);
    }
}
