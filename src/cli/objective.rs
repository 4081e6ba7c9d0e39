//! `limbeck objective`: the catalogue of distillation objectives, and their values and gradients on given tensors.

use super::{grad::evaluate, output, tensors};
use anyhow::{Context, Result};
use limbeck_autodiff::Differentiate;
use limbeck_distill::objective::{self, Objective, Side};
use limbeck_graph::Cx;
use limbeck_tensor::{DType, TensorMap, io};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// All objectives.
    List,
    /// One objective: source, formula, taps, parameters.
    Show {
        /// Its name.
        name: String,
    },
    /// Loss and gradient for each tapped tensor.
    Eval {
        /// Name of the objective.
        name: String,
        /// safetensors file with its taps, and `row_weight` if rows are weighted.
        #[arg(long)]
        tensors: PathBuf,
        /// Parameters as key=value; repeatable.
        #[arg(long = "set")]
        set: Vec<String>,
        /// Where to write `loss` and the gradients, by tap (.safetensors).
        #[arg(long)]
        out: PathBuf,
        /// tract, ort or reference.
        #[arg(long, default_value = "reference")]
        engine: String,
    },
}

pub(super) fn run(command: &Command, json: bool) -> Result<bool> {
    match command {
        Command::List => {
            let rows: Vec<_> = objective::ALL.iter().map(|o| json!({"name": o.name, "title": o.title})).collect();
            output::print(&json!({"objectives": rows}), json);
        }
        Command::Show { name } => output::print(&describe(objective::find(name)?), json),
        Command::Eval { name, tensors, set, out, engine } => {
            let taps = io::read_safetensors(tensors)?.into_iter().map(|(n, t)| (n, t.aligned())).collect();
            let results = eval(objective::find(name)?, &taps, set, engine)?;
            tensors::write(out, &results)?;
            let loss = results.get("loss").and_then(|t| t.to_f64_vec().ok()).and_then(|v| v.first().copied());
            let names: Vec<_> = results.keys().filter(|k| *k != "loss").collect();
            output::print(&json!({"objective": name, "loss": loss, "gradients": names}), json);
        }
    }
    Ok(true)
}

fn describe(o: &Objective) -> serde_json::Value {
    let side = |s: Side| match s {
        Side::Student => "student",
        Side::Teacher => "teacher (no gradient)",
        Side::Data => "data",
    };
    json!({
        "name": o.name, "title": o.title, "source": o.source, "formula": o.formula,
        "taps": o.taps.iter().map(|t| json!({"name": t.name, "shape": t.shape, "from": side(t.side)})).collect::<Vec<_>>(),
        "params": o.params.iter()
            .map(|p| json!({"name": p.name, "default": p.default, "min": p.min, "max": p.max, "about": p.about}))
            .collect::<Vec<_>>(),
    })
}

fn eval(objective: &'static Objective, taps: &TensorMap, set: &[String], engine: &str) -> Result<TensorMap> {
    let mut params = vec![];
    for assignment in set {
        let (key, value) =
            assignment.split_once('=').with_context(|| format!("--set {assignment}: write key=value"))?;
        let value: f64 = value.parse().with_context(|| format!("--set {assignment}: '{value}' is not a number"))?;
        params.push((key, value));
    }
    let float = taps.values().map(|t| t.dtype()).find(|d| d.is_float()).unwrap_or(DType::F32);
    let cx = Cx::new(objective.name, float);
    let mut vars = vec![];
    let mut weight = None;
    for (name, tensor) in taps {
        let var = cx.input(name, tensor.dtype(), tensor.shape());
        if name == "row_weight" { weight = Some(var) } else { vars.push((name.as_str(), var)) }
    }
    let loss = objective.loss(&cx, &vars, &params, weight)?;
    let wrt: Vec<_> = vars.iter().filter(|(_, v)| v.dtype().is_float()).copied().collect();
    let gradients = cx.grad(loss, &wrt.iter().map(|w| w.1).collect::<Vec<_>>())?;
    cx.output("loss", loss);
    for ((name, _), gradient) in wrt.iter().zip(&gradients) {
        cx.output(&format!("gradient::{name}"), *gradient);
    }
    let results = evaluate(cx.finish()?, engine, taps)?;
    Ok(results.into_iter().map(|(n, t)| (n.trim_start_matches("gradient::").to_owned(), t)).collect())
}
