//! Pruned networks compute what masked ones compute, lose the weakest channels, and keep what must be kept.

mod common;

use common::{Layers, Random, build, feeds, resnet};
use limbeck_exporters::*;
use limbeck_graph::{Attr, Cx, Graph, TensorType, Var};
use limbeck_tensor::{DType, Tensor, TensorMap};

fn options(keep: f64, round_to: usize) -> PruneOptions {
    PruneOptions { target: PruneTarget::Channels(keep), round_to, max_per_round: 1.0, ..PruneOptions::default() }
}

/// Prunes, and compares with the masked network and (to see that something happened) with the original.
fn check(graph: &Graph, options: &PruneOptions) -> (Graph, PruneReport) {
    let masked = mask(graph, options).unwrap();
    let mut pruned = graph.clone();
    let report = prune(&mut pruned, options).unwrap();
    let x = feeds(graph, 99);
    let d = compare(&pruned, &masked, &x).unwrap();
    assert!(d[0].max_rel < 2e-6, "pruned and masked differ: {d:?}");
    assert!(compare(&pruned, graph, &x).unwrap()[0].max_rel > 1e-3, "nothing was pruned");
    assert_eq!(report.parameters.0, model_cost(graph).params);
    assert_eq!(report.parameters.1, model_cost(&pruned).params);
    // What is written reads back as the same network.
    let read = Graph::from_bytes(pruned.to_bytes().unwrap(), None).unwrap();
    assert_eq!(compare(&read, &pruned, &x).unwrap()[0].max_abs, 0.0);
    (pruned, report)
}

fn shape(graph: &Graph, name: &str) -> Vec<usize> {
    graph.initializer(graph.require(name).unwrap()).unwrap().shape().to_vec()
}

#[test]
fn a_residual_network_loses_whole_residual_channels() {
    let graph = resnet(1);
    let (pruned, report) = check(&graph, &options(0.5, 1));
    assert_eq!(shape(&pruned, "stem.weight"), [8, 3, 3, 3]);
    assert_eq!(shape(&pruned, "b1.b.weight"), [8, 8, 3, 3]);
    assert_eq!(shape(&pruned, "b2.skip.weight"), [12, 8, 1, 1]);
    assert_eq!(shape(&pruned, "b2.b.bn.var"), [12]);
    assert_eq!(shape(&pruned, "fc.weight"), [5, 12]);
    // Groups: the stream at 16, two inner 16, the inner 24, the stream at 24.
    let mut channels: Vec<_> = report.groups.iter().map(|g| g.channels).collect();
    channels.sort();
    assert_eq!(channels, [(16, 8), (16, 8), (16, 8), (24, 12), (24, 12)]);
    assert!(report.frozen.iter().any(|f| f.contains("fc.weight axis 0") && f.contains("graph output 'y'")));
    assert!(report.frozen.iter().any(|f| f.contains("stem.weight axis 1") && f.contains("graph input 'x'")));
}

#[test]
fn pruning_before_folding_equals_folding_after() {
    let graph = resnet(2);
    let (mut pruned, _) = check(&graph, &options(0.75, 4));
    let unfolded = pruned.clone();
    assert_eq!(fold_batch_norm(&mut pruned).unwrap(), 8);
    assert!(compare(&pruned, &unfolded, &feeds(&graph, 3)).unwrap()[0].max_rel < 2e-6);
    check(&pruned, &options(0.75, 1));
}

