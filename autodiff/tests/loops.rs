//! Gradients of Loop and Scan that stay loops: against central differences of the reference evaluator in float64 and against
//! the same loops unrolled, in both forms of lowering, written and read again; and what is refused.

mod common;

use common::loops::{CASES, LoopCase, body, looped, scan};
use limbeck_autodiff::{Differentiate, compose};
use limbeck_graph::{Cx, Form, Graph, ImportOptions, Var};
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
