//! `limbeck grad`: the gradient of a scalar output for every float initializer, those in bodies of loops included, by name.

use super::{output, tensors};
use anyhow::{Context, Result};
use limbeck_autodiff::{Differentiate, compose};
use limbeck_graph::{Cx, Form, Graph, Var};
use limbeck_runtime::{CompileOptions, Model, engine};
use limbeck_tensor::{DType, TensorMap};
use serde_json::json;
use std::collections::HashMap;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// ONNX model.
    model: PathBuf,
    /// Name of the scalar output to differentiate.
    #[arg(long)]
    loss: String,
    /// safetensors file with inputs, or NAME=FILE.npy; repeatable.
    #[arg(long)]
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
    let mut model = Graph::read(&args.model)?;
    model.hoist_weights();
    let names = wanted(&model, args.inputs);
    let results =
        evaluate(gradients(tensors::read_shaped(&args.model, &feeds)?, &args.loss, &names)?, &args.engine, &feeds)?;
    let results: TensorMap = results.into_iter().map(|(n, t)| (n.trim_start_matches(PREFIX).to_owned(), t)).collect();
    tensors::write(&args.out, &results)?;
    let rows = results.iter().map(|(name, t)| -> Result<_> {
        let norm = t.to_f64_vec()?.iter().map(|x| x * x).sum::<f64>().sqrt();
        Ok(json!({"name": name, "shape": t.shape(), "norm": norm}))
    });
    let rows = rows.collect::<Result<Vec<_>>>()?;
    output::print(&json!({"loss": args.loss, "engine": args.engine, "gradients": rows}), json);
    Ok(true)
}

/// The float initializers of a model that are no literals, and with `inputs` its float inputs, by name.
fn wanted(graph: &Graph, inputs: bool) -> Vec<String> {
    let initializers =
        graph.initializers().filter(|(id, t)| t.dtype().is_float() && !graph.is_literal(*id)).map(|(id, _)| id);
    let fed =
        graph.inputs.iter().copied().filter(|&id| {
            inputs && graph.initializer(id).is_none() && graph.ty(id).is_some_and(|t| t.dtype.is_float())
        });
    initializers.chain(fed).map(|id| graph.name_of(id).to_owned()).collect()
}

/// The graph of the gradients of `loss`, as outputs called [`PREFIX`] and a name. Normalisation in training mode is
/// differentiated through its batch statistics.
fn gradients(mut model: Graph, loss: &str, names: &[String]) -> Result<Graph> {
    model.hoist_weights();
    let loss_id = model.require(loss)?;
    let float = model
        .ty(loss_id)
        .map(|t| t.dtype)
        .filter(|d| d.is_float())
        .with_context(|| format!("'{loss}' is not a float value and cannot be a loss"))?;
    let cx = Cx::new(&model.name, float);
    let mut bind = HashMap::new();
    for &input in model.inputs.iter().filter(|&&i| model.initializer(i).is_none()) {
        let ty = model.ty(input).cloned().with_context(|| format!("input '{}' has no type", model.name_of(input)))?;
        let id = cx.edit(|g| g.add_input(model.name_of(input), ty));
        bind.insert(input, cx.var(id));
    }
    for (id, tensor) in model.initializers() {
        bind.insert(id, cx.initializer(model.name_of(id), tensor.clone()));
    }
    let values = cx.inline_with(&model, &bind, &mut compose)?;
    let var = |name: &str| -> Result<Var<'_>> {
        let id = model.require(name)?;
        values.get(&id).copied().with_context(|| format!("'{name}' is never computed"))
    };
    let wrt = names.iter().map(|n| var(n)).collect::<Result<Vec<_>>>()?;
    for (name, gradient) in names.iter().zip(cx.grad(var(loss)?, &wrt)?) {
        cx.output(&format!("{PREFIX}{name}"), gradient);
    }
    Ok(cx.finish()?)
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
