//! Learned weights on disk: two slots, a pointer and a ledger, so that power loss at any byte leaves a working model.
//!
//! `slots/a` and `slots/b` each hold `weights.safetensors` and `slot.json`, its record. A commit writes the slot that is
//! not current, then its record, then replaces the file `current`, each atomically; before the last rename the old
//! weights count, after it the new ones. A line of `ledger.jsonl` follows; if power is lost before, the next commit
//! writes it from the record.

use super::manifest::{io, sha256};
use crate::RuntimeError;
use limbeck_tensor::{TensorMap, io::read_safetensors, io::write_safetensors, map_file, replace_file};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

pub(super) const FOLDER: &str = "slots";
pub(super) const CURRENT: &str = "current";
pub(super) const LEDGER: &str = "ledger.jsonl";
const NAMES: [&str; 2] = ["a", "b"];

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
    /// Metrics of the weights that were replaced.
    pub before: BTreeMap<String, f64>,
    /// Metrics of these weights.
    pub after: BTreeMap<String, f64>,
}

/// The record of a slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// SHA-256 of the shipped state that the weights grew from.
    base: String,
    bytes: u64,
    entry: LedgerEntry,
}

/// A slot whose weights are whole.
pub(super) struct Slot {
    pub(super) name: &'static str,
    pub(super) entry: LedgerEntry,
    path: PathBuf,
}

impl Slot {
    pub(super) fn weights(&self) -> Result<TensorMap, RuntimeError> {
        Ok(read_safetensors(&self.path)?)
    }
}

fn paths(root: &Path, name: &str) -> (PathBuf, PathBuf) {
    let folder = root.join(FOLDER).join(name);
    (folder.join("weights.safetensors"), folder.join("slot.json"))
}

/// The slot to use, if any; what had to be passed over on the way is said in `problems`.
pub(super) fn choose(root: &Path, base: &str, problems: &mut Vec<String>) -> Option<Slot> {
    let mut whole: Vec<Slot> = vec![];
    for name in NAMES {
        match open(root, name, base) {
            Ok(Some(slot)) => whole.push(slot),
            Ok(None) => {}
            Err(reason) => problems.push(format!("slot {name} is not used: {reason}")),
        }
    }
    let pointer = root.join(CURRENT);
    let wanted = match std::fs::read_to_string(&pointer) {
        Ok(text) => match NAMES.into_iter().find(|name| *name == text.trim()) {
            Some(name) => Some(name),
            None => {
                problems.push(format!("{} names no slot; the newest whole one is used", pointer.display()));
                None
            }
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            // A second commit cannot begin before the first made the pointer.
            if !whole.iter().any(|slot| slot.entry.sequence > 1) {
                whole.iter().for_each(|s| problems.push(format!("slot {} was never made current; not used", s.name)));
                return None;
            }
            problems.push(format!("{} is missing; the newest whole slot is used", pointer.display()));
            None
        }
        Err(e) => {
            problems.push(format!("{}: {e}; the newest whole slot is used", pointer.display()));
            None
        }
    };
    if let Some(name) = wanted {
        if let Some(at) = whole.iter().position(|slot| slot.name == name) {
            return Some(whole.swap_remove(at));
        }
        let instead = if whole.is_empty() { "the shipped weights are" } else { "the other slot is" };
        problems.push(format!("the current slot {name} is not whole; {instead} used"));
    }
    whole.into_iter().max_by_key(|slot| slot.entry.sequence)
}

/// A slot whose weights match its record; `None` if nothing was ever written there.
fn open(root: &Path, name: &'static str, base: &str) -> Result<Option<Slot>, String> {
    let (weights, record) = paths(root, name);
    if !record.exists() {
        return Ok(None);
    }
    let text = std::fs::read(&record).map_err(|e| format!("{}: {e}", record.display()))?;
    let found: Record = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", record.display()))?;
    if found.base != base {
        return Err(format!("{}: the weights grew from another shipped state", record.display()));
    }
    let size = std::fs::metadata(&weights).map_err(|e| format!("{}: {e}", weights.display()))?.len();
    if size != found.bytes || size == 0 {
        return Err(format!("{}: has {size} bytes, its record says {}", weights.display(), found.bytes));
    }
    let content = map_file(&weights).map_err(|e| e.to_string())?;
    if sha256(&content) != found.entry.weights {
        return Err(format!("{}: the SHA-256 is not that of its record", weights.display()));
    }
    Ok(Some(Slot { name, entry: found.entry, path: weights }))
}

