//! Learned weights on disk: two slots, a pointer and a ledger, so that power loss at any byte leaves a working model.
//!
//! `slots/a` and `slots/b` each hold `weights.safetensors` and `slot.json`, its record. A commit writes the slot that is
//! not current, then its record, reads both again, then replaces the file `current`, each atomically; before the last
//! rename the old weights count, after it the new ones. A line of `ledger.jsonl` follows; if power is lost before, the
//! next commit writes it from the record.

use super::files::{io, is_file, is_folder, read_plain};
use super::ledger::{self, LEDGER, LedgerEntry, json};
use super::manifest::sha256;
use crate::RuntimeError;
use limbeck_tensor::{TensorMap, create_folder, io::read_safetensors, io::write_safetensors, map_file, replace_file};
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

pub(super) const FOLDER: &str = "slots";
pub(super) const CURRENT: &str = "current";
const NAMES: [&str; 2] = ["a", "b"];

/// Bytes of the largest record that is read.
const LARGEST_RECORD: u64 = 4 << 20;

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

fn lock_path(root: &Path) -> PathBuf {
    root.join(FOLDER).join("lock")
}

/// Refuses links, and anything else but plain files and folders, wherever commits read and write: an archive could
/// otherwise make them write outside of the bundle.
pub(super) fn check_plain(root: &Path) -> Result<(), RuntimeError> {
    is_folder(&root.join(FOLDER))?;
    for name in NAMES {
        is_folder(&root.join(FOLDER).join(name))?;
        let (weights, record) = paths(root, name);
        is_file(&weights)?;
        is_file(&record)?;
    }
    [lock_path(root), root.join(CURRENT), root.join(LEDGER)].iter().try_for_each(|path| is_file(path).map(drop))
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
    let wanted = match pointed(root) {
        Ok(Some(Ok(name))) => Some(name),
        Ok(Some(Err(()))) => {
            problems.push(format!("{} names no slot; the newest whole one is used", pointer.display()));
            None
        }
        Ok(None) => {
            // A second commit cannot begin before the first made the pointer.
            if !whole.iter().any(|slot| slot.entry.sequence > 1) {
                whole.iter().for_each(|s| problems.push(format!("slot {} was never made current; not used", s.name)));
                return None;
            }
            problems.push(format!("{} is missing; the newest whole slot is used", pointer.display()));
            None
        }
        Err(e) => {
            problems.push(format!("{e}; the newest whole slot is used"));
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

/// The slot that the pointer names; `Err` inside when it names none, `None` when there is no pointer.
fn pointed(root: &Path) -> Result<Option<Result<&'static str, ()>>, RuntimeError> {
    let text = read_plain(&root.join(CURRENT), 16)?;
    Ok(text.map(|text| NAMES.into_iter().find(|name| name.as_bytes() == text.trim_ascii()).ok_or(())))
}

/// A slot whose weights match its record; `None` if nothing was ever written there.
fn open(root: &Path, name: &'static str, base: &str) -> Result<Option<Slot>, String> {
    let (weights, record) = paths(root, name);
    let text = read_plain(&record, LARGEST_RECORD).map_err(|e| e.to_string())?;
    let Some(text) = text else { return Ok(None) };
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

/// Is called ahead of every change on disk with what is to change; an error ends the commit there, as power loss would.
pub(super) type Before<'a> = &'a mut dyn FnMut(&str) -> Result<(), RuntimeError>;

/// Writes weights into the slot that is not in use and makes it current. Returns the entry with sequence and checksum.
/// An error means that the old weights count.
pub(super) fn commit(
    root: &Path,
    base: &str,
    weights: &TensorMap,
    entry: &LedgerEntry,
    before: Before<'_>,
) -> Result<LedgerEntry, RuntimeError> {
    entry.check()?;
    check_plain(root)?;
    for name in NAMES {
        before("folder")?;
        create_folder(&root.join(FOLDER).join(name))?;
    }
    let lock_path = lock_path(root);
    let lock = OpenOptions::new().create(true).write(true).truncate(false).open(&lock_path).map_err(io(&lock_path))?;
    lock.lock().map_err(io(&lock_path))?; // until it is dropped

    let now = choose(root, base, &mut vec![]);
    before("torn line")?;
    let lines = ledger::mend(root)?;
    if let Some(slot) = &now
        && !lines.iter().any(|line| line.sequence == slot.entry.sequence)
    {
        before("missing line")?;
        ledger::append(root, &slot.entry)?;
    }
    let last = now.as_ref().map(|slot| slot.entry.sequence).into_iter().chain(lines.iter().map(|l| l.sequence)).max();
    let Some(sequence) = last.unwrap_or(0).checked_add(1) else {
        let reason = "gives the last commit the largest number there is".into();
        return Err(RuntimeError::Tampered { file: root.join(LEDGER), reason });
    };
    let name = if now.is_some_and(|slot| slot.name == NAMES[0]) { NAMES[1] } else { NAMES[0] };
    let (file, record) = paths(root, name);
    before("weights")?;
    write_safetensors(&file, weights)?;
    let content = map_file(&file)?;
    let entry = LedgerEntry { sequence, weights: sha256(&content), ..entry.clone() };
    let whole = Record { base: base.into(), bytes: content.len() as u64, entry: entry.clone() };
    before("record")?;
    replace_file(&record, json(&record, &whole)?.as_bytes())?;
    let unusable = |reason: String| RuntimeError::Tampered { file: record.clone(), reason };
    match open(root, name, base).map_err(unusable)? {
        Some(slot) if slot.entry.sequence == sequence && slot.weights()? == *weights => {}
        _ => return Err(unusable("is not what was just written".into())),
    }
    before("pointer")?;
    if let Err(e) = replace_file(&root.join(CURRENT), name.as_bytes()) {
        if !matches!(pointed(root), Ok(Some(Ok(now))) if now == name) {
            return Err(e.into());
        }
        tracing::warn!(bundle = %root.display(), "slot {name} is current, but may not survive power loss: {e}");
    }
    if let Err(e) = before("line").and_then(|()| ledger::append(root, &entry)) {
        tracing::warn!(bundle = %root.display(), "commit {sequence} counts, but its ledger line is left to the next: {e}");
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_tensor::Tensor;
    use std::collections::BTreeMap;

    fn all(value: f32) -> TensorMap {
        TensorMap::from([("w".into(), Tensor::new([3], vec![value; 3]).unwrap())])
    }

    fn entry() -> LedgerEntry {
        let after = BTreeMap::from([("accuracy".into(), 0.5)]);
        let (step, data) = ("adapt".into(), vec![]);
        LedgerEntry { sequence: 0, weights: String::new(), step, runs: 1, data, before: BTreeMap::new(), after }
    }

    /// Sequence and value of the weights to use.
    fn used(root: &Path) -> Option<(u64, f32)> {
        let slot = choose(root, "base", &mut vec![])?;
        Some((slot.entry.sequence, slot.weights().unwrap()["w"].to_vec::<f32>().unwrap()[0]))
    }

    #[test]
    fn power_loss_ahead_of_any_change_leaves_the_old_or_the_new_weights() {
        // First, second and third commit: without a pointer, with one slot, with two. The ledger's last line is missing
        // or torn as often as not.
        for commits in 0..3u64 {
            for torn in [false, true] {
                let mut reached = vec![];
                for n in 0.. {
                    let dir = tempfile::tempdir().unwrap();
                    let root = dir.path();
                    for i in 1..=commits {
                        commit(root, "base", &all(i as f32), &entry(), &mut |_| Ok(())).unwrap();
                    }
                    if torn && commits > 0 {
                        let text = std::fs::read(root.join(LEDGER)).unwrap();
                        std::fs::write(root.join(LEDGER), &text[..text.len() - 7]).unwrap();
                    }
                    let old = used(root);
                    let mut left = n;
                    let result = commit(root, "base", &all(9.0), &entry(), &mut |what| {
                        if left == 0 {
                            reached.push(what.to_owned());
                            return Err(RuntimeError::Data { what: what.into(), reason: "power loss".into() });
                        }
                        left -= 1;
                        Ok(())
                    });
                    // A temporary file may lie about as well.
                    let litter = root.join(FOLDER).join(".limbeck-torn");
                    let _ = std::fs::write(litter, b"torn");
                    let new = Some((commits + 1, 9.0));
                    assert_eq!(used(root), if result.is_ok() { new } else { old }, "{commits} commits, change {n}");
                    let next = commit(root, "base", &all(10.0), &entry(), &mut |_| Ok(())).unwrap();
                    let expected = commits + 1 + u64::from(result.is_ok());
                    assert_eq!((next.sequence, used(root)), (expected, Some((expected, 10.0))));
                    let lines: Vec<u64> = ledger::read(root).unwrap().iter().map(|line| line.sequence).collect();
                    assert_eq!(lines, (1..=expected).collect::<Vec<_>>(), "{commits} commits, change {n}");
                    if left > 0 {
                        break;
                    }
                }
                let lost = if torn && commits > 0 { &["missing line"][..] } else { &[] };
                let mut expected = vec!["folder", "folder", "torn line"];
                expected.extend(lost);
                expected.extend(["weights", "record", "pointer", "line"]);
                assert_eq!(reached, expected);
            }
        }
    }

    #[test]
    fn what_could_not_be_read_again_is_not_made_current() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        commit(root, "base", &all(1.0), &entry(), &mut |_| Ok(())).unwrap();
        for value in [f64::NAN, f64::INFINITY] {
            let bad = LedgerEntry { after: BTreeMap::from([("accuracy".into(), value)]), ..entry() };
            let error = commit(root, "base", &all(2.0), &bad, &mut |_| Ok(())).unwrap_err().to_string();
            assert!(error.contains("`accuracy`") && error.contains("finite"), "{error}");
        }
        // The record is longer than is read again.
        let long = LedgerEntry { data: vec!["0".repeat(64); 70_000], ..entry() };
        let error = commit(root, "base", &all(2.0), &long, &mut |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("4194304 bytes"), "{error}");
        assert_eq!(used(root), Some((1, 1.0)));
        // A record that leaves no number for the next commit.
        let (_, record) = paths(root, "a");
        let text = std::fs::read_to_string(&record).unwrap();
        std::fs::write(&record, text.replace("\"sequence\":1", &format!("\"sequence\":{}", u64::MAX))).unwrap();
        let error = commit(root, "base", &all(2.0), &entry(), &mut |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("largest number"), "{error}");
    }
}
