//! `limbeck inspect`: what a model is made of.

use super::output;
use anyhow::Result;
use limbeck_distill::Net;
use limbeck_graph::{Graph, ops};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// ONNX model.
    model: PathBuf,
    /// Tell parameters, buffers and constants apart, and name ops without gradient.
    #[arg(long)]
    training: bool,
}

pub(super) fn run(args: &Args, json: bool) -> Result<bool> {
    let graph = Graph::read(&args.model)?;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (_, node) in graph.nodes() {
        *counts.entry(node.full_op()).or_default() += 1;
    }
    let values = |ids: &[limbeck_graph::ValueId]| -> Vec<String> {
        ids.iter()
            .map(|&i| format!("{}: {}", graph.name_of(i), graph.ty(i).map_or("?".into(), ToString::to_string)))
            .collect()
    };
    let weights: usize = graph.initializers().map(|(_, t)| t.len()).sum();
    let bytes: usize = graph.initializers().map(|(_, t)| t.byte_len()).sum();
    let unknown: Vec<&String> = counts.keys().filter(|op| !known(op)).collect();
    let mut facts = json!({
        "model": args.model.display().to_string(),
        "producer": graph.meta.producer,
        "opsets": graph.meta.opsets.iter().map(|(d, v)| format!("{} {v}", if d.is_empty() { "ai.onnx" } else { d })).collect::<Vec<_>>(),
        "inputs": values(&graph.inputs),
        "outputs": values(&graph.outputs),
        "nodes": graph.node_count(),
        "functions": graph.meta.functions.len(),
        "constants": graph.initializers().count(),
        "numbers": weights,
        "bytes": bytes,
        "ops": counts,
        "ops_only_carried": unknown,
    });
    if args.training {
        let net = Net::from_graph(graph)?;
        let no_gradient: Vec<String> = net
            .graph()
            .nodes()
            .filter(|(_, n)| !limbeck_autodiff::has_gradient(n))
            .map(|(id, n)| format!("{} ({})", net.graph().label(id), n.full_op()))
            .collect();
        facts["training"] = json!({
            "parameters": net.parameter_count(),
            "parameter_tensors": net.parameters(),
            "buffers": net.buffers(),
            "nodes_without_gradient": no_gradient,
        });
    }
    output::print(&facts, json);
    Ok(true)
}

fn known(op: &str) -> bool {
    match op.split_once("::") {
        Some((domain, name)) => ops::find(domain, name).is_some(),
        None => ops::find("", op).is_some(),
    }
}
