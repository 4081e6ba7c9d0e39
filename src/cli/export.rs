//! `limbeck export`: passes that make a student smaller, from file to file.

use super::{output, tensors};
use anyhow::{Context, Result};
use limbeck_exporters::{
    Calibration, HalfOptions, Method, Profile, PruneOptions, PruneTarget, QuantOptions, fold_batch_norm, model_cost,
    observed_values, prune, quantise, to_half, with_outputs,
};
use limbeck_graph::Graph;
use limbeck_tensor::DType;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Folds BatchNormalization into the layer before it.
    Fold(Files),
    /// Removes the least important channels of each dependency group; distil afterwards.
    Prune {
        #[command(flatten)]
        files: Files,
        /// Share of the channels of each group that stays.
        #[arg(long, default_value_t = 0.75)]
        keep: f64,
        /// Kept channels are rounded up to a multiple of this.
        #[arg(long, default_value_t = 8)]
        round_to: usize,
    },
    /// Quantises to int8 with ranges from calibration data.
    Quantise {
        #[command(flatten)]
        files: Files,
        /// Calibration feeds: safetensors with all inputs, or NAME=FILE.npy; repeatable.
        #[arg(long, required = true)]
        feeds: Vec<String>,
        /// server (QDQ, for ONNX Runtime) or tract (integer ops that tract runs).
        #[arg(long, default_value = "server", value_parser = ["server", "tract"])]
        profile: String,
        /// Signed activations, for ARM and TensorRT.
        #[arg(long)]
        signed: bool,
    },
    /// Stores weights as float16.
    Half(Files),
}

#[derive(Debug, clap::Args)]
pub(super) struct Files {
    /// ONNX model.
    model: PathBuf,
    /// Where to write the result.
    #[arg(long)]
    out: PathBuf,
}

pub(super) fn run(command: &Command, json: bool) -> Result<bool> {
    let (files, graph, facts) = match command {
        Command::Fold(files) => {
            let mut graph = read(files)?;
            let folded = fold_batch_norm(&mut graph)?;
            (files, graph, json!({"folded": folded}))
        }
        Command::Prune { files, keep, round_to } => {
            let mut graph = read(files)?;
            let options = PruneOptions {
                target: PruneTarget::Channels(*keep),
                round_to: *round_to,
                max_per_round: 1.0,
                ..PruneOptions::default()
            };
            let report = prune(&mut graph, &options)?;
            (files, graph, serde_json::to_value(&report)?)
        }
        Command::Quantise { files, feeds, profile, signed } => {
            let graph = read(files)?;
            let feeds = tensors::read_feeds(feeds)?;
            let mut observed = observed_values(&graph)?;
            observed.retain(|n| !feeds.contains_key(n));
            let mut calibration = Calibration::new(Method::MinMax);
            let mut probed = with_outputs(&graph, &observed)?;
            tensors::shape_inputs(&mut probed, &feeds)?;
            calibration.observe_all(&probed.evaluate(&feeds)?)?;
            calibration.observe_all(&feeds)?;
            let options = QuantOptions {
                profile: if profile == "tract" { Profile::Tract } else { Profile::Server },
                activations: if *signed { DType::I8 } else { DType::U8 },
                ..QuantOptions::default()
            };
            let (graph, report) = quantise(&graph, &calibration, &options)?;
            (files, graph, json!({"int_nodes": report.int_nodes, "float_nodes": report.float_nodes}))
        }
        Command::Half(files) => {
            let mut graph = read(files)?;
            let report = to_half(&mut graph, &HalfOptions::default())?;
            let facts = json!({
                "converted": report.converted, "out_of_range": report.out_of_range,
                "weight_bytes_before": report.bytes.0, "weight_bytes_after": report.bytes.1,
            });
            (files, graph, facts)
        }
    };
    let before = std::fs::metadata(&files.model).context("reading the model's size")?.len();
    graph.write(&files.out)?;
    let cost = model_cost(&graph);
    output::print(
        &json!({
            "written": files.out.display().to_string(),
            "bytes_before": before,
            "bytes_after": std::fs::metadata(&files.out)?.len(),
            "parameters": cost.params,
            "int_nodes": cost.int_nodes,
            "float_nodes": cost.float_nodes,
            "pass": Value::clone(&facts),
        }),
        json,
    );
    Ok(true)
}

fn read(files: &Files) -> Result<Graph> {
    let mut graph = Graph::read(&files.model)?;
    graph.canonicalise()?;
    graph.infer_types()?;
    Ok(graph)
}
