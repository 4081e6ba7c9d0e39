//! The fused form: what becomes a map, and that it means the same as the nodes that it stands for.

use limbeck_graph::ops::broadcast_shapes;
use limbeck_graph::{Attr, Cx, Form, Graph, Lowering, Node, TensorType, Var};
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
    let fused = check(&graph);
    assert_eq!(counts(&fused)[0], 3, "mean and variance, its root, result");
    let ops: Vec<&str> = fused.nodes().filter_map(|(_, node)| node.str("ops")).collect();
    assert!(ops.contains(&"ReduceMean ReduceVariance"), "in one pass: {ops:?}");
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

fn maps<'g>(graph: &'g Graph, ops: &str) -> Vec<&'g Node> {
    graph.nodes().map(|(_, node)| node).filter(|node| node.str("ops") == Some(ops)).collect()
}

#[test]
fn equal_updates_are_one_map() {
    let shapes: [&[usize]; 4] = [&[3, 2, 3, 3], &[5], &[2, 4, 1, 1], &[6, 7]];
    let graph = built(|cx| {
        let rate = cx.input("rate", DType::F32, &[]);
        let mut sums = vec![];
        let mut updates = vec![];
        for (i, shape) in shapes.iter().enumerate() {
            let [w, v, g] = ["w", "v", "g"].map(|name| cx.input(&format!("{name}{i}"), DType::F32, shape));
            let velocity = v * 0.9 + g;
            let next = w - rate * velocity;
            sums.push(next.sum(&[]));
            updates.push((i, w, next));
        }
        let total = sums.into_iter().reduce(|a, b| a + b).unwrap();
        let finite = total.equals(total);
        for (i, w, next) in updates {
            cx.output(&format!("next{i}"), finite.select(next, w));
        }
    });
    let fused = check(&graph);
    let guards = maps(&fused, "Where");
    assert_eq!(guards.len(), 1);
    assert_eq!((guards[0].int("times"), guards[0].int("shared")), (Some(4), Some(1)), "the condition is shared");
    // The sums are over four axes, over one and over two.
    let updates: Vec<_> = maps(&fused, "Mul Add Mul Sub ReduceSum").iter().map(|n| n.int("times")).collect();
    assert_eq!(updates.len(), 3, "{updates:?}");
    assert!(updates.contains(&Some(2)), "{updates:?}");
    assert!(fused.nodes().all(|(_, node)| node.op != "Reshape"), "the sums leave their maps as scalars");
}

#[test]
fn a_map_that_needs_another_stays_apart() {
    let graph = built(|cx| {
        let [x, y, z] = ["x", "y", "z"].map(|name| cx.input(name, DType::F32, &[5, 5]));
        let first = (x * y).tanh();
        let second = (first.t() * y).tanh();
        cx.output("first", first);
        cx.output("last", (second.t() * y).tanh());
        cx.output("other", (z * y).tanh());
    });
    let times: Vec<_> = maps(&check(&graph), "Mul Tanh").iter().map(|node| node.int("times")).collect();
    assert_eq!(times.len(), 3, "{times:?}");
    assert_eq!(times.iter().flatten().count(), 1, "the first and the other are one: {times:?}");
}

/// A sum of activations waits for nothing, and what it sums could not be freed before.
#[test]
fn sums_of_large_operands_are_not_delayed() {
    let graph = built(|cx| {
        let x = cx.input("x", DType::F32, &[64, 64]);
        let mut h = x;
        for i in 0..4 {
            h = h.matmul(x).tanh() * 0.1;
            cx.output(&format!("sum{i}"), h.sum(&[0]));
        }
    });
    let fused = check(&graph);
    assert!(fused.nodes().all(|(_, node)| node.int("times").is_none()));
    let plan = fused.memory_plan(&[]).unwrap();
    // x, an operand and a result of a product, and the sums.
    assert!(plan.peak_bytes - plan.given_bytes <= 4 * (2 * 64 * 64 + 4 * 64), "{plan:?}");
}

