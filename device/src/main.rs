//! Runs a bundle on a device: self-test, inference, learning. No network, no Python, one engine.
//!
//! Results go to standard output as one JSON object; what is wrong goes to standard error. Exit codes: 0 done, 1 failed,
//! 2 wrong arguments, 3 a candidate was rolled back by the gate.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use limbeck_runtime::tensor::io::{read_npy, write_npy};
use limbeck_runtime::{
    Augment, Bundle, CompileOptions, Engine, GateOptions, Learner, LearnerOptions, TeacherKind, WeightsOrigin, engine,
    rows,
};
use serde_json::{Value, json};

/// Exit code of a learning run whose last candidate was rolled back.
const ROLLED_BACK: u8 = 3;

#[derive(Parser)]
#[command(name = "limbeck-device", version, about = "Runs a bundle on a device: self-test, inference, learning")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Threads; 0 takes all cores.
    #[arg(long, global = true, default_value_t = 1)]
    threads: usize,
}

#[derive(Subcommand)]
enum Command {
    /// What the bundle holds, and where its weights come from.
    Info {
        /// The bundle's folder.
        bundle: PathBuf,
    },
    /// Check that this machine reproduces the bundle's vectors.
    SelfTest {
        /// The bundle's folder.
        bundle: PathBuf,
        /// The bundle was just unpacked here: refuse files that its manifest does not list.
        #[arg(long)]
        received: bool,
    },
    /// Run the student on rows.
    Predict {
        /// The bundle's folder.
        bundle: PathBuf,
        /// Rows, as npy.
        #[arg(long)]
        inputs: PathBuf,
        /// Where the first output goes, as npy.
        #[arg(long)]
        out: PathBuf,
    },
    /// Learn from rows, with or without labels.
    Learn(Learn),
}

