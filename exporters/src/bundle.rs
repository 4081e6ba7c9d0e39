//! Writing a bundle: all of it beside its final place, then one rename, so that nothing half-written is ever found.

use crate::ExportError;
use limbeck_runtime::{
    Bundle, BundleManifest, FORMAT, FileEntry, Form, MANIFEST, ModelEntry, SelfTestEntry, StepManifest, StepVariant,
    TensorEntry,
};
use limbeck_tensor::{Bytes, TensorError, TensorMap, create_folder, io::write_safetensors, replace_file, sync_folder};
use std::collections::BTreeMap;
use std::path::Path;

/// What goes into a bundle.
#[derive(Debug, Clone, Default)]
pub struct BundleContents {
    /// What the bundle is called.
    pub name: String,
    /// Licence of the weights, as an SPDX expression.
    pub licence: String,
    /// Where it comes from: data, teacher, recipe, dates.
    pub provenance: BTreeMap<String, String>,
    /// What an application must do to raw data before it is fed.
    pub preprocessing: String,
    /// Class names, in the order of the logits.
    pub classes: Vec<String>,
    /// The student that serves.
    pub model: ModelContents,
    /// First values of all state of the model and of the steps.
    pub state: TensorMap,
    /// Train steps; of one name, the form to be preferred comes first.
    pub steps: Vec<StepContents>,
    /// The teacher's ONNX file.
    pub teacher: Option<Bytes>,
    /// Calibration ranges.
    pub calibration: Option<serde_json::Value>,
    /// Vectors that an engine must reproduce with the shipped state.
    pub self_test: SelfTestContents,
    /// Old rows to start replay with: `x`, `y`, `logits`.
    pub replay: Option<TensorMap>,
    /// Held-out rows that a learned candidate is judged on: `x`, and `y` where labels are known.
    pub gate: Option<TensorMap>,
}

/// The student that serves, with its weights as state that it reads.
#[derive(Debug, Clone, Default)]
pub struct ModelContents {
    /// The ONNX file.
    pub onnx: Bytes,
    /// Names of its state and inputs; `None` for a model whose weights are constants, which cannot learn.
    pub manifest: Option<StepManifest>,
    /// What is fed, in the graph's order.
    pub inputs: Vec<TensorEntry>,
    /// What comes back, in the graph's order.
    pub outputs: Vec<TensorEntry>,
}

/// One form of a train step.
#[derive(Debug, Clone)]
pub struct StepContents {
    /// Which ops it is written in.
    pub form: Form,
    /// The ONNX file.
    pub onnx: Bytes,
    /// Its manifest; the step is called what it says.
    pub manifest: StepManifest,
    /// Predicted peak memory of a run, state included, in bytes.
    pub predicted_bytes: u64,
}

/// Vectors that an engine must reproduce.
#[derive(Debug, Clone, Default)]
pub struct SelfTestContents {
    /// By input name, `[rows, ...]`.
    pub inputs: TensorMap,
    /// By output name, `[rows, ...]`.
    pub outputs: TensorMap,
    /// By an output's ONNX type, the largest allowed max|got - want| / max(max|want|, 1e-3).
    pub tolerances: BTreeMap<String, f64>,
}

fn refuse<T>(reason: String) -> Result<T, ExportError> {
    Err(ExportError::Pass { pass: "bundle", reason })
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> TensorError + '_ {
    |source| TensorError::Io { path: path.to_owned(), source }
}

/// Writes a bundle to the new folder `folder`, opening it once as a device would before it gets its name.
///
/// # Errors
/// A folder that exists; contents that [`Bundle::open_received`] refuses; two steps of one name and form; a file that cannot be
/// written. Nothing is left behind.
pub fn write_bundle(folder: &Path, contents: &BundleContents) -> Result<BundleManifest, ExportError> {
    if folder.exists() {
        return refuse(format!("{} exists; remove it, or choose another name", folder.display()));
    }
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create_folder(parent)?;
    let temporary = tempfile::Builder::new().prefix(".limbeck-").tempdir_in(parent).map_err(io(parent))?;
    let root = temporary.path();
    let manifest = write(root, contents)?;
    Bundle::open_received(root)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o755)).map_err(io(root))?;
    }
    std::fs::rename(root, folder).map_err(io(folder))?;
    // Nothing is left to remove.
    let _ = temporary.keep();
    sync_folder(parent)?;
    Ok(manifest)
}

/// Writes files into a bundle's folder and gives their entries.
struct Writer<'a>(&'a Path);

impl Writer<'_> {
    fn bytes(&self, file: &str, content: &[u8]) -> Result<FileEntry, ExportError> {
        replace_file(&self.0.join(file), content)?;
        Ok(FileEntry::of(self.0, file)?)
    }

    fn tensors(&self, file: &str, map: &TensorMap) -> Result<FileEntry, ExportError> {
        write_safetensors(&self.0.join(file), map)?;
        Ok(FileEntry::of(self.0, file)?)
    }
}

