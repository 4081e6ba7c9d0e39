//! Loops and Scans with gradients, as cases that a graph is built of in any float type.

use limbeck_autodiff::{Differentiate, GradError};
use limbeck_graph::{Attr, Cx, Graph, TensorType, Var};
use limbeck_tensor::{DType, Tensor};
use std::collections::BTreeMap;

/// A case: inputs by name with shape and values, and the results that are differentiated, of known shapes.
pub(crate) struct LoopCase {
    pub(crate) name: &'static str,
    pub(crate) inputs: &'static [(&'static str, &'static [usize], &'static [f64])],
    pub(crate) build: for<'c> fn(&'c Cx, &[Var<'c>]) -> Vec<Var<'c>>,
}

impl LoopCase {
    pub(crate) fn feeds(&self, float: DType) -> BTreeMap<String, Tensor> {
        let feed = |(name, shape, values): &(&str, &[usize], &[f64])| {
            (name.to_string(), Tensor::from_f64(float, *shape, values).expect("shape and values agree"))
        };
        self.inputs.iter().map(feed).collect()
    }

    /// A graph with the output `loss`, a sum of the results with weights, and the gradients `g.NAME` of the inputs. At order
    /// 2 the results are the gradients of order 1.
    pub(crate) fn graph(&self, float: DType, order: usize) -> Result<Graph, GradError> {
        let cx = Cx::new(self.name, float);
        let inputs: Vec<Var<'_>> = self.inputs.iter().map(|(name, shape, _)| cx.input(name, float, shape)).collect();
        let mut results = (self.build)(&cx, &inputs);
        let mut loss = cx.scalar(0.0);
        for _ in 0..order {
            loss = cx.scalar(0.0);
            for (k, y) in results.iter().enumerate() {
                let shape = y.shape();
                let weight = |i: usize| ((3 * i + 7 * k + 1) as f64).sin();
                let weights: Vec<f64> = (0..shape.iter().product()).map(weight).collect();
                loss = loss + (*y * cx.floats(&shape, &weights)).sum(&[]);
            }
            results = cx.grad(loss, &inputs)?;
        }
        cx.output("loss", loss);
        for ((name, ..), gradient) in self.inputs.iter().zip(results) {
            cx.output(&format!("g.{name}"), gradient);
        }
        Ok(cx.finish()?)
    }
}

