//! The official node tests: a few inputs and outputs for every ONNX operator, which the `onnx` package generates.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

use crate::{process, python};

/// The release whose newest opset is the newest that Limbeck understands, 24.
const VERSION: &str = "1.19.1";

/// The folder of the cases, one folder each; generated now unless that was done before. `None` where no pip exists.
pub(crate) fn folder() -> Result<Option<PathBuf>> {
    let folder = env::current_dir()?.join("target/onnx-node-tests").join(VERSION);
    let cases = folder.join("node");
    if cases.is_dir() {
        return Ok(Some(cases));
    }
    let Some(python) = python::with_pip() else { return Ok(None) };
    let scratch = folder.with_extension(format!("generating-{}", std::process::id()));
    fs::create_dir_all(&scratch)?;
    let generated = generate(&python, &scratch);
    let placed = generated.and_then(|generated| {
        fs::create_dir_all(&folder)?;
        Ok(fs::rename(generated, &cases)?)
    });
    fs::remove_dir_all(&scratch)?;
    placed.context("the node tests of ONNX could not be generated; `cargo xtask test --offline` tests without them")?;
    Ok(Some(cases))
}

/// The folder of cases inside `scratch`.
fn generate(python: &Path, scratch: &Path) -> Result<PathBuf> {
    let packages = scratch.join("packages");
    let mut install = python::pip(python, "install");
    install.arg("--only-binary=:all:").arg("--target").arg(&packages).arg(format!("onnx=={VERSION}"));
    process::run(&mut install)?;
    let cases = scratch.join("cases");
    // The generator lists this folder before it makes it.
    fs::create_dir_all(cases.join("node"))?;
    let mut command = Command::new(python);
    command.args(["-W", "ignore", "-m", "onnx.backend.test.cmd_tools", "generate-data", "-o"]).arg(&cases);
    process::run(command.env("PYTHONPATH", &packages))?;
    let node = cases.join("node");
    ensure!(fs::read_dir(&node)?.count() > 1000, "the generator left almost nothing in {}", node.display());
    Ok(node)
}
