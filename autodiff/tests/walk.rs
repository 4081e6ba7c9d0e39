//! What the walk itself does: sums over uses, markers of gradient, zeros, refusals that name the node, Dropout.

use limbeck_autodiff::{Differentiate, GradError, compose, dropout};
use limbeck_graph::{Cx, Node, TensorType, Var};
use limbeck_tensor::{DType, Tensor};
use std::collections::{BTreeMap, HashMap};

/// Values of the named outputs of a construction with `x` = [1, 2, 3] as input.
fn at_123(build: impl for<'c> FnOnce(&'c Cx, Var<'c>) -> Vec<(&'static str, Var<'c>)>) -> BTreeMap<String, Vec<f64>> {
    let cx = Cx::new("test", DType::F64);
    let x = cx.input("x", DType::F64, &[3]);
    let outputs = build(&cx, x);
    for (name, v) in outputs {
        cx.output(name, v);
    }
    let graph = cx.finish().unwrap();
    let feeds = BTreeMap::from([("x".into(), Tensor::new([3], vec![1.0, 2.0, 3.0]).unwrap())]);
    graph.evaluate(&feeds).unwrap().into_iter().map(|(k, t)| (k, t.to_f64_vec().unwrap())).collect()
}

#[test]
fn uses_add_up_and_unreached_values_get_zeros() {
    let values = at_123(|cx, x| {
        let grads = cx.grad((x * x + x * 3.0).sum(&[]), &[x, cx.floats(&[2], &[1.0, 1.0])]).unwrap();
        vec![("gx", grads[0]), ("other", grads[1])]
    });
    assert_eq!(values["gx"], [5.0, 7.0, 9.0]);
    assert_eq!(values["other"], [0.0, 0.0]);
}

#[test]
fn stop_gradient_is_a_constant() {
    let values = at_123(|cx, x| vec![("g", cx.grad((x * x.stop_gradient()).sum(&[]), &[x]).unwrap()[0])]);
    assert_eq!(values["g"], [1.0, 2.0, 3.0]);
    let values = at_123(|cx, x| vec![("g", cx.grad(x.stop_gradient().square().sum(&[]), &[x]).unwrap()[0])]);
    assert_eq!(values["g"], [0.0; 3]);
}

#[test]
fn with_grad_gives_the_stated_gradient_and_keeps_the_value() {
    let values = at_123(|cx, x| {
        let marked = x.with_grad(cx.floats(&[3], &[10.0, 20.0, 30.0]));
        vec![("value", marked), ("g", cx.grad((marked * 2.0).sum(&[]), &[x]).unwrap()[0])]
    });
    assert_eq!(values["value"], [1.0, 2.0, 3.0]);
    assert_eq!(values["g"], [20.0, 40.0, 60.0]);
}

#[test]
fn with_grad_does_not_differentiate_its_gradient() {
    let values = at_123(|cx, x| {
        let marked = cx.floats(&[3], &[1.0, 1.0, 1.0]).with_grad(x.square());
        vec![("g", cx.grad(marked.sum(&[]), &[x]).unwrap()[0])]
    });
    assert_eq!(values["g"], [0.0; 3]);
}

#[test]
fn comparisons_and_steps_give_no_gradient() {
    let values = at_123(|cx, x| {
        let steps = cx.op("Floor", &[x * 1.5], &[]) + x.greater(cx.scalar(1.5)).cast(DType::F64);
        vec![("g", cx.grad((steps * x).sum(&[]), &[x]).unwrap()[0])]
    });
    assert_eq!(values["g"], [1.0, 4.0, 5.0]);
}

#[test]
fn a_missing_rule_names_node_and_op() {
    let cx = Cx::new("test", DType::F64);
    let x = cx.input("x", DType::F64, &[1, 1, 4]);
    cx.set_scope("tail/");
    let y = cx.op("LpPool", &[x], &[("kernel_shape", vec![2i64].into())]);
    let error = cx.grad(y.sum(&[]), &[x]).unwrap_err();
    let GradError::NoRule { node, op, .. } = &error else { panic!("{error}") };
    assert_eq!((node.as_str(), op.as_str()), (y.name().as_str(), "LpPool"));
    assert!(error.to_string().contains("tail/lppool"), "{error}");
}

