//! A bundle: the folder that a device is given, and that it keeps what it learns in.
//!
//! [`Bundle::open`] compares every file with the manifest and finds the weights to use; [`Bundle::session`] runs the
//! self-test before it serves.
//!
//! The manifest lists what was shipped. What is learned on the device lies beside it in `slots/`, `current` and
//! `ledger.jsonl`, which no manifest covers: whoever can write the folder can change what serves. An archive that brings
//! such files along would have its weights served unlisted; open what was just received with [`Bundle::open_received`],
//! which refuses it.

mod files;
mod ledger;
mod manifest;
mod self_test;
mod slots;

pub use ledger::LedgerEntry;
pub(crate) use manifest::sha256;
pub use manifest::{BundleManifest, FORMAT, FileEntry, Form, MANIFEST, ModelEntry, SelfTestEntry, StepVariant};
pub use self_test::{OutputCheck, SelfTestReport};

use crate::{CompileOptions, Engine, Model, RuntimeError, Session, StateRole, StepManifest, TensorEntry, ValueSpec};
use limbeck_tensor::{Tensor, TensorMap, io::read_safetensors};
use std::path::{Path, PathBuf};

/// An opened bundle: every file was compared with the manifest.
#[derive(Debug, Clone)]
pub struct Bundle {
    root: PathBuf,
    manifest: BundleManifest,
    model: StepManifest,
    initial: TensorMap,
    weights: TensorMap,
    report: OpenReport,
}

/// Where the weights of an opened bundle come from, and what had to be passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenReport {
    /// Where the weights come from.
    pub origin: WeightsOrigin,
    /// What was found damaged and not used, each for people to read; empty when all is well.
    pub problems: Vec<String>,
}

/// Where weights come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightsOrigin {
    /// As the bundle was shipped.
    Shipped,
    /// Learned on this device.
    Slot {
        /// `a` or `b`.
        slot: String,
        /// Number of the commit.
        sequence: u64,
    },
}

impl Bundle {
    /// Opens the bundle in folder `root` and checks all of it. Damaged learned weights are passed over for the other
    /// slot's, or the shipped ones, which [`Bundle::report`] says; damage to what was shipped is an error.
    ///
    /// # Errors
    /// As [`BundleManifest::read`]; a file that is missing or has another size or checksum; state that the shipped
    /// values lack or have with another type or shape; a link or something else that is no plain file or folder where
    /// learned weights are kept.
    pub fn open(root: impl AsRef<Path>) -> Result<Bundle, RuntimeError> {
        let root = root.as_ref().to_owned();
        let manifest = BundleManifest::read(&root)?;
        for entry in manifest.files() {
            entry.read(&root)?;
        }
        let initial = read_safetensors(&root.join(&manifest.state.file))?;
        let model = step_manifest(&root, &manifest.model.manifest)?;
        check_state(&model, &manifest.model.manifest.file, &initial)?;
        for step in &manifest.steps {
            check_state(&step_manifest(&root, &step.manifest)?, &step.manifest.file, &initial)?;
        }
        slots::check_plain(&root)?;
        let mut problems = vec![];
        let mut weights = initial.clone();
        let slot = slots::choose(&root, &manifest.state.sha256, &mut problems);
        let mut origin = WeightsOrigin::Shipped;
        if let Some(slot) = slot {
            let learned = slot.weights().and_then(|w| fits(&model, &initial, &w).map(|()| w));
            match learned {
                Ok(learned) => {
                    weights.extend(learned);
                    origin = WeightsOrigin::Slot { slot: slot.name.into(), sequence: slot.entry.sequence };
                }
                Err(e) => problems.push(format!("slot {} is not used: {e}; the shipped weights are", slot.name)),
            }
        }
        for problem in &problems {
            tracing::warn!(bundle = %root.display(), "{problem}");
        }
        Ok(Bundle { root, manifest, model, initial, weights, report: OpenReport { origin, problems } })
    }

    /// Opens a bundle that was just unpacked or copied to this device, before it is used for the first time: as
    /// [`Bundle::open`], but all that lies in the folder must be listed in the manifest, so that no weights, ledger or
    /// other file come along unseen.
    ///
    /// # Errors
    /// As [`Bundle::open`]; something in the folder that the manifest does not list, named.
    pub fn open_received(root: impl AsRef<Path>) -> Result<Bundle, RuntimeError> {
        files::only_listed(root.as_ref(), &BundleManifest::read(root.as_ref())?)?;
        Bundle::open(root)
    }

