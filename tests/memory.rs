//! What a train step takes in memory is what was planned, and does not grow: allocators count.
#![allow(missing_docs)]

#[path = "../benches/common/mod.rs"]
mod common;

use anyhow::{Context, Result, ensure};
use common::{Case, batch, cases, lowered, train_step};
use limbeck::distill::Trainer;
use limbeck::runtime::{CompileOptions, Counted, Memory, engine};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Bytes that small steps may take more on tract: what the matrix product packs, and the bookkeeping of a run.
const PACKED: f64 = 128.0 * 1024.0;

/// A step's bytes.
struct Measured {
    /// At the peak of each of five runs and after it, beyond those before the first.
    runs: [(usize, usize); 5],
    /// What the engine planned.
    planned: Memory,
    /// What was planned of the step before there was an engine.
    before: u64,
}

fn measured(case: &Case) -> Result<Measured> {
    let engine = engine("tract")?;
    let step = lowered(&train_step(case)?, engine)?;
    let rows = batch(case)?;
    let mut trainer = Trainer::new(engine, &step, &CompileOptions { threads: 1, ..CompileOptions::default() }, 0)?;
    let before = ALLOCATOR.current_usage();
    let mut runs = [(0, 0); 5];
    for run in &mut runs {
        ALLOCATOR.reset_peak_usage();
        trainer.run(&rows, &[("lr", 0.01)])?;
        *run = (ALLOCATOR.peak_usage() - before, ALLOCATOR.current_usage() - before);
    }
    let planned = trainer.memory().with_context(|| format!("{}: nothing is planned", case.name))?;
    Ok(Measured { runs, planned, before: step.memory_plan()?.peak_bytes })
}

/// One test: the allocator of the first part counts for the whole process.
#[test]
fn engines_take_what_is_planned() -> Result<()> {
    tract_takes_what_is_planned()?;
    match engine("ort") {
        Ok(_) => onnx_runtime_takes_what_is_planned(),
        // `tests/engines.rs` says so.
        Err(_) => Ok(()),
    }
}

fn tract_takes_what_is_planned() -> Result<()> {
    for case in cases()? {
        // A first round leaves behind what kernels keep for each thread.
        measured(&case)?;
        let Measured { runs, planned, before } = measured(&case)?;
        // State and constants are there before a run.
        let expected = (planned.peak - planned.given) as f64;
        let [.., (third, _), (fourth, idle), (fifth, still)] = runs;
        println!("{}: planned {expected}, measured {runs:?}, {} allocations", case.name, planned.allocations);
        let off = (fifth as f64 - expected).abs();
        ensure!(off <= (0.05 * expected).max(PACKED), "{}: planned {expected}, measured {runs:?}", case.name);
        let apart = before.abs_diff(planned.peak) as f64;
        ensure!(apart <= 0.05 * planned.peak as f64, "{}: the engine plans {planned:?}, the step {before}", case.name);
        ensure!(third == fourth && fourth == fifth && idle == still, "{}: runs grow: {runs:?}", case.name);
    }
    Ok(())
}

/// In the fused form, which the library's optimiser leaves as it is. An allocator that counts is put under the library; what
/// Limbeck's kernels pack is not in it.
fn onnx_runtime_takes_what_is_planned() -> Result<()> {
    let engine = engine("ort")?;
    let options = CompileOptions { threads: 1, count: true, ..CompileOptions::default() };
    for case in cases()? {
        let step = lowered(&train_step(&case)?, engine)?;
        let planned = step.onnx_runtime_plan()?;
        // Inputs, state and constants are there before a run.
        let expected = planned.peak_bytes - planned.given_bytes;
        let rows = batch(&case)?;
        let mut trainer = Trainer::new(engine, &step, &options, 0)?;
        let mut runs = [Counted { peak: 0, allocations: 0 }; 3];
        for run in &mut runs {
            trainer.run(&rows, &[("lr", 0.01)])?;
            *run = trainer.counted().with_context(|| format!("{}: nothing is counted", case.name))?;
        }
        let what = format!("{}: planned {expected} in {}, counted {runs:?}", case.name, planned.allocations);
        println!("ort, {what}");
        let off = (runs[2].peak as f64 - expected as f64).abs();
        ensure!(off <= 0.05 * expected as f64, "{what}");
        ensure!(runs[1] == runs[2], "{what}: runs differ");
    }
    Ok(())
}
