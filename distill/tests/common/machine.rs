//! What runs train steps in tests: the reference evaluator and every engine, with a store.

use limbeck_distill::Step;
use limbeck_graph::{Form, Graph};
use limbeck_runtime::{CompileOptions, Engine, Model, Program, StateStore};
use limbeck_tensor::{DType, Tensor, TensorMap};
use serde_json::Value;

/// What runs steps: the reference evaluator or an engine, with one store for all steps.
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) float: DType,
    tolerance: f64,
    engine: Option<(&'static dyn Engine, StateStore)>,
    values: TensorMap,
}

/// A step made ready.
pub(crate) struct Loaded {
    step: Step,
    program: Option<Box<dyn Program>>,
}

/// The reference in float64 and float32, and every engine; float32 agrees with torch's float64 within 1e-5.
pub(crate) fn machines() -> Vec<Machine> {
    machines_within(1e-5)
}

/// The same with another tolerance in float32.
pub(crate) fn machines_within(single: f64) -> Vec<Machine> {
    let reference = |float: DType, tolerance| Machine {
        name: format!("reference {float}"),
        float,
        tolerance,
        engine: None,
        values: TensorMap::new(),
    };
    let mut all = vec![reference(DType::F64, 1e-9), reference(DType::F32, single)];
    all.extend(limbeck_runtime::engines().into_iter().map(|e| Machine {
        name: e.name().into(),
        engine: Some((e, e.new_store())),
        ..reference(DType::F32, single)
    }));
    all
}

impl Machine {
    /// Compiles a step and puts state that no earlier step brought into the store.
    pub(crate) fn load(&mut self, step: Step) -> Loaded {
        let program = match &mut self.engine {
            None => {
                for (name, value) in &step.initial {
                    self.values.entry(name.clone()).or_insert_with(|| value.clone());
                }
                None
            }
            Some((engine, store)) => {
                for (name, value) in &step.initial {
                    if !store.contains(name) {
                        store.insert(name, value).unwrap();
                    }
                }
                let bytes = step.graph.lowered(Form::Portable).and_then(|g| g.to_bytes()).unwrap();
                let options = CompileOptions { threads: 1, ..CompileOptions::default() };
                Some(
                    engine
                        .compile(&step.manifest.model(bytes), &options)
                        .unwrap_or_else(|e| panic!("{}: {e}", self.name)),
                )
            }
        };
        Loaded { step, program }
    }

    /// Runs once at this learning rate; the first reported loss.
    pub(crate) fn run(&mut self, loaded: &Loaded, mut feeds: TensorMap, lr: f64) -> f64 {
        feeds.insert("lr".into(), Tensor::from_f64(self.float, [], &[lr]).unwrap());
        let manifest = &loaded.step.manifest;
        let out = match (&mut self.engine, &loaded.program) {
            (Some((_, store)), Some(program)) => {
                let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(k, v)| (k.as_str(), v)).collect();
                program.run(store, &feeds).unwrap_or_else(|e| panic!("{}: {e}", self.name))
            }
            _ => {
                feeds.extend(manifest.state.iter().map(|s| (s.name.clone(), self.values[&s.name].clone())));
                let mut out = loaded.step.graph.evaluate(&feeds).unwrap_or_else(|e| panic!("{}: {e}", self.name));
                for s in manifest.state.iter().filter(|s| !s.output.is_empty()) {
                    self.values.insert(s.name.clone(), out.remove(&s.output).unwrap());
                }
                out
            }
        };
        out[&manifest.losses[0]].to_f64_vec().unwrap()[0]
    }

    /// Outputs of a graph without state.
    pub(crate) fn infer(&self, graph: &Graph, feeds: &TensorMap) -> TensorMap {
        let Some((engine, _)) = &self.engine else { return graph.evaluate(feeds).unwrap() };
        let bytes = graph.lowered(Form::Portable).and_then(|g| g.to_bytes()).unwrap();
        let options = CompileOptions { threads: 1, ..CompileOptions::default() };
        let program = engine.compile(&Model::new(bytes), &options).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(k, v)| (k.as_str(), v)).collect();
        program.infer(&feeds).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// A value of the store.
    pub(crate) fn get(&self, name: &str) -> Tensor {
        self.engine.as_ref().map_or_else(|| self.values[name].clone(), |(_, store)| store.get(name).unwrap())
    }

    /// Compares with numbers of torch, relative to the largest.
    pub(crate) fn check(&self, what: &str, found: &[f64], reference: &Value) {
        let reference = super::numbers(&reference["data"]);
        let e = super::relative_error(found, &reference, 0.0);
        assert!(e <= self.tolerance, "{}: {what}: {found:?} instead of {reference:?}, error {e:e}", self.name);
    }

    /// Compares the store's `set/...` with a set of final weights.
    pub(crate) fn check_set(&self, set: &str, reference: &Value) {
        for (name, v) in reference.as_object().unwrap() {
            let name = format!("{set}/{name}");
            self.check(&name, &self.get(&name).to_f64_vec().unwrap(), v);
        }
    }
}
