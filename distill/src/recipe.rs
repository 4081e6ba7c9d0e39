//! Recipes: a distillation described in TOML, run from the command or from code. Unknown keys are refused by name.
//!
//! ```toml
//! name = "digits-kd"
//! seed = 1
//!
//! [data]
//! train = "train.safetensors"        # or x = "x.npy" and y = "y.npy" through `fields`
//! validation = "validation.safetensors"
//!
//! [student]
//! model = "student.onnx"
//! inputs = { x = "data:x" }
//!
//! [teacher]
//! model = "teacher.onnx"
//! inputs = { x = "data:x" }
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
//! [train]
//! epochs = 10
//! batch = 32
//! lr = 0.01
//! ```

use crate::data::{Arrays, Dataset, read_npy, read_safetensors};
use crate::optim::{AdamW, Optimiser, Sgd};
use crate::step::{GradOptions, Group, Step, StepBuilder, build_step};
use crate::trainer::{Fit, Schedule};
use crate::{DistillError, Mode, Net, Outputs, objective};
use limbeck_graph::{Form, Graph, Var};
use limbeck_runtime::StateRole;
use limbeck_tensor::{DType, Tensor, TensorMap};
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
    pub teacher: Option<NetSpec>,
    /// Terms of the loss.
    pub loss: Vec<LossSpec>,
    /// How it is trained.
    pub train: TrainSpec,
}

/// Data files; paths are relative to the recipe.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// safetensors file whose tensors are fields.
    pub train: Option<PathBuf>,
    /// Fields from npy files of their own, by name.
    #[serde(default)]
    pub fields: BTreeMap<String, PathBuf>,
    /// safetensors file to validate on, with the same fields.
    pub validation: Option<PathBuf>,
    /// Factor on integer fields listed here, which become f32: `{ x = 0.00392156862745098 }`.
    #[serde(default)]
    pub scale: BTreeMap<String, f64>,
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

/// One term of the loss.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossSpec {
    /// Name of the objective.
    pub objective: String,
    /// Factor.
    #[serde(default = "one")]
    pub weight: f64,
    /// Source of each tap: `student:VALUE`, `teacher:VALUE` or `data:FIELD`.
    pub taps: BTreeMap<String, String>,
    /// Parameters of the objective.
    #[serde(default)]
    pub params: BTreeMap<String, f64>,
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
    /// Names of student parameters that stay as they are.
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
fn cosine() -> Schedule {
    Schedule::Cosine { warmup: 0.1 }
}
fn adamw() -> String {
    "adamw".into()
}

/// A recipe with its files read.
pub struct Loaded {
    /// The recipe.
    pub recipe: Recipe,
    /// The student.
    pub student: Net,
    /// The teacher, when there is one.
    pub teacher: Option<Net>,
    /// Training data.
    pub train: Arrays,
    /// Validation data, when there is some.
    pub validation: Option<Arrays>,
    file: String,
}

impl Recipe {
    /// Reads a recipe file.
    pub fn read(path: &Path) -> Result<Recipe, DistillError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|e| DistillError::Recipe { file: file.clone(), reason: e.to_string() })?;
        toml::from_str(&text).map_err(|e| DistillError::Recipe { file, reason: e.to_string() })
    }

    /// Reads the recipe and every file it names, relative to its folder.
    pub fn load(path: &Path) -> Result<Loaded, DistillError> {
        let recipe = Recipe::read(path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let file = path.display().to_string();
        let error = |reason: String| DistillError::Recipe { file: file.clone(), reason };
        let net = |spec: &NetSpec| Net::from_graph(Graph::read(folder.join(&spec.model))?);
        let mut tensors = match &recipe.data.train {
            Some(p) => read_safetensors(&folder.join(p))?.tensors().clone(),
            None => TensorMap::new(),
        };
        for (field, p) in &recipe.data.fields {
            tensors.insert(field.clone(), read_npy(&folder.join(p), None)?);
        }
        if tensors.is_empty() {
            return Err(error("[data] names neither 'train' nor any of 'fields'".into()));
        }
        let validation = recipe.data.validation.as_ref().map(|p| read_safetensors(&folder.join(p))).transpose()?;
        let scale = |tensors: &TensorMap| -> Result<Arrays, DistillError> {
            let mut out = tensors.clone();
            for (field, factor) in &recipe.data.scale {
                let tensor =
                    tensors.get(field).ok_or_else(|| error(format!("data.scale names '{field}', no such field")))?;
                let values = tensor.to_f64_vec()?.into_iter().map(|v| (v * factor) as f32).collect();
                out.insert(field.clone(), Tensor::new(tensor.shape().to_vec(), values)?);
            }
            Arrays::new(out)
        };
        Ok(Loaded {
            student: net(&recipe.student)?,
            teacher: recipe.teacher.as_ref().map(net).transpose()?,
            train: scale(&tensors)?,
            validation: validation.map(|v| scale(v.tensors())).transpose()?,
            recipe,
            file,
        })
    }
}

impl Loaded {
    fn error(&self, reason: impl Into<String>) -> DistillError {
        DistillError::Recipe { file: self.file.clone(), reason: reason.into() }
    }

    /// How the trainer is to go through the data.
    pub fn fit(&self) -> Fit {
        let t = &self.recipe.train;
        Fit { accumulate: t.accumulate, patience: t.patience, ..Fit::new(t.epochs, t.lr, t.schedule) }
    }

    /// Assembles the train step in an engine's form.
    pub fn step(&self, form: Form) -> Result<Step, DistillError> {
        let mut step = build_step(&self.recipe.name, DType::F32, |s| self.assemble(s))?;
        step.graph = step.graph.lowered(form)?;
        Ok(step)
    }

