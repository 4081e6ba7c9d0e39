//! `bundle.json`: what a bundle holds, each file with its size and SHA-256.

use super::files::{io, read_plain};
use crate::{RuntimeError, TensorEntry};
use limbeck_tensor::{Bytes, map_file};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};

/// Name of the manifest in a bundle's folder.
pub const MANIFEST: &str = "bundle.json";

/// The layout that this version writes and reads.
pub const FORMAT: u32 = 1;

/// Bytes of the largest manifest that is read.
const LARGEST: u64 = 4 << 20;

/// The manifest of a bundle. Unknown keys are refused by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleManifest {
    /// [`FORMAT`].
    pub format: u32,
    /// What the bundle is called.
    pub name: String,
    /// Licence of the weights, as an SPDX expression.
    pub licence: String,
    /// Where it comes from: data, teacher, recipe, dates.
    pub provenance: BTreeMap<String, String>,
    /// What an application must do to raw data before it is fed, for people to read.
    pub preprocessing: String,
    /// Class names, in the order of the logits; may be empty.
    pub classes: Vec<String>,
    /// The student that serves.
    pub model: ModelEntry,
    /// First values of all state of the model and of the steps, as safetensors.
    pub state: FileEntry,
    /// Train steps; of one name, the form to be preferred comes first.
    pub steps: Vec<StepVariant>,
    /// The teacher, as ONNX.
    pub teacher: Option<FileEntry>,
    /// Calibration ranges, as JSON.
    pub calibration: Option<FileEntry>,
    /// Vectors that an engine must reproduce.
    pub self_test: SelfTestEntry,
    /// Old rows to start replay with, as safetensors: `x` `[n, ...]`, `y` int64 `[n]`, `logits` `[n, classes]`.
    pub replay: Option<FileEntry>,
    /// Held-out rows that a learned candidate is judged on, as safetensors: `x` `[n, ...]`, and `y` int64 `[n]` where
    /// labels are known.
    pub gate: Option<FileEntry>,
}

/// A file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Path relative to the bundle, with `/` between folders.
    pub file: String,
    /// SHA-256 of the content, in lower-case hexadecimal.
    pub sha256: String,
    /// Size of the content.
    pub bytes: u64,
}

/// The model that serves. Its first input takes rows, its first output gives logits where there are classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    /// The ONNX file.
    pub onnx: FileEntry,
    /// Its [`StepManifest`](crate::StepManifest) as JSON: the weights are state that it reads.
    pub manifest: FileEntry,
    /// What is fed, in the graph's order.
    pub inputs: Vec<TensorEntry>,
    /// What comes back, in the graph's order.
    pub outputs: Vec<TensorEntry>,
}

/// One form of a train step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepVariant {
    /// Name of the step; its forms share it.
    pub name: String,
    /// Which ops it is written in.
    pub form: Form,
    /// The ONNX file.
    pub onnx: FileEntry,
    /// Its [`StepManifest`](crate::StepManifest) as JSON.
    pub manifest: FileEntry,
    /// Predicted peak memory of a run, state included, in bytes.
    pub predicted_bytes: u64,
}

/// Which ops a step is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Standard ONNX ops only.
    Portable,
    /// With fused ops of the domain `ai.limbeck`.
    Fused,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Form::Portable => "portable",
            Form::Fused => "fused",
        })
    }
}

/// Vectors that an engine must reproduce, with the shipped weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelfTestEntry {
    /// Safetensors with `input/NAME` and `output/NAME`, any number of rows.
    pub vectors: FileEntry,
    /// By an output's ONNX type, the largest allowed max|got - want| / max(max|want|, 1e-3); types not named must be
    /// reproduced exactly.
    pub tolerances: BTreeMap<String, f64>,
}

impl FileEntry {
    /// The entry of a file that lies in `root`.
    ///
    /// # Errors
    /// A name that leads out of the bundle; a file that cannot be read.
    pub fn of(root: &Path, file: &str) -> Result<FileEntry, RuntimeError> {
        let path = inside(root, file)?;
        let content = read(&path)?;
        Ok(FileEntry { file: file.into(), sha256: sha256(&content), bytes: content.len() as u64 })
    }