#[test]
fn a_missing_rule_off_the_path_does_not_matter() {
    let cx = Cx::new("test", DType::F64);
    let x = cx.input("x", DType::F64, &[1, 1, 4]);
    let w = cx.input("w", DType::F64, &[3]);
    let y = cx.op("LpPool", &[x], &[("kernel_shape", vec![2i64].into())]);
    assert!(cx.grad((y * w).sum(&[]), &[w]).is_ok());
}

/// The error of the gradient of the sum of `build`'s result in `x` `[1, 1, 4]`.
fn refusal(build: impl for<'c> Fn(&'c Cx, Var<'c>) -> Var<'c>) -> String {
    let cx = Cx::new("test", DType::F32);
    let x = cx.input("x", DType::F32, &[1, 1, 4]);
    let loss = build(&cx, x).sum(&[]);
    cx.check().unwrap();
    cx.grad(loss, &[x]).map(|_| ()).unwrap_err().to_string()
}

/// A node as a file may hold it, whose result has this type or none.
fn carried<'c>(domain: &str, op: &str, x: Var<'c>, ty: Option<TensorType>) -> Var<'c> {
    let cx = x.cx();
    let id = cx.edit(|graph| {
        let output = graph.add_value(op.to_lowercase(), ty);
        graph.add_node(Node::new(op, &[x.id()], &[output]).in_domain(domain));
        output
    });
    cx.var(id)
}

#[test]
fn values_without_type_do_not_hide_a_missing_rule() {
    let typed = |dtype| Some(TensorType::new(dtype, &[1, 1, 4]));
    for ty in [None, typed(DType::F32), typed(DType::I64)] {
        let error = refusal(|_, x| {
            let y = carried("com.acme", "Foo", x, ty.clone());
            carried("", "Cast", y, typed(DType::F32))
        });
        assert!(error.contains("'foo' (com.acme::Foo) lies between"), "{error}");
    }
    // A known op without type on the path: no silent zeros either.
    let error = refusal(|_, x| carried("", "Relu", carried("", "Relu", x, None), typed(DType::F32)));
    assert!(error.contains("'relu"), "{error}");
}

#[test]
fn a_missing_rule_behind_a_stop_does_not_matter() {
    let values = at_123(|cx, x| {
        let pooled = cx.op("LpPool", &[x.reshape(&[1, 1, 3])], &[("kernel_shape", vec![1i64].into())]);
        let largest = pooled.argmax(2).cast(DType::F64).sum(&[]);
        let loss = (x * pooled.stop_gradient().reshape(&[3])).sum(&[]) + x.sum(&[]) * largest;
        vec![("g", cx.grad(loss, &[x]).unwrap()[0])]
    });
    assert_eq!(values["g"], [3.0, 4.0, 5.0]);
}

#[test]
fn arithmetic_on_quantised_integers_is_refused() {
    let quantised = |cx: &Cx, x: limbeck_graph::ValueId| {
        let zero = cx.constant(Tensor::from_f64(DType::I8, [], &[0.0]).unwrap());
        cx.op("QuantizeLinear", &[cx.var(x), cx.scalar(0.5), zero], &[]).id()
    };
    let error = refusal(|cx, x| {
        let q = cx.var(quantised(cx, x.id()));
        let pooled = cx.op("MaxPool", &[q], &[("kernel_shape", vec![2i64].into())]);
        cx.op("DequantizeLinear", &[pooled, cx.scalar(0.5)], &[])
    });
    assert!(error.contains("MaxPool") && error.contains("DequantizeLinear"), "{error}");
    let error = refusal(|cx, x| {
        let q = cx.var(quantised(cx, x.id()));
        let w = cx.constant(Tensor::from_f64(DType::I8, [1, 1, 1], &[3.0]).unwrap());
        let zero = cx.constant(Tensor::from_f64(DType::I8, [], &[0.0]).unwrap());
        let scale = cx.scalar(0.5);
        let y = cx.op("QLinearConv", &[q, scale, zero, w, scale, zero, scale, zero], &[]);
        cx.op("DequantizeLinear", &[y, scale, zero], &[])
    });
    assert!(error.contains("QLinearConv"), "{error}");
}

