//! Scoring a student on a recipe's validation data while it is trained.

use super::Loaded;
use crate::data::{Arrays, Dataset, check_labels};
use crate::step::build_step;
use crate::{DistillError, Mode, accuracy};
use limbeck_graph::Form;
use limbeck_runtime::{CompileOptions, Engine, Program, StateStore};
use limbeck_tensor::{DType, Tensor};

/// A student's score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Mean of the recipe's total loss, with the running statistics of normalisation.
    pub loss: f64,
    /// Share of right answers, 0..=1, where a loss has logits and labels.
    pub accuracy: Option<f64>,
}

impl Score {
    /// What early stopping compares: accuracy, else the negative loss. Higher is better.
    pub fn value(&self) -> f64 {
        self.accuracy.unwrap_or(-self.loss)
    }
}

/// The recipe's losses without their gradients, compiled for the store of its trainer.
pub struct Evaluator<'l> {
    loaded: &'l Loaded,
    data: &'l Arrays,
    program: Box<dyn Program>,
    /// The field with labels, if a loss has logits and labels.
    labels: Option<String>,
}

const LOGITS: &str = "logits_of_labels";

impl Loaded {
    /// What scores students on the validation data; none without such data.
    pub fn evaluator(
        &self,
        engine: &dyn Engine,
        form: Form,
        options: &CompileOptions,
    ) -> Result<Option<Evaluator<'_>>, DistillError> {
        let Some(data) = &self.validation else { return Ok(None) };
        for (field, classes) in self.labels() {
            check_labels(&field, data.get(&field)?, classes)?;
        }
        let labelled = self.recipe.loss.iter().find_map(|l| {
            let (labels, logits) = (l.taps.get("labels")?, l.taps.get("student_logits")?);
            Some((labels.strip_prefix("data:")?.to_owned(), logits.strip_prefix("student:")?.to_owned()))
        });
        let mut step = build_step(&format!("{}, validation", self.recipe.name), DType::F32, |s| {
            let losses = self.losses(s, Mode::Inference)?;
            s.loss("loss", losses.total);
            if let Some((_, logits)) = &labelled {
                s.metric(LOGITS, losses.outputs.get(logits)?.identity());
            }
            Ok(())
        })?;
        step.graph = step.graph.lowered(form)?;
        let program = engine.compile(&step.model()?, options)?;
        Ok(Some(Evaluator { loaded: self, data, program, labels: labelled.map(|l| l.0) }))
    }
}

impl Evaluator<'_> {
    /// Scores the weights of a trainer's store.
    pub fn score(&self, store: &StateStore) -> Result<Score, DistillError> {
        let batch = self.loaded.recipe.train.batch;
        let total = self.data.len();
        // Programs may only change a store of their own; this one changes nothing.
        let mut store = store.snapshot();
        let (mut loss, mut hits) = (0.0, 0.0);
        for start in (0..total).step_by(batch) {
            let real = batch.min(total - start);
            let indices: Vec<usize> = (start..start + batch).map(|i| i.min(total - 1)).collect();
            let mut rows = self.data.batch(&indices)?;
            let weights = (0..batch).map(|i| if i < real { 1f32 } else { 0.0 }).collect();
            rows.insert("row_weight".into(), Tensor::new([batch], weights)?);
            let feeds: Vec<(&str, &Tensor)> = self
                .program
                .inputs()
                .iter()
                .filter_map(|i| rows.get_key_value(&i.name))
                .map(|(n, t)| (n.as_str(), t))
                .collect();
            let outputs = self.program.run(&mut store, &feeds)?;
            let number = outputs.get("loss").map(Tensor::to_f64_vec).transpose()?.and_then(|v| v.first().copied());
            loss += number.unwrap_or(f64::NAN) * real as f64;
            if let (Some(logits), Some(field)) = (outputs.get(LOGITS), &self.labels) {
                let labels = self.data.get(field)?.rows(start..start + real)?;
                hits += accuracy(&logits.rows(0..real)?, &labels)? * real as f64;
            }
        }
        let accuracy = self.labels.as_ref().map(|_| hits / total as f64);
        Ok(Score { loss: loss / total as f64, accuracy })
    }
}
