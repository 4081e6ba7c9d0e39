//! `limbeck distill`: trains a student as a recipe says.

use super::output;
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use limbeck_distill::data::Dataset;
use limbeck_distill::recipe::Recipe;
use limbeck_distill::{DistillError, Hooks, Report, Trainer, lowering_for};
use limbeck_runtime::{CompileOptions, engine};
use limbeck_tensor::{io, replace_file};
use serde_json::{Value, json};
use std::cell::Cell;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recipe (TOML).
    recipe: PathBuf,
    /// Folder for the student (`student.onnx`, `student.safetensors`), `log.jsonl` and the checkpoint.
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
    let how = lowering_for(engine);
    let options = CompileOptions { threads: args.threads, ..CompileOptions::default() };
    let mut trainer = Trainer::new(engine, &loaded.step(how)?, &options, loaded.recipe.seed)?;
    let evaluator = loaded.evaluator(engine, how.form, &options)?;
    let checkpoint = args.out.join("checkpoint.safetensors");
    if args.resume {
        trainer.resume(&checkpoint)?;
    } else if checkpoint.exists() {
        bail!("{} exists; pass --resume to continue from it, or choose another --out", checkpoint.display());
    }
    std::fs::create_dir_all(&args.out).with_context(|| format!("creating {}", args.out.display()))?;
    let mut log = Log::open(args.out.join("log.jsonl"), trainer.epoch())?;

    let fit = loaded.recipe.fit();
    let bar = ProgressBar::new(fit.epochs)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} epochs, {msg}, {eta} left")?);
    bar.set_position(trainer.epoch());
    let last = Cell::new(None);
    let mut validate = |t: &Trainer| -> Result<f64, DistillError> {
        let Some(evaluator) = &evaluator else { return Ok(f64::NAN) };
        let score = evaluator.score(t.store())?;
        last.set(Some(score));
        Ok(score.value())
    };
    let mut after = |t: &Trainer, report: &Report| -> Result<(), DistillError> {
        bar.set_position(t.epoch());
        bar.set_message(format!("loss {:.4}", report.get("loss").copied().unwrap_or(f64::NAN)));
        let mut line = json!({"epoch": t.epoch(), "step": t.step(), "train": report});
        if let Some(score) = last.get() {
            line["validation"] = json!({"loss": score.loss, "accuracy": score.accuracy});
        }
        log.push(&line)?;
        t.save(&checkpoint)
    };
    let hooks = Hooks {
        augment: None,
        validate: if evaluator.is_some() { Some(&mut validate) } else { None },
        after_epoch: Some(&mut after),
    };
    let history = trainer.fit(&loaded.train, loaded.recipe.train.batch, &fit, hooks)?;
    bar.finish_and_clear();

    let weights = trainer.weights("student")?;
    let student = loaded.student.with_weights(&weights)?;
    student.write(args.out.join("student.onnx"))?;
    io::write_safetensors(&args.out.join("student.safetensors"), &weights)?;
    let score = evaluator.as_ref().map(|e| e.score(trainer.store())).transpose()?;
    output::print(
        &json!({
            "recipe": loaded.recipe.name, "engine": args.engine, "samples": loaded.train.len(),
            "trained_tensors": loaded.student.parameters().len(), "trained_numbers": loaded.student.parameter_count(),
            "epochs": trainer.epoch(), "steps": trainer.step(),
            "loss": history.epochs.last().and_then(|e| e.get("loss")),
            "validation": score.map(|s| json!({"loss": s.loss, "accuracy": s.accuracy})),
            "stopped_early": history.stopped_early, "skipped_steps": history.skipped,
            "student": args.out.join("student.onnx").display().to_string(),
        }),
        json,
    );
    Ok(true)
}

/// A line of JSON for each epoch; the file is replaced as a whole, so that it is never half-written.
struct Log {
    path: PathBuf,
    text: String,
}

impl Log {
    /// A new log, or what an earlier run logged up to the epoch that is resumed from.
    fn open(path: PathBuf, epoch: u64) -> Result<Log> {
        let earlier = if epoch > 0 && path.exists() { read(&path)? } else { String::new() };
        let up_to_now = |line: &&str| {
            let at = serde_json::from_str(line).ok().and_then(|v: Value| v["epoch"].as_u64());
            at.is_some_and(|at| at <= epoch)
        };
        let text = earlier.lines().filter(up_to_now).map(|line| format!("{line}\n")).collect();
        Ok(Log { path, text })
    }

    fn push(&mut self, line: &Value) -> Result<(), DistillError> {
        self.text.push_str(&format!("{line}\n"));
        Ok(replace_file(&self.path, self.text.as_bytes())?)
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}