#[test]
fn what_range_depends_on_is_refused() {
    let cx = Cx::new("test", DType::F64);
    let x = cx.scalar(0.5);
    let y = cx.op("Range", &[x, cx.scalar(3.0), cx.scalar(1.0)], &[]);
    let error = cx.grad(y.sum(&[]), &[x]).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("Range") && error.contains("start"), "{error}");
}

#[test]
fn padding_that_has_nothing_to_repeat_is_an_error() {
    let cx = Cx::new("test", DType::F64);
    let x = cx.input("x", DType::F64, &[0, 3]);
    for (mode, pads) in [("edge", [1, 0, 0, 0]), ("wrap", [2, 0, 0, 0]), ("reflect", [0, 0, 3, 0])] {
        let y = cx.op("Pad", &[x, cx.ints(&pads)], &[("mode", mode.into())]);
        let error = cx.grad(y.sum(&[]), &[x]).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("Pad") && error.contains(mode), "{error}");
    }
    let x = cx.input("y", DType::F64, &[2]);
    let y = cx.op("Pad", &[x, cx.ints(&[0, 1 << 40])], &[("mode", "edge".into())]);
    let error = cx.grad(y.sum(&[]), &[x]).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("Pad") && error.contains("1099511627776"), "{error}");
}

#[test]
fn cotangents_and_tangents_must_fit() {
    let cx = Cx::new("test", DType::F64);
    let x = cx.input("x", DType::F64, &[3]);
    let (y, one) = (x.square(), cx.scalar(1.0));
    let refused = |result: Result<Vec<Var<'_>>, GradError>, expected: &str| {
        let error = result.map(|_| ()).unwrap_err();
        assert!(matches!(error, GradError::Mismatch { .. }) && error.to_string().contains(expected), "{error}");
    };
    refused(cx.vjp(&[y], &[], &[x]), "0 given for 1");
    refused(cx.vjp(&[y], &[one], &[x]), "float64[3], its cotangent float64[]");
    refused(cx.vjp(&[y], &[y.cast(DType::F32)], &[x]), "cotangent float32[3]");
    refused(cx.jvp(&[y], &[x], &[one, one]), "2 given for 1");
    refused(cx.jvp(&[y], &[x], &[one]), "its tangent float64[]");
}

#[test]
fn a_rule_that_cannot_serve_an_attribute_says_so() {
    let cx = Cx::new("test", DType::F64);
    let x = cx.input("x", DType::F64, &[2, 2]);
    let [zeros, ones] = [0.0, 1.0].map(|v| cx.full(v, DType::F64, &[2]));
    let training = [("training_mode", 1i64.into())];
    let y = cx.op("BatchNormalization", &[x, ones, zeros, zeros, ones], &training);
    let error = cx.grad(y.sum(&[]), &[x]).unwrap_err().to_string();
    assert!(error.contains("BatchNormalization") && error.contains("training form"), "{error}");
}

#[test]
fn only_float_scalars_are_losses() {
    let cx = Cx::new("test", DType::F64);
    let x = cx.input("x", DType::F64, &[3]);
    assert!(matches!(cx.grad(x, &[x]), Err(GradError::NotScalar { .. })));
    assert!(matches!(cx.grad(x.argmax(0), &[x]), Err(GradError::NotScalar { .. })));
}

