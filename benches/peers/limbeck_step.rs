//! One side of `benches/peers/run.py`: times Limbeck's train step on one engine and prints a line of JSON.
//!
//! Usage: `peer_step NET ENGINE THREADS STEPS`

#[path = "../common/mod.rs"]
mod common;

use anyhow::{Context, Result, bail};
use limbeck::distill::Trainer;
use limbeck::runtime::{CompileOptions, engine};
use std::time::Instant;

/// Steps before the clock starts.
const WARM_UP: usize = 5;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [net, engine_name, threads, steps] = &args[..] else { bail!("usage: peer_step NET ENGINE THREADS STEPS") };
    let case = common::cases()?.into_iter().find(|c| c.name == net).with_context(|| format!("no net '{net}'"))?;
    let engine = engine(engine_name)?;
    let options = CompileOptions { threads: threads.parse()?, ..CompileOptions::default() };
    let start = Instant::now();
    let step = common::lowered(&common::train_step(&case)?, engine)?;
    let mut trainer = Trainer::new(engine, &step, &options, 0)?;
    let ready = start.elapsed().as_secs_f64() * 1e3;
    let batch = common::batch(&case)?;
    let mut times = vec![];
    let mut loss = f64::NAN;
    for i in 0..WARM_UP + steps.parse::<usize>()? {
        let start = Instant::now();
        let report = trainer.run(&batch, &[("lr", 0.01)])?;
        if i >= WARM_UP {
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        loss = report["loss"];
    }
    times.sort_by(f64::total_cmp);
    println!(
        "{}",
        serde_json::json!({
            "ms": times[times.len() / 2], "peak_mb": peak_mb(), "loss": loss,
            "parameters": case.net.parameter_count(), "ready_ms": ready,
        })
    );
    Ok(())
}

/// Peak resident memory of this process in MB.
fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}
