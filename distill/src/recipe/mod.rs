//! Recipes: a distillation described in TOML, run from the command or from code. Unknown keys are refused by name.
//!
//! ```toml
//! name = "digits-kd"
//! seed = 1
//!
//! [data]
//! train = { safetensors = "train.safetensors" }       # every tensor is a field
//! validation = { fields = { x = "x.npy", y = "y.idx" } } # or a file a field; or a folder a class:
//! # train = { images = { folder = "train", channels = 1, height = 28, width = 28 } }
//!
//! [data.preprocess.x] # (value * scale - mean[channel]) / std[channel], as f32
//! scale = 0.00392156862745098
//! mean = [0.13]
//! std = [0.31]
//!
//! [student]
//! model = "student.onnx"
//! inputs = { x = "data:x" }
//!
//! [teacher] # or follow = "ema" or "snapshot", of the student; or none, with its outputs as fields of the data
//! model = "teacher.onnx"
//! inputs = { x = "data:x" }
//!
//! [projector.hint] # a trained layer from a student's feature to another number of channels; dropped afterwards
//! input = "student:block2.out"
//! channels = 24
//!
//! [[loss]]
//! objective = "ce"
//! weight = 0.1
//! taps = { student_logits = "student:logits", labels = "data:y" }
//!
//! [[loss]]
//! objective = "kd"
//! weight = 0.9
//! taps = { student_logits = "student:logits", teacher_logits = "teacher:logits" }
//! params = { temperature = 4.0 }
//!
//! [[loss]]
//! objective = "hint"
//! taps = { student_feature = "projector:hint", teacher_feature = "teacher:block2.out" }
//!
//! [[group]] # parameters that are trained unlike the others
//! parameters = ["fc.*"]
//! lr_scale = 0.1
//!
//! [train]
//! epochs = 10
//! batch = 32
//! lr = 0.01
//! freeze = ["stem.*"]
//! ```
//!
//! Integer fields become int64 (labels, tokens) unless `preprocess` makes them f32.

mod assemble;
mod evaluate;
mod load;

pub use evaluate::{Evaluator, Score};
pub use load::Loaded;

use crate::DistillError;
use crate::trainer::{Fit, Schedule};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A recipe as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the run and of the step.
    pub name: String,
    /// Fixes shuffles and noise.
    #[serde(default)]
    pub seed: u64,
    /// What it learns from.
    pub data: DataSpec,
    /// What learns.
    pub student: NetSpec,
    /// What it learns from, unless teacher outputs are fields of the data.
    pub teacher: Option<TeacherSpec>,
    /// Further applications of the student, by name: `NAME:VALUE` is a source then.
    #[serde(default)]
    pub apply: BTreeMap<String, ApplySpec>,
    /// Trained layers on student features, by name: `projector:NAME` is a source then.
    #[serde(default)]
    pub projector: BTreeMap<String, ProjectorSpec>,
    /// Terms of the loss.
    pub loss: Vec<LossSpec>,
    /// Parameters that are trained unlike the others.
    #[serde(default)]
    pub group: Vec<GroupSpec>,
    /// How it is trained.
    pub train: TrainSpec,
}

/// Data; paths are relative to the recipe.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// What is trained on.
    pub train: FilesSpec,
    /// What is scored after each epoch, with the same fields.
    pub validation: Option<FilesSpec>,
    /// What is done to fields before they are used, by field.
    #[serde(default)]
    pub preprocess: BTreeMap<String, PreprocessSpec>,
}

/// Files that hold fields; kinds may be mixed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesSpec {
    /// A safetensors file, each tensor a field.
    pub safetensors: Option<PathBuf>,
    /// A file a field: `.npy`, else IDX.
    #[serde(default)]
    pub fields: BTreeMap<String, PathBuf>,
    /// A folder with a folder of images for each class: fields `x` and `y`.
    pub images: Option<ImagesSpec>,
}

/// A folder of images.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagesSpec {
    /// The folder; its sub-folders in name order are the classes.
    pub folder: PathBuf,
    /// 1 (luma) or 3 (RGB).
    pub channels: usize,
    /// Pixels.
    pub height: u32,
    /// Pixels.
    pub width: u32,
}

