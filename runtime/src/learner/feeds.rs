//! What is fed to a train step: new rows, their labels or the teacher's, old rows, numbers, noise.

use super::{Learner, LearnerOptions, TeacherKind, refuse};
use crate::session::check_size;
use crate::{Bundle, Replay, RuntimeError, StateStore, StepManifest, TensorEntry, ValueSpec, noise, rows};
use limbeck_tensor::{DType, Tensor};

/// A row of the window, `[1, ...]`.
pub(super) struct Observed {
    pub(super) x: Tensor,
    pub(super) label: Option<i64>,
}

const KNOWN: [&str; 6] = ["x", "y", "row_weight", "replay_x", "replay_y", "replay_logits"];

fn entry<'a>(manifest: &'a StepManifest, name: &str) -> Option<&'a TensorEntry> {
    manifest.batch.iter().find(|e| e.name == name)
}

fn extent(manifest: &StepManifest, name: &str) -> Option<usize> {
    entry(manifest, name).and_then(|e| e.shape.first().copied())
}

fn dtype(entry: &TensorEntry) -> Result<DType, RuntimeError> {
    use DType::{Bool, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
    let all = [F32, F64, F16, I64, I32, I16, I8, U8, U16, U32, U64, Bool];
    match all.into_iter().find(|d| d.name() == entry.dtype) {
        Some(dtype) => Ok(dtype),
        None => refuse(format!("the step's input `{}` is {}, which is not fed", entry.name, entry.dtype)),
    }
}

/// The step asks only for what a learner can feed, and its manifest lists just what its model takes.
pub(super) fn check(manifest: &StepManifest, inputs: &[ValueSpec]) -> Result<(), RuntimeError> {
    for e in &manifest.batch {
        if !KNOWN.contains(&e.name.as_str()) {
            return refuse(format!("the step asks for `{}`; a learner feeds {KNOWN:?}", e.name));
        }
        if e.shape.is_empty() {
            return refuse(format!("the step's input `{}` has no rows", e.name));
        }
    }
    let same = |names: [&str; 3]| {
        let extents: Vec<usize> = names.iter().filter_map(|name| extent(manifest, name)).collect();
        extents.windows(2).all(|pair| pair[0] == pair[1])
    };
    if extent(manifest, "x").is_none()
        || !same(["x", "y", "row_weight"])
        || !same(["replay_x", "replay_y", "replay_logits"])
    {
        return refuse("the step has no input `x`, or inputs for the same rows with other row counts");
    }
    let mut listed: Vec<(&str, Option<DType>, &[usize])> = vec![];
    for e in &manifest.batch {
        listed.push((&e.name, Some(dtype(e)?), &e.shape));
    }
    listed.extend(manifest.scalars.iter().map(|s| (s.name.as_str(), None, &[][..])));
    listed.extend(manifest.noise.iter().map(|e| (e.name.as_str(), Some(DType::F32), &e.shape[..])));
    for (i, (name, dtype, shape)) in listed.iter().enumerate() {
        let Some(input) = inputs.iter().find(|input| input.name == *name) else {
            return refuse(format!(
                "the step's manifest lists `{name}`, which its model does not take; export it again"
            ));
        };
        if !input.accepts(dtype.unwrap_or(input.dtype), shape) {
            let said = format!("{} {shape:?}", dtype.map_or("a number", |d| d.name()));
            return refuse(format!(
                "the step's manifest says that `{name}` is {said}, its model {input}; export it again"
            ));
        }
        if listed[..i].iter().any(|(other, ..)| other == name) {
            return refuse(format!("the step's manifest lists `{name}` twice; export it again"));
        }
        check_size(input)?;
    }
    match inputs.iter().find(|input| !listed.iter().any(|(name, ..)| *name == input.name)) {
        Some(input) => refuse(format!(
            "the step's model takes `{}`, which its manifest does not list; export it again",
            input.name
        )),
        None => Ok(()),
    }
}

/// Replay with the bundle's old rows, if the step or the options ask for one.
pub(super) fn seeded_replay(
    bundle: &Bundle,
    manifest: &StepManifest,
    options: &LearnerOptions,
) -> Result<Option<Replay>, RuntimeError> {
    let asked = manifest.batch.iter().any(|e| e.name.starts_with("replay_"));
    let Some(x) = entry(manifest, "x").filter(|_| asked || options.remember) else { return Ok(None) };
    let seed = bundle.replay()?;
    let classes = match &seed {
        Some(map) => map["logits"].shape().last().copied(),
        None => bundle.manifest().model.outputs.first().and_then(|o| o.shape.last().copied()),
    };
    let kind = (dtype(x)?, &x.shape[1..]);
    let mut replay =
        Replay::new(options.replay_bytes, options.replay_policy, options.seed, kind, classes.unwrap_or(0))?;
    if let Some(map) = seed {
        replay.add(&map["x"].aligned(), &map["y"].to_i64_vec()?, &map["logits"].aligned())?;
    }
    Ok(Some(replay))
}

impl Learner {
    /// Everything that the next step is fed.
    pub(super) fn feeds(&mut self) -> Result<Vec<(String, Tensor)>, RuntimeError> {
        if self.window.is_empty() {
            return refuse("nothing was observed since it began or was rolled back");
        }
        let picked = self.pick(extent(&self.manifest, "x").unwrap_or(0));
        let parts: Vec<Tensor> = picked.iter().map(|&i| self.window[i].x.clone()).collect();
        let x = rows::concat(&parts)?;
        let labels: Vec<Option<i64>> = picked.iter().map(|&i| self.window[i].label).collect();
        let (labels, weights) = self.labels(&x, &labels)?;
        let x = match &self.options.augment {
            Some(augment) => augment.apply(&x, &mut noise::stream(self.options.seed, self.position, "augment"))?,
            None => x,
        };
        let old = extent(&self.manifest, "replay_x")
            .or(extent(&self.manifest, "replay_y"))
            .or(extent(&self.manifest, "replay_logits"))
            .and_then(|r| self.replay.as_mut().map(|replay| replay.sample(r)))
            .transpose()?;
        let mut fed = vec![];
        for e in &self.manifest.batch {
            let tensor = match (e.name.as_str(), &old) {
                ("x", _) => x.clone(),
                ("y", _) => Tensor::new([labels.len()], labels.clone())?,
                ("row_weight", _) => Tensor::new([weights.len()], weights.clone())?,
                ("replay_x", Some(old)) => old.x.clone(),
                ("replay_y", Some(old)) => old.labels.clone(),
                ("replay_logits", Some(old)) => old.logits.clone(),
                (name, _) => return refuse(format!("there is nothing to feed to `{name}`")),
            };
            fed.push((e.name.clone(), tensor.cast(dtype(e)?)?));
        }
        for s in &self.manifest.scalars {
            let given = if s.name == "lr" { Some(self.options.lr) } else { self.options.scalars.get(&s.name).copied() };
            let float = (self.program.inputs().iter()).find(|i| i.name == s.name).map_or(DType::F32, |i| i.dtype);
            fed.push((s.name.clone(), Tensor::from_f64(float, [], &[given.unwrap_or(s.default)])?));
        }
        for e in &self.manifest.noise {
            fed.push((e.name.clone(), noise::draw(self.options.seed, self.position, e)?));
        }
        Ok(fed)
    }

    /// Places in the window of `n` new rows: the latest observation's in turn, then draws with replacement.
    fn pick(&self, n: usize) -> Vec<usize> {
        let held = self.window.len();
        let latest = self.latest.min(held);
        let first = self.options.latest_rows.unwrap_or(n.div_ceil(2)).min(n).min(latest);
        let turn = (self.position % latest.max(1) as u64) as usize * first;
        let mut stream = noise::stream(self.options.seed, self.position, "window");
        let newest = (0..first).map(|i| held - latest + (turn + i) % latest.max(1));
        newest.chain((first..n).map(|_| stream.below(held))).collect()
    }

    /// A label and a weight for every row; the teacher speaks where no label is known.
    fn labels(&self, x: &Tensor, known: &[Option<i64>]) -> Result<(Vec<i64>, Vec<f32>), RuntimeError> {
        if let Some(labels) = known.iter().copied().collect::<Option<Vec<i64>>>() {
            let weights = vec![1.0; labels.len()];
            return Ok((labels, weights));
        }
        let logits = self.logits(&self.teacher(), x)?;
        let (classes, sure) = (rows::classes(&logits)?, rows::confidences(&logits)?);
        let each = known.iter().zip(classes.iter().zip(&sure));
        Ok(each
            .map(|(label, (class, sure))| match label {
                Some(label) => (*label, 1.0),
                None => (*class, if *sure >= self.options.min_confidence { 1.0 } else { 0.0 }),
            })
            .unzip())
    }

    /// The teacher's weights under the names of the model's.
    fn teacher(&self) -> StateStore {
        if self.options.teacher == TeacherKind::Frozen {
            return self.shipped.snapshot();
        }
        let mut store = self.store.snapshot();
        for spec in self.serving.state() {
            if let Some(name) = spec.name.strip_prefix("student/") {
                store.share(&format!("ema/{name}"), spec.name.clone());
            }
        }
        store
    }
}
