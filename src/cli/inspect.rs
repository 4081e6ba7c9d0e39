//! `limbeck inspect`: what a model is made of.

use super::{output, tensors};
use anyhow::Result;
use limbeck_distill::{Net, Role, Trainability};
use limbeck_graph::{Graph, ops};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// ONNX model.
    model: PathBuf,
    /// Tell whether and how the model can be trained: parameters, buffers and constants, what the exporter made of them,
    /// where gradients end, and what to do about it.
    #[arg(long)]
    training: bool,
    /// Values of named dims for --training, NAME=N; repeatable.
    #[arg(long = "dim", requires = "training")]
    dims: Vec<String>,
}

pub(super) fn run(args: &Args, json: bool) -> Result<bool> {
    let mut graph = Graph::read(&args.model)?;
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
        graph.canonicalise()?;
        let dims = tensors::parse_dims(&args.dims)?;
        if !dims.is_empty() {
            graph.bind_dims(&dims.iter().map(|(name, extent)| (name.as_str(), *extent)).collect::<Vec<_>>())?;
        }
        let report = Net::from_graph(graph)?.report();
        facts["training"] = if json { serde_json::to_value(&report)? } else { readable(&report) };
    }
    output::print(&facts, json);
    Ok(true)
}

/// The report in lines: tensors by their role, then each remark.
fn readable(report: &Trainability) -> Value {
    let of = |role: Role| -> Vec<String> {
        let stored = report.stored.iter().filter(|s| s.role == role);
        stored.map(|s| format!("{} {:?}: {}", s.name, s.shape, s.why)).collect()
    };
    let remarks = report.remarks.iter().map(|r| {
        let severity = format!("{:?}", r.severity).to_lowercase();
        let remedy = if r.remedy.is_empty() { String::new() } else { format!(". Remedy: {}", r.remedy) };
        format!("{severity}: {}: {}{remedy}", r.names.join(", "), r.message)
    });
    json!({
        "verdict": report.verdict.to_string(),
        "trained_numbers": report.numbers,
        "parameters": of(Role::Parameter),
        "buffers": of(Role::Buffer),
        "constants": of(Role::Constant),
        "remarks": remarks.collect::<Vec<_>>(),
    })
}

fn known(op: &str) -> bool {
    match op.split_once("::") {
        Some((domain, name)) => ops::find(domain, name).is_some(),
        None => ops::find("", op).is_some(),
    }
}
