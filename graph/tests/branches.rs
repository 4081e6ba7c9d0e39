//! An If whose condition stays open, imported with both its branches: the same results, without subgraphs.

use limbeck_graph::{Attr, Capture, Cx, Graph, ImportOptions, Meta, Node, TensorType, ValueId, Var};
use limbeck_tensor::{DType, Tensor, TensorMap};

/// What every branch reads: floats `x` `[2]` and an integer `n`.
const OPERANDS: [(&str, DType, &[usize]); 2] = [("x", DType::F32, &[2]), ("n", DType::I64, &[])];

/// A branch with the results of `build`.
fn branch(name: &str, build: impl for<'c> Fn(&'c Cx, [Var<'c>; 2]) -> Vec<Var<'c>>) -> Graph {
    let cx = Cx::new(name, DType::F32);
    let operands = OPERANDS.map(|(name, dtype, shape)| cx.input(name, dtype, shape));
    for (i, result) in build(&cx, operands).into_iter().enumerate() {
        cx.output(&format!("{name}{i}"), result);
    }
    let mut graph = cx.finish().unwrap();
    graph.captures = graph.inputs.drain(..).map(|inner| Capture { inner, outer: inner }).collect();
    graph.meta = Meta::default();
    graph
}

/// The branch as an attribute of a node next to which the operands are these values.
fn within(mut branch: Graph, operands: &[ValueId; 2]) -> Attr {
    for (capture, outer) in branch.captures.iter_mut().zip(operands) {
        capture.outer = *outer;
    }
    Attr::Graph(Box::new(branch))
}

/// `if n > 1 then .. else ..`, a node called `choice` with `results` results; the condition has the shape `[1]`.
fn choice(then: Graph, or_else: Graph, results: usize) -> Graph {
    let cx = Cx::new("open", DType::F32);
    let [x, n] = OPERANDS.map(|(name, dtype, shape)| cx.input(name, dtype, shape));
    let many = n.greater(cx.scalar_of(1.0, DType::I64)).reshape(&[1]);
    cx.output("many", many);
    cx.output("kept", x + n.cast(DType::F32));
    let (many, operands) = (many.id(), [x.id(), n.id()]);
    let mut graph = cx.finish().unwrap();
    let outputs: Vec<ValueId> = (0..results).map(|i| graph.add_value(format!("y{i}"), None)).collect();
    let mut node = Node::new("If", &[many], &outputs).with("then_branch", within(then, &operands));
    node = node.with("else_branch", within(or_else, &operands));
    node.name = "choice".into();
    graph.add_node(node);
    graph.outputs = outputs;
    graph.infer_types().unwrap();
    graph
}

fn imported(graph: &Graph) -> Result<Graph, String> {
    let mut graph = Graph::from_bytes(graph.to_bytes().unwrap(), None).unwrap();
    graph.import(&ImportOptions { both_branches: true, ..ImportOptions::default() }).map_err(|e| e.to_string())?;
    Ok(graph)
}

/// Results at `x` and `n`, of each kind as f64.
fn at(graph: &Graph, x: [f32; 2], n: i64) -> Vec<Vec<f64>> {
    let feeds =
        TensorMap::from([("x".to_owned(), Tensor::new([2], x.to_vec()).unwrap()), ("n".to_owned(), Tensor::scalar(n))]);
    graph.evaluate(&feeds).unwrap().values().map(|t| t.to_f64_vec().unwrap()).collect()
}

fn weighted<'c>(cx: &'c Cx, x: Var<'c>) -> Var<'c> {
    x * cx.initializer("w", Tensor::new([2], vec![2f32, 3.0]).unwrap())
}

#[test]
fn results_are_those_of_the_branch_that_is_taken() {
    let then = branch("then", |cx, [x, n]| vec![weighted(cx, x), n + n]);
    let or_else = branch("else", |_, [x, n]| vec![x.ln(), n.identity()]);
    let open = choice(then, or_else, 2);
    let both = imported(&open).unwrap();
    assert!(both.nodes().all(|(_, n)| n.subgraphs().next().is_none()));
    // A weight of a branch is one of the graph.
    let w = both.find("w").unwrap();
    assert!(both.initializer(w).is_some() && !both.is_literal(w));
    assert_eq!(at(&both, [-1.0, 4.0], 2), [vec![-2.0, 12.0], vec![4.0]]);
    assert_eq!(at(&both, [1.0, 1.0], 1), [vec![0.0, 0.0], vec![1.0]]);
    for n in [1, 2] {
        assert_eq!(at(&both, [0.5, 2.0], n), at(&open, [0.5, 2.0], n));
    }
}

#[test]
fn an_if_within_a_branch_is_selected_too() {
    let inner = |name: &str, factor: f64| branch(name, |_, [x, _]| vec![x * factor]);
    let (low, high) = (inner("low", 2.0), inner("high", 3.0));
    let mut then = branch("then", |_, [x, n]| {
        let positive = x.sum(&[]).greater(x.cx().scalar(0.0));
        vec![x.identity(), positive, n.identity()]
    });
    let operands: Vec<ValueId> = then.captures.iter().map(|c| c.inner).collect();
    let operands = [operands[0], operands[1]];
    let result = then.add_value("picked", None);
    let node = Node::new("If", &[then.outputs[1]], &[result]).with("then_branch", within(high, &operands));
    then.add_node(node.with("else_branch", within(low, &operands)));
    then.outputs = vec![result];
    let open = choice(then, branch("else", |_, [x, _]| vec![-x]), 1);
    let both = imported(&open).unwrap();
    assert!(both.nodes().all(|(_, n)| n.subgraphs().next().is_none()));
    let expected = [(2, [1.0, 2.0], [3.0, 6.0]), (2, [1.0, -2.0], [2.0, -4.0]), (1, [1.0, -2.0], [-1.0, 2.0])];
    for (n, x, y) in expected {
        assert_eq!(at(&both, x, n), [y.to_vec()]);
    }
}

/// What a Resize is told stays a constant, which its shapes and its gradient need.
#[test]
fn settings_stay_constants() {
    let resized = |name: &str, scale: f32| {
        branch(name, |cx, [x, _]| {
            let scales = cx.initializer("scales", Tensor::new([1], vec![scale]).unwrap());
            let attrs = [("mode", "linear".into())];
            vec![cx.op_n("", "Resize", &[Some(x), None, Some(scales)], &attrs, 1)[0]]
        })
    };
    let both = imported(&choice(resized("then", 2.0), resized("else", 2.25), 1)).unwrap();
    let scales: Vec<ValueId> = both.nodes().filter(|(_, n)| n.op == "Resize").filter_map(|(_, n)| n.input(2)).collect();
    assert_eq!(scales.len(), 2);
    assert!(scales.iter().all(|&v| both.initializer(v).is_some()));
    assert_eq!(both.shape(both.outputs[0]).unwrap(), [4]);
}

/// The error of a choice between `x` and the result of `build`.
fn refusal(build: impl for<'c> Fn(&'c Cx, [Var<'c>; 2]) -> Var<'c>) -> String {
    let then = branch("then", |_, [x, _]| vec![x.identity()]);
    imported(&choice(then, branch("else", |cx, operands| vec![build(cx, operands)]), 1)).unwrap_err()
}

#[test]
fn branches_that_cannot_be_selected_are_refused() {
    // Of which Where would broadcast the first.
    for extent in [1, 3] {
        let error = refusal(|cx, _| cx.floats(&[extent], &vec![1.0; extent]).identity());
        let types = [TensorType::new(DType::F32, &[2]), TensorType::new(DType::F32, &[extent])];
        assert!(error.contains("'choice' (If)") && types.iter().all(|t| error.contains(&t.to_string())), "{error}");
        assert!(error.contains("--fix"), "{error}");
    }
    let error = refusal(|cx, [x, _]| {
        let of_channels = |v: f64| cx.full(v, DType::F32, &[2]);
        let [zeros, ones] = [of_channels(0.0), of_channels(1.0)];
        cx.op("BatchNormalization", &[x.reshape(&[1, 2]), ones, zeros, zeros, ones], &[]).reshape(&[2])
    });
    assert!(error.contains("'choice' (If)") && error.contains("running statistics"), "{error}");
    let error = refusal(|cx, [x, _]| x + cx.op("RandomNormal", &[], &[("shape", vec![2i64].into())]));
    assert!(error.contains("'choice' (If)") && error.contains("RandomNormal"), "{error}");
}