#[test]
fn depthwise_grouped_concat_split_slice_and_flatten_follow() {
    let depthwise = build(3, &[2, 3, 6, 6], |l, x| {
        let x = l.conv_norm("a", x, 16, 3, 1).relu();
        let x = l.conv_norm("dw", x, 16, 3, 16).relu();
        // Two outputs for each input channel.
        let x = l.conv_norm("dw2", x, 32, 3, 16).relu();
        let x = l.conv_norm("pw", x, 12, 1, 1).relu();
        let x =
            l.cx.op("MaxPool", &[x], &[("kernel_shape", Attr::Ints(vec![2, 2])), ("strides", Attr::Ints(vec![2, 2]))]);
        l.linear("fc", x.flatten(), 4)
    });
    let (pruned, _) = check(&depthwise, &options(0.5, 1));
    assert_eq!(shape(&pruned, "dw.weight"), [8, 1, 3, 3]);
    assert_eq!(shape(&pruned, "dw2.weight"), [16, 1, 3, 3]);
    assert_eq!(shape(&pruned, "fc.weight"), [4, 6 * 9]);
    let group = |g: &Graph, w: &str| {
        let w = g.find(w);
        g.nodes().find(|(_, n)| n.input(1) == w).unwrap().1.int("group")
    };
    assert_eq!((group(&pruned, "dw.weight"), group(&pruned, "dw2.weight")), (Some(8), Some(8)));

    let branches = build(4, &[2, 3, 6, 6], |l, x| {
        let a = l.conv_norm("a", x, 8, 3, 1).relu();
        let b = l.conv_norm("b", x, 16, 3, 1).sigmoid();
        let joined = a.concat(&[b], 1);
        let grouped = l.conv_norm("g", joined, 24, 3, 4).relu();
        let parts =
            l.cx.op_n("", "Split", &[Some(grouped)], &[("axis", Attr::Int(1)), ("num_outputs", Attr::Int(2))], 2);
        let sliced = joined.slice(1, 4, 16) * parts[0] + parts[1];
        let x = l.conv_norm("c", sliced, 8, 1, 1).relu();
        l.linear("fc", x.mean(&[2, 3]), 4)
    });
    let (pruned, _) = check(&branches, &options(0.5, 1));
    assert_eq!(group(&pruned, "g.weight"), Some(4));
    assert!(shape(&pruned, "c.weight")[1] < 12);

    // Channels last: the position in the flattened row is hw * C + c.
    let last = build(5, &[2, 3, 4, 4], |l, x| {
        let x = l.conv_norm("a", x, 8, 3, 1).relu().transpose(&[0, 2, 3, 1]).flatten();
        l.linear("fc", x, 4)
    });
    let (pruned, _) = check(&last, &options(0.5, 1));
    assert_eq!(shape(&pruned, "fc.weight"), [4, 64]);
}

/// One head-structured attention block without normalisation.
fn attention<'c>(l: &mut Layers<'c>, x: Var<'c>) -> Var<'c> {
    let heads = |l: &mut Layers<'c>, name: &str| {
        let w = l.weight(name, &[12, 24], -0.5, 0.5);
        x.matmul(w).reshape(&[2, 5, 4, 6]).transpose(&[0, 2, 1, 3])
    };
    let (q, k, v) = (heads(l, "q"), heads(l, "k"), heads(l, "v"));
    let mixed = q.matmul(k.t()).softmax(-1).matmul(v);
    let o = l.weight("o", &[24, 12], -0.5, 0.5);
    mixed.transpose(&[0, 2, 1, 3]).reshape(&[2, 5, 24]).matmul(o)
}

#[test]
fn attention_loses_whole_heads() {
    let graph = build(6, &[2, 5, 12], attention);
    let (pruned, report) = check(&graph, &options(0.5, 8));
    assert_eq!(report.groups.len(), 1);
    assert_eq!(report.groups[0].channels, (4, 2));
    for name in ["q", "k", "v"] {
        assert_eq!(shape(&pruned, name), [12, 12], "{name}");
    }
    assert_eq!(shape(&pruned, "o"), [12, 12]);
}

