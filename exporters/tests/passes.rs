//! Folding, layer reduction, half precision and cost on small networks, against the reference evaluator and counts
//! made by hand.

mod common;

use common::{build, feeds, resnet};
use limbeck_exporters::*;
use limbeck_graph::{Attr, Capture, Graph, Node};
use limbeck_tensor::{DType, Tensor, TensorMap};

#[test]
fn folding_keeps_the_function_and_the_names() {
    let graph = resnet(1);
    let mut folded = graph.clone();
    assert_eq!(fold_batch_norm(&mut folded).unwrap(), 8);
    assert!(folded.nodes().all(|(_, n)| n.op != "BatchNormalization"));
    let d = compare(&folded, &graph, &feeds(&graph, 2)).unwrap();
    assert!(d[0].max_rel < 2e-6 && d[0].max_abs > 0.0, "{d:?}");
    // A normalised value means the same before and after: calibrations of either serve both.
    let bn = graph.nodes().find(|(_, n)| n.op == "BatchNormalization").unwrap().1.output(0).unwrap();
    let name = graph.name_of(bn);
    let values = |g: &limbeck_graph::Graph| {
        g.evaluate_all(&feeds(&graph, 2)).unwrap()[&g.require(name).unwrap()]
            .to_f64()
            .iter()
            .copied()
            .collect::<Vec<_>>()
    };
    assert!(values(&graph).iter().zip(values(&folded)).all(|(a, b)| (a - b).abs() < 1e-5));
}

#[test]
fn folding_knows_gemm_and_transposed_convolutions_and_leaves_shared_outputs() {
    let gemm = build(3, &[4, 6], |l, x| {
        let w = l.weight("w", &[6, 8], -1.0, 1.0);
        let c = l.weight("c", &[8], -1.0, 1.0);
        let y = l.cx.op("Gemm", &[x, w, c], &[("alpha", Attr::Float(0.5)), ("beta", Attr::Float(2.0))]);
        l.norm("bn", y)
    });
    let up = build(4, &[2, 4, 5, 5], |l, x| {
        let w = l.weight("w", &[4, 3, 2, 2], -1.0, 1.0);
        let y = l.cx.op("ConvTranspose", &[x, w], &[("group", Attr::Int(2)), ("strides", Attr::Ints(vec![2, 2]))]);
        l.norm("bn", y)
    });
    for graph in [gemm, up] {
        let mut folded = graph.clone();
        assert_eq!(fold_batch_norm(&mut folded).unwrap(), 1);
        let d = compare(&folded, &graph, &feeds(&graph, 5)).unwrap();
        assert!(d[0].max_rel < 2e-6, "{d:?}");
    }
    let shared = build(6, &[1, 3, 4, 4], |l, x| {
        let y = l.conv("c", x, 4, 3, 1);
        l.norm("bn", y) + y
    });
    let mut folded = shared.clone();
    assert_eq!(fold_batch_norm(&mut folded).unwrap(), 0);
    assert_eq!(folded, shared);
}

#[test]
fn weights_that_a_subgraph_reads_are_not_changed_in_place() {
    let mut graph = build(6, &[1, 3, 4, 4], |l, x| l.conv_norm("c", x, 4, 3, 1));
    let w = graph.require("c.weight").unwrap();
    let branch = |name: &str| {
        let mut sub = Graph::new(name);
        let (inner, out) = (sub.add_value(format!("{name}.w"), None), sub.add_value(format!("{name}.out"), None));
        sub.captures.push(Capture { inner, outer: w });
        sub.add_node(Node::new("Identity", &[inner], &[out]));
        sub.outputs.push(out);
        Attr::Graph(Box::new(sub))
    };
    let flag = graph.add_initializer("flag", Tensor::bools([], &[true]).unwrap());
    let copy = graph.add_value("copy", None);
    let branches = [("then_branch", branch("then")), ("else_branch", branch("else"))];
    let node = branches.into_iter().fold(Node::new("If", &[flag], &[copy]), |node, (name, g)| node.with(name, g));
    graph.add_node(node);
    graph.outputs.push(copy);
    let mut folded = graph.clone();
    assert_eq!(fold_batch_norm(&mut folded).unwrap(), 1);
    assert_eq!(folded.initializer(w), graph.initializer(w), "what the branches read has changed");
}

