//! `limbeck run`: a model on tensors from files.

use super::{output, tensors};
use anyhow::{Context, Result};
use limbeck_graph::{Graph, ImportOptions};
use limbeck_runtime::{CompileOptions, Model, engine};
use limbeck_tensor::{TensorMap, map_file};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// ONNX model.
    model: PathBuf,
    /// safetensors file with inputs, or NAME=FILE.npy; repeatable.
    #[arg(long)]
    feeds: Vec<String>,
    /// Where to write the outputs (.safetensors, or .npy for a single one).
    #[arg(long)]
    out: Option<PathBuf>,
    /// tract, ort or reference.
    #[arg(long, default_value = "tract")]
    engine: String,
    /// Threads; 0 for all cores.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

pub(super) fn run(args: &Args, json: bool) -> Result<bool> {
    let feeds = tensors::read_feeds(&args.feeds)?;
    let (outputs, provider) = run_on(&args.engine, &args.model, &feeds, args.threads)?;
    if let Some(out) = &args.out {
        tensors::write(out, &outputs)?;
    }
    let shown: Vec<_> = outputs
        .iter()
        .map(|(name, t)| json!({"name": name, "dtype": t.dtype().name(), "shape": t.shape(), "finite": t.all_finite()}))
        .collect();
    output::print(&json!({"engine": args.engine, "provider": provider, "outputs": shown}), json);
    Ok(true)
}

/// Outputs of a model file on an engine (or `reference`), and what really ran it.
pub(super) fn run_on(name: &str, model: &PathBuf, feeds: &TensorMap, threads: usize) -> Result<(TensorMap, String)> {
    if name == "reference" {
        let graph = tensors::read_shaped(model, feeds)?;
        return Ok((graph.evaluate(feeds)?, "reference evaluator".into()));
    }
    let engine = engine(name)?;
    let options = CompileOptions { threads, ..CompileOptions::default() };
    let bytes = if name == "tract" {
        // tract wants fixed shapes and plain nodes, and takes what a file declares of inner values for true: it infers
        // them itself.
        let mut graph = Graph::read(model)?;
        tensors::set_inputs(&mut graph, feeds)?;
        graph.import(&ImportOptions::default())?;
        tensors::forget_inner_types(&mut graph);
        graph.to_bytes()?
    } else {
        map_file(model)?
    };
    let folder = model.parent().map(std::path::Path::to_path_buf);
    let program = engine.compile(&Model { bytes, folder, state: vec![] }, &options).context("compiling the model")?;
    let outputs = program.infer(&tensors::as_feeds(feeds))?;
    Ok((outputs, program.provider().to_owned()))
}
