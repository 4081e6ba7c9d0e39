//! Fuzzing: corpora from files that exist, and runs with the limits that every reader must keep.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::run as run_command;

/// The ending of files to start from, and what an input has before such a file's content.
type Kind = (&'static str, &'static [u8]);

/// Each target with the kinds of files it starts from.
const TARGETS: &[(&str, &[Kind])] = &[
    ("onnx", &[("onnx", &[])]),
    ("import", &[("onnx", &[0x0d]), ("onnx", &[0x1e])]),
    // Its inputs are packed bundles: `fuzz/regressions/bundle` has the first one.
    ("bundle", &[]),
    ("safetensors", &[("safetensors", &[0]), ("npy", &[1])]),
];

/// Bytes of the largest file that is a seed: large ones only slow the fuzzer down.
const LARGEST: u64 = 1 << 20;

/// Runs one target, or all in turn, for so many seconds each.
pub(crate) fn run(target: Option<&str>, seconds: u64, seeds: &[PathBuf]) -> Result<()> {
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    ensure!(target.is_none_or(|t| names.contains(&t)), "there is no such target; there are {}", names.join(", "));
    for (name, kinds) in TARGETS.iter().filter(|(name, _)| target.is_none_or(|t| t == *name)) {
        let corpus = Path::new("fuzz/corpus").join(name);
        std::fs::create_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
        let folders = seeds.iter().map(PathBuf::as_path).chain([Path::new("graph/tests"), Path::new("runtime/tests")]);
        let mut files = vec![];
        folders.into_iter().try_for_each(|folder| collect(folder, &mut files))?;
        for (ending, start) in *kinds {
            for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == *ending)) {
                let content = std::fs::read(file).with_context(|| file.display().to_string())?;
                let name = file.to_string_lossy().replace(['/', '\\'], "_");
                std::fs::write(corpus.join(format!("{}{name}", start.len())), [start, &content[..]].concat())?;
            }
        }
        let corpora = [corpus, Path::new("fuzz/regressions").join(name)];
        // Not the cargo that started this one, which is of another compiler.
        let mut fuzz = Command::new("rustup");
        fuzz.args(["run", "nightly", "cargo", "fuzz", "run", name]).args(corpora);
        fuzz.args(["--", "-rss_limit_mb=2048", "-timeout=20", "-print_final_stats=1"]);
        run_command(fuzz.arg(format!("-max_total_time={seconds}")))?;
    }
    Ok(())
}

/// All files of a seed's size below a folder.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let kind = entry.metadata()?;
        if kind.is_dir() {
            collect(&entry.path(), files)?;
        } else if kind.is_file() && kind.len() <= LARGEST {
            files.push(entry.path());
        }
    }
    Ok(())
}
