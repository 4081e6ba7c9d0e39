//! `limbeck grad`: the gradient of a scalar output for every float initializer, by name.

use super::{output, tensors};
use anyhow::{Context, Result};
use limbeck_autodiff::Differentiate;
use limbeck_graph::{Cx, Form};
use limbeck_runtime::{CompileOptions, Model, engine};
use limbeck_tensor::{DType, TensorMap};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// ONNX model.
    model: PathBuf,
    /// Name of the scalar output to differentiate.
    #[arg(long)]
    loss: String,
    /// safetensors file with all inputs, or NAME=FILE.npy; repeatable.
    #[arg(long, required = true)]
    feeds: Vec<String>,
    /// Where to write the gradients (.safetensors).
    #[arg(long)]
    out: PathBuf,
    /// Also differentiate with respect to float inputs.
    #[arg(long)]
    inputs: bool,
    /// tract, ort or reference.
    #[arg(long, default_value = "reference")]
    engine: String,
}

/// Prefix of the graph outputs that hold gradients, so that they cannot clash with the model's names.
const PREFIX: &str = "gradient::";

pub(super) fn run(args: &Args, json: bool) -> Result<bool> {
    let feeds = tensors::read_feeds(&args.feeds)?;
    let graph = tensors::read_shaped(&args.model, &feeds)?;
    graph.require(&args.loss)?;
    let float = graph
        .ty(graph.require(&args.loss)?)
        .map(|t| t.dtype)
        .filter(|d| d.is_float())
        .with_context(|| format!("'{}' is not a float value and cannot be a loss", args.loss))?;
    let mut names: Vec<String> = graph
        .initializers()
        .filter(|(id, t)| t.dtype().is_float() && !graph.inputs.contains(id))
        .map(|(id, _)| graph.name_of(id).to_owned())
        .collect();
    for &input in &graph.inputs {
        let is_float = graph.ty(input).is_some_and(|t| t.dtype.is_float());
        if is_float && (args.inputs || graph.initializer(input).is_some()) {
            names.push(graph.name_of(input).to_owned());
        }
    }
    let cx = Cx::over(graph, float);
    let wrt: Vec<_> = names.iter().map(|n| cx.named(n)).collect();
    let gradients = cx.grad(cx.named(&args.loss), &wrt)?;
    cx.edit(|g| g.outputs.clear());
    for (name, gradient) in names.iter().zip(&gradients) {
        cx.output(&format!("{PREFIX}{name}"), *gradient);
    }
    let graph = cx.finish()?;
    // Inputs that no gradient depends on are still fed.
    let results = evaluate(graph, &args.engine, &feeds)?;
    let results: TensorMap = results.into_iter().map(|(n, t)| (n.trim_start_matches(PREFIX).to_owned(), t)).collect();
    tensors::write(&args.out, &results)?;
    let rows: Vec<_> = results
        .iter()
        .map(|(name, t)| {
            let norm = t.to_f64_vec().map(|v| v.iter().map(|x| x * x).sum::<f64>().sqrt()).unwrap_or(f64::NAN);
            json!({"name": name, "shape": t.shape(), "norm": norm})
        })
        .collect();
    output::print(&json!({"loss": args.loss, "engine": args.engine, "gradients": rows}), json);
    Ok(true)
}

/// Runs a built graph on an engine or the reference evaluator.
pub(super) fn evaluate(graph: limbeck_graph::Graph, name: &str, feeds: &TensorMap) -> Result<TensorMap> {
    if name == "reference" {
        return Ok(graph.evaluate(feeds)?);
    }
    debug_assert!(graph.inputs.iter().all(|&i| graph.ty(i).is_none_or(|t| t.dtype != DType::String)));
    let bytes = graph.lowered(Form::Portable)?.to_bytes()?;
    let program = engine(name)?.compile(&Model::new(bytes), &CompileOptions { threads: 1, ..Default::default() })?;
    let wanted: Vec<_> =
        program.inputs().iter().filter_map(|i| feeds.get_key_value(&i.name)).map(|(n, t)| (n.as_str(), t)).collect();
    Ok(program.infer(&wanted)?)
}
