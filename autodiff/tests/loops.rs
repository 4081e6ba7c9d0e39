//! Gradients of Loop and Scan that stay loops: against central differences of the reference evaluator in float64 and against
//! the same loops unrolled, in both forms of lowering, written and read again.

mod common;

use common::loops::{CASES, LoopCase, body, looped, scan};
use limbeck_autodiff::{Differentiate, compose};
use limbeck_graph::{Cx, Dim, Form, Graph, ImportOptions, Node, TensorType, Var};
use limbeck_tensor::{DType, Tensor, TensorMap};

/// Step of the differences; their error is of the order of its square.
const STEP: f64 = 1e-5;

fn numbers(result: &TensorMap, name: &str) -> Vec<f64> {
    result[name].to_f64_vec().unwrap()
}

/// The largest difference between a gradient and the differences in each of its elements.
fn disagreement(case: &LoopCase, order: usize) -> f64 {
    let graph = case.graph(DType::F64, order).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let feeds = case.feeds(DType::F64);
    let exact = graph.evaluate(&feeds).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let mut worst = 0.0f64;
    for (name, x) in &feeds {
        let gradient = &exact[&format!("g.{name}")];
        assert_eq!(gradient.shape(), x.shape(), "{}: {name}", case.name);
        for (i, exact) in gradient.to_f64_vec().unwrap().into_iter().enumerate() {
            let loss = |step: f64| {
                let mut moved = x.to_f64_vec().unwrap();
                moved[i] += step;
                let mut feeds = feeds.clone();
                feeds.insert(name.clone(), Tensor::new(x.shape(), moved).unwrap());
                numbers(&graph.evaluate(&feeds).unwrap(), "loss")[0]
            };
            let numeric = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
            let error = (numeric - exact).abs() / exact.abs().max(1.0);
            worst = if error.is_nan() { f64::NAN } else { worst.max(error) };
        }
    }
    worst
}

#[test]
fn gradients_agree_with_differences() {
    for case in CASES {
        let d = disagreement(case, 1);
        assert!(d < 1e-8, "{}: off by {d:e}", case.name);
    }
}

#[test]
fn gradients_can_be_differentiated_again() {
    for case in CASES {
        let d = disagreement(case, 2);
        assert!(d < 1e-7, "{}: off by {d:e}", case.name);
    }
}

/// Every form of a gradient has its values: lowered to either form, written and read again.
#[test]
fn lowered_and_written_gradients_have_the_same_values() {
    for case in CASES {
        for order in [1, 2] {
            let graph = case.graph(DType::F32, order).unwrap();
            let feeds = case.feeds(DType::F32);
            let want = graph.evaluate(&feeds).unwrap();
            for form in [Form::Portable, Form::Fused] {
                let lowered = graph.lowered(form).unwrap_or_else(|e| panic!("{}: {e}", case.name));
                let read = Graph::from_bytes(lowered.to_bytes().unwrap(), None).unwrap();
                let found = read.evaluate(&feeds).unwrap_or_else(|e| panic!("{}: {e}", case.name));
                for (name, want) in &want {
                    let (found, want) = (numbers(&found, name), want.to_f64_vec().unwrap());
                    let worst = found.iter().zip(&want).map(|(a, b)| (a - b).abs() / b.abs().max(1.0));
                    let worst = worst.fold(0.0, f64::max);
                    assert!(worst < 1e-5, "{} {form:?}, order {order}: {name} is off by {worst:e}", case.name);
                }
            }
        }
    }
}

/// Operators outside ai.onnx within bodies.
fn own_in_bodies(graph: &Graph) -> Vec<String> {
    let bodies = graph.nodes().flat_map(|(_, node)| node.subgraphs());
    bodies
        .flat_map(|body| {
            let own = body.nodes().filter(|(_, n)| !n.domain_or_default().is_empty()).map(|(_, n)| n.full_op());
            own.chain(own_in_bodies(body)).collect::<Vec<_>>()
        })
        .collect()
}

