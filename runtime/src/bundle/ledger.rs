//! `ledger.jsonl`: a line for every commit, oldest first.

use super::files::{io, is_file, read_plain};
use crate::RuntimeError;
use limbeck_tensor::sync_folder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

/// Name of the file in a bundle's folder.
pub(super) const LEDGER: &str = "ledger.jsonl";

/// Bytes of the largest ledger that is read.
const LARGEST: u64 = 64 << 20;

/// Why weights were replaced: a line of `ledger.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerEntry {
    /// Number of the commit, from 1; set by the commit.
    pub sequence: u64,
    /// SHA-256 of the weights file; set by the commit.
    pub weights: String,
    /// The train step and its form, such as `field (fused)`.
    pub step: String,
    /// Runs of the step since the learner began.
    pub runs: u64,
    /// SHA-256 of the rows and labels that were learned from, in the order they came.
    pub data: Vec<String>,
    /// Metrics of the weights that were replaced; finite, since JSON has no other numbers.
    pub before: BTreeMap<String, f64>,
    /// Metrics of these weights; finite.
    pub after: BTreeMap<String, f64>,
}

impl LedgerEntry {
    /// Every metric can be written and read again.
    pub(super) fn check(&self) -> Result<(), RuntimeError> {
        match self.before.iter().chain(&self.after).find(|(_, value)| !value.is_finite()) {
            Some((name, value)) => Err(RuntimeError::Data {
                what: format!("the metric `{name}`"),
                reason: format!("is {value}; leave it out, or give a finite number"),
            }),
            None => Ok(()),
        }
    }
}

/// The whole lines of the ledger.
pub(super) fn read(root: &Path) -> Result<Vec<LedgerEntry>, RuntimeError> {
    let path = root.join(LEDGER);
    let content = read_plain(&path, LARGEST)?.unwrap_or_default();
    let wrong =
        |line, e| RuntimeError::Manifest { file: path.display().to_string(), reason: format!("line {line}: {e}") };
    let lines = whole(&content).enumerate();
    lines.map(|(i, line)| serde_json::from_slice(line).map_err(|e| wrong(i + 1, e))).collect()
}

/// The lines of the ledger that can be read, after a line torn by power loss was cut off.
pub(super) fn mend(root: &Path) -> Result<Vec<LedgerEntry>, RuntimeError> {
    let path = root.join(LEDGER);
    let Some(content) = read_plain(&path, LARGEST)? else { return Ok(vec![]) };
    let end = content.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
    if end < content.len() {
        let file = OpenOptions::new().write(true).open(&path).map_err(io(&path))?;
        file.set_len(end as u64).and_then(|()| file.sync_all()).map_err(io(&path))?;
    }
    Ok(whole(&content).filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// Adds a line; when this returns, it survives power loss.
pub(super) fn append(root: &Path, entry: &LedgerEntry) -> Result<(), RuntimeError> {
    let path = root.join(LEDGER);
    let line = json(&path, entry)? + "\n";
    let new = !is_file(&path)?;
    let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(io(&path))?;
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(io(&path))?;
    if new {
        sync_folder(root)?;
    }
    Ok(())
}

/// A value as one line of JSON.
pub(super) fn json(path: &Path, value: &impl Serialize) -> Result<String, RuntimeError> {
    let wrong =
        |e: serde_json::Error| RuntimeError::Manifest { file: path.display().to_string(), reason: e.to_string() };
    serde_json::to_string(value).map_err(wrong)
}

/// Lines that end with a line break; bytes, since a line may be torn within a character.
fn whole(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    content.split_inclusive(|b| *b == b'\n').filter_map(|line| line.strip_suffix(b"\n"))
}
