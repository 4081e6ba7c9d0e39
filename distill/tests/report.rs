//! What counts as a parameter, and what the report says of nets that cannot be trained, or otherwise than it seems.

use limbeck_distill::models::Layers;
use limbeck_distill::{DistillError, Finding, Net, Role, Severity, Trainability, Verdict};
use limbeck_graph::{Attr, Cx, Dim, Graph, Node, TensorType, Var};
use limbeck_tensor::{DType, Tensor};

/// Different floats of a shape.
fn drawn(shape: &[usize], seed: u64) -> Tensor {
    let mut stream = limbeck_runtime::noise::stream(seed, 0, "report");
    Tensor::new(shape, (0..shape.iter().product()).map(|_: usize| stream.normal() as f32).collect()).unwrap()
}

/// A literal under a name.
fn literal<'c>(cx: &'c Cx, name: &str, tensor: Tensor) -> Var<'c> {
    let var = cx.constant(tensor);
    cx.edit(|g| g.rename(var.id(), name)).unwrap();
    var
}

fn net(f: impl FnOnce(&Cx)) -> Net {
    Net::build("net", |cx| {
        f(cx);
        Ok::<(), DistillError>(())
    })
    .unwrap()
}

fn report(f: impl FnOnce(&Cx)) -> Trainability {
    net(f).report()
}

/// Severity and names of a finding.
fn found(report: &Trainability, finding: Finding) -> Option<(Severity, &[String])> {
    report.remarks.iter().find(|r| r.finding == finding).map(|r| (r.severity, &r.names[..]))
}

#[test]
fn literals_are_weights_where_they_are_applied_as_weights() {
    let net = net(|cx| {
        let l = |name: &str, shape: &[usize]| literal(cx, name, drawn(shape, name.len() as u64));
        // A convolution and a linear layer, each with its bias as an Add.
        let image = cx.input("image", DType::F32, &[2, 3, 6, 6]);
        let conv = cx.op("Conv", &[image, l("conv", &[4, 3, 3, 3])], &[]) + l("conv bias", &[1, 4, 1, 1]);
        let behind = cx.op("Conv", &[image, l("shaped", &[36, 3]).reshape(&[4, 3, 3, 3])], &[]);
        let conv = conv + (behind + l("shaped bias", &[4]).reshape(&[1, 4, 1, 1]));
        cx.output("conv out", conv + l("row", &[4]));
        let x = cx.input("x", DType::F32, &[2, 5, 6]);
        let h = x.matmul(l("linear", &[6, 8])) + l("linear bias", &[8]);
        // Normalisation in primitives.
        let centred = h - h.mean_keep(&[-1]);
        let deviation = (centred.square().mean_keep(&[-1]) + 1e-5).sqrt();
        let h = (centred / deviation) * l("scale", &[8]) + l("shift", &[8]);
        // Tables of positions and masks, some as wide as the layer.
        let h = h.matmul(l("second", &[8, 8])) + l("positions", &[5, 8]);
        let scores = h.matmul(h.transpose(&[0, 2, 1])) + l("mask", &[5]);
        cx.output("y", scores.softmax(-1).matmul(h) * l("factors", &[8]));
    });
    let weights = ["conv", "conv bias", "shaped", "shaped bias", "linear", "linear bias", "scale", "shift", "second"];
    let constants = ["row", "positions", "mask", "factors"];
    let again = Net::from_graph(Graph::from_bytes(net.graph().to_bytes().unwrap(), None).unwrap()).unwrap();
    for net in [&net, &again] {
        let of = |role| net.stored().iter().filter(move |s| s.role == role).map(|s| s.name.as_str());
        let mut parameters: Vec<&str> = of(Role::Parameter).collect();
        parameters.sort_unstable();
        let mut expected = weights.to_vec();
        expected.sort_unstable();
        assert_eq!(parameters, expected);
        let others: Vec<&str> = of(Role::Constant).collect();
        assert!(constants.iter().all(|c| others.contains(c)), "{others:?}");
        let why = |name: &str| &net.stored().iter().find(|s| s.name == name).unwrap().why;
        assert!(why("conv bias").contains("Conv") && why("conv bias").contains("a bias"), "{}", why("conv bias"));
        assert!(why("scale").contains("a scale") && why("shift").contains("a shift"));
    }
}

#[test]
fn the_caller_decides_otherwise() {
    let built = || {
        net(|cx| {
            let x = cx.input("x", DType::F32, &[2, 3]);
            let w = cx.initializer("w", drawn(&[3, 3], 1));
            cx.output("y", x.matmul(w) * literal(cx, "factors", drawn(&[3], 2)));
        })
    };
    assert_eq!(built().parameters(), ["w"]);
    let both = built().with_parameters(&["factors"]).unwrap();
    assert_eq!((both.parameters().len(), both.parameter_count()), (2, 12));
    assert_eq!(both.with_constants(&["w"]).unwrap().parameters(), ["factors"]);
    for (result, name) in
        [(built().with_parameters(&["w"]), "'w'"), (built().with_constants(&["factors"]), "'factors'")]
    {
        assert!(result.unwrap_err().to_string().contains(name));
    }
}

