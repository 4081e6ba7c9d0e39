//! Build and test tasks of the workspace: `cargo xtask test`, `catalogue`, `ort`, `arm`, `fuzz`, `ci`.
#![forbid(unsafe_code)]

mod arm;
mod ci;
mod fuzz;
mod models;
mod node_tests;
mod ort;
mod process;
mod python;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// Build and test tasks of the workspace.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Test the workspace on both engines; where pip exists it fetches ONNX Runtime and generates ONNX's node tests.
    Test {
        /// Test at length: the whole demo on every engine, models of other people, many more random cases.
        #[arg(long)]
        full: bool,
        /// Fetch nothing: tract alone is tested, and without ONNX's node tests.
        #[arg(long)]
        offline: bool,
    },
    /// Write `docs/operators.md` anew: what is known of each operator, and which of ONNX's node tests pass.
    Catalogue,
    /// Fetch ONNX Runtime and print the shell line that makes it known.
    Ort,
    /// Cross-build the device binary for aarch64 and run it, emulated if need be.
    Arm {
        /// The package whose binary of the same name is built.
        #[arg(long, default_value = "limbeck-device")]
        package: String,
        /// A bundle of the demo to exercise the device binary on; without one, it is made first.
        #[arg(long, value_name = "DIR")]
        bundle: Option<PathBuf>,
    },
    /// Fuzz a reader of files, or all in turn: needs the nightly compiler and cargo-fuzz. See `fuzz/README.md`.
    Fuzz {
        /// `onnx`, `import`, `bundle` or `safetensors`; all in turn when none is named.
        target: Option<String>,
        /// How long each runs.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Folders with more files to start from: models, npy and safetensors, at any depth.
        #[arg(long, value_name = "DIR")]
        seeds: Vec<PathBuf>,
    },
    /// Everything that continuous integration checks, in its order.
    Ci {
        /// Leave out the device binary on ARM.
        #[arg(long)]
        no_arm: bool,
    },
}

fn main() -> Result<()> {
    let task = Cli::parse().task;
    match task {
        Task::Test { full, offline } => {
            enter_workspace()?;
            ci::test(full, offline)
        }
        Task::Catalogue => {
            enter_workspace()?;
            ci::catalogue()
        }
        Task::Ort => {
            enter_workspace()?;
            let library = ort::fetch(ort::host_wheel()?)?;
            println!("export ORT_DYLIB_PATH='{}'", library.display());
            Ok(())
        }
        Task::Arm { package, bundle } => {
            // The caller's path is relative to the caller's folder.
            let absolute = |path: PathBuf| path.canonicalize().with_context(|| format!("bundle {}", path.display()));
            let bundle = bundle.map(absolute).transpose()?;
            enter_workspace()?;
            arm::run(&arm::Toolchain::find_or_install()?, &package, bundle.as_deref())
        }
        Task::Fuzz { target, seconds, seeds } => {
            // The caller's paths are relative to the caller's folder.
            let absolute = |path: PathBuf| path.canonicalize().with_context(|| path.display().to_string());
            let seeds = seeds.into_iter().map(absolute).collect::<Result<Vec<_>>>()?;
            enter_workspace()?;
            fuzz::run(target.as_deref(), seconds, &seeds)
        }
        Task::Ci { no_arm } => {
            enter_workspace()?;
            ci::run(no_arm)
        }
    }
}

/// Goes to the folder of the workspace's manifest, the parent of this crate's; tasks work from there.
fn enter_workspace() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in a folder of the workspace")?;
    std::env::set_current_dir(root).with_context(|| root.display().to_string())
}
