//! The toy bundle: three classes on a circle, a linear classifier, and a step that trains it.
#![allow(dead_code)] // each test file uses its part

use limbeck_runtime::{
    Bundle, BundleManifest, FORMAT, FileEntry, Form, MANIFEST, ModelEntry, ScalarEntry, SelfTestEntry, StateEntry,
    StateRole, StepManifest, StepVariant, TensorEntry, noise,
};
use limbeck_tensor::{DType, Tensor, TensorMap, io::write_safetensors};
use std::{collections::BTreeMap, path::Path};

pub(crate) fn folder() -> std::path::PathBuf {
    // The device's tests use it too.
    std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/models")
}

fn tensor(name: &str, dtype: &str, shape: &[usize]) -> TensorEntry {
    TensorEntry { name: name.into(), dtype: dtype.into(), shape: shape.into() }
}

fn weights(set: &str, role: StateRole, updated: bool) -> Vec<StateEntry> {
    let entry = |k: &str, shape: &[usize]| {
        let name = format!("{set}/{k}");
        let output = if updated { format!("{name}.next") } else { String::new() };
        StateEntry { name, output, role, dtype: "float32".into(), shape: shape.into() }
    };
    vec![entry("w", &[2, 3]), entry("b", &[3])]
}

fn manifest(name: &str, state: Vec<StateEntry>, batch: Vec<TensorEntry>) -> StepManifest {
    StepManifest { name: name.into(), state, batch, scalars: vec![], noise: vec![], losses: vec![], metrics: vec![] }
}

pub(crate) fn serving() -> StepManifest {
    manifest("serve", weights("student", StateRole::Parameter, false), vec![tensor("x", "float32", &[8, 2])])
}

pub(crate) fn training() -> StepManifest {
    let mut state = weights("student", StateRole::Parameter, true);
    state.extend(weights("ema", StateRole::Average, true));
    let batch = vec![
        tensor("x", "float32", &[16, 2]),
        tensor("y", "int64", &[16]),
        tensor("row_weight", "float32", &[16]),
        tensor("replay_x", "float32", &[16, 2]),
        tensor("replay_logits", "float32", &[16, 3]),
    ];
    let scalars = vec![ScalarEntry { name: "lr".into(), default: 0.1 }];
    StepManifest { scalars, losses: vec!["loss".into()], ..manifest("adapt", state, batch) }
}

/// `n` rows of three classes at 0, 120 and 240 degrees, turned by `degrees`, with noise of deviation 0.25.
pub(crate) fn rows(n: usize, degrees: f64, seed: u64) -> (Tensor, Tensor) {
    let mut stream = noise::stream(seed, 0, "toy");
    let (mut x, mut y) = (vec![], vec![]);
    for i in 0..n {
        let class = i % 3;
        let angle = (120.0 * class as f64 + degrees).to_radians();
        x.push((angle.cos() + 0.25 * stream.normal()) as f32);
        x.push((angle.sin() + 0.25 * stream.normal()) as f32);
        y.push(class as i64);
    }
    (Tensor::new([n, 2], x).unwrap(), Tensor::new([n], y).unwrap())
}

/// Weights whose logits are `sharpness` times the product with each class's direction.
pub(crate) fn circle(sharpness: f64) -> (Tensor, Tensor) {
    let angle = |class: usize| (120.0 * class as f64).to_radians();
    let w: Vec<f64> =
        [f64::cos, f64::sin].iter().flat_map(|f| (0..3).map(move |class| sharpness * f(angle(class)))).collect();
    (Tensor::from_f64(DType::F32, [2, 3], &w).unwrap(), Tensor::zeros(DType::F32, [3]).unwrap())
}