    fn assemble<'c>(&self, s: &StepBuilder<'c>) -> Result<(), DistillError> {
        let spec = &self.recipe.train;
        let mut fields: BTreeMap<String, Var<'c>> = BTreeMap::new();
        let one_row = self.train.batch(&[0])?;
        for (name, tensor) in &one_row {
            if self.uses(name) {
                let mut shape = tensor.shape().to_vec();
                shape[0] = spec.batch;
                fields.insert(name.clone(), s.batch(name, tensor.dtype(), &shape)?);
            }
        }
        let row_weight = s.batch("row_weight", DType::F32, &[spec.batch])?;
        let params = s.params("student", &self.student, StateRole::Parameter)?;
        let inputs = self.inputs(&self.student, &self.recipe.student, &fields)?;
        let student = self.student.apply(s.cx(), &inputs, &params, Mode::Training)?;
        s.update_buffers(&params, &student)?;
        let teacher = match (&self.teacher, &self.recipe.teacher) {
            (Some(net), Some(net_spec)) => {
                let frozen = s.frozen("teacher", net)?;
                let inputs = self.inputs(net, net_spec, &fields)?;
                Some(net.apply(s.cx(), &inputs, &frozen, Mode::Inference)?)
            }
            _ => None,
        };
        let mut total: Option<Var<'c>> = None;
        let mut terms = vec![];
        for (i, loss) in self.recipe.loss.iter().enumerate() {
            let taps: Vec<(&str, Var<'c>)> = loss
                .taps
                .iter()
                .map(|(tap, source)| Ok((tap.as_str(), self.source(source, &fields, &student, teacher.as_ref())?)))
                .collect::<Result<_, DistillError>>()?;
            let values: Vec<(&str, f64)> = loss.params.iter().map(|(k, v)| (k.as_str(), *v)).collect();
            let term = objective::find(&loss.objective)?.loss(s.cx(), &taps, &values, Some(row_weight))?;
            let weighted = term * loss.weight;
            total = Some(total.map_or(weighted, |t| t + weighted));
            terms.push((format!("{}_{i}", loss.objective), term));
        }
        let total = total.ok_or_else(|| self.error("there is no [[loss]]"))?;
        s.loss("loss", total);
        for (name, term) in terms {
            s.metric(&name, term);
        }
        if let Some(unknown) = spec.freeze.iter().find(|f| params.get(f).is_none()) {
            return Err(self.error(format!("train.freeze names '{unknown}', which is no parameter of the student")));
        }
        let trained = params.filter(|name| !spec.freeze.iter().any(|f| f == name));
        let group = Group { params: &trained, lr_scale: 1.0, weight_decay: spec.weight_decay };
        let sgd = Sgd { momentum: spec.momentum, nesterov: false };
        let optimiser: &dyn Optimiser = match spec.optimiser.as_str() {
            "sgd" => &sgd,
            "adamw" => &AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 },
            other => return Err(self.error(format!("train.optimiser '{other}' is unknown; there are sgd and adamw"))),
        };
        let options = GradOptions { clip_norm: spec.clip_norm, accumulate: spec.accumulate > 1 };
        s.minimise("", total, &[group], optimiser, options)
    }

    fn uses(&self, field: &str) -> bool {
        let wanted = format!("data:{field}");
        let nets = [Some(&self.recipe.student), self.recipe.teacher.as_ref()];
        nets.into_iter().flatten().flat_map(|n| n.inputs.values()).any(|s| *s == wanted)
            || self.recipe.loss.iter().flat_map(|l| l.taps.values()).any(|s| *s == wanted)
    }

    fn inputs<'c>(
        &self,
        net: &Net,
        spec: &NetSpec,
        fields: &BTreeMap<String, Var<'c>>,
    ) -> Result<Vec<Var<'c>>, DistillError> {
        let graph = net.graph();
        let names: Vec<&str> =
            graph.inputs.iter().filter(|&&i| graph.initializer(i).is_none()).map(|&i| graph.name_of(i)).collect();
        if let Some(unknown) = spec.inputs.keys().find(|k| !names.contains(&k.as_str())) {
            let model = spec.model.display();
            return Err(self.error(format!("{model} has no input '{unknown}'; it has {names:?}")));
        }
        names
            .iter()
            .map(|name| {
                let source = spec
                    .inputs
                    .get(*name)
                    .ok_or_else(|| self.error(format!("{} needs a source for '{name}'", spec.model.display())))?;
                self.field(source, fields)
            })
            .collect()
    }

    fn field<'c>(&self, source: &str, fields: &BTreeMap<String, Var<'c>>) -> Result<Var<'c>, DistillError> {
        source.strip_prefix("data:").and_then(|f| fields.get(f).copied()).ok_or_else(|| {
            let known: Vec<&String> = self.train.tensors().keys().collect();
            self.error(format!("'{source}' is not a field of the data; write data:FIELD with one of {known:?}"))
        })
    }

    fn source<'c>(
        &self,
        source: &str,
        fields: &BTreeMap<String, Var<'c>>,
        student: &Outputs<'c>,
        teacher: Option<&Outputs<'c>>,
    ) -> Result<Var<'c>, DistillError> {
        match (source.split_once(':'), teacher) {
            (Some(("student", name)), _) => student.get(name),
            (Some(("teacher", name)), Some(teacher)) => teacher.get(name),
            (Some(("teacher", _)), None) => Err(self.error(format!("'{source}' needs a [teacher] section"))),
            (Some(("data", _)), _) => self.field(source, fields),
            _ => Err(self.error(format!("'{source}': a tap is student:VALUE, teacher:VALUE or data:FIELD"))),
        }
    }
}
