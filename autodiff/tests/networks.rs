//! First and second derivatives, Jacobian- and Hessian-vector products of small networks against torch: double backward and
//! `torch.func.jvp` (`tests/golden/gradients/make.py`, `networks.json`).

mod common;

use common::Feeds;
use limbeck_autodiff::{Differentiate, GradError, compose};
use limbeck_graph::{Attr, Capture, Cx, Graph, ImportOptions, Meta, Node, TensorType, Var};
use limbeck_tensor::{DType, Tensor};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};

type Named<'c> = BTreeMap<String, Var<'c>>;

/// Output and loss of a network from its named tensors.
type Net = for<'c> fn(&'c Cx, &Named<'c>) -> (Var<'c>, Var<'c>);

fn conv<'c>(x: Var<'c>, w: Var<'c>, b: Var<'c>, attrs: &[(&str, Attr)]) -> Var<'c> {
    x.cx().op("Conv", &[x, w, b], attrs)
}

fn cnn<'c>(cx: &'c Cx, v: &Named<'c>) -> (Var<'c>, Var<'c>) {
    let h = conv(v["x"], v["w1"], v["b1"], &[("pads", vec![1i64; 4].into())]).tanh();
    let h = conv(h, v["w2"], v["b2"], &[("strides", vec![2i64; 2].into())]);
    let window = [("kernel_shape", vec![2i64; 2].into()), ("strides", vec![2i64; 2].into())];
    let output = cx.op("AveragePool", &[h], &window).flatten().gemm(v["w3"], Some(v["b3"]), false, true);
    (output, output.square().mean(&[]))
}

fn mlp<'c>(cx: &'c Cx, v: &Named<'c>) -> (Var<'c>, Var<'c>) {
    let h = v["x"].gemm(v["w1"], Some(v["b1"]), false, true);
    let h = cx.op("Gelu", &[cx.op("LayerNormalization", &[h, v["scale"], v["bias"]], &[])], &[]);
    let output = h.gemm(v["w2"], Some(v["b2"]), false, true).log_softmax(-1);
    let labels = cx.ints(&[0, 2, 1, 2]).one_hot(3);
    (output, -((output * labels).sum(&[1]).mean(&[])))
}

/// BatchNormalization of training, composed while its graph is instantiated.
fn train_norm<'c>(cx: &'c Cx, v: &Named<'c>) -> (Var<'c>, Var<'c>) {
    let layer = train_mode_layer(&v["x"].shape(), cx.float());
    let names = ["x", "scale", "bias"];
    let bind: HashMap<_, _> = names.iter().map(|n| (layer.find(n).unwrap(), v[*n])).collect();
    let map = cx.inline_with(&layer, &bind, &mut compose).unwrap();
    let output = cx.op("Conv", &[map[&layer.find("y").unwrap()].relu(), v["w"]], &[]);
    (output, output.square().mean(&[]))
}

/// A block that normalises first; its attention is the operator, composed.
fn transformer<'c>(cx: &'c Cx, v: &Named<'c>) -> (Var<'c>, Var<'c>) {
    let norm = |x: Var<'c>, scale: &str, bias: &str| cx.op("LayerNormalization", &[x, v[scale], v[bias]], &[]);
    let linear = |x: Var<'c>, w: &str| x.matmul(v[w].t());
    let projected = linear(norm(v["x"], "scale1", "bias1"), "qkv");
    let operands: Vec<_> = (0..3).map(|i| Some(projected.slice(-1, 4 * i, 4 * i + 4))).collect();
    let mut node = Node::new("Attention", &[], &[]);
    let attrs = [("is_causal", 1i64), ("q_num_heads", 2), ("kv_num_heads", 2)];
    node.attrs.extend(attrs.map(|(name, n)| (name.to_owned(), n.into())));
    node.outputs = vec![None];
    let x = v["x"] + linear(compose(cx, &node, &operands).unwrap()[0], "out");
    let wide = cx.op("Gelu", &[linear(norm(x, "scale2", "bias2"), "w1") + v["b1"]], &[]);
    let output = x + linear(wide, "w2") + v["b2"];
    (output, output.square().mean(&[]))
}

