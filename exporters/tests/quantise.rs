//! Quantised networks stay within the quantisation step of the float ones, and compute on the engines what the reference
//! evaluator computes.

mod common;

use common::{build, feeds, resnet};
use limbeck_exporters::*;
use limbeck_graph::{Attr, Graph};
use limbeck_runtime::{CompileOptions, Model};
use limbeck_tensor::{DType, Tensor};

fn calibrated(graph: &Graph, method: Method) -> Calibration {
    let names = observed_values(graph).unwrap();
    let observed = with_outputs(graph, &names).unwrap();
    let mut calibration = Calibration::new(method);
    for seed in 0..4 {
        let x = feeds(graph, seed);
        calibration.observe_all(&x).unwrap();
        calibration.observe_all(&observed.evaluate(&x).unwrap()).unwrap();
    }
    calibration
}

fn all_options() -> impl Iterator<Item = QuantOptions> {
    [Profile::Server, Profile::Tract].into_iter().flat_map(|profile| {
        [(DType::U8, false), (DType::I8, false), (DType::I8, true)].into_iter().map(move |(activations, symmetric)| {
            QuantOptions { profile, activations, symmetric, ..QuantOptions::default() }
        })
    })
}

/// Conv, Relu, depthwise Conv, Clip, pool, flatten, MatMul with bias, two Gemms.
fn mixed(seed: u64) -> Graph {
    build(seed, &[2, 3, 8, 8], |l, x| {
        let x = l.conv_norm("a", x, 8, 3, 1).relu();
        let x = l.conv_norm("dw", x, 8, 3, 8);
        let (low, high) = (l.cx.scalar(0.0), l.cx.scalar(6.0));
        let x = l.cx.op("Clip", &[x, low, high], &[]);
        let x =
            l.cx.op("MaxPool", &[x], &[("kernel_shape", Attr::Ints(vec![2, 2])), ("strides", Attr::Ints(vec![4, 4]))]);
        let w = l.weight("m.weight", &[32, 16], -0.3, 0.3);
        let b = l.weight("m.bias", &[16], -0.3, 0.3);
        let x = (x.flatten().matmul(w) + b).relu();
        let x = l.linear("fc1", x, 12).relu();
        l.linear("fc2", x, 5)
    })
}

#[test]
fn one_layer_is_within_its_steps() {
    // |error| <= half a step of the output + sum over the operands of |w| s_x/2 + |x| s_w/2 + s_x s_w/4, and half a bias step.
    let graph = build(1, &[2, 3, 6, 6], |l, x| {
        let y = l.conv("a", x, 4, 3, 1);
        l.norm("bn", y)
    });
    let mut folded = graph.clone();
    fold_batch_norm(&mut folded).unwrap();
    let w = folded.initializers().map(|(_, t)| t).find(|t| t.shape().len() == 4).unwrap().to_f64_vec().unwrap();
    let calibration = calibrated(&graph, Method::MinMax);
    let range = |name: &str| {
        let (low, high) = calibration.range(name).unwrap();
        high.max(0.0) - low.min(0.0)
    };
    let per_channel = w.len() / 4;
    let bound = |c: usize| {
        let w = &w[c * per_channel..][..per_channel];
        let (s_x, s_y) = (range("x") / 255.0, range("y") / 255.0);
        let s_w = w.iter().fold(0.0f64, |m, v| m.max(v.abs())) / 127.0;
        let sum: f64 = w.iter().map(|w| w.abs() * s_x / 2.0 + s_w / 2.0 + s_x * s_w / 4.0).sum();
        s_y / 2.0 + sum + s_x * s_w / 2.0 + 1e-5
    };
    for profile in [Profile::Server, Profile::Tract] {
        let options = QuantOptions { profile, ..QuantOptions::default() };
        let (quantised, report) = quantise(&graph, &calibration, &options).unwrap();
        assert_eq!((report.int_nodes, report.float_nodes), (1, 0), "{report:?}");
        let x = feeds(&graph, 2);
        let (a, b) = (graph.evaluate(&x).unwrap(), quantised.evaluate(&x).unwrap());
        let (a, b) = (a["y"].to_f64_vec().unwrap(), b["y"].to_f64_vec().unwrap());
        let mut largest = 0.0f64;
        for (i, (a, b)) in a.iter().zip(&b).enumerate() {
            assert!((a - b).abs() <= bound(i / 36 % 4), "{profile:?}: {a} became {b}");
            largest = largest.max((a - b).abs());
        }
        assert!(largest > 1e-4, "{profile:?} is not quantised");
    }
}

