//! `limbeck step`: the train step of a recipe as files, and what it takes in memory.

use super::output;
use anyhow::Result;
use limbeck_distill::recipe::Recipe;
use limbeck_graph::{Form, Lowering, MemoryPlan};
use limbeck_runtime::StateRole;
use limbeck_tensor::{io, replace_file};
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recipe (TOML).
    recipe: PathBuf,
    /// Folder for `step.onnx`, `step.json` and `state.safetensors`.
    #[arg(long, required_unless_present = "plan")]
    out: Option<PathBuf>,
    /// Keep Limbeck's fused ops, for the tract engine, instead of standard ops alone.
    #[arg(long)]
    fused: bool,
    /// With `--fused`: keep all activations, in place of computing cheap ones again in the backward pass.
    #[arg(long, requires = "fused")]
    keep: bool,
    /// Print what a run takes in memory, and what lives when it takes most: on tract, and with `--fused` on ONNX Runtime too.
    #[arg(long)]
    plan: bool,
}

/// So many values of the peak are listed.
const LISTED: usize = 12;

pub(super) fn run(args: &Args, json: bool) -> Result<bool> {
    let form = if args.fused { Form::Fused } else { Form::Portable };
    let step = Recipe::load(&args.recipe)?.step(Lowering { recompute: !args.keep, ..form.into() })?;
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out)?;
        step.graph.write(out.join("step.onnx"))?;
        replace_file(&out.join("step.json"), step.manifest.to_json().as_bytes())?;
        io::write_safetensors(&out.join("state.safetensors"), &step.initial)?;
    }
    let m = &step.manifest;
    let folder = args.out.as_ref().map(|out| out.display().to_string());
    let mut facts = json!({
        "step": m.name, "folder": folder, "nodes": step.graph.node_count(),
        "parameter_bytes": m.state_bytes(StateRole::Parameter),
        "optimiser_bytes": m.state_bytes(StateRole::Optimiser),
        "batch": m.batch.iter().map(|b| format!("{} {}{:?}", b.name, b.dtype, b.shape)).collect::<Vec<_>>(),
        "scalars": m.scalars.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
        "losses": m.losses, "metrics": m.metrics,
    });
    if args.plan {
        facts["memory"] = json!({ "tract": plan(step.memory_plan()?) });
        // Of the portable form ONNX Runtime's optimiser makes other nodes.
        if args.fused {
            facts["memory"]["ort"] = plan(step.onnx_runtime_plan()?);
        }
    }
    output::print(&facts, json);
    Ok(true)
}

/// What a run takes.
fn plan(plan: MemoryPlan) -> Value {
    let listed = plan.live.iter().take(LISTED).map(|(name, bytes)| json!({ "value": name, "bytes": bytes }));
    json!({
        "peak_bytes": plan.peak_bytes, "state_and_constant_bytes": plan.given_bytes, "allocations": plan.allocations,
        "peak_at": plan.at.map(|(node, op)| format!("{node} ({op})")), "values_at_peak": plan.live.len(),
        "largest": listed.collect::<Vec<_>>(),
    })
}
