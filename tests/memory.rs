//! What a train step takes in memory is what was planned, and does not grow: the allocator counts.
#![allow(missing_docs)]

#[path = "../benches/common/mod.rs"]
mod common;

use anyhow::{Result, ensure};
use common::{Case, batch, cases, lowered, train_step};
use limbeck::distill::Trainer;
use limbeck::runtime::{CompileOptions, Memory, engine};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Bytes that small steps may take more: what the matrix product packs, and the bookkeeping of a run.
const PACKED: f64 = 128.0 * 1024.0;

/// Bytes at the peak of each of five runs and after it, beyond those before the first, and what was planned.
fn measured(case: &Case) -> Result<([(usize, usize); 5], Memory)> {
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
    let planned = trainer.memory().ok_or_else(|| anyhow::anyhow!("{}: nothing is planned", case.name))?;
    Ok((runs, planned))
}

/// One test: the allocator counts for the whole process.
#[test]
fn tract_takes_what_is_planned() -> Result<()> {
    for case in cases()? {
        // A first round leaves behind what kernels keep for each thread.
        measured(&case)?;
        let (runs, planned) = measured(&case)?;
        // State and constants are there before a run.
        let expected = (planned.peak - planned.given) as f64;
        let [.., (third, _), (fourth, idle), (fifth, still)] = runs;
        println!("{}: planned {expected}, measured {runs:?}, {} allocations", case.name, planned.allocations);
        let off = (fifth as f64 - expected).abs();
        ensure!(off <= (0.05 * expected).max(PACKED), "{}: planned {expected}, measured {runs:?}", case.name);
        ensure!(third == fourth && fourth == fifth && idle == still, "{}: runs grow: {runs:?}", case.name);
    }
    Ok(())
}