    /// The content, mapped, after its size and checksum were compared.
    pub(super) fn read(&self, root: &Path) -> Result<Bytes, RuntimeError> {
        let path = inside(root, &self.file)?;
        let tampered = |reason| RuntimeError::Tampered { file: path.clone(), reason };
        let real = path.canonicalize().map_err(io(&path))?;
        if !real.starts_with(root.canonicalize().map_err(io(root))?) {
            return Err(tampered("is a link that leads out of the bundle".into()));
        }
        let size = std::fs::metadata(&path).map_err(io(&path))?.len();
        if size != self.bytes {
            return Err(tampered(format!("has {size} bytes, the manifest says {}", self.bytes)));
        }
        let content = read(&path)?;
        let sum = sha256(&content);
        if sum != self.sha256 {
            return Err(tampered(format!("has the SHA-256 {sum}, the manifest says {}", self.sha256)));
        }
        Ok(content)
    }
}

impl BundleManifest {
    /// Reads the manifest of the bundle in `root` and checks names and format, but no other file.
    ///
    /// # Errors
    /// No manifest, or one that is not a plain file (a link is refused) of at most 4 MiB; unknown or missing keys, another
    /// format, a name that leads out of the bundle or is used for two files.
    pub fn read(root: &Path) -> Result<BundleManifest, RuntimeError> {
        let path = root.join(MANIFEST);
        let wrong = |reason: String| RuntimeError::Manifest { file: path.display().to_string(), reason };
        let Some(text) = read_plain(&path, LARGEST)? else {
            return Err(io(&path)(std::io::ErrorKind::NotFound.into()));
        };
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        let format = value.get("format").and_then(serde_json::Value::as_u64);
        if format != Some(u64::from(FORMAT)) {
            return Err(wrong(format!("`format` is {format:?}, but this version reads {FORMAT}; export it again")));
        }
        let manifest: BundleManifest = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
        let mut names = BTreeSet::new();
        for entry in manifest.files() {
            inside(root, &entry.file)?;
            if !names.insert(&entry.file) {
                return Err(wrong(format!("two entries name the file `{}`", entry.file)));
            }
        }
        Ok(manifest)
    }

    /// The manifest as readable JSON.
    pub fn to_json(&self) -> String {
        // Maps with string keys and plain numbers alone: this cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Every file of the bundle.
    pub fn files(&self) -> impl Iterator<Item = &FileEntry> {
        let steps = self.steps.iter().flat_map(|s| [&s.onnx, &s.manifest]);
        let optional = [&self.teacher, &self.calibration, &self.replay, &self.gate];
        [&self.model.onnx, &self.model.manifest, &self.state, &self.self_test.vectors]
            .into_iter()
            .chain(steps)
            .chain(optional.into_iter().flatten())
    }
}

/// Lower-case hexadecimal SHA-256.
pub(crate) fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect()
}

/// A mapped file; an empty one, which cannot be mapped everywhere, is empty bytes.
fn read(path: &Path) -> Result<Bytes, RuntimeError> {
    match std::fs::metadata(path).map_err(io(path))?.len() {
        0 => Ok(Bytes::new()),
        _ => Ok(map_file(path)?),
    }
}

/// The path of a bundle's file. What a bundle writes itself is not to be named by a manifest.
fn inside(root: &Path, file: &str) -> Result<PathBuf, RuntimeError> {
    let refuse = |reason: &str| {
        Err(RuntimeError::Manifest {
            file: root.join(MANIFEST).display().to_string(),
            reason: format!("`{file}` {reason}"),
        })
    };
    let path = Path::new(file);
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_));
    if file.is_empty() || file.contains(['\\', ':', '\0']) || !path.components().all(plain) || file.ends_with('/') {
        return refuse("is not a plain relative path inside the bundle");
    }
    let first = path.components().next().map(|c| c.as_os_str());
    let own = [MANIFEST, super::slots::FOLDER, super::slots::CURRENT, super::ledger::LEDGER];
    if own.iter().any(|name| first == Some(name.as_ref())) {
        return refuse("is a name that the bundle keeps for itself");
    }
    Ok(root.join(path))
}