#[derive(Args)]
struct Learn {
    /// The bundle's folder.
    bundle: PathBuf,
    /// Rows, as npy.
    #[arg(long)]
    inputs: PathBuf,
    /// Integer labels, as npy; without them the teacher labels.
    #[arg(long)]
    labels: Option<PathBuf>,
    /// Train steps for each observation.
    #[arg(long, default_value_t = 4)]
    steps: u64,
    /// Rows of one observation.
    #[arg(long, default_value_t = 12)]
    rows: usize,
    /// Learning rate.
    #[arg(long, default_value_t = 3e-3)]
    lr: f64,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Let the shipped student label, not the average of the weights.
    #[arg(long)]
    frozen: bool,
    /// Warp new image rows at random by up to 8 degrees, half a pixel and 5 %.
    #[arg(long)]
    augment: bool,
    /// Largest drop on the held-out rows that a candidate may cause, 0 to 1.
    #[arg(long, default_value_t = 0.05)]
    max_drop: f64,
    /// Largest predicted memory of a train step, in bytes.
    #[arg(long)]
    max_bytes: Option<u64>,
    /// Write what was promoted into the bundle.
    #[arg(long)]
    commit: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        // A reader that has seen enough is no failure.
        Ok((report, code)) => match writeln!(std::io::stdout(), "{report:#}") {
            Err(e) if e.kind() != ErrorKind::BrokenPipe => {
                eprintln!("limbeck-device: standard output cannot be written: {e}");
                ExitCode::FAILURE
            }
            _ => ExitCode::from(code),
        },
        Err(error) => {
            eprintln!("limbeck-device: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(Value, u8)> {
    let engine = engine("tract")?;
    let options = CompileOptions { threads: arguments.threads, ..CompileOptions::default() };
    match &arguments.command {
        Command::Info { bundle } => Ok((info(&Bundle::open(bundle)?)?, 0)),
        Command::SelfTest { bundle, received } => {
            let bundle = if *received { Bundle::open_received(bundle)? } else { Bundle::open(bundle)? };
            let report = bundle.self_test(engine, &options)?;
            let outputs = report.outputs.iter().map(
                |o| json!({ "name": o.name, "rows": o.rows, "difference": o.difference, "tolerance": o.tolerance }),
            );
            Ok((json!({ "engine": report.engine, "outputs": outputs.collect::<Vec<_>>() }), 0))
        }
        Command::Predict { bundle, inputs, out } => {
            let session = opened(bundle)?.session(engine, &options)?;
            let (ins, outs) = (session.inputs(), session.outputs());
            let ([input], Some(output)) = (&ins[..], outs.first()) else {
                bail!("the model has {} inputs; `predict` feeds one", ins.len());
            };
            let x = read_npy(inputs)?;
            let results = session.predict(&[(&input.name, &x)])?;
            let result = results.get(&output.name).context("the model gave no output")?;
            write_npy(out, result)?;
            Ok((json!({ "rows": rows::count(&x)?, "output": output.name, "shape": result.shape() }), 0))
        }
        Command::Learn(learn) => learn.run(engine, options),
    }
}

/// Opens a bundle; damage that it can live with is said on standard error.
fn opened(path: &PathBuf) -> Result<Bundle> {
    let bundle = Bundle::open(path)?;
    bundle.report().problems.iter().for_each(|problem| eprintln!("limbeck-device: {problem}"));
    Ok(bundle)
}

fn info(bundle: &Bundle) -> Result<Value> {
    let m = bundle.manifest();
    let steps =
        m.steps.iter().map(|s| json!({ "name": s.name, "form": s.form.to_string(), "bytes": s.predicted_bytes }));
    let weights = match &bundle.report().origin {
        WeightsOrigin::Slot { slot, sequence } => json!({ "slot": slot, "sequence": sequence }),
        _ => json!("shipped"),
    };
    Ok(json!({
        "name": m.name,
        "licence": m.licence,
        "provenance": m.provenance,
        "preprocessing": m.preprocessing,
        "classes": m.classes,
        "bytes": m.files().map(|f| f.bytes).sum::<u64>(),
        "steps": steps.collect::<Vec<_>>(),
        "weights": weights,
        "commits": bundle.ledger()?.len(),
        "problems": bundle.report().problems,
    }))
}

impl Learn {
    fn run(&self, engine: &dyn Engine, compile: CompileOptions) -> Result<(Value, u8)> {
        ensure!(self.rows > 0, "--rows must be at least 1");
        let bundle = opened(&self.bundle)?;
        let gated = bundle.manifest().gate.is_some();
        if !gated {
            eprintln!("limbeck-device: the bundle has no held-out rows: candidates are promoted unseen");
        }
        let options = LearnerOptions {
            compile,
            steps: self.steps,
            lr: self.lr,
            seed: self.seed,
            max_bytes: self.max_bytes,
            teacher: if self.frozen { TeacherKind::Frozen } else { TeacherKind::Ema },
            augment: self.augment.then_some(Augment { degrees: 8.0, shift: 0.5, zoom: 0.05 }),
            gate: gated.then_some(GateOptions { max_drop: self.max_drop, max_total_drop: self.max_drop }),
            ..LearnerOptions::default()
        };
        let mut learner = Learner::new(bundle, engine, options)?;
        let x = read_npy(&self.inputs)?;
        let labels = self.labels.as_deref().map(read_npy).transpose()?;
        let total = rows::count(&x)?;
        if let Some(labels) = &labels {
            ensure!(rows::count(labels)? == total, "{} labels for {total} rows", rows::count(labels)?);
        }
        for start in (0..total).step_by(self.rows) {
            let range = start..(start + self.rows).min(total);
            let labels = labels.as_ref().map(|l| l.rows(range.clone())).transpose()?;
            learner.observe(&x.rows(range)?.aligned(), labels.map(|l| l.aligned()).as_ref())?;
            learner.learn()?;
        }
        let verdict = learner.gate()?;
        let entry = if self.commit && verdict.promoted { learner.commit()? } else { None };
        let report = json!({
            "step": learner.step_name(),
            "steps": learner.position(),
            "promoted": verdict.promoted,
            "held_out": { "rows": verdict.rows, "shipped": verdict.shipped, "before": verdict.before, "after": verdict.after },
            "commit": entry.map(|e| e.sequence),
        });
        Ok((report, if verdict.promoted { 0 } else { ROLLED_BACK }))
    }
}