#[test]
fn shapes_that_are_not_known_are_named() {
    let mut graph = limbeck_graph::Graph::new("open");
    let ty = limbeck_graph::TensorType::with_dims(DType::F64, vec![limbeck_graph::Dim::Named("batch".into())]);
    let x = graph.add_input("x", ty);
    let cx = Cx::over(graph, DType::F64);
    let error = cx.grad(cx.var(x).square().sum(&[]), &[cx.var(x)]).unwrap_err().to_string();
    assert!(error.contains("batch"), "{error}");
}

#[test]
fn max_pooling_nests() {
    // y = max over pairs of x^2; sum of squares of the gradient is 4 * sum over maxima of x^2.
    let values = at_123(|cx, x| {
        let image = x.square().reshape(&[1, 1, 3]);
        let pooled = cx.op("MaxPool", &[image], &[("kernel_shape", vec![2i64].into())]);
        let first = cx.grad(pooled.sum(&[]), &[x]).unwrap()[0];
        vec![("first", first), ("second", cx.grad(first.square().sum(&[]), &[x]).unwrap()[0])]
    });
    assert_eq!(values["first"], [0.0, 4.0, 6.0]);
    assert_eq!(values["second"], [0.0, 16.0, 24.0]);
}

/// Dropout as exporters write it: ratio and `training_mode` as constants.
fn dropout_layer(training: bool) -> limbeck_graph::Graph {
    let cx = Cx::new("layer", DType::F64);
    let x = cx.input("x", DType::F64, &[3]);
    let flag = cx.constant(Tensor::bools([], &[training]).unwrap());
    cx.output("y", cx.op("Dropout", &[x, cx.scalar(0.5), flag], &[]));
    cx.finish().unwrap()
}

