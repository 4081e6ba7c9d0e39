//! What holds for any bytes that someone gives as a bundle. Shared by the fuzz target and by the test that replays what
//! it found.

use limbeck_runtime::{Bundle, LedgerEntry, MANIFEST, StateRole};
use limbeck_tensor::TensorMap;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// Starts a file in the packed form of a bundle; the letter of its name in [`FILES`] and the content follow.
const START: &[u8] = b"\0FILE";

/// The files that a packed bundle may have, from the letter `a` on.
pub(crate) const FILES: [&str; 14] = [
    MANIFEST,
    "model.json",
    "step.json",
    "state.safetensors",
    "self-test.safetensors",
    "replay.safetensors",
    "gate.safetensors",
    "model.onnx",
    "step.onnx",
    "slots/a/slot.json",
    "slots/a/weights.safetensors",
    "slots/b/slot.json",
    "current",
    "ledger.jsonl",
];

/// Opening a packed bundle is an error, or gives one that can be asked everything and that a commit changes as it says.
/// An odd first byte makes the checksums right, so that what lies behind them is reached.
pub(crate) fn bundle(data: &[u8]) {
    let Some((&choice, packed)) = data.split_first() else { return };
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mut files: BTreeMap<&str, Vec<u8>> = unpack(packed);
    if choice % 2 == 1 {
        correct(&mut files);
    }
    for (name, content) in &files {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let received = Bundle::open_received(root).is_ok();
    let Ok(bundle) = Bundle::open(root) else {
        assert!(!received, "a bundle that cannot be opened was received");
        return;
    };
    let _ = (bundle.ledger(), bundle.replay(), bundle.gate(), bundle.model(), bundle.teacher());
    for variant in &bundle.manifest().steps {
        let (step, _) = bundle.step(variant).expect("an opened bundle has its steps");
        let _ = step.state_bytes(StateRole::Parameter);
    }
    let kept = |e: &&limbeck_runtime::StateEntry| e.role != StateRole::Optimiser;
    let weights: TensorMap = bundle
        .model_manifest()
        .state
        .iter()
        .filter(kept)
        .map(|e| (e.name.clone(), bundle.state()[&e.name].clone()))
        .collect();
    let entry = LedgerEntry {
        sequence: 0,
        weights: String::new(),
        step: "step".into(),
        runs: 1,
        data: vec![],
        before: BTreeMap::new(),
        after: BTreeMap::new(),
    };
    let Ok(line) = bundle.commit(&weights, &entry) else { return };
    let again = Bundle::open(root).expect("a commit leaves a bundle");
    assert_eq!(again.state(), bundle.state(), "a commit of the weights in use changes none");
    let origin = format!("{:?}", again.report().origin);
    assert!(origin.contains(&format!("sequence: {} ", line.sequence)), "{origin} after commit {}", line.sequence);
}

fn unpack(packed: &[u8]) -> BTreeMap<&'static str, Vec<u8>> {
    let starts: Vec<usize> =
        (0..packed.len().saturating_sub(START.len())).filter(|&at| packed[at..].starts_with(START)).collect();
    let ends = starts.iter().skip(1).copied().chain([packed.len()]);
    let mut files = BTreeMap::new();
    for (&start, end) in starts.iter().zip(ends) {
        let letter = packed[start + START.len()];
        let content = packed.get(start + START.len() + 1..end).unwrap_or_default();
        if let Some(name) = FILES.get(usize::from(letter.wrapping_sub(b'a'))) {
            files.insert(*name, content.to_vec());
        }
    }
    files
}

/// Gives sizes and checksums in the JSON files the values of the files they are about.
fn correct(files: &mut BTreeMap<&str, Vec<u8>>) {
    let sums: BTreeMap<&str, (String, usize)> =
        files.iter().map(|(name, content)| (*name, (sum(content), content.len()))).collect();
    if let Some(manifest) = files.get_mut(MANIFEST) {
        edit(manifest, |value| entries(value, &sums));
    }
    for slot in ["slots/a", "slots/b"] {
        // There is one file of weights, which serves for both slots.
        let weights = sums.get("slots/a/weights.safetensors").cloned();
        let (Some((sum, bytes)), Some((base, _))) = (weights, sums.get("state.safetensors")) else { continue };
        let Some(record) = files.get_mut(&*format!("{slot}/slot.json")) else { continue };
        edit(record, |value| {
            if let Some(fields) = value.as_object_mut() {
                fields.insert("base".into(), base.as_str().into());
                fields.insert("bytes".into(), bytes.into());
            }
            if let Some(fields) = value.get_mut("entry").and_then(Value::as_object_mut) {
                fields.insert("weights".into(), sum.into());
            }
        });
    }
    if let (Some(weights), true) =
        (files.get("slots/a/weights.safetensors").cloned(), files.contains_key("slots/b/slot.json"))
    {
        files.insert("slots/b/weights.safetensors", weights);
    }
}

fn edit(content: &mut Vec<u8>, change: impl FnOnce(&mut Value)) {
    if let Ok(mut value) = serde_json::from_slice::<Value>(content) {
        change(&mut value);
        *content = value.to_string().into_bytes();
    }
}

/// Corrects every entry of a file in a manifest.
fn entries(value: &mut Value, sums: &BTreeMap<&str, (String, usize)>) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| entries(item, sums)),
        Value::Object(fields) => {
            let of = fields.get("file").and_then(Value::as_str).and_then(|name| sums.get(name));
            if let Some((sum, bytes)) = of {
                fields.insert("sha256".into(), sum.as_str().into());
                fields.insert("bytes".into(), (*bytes).into());
            }
            fields.values_mut().for_each(|item| entries(item, sums));
        }
        _ => {}
    }
}

fn sum(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect()
}

/// A folder as a packed bundle.
#[allow(dead_code)] // the test makes the seed
pub(crate) fn pack(root: &Path) -> Vec<u8> {
    let mut packed = vec![1];
    for (name, letter) in FILES.iter().zip(b'a'..) {
        if let Ok(content) = std::fs::read(root.join(name)) {
            packed.extend_from_slice(START);
            packed.push(letter);
            packed.extend_from_slice(&content);
        }
    }
    packed
}
