//! `limbeck export`: passes that make a student smaller, from file to file.

use super::{output, tensors};
use anyhow::{Context, Result, bail};
use limbeck_exporters::{
    Calibration, HalfOptions, Method, Order, Profile, PruneOptions, PruneTarget, QuantOptions, block_values,
    choose_blocks, fold_batch_norm, model_cost, observed_values, prune, quantise, removable_blocks, remove_blocks,
    score_blocks, to_half, with_outputs,
};
use limbeck_graph::Graph;
use limbeck_targets::Activations;
use limbeck_tensor::{DType, TensorMap};
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
        /// Largest share of the parameters that may go at once.
        #[arg(long, default_value_t = 1.0 / 3.0)]
        max_per_round: f64,
    },
    /// Removes residual blocks that change least what flows through them; distil afterwards.
    Reduce(Reduce),
    /// Quantises to int8 with ranges from calibration data.
    Quantise(Quantise),
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

#[derive(Debug, clap::Args)]
pub(super) struct Reduce {
    #[command(flatten)]
    files: Files,
    /// scores (on calibration data), last (the last blocks) or alternate (every other).
    #[arg(long, default_value = "scores", value_parser = ["scores", "last", "alternate"])]
    order: String,
    /// Calibration feeds for scores: safetensors with all inputs, or NAME=FILE.npy; repeatable.
    #[arg(long)]
    feeds: Vec<String>,
    /// Largest share of the parameters that may go.
    #[arg(long, default_value_t = 1.0 / 3.0)]
    share: f64,
}

#[derive(Debug, clap::Args)]
pub(super) struct Quantise {
    #[command(flatten)]
    files: Files,
    /// Calibration feeds: safetensors with all inputs, or NAME=FILE.npy; repeatable.
    #[arg(long, required = true)]
    feeds: Vec<String>,
    /// server (QDQ, for ONNX Runtime) or tract (integer ops that tract runs).
    #[arg(long, default_value = "server", value_parser = ["server", "tract"])]
    profile: String,
    /// How ranges are found: min-max, moving-average (0.01), percentile (99.999 % of the values) or entropy.
    #[arg(long, default_value = "min-max", value_parser = ["min-max", "moving-average", "percentile", "entropy"])]
    method: String,
    /// Board whose settings to take: signed or unsigned activations, reduced range of weights.
    #[arg(long)]
    board: Option<String>,
    /// Signed activations, for ARM and TensorRT.
    #[arg(long)]
    signed: bool,
    /// Weights within [-64, 64], for CPUs with AVX2 but without VNNI.
    #[arg(long)]
    reduce_range: bool,
}

pub(super) fn run(command: &Command, json: bool) -> Result<bool> {
    let (files, graph, facts) = match command {
        Command::Fold(files) => {
            let mut graph = read(files)?;
            let folded = fold_batch_norm(&mut graph)?;
            (files, graph, json!({"folded": folded}))
        }
        Command::Prune { files, keep, round_to, max_per_round } => {
            let mut graph = read(files)?;
            let options = PruneOptions {
                target: PruneTarget::Channels(*keep),
                round_to: *round_to,
                max_per_round: *max_per_round,
                ..PruneOptions::default()
            };
            let report = prune(&mut graph, &options)?;
            (files, graph, serde_json::to_value(&report)?)
        }
        Command::Reduce(args) => {
            let (graph, facts) = reduce(args)?;
            (&args.files, graph, facts)
        }
        Command::Quantise(args) => {
            let (graph, facts) = to_int8(args)?;
            (&args.files, graph, facts)
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

/// The values of these names, by the reference evaluator.
fn values(graph: &Graph, names: &[String], feeds: &TensorMap) -> Result<TensorMap> {
    let mut probed = with_outputs(graph, names)?;
    tensors::shape_inputs(&mut probed, feeds)?;
    Ok(probed.evaluate(feeds)?)
}

fn reduce(args: &Reduce) -> Result<(Graph, Value)> {
    let mut graph = read(&args.files)?;
    let blocks = removable_blocks(&graph);
    if blocks.is_empty() {
        bail!("{}: no residual block can be taken out", args.files.model.display());
    }
    let order = match args.order.as_str() {
        "last" => Order::Last,
        "alternate" => Order::Alternate,
        _ if args.feeds.is_empty() => bail!("scores need calibration data: give --feeds, or --order last"),
        _ => {
            let feeds = tensors::read_feeds(&args.feeds)?;
            let mut seen = values(&graph, &block_values(&graph, &blocks), &feeds)?;
            seen.extend(feeds);
            Order::Scores(score_blocks(&graph, &blocks, [Ok(seen)])?)
        }
    };
    let chosen = choose_blocks(&blocks, &order, model_cost(&graph).params, args.share)?;
    if chosen.is_empty() {
        bail!("no block has less than --share {:.2} of the parameters; allow more", args.share);
    }
    let facts: Vec<Value> = blocks
        .iter()
        .enumerate()
        .map(|(i, block)| {
            let score = if let Order::Scores(scores) = &order { Some(scores[i]) } else { None };
            json!({"block": block.name, "parameters": block.parameters, "score": score, "removed": chosen.contains(&i)})
        })
        .collect();
    let removed: Vec<_> = chosen.iter().map(|&i| blocks[i].clone()).collect();
    remove_blocks(&mut graph, &removed)?;
    Ok((graph, json!({"blocks": facts})))
}

fn to_int8(args: &Quantise) -> Result<(Graph, Value)> {
    let graph = read(&args.files)?;
    let feeds = tensors::read_feeds(&args.feeds)?;
    let mut observed = observed_values(&graph)?;
    observed.retain(|n| !feeds.contains_key(n));
    let method = match args.method.as_str() {
        "moving-average" => Method::MovingAverage(0.01),
        "percentile" => Method::Percentile(99.999),
        "entropy" => Method::Entropy,
        _ => Method::MinMax,
    };
    let mut calibration = Calibration::new(method);
    calibration.observe_all(&values(&graph, &observed, &feeds)?)?;
    calibration.observe_all(&feeds)?;
    let board = args.board.as_deref().map(limbeck_targets::find).transpose()?;
    let signed = args.signed || board.is_some_and(|b| b.precision.activations == Activations::S8);
    let options = QuantOptions {
        profile: if args.profile == "tract" { Profile::Tract } else { Profile::Server },
        activations: if signed { DType::I8 } else { DType::U8 },
        reduce_range: args.reduce_range || board.is_some_and(|b| b.precision.reduce_range),
        ..QuantOptions::default()
    };
    let (graph, report) = quantise(&graph, &calibration, &options)?;
    Ok((graph, serde_json::to_value(&report)?))
}