#[test]
fn statistics_of_other_lengths_and_no_groups_are_left_alone() {
    let graph = build(6, &[1, 3, 4, 4], |l, x| l.conv_norm("c", x, 4, 3, 1));
    for name in ["c.bn.scale", "c.bn.bias", "c.bn.mean", "c.bn.var"] {
        for length in [0, 1, 3, 5] {
            let mut wrong = graph.clone();
            wrong.set_initializer(graph.require(name).unwrap(), Tensor::new([length], vec![1f32; length]).unwrap());
            assert_eq!(fold_batch_norm(&mut wrong).unwrap_or(0), 0, "{name} {length}");
        }
    }
    let mut up = build(4, &[2, 4, 5, 5], |l, x| {
        let w = l.weight("w", &[4, 6, 2, 2], -1.0, 1.0);
        let y = l.cx.op("ConvTranspose", &[x, w], &[]);
        l.norm("bn", y)
    });
    let layer = up.nodes().find(|(_, n)| n.op == "ConvTranspose").unwrap().0;
    for group in [0, -1] {
        up.node_mut(layer).attrs.insert("group".into(), Attr::Int(group));
        assert_eq!(fold_batch_norm(&mut up.clone()).unwrap_or(0), 0, "group {group}");
    }
}

#[test]
fn blocks_are_found_scored_and_removed() {
    let mut graph = resnet(7);
    let blocks = removable_blocks(&graph);
    // The projection block changes the width and cannot go.
    assert_eq!(blocks.len(), 2);
    let per_block = 2 * (16 * 16 * 9 + 4 * 16);
    assert!(blocks.iter().all(|b| b.parameters == per_block && b.nodes.len() == 7), "{blocks:?}");

    let observed = with_outputs(&graph, &block_values(&graph, &blocks)).unwrap();
    let batches = (0..3).map(|i| Ok(observed.evaluate(&feeds(&graph, i))?));
    let scores = score_blocks(&graph, &blocks, batches).unwrap();
    assert!(scores.iter().all(|s| *s > 0.0 && *s < 1.0), "{scores:?}");

    let x = feeds(&graph, 8);
    let expected = {
        // Without both blocks the third reads what the first read.
        let values = graph.evaluate_all(&x).unwrap();
        values[&blocks[0].entry].clone()
    };
    remove_blocks(&mut graph, &blocks).unwrap();
    assert!(removable_blocks(&graph).is_empty());
    let values = graph.evaluate_all(&x).unwrap();
    let conv = graph.nodes().find(|(_, n)| n.input(1) == graph.find("b2.a.weight")).unwrap().1;
    assert_eq!(values[&conv.input(0).unwrap()], expected);
    assert!(graph.find("b0.a.weight").is_none_or(|id| graph.initializer(id).is_none()));
}

