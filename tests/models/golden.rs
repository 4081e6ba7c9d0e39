//! A golden network: its file with generated weights, the step whose update of each weight is the gradient, and what
//! torch says of both.

use crate::generated;
use limbeck::distill::optim::{Optimiser, Trained};
use limbeck::distill::{DistillError, GradOptions, Group, Mode, Net, Step, StepBuilder, build_step, lowering_for};
use limbeck::graph::{Graph, Var};
use limbeck::runtime::{CompileOptions, Engine, StateRole, engines};
use limbeck::tensor::{DType, Tensor, TensorMap};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Largest difference of a gradient from torch's, as a share of its norm.
const TOLERANCE: f64 = 1e-4;

/// A gradient whose norm is a smaller share of the step's largest is zero but for rounding, such as that of a bias ahead
/// of a normalisation or of the keys of attention: it is measured against the largest instead.
const VANISHING: f64 = 1e-6;

pub(crate) struct Golden {
    name: String,
    facts: Value,
}

/// Makes the gradient the new value, so that the store holds it after a run.
struct Gradient;

impl Optimiser for Gradient {
    fn update<'c>(
        &self,
        _: &StepBuilder<'c>,
        params: &[Trained<'c, '_>],
        _: Var<'c>,
    ) -> Result<Vec<Var<'c>>, DistillError> {
        Ok(params.iter().map(|p| p.grad).collect())
    }
}

fn extents(v: &Value) -> Vec<usize> {
    v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
}

fn text(v: &Value) -> &str {
    v.as_str().unwrap()
}

fn numbers(t: &Tensor) -> Vec<f64> {
    t.to_f64_vec().unwrap()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models")
}

impl Golden {
    pub(crate) fn read(name: &str) -> Golden {
        let path = folder().join(format!("{name}.json"));
        let facts = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Golden { name: name.into(), facts: serde_json::from_str(&facts).unwrap() }
    }

    fn weights(&self) -> &[Value] {
        self.facts["weights"].as_array().unwrap()
    }

    /// What torch says of the gradient of each weight.
    fn gradients(&self) -> BTreeMap<&str, &Value> {
        self.weights().iter().filter_map(|w| Some((text(&w["name"]), w.get("gradient")?))).collect()
    }

    fn graph(&self, real: Option<&Path>) -> Graph {
        let to = tempfile::tempdir().unwrap();
        Graph::read(self.place(real, to.path())).unwrap()
    }

    /// The file, placed in the folder `to` with its weights beside it as the exporter leaves them: generated, or from a
    /// package of `real`. One that holds its weights stays where it is.
    pub(crate) fn place(&self, real: Option<&Path>, to: &Path) -> PathBuf {
        let file = format!("{}.onnx", self.name);
        let copy = |from: PathBuf| {
            let copied = to.join(from.file_name().unwrap());
            fs::copy(&from, &copied).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
            copied
        };
        let weights = real.map(|real| real.join(text(&self.facts["file"])));
        match weights {
            Some(path) if path.extension().is_some_and(|e| e == "onnx") => return path,
            Some(path) => _ = copy(path),
            None => fs::write(to.join(format!("{file}.data")), self.generated()).unwrap(),
        }
        copy(folder().join(&file))
    }

    /// The external file.
    fn generated(&self) -> Vec<u8> {
        let mut data = vec![];
        for w in self.weights() {
            let (scale, offset) = (w["scale"].as_f64().unwrap(), w["offset"].as_f64().unwrap());
            data.extend_from_slice(&generated::floats(text(&w["name"]), &extents(&w["shape"]), scale, offset).bytes());
        }
        data
    }

    /// The net, whose parameters are the weights that torch has a gradient of.
    pub(crate) fn net(&self, real: Option<&Path>) -> Net {
        let net = Net::from_graph(self.graph(real)).unwrap();
        let known = self.gradients();
        let missing: Vec<&&str> = known.keys().filter(|name| !net.parameters().iter().any(|p| p == **name)).collect();
        assert!(missing.is_empty(), "{}: no parameters: {missing:?}", self.name);
        // What else the net takes for a weight is a constant that the exporter made up, and is declared one.
        let others: Vec<&str> = self.facts["others"].as_array().unwrap().iter().map(text).collect();
        let more: Vec<String> = net.parameters().iter().filter(|p| !known.contains_key(p.as_str())).cloned().collect();
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let literal = |name: &str| net.graph().find(name).is_some_and(|id| net.graph().is_literal(id));
        assert!(more.iter().all(|name| others.contains(name) || literal(name)), "{}: {more:?}", self.name);
        net.with_constants(&more).unwrap()
    }

    pub(crate) fn batch(&self) -> TensorMap {
        let input = |i: &Value| {
            let (name, shape) = (text(&i["name"]), extents(&i["shape"]));
            let tensor = match (&i["kind"], &shape[..]) {
                (Value::Number(classes), _) => generated::integers(name, &shape, classes.as_u64().unwrap()),
                (Value::String(kind), &[rows, n]) if kind == "mask" => {
                    let kept = |i: usize| i64::from(i / n != 1 || i % n < n - n / 3);
                    Tensor::new(shape, (0..rows * n).map(kept).collect()).unwrap()
                }
                _ => generated::floats(name, &shape, 1.0, 0.0),
            };
            (name.to_owned(), tensor)
        };
        self.facts["inputs"].as_array().unwrap().iter().map(input).collect()
    }