    /// Where the weights come from, and what was passed over.
    pub fn report(&self) -> &OpenReport {
        &self.report
    }

    /// The manifest.
    pub fn manifest(&self) -> &BundleManifest {
        &self.manifest
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The manifest of the model that serves.
    pub fn model_manifest(&self) -> &StepManifest {
        &self.model
    }

    /// The model that serves, ready to compile.
    ///
    /// # Errors
    /// The file has changed since the bundle was opened.
    pub fn model(&self) -> Result<Model, RuntimeError> {
        Ok(self.model.model(self.manifest.model.onnx.read(&self.root)?))
    }

    /// A form of a train step: its manifest, and the model to compile.
    ///
    /// # Errors
    /// The files have changed since the bundle was opened.
    pub fn step(&self, variant: &StepVariant) -> Result<(StepManifest, Model), RuntimeError> {
        let manifest = step_manifest(&self.root, &variant.manifest)?;
        let model = manifest.model(variant.onnx.read(&self.root)?);
        Ok((manifest, model))
    }

    /// State with the weights to use: the shipped values, those learned here in their place. The names are those in the
    /// store: `student/...`, `ema/...`, optimiser state.
    pub fn state(&self) -> &TensorMap {
        &self.weights
    }

    /// State as it was shipped.
    pub fn shipped(&self) -> &TensorMap {
        &self.initial
    }

    /// Rows to start replay with: `x`, `y`, `logits`.
    ///
    /// # Errors
    /// The file has changed, or lacks one of them.
    pub fn replay(&self) -> Result<Option<TensorMap>, RuntimeError> {
        self.tensors(self.manifest.replay.as_ref(), &["x", "y", "logits"])
    }

    /// Held-out rows: `x`, and `y` where labels are known.
    ///
    /// # Errors
    /// The file has changed, or lacks `x`.
    pub fn gate(&self) -> Result<Option<TensorMap>, RuntimeError> {
        self.tensors(self.manifest.gate.as_ref(), &["x"])
    }

    /// The content of the teacher's ONNX file.
    ///
    /// # Errors
    /// The file has changed since the bundle was opened.
    pub fn teacher(&self) -> Result<Option<limbeck_tensor::Bytes>, RuntimeError> {
        self.manifest.teacher.as_ref().map(|entry| entry.read(&self.root)).transpose()
    }

    fn tensors(&self, entry: Option<&FileEntry>, needed: &[&str]) -> Result<Option<TensorMap>, RuntimeError> {
        let Some(entry) = entry else { return Ok(None) };
        entry.read(&self.root)?;
        let path = self.root.join(&entry.file);
        let map = read_safetensors(&path)?;
        match needed.iter().find(|name| !map.contains_key(**name)) {
            Some(name) => Err(RuntimeError::Manifest {
                file: path.display().to_string(),
                reason: format!("lacks the tensor `{name}`"),
            }),
            None => Ok(Some(map)),
        }
    }

    /// Compiles the model, runs the self-test on the shipped weights, and serves with the weights to use.
    ///
    /// # Errors
    /// The engine refuses the model or does not reproduce the vectors; the model's inputs or outputs are not those of
    /// the manifest.
    pub fn session(&self, engine: &dyn Engine, options: &CompileOptions) -> Result<Session, RuntimeError> {
        let (session, _) = self.tested(engine, options)?;
        let mut store = session.store();
        for name in store.names().map(str::to_owned).collect::<Vec<_>>() {
            if let Some(tensor) = self.weights.get(&name) {
                store.insert(name, &tensor.aligned())?;
            }
        }
        session.adopt(&store)?;
        Ok(session)
    }

    /// Runs the self-test alone.
    ///
    /// # Errors
    /// As [`Bundle::session`].
    pub fn self_test(&self, engine: &dyn Engine, options: &CompileOptions) -> Result<SelfTestReport, RuntimeError> {
        Ok(self.tested(engine, options)?.1)
    }

    /// A session on the shipped weights that has passed the self-test.
    pub(crate) fn tested(
        &self,
        engine: &dyn Engine,
        options: &CompileOptions,
    ) -> Result<(Session, SelfTestReport), RuntimeError> {
        let session = Session::new(engine, &self.model()?, &self.initial, options)?;
        let file = self.root.join(MANIFEST).display().to_string();
        check_values(&file, "input", &self.manifest.model.inputs, &session.inputs())?;
        check_values(&file, "output", &self.manifest.model.outputs, &session.outputs())?;
        let vectors = self.tensors(Some(&self.manifest.self_test.vectors), &[])?.unwrap_or_default();
        let report = self_test::run(&session, &vectors, &self.manifest.self_test)?;
        Ok((session, report))
    }

    /// Keeps learned values: from the moment this returns, opening the bundle gives them. Power loss at any byte before
    /// leaves the old ones. Returns the ledger's line, with its sequence and the checksum of the weights; a line that
    /// could not be written is a warning, and the next commit writes it.
    ///
    /// # Errors
    /// A value of the model that is missing; one that the shipped state lacks, or has with another type or shape; a value
    /// or a metric that is not finite; a link in the way; a file that cannot be written. The old weights then stay.
    pub fn commit(&self, weights: &TensorMap, entry: &LedgerEntry) -> Result<LedgerEntry, RuntimeError> {
        fits(&self.model, &self.initial, weights)?;
        slots::commit(&self.root, &self.manifest.state.sha256, weights, entry, &mut |_| Ok(()))
    }

    /// Every commit, oldest first.
    ///
    /// # Errors
    /// A ledger that is no plain file of at most 64 MiB (move a longer one away), or holds a line that is none.
    pub fn ledger(&self) -> Result<Vec<LedgerEntry>, RuntimeError> {
        ledger::read(&self.root)
    }
}

fn step_manifest(root: &Path, entry: &FileEntry) -> Result<StepManifest, RuntimeError> {
    let wrong = |e: serde_json::Error| RuntimeError::Manifest { file: entry.file.clone(), reason: e.to_string() };
    serde_json::from_slice(&entry.read(root)?).map_err(wrong)
}

/// Every state value of a step has a first value of its type and shape.
fn check_state(step: &StepManifest, file: &str, initial: &TensorMap) -> Result<(), RuntimeError> {
    for entry in &step.state {
        let wrong = |reason: String| RuntimeError::Manifest { file: file.into(), reason };
        let Some(tensor) = initial.get(&entry.name) else {
            return Err(wrong(format!("the bundle's state has no `{}`", entry.name)));
        };
        if tensor.dtype().name() != entry.dtype || tensor.shape() != entry.shape {
            let (have, want) = (show(tensor), format!("{} {:?}", entry.dtype, entry.shape));
            return Err(wrong(format!("`{}` is {want}, but the bundle's state has {have}", entry.name)));
        }
    }
    Ok(())
}

/// Learned values can take the place of the shipped ones.
fn fits(model: &StepManifest, initial: &TensorMap, weights: &TensorMap) -> Result<(), RuntimeError> {
    let refuse = |name: &str, reason: String| Err(RuntimeError::Data { what: format!("the value `{name}`"), reason });
    for entry in model.state.iter().filter(|e| e.role != StateRole::Optimiser) {
        if !weights.contains_key(&entry.name) {
            return refuse(&entry.name, "is missing, and the model needs it".into());
        }
    }
    for (name, tensor) in weights {
        match initial.get(name) {
            None => return refuse(name, "is not part of the bundle's state".into()),
            Some(shipped) if shipped.dtype() != tensor.dtype() || shipped.shape() != tensor.shape() => {
                return refuse(name, format!("is {}, but was shipped as {}", show(tensor), show(shipped)));
            }
            Some(_) if !tensor.all_finite() => return refuse(name, "is not finite".into()),
            Some(_) => {}
        }
    }
    Ok(())
}

fn show(tensor: &Tensor) -> String {
    format!("{} {:?}", tensor.dtype(), tensor.shape())
}

fn check_values(file: &str, what: &str, said: &[TensorEntry], real: &[ValueSpec]) -> Result<(), RuntimeError> {
    let fits = |(a, b): (&TensorEntry, &ValueSpec)| {
        let dims = a.shape.len() == b.dims.len() && a.shape.iter().zip(&b.dims).all(|(n, d)| d.is_none_or(|d| d == *n));
        a.name == b.name && a.dtype == b.dtype.name() && dims
    };
    if said.len() == real.len() && said.iter().zip(real).all(fits) {
        return Ok(());
    }
    let real: Vec<String> = real.iter().map(|v| format!("{} {v}", v.name)).collect();
    let reason = format!("the model's {what}s are not those of the manifest, but {}", real.join(", "));
    Err(RuntimeError::Manifest { file: file.into(), reason })
}
