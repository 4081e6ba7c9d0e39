//! Quantised networks stay within the quantisation step of the float ones, and compute on the engines what the reference
//! evaluator computes.

mod common;

use common::{build, feeds, resnet};
use limbeck_exporters::*;
use limbeck_graph::{Attr, Graph};
use limbeck_runtime::{CompileOptions, Model};
use limbeck_tensor::DType;

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

#[test]
fn engines_compute_what_the_reference_computes() {
    for engine in limbeck_runtime::engines() {
        for graph in [resnet(7), mixed(8)] {
            let calibration = calibrated(&graph, Method::MinMax);
            for options in all_options() {
                let options = QuantOptions { reduce_range: true, ..options };
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