/// A Scan whose body has gradients that are Limbeck's own operators: of a convolution, a pooling and a Gather.
#[test]
fn bodies_are_lowered_to_standard_operators() {
    let cx = Cx::new("images", DType::F32);
    let (h, x) = (cx.input("h", DType::F32, &[1, 1, 4, 4]), cx.input("x", DType::F32, &[2, 1, 1, 4, 4]));
    let w = cx.input("w", DType::F32, &[1, 1, 3, 3]);
    let step = body(&cx, "scan", &[(DType::F32, &[1, 1, 4, 4]), (DType::F32, &[1, 1, 4, 4])], |b, s| {
        let y = b.op("Conv", &[s[0] + s[1], b.capture(&cx, w.id())], &[("pads", vec![1i64; 4].into())]);
        let pooled =
            b.op("MaxPool", &[y], &[("kernel_shape", vec![2i64; 2].into()), ("pads", vec![0i64, 0, 1, 1].into())]);
        vec![pooled.gather(b.ints(&[0, 1, 1, 3]), 3).stop_gradient() * 0.5 + pooled]
    });
    let y = scan(&cx, step, &[h], &[(x, 0, false)], &[])[0];
    for (name, g) in ["gh", "gx", "gw"].into_iter().zip(cx.grad(y.square().sum(&[]), &[h, x, w]).unwrap()) {
        cx.output(name, g);
    }
    let graph = cx.finish().unwrap();
    assert!(!own_in_bodies(&graph).is_empty());
    let values = |n: usize| (0..n).map(|i| ((5 * i + 1) as f64).sin()).collect::<Vec<_>>();
    let feed = |name: &str, shape: &[usize]| {
        (name.to_owned(), Tensor::from_f64(DType::F32, shape, &values(shape.iter().product())).unwrap())
    };
    let feeds = TensorMap::from([feed("h", &[1, 1, 4, 4]), feed("x", &[2, 1, 1, 4, 4]), feed("w", &[1, 1, 3, 3])]);
    let want = graph.evaluate(&feeds).unwrap();
    for form in [Form::Portable, Form::Fused] {
        let lowered = graph.lowered(form).unwrap();
        assert_eq!(own_in_bodies(&lowered), Vec::<String>::new(), "{form:?}");
        let found = lowered.evaluate(&feeds).unwrap();
        for (name, want) in &want {
            for (a, b) in numbers(&found, name).into_iter().zip(want.to_f64_vec().unwrap()) {
                assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{form:?} {name}: {a} for {b}");
            }
        }
    }
}

/// The gradients of a case with the loop unrolled, as far as it can be: differentiation then meets plain nodes.
#[test]
fn unrolled_loops_have_the_same_gradients() {
    for case in CASES
        .iter()
        .filter(|case| !["loop until", "loop that never runs", "loop that is not entered"].contains(&case.name))
    {
        let cx = Cx::new(case.name, DType::F64);
        let inputs: Vec<Var<'_>> =
            case.inputs.iter().map(|(name, shape, _)| cx.input(name, DType::F64, shape)).collect();
        for (i, y) in (case.build)(&cx, &inputs).into_iter().enumerate() {
            cx.output(&format!("y{i}"), y);
        }
        let looped = cx.finish().unwrap();
        let mut unrolled = looped.clone();
        let report = unrolled.import(&ImportOptions { unroll: 8, ..ImportOptions::default() }).unwrap();
        assert!(report.loops > 0 && unrolled.nodes().all(|(_, n)| n.subgraphs().next().is_none()), "{}", case.name);
        let [a, b] = [looped, unrolled].map(|graph| composed(&graph, case));
        for (name, a) in &a {
            let (a, b) = (a.to_f64_vec().unwrap(), numbers(&b, name));
            let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f64::max);
            assert!(worst < 1e-13, "{}: {name} is off by {worst:e}", case.name);
        }
    }
}

/// The gradients of the sum of squares of a graph's outputs, instantiated with `compose`.
fn composed(graph: &Graph, case: &LoopCase) -> TensorMap {
    let cx = Cx::new("gradients", DType::F64);
    let inputs: Vec<Var<'_>> = case.inputs.iter().map(|(name, shape, _)| cx.input(name, DType::F64, shape)).collect();
    let bind = case.inputs.iter().zip(&inputs).map(|((name, ..), v)| (graph.find(name).unwrap(), *v)).collect();
    let map = cx.inline_with(graph, &bind, &mut compose).unwrap();
    let squares = graph.outputs.iter().map(|output| map[output].square().sum(&[]));
    let loss = squares.reduce(|a, b| a + b).unwrap();
    for ((name, ..), g) in case.inputs.iter().zip(cx.grad(loss, &inputs).unwrap()) {
        cx.output(&format!("g.{name}"), g);
    }
    cx.finish().unwrap().evaluate(&case.feeds(DType::F64)).unwrap()
}

/// The types of a Loop's own inputs, for bodies.
const COUNTERS: [(DType, &[usize]); 2] = [(DType::I64, &[]), (DType::Bool, &[])];