/// `(value * scale - mean[c]) / std[c]` as f32; c counts along axis 1, and one number serves all.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreprocessSpec {
    /// Factor.
    #[serde(default = "one")]
    pub scale: f64,
    /// Mean by channel, of scaled values.
    #[serde(default)]
    pub mean: Vec<f64>,
    /// Standard deviation by channel, of scaled values.
    #[serde(default)]
    pub std: Vec<f64>,
}

/// A network file and what feeds its inputs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// ONNX file.
    pub model: PathBuf,
    /// Source of each input: `data:FIELD`.
    pub inputs: BTreeMap<String, String>,
}

/// A teacher: a network file, or the student's own past.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherSpec {
    /// ONNX file.
    pub model: Option<PathBuf>,
    /// In place of a file: an average of the student, or the student as it was.
    pub follow: Option<Follow>,
    /// Share that the average keeps of itself in each update.
    #[serde(default = "decay")]
    pub decay: f64,
    /// Source of each input: `data:FIELD`; those of the student if not given.
    #[serde(default)]
    pub inputs: BTreeMap<String, String>,
}

/// How a teacher follows the student.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Follow {
    /// An exponential moving average of its weights.
    Ema,
    /// Its weights before training.
    Snapshot,
}

/// Another application of the student: a second view, or replayed rows.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplySpec {
    /// Source of each input: `data:FIELD`.
    pub inputs: BTreeMap<String, String>,
}

/// A trained 1x1 convolution (rank 4) or linear layer (rank 2 or 3, on the last axis) that is dropped afterwards.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectorSpec {
    /// Source of its input: `student:VALUE`.
    pub input: String,
    /// Channels of its output.
    pub channels: usize,
}

/// One term of the loss.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossSpec {
    /// Name of the objective.
    pub objective: String,
    /// Factor.
    #[serde(default = "one")]
    pub weight: f64,
    /// Source of each tap: `student:VALUE`, `teacher:VALUE`, `data:FIELD`, `projector:NAME`, or `NAME:VALUE` of an
    /// `[apply.NAME]`.
    pub taps: BTreeMap<String, String>,
    /// Parameters of the objective.
    #[serde(default)]
    pub params: BTreeMap<String, f64>,
}

/// Parameters with settings of their own. A name may end in `*`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSpec {
    /// Names of student parameters.
    pub parameters: Vec<String>,
    /// Factor on the learning rate.
    #[serde(default = "one")]
    pub lr_scale: f64,
    /// Weight decay of weights of rank 2 or more; that of `[train]` if not given.
    pub weight_decay: Option<f64>,
}

/// How to train.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSpec {
    /// Passes over the data.
    pub epochs: u64,
    /// Samples per run.
    pub batch: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Its course.
    #[serde(default = "cosine")]
    pub schedule: Schedule,
    /// `sgd` or `adamw`.
    #[serde(default = "adamw")]
    pub optimiser: String,
    /// Momentum of sgd.
    #[serde(default = "momentum")]
    pub momentum: f64,
    /// Weight decay of weights of rank 2 or more.
    #[serde(default)]
    pub weight_decay: f64,
    /// Largest gradient norm.
    pub clip_norm: Option<f64>,
    /// Runs per update.
    #[serde(default = "one_run")]
    pub accumulate: u64,
    /// Epochs without improvement on validation before stopping.
    pub patience: Option<u64>,
    /// Names of student parameters that stay as they are; a name may end in `*`.
    #[serde(default)]
    pub freeze: Vec<String>,
}

fn one() -> f64 {
    1.0
}
fn one_run() -> u64 {
    1
}
fn momentum() -> f64 {
    0.9
}
fn decay() -> f64 {
    0.99
}
fn cosine() -> Schedule {
    Schedule::Cosine { warmup: 0.1 }
}
fn adamw() -> String {
    "adamw".into()
}

/// Whether a name is meant by a pattern: the name itself, or what comes before its final `*`.
fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