#[test]
fn operators_without_gradient_are_blockers_with_their_nodes() {
    let with = |domain: &str, op: &str| {
        let mut graph = net(|cx| {
            let x = cx.input("x", DType::F32, &[2, 3]);
            let before = cx.initializer("before", drawn(&[3, 3], 1));
            let after = cx.initializer("after", drawn(&[3, 3], 2));
            cx.output("y", x.matmul(before).relu().matmul(after));
        })
        .graph()
        .clone();
        let relu = graph.nodes().find(|(_, n)| n.op == "Relu").unwrap().0;
        let node = graph.node_mut(relu);
        (node.op, node.domain, node.name) = (op.into(), domain.into(), "odd".into());
        Net::from_graph(graph).unwrap()
    };
    for (domain, op, hint) in [
        ("com.microsoft", "FastGelu", "before that optimisation"),
        ("com.microsoft", "QLinearSigmoid", "quantise it afterwards"),
        ("com.acme", "Foo", "freeze the parameters before it"),
    ] {
        let net = with(domain, op);
        let report = net.report();
        assert_eq!(report.verdict, Verdict::NotTrainable);
        let remark = &report.remarks[0];
        assert_eq!((remark.severity, remark.finding), (Severity::Blocker, Finding::NoGradient));
        assert_eq!(remark.names, [format!("{domain}::{op} 'odd'")]);
        assert!(remark.remedy.contains(hint), "{remark:?}");
        // Nothing before it is trained: no gradient has to pass, but the builder does not know the operator.
        let frozen = net.with_constants(&["before"]).unwrap().report();
        assert_eq!(found(&frozen, Finding::NoGradient), None);
    }
}

#[test]
fn parameters_that_no_gradient_reaches_are_named() {
    let net = net(|cx| {
        let x = cx.input("x", DType::F32, &[2, 3]);
        let w = |name: &str, seed| cx.initializer(name, drawn(&[3, 3], seed));
        let rounded = cx.op("Round", &[x.matmul(w("rounded", 1))], &[]);
        let chosen = x.matmul(w("chosen", 2)).argmax(-1).cast(DType::F32).unsqueeze(&[-1]);
        cx.output("y", x.matmul(w("trained", 4)) + rounded * chosen);
    });
    let mut graph = net.graph().clone();
    let (dead, unused) = (graph.add_initializer("dead", drawn(&[3], 3)), graph.add_value("unused", None));
    graph.add_node(Node::new("Relu", &[dead], &[unused]));
    let report = Net::from_graph(graph).unwrap().report();
    assert_eq!(report.verdict, Verdict::TrainableWithRemarks);
    let unreached: Vec<_> = report.remarks.iter().filter(|r| r.finding == Finding::Unreached).collect();
    assert_eq!(unreached.iter().map(|r| r.names.join(" ")).collect::<Vec<_>>(), ["dead", "rounded chosen"]);
    let (severity, ends) = found(&report, Finding::GradientEnds).unwrap();
    assert!(severity == Severity::Note && ends[0].starts_with("Round") && ends[1].starts_with("ArgMax"), "{ends:?}");
}

#[test]
fn nothing_to_train_and_nothing_to_learn_from_are_blockers() {
    let nothing = report(|cx| cx.output("y", cx.input("x", DType::F32, &[2, 3]).relu()));
    assert_eq!((nothing.verdict, nothing.numbers), (Verdict::NotTrainable, 0));
    assert_eq!(found(&nothing, Finding::Nothing).unwrap().0, Severity::Blocker);
    let decided = report(|cx| {
        let x = cx.input("x", DType::F32, &[2, 3]);
        cx.output("label", x.matmul(cx.initializer("w", drawn(&[3, 3], 1))).argmax(-1));
    });
    assert_eq!(found(&decided, Finding::Nothing), Some((Severity::Blocker, &["label".to_owned()][..])));
}

#[test]
fn quantised_weights_are_trained_straight_through_and_stored_integers_are_not() {
    let report = report(|cx| {
        let x = cx.input("x", DType::F32, &[2, 3]);
        let (scale, zero) = (cx.initializer("scale", Tensor::scalar(0.1f32)), cx.constant(Tensor::scalar(0i8)));
        let restored = |q| cx.op("DequantizeLinear", &[q, scale, zero], &[]);
        let float = cx.initializer("float", drawn(&[3, 3], 1));
        let h = x.matmul(restored(cx.op("QuantizeLinear", &[float, scale, zero], &[])));
        let stored = cx.initializer("int8", Tensor::new([3, 3], (-4..5i8).collect()).unwrap());
        cx.output("y", h.matmul(restored(stored)));
    });
    let quantised: Vec<_> = report.remarks.iter().filter(|r| r.finding == Finding::Quantised).collect();
    let facts: Vec<_> = quantised.iter().map(|r| (r.severity, r.names.join(" "))).collect();
    assert_eq!(facts, [(Severity::Warning, "int8".to_owned()), (Severity::Note, "float".to_owned())]);
    assert_eq!(report.stored.iter().filter(|s| s.role == Role::Parameter).count(), 1);
}