/// Logits in float64, rounded at the end.
pub(crate) fn logits(x: &Tensor, w: &Tensor, b: &Tensor) -> Tensor {
    let (x, w, b) = (x.to_f64_vec().unwrap(), w.to_f64_vec().unwrap(), b.to_f64_vec().unwrap());
    let cell = |row: &[f64], c: usize| row[0] * w[c] + row[1] * w[3 + c] + b[c];
    let z: Vec<f64> = x.chunks(2).flat_map(|row| (0..3).map(|c| cell(row, c)).collect::<Vec<_>>()).collect();
    Tensor::from_f64(DType::F32, [x.len() / 2, 3], &z).unwrap()
}

/// Writes the toy bundle into `root`. With `labels`, the held-out rows carry theirs.
pub(crate) fn write(root: &Path, labels: bool) -> Bundle {
    let (w, b) = circle(4.0);
    let copy = |from: &str, to: &str| {
        std::fs::copy(folder().join(from), root.join(to)).unwrap();
        FileEntry::of(root, to).unwrap()
    };
    let text = |file: &str, text: String| {
        std::fs::write(root.join(file), text).unwrap();
        FileEntry::of(root, file).unwrap()
    };
    let tensors = |file: &str, map: &[(&str, &Tensor)]| {
        let map: TensorMap = map.iter().map(|(name, t)| (name.to_string(), (*t).clone())).collect();
        write_safetensors(&root.join(file), &map).unwrap();
        FileEntry::of(root, file).unwrap()
    };
    let ((x, _), (old, old_y), (held, held_y)) = (rows(11, 0.0, 1), rows(60, 0.0, 2), rows(240, 0.0, 3));
    let mut gate: Vec<(&str, &Tensor)> = vec![("x", &held)];
    if labels {
        gate.push(("y", &held_y));
    }
    let manifest = BundleManifest {
        format: FORMAT,
        name: "circle".into(),
        licence: "MIT OR Apache-2.0".into(),
        provenance: BTreeMap::from([("data".into(), "made by the tests".into())]),
        preprocessing: "none".into(),
        classes: ["east", "north-west", "south-west"].map(String::from).to_vec(),
        model: ModelEntry {
            onnx: copy("classifier.onnx", "model.onnx"),
            manifest: text("model.json", serving().to_json()),
            inputs: serving().batch,
            outputs: vec![tensor("logits", "float32", &[8, 3])],
        },
        state: tensors("state.safetensors", &[("student/w", &w), ("student/b", &b), ("ema/w", &w), ("ema/b", &b)]),
        steps: vec![StepVariant {
            name: "adapt".into(),
            form: Form::Portable,
            onnx: copy("classifier_step.onnx", "step.onnx"),
            manifest: text("step.json", training().to_json()),
            predicted_bytes: 4096,
        }],
        teacher: None,
        calibration: None,
        self_test: SelfTestEntry {
            vectors: tensors("self-test.safetensors", &[("input/x", &x), ("output/logits", &logits(&x, &w, &b))]),
            tolerances: BTreeMap::from([("float32".into(), 1e-6)]),
        },
        replay: Some(tensors("replay.safetensors", &[("x", &old), ("y", &old_y), ("logits", &logits(&old, &w, &b))])),
        gate: Some(tensors("gate.safetensors", &gate)),
    };
    std::fs::write(root.join(MANIFEST), manifest.to_json()).unwrap();
    Bundle::open(root).unwrap()
}

/// The bundle in `root` with its manifest changed.
pub(crate) fn changed(root: &Path, change: impl FnOnce(&mut BundleManifest)) -> Bundle {
    let mut manifest = BundleManifest::read(root).unwrap();
    change(&mut manifest);
    std::fs::write(root.join(MANIFEST), manifest.to_json()).unwrap();
    Bundle::open(root).unwrap()
}

/// The bundle in `root` with another manifest of its step.
pub(crate) fn with_step(root: &Path, step: &StepManifest) -> Bundle {
    std::fs::write(root.join("step.json"), step.to_json()).unwrap();
    changed(root, |m| m.steps[0].manifest = FileEntry::of(root, "step.json").unwrap())
}

#[track_caller]
pub(crate) fn message<T>(result: Result<T, limbeck_runtime::RuntimeError>) -> String {
    result.err().map(|e| e.to_string()).expect("an error")
}