/// A branch of [`switch`] as a subgraph: the result of `build` from `h`, `total` and `b`.
fn branch(name: &str, build: impl for<'c> Fn([Var<'c>; 3]) -> Var<'c>) -> Graph {
    let cx = Cx::new(name, DType::F64);
    let operands = [("h", &[3, 4][..]), ("total", &[]), ("b", &[4])];
    let operands = operands.map(|(name, shape)| cx.input(name, DType::F64, shape));
    cx.output("y", build(operands));
    let mut graph = cx.finish().unwrap();
    graph.captures = graph.inputs.drain(..).map(|inner| Capture { inner, outer: inner }).collect();
    graph.meta = Meta::default();
    graph
}

/// `if total > 0 then sqrt(total) h² + b else log(-total) tanh(h) / (1 - b²)`, imported with both branches.
fn switch() -> Graph {
    let cx = Cx::new("switch", DType::F64);
    let operands = [("h", &[3, 4][..]), ("total", &[]), ("b", &[4])];
    let operands = operands.map(|(name, shape)| cx.input(name, DType::F64, shape));
    let positive = operands[1].greater(cx.scalar(0.0));
    cx.output("positive", positive);
    let (positive, operands) = (positive.id(), operands.map(|v| v.id()));
    let mut graph = cx.finish().unwrap();
    let within = |mut branch: Graph| {
        branch.captures.iter_mut().zip(operands).for_each(|(capture, outer)| capture.outer = outer);
        Attr::Graph(Box::new(branch))
    };
    let then = branch("then", |[h, total, b]| h.square() * total.sqrt() + b);
    let or_else = branch("else", |[h, total, b]| h.tanh() * (-total).ln() / (1.0 - b.square()));
    let y = graph.add_value("y", Some(TensorType::new(DType::F64, &[3, 4])));
    let node = Node::new("If", &[positive], &[y]).with("then_branch", within(then));
    graph.add_node(node.with("else_branch", within(or_else)));
    graph.outputs = vec![y];
    let options = ImportOptions { both_branches: true, ..ImportOptions::default() };
    assert_eq!(graph.import(&options).unwrap().selected, 1);
    graph
}

/// The branch that is not taken has no finite values and no finite derivatives at these operands.
fn branching<'c>(cx: &'c Cx, v: &Named<'c>, sign: f64) -> (Var<'c>, Var<'c>) {
    let graph = switch();
    let operands = [("h", v["x"].matmul(v["w"])), ("total", v["x"].sum(&[]) * sign), ("b", v["b"])];
    let bind = operands.into_iter().map(|(name, v)| (graph.find(name).unwrap(), v)).collect();
    let output = cx.inline_with(&graph, &bind, &mut compose).unwrap()[&graph.find("y").unwrap()];
    (output, output.square().mean(&[]))
}

/// BatchNormalization with `training_mode` as an exporter writes it.
fn train_mode_layer(shape: &[usize], float: DType) -> Graph {
    let layer = Cx::new("layer", float);
    let channels = &shape[1..2];
    let x = layer.input("x", float, shape);
    let (scale, bias) = (layer.input("scale", float, channels), layer.input("bias", float, channels));
    let (mean, variance) = (layer.full(0.5, float, channels), layer.full(2.0, float, channels));
    let inputs = [x, scale, bias, mean, variance].map(Some);
    let attrs = [("training_mode", 1i64.into()), ("momentum", 0.75.into())];
    let results = layer.op_n("", "BatchNormalization", &inputs, &attrs, 3);
    for (name, v) in ["y", "mean", "variance"].into_iter().zip(results) {
        layer.output(name, v);
    }
    layer.finish().unwrap()
}

fn check(net: Net, name: &str) {
    let golden = &common::golden("networks.json")[name];
    let tensors = golden["tensors"].as_object().unwrap();
    let (graph, feeds) = build(net, tensors, golden["tangents"].as_object().unwrap()).unwrap();
    let result = graph.evaluate(&feeds).unwrap();
    let agrees = |found: &str, reference: &Value| {
        let e = common::relative_error(&result[found].to_f64_vec().unwrap(), &common::numbers(&reference["data"]));
        assert!(e < 1e-9, "{name}: {found} has a relative error of {e:e}");
    };
    for key in ["loss", "output", "jvp"] {
        agrees(key, &golden[key]);
    }
    for order in ["first", "second", "hvp"] {
        for tensor in tensors.keys() {
            agrees(&format!("{order}/{tensor}"), &golden[order][tensor]);
        }
    }
}

