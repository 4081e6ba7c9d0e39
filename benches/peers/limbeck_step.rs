//! Limbeck's side of `benches/peers/run.py`.
//!
//! `peer_step write NET BATCH FOLDER` writes what all sides start from: `FOLDER/NET.safetensors` with the first weights and
//! the batch (`x`, `y`, `teacher_logits`), and `FOLDER/NET.onnx`, the net at this batch.
//! `peer_step time NET BATCH ENGINE THREADS STEPS` times the train step on an engine.
//! `peer_step lower NET BATCH ENGINE FILE` writes the step that an engine is given.
//! `peer_step sparse NET BATCH ENGINE THREADS STEPS` times a step that trains the last block and the classifier alone, beside
//! the net's inference of as many samples, run by run in turn.
//! Each prints a line of JSON.

#[path = "../common/mod.rs"]
mod common;
mod flops;

use anyhow::{Result, bail};
use limbeck::distill::Trainer;
use limbeck::runtime::{CompileOptions, engine};
use limbeck::tensor::io::write_safetensors;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// Learning rate: low, so that the loss after an update tells whether two sides compute the same step. At ten times this one
/// torch itself disagrees with torch on MobileNetV2, by its memory format.
const RATE: f64 = 0.001;

/// Steps before the clock starts.
const WARM_UP: usize = 5;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let printed = match args[..] {
        ["write", net, batch, folder] => write(&common::case(net, batch.parse()?)?, Path::new(folder))?,
        ["time", net, batch, engine, threads, steps] => {
            time(&common::case(net, batch.parse()?)?, engine, threads.parse()?, steps.parse()?)?
        }
        ["lower", net, batch, name, file] => {
            let step = common::lowered(&common::train_step(&common::case(net, batch.parse()?)?)?, engine(name)?)?;
            step.graph.write(file)?;
            json!({ "nodes": step.graph.nodes().count() })
        }
        ["sparse", net, batch, engine, threads, steps] => {
            sparse(&common::case(net, batch.parse()?)?, engine, threads.parse()?, steps.parse()?)?
        }
        _ => bail!("see the head of this example's file"),
    };
    println!("{printed}");
    Ok(())
}

fn write(case: &common::Case, folder: &Path) -> Result<Value> {
    let graph = common::bound(&case.net, case.batch)?;
    graph.write(folder.join(format!("{}.onnx", case.name)))?;
    let mut tensors = case.net.weights();
    tensors.extend(common::batch(case)?);
    write_safetensors(&folder.join(format!("{}.safetensors", case.name)), &tensors)?;
    Ok(json!({ "parameters": case.net.parameter_count(), "flops": flops::of_step(&graph)? }))
}

fn time(case: &common::Case, engine_name: &str, threads: usize, steps: usize) -> Result<Value> {
    let engine = engine(engine_name)?;
    let options = CompileOptions { threads, ..CompileOptions::default() };
    let start = Instant::now();
    let step = common::lowered(&common::train_step(case)?, engine)?;
    let mut trainer = Trainer::new(engine, &step, &options, 0)?;
    drop(step);
    let ready = start.elapsed().as_secs_f64() * 1e3;
    let ready_mb = peak_mb();
    let batch = common::batch(case)?;
    let mut losses = vec![];
    let mut times = vec![];
    for _ in 0..WARM_UP + steps {
        let start = Instant::now();
        losses.push(trainer.run(&batch, &[("lr", RATE)])?["loss"]);
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let timed = &mut times[WARM_UP..];
    timed.sort_by(f64::total_cmp);
    Ok(json!({
        "ms": timed[timed.len() / 2], "peak_mb": peak_mb(), "losses": losses,
        "planned_mb": trainer.memory().map(|m| m.peak as f64 / 1048576.0),
        "parameters": case.net.parameter_count(), "ready_ms": ready, "ready_peak_mb": ready_mb,
    }))
}

fn sparse(case: &common::Case, engine_name: &str, threads: usize, steps: usize) -> Result<Value> {
    let engine = engine(engine_name)?;
    let options = CompileOptions { threads, ..CompileOptions::default() };
    let step = common::lowered(&common::sparse_step(case)?, engine)?;
    let mut trainer = Trainer::new(engine, &step, &options, 0)?;
    let inference = common::inference(&case.net, engine, case.batch, threads)?;
    let batch = common::batch(case)?;
    let (mut stepping, mut inferring) = (vec![], vec![]);
    for _ in 0..WARM_UP + steps {
        let start = Instant::now();
        inference.infer(&[("x", &batch["x"])])?;
        inferring.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        trainer.run(&batch, &[("lr", RATE)])?;
        stepping.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let median = |times: &mut Vec<f64>| {
        times.drain(..WARM_UP);
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (stepping, inferring) = (median(&mut stepping), median(&mut inferring));
    Ok(json!({
        "step_ms": stepping, "inference_ms": inferring, "ratio": stepping / inferring,
        "planned": trainer.memory().map(|m| m.peak), "peak_mb": peak_mb(),
    }))
}

/// Peak resident memory of this process in MB.
fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}