#[test]
fn the_weakest_channels_go_by_weights_or_by_scores() {
    let graph = || {
        let mut graph = build(7, &[2, 3, 4, 4], |l, x| {
            let x = l.conv("a", x, 4, 1, 1).relu().global_average_pool().flatten();
            l.linear("fc", x, 2)
        });
        // Norms 0, 1, 2, 3 in another order, and equal readers.
        let rows: Vec<f32> = [2.0, 0.5, 3.0, 1.0].iter().flat_map(|&v| [v; 3]).collect();
        graph.set_initializer(graph.require("a.weight").unwrap(), Tensor::new([4, 3, 1, 1], rows).unwrap());
        graph.set_initializer(graph.require("fc.weight").unwrap(), Tensor::new([2, 4], vec![1f32; 8]).unwrap());
        graph
    };
    let firsts = |g: &Graph| -> Vec<f32> {
        let w = g.initializer(g.require("a.weight").unwrap()).unwrap().to_vec::<f32>().unwrap();
        w.chunks(3).map(|r| r[0]).collect()
    };
    let mut by_weight = graph();
    prune(&mut by_weight, &options(0.5, 1)).unwrap();
    assert_eq!(firsts(&by_weight), [2.0, 3.0]);
    let scores: Vec<f32> = [0.0, 5.0, -0.5, 4.0].iter().flat_map(|&v| [v; 3]).collect();
    let scores = TensorMap::from([("a.weight".to_owned(), Tensor::new([4, 3, 1, 1], scores).unwrap())]);
    let mut by_score = graph();
    prune(&mut by_score, &PruneOptions { scores, ..options(0.5, 1) }).unwrap();
    assert_eq!(firsts(&by_score), [0.5, 1.0]);
}

#[test]
fn counts_follow_the_rule() {
    for (keep, round_to, kept) in [(0.7, 1, 11), (0.5, 8, 8), (0.6, 8, 16), (0.55, 4, 8), (0.01, 1, 1)] {
        let mut graph = build(8, &[1, 3, 4, 4], |l, x| {
            let x = l.conv("a", x, 16, 1, 1).relu();
            let x = l.conv("b", x, 32, 1, 1).relu().global_average_pool().flatten();
            l.linear("fc", x, 2)
        });
        // 16 - int(16 * (1 - keep)) channels go, rounded so that a multiple stays; 32 always lose some.
        let report = prune(&mut graph, &options(keep, round_to)).unwrap();
        let of_a = report.groups.iter().find(|g| g.channels.0 == 16).unwrap();
        assert_eq!(of_a.channels.1, kept, "{keep} {round_to}");
    }
}

#[test]
fn parameter_targets_are_reached_and_rounds_are_limited() {
    let graph = resnet(9);
    let reach = |target, max_per_round| {
        let mut pruned = graph.clone();
        let o =
            PruneOptions { target: PruneTarget::Parameters(target), round_to: 1, max_per_round, ..Default::default() };
        prune(&mut pruned, &o).unwrap()
    };
    let report = reach(0.4, 1.0);
    let share = report.parameters.1 as f64 / report.parameters.0 as f64;
    assert!(share <= 0.4 && share > 0.34 && !report.capped, "{share}");
    let report = reach(0.4, 1.0 / 3.0);
    let share = report.parameters.1 as f64 / report.parameters.0 as f64;
    assert!((2.0 / 3.0..0.75).contains(&share) && report.capped, "{share}");
}