#[test]
fn whole_networks_stay_close_in_every_form() {
    for graph in [resnet(3), mixed(4)] {
        let calibration = calibrated(&graph, Method::MinMax);
        for options in all_options() {
            let (quantised, report) = quantise(&graph, &calibration, &options).unwrap();
            let d = compare(&quantised, &graph, &feeds(&graph, 1)).unwrap();
            // Eight bits through ten layers: a few parts in a hundred of the largest logit.
            assert!(d[0].max_rel < 0.08 && d[0].max_abs > 0.0, "{options:?}: {d:?}");
            assert_eq!(node_precisions(&quantised), (report.int_nodes, report.float_nodes));
            let read = Graph::from_bytes(quantised.to_bytes().unwrap(), None).unwrap();
            assert_eq!(compare(&read, &quantised, &feeds(&graph, 1)).unwrap()[0].max_abs, 0.0);
        }
    }
}

#[test]
fn relu_is_fused_and_islands_stay_float() {
    let graph = resnet(5);
    let calibration = calibrated(&graph, Method::MinMax);
    let count = |g: &Graph, op: &str| g.nodes().filter(|(_, n)| n.op == op).count();
    let tract = QuantOptions { profile: Profile::Tract, ..QuantOptions::default() };
    let (quantised, _) = quantise(&graph, &calibration, &tract).unwrap();
    // 4 of 7 Relus follow a Conv alone; 3 follow residual Adds, which stay float.
    assert_eq!((count(&quantised, "QLinearConv"), count(&quantised, "MatMulInteger")), (8, 1));
    assert_eq!((count(&quantised, "Relu"), count(&quantised, "Conv"), count(&quantised, "Gemm")), (3, 0, 0));
    // Symmetric grids do not end at zero: the Relu stays.
    let symmetric = QuantOptions { activations: DType::I8, symmetric: true, ..tract.clone() };
    assert_eq!(count(&quantise(&graph, &calibration, &symmetric).unwrap().0, "Relu"), 7);
    let first = {
        let mut g = graph.clone();
        fold_batch_norm(&mut g).unwrap();
        let (id, _) = g.nodes().find(|(_, n)| n.op == "Conv").unwrap();
        g.label(id)
    };
    let kept = QuantOptions { keep_float: vec![first], ..tract.clone() };
    assert_eq!(count(&quantise(&graph, &calibration, &kept).unwrap().0, "Conv"), 1);
    let wrong = QuantOptions { keep_float: vec!["nothing".into()], ..tract.clone() };
    assert!(quantise(&graph, &calibration, &wrong).unwrap_err().to_string().contains("nothing"));
    let error = quantise(&graph, &Calibration::new(Method::MinMax), &tract).unwrap_err().to_string();
    assert!(error.contains("'x'") && error.contains("calibrated"), "{error}");
}

#[test]
fn reduced_weights_use_seven_bits() {
    let graph = mixed(6);
    let calibration = calibrated(&graph, Method::Percentile(99.999));
    for profile in [Profile::Server, Profile::Tract] {
        let options = QuantOptions { profile, reduce_range: true, ..QuantOptions::default() };
        let (quantised, _) = quantise(&graph, &calibration, &options).unwrap();
        let weights = quantised.initializers().filter(|(_, t)| t.dtype() == DType::I8 && t.shape().len() > 1);
        for (id, t) in weights {
            let largest = t.to_i64_vec().unwrap().into_iter().map(i64::abs).max().unwrap();
            assert_eq!(largest, 64, "{}", quantised.name_of(id));
        }
    }
}

/// Whether the processor sums 8-bit products without saturation.
fn has_vnni() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni");
    #[cfg(not(target_arch = "x86_64"))]
    return true;
}

