//! `limbeck inspect`: what a model is made of.

use super::{output, tensors};
use anyhow::Result;
use limbeck_distill::{Net, Role, Stored, Trainability};
use limbeck_graph::{Graph, ops};
use serde_json::json;
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
        if !json {
            output::print(&facts, json);
            say(&report);
            return Ok(true);
        }
        facts["training"] = serde_json::to_value(&report)?;
    }
    output::print(&facts, json);
    Ok(true)
}

/// Prints the report: the verdict, each remark with its remedy, then the tensors by their role.
fn say(report: &Trainability) {
    output::say(format_args!("training: {}", report.verdict));
    for r in &report.remarks {
        output::say(format_args!("  {}: {}", format!("{:?}", r.severity).to_lowercase(), r.names.join(", ")));
        output::say(format_args!("    {}", r.message));
        if !r.remedy.is_empty() {
            output::say(format_args!("    remedy: {}", r.remedy));
        }
    }
    for (role, title) in [(Role::Parameter, "parameters"), (Role::Buffer, "buffers"), (Role::Constant, "constants")] {
        let of: Vec<&Stored> = report.stored.iter().filter(|s| s.role == role).collect();
        let numbers: usize = of.iter().map(|s| s.shape.iter().product::<usize>()).sum();
        output::say(format_args!("  {title}: {} tensors, {numbers} numbers", of.len()));
        for s in of.into_iter().filter(|s| !s.shape.is_empty()) {
            output::say(format_args!("    {} {:?}: {}", s.name, s.shape, s.why));
        }
    }
}

fn known(op: &str) -> bool {
    match op.split_once("::") {
        Some((domain, name)) => ops::find(domain, name).is_some(),
        None => ops::find("", op).is_some(),
    }
}
