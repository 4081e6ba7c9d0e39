//! Bodies of Loop and Scan on the way to their gradients: weights, composites and branches in them, what is recorded, and what is
//! refused.

mod common;

use common::loops::{body, looped, scan};
use limbeck_autodiff::{Differentiate, GradError, compose};
use limbeck_graph::{Attr, Cx, Form, Graph, ImportOptions, ValueId, Var};
use limbeck_tensor::{DType, Tensor, TensorMap};
use std::collections::HashMap;

/// The types of a Loop's own inputs, for bodies.
const COUNTERS: [(DType, &[usize]); 2] = [(DType::I64, &[]), (DType::Bool, &[])];

fn numbers(result: &TensorMap, name: &str) -> Vec<f64> {
    result[name].to_f64_vec().unwrap()
}

/// A recurrent net whose weights lie in the body of its Scan, with a composite in the body (an LpPool of windows of 1, which
/// is the absolute value).
fn net() -> Graph {
    let cx = Cx::new("net", DType::F64);
    let (h, x) = (cx.input("h", DType::F64, &[1, 1, 2]), cx.input("x", DType::F64, &[3, 1, 1, 2]));
    let step = body(&cx, "step", &[(DType::F64, &[1, 1, 2]), (DType::F64, &[1, 1, 2])], |b, s| {
        let w = b.initializer("weight", Tensor::new([2, 2], vec![0.5, -0.25, 0.75, 1.0]).unwrap());
        let size = b.op("LpPool", &[s[0]], &[("kernel_shape", vec![1i64].into())]);
        vec![size.matmul(w) + s[1]]
    });
    cx.output("y", scan(&cx, step, &[h], &[(x, 0, false)], &[])[0]);
    cx.finish().unwrap()
}

/// The gradients of the sum of squares of the net's output in `h` and its weight.
fn of_net(graph: &Graph, weight: &str) -> [Vec<f64>; 2] {
    let cx = Cx::new("gradients", DType::F64);
    let inputs = [("h", vec![1, 1, 2]), ("x", vec![3, 1, 1, 2])];
    let vars = inputs.clone().map(|(name, shape)| cx.input(name, DType::F64, &shape));
    let bind = graph.inputs.iter().copied().zip(vars).collect();
    let map = cx.inline_with(graph, &bind, &mut compose).unwrap();
    let loss = map[&graph.outputs[0]].square().sum(&[]);
    for (name, g) in ["gh", "gw"].into_iter().zip(cx.grad(loss, &[vars[0], cx.named(weight)]).unwrap()) {
        cx.output(name, g);
    }
    let feeds = inputs.map(|(name, shape)| {
        let values = (0..shape.iter().product()).map(|i| (i as f64 * 1.7 + 0.3).sin()).collect::<Vec<f64>>();
        (name.to_owned(), Tensor::new(shape, values).unwrap())
    });
    let found = cx.finish().unwrap().evaluate(&feeds.into()).unwrap();
    ["gh", "gw"].map(|name| numbers(&found, name))
}

#[test]
fn weights_and_composites_in_bodies_have_gradients() {
    let graph = net();
    // Instantiation makes the weight a value of the graph, and so does import.
    let weight = "step/weight";
    let own = of_net(&graph, weight);
    assert!(own[1].iter().all(|g| *g != 0.0), "{own:?}");
    for unroll in [0, 3] {
        let mut imported = graph.clone();
        let report = imported.import(&ImportOptions { unroll, ..ImportOptions::default() }).unwrap();
        assert_eq!(report.loops, usize::from(unroll > 0));
        let weights = imported.initializers().map(|(id, _)| id).filter(|&id| !imported.is_literal(id));
        assert_eq!(weights.map(|id| imported.name_of(id).to_owned()).collect::<Vec<_>>(), [weight]);
        for (a, b) in own.iter().flatten().zip(of_net(&imported, weight).iter().flatten()) {
            assert!((a - b).abs() < 1e-13 * b.abs().max(1.0), "unrolled {unroll}: {a} for {b}");
        }
    }
}