#[test]
fn a_block_that_does_nothing_scores_zero_and_its_removal_changes_nothing() {
    let graph = build(9, &[2, 4, 6], |l, x| {
        let (a, b) = (l.weight("w0", &[6, 6], -1.0, 1.0), l.weight("w1", &[6, 6], 0.0, 0.0));
        let y = x.identity();
        let y = y + y.matmul(a);
        (y + y.matmul(b)).tanh()
    });
    let blocks = removable_blocks(&graph);
    assert_eq!(blocks.len(), 2);
    let observed = with_outputs(&graph, &block_values(&graph, &blocks)).unwrap();
    let scores = score_blocks(&graph, &blocks, [Ok(observed.evaluate(&feeds(&graph, 1)).unwrap())]).unwrap();
    assert!(scores[0] > 1e-3 && scores[1].abs() < 1e-12, "{scores:?}");
    assert_eq!(choose_blocks(&blocks, &Order::Scores(scores), 72, 0.5).unwrap(), [1]);
    assert_eq!(choose_blocks(&blocks, &Order::Last, 72, 0.3).unwrap(), [] as [usize; 0]);
    let mut less = graph.clone();
    remove_block(&mut less, &blocks[1]).unwrap();
    assert_eq!(compare(&less, &graph, &feeds(&graph, 2)).unwrap()[0].max_abs, 0.0);
    assert!(remove_block(&mut less, &blocks[1]).is_err());
}

#[test]
fn half_weights_keep_eleven_bits_and_report_what_does_not_fit() {
    let graph = resnet(10);
    for (dtype, step) in [(DType::F16, 2f64.powi(-11)), (DType::BF16, 2f64.powi(-8))] {
        let mut half = graph.clone();
        let report = to_half(&mut half, &HalfOptions { dtype, ..HalfOptions::default() }).unwrap();
        assert_eq!((report.converted.len(), report.out_of_range.len()), (9, 0));
        let d = compare(&half, &graph, &feeds(&graph, 1)).unwrap();
        assert!(d[0].max_abs > 0.0 && d[0].max_rel < 8.0 * step, "{d:?}");
        let weights: u64 = graph.initializers().filter(|(_, t)| t.shape().len() > 1).map(|(_, t)| t.len() as u64).sum();
        assert_eq!(report.bytes.0 - report.bytes.1, 2 * weights);
    }
    let mut graph = graph;
    let id = graph.require("fc.weight").unwrap();
    let mut values = graph.initializer(id).unwrap().to_vec::<f32>().unwrap();
    values[3] = 1e6;
    graph.set_initializer(id, Tensor::new([5, 24], values).unwrap());
    let report =
        to_half(&mut graph, &HalfOptions { keep: vec!["stem.weight".into()], ..HalfOptions::default() }).unwrap();
    assert_eq!(report.out_of_range, ["fc.weight: 1e6"]);
    assert!(!report.converted.contains(&"stem.weight".to_owned()) && report.converted.len() == 7);
}

#[test]
fn cost_counts_what_a_hand_counts() {
    let graph = build(11, &[2, 3, 8, 8], |l, x| {
        let x = l.conv("a", x, 4, 3, 1).relu();
        let x = l.conv("d", x, 4, 3, 4).flatten();
        l.linear("fc", x, 10)
    });
    let cost = model_cost(&graph);
    assert_eq!(cost.macs, 2 * (64 * 4 * 27 + 64 * 4 * 9 + 256 * 10));
    assert_eq!(cost.params, 4 * 27 + 4 * 9 + 256 * 10 + 10);
    // The largest moment holds two maps of 2x4x8x8 floats.
    assert_eq!(cost.peak_activation_bytes, 2 * 2 * 4 * 64 * 4);
    assert_eq!(cost.ops, ["Conv", "Gemm", "Relu", "Reshape"]);
    assert_eq!((cost.int_nodes, cost.float_nodes, cost.dynamic), (0, 4, false));
}

#[test]
fn parity_sees_what_differs() {
    let one = |v: f32| TensorMap::from([("y".to_owned(), Tensor::new([2], vec![v, 4.0]).unwrap())]);
    let d = compare_outputs(&one(1.0), &one(2.0)).unwrap();
    assert_eq!((d[0].max_abs, d[0].max_rel), (1.0, 0.25));
    assert!(compare_outputs(&one(f32::NAN), &one(2.0)).unwrap()[0].max_abs.is_nan());
    assert!(compare_outputs(&TensorMap::new(), &one(2.0)).unwrap_err().to_string().contains("'y'"));
}