#[test]
fn dropout_is_the_identity_in_inference_and_refused_in_training() {
    let cx = Cx::new("test", DType::F64);
    let x = cx.input("x", DType::F64, &[3]);
    let gradient = |training: bool| {
        let layer = dropout_layer(training);
        let bind = HashMap::from([(layer.inputs[0], x)]);
        let map = cx.inline_with(&layer, &bind, &mut compose).unwrap();
        cx.grad(map[&layer.outputs[0]].sum(&[]), &[x]).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(gradient(false), Ok(()));
    let error = gradient(true).unwrap_err();
    assert!(error.contains("Dropout") && error.contains("noise"), "{error}");
}

#[test]
fn dropout_with_noise_keeps_and_scales() {
    let values = at_123(|cx, x| {
        let noise = cx.floats(&[3], &[0.1, 0.25, 0.9]);
        let (y, mask) = dropout(x, noise, 0.25);
        vec![("y", y), ("mask", mask), ("g", cx.grad(y.sum(&[]), &[x]).unwrap()[0])]
    });
    let keep = 1.0 / 0.75;
    assert_eq!(values["y"], [0.0, 2.0 * keep, 3.0 * keep]);
    assert_eq!(values["mask"], [0.0, 1.0, 1.0]);
    assert_eq!(values["g"], [0.0, keep, keep]);
}

/// Composites that nobody composed are named.
#[test]
fn composites_are_refused_by_name() {
    let cx = Cx::new("composite", DType::F64);
    let x = cx.input("x", DType::F64, &[1, 1, 4]);
    let y = cx.op("LpPool", &[x], &[("kernel_shape", vec![2usize].into())]);
    let error = cx.grad(y.sum(&[]), &[x]).unwrap_err().to_string();
    assert!(error.contains("LpPool") && error.contains("compose"), "{error}");
}

/// What a node without composition says.
fn no_composition(node: Node, inputs: &[&[usize]]) -> String {
    let cx = Cx::new("composite", DType::F64);
    let operand = |(i, shape): (usize, &&[usize])| Some(cx.input(&format!("x{i}"), DType::F64, shape));
    let operands: Vec<_> = inputs.iter().enumerate().map(operand).collect();
    let mut node = node;
    node.outputs = vec![None];
    compose(&cx, &node, &operands).unwrap();
    cx.check().unwrap_err().to_string()
}

/// Forms of composites that have no composition are errors that name the operator and the reason.
#[test]
fn forms_without_composition_say_why() {
    let node = |op: &str| Node::new(op, &[], &[]);
    let rois: &[&[usize]] = &[&[1, 1, 4, 4], &[2, 4], &[2]];
    let pool = |rows: usize| node("MaxRoiPool").with("pooled_shape", vec![rows, 2]);
    let cases: [(Node, &[&[usize]], &str); 11] = [
        (node("Resize"), &[&[2], &[2], &[1]], "its input 2 must be constant"),
        (node("RoiAlign"), rois, "sampling_ratio 0"),
        (node("RoiAlign").with("mode", "max"), rois, "mode 'max'"),
        (pool(2), &[&[1, 1, 4, 4], &[2, 4]], "do not fit"),
        (pool(0), &[&[1, 1, 4, 4], &[2, 5]], "positive"),
        (node("DFT").with("onesided", 1i64), &[&[3, 2]], "onesided"),
        (node("Det"), &[&[17, 17]], "17"),
        (node("Det"), &[&[2, 3]], "not square"),
        (node("Compress"), &[&[3], &[3]], "its input 1 must be constant"),
        (node("GridSample").with("mode", "sinc"), &[&[1, 1, 2, 2], &[1, 2, 2, 2]], "mode 'sinc'"),
        (node("LSTM"), &[&[3, 2, 3]], "input 1 is missing"),
    ];
    for (node, inputs, reason) in cases {
        let op = node.op.clone();
        let error = no_composition(node, inputs);
        assert!(error.contains(&op) && error.contains(reason), "{error}");
    }
}

/// `h <- w h + x` scanned over three steps, with `w` from outside: unrolled by the import, its gradient is that of
/// `w³ h + w² x₀ + w x₁ + x₂`.
#[test]
fn gradients_go_through_an_unrolled_scan() {
    use limbeck_graph::{Attr, Capture, ImportOptions, Meta};
    let step = Cx::new("step", DType::F64);
    let [w, h, x] = ["w", "h", "x"].map(|name| step.input(name, DType::F64, &[]));
    step.output("next", w * h + x);
    let w = w.id();
    let mut body = step.finish().unwrap();
    body.inputs.retain(|&input| input != w);
    body.meta = Meta::default();
    let outer = Cx::new("scanned", DType::F64);
    let [v, h, x] = [("w", &[][..]), ("h", &[]), ("x", &[3])].map(|(name, shape)| outer.input(name, DType::F64, shape));
    outer.output("kept", v + h + x);
    body.captures.push(Capture { inner: w, outer: v.id() });
    let (h, x) = (h.id(), x.id());
    let mut graph = outer.finish().unwrap();
    let last = graph.add_value("last", Some(limbeck_graph::TensorType::new(DType::F64, &[])));
    let scan = Node::new("Scan", &[h, x], &[last]).with("num_scan_inputs", 1i64);
    graph.add_node(scan.with("body", Attr::Graph(Box::new(body))));
    graph.outputs = vec![last];
    graph.import(&ImportOptions { unroll: 3, ..ImportOptions::default() }).unwrap();

    let cx = Cx::new("gradient", DType::F64);
    let wrt = [("w", &[][..]), ("h", &[]), ("x", &[3])].map(|(name, shape)| cx.input(name, DType::F64, shape));
    let bind = ["w", "h", "x"].into_iter().zip(wrt).map(|(name, v)| (graph.find(name).unwrap(), v)).collect();
    let map = cx.inline_with(&graph, &bind, &mut compose).unwrap();
    let grads = cx.grad(map[&graph.find("last").unwrap()], &wrt).unwrap();
    for (name, g) in ["gw", "gh", "gx"].into_iter().zip(grads) {
        cx.output(name, g);
    }
    let feeds = [("w", vec![], vec![0.5]), ("h", vec![], vec![3.0]), ("x", vec![3], vec![1.0, -2.0, 4.0])];
    let feeds =
        feeds.map(|(name, shape, v): (&str, Vec<usize>, Vec<f64>)| (name.to_owned(), Tensor::new(shape, v).unwrap()));
    let found = cx.finish().unwrap().evaluate(&feeds.into()).unwrap();
    let found = |name: &str| found[name].to_f64_vec().unwrap();
    assert_eq!(found("gw"), [3.0 * 0.25 * 3.0 + 2.0 * 0.5 - 2.0]);
    assert_eq!(found("gh"), [0.125]);
    assert_eq!(found("gx"), [0.25, 0.5, 1.0]);
}

/// `x` quantised to int4 with zero points of 1 and dequantised; 0 for scales that are not in blocks.
fn there_and_back<'c>(x: Var<'c>, scale: Var<'c>, block: i64) -> Var<'c> {
    let attrs = [("axis", 1i64.into()), ("block_size", block.into())];
    let zero = Tensor::from_f64(DType::I4, scale.shape(), &vec![1.0; scale.len()]).unwrap();
    let zero = x.cx().constant(zero);
    let q = x.cx().op("QuantizeLinear", &[x, scale, zero], &attrs);
    x.cx().op("DequantizeLinear", &[q, scale, zero], &attrs)
}

/// The rows and columns of a matrix.
fn part<'c>(v: Var<'c>, rows: [usize; 2], columns: [usize; 2]) -> Var<'c> {
    v.slice(0, rows[0], rows[1]).slice(1, columns[0], columns[1])
}