#[test]
fn masked_attention_survives() {
    // Scores of a few units, to which a mask of -10000 is added.
    let graph = build(9, &[2, 6, 8], |l, x| {
        let (q, k, v) =
            (l.weight("q", &[8, 8], -0.6, 0.6), l.weight("k", &[8, 8], -0.6, 0.6), l.weight("v", &[8, 8], -0.6, 0.6));
        let (q, k, v) = (x.matmul(q), x.matmul(k), x.matmul(v));
        let hidden = l.cx.constant(Tensor::new([1, 1, 6], vec![0f32, 0.0, 0.0, 0.0, -1e4, -1e4]).unwrap());
        // An activation, as a mask that is fed would be.
        let mask = x.mean(&[0, 1, 2]) * 0.0 + hidden;
        let mixed = (q.matmul(k.transpose(&[0, 2, 1])) + mask).softmax(-1).matmul(v);
        mixed + x
    });
    let calibration = calibrated(&graph, Method::MinMax);
    let (quantised, report) = quantise(&graph, &calibration, &QuantOptions::default()).unwrap();
    let adds: Vec<bool> = report.nodes.iter().filter(|n| n.op == "Add").map(|n| n.integer).collect();
    // The mask is made, then put on the scores; the last Add is the residual one.
    assert_eq!(adds, [false, false, true]);
    let d = compare(&quantised, &graph, &feeds(&graph, 1)).unwrap();
    assert!(d[0].max_rel < 0.04 && d[0].max_abs > 0.0, "{d:?}");
}

#[test]
fn the_costliest_layers_go_back_to_float_until_the_drop_is_small_enough() {
    let graph = mixed(10);
    let calibration = calibrated(&graph, Method::Entropy);
    let x = feeds(&graph, 1);
    let reference = graph.evaluate(&x).unwrap();
    // Agreement with the float model: 0 at best.
    let score = |g: &Graph| Ok(-compare_outputs(&g.evaluate(&x)?, &reference)?[0].max_rel);
    for profile in [Profile::Server, Profile::Tract] {
        let options = QuantOptions { profile, ..QuantOptions::default() };
        let (_, plain) = quantise(&graph, &calibration, &options).unwrap();
        let (_, report, loose) = quantise_within(&graph, &calibration, &options, 1.0, score).unwrap();
        assert_eq!((&report, loose.layers.len(), loose.reverted.len()), (&plain, 0, 0));
        let wanted = -loose.all * 0.6;
        let (model, report, tight) = quantise_within(&graph, &calibration, &options, wanted, score).unwrap();
        assert!(-tight.result <= wanted && -score(&model).unwrap() <= wanted, "{tight:?}");
        assert!(!tight.reverted.is_empty() && report.int_nodes < plain.int_nodes, "{tight:?}");
        // Conv, depthwise Conv, MatMul, two Gemms.
        assert_eq!(tight.layers.len(), 5, "{tight:?}");
        assert!(tight.layers.windows(2).all(|pair| pair[0].drop >= pair[1].drop));
        assert_eq!(
            tight.reverted,
            tight.layers.iter().take(tight.reverted.len()).map(|l| l.node.clone()).collect::<Vec<_>>()
        );
        let error = quantise_within(&graph, &calibration, &options, 0.0, score).unwrap_err().to_string();
        assert!(error.contains("whatever stays quantised"), "{error}");
        let error = quantise_within(&graph, &calibration, &options, f64::NAN, score).unwrap_err().to_string();
        assert!(error.contains("max_drop"), "{error}");
    }
}

#[test]
fn engines_compute_what_the_reference_computes() {
    for engine in limbeck_runtime::engines() {
        for graph in [resnet(7), mixed(8)] {
            let calibration = calibrated(&graph, Method::MinMax);
            // Without VNNI, ONNX Runtime's products of full-range weights saturate: an error of the processor, not of the
            // model. tract computes them exactly anywhere.
            let exact = engine.name() == "tract" || has_vnni();
            let ranges = |options: QuantOptions| {
                let reduced = QuantOptions { reduce_range: true, ..options.clone() };
                [Some(reduced), exact.then_some(options)].into_iter().flatten()
            };
            for options in all_options().flat_map(ranges) {
                let (quantised, _) = quantise(&graph, &calibration, &options).unwrap();
                let model = Model::new(quantised.to_bytes().unwrap());
                let program = engine.compile(&model, &CompileOptions { threads: 1, ..Default::default() }).unwrap();
                let x = feeds(&graph, 1);
                let fed: Vec<_> = x.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
                let got = program.infer(&fed).unwrap();
                let d = compare_outputs(&got, &quantised.evaluate(&x).unwrap()).unwrap();
                // ONNX Runtime agrees to the bit; a tie that rounds another way in f32 moves the result by a step.
                assert!(d[0].max_rel < 0.01, "{} {options:?}: {d:?}", engine.name());
            }
        }
    }
}
