//! `limbeck distill`: trains a student as a recipe says.

use super::output;
use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use limbeck_distill::data::{Arrays, Dataset};
use limbeck_distill::recipe::{Loaded, Recipe};
use limbeck_distill::{Hooks, Report, Trainer, accuracy, predict};
use limbeck_graph::Form;
use limbeck_runtime::{CompileOptions, Engine, Model, engine};
use limbeck_tensor::io;
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recipe (TOML).
    recipe: PathBuf,
    /// Folder for the student, its log and the checkpoint.
    #[arg(long)]
    out: PathBuf,
    /// tract or ort.
    #[arg(long, default_value = "tract")]
    engine: String,
    /// Threads; 0 for all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Continue from the checkpoint in the output folder.
    #[arg(long)]
    resume: bool,
}

pub(super) fn run(args: &Args, json: bool) -> Result<bool> {
    let loaded = Recipe::load(&args.recipe)?;
    let engine = engine(&args.engine)?;
    let form = if args.engine == "tract" { Form::Fused } else { Form::Portable };
    let options = CompileOptions { threads: args.threads, ..CompileOptions::default() };
    let mut trainer = Trainer::new(engine, &loaded.step(form)?, &options, loaded.recipe.seed)?;
    std::fs::create_dir_all(&args.out)?;
    let checkpoint = args.out.join("checkpoint.safetensors");
    if args.resume {
        trainer.resume(&checkpoint)?;
    } else if checkpoint.exists() {
        bail!("{} exists; pass --resume to continue from it, or choose another --out", checkpoint.display());
    }
    let fit = loaded.fit();
    let bar = ProgressBar::new(fit.epochs)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} epochs, {msg}, {eta} left")?);
    bar.set_position(trainer.epoch());
    let mut after = |t: &Trainer, report: &Report| -> Result<(), limbeck_distill::DistillError> {
        bar.set_position(t.epoch());
        bar.set_message(format!("loss {:.4}", report.get("loss").copied().unwrap_or(f64::NAN)));
        t.save(&checkpoint)
    };
    let mut validate = |t: &Trainer| -> Result<f64, limbeck_distill::DistillError> {
        match &loaded.validation {
            Some(data) => score(&loaded, t, engine, data),
            None => Ok(0.0),
        }
    };
    let hooks = Hooks {
        augment: None,
        validate: if loaded.validation.is_some() { Some(&mut validate) } else { None },
        after_epoch: Some(&mut after),
    };
    let history = trainer.fit(&loaded.train, loaded.recipe.train.batch, &fit, hooks)?;
    bar.finish_and_clear();
    let student = loaded.student.with_weights(&trainer.weights("student")?)?;
    student.write(args.out.join("student.onnx"))?;
    io::write_safetensors(&args.out.join("student.safetensors"), &trainer.weights("student")?)?;
    output::print(
        &json!({
            "recipe": loaded.recipe.name, "engine": args.engine, "samples": loaded.train.len(),
            "epochs": trainer.epoch(), "steps": trainer.step(),
            "loss": history.epochs.last().and_then(|e| e.get("loss")),
            "validation_accuracy": history.validation.last(),
            "stopped_early": history.stopped_early, "skipped_steps": history.skipped,
            "student": args.out.join("student.onnx").display().to_string(),
        }),
        json,
    );
    Ok(true)
}

/// Accuracy of the first student output on the field that the first loss with labels names.
fn score(
    loaded: &Loaded,
    trainer: &Trainer,
    engine: &dyn Engine,
    data: &Arrays,
) -> Result<f64, limbeck_distill::DistillError> {
    let field = |source: &String| source.strip_prefix("data:").map(str::to_owned);
    let labels = loaded.recipe.loss.iter().find_map(|l| l.taps.get("labels").and_then(field));
    let input = loaded.recipe.student.inputs.iter().next().and_then(|(n, s)| Some((n.clone(), field(s)?)));
    let (Some(labels), Some((input, x))) = (labels, input) else { return Ok(0.0) };
    let mut graph = loaded.student.with_weights(&trainer.weights("student")?)?;
    let batch = loaded.recipe.train.batch;
    let named: Vec<String> = graph
        .inputs
        .iter()
        .filter_map(|&i| match graph.ty(i)?.dims.as_ref()?.first()? {
            limbeck_graph::Dim::Named(n) => Some(n.to_string()),
            _ => None,
        })
        .collect();
    let dims: Vec<(&str, usize)> = named.iter().map(|n| (n.as_str(), batch)).collect();
    graph.bind_dims(&dims)?;
    let output = graph.outputs.first().map(|&o| graph.name_of(o).to_owned()).unwrap_or_default();
    let program = engine.compile(&Model::new(graph.to_bytes()?), &CompileOptions::default())?;
    let outputs = predict(&*program, &input, data.get(&x)?, batch)?;
    match outputs.get(&output) {
        Some(logits) => accuracy(logits, data.get(&labels)?),
        None => Ok(0.0),
    }
}