/// Quantisation in blocks of 2 along an axis of 5 is that of each block by its own scale, for data and scales.
#[test]
fn quantisation_in_blocks_is_that_of_each_block() {
    let cx = Cx::new("test", DType::F32);
    let x = cx.input("x", DType::F32, &[2, 5]);
    let scale = cx.input("scale", DType::F32, &[2, 3]);
    let weight = cx.input("weight", DType::F32, &[2, 5]);
    let whole = (there_and_back(x, scale, 2) * weight).sum(&[]);
    let mut parts = vec![];
    for row in 0..2 {
        for (block, end) in [(0, 2), (1, 4), (2, 5)] {
            let (row, columns) = ([row, row + 1], [2 * block, end]);
            let own = part(scale, row, [block, block + 1]).reshape(&[]);
            parts.push((there_and_back(part(x, row, columns), own, 0) * part(weight, row, columns)).sum(&[]));
        }
    }
    let apart = parts.into_iter().reduce(|a, b| a + b).unwrap();
    for (name, loss) in [("whole", whole), ("apart", apart)] {
        for (of, gradient) in ["x", "scale"].into_iter().zip(cx.grad(loss, &[x, scale]).unwrap()) {
            cx.output(&format!("{name} {of}"), gradient);
        }
    }
    let feed = |shape: [usize; 2], values: Vec<f32>| Tensor::new(shape, values).unwrap();
    let feeds = BTreeMap::from([
        ("x".into(), feed([2, 5], vec![0.3, -1.2, 2.6, 40.0, 0.9, -7.7, 0.2, 1.4, -0.6, 3.3])),
        ("scale".into(), feed([2, 3], vec![0.25, 1.5, 0.5, 0.75, 0.1, 2.0])),
        ("weight".into(), feed([2, 5], vec![1.0, 2.0, -3.0, 4.0, 5.0, -6.0, 7.0, 8.0, 9.0, -10.0])),
    ]);
    let values = cx.finish().unwrap().evaluate(&feeds).unwrap();
    for of in ["x", "scale"] {
        let [whole, apart] = ["whole", "apart"].map(|name| values[&format!("{name} {of}")].to_f64_vec().unwrap());
        assert_eq!(whole, apart, "{of}");
        assert!(whole.iter().filter(|g| **g != 0.0).count() > whole.len() / 2, "{whole:?}");
    }
}