#[test]
fn open_dims_are_told_with_their_names_and_branches_block() {
    let mut graph = net(|cx| {
        let x = Layers::new(cx, 0).input("x", &[3]);
        cx.output("y", x.matmul(cx.initializer("w", drawn(&[3, 3], 1))));
    })
    .graph()
    .clone();
    let report = Net::from_graph(graph.clone()).unwrap().report();
    assert_eq!(report.verdict, Verdict::Trainable, "{report:#?}");
    let dims = report.remarks.iter().find(|r| r.finding == Finding::Dims).unwrap();
    assert!(dims.remedy.contains("--dim batch=N") && dims.names[0].contains("float32[batch, 3]"), "{dims:?}");

    // A second dim without a number: there is nothing to try the gradient at.
    let x = graph.inputs[0];
    let ty = TensorType::with_dims(DType::F32, vec!["batch".into(), "time".into(), Dim::Known(3)]);
    graph.set_ty(x, Some(ty));
    graph
        .value_ids()
        .filter(|&v| graph.producer(v).is_some())
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|v| graph.set_ty(v, None));
    let report = Net::from_graph(graph.clone()).unwrap().report();
    assert_eq!(found(&report, Finding::Trial), Some((Severity::Note, &["x".to_owned()][..])));
    assert_eq!(report.verdict, Verdict::Trainable);

    let branch = |name: &str| {
        let cx = Cx::new(name, DType::F32);
        cx.output("z", cx.scalar(1.0).identity());
        Attr::Graph(Box::new(cx.finish().unwrap()))
    };
    let flag = graph.add_input("flag", TensorType::new(DType::Bool, &[]));
    let z = graph.add_value("z", Some(TensorType::new(DType::F32, &[])));
    let mut node = Node::new("If", &[flag], &[z]).with("then_branch", branch("a")).with("else_branch", branch("b"));
    node.name = "choice".into();
    graph.add_node(node);
    graph.outputs.push(z);
    let report = Net::from_graph(graph).unwrap().report();
    assert_eq!(report.verdict, Verdict::NotTrainable);
    let unresolved = &report.remarks[0];
    assert_eq!((unresolved.finding, &unresolved.names[..]), (Finding::Unresolved, &["If 'choice'".to_owned()][..]));
    assert!(unresolved.remedy.contains("limbeck import"));
}

#[test]
fn sines_masks_and_states_of_zero_are_no_parameters() {
    let net = net(|cx| {
        let x = cx.input("x", DType::F32, &[6, 2, 4]);
        let angle = |i: usize| (i / 4) as f64 / 100f64.powi((i % 4 / 2) as i32);
        let sines = (0..24).map(|i| if i % 2 == 0 { angle(i).sin() } else { angle(i).cos() } as f32).collect();
        let h = (x + cx.initializer("sines", Tensor::new([6, 1, 4], sines).unwrap())).transpose(&[1, 0, 2]);
        let causal = (0..36).map(|i| if i % 6 > i / 6 { f32::NEG_INFINITY } else { 0.0 }).collect();
        let mask = cx.initializer("causal", Tensor::new([6, 6], causal).unwrap());
        cx.output("y", (h.matmul(h.transpose(&[0, 2, 1])) + mask).softmax(-1));
    });
    let mut graph = net.graph().clone();
    let w = graph.add_initializer("w", drawn(&[1, 12, 4], 1));
    let r = graph.add_initializer("r", drawn(&[1, 12, 4], 2));
    let state = graph.add_initializer("state", Tensor::zeros(DType::F32, [1, 2, 4]).unwrap());
    let states = graph.add_value("states", None);
    let mut gru = Node::new("GRU", &[graph.inputs[0], w, r], &[states]).with("hidden_size", 4i64);
    gru.inputs.extend([None, None, Some(state)]);
    graph.add_node(gru);
    graph.outputs.push(states);
    let mut roles: Vec<(String, Role)> =
        Net::from_graph(graph).unwrap().stored().iter().map(|s| (s.name.clone(), s.role)).collect();
    roles.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let of = |name: &str, role| (name.to_owned(), role);
    let (constant, parameter) = (Role::Constant, Role::Parameter);
    let constants = ["causal", "sines", "state"].map(|name| of(name, constant));
    let [causal, sines, state] = constants;
    assert_eq!(roles, [causal, of("r", parameter), sines, state, of("w", parameter)]);
}
