//! From a recipe to its train step: nets, taps, losses, parameter groups.

use super::{Follow, Loaded, matches};
use crate::models::Layers;
use crate::optim::{AdamW, Optimiser, Sgd};
use crate::step::{GradOptions, Group, Step, StepBuilder, build_step};
use crate::{DistillError, Mode, Net, Outputs, ParamSet, objective};
use limbeck_graph::{Graph, Lowering, Var};
use limbeck_runtime::StateRole;
use limbeck_tensor::DType;
use std::collections::BTreeMap;

/// Name and value of a loss.
type Term<'c> = (String, Var<'c>);

/// The forward half of a step: sources of taps, and the losses on them.
pub(super) struct Losses<'c> {
    /// The weighted sum.
    pub(super) total: Var<'c>,
    /// Each term, unweighted.
    pub(super) terms: Vec<Term<'c>>,
    student: ParamSet<'c>,
    /// Of the student's main application.
    pub(super) outputs: Outputs<'c>,
    average: Option<ParamSet<'c>>,
    projectors: Vec<ParamSet<'c>>,
}

/// What taps may refer to.
struct Sources<'c> {
    fields: BTreeMap<String, Var<'c>>,
    nets: BTreeMap<String, Outputs<'c>>,
    projected: BTreeMap<String, Var<'c>>,
}

impl Loaded {
    /// Assembles the train step in an engine's form, or lowered as is said.
    ///
    /// # Errors
    /// A source, tap, parameter or name that does not exist; shapes that do not fit; an op without gradient.
    pub fn step(&self, how: impl Into<Lowering>) -> Result<Step, DistillError> {
        let mut step = build_step(&self.recipe.name, DType::F32, |s| self.assemble(s))?;
        step.labels = self.labels();
        step.lowered(how)
    }