/// Writes weights into the slot that is not in use and makes it current. Returns the entry with sequence and checksum.
pub(super) fn commit(
    root: &Path,
    base: &str,
    weights: &TensorMap,
    entry: &LedgerEntry,
) -> Result<LedgerEntry, RuntimeError> {
    let folder = root.join(FOLDER);
    for name in NAMES {
        std::fs::create_dir_all(folder.join(name)).map_err(io(&folder))?;
    }
    let lock_path = folder.join("lock");
    let lock = OpenOptions::new().create(true).write(true).truncate(false).open(&lock_path).map_err(io(&lock_path))?;
    lock.lock().map_err(io(&lock_path))?; // until it is dropped

    let now = choose(root, base, &mut vec![]);
    let ledger = root.join(LEDGER);
    let lines = mend(&ledger)?;
    if let Some(slot) = &now
        && !lines.iter().any(|line| line.sequence == slot.entry.sequence)
    {
        append(&ledger, &slot.entry)?;
    }
    let last = now.as_ref().map(|slot| slot.entry.sequence).into_iter().chain(lines.iter().map(|l| l.sequence)).max();
    let name = if now.is_some_and(|slot| slot.name == NAMES[0]) { NAMES[1] } else { NAMES[0] };
    let (file, record) = paths(root, name);
    write_safetensors(&file, weights)?;
    let content = map_file(&file)?;
    let entry = LedgerEntry { sequence: last.unwrap_or(0) + 1, weights: sha256(&content), ..entry.clone() };
    let whole = Record { base: base.into(), bytes: content.len() as u64, entry: entry.clone() };
    replace_file(&record, json(&record, &whole)?.as_bytes())?;
    replace_file(&root.join(CURRENT), name.as_bytes())?;
    append(&ledger, &entry)?;
    Ok(entry)
}

/// The whole lines of the ledger.
pub(super) fn ledger(root: &Path) -> Result<Vec<LedgerEntry>, RuntimeError> {
    let path = root.join(LEDGER);
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&path, &text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(vec![]),
        Err(e) => Err(io(&path)(e)),
    }
}

fn parse(path: &Path, text: &str) -> Result<Vec<LedgerEntry>, RuntimeError> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let wrong =
        |line, e| RuntimeError::Manifest { file: path.display().to_string(), reason: format!("line {line}: {e}") };
    whole.lines().enumerate().map(|(i, line)| serde_json::from_str(line).map_err(|e| wrong(i + 1, e))).collect()
}

/// The lines of the ledger that can be read, after a line torn by power loss was cut off.
fn mend(path: &Path) -> Result<Vec<LedgerEntry>, RuntimeError> {
    let mut file: File = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(io(path)(e)),
    };
    let mut bytes = vec![];
    file.read_to_end(&mut bytes).map_err(io(path))?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
    if whole < bytes.len() {
        file.set_len(whole as u64).and_then(|()| file.sync_all()).map_err(io(path))?;
    }
    Ok(bytes[..whole].split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

fn append(path: &Path, entry: &LedgerEntry) -> Result<(), RuntimeError> {
    let line = json(path, entry)? + "\n";
    let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(io(path))?;
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(io(path))
}

fn json(path: &Path, value: &impl Serialize) -> Result<String, RuntimeError> {
    let wrong =
        |e: serde_json::Error| RuntimeError::Manifest { file: path.display().to_string(), reason: e.to_string() };
    serde_json::to_string(value).map_err(wrong)
}