impl Recipe {
    /// Reads a recipe file and checks its numbers.
    pub fn read(path: &Path) -> Result<Recipe, DistillError> {
        let error = |reason: String| DistillError::Recipe { file: path.display().to_string(), reason };
        let text = std::fs::read_to_string(path).map_err(|e| error(e.to_string()))?;
        let recipe: Recipe = toml::from_str(&text).map_err(|e| error(e.to_string()))?;
        recipe.check().map_err(error)?;
        Ok(recipe)
    }

    /// How the trainer is to go through the data.
    pub fn fit(&self) -> Fit {
        let t = &self.train;
        Fit { accumulate: t.accumulate, patience: t.patience, ..Fit::new(t.epochs, t.lr, t.schedule) }
    }

    /// Every number within its range, by key.
    fn check(&self) -> Result<(), String> {
        let t = &self.train;
        let share = |v: f64| (0.0..1.0).contains(&v);
        let positive = |v: f64| v > 0.0 && v.is_finite();
        let not_negative = |v: f64| v >= 0.0 && v.is_finite();
        let schedule = match t.schedule {
            Schedule::Constant => true,
            Schedule::Cosine { warmup: v } | Schedule::Triangle { peak: v } => share(v),
        };
        let mut checks = vec![
            ("train.epochs".to_owned(), t.epochs > 0, "at least 1"),
            ("train.batch".into(), t.batch > 0, "at least 1"),
            ("train.lr".into(), positive(t.lr), "above 0 and finite"),
            ("train.schedule".into(), schedule, "with a share of at least 0 and below 1"),
            ("train.momentum".into(), share(t.momentum), "at least 0 and below 1"),
            ("train.weight_decay".into(), not_negative(t.weight_decay), "at least 0 and finite"),
            ("train.clip_norm".into(), t.clip_norm.is_none_or(positive), "above 0 and finite"),
            ("train.accumulate".into(), t.accumulate > 0, "at least 1"),
            ("train.patience".into(), t.patience.is_none_or(|p| p > 0), "at least 1"),
            (
                "train.patience".into(),
                t.patience.is_none() || self.data.validation.is_some(),
                "left out where there is no data.validation",
            ),
            ("loss".into(), !self.loss.is_empty(), "at least one [[loss]]"),
        ];
        for (i, loss) in self.loss.iter().enumerate() {
            checks.push((format!("loss {i} ({}): weight", loss.objective), loss.weight.is_finite(), "finite"));
        }
        for (i, group) in self.group.iter().enumerate() {
            checks.push((format!("group {i}: lr_scale"), not_negative(group.lr_scale), "at least 0 and finite"));
            let decay = group.weight_decay.is_none_or(not_negative);
            checks.push((format!("group {i}: weight_decay"), decay, "at least 0 and finite"));
        }
        for (name, p) in &self.projector {
            checks.push((format!("projector.{name}.channels"), p.channels > 0, "at least 1"));
        }
        for (field, p) in &self.data.preprocess {
            let key = format!("data.preprocess.{field}");
            checks.push((format!("{key}.scale"), p.scale.is_finite(), "finite"));
            checks.push((format!("{key}.mean"), p.mean.iter().all(|v| v.is_finite()), "finite"));
            checks.push((format!("{key}.std"), p.std.iter().all(|&v| positive(v)), "above 0 and finite"));
        }
        if let Some(teacher) = &self.teacher {
            let either = teacher.model.is_some() != teacher.follow.is_some();
            checks.push(("teacher".into(), either, "given by 'model' or by 'follow', not by both or neither"));
            checks.push(("teacher.decay".into(), share(teacher.decay), "at least 0 and below 1"));
        }
        for name in self.apply.keys() {
            let free = !["student", "teacher", "data", "projector"].contains(&name.as_str());
            checks.push((format!("apply.{name}"), free, "called otherwise; that name means something else in a tap"));
        }
        match checks.into_iter().find(|(_, holds, _)| !holds) {
            Some((key, _, must)) => Err(format!("{key} must be {must}")),
            None => Ok(()),
        }
    }
}
