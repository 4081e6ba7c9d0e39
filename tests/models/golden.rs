//! A golden network: its file with generated weights, the step whose update of each weight is the gradient, and what
//! torch says of both.

use crate::generated;
use limbeck::distill::optim::{Optimiser, Trained};
use limbeck::distill::{DistillError, GradOptions, Group, Mode, Net, Step, StepBuilder, build_step, form_for};
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
/// of a normalisation: it is measured against the largest instead.
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

    /// What torch says of each gradient.
    fn gradients(&self) -> BTreeMap<&str, &Value> {
        self.weights().iter().filter_map(|w| Some((text(&w["name"]), w.get("gradient")?))).collect()
    }

    /// The file with its weights beside it, as the exporter leaves them.
    fn net(&self) -> Net {
        let to = tempfile::tempdir().unwrap();
        let file = format!("{}.onnx", self.name);
        fs::copy(folder().join(&file), to.path().join(&file)).unwrap();
        let mut data = vec![];
        for w in self.weights() {
            let (scale, offset) = (w["scale"].as_f64().unwrap(), w["offset"].as_f64().unwrap());
            data.extend_from_slice(&generated::floats(text(&w["name"]), &extents(&w["shape"]), scale, offset).bytes());
        }
        fs::write(to.path().join(format!("{file}.data")), data).unwrap();
        let net = Net::from_graph(Graph::read(to.path().join(&file)).unwrap()).unwrap();
        let known = self.gradients();
        for name in known.keys() {
            assert!(net.parameters().iter().any(|p| p == name), "{}: {name} is no parameter", self.name);
        }
        // What else the net takes for a weight is a constant that the exporter made up, and is declared one.
        let made_up: Vec<String> =
            net.parameters().iter().filter(|p| !known.contains_key(p.as_str())).cloned().collect();
        let literal = |name: &str| net.graph().find(name).is_some_and(|id| net.graph().is_literal(id));
        let others: Vec<&str> = self.facts["others"].as_array().unwrap().iter().map(text).collect();
        let made_up: Vec<&str> = made_up.iter().map(String::as_str).collect();
        assert!(made_up.iter().all(|name| others.contains(name) || literal(name)), "{}: {made_up:?}", self.name);
        net.clone().with_constants(&made_up).unwrap()
    }

    fn feeds(&self) -> TensorMap {
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
        if self.facts["loss"]["kind"] == "squares" {
            return (y - cx.constant(generated::floats("target", &shape, 1.0, 0.0))).square().mean(&[]);
        }
        let (&classes, rows) = shape.split_last().unwrap();
        let labels = cx.constant(generated::integers("labels", rows, classes as u64));
        -(y.log_softmax(-1) * labels.one_hot(classes)).sum(&[-1]).mean(&[])
    }

    fn step(&self, net: &Net, feeds: &TensorMap) -> Result<Step, DistillError> {
        build_step(&self.name, DType::F32, |s| {
            let given: BTreeMap<&str, Var<'_>> = feeds
                .iter()
                .map(|(name, t)| Ok((name.as_str(), s.batch(name, t.dtype(), t.shape())?)))
                .collect::<Result<_, DistillError>>()?;
            let inputs: Vec<Var<'_>> = net.graph().inputs.iter().map(|&i| given[net.graph().name_of(i)]).collect();
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

    /// Builds the step and compares its results on every engine.
    pub(crate) fn check(&self) {
        let (net, mut feeds) = (self.net(), self.feeds());
        let step = self.step(&net, &feeds).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        feeds.insert("lr".into(), Tensor::scalar(0f32));
        for (k, noise) in step.manifest.noise.iter().enumerate() {
            feeds.insert(noise.name.clone(), generated::floats(&format!("noise {k}"), &noise.shape, 0.5, 0.5));
        }
        for engine in engines() {
            self.compare(&step, &feeds, engine);
        }
    }

    fn compare(&self, step: &Step, feeds: &TensorMap, engine: &dyn Engine) {
        let label = format!("{} on {}", self.name, engine.name());
        let bytes = step.graph.lowered(form_for(engine)).unwrap().to_bytes().unwrap();
        let options = CompileOptions { threads: 1, ..CompileOptions::default() };
        let program = engine.compile(&step.manifest.model(bytes), &options).unwrap_or_else(|e| panic!("{label}: {e}"));
        let mut store = engine.new_store();
        for (name, tensor) in &step.initial {
            store.insert(name, tensor).unwrap();
        }
        let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(name, t)| (name.as_str(), t)).collect();
        let results = program.run(&mut store, &feeds).unwrap_or_else(|e| panic!("{label}: {e}"));
        let numbers = |t: &Tensor| t.to_f64_vec().unwrap();
        assert_eq!(numbers(&results["finite"]), [1.0], "{label}");

        let loss = self.facts["loss"]["value"].as_f64().unwrap();
        let loss_error = (numbers(&results["loss"])[0] - loss).abs() / loss;
        let output_error = generated::error("output", &numbers(&results["y"]), &self.facts["output"], 0.0);
        assert_eq!(results["y"].shape(), extents(&self.facts["output"]["shape"]));
        let gradients = self.gradients();
        let norm = |known: &Value| known["norm"].as_f64().unwrap();
        let largest = gradients.values().map(|g| norm(g)).fold(0.0, f64::max);
        let mut errors = vec![(loss_error, "the loss"), (output_error, "the output")];
        for (name, known) in gradients {
            let found = store.get(&format!("net/{name}")).unwrap();
            let floor = if norm(known) < VANISHING * largest { largest } else { 0.0 };
            errors.push((generated::error(name, &numbers(&found), known, floor), name));
        }
        errors.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (worst, of) = errors[0];
        eprintln!("{label}: {} nodes, largest error {worst:.1e} of {of}", step.graph.node_count());
        assert!(worst <= TOLERANCE, "{label}: largest errors {:?}", &errors[..errors.len().min(8)]);
    }
}