fn write(root: &Path, c: &BundleContents) -> Result<BundleManifest, ExportError> {
    let to = Writer(root);
    let mut steps: Vec<StepVariant> = vec![];
    for step in &c.steps {
        let name = &step.manifest.name;
        if steps.iter().any(|s| s.name == *name && s.form == step.form) {
            return refuse(format!("two steps are called `{name}` and are {}", step.form));
        }
        let stem = format!("step-{}-{}", steps.len(), step.form);
        steps.push(StepVariant {
            name: name.clone(),
            form: step.form,
            onnx: to.bytes(&format!("{stem}.onnx"), &step.onnx)?,
            manifest: to.bytes(&format!("{stem}.json"), step.manifest.to_json().as_bytes())?,
            predicted_bytes: step.predicted_bytes,
        });
    }
    let of_model = c.model.manifest.clone().unwrap_or_else(|| StepManifest {
        name: "serve".into(),
        state: vec![],
        batch: c.model.inputs.clone(),
        scalars: vec![],
        noise: vec![],
        losses: vec![],
        metrics: vec![],
    });
    let vector = |prefix: &str, map: &TensorMap| -> TensorMap {
        map.iter().map(|(name, tensor)| (format!("{prefix}/{name}"), tensor.clone())).collect()
    };
    let mut vectors = vector("input", &c.self_test.inputs);
    vectors.extend(vector("output", &c.self_test.outputs));
    let calibration = c.calibration.as_ref().map(ToString::to_string);
    let manifest = BundleManifest {
        format: FORMAT,
        name: c.name.clone(),
        licence: c.licence.clone(),
        provenance: c.provenance.clone(),
        preprocessing: c.preprocessing.clone(),
        classes: c.classes.clone(),
        model: ModelEntry {
            onnx: to.bytes("model.onnx", &c.model.onnx)?,
            manifest: to.bytes("model.json", of_model.to_json().as_bytes())?,
            inputs: c.model.inputs.clone(),
            outputs: c.model.outputs.clone(),
        },
        state: to.tensors("state.safetensors", &c.state)?,
        steps,
        teacher: c.teacher.as_ref().map(|bytes| to.bytes("teacher.onnx", bytes)).transpose()?,
        calibration: calibration.map(|text| to.bytes("calibration.json", text.as_bytes())).transpose()?,
        self_test: SelfTestEntry {
            vectors: to.tensors("self-test.safetensors", &vectors)?,
            tolerances: c.self_test.tolerances.clone(),
        },
        replay: c.replay.as_ref().map(|map| to.tensors("replay.safetensors", map)).transpose()?,
        gate: c.gate.as_ref().map(|map| to.tensors("gate.safetensors", map)).transpose()?,
    };
    replace_file(&root.join(MANIFEST), manifest.to_json().as_bytes())?;
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_runtime::WeightsOrigin;
    use limbeck_tensor::Tensor;

    fn contents() -> BundleContents {
        let one = TensorMap::from([("y".to_owned(), Tensor::new([2, 1], vec![1f32, 2.0]).unwrap())]);
        BundleContents {
            name: "empty".into(),
            licence: "MIT".into(),
            calibration: Some(serde_json::json!({ "x": [0.0, 1.0] })),
            self_test: SelfTestContents { outputs: one.clone(), ..SelfTestContents::default() },
            gate: Some(one.clone()),
            state: one,
            ..BundleContents::default()
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_written_opens() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("new/student");
        let manifest = write_bundle(&folder, &contents()).unwrap();
        let bundle = Bundle::open(&folder).unwrap();
        assert_eq!(*bundle.manifest(), manifest);
        assert_eq!(bundle.report().origin, WeightsOrigin::Shipped);
        assert_eq!(names(&parent.path().join("new")), ["student"]);
        assert!(write_bundle(&folder, &contents()).unwrap_err().to_string().contains("exists"));
    }

    #[test]
    fn what_cannot_be_opened_is_not_left_behind() {
        let parent = tempfile::tempdir().unwrap();
        let mut wrong = contents();
        wrong.model.manifest = Some(StepManifest {
            name: "serve".into(),
            state: vec![limbeck_runtime::StateEntry {
                name: "student/w".into(),
                output: String::new(),
                role: limbeck_runtime::StateRole::Parameter,
                dtype: "float32".into(),
                shape: vec![2],
            }],
            batch: vec![],
            scalars: vec![],
            noise: vec![],
            losses: vec![],
            metrics: vec![],
        });
        let error = write_bundle(&parent.path().join("student"), &wrong).unwrap_err().to_string();
        assert!(error.contains("student/w"), "{error}");
        assert!(names(parent.path()).is_empty());
    }
}