#[test]
fn a_target_out_of_reach_is_refused_with_what_can_be_reached() {
    let mut graph = resnet(9);
    let before = graph.clone();
    let far =
        PruneOptions { target: PruneTarget::Parameters(1e-4), round_to: 1, max_per_round: 1.0, ..Default::default() };
    let error = prune(&mut graph, &far).unwrap_err().to_string();
    assert!(error.contains("0.0001 of the parameters") && error.contains("stem.weight axis 1"), "{error}");
    assert_eq!(graph, before, "the model was stripped");
    // What the error names can be reached.
    let least: f64 = error.split("reached, ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let near = PruneOptions { target: PruneTarget::Parameters(least + 1e-3), ..far };
    let report = prune(&mut graph, &near).unwrap();
    assert!(report.parameters.1 as f64 <= (least + 1e-3) * report.parameters.0 as f64);
}

#[test]
fn scores_must_name_weights_and_reach_every_group() {
    let graph = resnet(9);
    let ones = |name: &str| {
        let shape = graph.find(name).map_or(vec![1], |v| graph.initializer(v).unwrap().shape().to_vec());
        TensorMap::from([(name.to_owned(), Tensor::new(shape.clone(), vec![1f32; shape.iter().product()]).unwrap())])
    };
    let error = |name: &str| {
        let o = PruneOptions { scores: ones(name), ..options(0.5, 1) };
        prune(&mut graph.clone(), &o).unwrap_err().to_string()
    };
    assert!(error("stem.wieght").contains("'stem.wieght', which is no weight"), "{}", error("stem.wieght"));
    let partial = error("stem.weight");
    assert!(partial.contains("no weight of the group 'b0.a.weight' has scores"), "{partial}");
}

#[test]
fn what_cannot_be_followed_is_frozen_and_told() {
    let mut graph = build(10, &[1, 3, 4, 4], |l, x| {
        let x = l.conv("a", x, 16, 1, 1);
        // Cumulative sums over channels mix them.
        let x = l.cx.op("CumSum", &[x, l.cx.constant(Tensor::scalar(1i64))], &[]).global_average_pool().flatten();
        l.linear("fc", x, 2)
    });
    let groups = prune_groups(&graph).unwrap();
    assert!(groups.groups.is_empty());
    assert!(groups.frozen.iter().any(|f| f.contains("CumSum")), "{:?}", groups.frozen);
    let before = graph.clone();
    let error = prune(&mut graph, &options(0.5, 8)).unwrap_err().to_string();
    assert!(error.contains("nothing can be removed") && error.contains("CumSum"), "{error}");
    assert_eq!(graph, before);
    // Rounding alone can keep everything too: that is said, not passed over.
    let mut small = build(11, &[1, 3, 4, 4], |l, x| {
        let x = l.conv("a", x, 6, 1, 1).relu().global_average_pool().flatten();
        l.linear("fc", x, 2)
    });
    assert!(prune(&mut small, &options(0.5, 8)).unwrap_err().to_string().contains("6 channels"));
    assert!(prune(&mut small, &options(1.5, 8)).unwrap_err().to_string().contains("1.5"));
}

#[test]
fn a_named_batch_stays_named() {
    let cx = Cx::new("test", DType::F32);
    let ty = TensorType::with_dims(DType::F32, vec!["batch".into(), 3.into(), 4.into(), 4.into()]);
    let x = cx.var(cx.edit(|g| g.add_input("x", ty)));
    let mut l = Layers { cx: &cx, random: Random::new(12) };
    let w = l.weight("a.weight", &[16, 3, 3, 3], -0.5, 0.5);
    let v = l.weight("fc.weight", &[16 * 4, 5], -0.5, 0.5);
    let x = cx.op("Conv", &[x, w], &[]).relu();
    // Written as exporters do: the batch copied, the rest counted.
    let x = cx.op("Reshape", &[x, cx.ints(&[0, 64])], &[]);
    cx.output("y", x.matmul(v));
    let graph = cx.finish().unwrap();
    let masked = mask(&graph, &options(0.5, 8)).unwrap();
    let mut pruned = graph.clone();
    prune(&mut pruned, &options(0.5, 8)).unwrap();
    assert_eq!(shape(&pruned, "fc.weight"), [32, 5]);
    for batch in [1, 3] {
        let x = TensorMap::from([("x".to_owned(), Random::new(batch as u64).tensor(&[batch, 3, 4, 4], -1.0, 1.0))]);
        assert!(compare(&pruned, &masked, &x).unwrap()[0].max_rel < 2e-6);
    }
    assert_eq!(pruned.ty(pruned.outputs[0]), graph.ty(graph.outputs[0]));
    assert!(model_cost(&pruned).dynamic);
}