    fn loss<'c>(&self, y: Var<'c>) -> Var<'c> {
        let (cx, shape) = (y.cx(), y.shape());
        let Some((&classes, rows)) = shape.split_last() else { return y };
        if self.facts["loss"]["kind"] == "squares" {
            return (y - cx.constant(generated::floats("target", &shape, 1.0, 0.0))).square().mean(&[]);
        }
        let labels = cx.constant(generated::integers("labels", rows, classes as u64));
        -(y.log_softmax(-1) * labels.one_hot(classes)).sum(&[-1]).mean(&[])
    }

    /// The step that makes each parameter its gradient, and reports the loss and the output `y`.
    pub(crate) fn step(&self, net: &Net) -> Result<Step, DistillError> {
        build_step(&self.name, DType::F32, |s| {
            let batch = self.batch();
            let declare = |&i| {
                let name = net.graph().name_of(i);
                s.batch(name, batch[name].dtype(), batch[name].shape())
            };
            let inputs: Vec<Var<'_>> = net.graph().inputs.iter().map(declare).collect::<Result<_, _>>()?;
            let params = s.params("net", net, StateRole::Parameter)?;
            let outputs = match text(&self.facts["mode"]) {
                "train" => s.apply(net, &inputs, &params, &params)?,
                _ => net.apply(s.cx(), &inputs, &params, Mode::Inference)?,
            };
            let y = outputs.first()?;
            let loss = self.loss(y);
            s.loss("loss", loss);
            s.metric("y", y);
            let group = Group { params: &params, lr_scale: 1.0, weight_decay: 0.0 };
            s.minimise("", loss, &[group], &Gradient, GradOptions::default())
        })
    }

    /// Everything that a run is fed.
    fn feeds(&self, step: &Step) -> TensorMap {
        let noise = step.manifest.noise.iter().enumerate();
        let noise = noise.map(|(k, n)| (n.name.clone(), generated::floats(&format!("noise {k}"), &n.shape, 0.5, 0.5)));
        self.batch().into_iter().chain([("lr".into(), Tensor::scalar(0f32))]).chain(noise).collect()
    }

    /// Compares the step's results with torch's on every engine.
    pub(crate) fn compare(&self, step: &Step) {
        for engine in engines() {
            self.compare_engine(step, engine);
        }
    }

    fn compare_engine(&self, step: &Step, engine: &dyn Engine) {
        let label = format!("{} on {}", self.name, engine.name());
        let lowered = step.graph.lowered(lowering_for(engine)).unwrap_or_else(|e| panic!("{label}: {e}"));
        let options = CompileOptions { threads: 1, ..CompileOptions::default() };
        let model = step.manifest.model(lowered.to_bytes().unwrap());
        let program = engine.compile(&model, &options).unwrap_or_else(|e| panic!("{label}: {e}"));
        let mut store = engine.new_store();
        for (name, tensor) in &step.initial {
            store.insert(name, tensor).unwrap();
        }
        let feeds = self.feeds(step);
        let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(name, t)| (name.as_str(), t)).collect();
        let results = program.run(&mut store, &feeds).unwrap_or_else(|e| panic!("{label}: {e}"));
        self.judge(&label, &results, |name| Some(numbers(&store.get(name).ok()?)));
    }

    /// Compares the results of the reference evaluator.
    pub(crate) fn compare_reference(&self, step: &Step) {
        let feeds = self.feeds(step).into_iter().chain(step.initial.clone()).collect();
        let results = step.graph.evaluate(&feeds).unwrap();
        self.judge(&format!("{} evaluated", self.name), &results, |name| {
            Some(numbers(results.get(&format!("{name}.next"))?))
        });
    }

    fn judge(&self, label: &str, results: &TensorMap, gradient: impl Fn(&str) -> Option<Vec<f64>>) {
        assert_eq!(numbers(&results["finite"]), [1.0], "{label}");
        assert_eq!(results["y"].shape(), extents(&self.facts["output"]["shape"]), "{label}");
        let loss = self.facts["loss"]["value"].as_f64().unwrap();
        let gradients = self.gradients();
        let norm = |known: &Value| known["norm"].as_f64().unwrap();
        let largest = gradients.values().map(|g| norm(g)).fold(0.0, f64::max);
        let mut errors = vec![
            ((numbers(&results["loss"])[0] - loss).abs() / loss, "the loss"),
            (generated::error("output", &numbers(&results["y"]), &self.facts["output"], 0.0), "the output"),
        ];
        for (name, known) in gradients {
            let floor = if norm(known) < VANISHING * largest { largest } else { 0.0 };
            let found = gradient(&format!("net/{name}")).unwrap_or_else(|| panic!("{label}: no gradient of {name}"));
            errors.push((generated::error(name, &found, known, floor), name));
        }
        errors.sort_by(|a, b| b.0.total_cmp(&a.0));
        eprintln!("{label}: {} weights, largest error {:.1e} of {}", errors.len() - 2, errors[0].0, errors[0].1);
        assert!(errors[0].0 <= TOLERANCE, "{label}: largest errors {:?}", &errors[..errors.len().min(8)]);
    }
}