    fn assemble(&self, s: &StepBuilder<'_>) -> Result<(), DistillError> {
        let spec = &self.recipe.train;
        let losses = self.losses(s, Mode::Training)?;
        s.loss("loss", losses.total);
        for (name, term) in &losses.terms {
            s.metric(name, *term);
        }
        let sets = self.groups(&losses)?;
        let groups: Vec<Group<'_, '_>> = sets
            .iter()
            .map(|(params, lr_scale, weight_decay)| Group { params, lr_scale: *lr_scale, weight_decay: *weight_decay })
            .collect();
        let sgd = Sgd { momentum: spec.momentum, nesterov: false };
        let optimiser: &dyn Optimiser = match spec.optimiser.as_str() {
            "sgd" => &sgd,
            "adamw" => &AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 },
            other => return Err(self.error(format!("train.optimiser '{other}' is unknown; there are sgd and adamw"))),
        };
        let options = GradOptions { clip_norm: spec.clip_norm, accumulate: spec.accumulate > 1 };
        s.minimise("", losses.total, &groups, optimiser, options)?;
        match (&losses.average, &self.recipe.teacher) {
            (Some(average), Some(teacher)) => {
                s.average(average, &losses.student, s.scalar("average_decay", teacher.decay)?)
            }
            _ => Ok(()),
        }
    }

    /// Fields that a loss takes for class labels, with the number of classes: the last extent of what it compares them
    /// with.
    pub(super) fn labels(&self) -> BTreeMap<String, usize> {
        let mut labels = BTreeMap::new();
        for loss in &self.recipe.loss {
            let Ok(objective) = objective::find(&loss.objective) else { continue };
            for tap in objective.taps.iter().filter(|t| t.name.ends_with("labels")) {
                let logits = tap.name.replace("labels", "logits");
                let logits = loss.taps.get(&logits).or_else(|| loss.taps.get("student_logits"));
                let field = loss.taps.get(tap.name).and_then(|s| s.strip_prefix("data:"));
                if let (Some(field), Some(classes)) = (field, logits.and_then(|l| self.classes(l))) {
                    labels.insert(field.to_owned(), classes);
                }
            }
        }
        labels
    }

    /// The last extent of a source.
    fn classes(&self, source: &str) -> Option<usize> {
        let (net, value) = source.split_once(':')?;
        let graph = match net {
            "data" => return self.train.tensors().get(value)?.shape().last().copied(),
            "teacher" => self.teacher.as_ref().unwrap_or(&self.student).graph(),
            _ => self.student.graph(),
        };
        graph.ty(graph.find(value)?)?.dims.as_ref()?.last()?.known()
    }

    /// The parameter groups: those of the recipe, the other student parameters, the projectors. What is frozen is in none.
    fn groups<'c>(&self, losses: &Losses<'c>) -> Result<Vec<(ParamSet<'c>, f64, f64)>, DistillError> {
        let spec = &self.recipe.train;
        let names = self.student.parameters();
        let known = |key: &str, pattern: &String| match names.iter().any(|n| matches(pattern, n)) {
            true => Ok(()),
            false => Err(self.error(format!("{key} names '{pattern}', but no parameter of the student is called so"))),
        };
        spec.freeze.iter().try_for_each(|pattern| known("train.freeze", pattern))?;
        let group_of =
            |name: &str| self.recipe.group.iter().position(|g| g.parameters.iter().any(|p| matches(p, name)));
        let mut groups = vec![];
        for (i, group) in self.recipe.group.iter().enumerate() {
            group.parameters.iter().try_for_each(|pattern| known("group.parameters", pattern))?;
            let members = losses.student.filter(|n| !self.is_frozen(n) && group_of(n) == Some(i));
            groups.push((members, group.lr_scale, group.weight_decay.unwrap_or(spec.weight_decay)));
        }
        groups.push((losses.student.filter(|n| !self.is_frozen(n) && group_of(n).is_none()), 1.0, spec.weight_decay));
        groups.extend(losses.projectors.iter().map(|p| (p.clone(), 1.0, spec.weight_decay)));
        Ok(groups)
    }

    fn is_frozen(&self, parameter: &str) -> bool {
        self.recipe.train.freeze.iter().any(|pattern| matches(pattern, parameter))
    }

    /// Declares inputs and state, applies the nets, and builds the losses.
    pub(super) fn losses<'c>(&self, s: &StepBuilder<'c>, mode: Mode) -> Result<Losses<'c>, DistillError> {
        let recipe = &self.recipe;
        let row_weight = s.batch("row_weight", DType::F32, &[recipe.train.batch])?;
        let student = s.params("student", &self.student, StateRole::Parameter)?;
        let mut sources = Sources { fields: self.fields(s)?, nets: BTreeMap::new(), projected: BTreeMap::new() };
        let model = recipe.student.model.display().to_string();
        let inputs = self.inputs(&model, self.student.graph(), &recipe.student.inputs, &sources.fields)?;
        let trained = student.filter(|name| !self.is_frozen(name));
        let apply = |net: &Net, inputs: &[Var<'c>], params: &ParamSet<'c>, trained: &ParamSet<'c>| match mode {
            Mode::Training => s.apply(net, inputs, params, trained),
            Mode::Inference => net.apply(s.cx(), inputs, params, mode),
        };
        sources.nets.insert("student".into(), apply(&self.student, &inputs, &student, &trained)?);
        for (name, spec) in &recipe.apply {
            let inputs = self.inputs(&format!("apply.{name}"), self.student.graph(), &spec.inputs, &sources.fields)?;
            sources.nets.insert(name.clone(), apply(&self.student, &inputs, &student, &trained)?);
        }
        let average = self.teacher(s, &mut sources)?;
        let projectors = self.projectors(s, &mut sources)?;
        let (total, terms) = self.terms(s, &sources, row_weight)?;
        let outputs = sources.nets.remove("student").ok_or_else(|| self.error("there is no student"))?;
        Ok(Losses { total, terms, student, outputs, average, projectors })
    }

    /// A batch input for each field that something uses.
    fn fields<'c>(&self, s: &StepBuilder<'c>) -> Result<BTreeMap<String, Var<'c>>, DistillError> {
        let mut fields = BTreeMap::new();
        for (name, tensor) in self.train.tensors() {
            if self.uses(name) {
                let mut shape = tensor.shape().to_vec();
                shape[0] = self.recipe.train.batch;
                fields.insert(name.clone(), s.batch(name, tensor.dtype(), &shape)?);
            }
        }
        Ok(fields)
    }

    fn uses(&self, field: &str) -> bool {
        let recipe = &self.recipe;
        let inputs = std::iter::once(&recipe.student.inputs)
            .chain(recipe.teacher.as_ref().map(|t| &t.inputs))
            .chain(recipe.apply.values().map(|a| &a.inputs));
        let taps = recipe.loss.iter().map(|l| &l.taps);
        inputs.chain(taps).flat_map(BTreeMap::values).any(|s| s.strip_prefix("data:") == Some(field))
    }

    /// Applies the teacher, if there is one; the set of its weights if they follow the student.
    fn teacher<'c>(
        &self,
        s: &StepBuilder<'c>,
        sources: &mut Sources<'c>,
    ) -> Result<Option<ParamSet<'c>>, DistillError> {
        let Some(spec) = &self.recipe.teacher else { return Ok(None) };
        let net = self.teacher.as_ref().unwrap_or(&self.student);
        let follows = spec.follow == Some(Follow::Ema);
        let params = if follows { s.params("teacher", net, StateRole::Average)? } else { s.frozen("teacher", net)? };
        let feeds = if spec.inputs.is_empty() { &self.recipe.student.inputs } else { &spec.inputs };
        let inputs = self.inputs("teacher", net.graph(), feeds, &sources.fields)?;
        sources.nets.insert("teacher".into(), net.apply(s.cx(), &inputs, &params, Mode::Inference)?);
        Ok(follows.then_some(params))
    }

    fn projectors<'c>(
        &self,
        s: &StepBuilder<'c>,
        sources: &mut Sources<'c>,
    ) -> Result<Vec<ParamSet<'c>>, DistillError> {
        let mut sets = vec![];
        for (name, spec) in &self.recipe.projector {
            let input = self.source(&spec.input, sources)?;
            let net = projector(input, spec.channels, self.recipe.seed)
                .map_err(|e| self.error(format!("projector.{name}: {e}")))?;
            let params = s.params(&format!("projector.{name}"), &net, StateRole::Parameter)?;
            sources.projected.insert(name.clone(), net.apply(s.cx(), &[input], &params, Mode::Inference)?.first()?);
            sets.push(params);
        }
        Ok(sets)
    }

    /// The weighted sum of the losses, and each of them.
    fn terms<'c>(
        &self,
        s: &StepBuilder<'c>,
        sources: &Sources<'c>,
        row_weight: Var<'c>,
    ) -> Result<(Var<'c>, Vec<Term<'c>>), DistillError> {
        let mut total: Option<Var<'c>> = None;
        let mut terms = vec![];
        for (i, loss) in self.recipe.loss.iter().enumerate() {
            let taps: Vec<(&str, Var<'c>)> = loss
                .taps
                .iter()
                .map(|(tap, source)| Ok((tap.as_str(), self.source(source, sources)?)))
                .collect::<Result<_, DistillError>>()?;
            let values: Vec<(&str, f64)> = loss.params.iter().map(|(k, v)| (k.as_str(), *v)).collect();
            let term = objective::find(&loss.objective)?.loss(s.cx(), &taps, &values, Some(row_weight))?;
            let weighted = term * loss.weight;
            total = Some(total.map_or(weighted, |t| t + weighted));
            terms.push((format!("{}_{i}", loss.objective), term));
        }
        Ok((total.ok_or_else(|| self.error("there is no [[loss]]"))?, terms))
    }

    fn inputs<'c>(
        &self,
        net: &str,
        graph: &Graph,
        feeds: &BTreeMap<String, String>,
        fields: &BTreeMap<String, Var<'c>>,
    ) -> Result<Vec<Var<'c>>, DistillError> {
        let names: Vec<&str> =
            graph.inputs.iter().filter(|&&i| graph.initializer(i).is_none()).map(|&i| graph.name_of(i)).collect();
        if let Some(unknown) = feeds.keys().find(|k| !names.contains(&k.as_str())) {
            return Err(self.error(format!("{net} has no input '{unknown}'; it has {names:?}")));
        }
        let field_of = |name: &&str| {
            let source = feeds.get(*name).ok_or_else(|| self.error(format!("{net} needs a source for '{name}'")))?;
            self.field(source, fields)
        };
        names.iter().map(field_of).collect()
    }

    fn field<'c>(&self, source: &str, fields: &BTreeMap<String, Var<'c>>) -> Result<Var<'c>, DistillError> {
        source.strip_prefix("data:").and_then(|f| fields.get(f).copied()).ok_or_else(|| {
            let known: Vec<&String> = self.train.tensors().keys().collect();
            self.error(format!("'{source}' is not a field of the data; write data:FIELD with one of {known:?}"))
        })
    }

    fn source<'c>(&self, source: &str, sources: &Sources<'c>) -> Result<Var<'c>, DistillError> {
        let form =
            "a source is student:VALUE, teacher:VALUE, data:FIELD, projector:NAME or NAME:VALUE of an [apply.NAME]";
        let Some((net, name)) = source.split_once(':') else {
            return Err(self.error(format!("'{source}': {form}")));
        };
        match net {
            "data" => self.field(source, &sources.fields),
            "projector" => sources.projected.get(name).copied().ok_or_else(|| {
                let known: Vec<&String> = self.recipe.projector.keys().collect();
                self.error(format!("'{source}': there is no such projector; there are {known:?}"))
            }),
            _ => match sources.nets.get(net) {
                Some(outputs) => outputs.get(name),
                None if net == "teacher" => Err(self.error(format!("'{source}' needs a [teacher] section"))),
                None => Err(self.error(format!("'{source}': {form}"))),
            },
        }
    }
}

/// A trained layer from the channels of `input` to others: a 1x1 convolution of `[batch, channels, height, width]`, a
/// linear layer on the last axis of `[batch, width]` or `[batch, length, width]`.
fn projector(input: Var<'_>, channels: usize, seed: u64) -> Result<Net, DistillError> {
    let shape = input.shape();
    let net = Net::build("projector", |cx| {
        let l = Layers::new(cx, seed);
        let x = l.input("x", shape.get(1..).unwrap_or_default());
        let deviation = |fan_in: usize| (1.0 / fan_in.max(1) as f64).sqrt();
        let y = match shape[..] {
            [_, from, _, _] => {
                l.conv("projector", x, (from, channels), 1, 1) + l.constant("projector.bias", &[1, channels, 1, 1], 0.0)
            }
            [_, from] | [_, _, from] => l.dense("projector", x, (from, channels), deviation(from)),
            _ => {
                let reason = format!("its input has the shape {shape:?}; rank 2, 3 or 4 is needed");
                return Err(DistillError::Net { reason });
            }
        };
        cx.output("projected", y);
        Ok(())
    })?;
    Ok(net.training_only())
}