/// A body whose inputs have these types; `build` gives its results.
pub(crate) fn body(
    cx: &Cx,
    op: &str,
    inputs: &[(DType, &[usize])],
    build: impl for<'b> FnOnce(&'b Cx, &[Var<'b>]) -> Vec<Var<'b>>,
) -> Attr {
    let body = cx.body(op);
    let inputs: Vec<Var<'_>> =
        inputs.iter().map(|(dtype, shape)| body.operand("x", TensorType::new(*dtype, shape))).collect();
    for result in build(&body, &inputs) {
        body.result(result);
    }
    Attr::from(body.finish_body().expect("a body"))
}

/// A Scan over `read` along these axes, backwards where they say so.
pub(crate) fn scan<'c>(
    cx: &'c Cx,
    body: Attr,
    carried: &[Var<'c>],
    read: &[(Var<'c>, i64, bool)],
    written: &[(i64, bool)],
) -> Vec<Var<'c>> {
    let operands: Vec<_> = carried.iter().copied().chain(read.iter().map(|(v, ..)| *v)).map(Some).collect();
    let list = |values: Vec<i64>| Attr::Ints(values);
    let attrs = [
        ("body", body),
        ("num_scan_inputs", read.len().into()),
        ("scan_input_axes", list(read.iter().map(|(_, axis, _)| *axis).collect())),
        ("scan_input_directions", list(read.iter().map(|(.., back)| i64::from(*back)).collect())),
        ("scan_output_axes", list(written.iter().map(|(axis, _)| *axis).collect())),
        ("scan_output_directions", list(written.iter().map(|(_, back)| i64::from(*back)).collect())),
    ];
    cx.op_n("", "Scan", &operands, &attrs, carried.len() + written.len())
}

/// A Loop of at most `trips` iterations.
pub(crate) fn looped<'c>(
    cx: &'c Cx,
    body: Attr,
    trips: Option<i64>,
    carried: &[Var<'c>],
    written: usize,
) -> Vec<Var<'c>> {
    let trips = trips.map(|n| cx.constant(Tensor::scalar(n)));
    let mut operands = vec![trips, None];
    operands.extend(carried.iter().copied().map(Some));
    cx.op_n("", "Loop", &operands, &[("body", body)], carried.len() + written)
}

/// `tanh(w h + x)` over columns from the first and rows from the last, with a weight that the body stores.
fn scan_axes<'c>(cx: &'c Cx, v: &[Var<'c>]) -> Vec<Var<'c>> {
    let float = cx.float();
    let (h, x, z, w) = (v[0], v[1], v[2], v[3].id());
    let body = body(cx, "scan", &[(float, &[2]), (float, &[2]), (float, &[2])], |b, s| {
        let scale = b.initializer("scale", Tensor::from_f64(float, [2], &[0.5, -1.5]).expect("two"));
        let next = (b.capture(cx, w).matmul(s[0].unsqueeze(&[1])).squeeze(&[1]) + s[1] * s[2]).tanh();
        vec![next, next * s[1] * scale, s[0] * s[2]]
    });
    scan(cx, body, &[h], &[(x, 1, false), (z, 0, true)], &[(1, true), (-1, false)])
}

/// What is read alone, without carried values, and written again.
fn scan_map<'c>(cx: &'c Cx, v: &[Var<'c>]) -> Vec<Var<'c>> {
    let (x, w) = (v[0], v[1].id());
    let body = body(cx, "scan", &[(cx.float(), &[2])], |b, s| vec![s[0].sin() * b.capture(cx, w)]);
    scan(cx, body, &[], &[(x, 0, true)], &[(0, false)])
}

/// A value that each iteration passes on as it is, and captures besides.
fn scan_constant<'c>(cx: &'c Cx, v: &[Var<'c>]) -> Vec<Var<'c>> {
    let float = cx.float();
    let (h, w, x) = (v[0], v[1], v[2]);
    let body = body(cx, "scan", &[(float, &[2]), (float, &[2]), (float, &[2])], |b, s| {
        let captured = b.capture(cx, w.id());
        vec![(s[0] * s[1] + s[2]).sin(), s[1].identity(), s[0] * captured]
    });
    scan(cx, body, &[h, w], &[(x, 0, false)], &[(0, false)])
}

/// Another value takes over what was carried: gradients move from one carried value to the next.
fn scan_shifted<'c>(cx: &'c Cx, v: &[Var<'c>]) -> Vec<Var<'c>> {
    let float = cx.float();
    let body = body(cx, "scan", &[(float, &[2]), (float, &[2]), (float, &[2])], |_, s| vec![s[1], s[2] * s[0].exp()]);
    scan(cx, body, &[v[0], v[0]], &[(v[1], 0, false)], &[])
}

/// The number of the iteration, integers that are carried, and slices that a Loop writes.
fn loop_counted<'c>(cx: &'c Cx, v: &[Var<'c>]) -> Vec<Var<'c>> {
    let float = cx.float();
    let x = v[1].id();
    let types: [(DType, &[usize]); 4] = [(DType::I64, &[]), (DType::Bool, &[]), (float, &[2]), (DType::I64, &[])];
    let body = body(cx, "loop", &types, |b, s| {
        let row = b.capture(cx, x).gather(s[3], 0);
        let next = s[2].sin() * row + s[0].cast(b.float());
        let k = b.op("Mod", &[s[3] + 2.0, b.scalar_of(3.0, DType::I64)], &[]);
        vec![s[1], next, k, next * row]
    });
    let start = cx.scalar_of(1.0, DType::I64);
    let y = looped(cx, body, Some(4), &[v[0], start], 1);
    vec![y[0], y[2].square().sum(&[0])]
}

/// Iterations until the norm is large, which the data decide.
fn loop_until<'c>(cx: &'c Cx, v: &[Var<'c>]) -> Vec<Var<'c>> {
    let float = cx.float();
    let w = v[1].id();
    let types: [(DType, &[usize]); 3] = [(DType::I64, &[]), (DType::Bool, &[]), (float, &[2])];
    let body = body(cx, "loop", &types, |b, s| {
        let next = b.capture(cx, w).matmul(s[2].unsqueeze(&[1])).squeeze(&[1]) + s[2].square() * 0.1;
        vec![next.square().sum(&[]).less(b.scalar(20.0)), next, next]
    });
    let y = looped(cx, body, None, &[v[0]], 1);
    vec![y[0], (y[1] * 0.3).tanh().sum(&[0])]
}

/// No iteration at all.
fn loop_never<'c>(cx: &'c Cx, v: &[Var<'c>]) -> Vec<Var<'c>> {
    let types: [(DType, &[usize]); 3] = [(DType::I64, &[]), (DType::Bool, &[]), (cx.float(), &[2])];
    let w = v[1].id();
    let body = body(cx, "loop", &types, |b, s| {
        let next = s[2].exp() * b.capture(cx, w);
        vec![s[1], next, next]
    });
    let y = looped(cx, body, Some(0), &[v[0].square()], 1);
    vec![y[0], y[1].sum(&[0])]
}

/// No iteration, as the data have it.
fn loop_not_entered<'c>(cx: &'c Cx, v: &[Var<'c>]) -> Vec<Var<'c>> {
    let types: [(DType, &[usize]); 3] = [(DType::I64, &[]), (DType::Bool, &[]), (cx.float(), &[2])];
    let w = v[1].id();
    let body = body(cx, "loop", &types, |b, s| {
        let next = s[2].exp() * b.capture(cx, w);
        vec![s[1], next, next]
    });
    let enters = v[0].sum(&[]).greater(cx.scalar(100.0));
    let y = cx.op_n("", "Loop", &[None, Some(enters), Some(v[0].square())], &[("body", body)], 2);
    vec![y[0], y[1].sum(&[0])]
}

/// A Scan in each iteration of a Loop, with weights from both levels around it.
fn loop_of_scans<'c>(cx: &'c Cx, v: &[Var<'c>]) -> Vec<Var<'c>> {
    let float = cx.float();
    let (x, w) = (v[1].id(), v[2].id());
    let types: [(DType, &[usize]); 3] = [(DType::I64, &[]), (DType::Bool, &[]), (float, &[2])];
    let outer = body(cx, "loop", &types, |b, s| {
        let (outer, x) = (s[2] * b.capture(cx, w), b.capture(cx, x));
        let inner = body(b, "scan", &[(float, &[2]), (float, &[2])], |i, t| {
            let next = (t[0] * i.capture(b, outer.id()) + t[1]).tanh();
            vec![next, next.square()]
        });
        let y = scan(b, inner, &[s[2]], &[(x, 0, false)], &[(0, false)]);
        vec![s[1], y[0] + y[1].sum(&[0])]
    });
    looped(cx, outer, Some(3), &[v[0]], 0)
}

const H: (&str, &[usize], &[f64]) = ("h", &[2], &[0.7, -0.4]);
const X: (&str, &[usize], &[f64]) = ("x", &[3, 2], &[0.3, -0.8, 1.1, 0.6, -0.5, 0.9]);

/// The cases; Loops have names in `loop`.
pub(crate) const CASES: &[LoopCase] = &[
    LoopCase {
        name: "scan over axes and from both ends",
        inputs: &[
            H,
            ("x", &[2, 3], &[0.3, -0.8, 1.1, 0.6, -0.5, 0.9]),
            ("z", &[3, 2], &[1.2, 0.1, -0.7, 0.8, 0.4, -1.3]),
            ("w", &[2, 2], &[0.5, -0.3, 0.2, 0.9]),
        ],
        build: scan_axes,
    },
    LoopCase { name: "scan without carried values", inputs: &[X, ("w", &[2], &[1.5, -0.5])], build: scan_map },
    LoopCase { name: "scan with a constant", inputs: &[H, ("w", &[2], &[1.5, -0.5]), X], build: scan_constant },
    LoopCase { name: "scan with shifted values", inputs: &[H, X], build: scan_shifted },
    LoopCase { name: "loop that counts", inputs: &[H, X], build: loop_counted },
    LoopCase { name: "loop until", inputs: &[H, ("w", &[2, 2], &[1.1, 0.6, -0.7, 1.4])], build: loop_until },
    LoopCase { name: "loop that never runs", inputs: &[H, ("w", &[2], &[1.5, -0.5])], build: loop_never },
    LoopCase { name: "loop that is not entered", inputs: &[H, ("w", &[2], &[1.5, -0.5])], build: loop_not_entered },
    LoopCase { name: "loop of scans", inputs: &[H, X, ("w", &[2], &[0.5, -0.5])], build: loop_of_scans },
];
