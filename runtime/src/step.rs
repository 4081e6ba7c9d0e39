//! The manifest of a train step: what each input and output of its graph is for. It travels beside the ONNX file
//! as JSON, so that a device needs nothing else to train with it.

use crate::{Model, RuntimeError, StatePair};
use limbeck_tensor::{Bytes, DType};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a train step (or any stateful program) takes and gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepManifest {
    /// Name of the step, such as `kd`.
    pub name: String,
    /// Values that live in the store between runs.
    pub state: Vec<StateEntry>,
    /// Tensors fed at every run: images, labels, row weights.
    pub batch: Vec<TensorEntry>,
    /// Rank-0 inputs: learning rate, temperature.
    pub scalars: Vec<ScalarEntry>,
    /// Random tensors fed at every run.
    pub noise: Vec<NoiseEntry>,
    /// Outputs that are losses, the total first.
    pub losses: Vec<String>,
    /// Other scalar outputs: accuracies, norms, `finite`.
    pub metrics: Vec<String>,
}

/// A value of the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateEntry {
    /// Name in the store, and of the graph input.
    pub name: String,
    /// Graph output with the new value; empty when the step only reads it.
    pub output: String,
    /// What it is.
    pub role: StateRole,
    /// Element type, as ONNX names it.
    pub dtype: String,
    /// Extents.
    pub shape: Vec<usize>,
}

/// What a value of the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateRole {
    /// Trained weight.
    Parameter,
    /// Running statistics of normalisation.
    Buffer,
    /// Momentum, moments, step counts, accumulated gradients.
    Optimiser,
    /// Weights that enter but are not trained here: a swappable teacher.
    Frozen,
    /// Exponential moving average of weights.
    Average,
    /// Anything else an objective carries from step to step.
    Other,
}

/// A fed tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorEntry {
    /// Name of the graph input.
    pub name: String,
    /// Element type, as ONNX names it.
    pub dtype: String,
    /// Extents.
    pub shape: Vec<usize>,
}

/// A fed number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScalarEntry {
    /// Name of the graph input.
    pub name: String,
    /// Value when the caller gives none.
    pub default: f64,
}

/// A fed random tensor; its values are a function of (seed, step, name).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoiseEntry {
    /// Name of the graph input.
    pub name: String,
    /// Extents.
    pub shape: Vec<usize>,
    /// How it is drawn.
    pub distribution: Distribution,
}

/// Distribution of a noise input.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distribution {
    /// Mean 0, variance 1.
    Normal,
    /// Between 0 and 1.
    Uniform,
    /// 1 with this probability, else 0.
    Bernoulli(f64),
}

impl StepManifest {
    /// Reads a manifest; unknown keys are refused by name.
    pub fn read(path: &Path) -> Result<StepManifest, RuntimeError> {
        let io = |source| limbeck_tensor::TensorError::Io { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(io)?;
        serde_json::from_str(&text)
            .map_err(|e| RuntimeError::Manifest { file: path.display().to_string(), reason: e.to_string() })
    }

    /// The manifest as readable JSON.
    pub fn to_json(&self) -> String {
        // Maps and finite numbers alone: this cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// The model of this step, ready to compile.
    pub fn model(&self, bytes: Bytes) -> Model {
        let state = self
            .state
            .iter()
            .map(|s| StatePair { name: s.name.clone(), input: s.name.clone(), output: s.output.clone() })
            .collect();
        Model { bytes, folder: None, state }
    }

    /// Names of the values with a role.
    pub fn names(&self, role: StateRole) -> impl Iterator<Item = &str> {
        self.state.iter().filter(move |s| s.role == role).map(|s| s.name.as_str())
    }

    /// Bytes of state with a role (all trained weights, all optimiser state).
    pub fn state_bytes(&self, role: StateRole) -> usize {
        let of = |s: &StateEntry| {
            let dtype = [DType::F32, DType::F64, DType::I64].into_iter().find(|d| d.name() == s.dtype);
            s.shape.iter().product::<usize>() * dtype.map_or(4, |d| d.bits() / 8)
        };
        self.state.iter().filter(|s| s.role == role).map(of).sum()
    }
}