#[test]
fn what_is_recorded_once_is_not_recorded_again() {
    let cx = Cx::new("twice", DType::F64);
    let h = cx.input("h", DType::F64, &[2]);
    let types = [COUNTERS[0], COUNTERS[1], (DType::F64, &[2][..])];
    let step = body(&cx, "step", &types, |_, s| vec![s[1], s[2].sin()]);
    let y = looped(&cx, step, Some(3), &[h], 0)[0];
    let outputs = || cx.graph().nodes().find(|(_, n)| n.op == "Loop").map(|(_, n)| n.outputs.len());
    assert_eq!(outputs(), Some(1));
    for _ in 0..2 {
        cx.grad(y.square().sum(&[]), &[h]).unwrap();
        assert_eq!(outputs(), Some(3), "the value before each iteration, and the iterations' numbers");
    }
}

/// The error of the gradient in `x` `[2]` of a Loop that carries it, whose body is made of the carried value.
fn refusal(build: impl for<'b> FnOnce(&'b Cx, Var<'b>) -> Var<'b>) -> String {
    let cx = Cx::new("test", DType::F64);
    let x = cx.input("x", DType::F64, &[2]);
    let types = [COUNTERS[0], COUNTERS[1], (DType::F64, &[2][..])];
    let step = body(&cx, "step", &types, |b, s| vec![s[1], build(b, s[2])]);
    let y = looped(&cx, step, Some(3), &[x], 0)[0];
    cx.edit(|g| g.rename(y.id(), "grown")).unwrap();
    let weights = cx.op("Size", &[y], &[]).cast(DType::F64);
    cx.grad(cx.op("ReduceSum", &[y], &[("keepdims", 0i64.into())]) / weights, &[x]).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn what_cannot_be_reversed_says_why_and_what_to_do() {
    let error = refusal(|b, x| x * b.op("RandomNormalLike", &[x], &[]));
    assert!(error.contains("'grown' (Loop)") && error.contains("RandomNormalLike"), "{error}");
    assert!(error.contains("draw them outside"), "{error}");
    let error = refusal(|_, x| x.concat(&[x], 0));
    assert!(error.contains("'grown' (Loop)") && error.contains("float64[?]"), "{error}");
    assert!(error.contains("unroll"), "{error}");
    let error =
        refusal(|b, x| b.op("LpPool", &[x.reshape(&[1, 1, 2])], &[("kernel_shape", vec![1i64].into())]).reshape(&[2]));
    assert!(error.contains("'grown' (Loop)") && error.contains("(LpPool)") && error.contains("compose"), "{error}");
    let error = refusal(|b, x| {
        let [zero, one] = [0.0, 1.0].map(|v| b.full(v, DType::F64, &[1]));
        let training = [("training_mode", Attr::Int(1))];
        b.op("BatchNormalization", &[x.reshape(&[2, 1]), one, zero, zero, one], &training).reshape(&[2])
    });
    assert!(error.contains("'grown' (Loop)") && error.contains("(BatchNormalization)"), "{error}");
    assert!(error.contains("training form"), "{error}");
    let error = refusal(|b, x| {
        let branch = |op: &str| {
            let branch = b.body(op);
            branch.result(branch.op(op, &[branch.capture(b, x.id())], &[]));
            Attr::from(branch.finish_body().unwrap())
        };
        let branches = [("then_branch", branch("Sin")), ("else_branch", branch("Cos"))];
        b.op("If", &[x.sum(&[]).greater(b.scalar(0.0))], &branches)
    });
    assert!(error.contains("'grown' (Loop)") && error.contains("(If)") && error.contains("both branches"), "{error}");
}

/// What is drawn where no gradient needs it is not drawn again.
#[test]
fn random_numbers_that_the_reverse_does_not_need_are_let_be() {
    let cx = Cx::new("test", DType::F64);
    let x = cx.input("x", DType::F64, &[2]);
    let types = [COUNTERS[0], COUNTERS[1], (DType::F64, &[2][..])];
    let step = body(&cx, "step", &types, |b, s| vec![s[1], s[2] * 2.0 + b.op("Bernoulli", &[s[2]], &[])]);
    let y = looped(&cx, step, Some(3), &[x], 0)[0];
    cx.output("g", cx.grad(y.sum(&[]), &[x]).unwrap()[0]);
    let graph = cx.finish().unwrap();
    let draws = |body: &Graph| body.nodes().any(|(_, n)| n.op == "Bernoulli");
    let drawing: Vec<&str> =
        graph.nodes().filter(|(_, n)| n.subgraphs().any(draws)).map(|(_, n)| n.op.as_str()).collect();
    assert_eq!(drawing, ["Loop"], "the reverse draws nothing");
}

/// A Loop whose body chooses by an If, imported with both branches: what a body holds is resolved where it is.
#[test]
fn an_if_in_a_body_has_a_gradient_once_both_branches_are_computed() {
    let cx = Cx::new("choice", DType::F64);
    let h = cx.input("h", DType::F64, &[2]);
    let types = [COUNTERS[0], COUNTERS[1], (DType::F64, &[2][..])];
    let step = body(&cx, "step", &types, |b, s| {
        let branch = |factor: f64| {
            let branch = b.body("branch");
            branch.result(branch.capture(b, s[2].id()) * factor);
            Attr::from(branch.finish_body().unwrap())
        };
        let branches = [("then_branch", branch(3.0)), ("else_branch", branch(-0.5))];
        let next = b.op("If", &[s[2].sum(&[]).less(b.scalar(0.0))], &branches);
        vec![next.square().sum(&[]).less(b.scalar(100.0)), next]
    });
    cx.output("y", looped(&cx, step, None, &[h], 0)[0]);
    let mut graph = cx.finish().unwrap();
    let report = graph.import(&ImportOptions { both_branches: true, ..ImportOptions::default() }).unwrap();
    assert_eq!(report.selected, 1);
    let graph = Graph::from_bytes(graph.to_bytes().unwrap(), None).unwrap();
    let cx = Cx::new("gradient", DType::F64);
    let h = cx.input("h", DType::F64, &[2]);
    let map = cx.inline_with(&graph, &[(graph.inputs[0], h)].into(), &mut compose).unwrap();
    cx.output("g", cx.grad(map[&graph.outputs[0]].sum(&[]), &[h]).unwrap()[0]);
    let feeds = TensorMap::from([("h".to_owned(), Tensor::new([2], vec![1.0, 2.0]).unwrap())]);
    // -1/2 of it has a negative sum, and is made three times as large until its norm is above 10.
    assert_eq!(numbers(&cx.finish().unwrap().evaluate(&feeds).unwrap(), "g"), [-4.5; 2]);
}

#[test]
fn quantised_integers_that_a_body_gives_are_refused() {
    let error = {
        let cx = Cx::new("test", DType::F32);
        let x = cx.input("x", DType::F32, &[2]);
        let zero = |cx: &Cx| cx.constant(Tensor::from_f64(DType::I8, [], &[0.0]).unwrap()).id();
        let start = cx.op("QuantizeLinear", &[x.stop_gradient(), cx.scalar(0.5), cx.var(zero(&cx))], &[]);
        let types = [COUNTERS[0], COUNTERS[1], (DType::F32, &[2][..]), (DType::I8, &[2][..])];
        let step = body(&cx, "step", &types, |b, s| {
            let zero = b.var(zero(b));
            let next = s[2] + b.op("DequantizeLinear", &[s[3], b.scalar(0.5), zero], &[]);
            vec![s[1], next, b.op("QuantizeLinear", &[next, b.scalar(0.5), zero], &[])]
        });
        let y = looped(&cx, step, Some(3), &[x, start], 0)[0];
        cx.grad(y.sum(&[]), &[x]).map(|_| ()).unwrap_err().to_string()
    };
    assert!(error.contains("(Loop)") && error.contains("quantised") && error.contains("DequantizeLinear"), "{error}");
}

/// A model of `tests/golden/ops_eval/control`, imported with these extents of its dims and both branches of what is open.
fn file(name: &str, dims: &[(&str, usize)]) -> Graph {
    let path = format!("{}/../tests/golden/ops_eval/control/{name}.onnx", env!("CARGO_MANIFEST_DIR"));
    let mut graph = Graph::read(path).unwrap();
    let dims = dims.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
    graph.import(&ImportOptions { dims, both_branches: true, ..ImportOptions::default() }).unwrap();
    graph
}

/// The graph with the output `loss`, the sum of all its outputs, and the gradients `g.NAME` of its float inputs and weights.
fn differentiated(graph: &Graph) -> Result<Graph, GradError> {
    let cx = Cx::new("gradients", DType::F32);
    let input = |id: ValueId| cx.edit(|g| g.add_input(graph.name_of(id), graph.ty(id).unwrap().clone()));
    let bind: HashMap<_, _> = graph.inputs.iter().map(|&id| (id, cx.var(input(id)))).collect();
    let map = cx.inline_with(graph, &bind, &mut compose)?;
    let loss = graph.outputs.iter().map(|output| cx.op("ReduceSum", &[map[output]], &[("keepdims", 0i64.into())]));
    let loss = loss.reduce(|a, b| a + b).unwrap();
    let weights = graph.initializers().map(|(id, _)| id).filter(|id| !graph.is_literal(*id));
    let wrt: Vec<ValueId> =
        graph.inputs.iter().copied().chain(weights).filter(|id| graph.ty(*id).unwrap().dtype == DType::F32).collect();
    let gradients = cx.grad(loss, &wrt.iter().map(|id| map[id]).collect::<Vec<_>>())?;
    cx.output("loss", loss);
    for (id, gradient) in wrt.iter().zip(gradients) {
        cx.output(&format!("g.{}", graph.name_of(*id)), gradient);
    }
    Ok(cx.finish()?)
}

/// Loops that other programs wrote, against differences in float32: the losses are polynomials of low degree.
#[test]
fn loops_of_files_have_gradients() {
    let step = 1.0 / 32.0;
    for (name, dims, trips) in [
        ("power", &[("rows", 3)][..], Some(0i64)),
        ("power", &[("rows", 3)], Some(3)),
        ("nested", &[("rows", 2), ("t", 3)], Some(4)),
        ("scans", &[("n", 2), ("t", 4)], None),
    ] {
        let graph = differentiated(&file(name, dims)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let value = |i: usize, k: usize| (1.3 * i as f64 + 0.7 * k as f64 + 0.2).sin();
        let mut feeds = TensorMap::new();
        for (k, &input) in graph.inputs.iter().enumerate() {
            let shape = graph.shape(input).unwrap();
            let values: Vec<f64> = (0..shape.iter().product()).map(|i| value(i, k)).collect();
            let feed = match trips.filter(|_| graph.name_of(input) == "n") {
                Some(trips) => Tensor::scalar(trips),
                None => Tensor::from_f64(DType::F32, shape, &values).unwrap(),
            };
            feeds.insert(graph.name_of(input).to_owned(), feed);
        }
        let read = Graph::from_bytes(graph.lowered(Form::Portable).unwrap().to_bytes().unwrap(), None).unwrap();
        let exact = graph.evaluate(&feeds).unwrap();
        let lowered = read.evaluate(&feeds).unwrap();
        for (input, x) in feeds.iter().filter(|(_, x)| x.dtype().is_float()) {
            let found = numbers(&exact, &format!("g.{input}"));
            for (a, b) in found.iter().zip(numbers(&lowered, &format!("g.{input}"))) {
                assert!((a - b).abs() < 1e-5 * b.abs().max(1.0), "{name}, lowered: {a} for {b}");
            }
            for (i, found) in found.into_iter().enumerate() {
                let loss = |by: f64| {
                    let mut moved = x.to_f64_vec().unwrap();
                    moved[i] += by;
                    let mut feeds = feeds.clone();
                    feeds.insert(input.clone(), Tensor::from_f64(DType::F32, x.shape(), &moved).unwrap());
                    numbers(&graph.evaluate(&feeds).unwrap(), "loss")[0]
                };
                let numeric = (loss(step) - loss(-step)) / (2.0 * step);
                let error = (found - numeric).abs();
                assert!(error < 3e-3 * numeric.abs().max(1.0), "{name}, {input}[{i}]: {found} for {numeric}");
            }
        }
    }
    let error = differentiated(&file("growing", &[("n", 2)])).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("'y' (Loop)") && error.contains("carried value 'loop/h'"), "{error}");
}