#[test]
fn reshapes_become_part_of_maps() {
    let graph = built(|cx| {
        let x = cx.input("x", DType::F32, &[4, 3, 5, 5]);
        let [scale, bias] = ["scale", "bias"].map(|name| cx.input(name, DType::F32, &[3]));
        let y = (x * scale.reshape(&[1, 3, 1, 1]) + bias.reshape(&[1, 3, 1, 1])).tanh();
        let mean = y.mean_keep(&[0, 2, 3]);
        cx.output("running", mean.reshape(&[3]) * 0.1 + bias * 0.9);
        cx.output("rows", ((y - mean) * 2.0).reshape(&[12, 25]));
        cx.output("flat", (y.exp().reshape(&[60, 5]) * 2.0 + 1.0).reshape(&[300]));
    });
    let fused = check(&graph);
    assert_eq!(counts(&fused)[1], 0, "{:?}", fused.nodes().map(|(_, n)| &n.op).collect::<Vec<_>>());
}

/// A convolution and what follows it value by value.
fn layer<'c>(x: Var<'c>, w: Var<'c>) -> Var<'c> {
    let y = x.cx().op("Conv", &[x, w], &[("pads", Attr::Ints(vec![1; 4]))]);
    (y.relu() * 0.5).tanh()
}

#[test]
fn layers_that_nothing_updates_have_the_form_of_inference() {
    let graph = built(|cx| {
        let x = cx.input("x", DType::F32, &[2, 3, 6, 6]);
        let w = cx.input("w", DType::F32, &[4, 4, 3, 3]);
        let values = (0..108).map(|i| (i % 7) as f32 * 0.1 - 0.3).collect::<Vec<f32>>();
        let fixed = cx.initializer("fixed", Tensor::new([4, 3, 3, 3], values).unwrap());
        let first = layer(x, fixed);
        cx.output("y", layer(first, w));
    });
    let how = Lowering { frozen: Form::Portable, ..Form::Fused.into() };
    let ops = |graph: &Graph| graph.nodes().map(|(_, node)| node.op.clone()).collect::<Vec<_>>();
    let partly = graph.lowered_around(how, &["w"]).unwrap();
    assert_eq!(ops(&partly), ["Conv", "Relu", "Mul", "Tanh", "FusedConv", "Map"]);
    let feeds = feeds(&graph, 3);
    assert_eq!(partly.evaluate(&feeds).unwrap(), graph.evaluate(&feeds).unwrap());
    let all = graph.lowered_around(how, &["x"]).unwrap();
    assert_eq!(ops(&all), ["FusedConv", "Map", "FusedConv", "Map"], "x leads to every layer");
}

/// Attributes that do not fit are errors that say so, whatever they hold.
#[test]
fn attributes_that_do_not_fit_are_errors() {
    let map = |attrs: &[(&str, Attr)], operands: usize, results: usize| {
        let mut graph = Graph::new("g");
        let ty = TensorType::new(DType::F32, &[2, 3]);
        let inputs: Vec<_> = (0..operands).map(|i| graph.add_input(format!("x{i}"), ty.clone())).collect();
        let outputs: Vec<_> = (0..results).map(|i| graph.add_value(format!("y{i}"), None)).collect();
        let mut node = Node::new("Map", &inputs, &outputs).in_domain("ai.limbeck");
        for (name, value) in
            [("ops", Attr::Str("Add".into())), ("args", Attr::Ints(vec![0, 1, -1])), ("results", Attr::Ints(vec![2]))]
        {
            node.attrs.insert(name.into(), value);
        }
        node.attrs.extend(attrs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        graph.add_node(node);
        graph.outputs = outputs;
        graph.infer_types().and_then(|()| graph.verify())
    };
    map(&[("times", Attr::Int(2)), ("shared", Attr::Int(1))], 3, 2).unwrap();
    map(&[("operand_shapes", Attr::Ints(vec![1, 6, 1, 6])), ("result_shapes", Attr::Ints(vec![2, 3, 2]))], 2, 1)
        .unwrap();
    let wrong: [(&str, Attr, usize, usize); 9] = [
        ("times", Attr::Int(3), 4, 2),
        ("times", Attr::Int(0), 2, 1),
        ("times", Attr::Int(i64::MIN), 2, 1),
        ("times", Attr::Int(i64::MAX), 2, 1),
        ("shared", Attr::Int(3), 2, 1),
        ("shared", Attr::Int(-1), 2, 1),
        ("operand_shapes", Attr::Ints(vec![2, 3]), 2, 1),
        ("operand_shapes", Attr::Ints(vec![1, 7, -1]), 2, 1),
        ("result_shapes", Attr::Ints(vec![i64::MAX, 1]), 2, 1),
    ];
    for (name, value, operands, results) in wrong {
        let error = map(&[(name, value.clone())], operands, results).unwrap_err().to_string();
        assert!(error.contains("Map"), "{name} {value:?}: {error}");
    }
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