fn build(net: Net, tensors: &Map<String, Value>, tangents: &Map<String, Value>) -> Result<(Graph, Feeds), GradError> {
    let cx = Cx::new("net", DType::F64);
    let mut feeds = Feeds::new();
    let mut inputs = |prefix: &str, of: &Map<String, Value>| -> Vec<(String, Tensor)> {
        let all: Vec<_> = of.iter().map(|(k, v)| (format!("{prefix}{k}"), common::floats(DType::F64, v))).collect();
        feeds.extend(all.clone());
        all
    };
    let (values, along) = (inputs("", tensors), inputs("tangent/", tangents));
    let var = |(name, t): &(String, Tensor)| cx.input(name, DType::F64, t.shape());
    let wrt: Vec<Var<'_>> = values.iter().map(var).collect();
    let tangent: Vec<Var<'_>> = along.iter().map(var).collect();
    let named: Named<'_> = values.iter().map(|(k, _)| k.clone()).zip(wrt.iter().copied()).collect();
    let (output, loss) = net(&cx, &named);
    let first = cx.grad(loss, &wrt)?;
    let norm = first.iter().map(|g| g.square().sum(&[])).reduce(|a, b| a + b).unwrap();
    let second = cx.grad(norm, &wrt)?;
    let hvp = cx.hvp(loss, &wrt, &tangent)?;
    let jvp = cx.jvp(&[output], &wrt, &tangent)?[0];
    for (name, v) in [("loss", loss), ("output", output), ("jvp", jvp)] {
        cx.output(name, v);
    }
    for (i, (name, _)) in values.iter().enumerate() {
        cx.output(&format!("first/{name}"), first[i]);
        cx.output(&format!("second/{name}"), second[i]);
        cx.output(&format!("hvp/{name}"), hvp[i]);
    }
    Ok((cx.finish()?, feeds))
}

#[test]
fn a_convolutional_network_agrees_with_torch() {
    check(cnn, "cnn");
}

#[test]
fn layer_normalisation_gelu_and_log_softmax_agree_with_torch() {
    check(mlp, "mlp");
}

#[test]
fn a_transformer_block_agrees_with_torch() {
    check(transformer, "transformer");
}

#[test]
fn an_open_if_agrees_with_torch_whichever_branch_is_taken() {
    check(|cx, v| branching(cx, v, 1.0), "then_branch");
    check(|cx, v| branching(cx, v, -1.0), "else_branch");
}

#[test]
fn batch_normalisation_in_training_agrees_with_torch() {
    check(train_norm, "train_norm");
}

/// The composed layer against the operator's own evaluation: result and running statistics.
#[test]
fn composed_running_statistics_are_those_of_the_operator() {
    let layer = train_mode_layer(&[2, 3, 2], DType::F64);
    let cx = Cx::new("composed", DType::F64);
    let input = |name: &str, shape: &[usize]| (layer.find(name).unwrap(), cx.input(name, DType::F64, shape));
    let bind = HashMap::from([input("x", &[2, 3, 2]), input("scale", &[3]), input("bias", &[3])]);
    let map = cx.inline_with(&layer, &bind, &mut compose).unwrap();
    for name in ["y", "mean", "variance"] {
        let v = map[&layer.find(name).unwrap()];
        cx.output(name, v);
    }
    let composed = cx.finish().unwrap();
    assert!(composed.nodes().all(|(_, n): (_, &Node)| n.op != "BatchNormalization"));
    let tensor = |shape: &[usize], values: Vec<f64>| Tensor::new(shape, values).unwrap();
    let x = (0..12).map(|i| f64::from(i * i % 7) - 2.5).collect();
    let feeds = Feeds::from([
        ("x".into(), tensor(&[2, 3, 2], x)),
        ("scale".into(), tensor(&[3], vec![1.0, -0.5, 2.0])),
        ("bias".into(), tensor(&[3], vec![0.0, 1.0, -1.0])),
    ]);
    let (expected, found) = (layer.evaluate(&feeds).unwrap(), composed.evaluate(&feeds).unwrap());
    for (name, value) in &expected {
        let e = common::relative_error(&found[name].to_f64_vec().unwrap(), &value.to_f64_vec().unwrap());
        assert!(e < 1e-12, "{name}: {e:e}");
    }
}
