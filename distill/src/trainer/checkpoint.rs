//! Checkpoints: all state and the position in one safetensors file, from which training goes on bit for bit.

use super::{Best, Fit, Trainer};
use crate::data::Dataset;
use crate::{DistillError, Step};
use limbeck_runtime::StateStore;
use limbeck_tensor::{Tensor, TensorError, TensorMap, io};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// What determines a run, beside the contents of the data: values by key.
pub(super) type Settings = BTreeMap<String, String>;

/// SHA-256 of a step's graph and manifest, in hexadecimal.
pub(super) fn digest(step: &Step) -> Result<String, DistillError> {
    let mut hash = Sha256::new();
    hash.update(&step.bytes()?[..]);
    hash.update(step.manifest.to_json().as_bytes());
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// That two sets of settings agree; the error names the first key that does not.
fn same(then: &Settings, now: &Settings) -> Result<(), DistillError> {
    let Some(key) = then.keys().chain(now.keys()).find(|key| then.get(*key) != now.get(*key)) else { return Ok(()) };
    let value = |of: &Settings| of.get(key).cloned().unwrap_or_else(|| "absent".into());
    Err(DistillError::Resume { key: key.clone(), then: value(then), now: value(now) })
}

impl Trainer {
    /// What determines every run of this trainer.
    fn origin(&self) -> Settings {
        [("seed", self.seed.to_string()), ("step", self.digest.clone())].map(|(k, v)| (k.to_owned(), v)).into()
    }

    /// What determines a fit beside that.
    pub(super) fn settings(&self, data: &dyn Dataset, batch: usize, fit: &Fit) -> Settings {
        let Fit { epochs, lr, schedule, accumulate, patience, scalars } = fit;
        let mut settings: Settings = [
            ("samples", data.len().to_string()),
            ("batch", batch.to_string()),
            ("epochs", epochs.to_string()),
            ("lr", lr.to_string()),
            ("schedule", format!("{schedule:?}")),
            ("accumulate", accumulate.to_string()),
            ("patience", format!("{patience:?}")),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        settings.extend(scalars.iter().map(|(name, value)| (format!("scalars.{name}"), value.to_string())));
        settings
    }

    /// That a fit goes on as the resumed one began.
    pub(super) fn check_settings(&self, now: &Settings) -> Result<(), DistillError> {
        self.resumed.as_ref().map_or(Ok(()), |then| same(then, now))
    }

    /// Writes all state, the position, the settings of the fit and the best state so far, atomically, as one
    /// safetensors file.
    pub fn save(&self, path: &Path) -> Result<(), DistillError> {
        let mut all = TensorMap::new();
        let mut put = |prefix: &str, store: &StateStore| -> Result<(), DistillError> {
            for name in store.names() {
                all.insert(format!("{prefix}/{name}"), store.get(name)?);
            }
            Ok(())
        };
        put("state", &self.store)?;
        if let Some(best) = &self.best {
            put("best", &best.store)?;
            all.insert("best_score".into(), Tensor::scalar(best.score));
            all.insert("best_since".into(), Tensor::scalar(best.since));
        }
        let position = vec![self.step, self.epoch, self.skipped, self.bad_steps.into()];
        all.insert("position".into(), Tensor::new([position.len()], position)?);
        for (name, settings) in [("origin", Some(&self.origin())), ("settings", self.settings.as_ref())] {
            let Some(settings) = settings else { continue };
            // A map of strings: this cannot fail.
            let text = serde_json::to_vec(settings).unwrap_or_default();
            all.insert(name.into(), Tensor::new([text.len()], text)?);
        }
        Ok(io::write_safetensors(path, &all)?)
    }

    /// Continues from a file of [`Trainer::save`]; what follows equals an uninterrupted run bit for bit. The next
    /// [`Trainer::fit`] must have the settings (batch, number of samples, all of [`Fit`]) of the one that wrote the file.
    ///
    /// # Errors
    /// A file that is no checkpoint, or that of another step or seed. The trainer is then as before.
    pub fn resume(&mut self, path: &Path) -> Result<(), DistillError> {
        let format = |reason: String| DistillError::from(TensorError::Format { path: path.to_owned(), reason });
        let all = io::read_safetensors(path)?;
        let required = |name: &str| all.get(name).ok_or_else(|| format(format!("is no checkpoint: it lacks '{name}'")));
        let [step, epoch, skipped, bad_steps] = required("position")?.to_vec::<u64>()?[..] else {
            return Err(format("has a 'position' of the wrong length".into()));
        };
        let bad_steps = u32::try_from(bad_steps).map_err(|_| format("has an impossible 'position'".into()))?;
        let read = |name: &str, text: &Tensor| -> Result<Settings, DistillError> {
            serde_json::from_slice(&text.to_vec::<u8>()?)
                .map_err(|e| format(format!("has '{name}' that cannot be read: {e}")))
        };
        let origin = read("origin", required("origin")?)?;
        let settings = all.get("settings").map(|text| read("settings", text)).transpose()?;
        let store = self.read_state(&all, "state", path)?;
        let best = match all.get("best_score") {
            None => None,
            Some(score) => {
                let (score, since) = (score.to_vec::<f64>()?, required("best_since")?.to_vec::<u64>()?);
                let (&[score], &[since]) = (&score[..], &since[..]) else {
                    return Err(format("has a 'best_score' or 'best_since' of the wrong length".into()));
                };
                Some(Best { score, since, store: self.read_state(&all, "best", path)? })
            }
        };
        same(&origin, &self.origin())?;
        (self.store, self.best) = (store, best);
        (self.step, self.epoch, self.skipped, self.bad_steps) = (step, epoch, skipped, bad_steps);
        (self.settings, self.resumed) = (settings.clone(), settings);
        Ok(())
    }

    /// The state under a prefix of a checkpoint, checked against the step's.
    fn read_state(&self, all: &TensorMap, prefix: &str, path: &Path) -> Result<StateStore, DistillError> {
        let format = |reason: String| TensorError::Format { path: path.to_owned(), reason };
        let mut store = self.store.snapshot();
        for entry in &self.manifest.state {
            let tensor = all
                .get(&format!("{prefix}/{}", entry.name))
                .ok_or_else(|| format(format!("lacks '{}'; it belongs to another step", entry.name)))?;
            if tensor.shape() != entry.shape || tensor.dtype().name() != entry.dtype {
                let got = format!("{}{:?}", tensor.dtype(), tensor.shape());
                let want = format!("{}{:?}", entry.dtype, entry.shape);
                return Err(format(format!("'{}' is {got}, but the step has {want}", entry.name)).into());
            }
            store.insert(entry.name.clone(), &tensor.aligned())?;
        }
        Ok(store)
    }
}