/// Values of the named outputs of a construction with these inputs.
fn values(
    inputs: &[(&str, &[usize], &[f64])],
    build: impl for<'c> FnOnce(&'c Cx, &[Var<'c>]) -> Vec<(&'static str, Var<'c>)>,
) -> TensorMap {
    let cx = Cx::new("test", DType::F64);
    let vars: Vec<Var<'_>> = inputs.iter().map(|(name, shape, _)| cx.input(name, DType::F64, shape)).collect();
    for (name, v) in build(&cx, &vars) {
        cx.output(name, v);
    }
    let feed =
        |(name, shape, v): &(&str, &[usize], &[f64])| ((*name).to_owned(), Tensor::new(*shape, v.to_vec()).unwrap());
    cx.finish().unwrap().evaluate(&inputs.iter().map(feed).collect()).unwrap()
}

/// Newton's iteration to the square root of `a`, as long as `|x² - a|` is large: the derivative is `1 / (2 √a)`, and the
/// second one `-1 / (4 a √a)`.
#[test]
fn newtons_iteration_has_the_derivatives_of_the_root() {
    let found = values(&[("a", &[], &[7.0])], |cx, v| {
        let a = v[0];
        let types = [COUNTERS[0], COUNTERS[1], (DType::F64, &[][..])];
        let step = body(cx, "root", &types, |b, s| {
            let a = b.capture(cx, a.id());
            let x = (s[2] + a / s[2]) * 0.5;
            vec![(x.square() - a).abs().greater(b.scalar(1e-13)), x, s[0]]
        });
        let root = looped(cx, step, Some(50), &[cx.scalar(1.0)], 1);
        let first = cx.grad(root[0], &[a]).unwrap()[0];
        let second = cx.grad(first, &[a]).unwrap()[0];
        let forward = cx.jvp(&[root[0]], &[a], &[cx.scalar(2.0)]).unwrap()[0];
        let product = cx.hvp(root[0], &[a], &[cx.scalar(3.0)]).unwrap()[0];
        vec![("root", root[0]), ("steps", root[1]), ("d", first), ("dd", second), ("jvp", forward), ("hvp", product)]
    });
    let root = 7f64.sqrt();
    let steps = found["steps"].len();
    assert!((3..20).contains(&steps), "{steps}");
    let second = -0.25 / (7.0 * root);
    let wanted = [("root", root), ("d", 0.5 / root), ("dd", second), ("jvp", 1.0 / root), ("hvp", 3.0 * second)];
    for (name, want) in wanted {
        assert!((numbers(&found, name)[0] - want).abs() < 1e-9, "{name}: {:?} for {want}", found[name]);
    }
}

/// `h <- w h` until `h` is above 100: after `n` iterations the derivative in `w` is `n wⁿ⁻¹ h₀`.
#[test]
fn growth_until_a_bound_has_its_closed_form() {
    let found = values(&[("h", &[], &[1.5]), ("w", &[], &[1.3])], |cx, v| {
        let types = [COUNTERS[0], COUNTERS[1], (DType::F64, &[][..])];
        let step = body(cx, "growth", &types, |b, s| {
            let next = s[2] * b.capture(cx, v[1].id());
            vec![next.less(b.scalar(100.0)), next, s[0]]
        });
        let y = looped(cx, step, None, &[v[0]], 1);
        let g = cx.grad(y[0], v).unwrap();
        vec![("steps", y[1]), ("gh", g[0]), ("gw", g[1])]
    });
    let n = found["steps"].len() as i32;
    assert_eq!(n, (100f64 / 1.5).log(1.3).ceil() as i32);
    let wanted = [("gh", 1.3f64.powi(n)), ("gw", f64::from(n) * 1.3f64.powi(n - 1) * 1.5)];
    for (name, want) in wanted {
        assert!((numbers(&found, name)[0] / want - 1.0).abs() < 1e-12, "{name}");
    }
}

/// A Scan as a file may hold it: without names for its own nodes, over a length that has a name.
#[test]
fn a_scan_over_an_open_length_has_a_gradient_of_that_length() {
    let mut graph = Graph::new("open");
    let x = graph.add_input("x", TensorType::with_dims(DType::F64, vec![Dim::Named("t".into()), Dim::Known(2)]));
    let h = graph.add_input("h", TensorType::new(DType::F64, &[2]));
    let last = graph.add_value("last", None);
    let cx = Cx::new("body", DType::F64);
    let step = body(&cx, "step", &[(DType::F64, &[2]), (DType::F64, &[2])], |_, s| vec![s[0] * s[1]]);
    graph.add_node(Node::new("Scan", &[h, x], &[last]).with("num_scan_inputs", 1i64).with("body", step));
    graph.infer_types().unwrap();
    let cx = Cx::over(graph, DType::F64);
    let g = cx.grad(cx.var(last).sum(&[]), &[cx.var(h), cx.var(x)]).unwrap();
    cx.output("gh", g[0]);
    cx.output("gx", g[1]);
    let graph = cx.finish().unwrap();
    for t in [1, 3] {
        let rows = Tensor::new([t, 2], (0..2 * t).map(|i| i as f64 + 2.0).collect::<Vec<_>>()).unwrap();
        let feeds =
            TensorMap::from([("x".to_owned(), rows), ("h".to_owned(), Tensor::new([2], vec![1.0, -1.0]).unwrap())]);
        let found = graph.evaluate(&feeds).unwrap();
        assert_eq!(found["gx"].shape(), [t, 2]);
        let product = |start: usize| (0..t).map(|i| (2 * i + start) as f64).product::<f64>();
        assert_eq!(numbers(&found, "gh"), [product(2), product(3)]);
        assert_eq!(numbers(&found, "gx")[0], product(2) / 2.0);
    }
}
