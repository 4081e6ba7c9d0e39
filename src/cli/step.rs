//! `limbeck step`: the train step of a recipe as files.

use super::output;
use anyhow::Result;
use limbeck_distill::recipe::Recipe;
use limbeck_graph::Form;
use limbeck_runtime::StateRole;
use limbeck_tensor::{io, replace_file};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recipe (TOML).
    recipe: PathBuf,
    /// Folder for `step.onnx`, `step.json` and `state.safetensors`.
    #[arg(long)]
    out: PathBuf,
    /// Keep Limbeck's fused ops, for the tract engine, instead of standard ops alone.
    #[arg(long)]
    fused: bool,
}

pub(super) fn run(args: &Args, json: bool) -> Result<bool> {
    let form = if args.fused { Form::Fused } else { Form::Portable };
    let step = Recipe::load(&args.recipe)?.step(form)?;
    std::fs::create_dir_all(&args.out)?;
    step.graph.write(args.out.join("step.onnx"))?;
    replace_file(&args.out.join("step.json"), step.manifest.to_json().as_bytes())?;
    io::write_safetensors(&args.out.join("state.safetensors"), &step.initial)?;
    let m = &step.manifest;
    output::print(
        &json!({
            "step": m.name, "folder": args.out.display().to_string(), "nodes": step.graph.node_count(),
            "parameter_bytes": m.state_bytes(StateRole::Parameter),
            "optimiser_bytes": m.state_bytes(StateRole::Optimiser),
            "batch": m.batch.iter().map(|b| format!("{} {}{:?}", b.name, b.dtype, b.shape)).collect::<Vec<_>>(),
            "scalars": m.scalars.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
            "losses": m.losses, "metrics": m.metrics,
        }),
        json,
    );
    Ok(true)
}
