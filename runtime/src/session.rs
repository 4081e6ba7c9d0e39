//! Inference on a student: fixed batches with padding, warm-up, state of streaming models, weights that are swapped
//! while requests run.

use crate::{CompileOptions, Engine, Model, Program, RuntimeError, StateStore, ValueSpec, rows, store::StateValue};
use limbeck_tensor::{Tensor, element_count, io::TensorMap};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Bytes of the largest tensor that is made because a file declares it: a batch to fill up, zeros to warm up, noise.
pub(crate) const LARGEST_TENSOR: usize = 1 << 30;

/// Rows per run for a model that takes any batch.
const ROWS_PER_RUN: usize = 64;

/// A program together with the weights that it serves with.
struct Serving {
    program: Arc<dyn Program>,
    store: StateStore,
}

/// Inference on a student. Several threads may call it at once.
///
/// Weights are the model's read-only state, so that they can be replaced; a request runs to its end with the weights
/// it began with. State that the model itself updates (a stream's memory) is kept between calls, and such calls run
/// one after another.
pub struct Session {
    serving: RwLock<Arc<Serving>>,
    /// What the model remembers. Whoever changes what serves holds this too, so that memory and program belong together.
    stream: Mutex<Vec<(String, Arc<dyn StateValue>)>>,
}

impl Session {
    /// Compiles a model and puts its state, weights and all, into the engine's memory. `state` may hold more than the
    /// model asks for.
    ///
    /// # Errors
    /// What [`Engine::compile`] refuses; as [`Session::with`].
    pub fn new(
        engine: &dyn Engine,
        model: &Model,
        state: &TensorMap,
        options: &CompileOptions,
    ) -> Result<Session, RuntimeError> {
        let program: Arc<dyn Program> = engine.compile(model, options)?.into();
        let mut store = engine.new_store();
        for spec in program.state() {
            if let Some(tensor) = state.get(&spec.name) {
                store.insert(spec.name.clone(), &tensor.aligned())?;
            }
        }
        Session::with(program, store)
    }

    /// A session over a compiled program and a store that holds its state.
    ///
    /// # Errors
    /// State that is missing or of another type or shape; an input that declares more than 1 GiB.
    pub fn with(program: Arc<dyn Program>, store: StateStore) -> Result<Session, RuntimeError> {
        program.inputs().iter().try_for_each(check_size)?;
        check_state(&*program, &store)?;
        let serving = RwLock::new(Arc::new(Serving { program, store }));
        Ok(Session { serving, stream: Mutex::default() })
    }

    /// The program that serves now.
    pub fn program(&self) -> Arc<dyn Program> {
        self.now().program.clone()
    }

    /// The weights that serve now, as a snapshot.
    pub fn store(&self) -> StateStore {
        self.now().store.snapshot()
    }

    /// What is to be fed.
    pub fn inputs(&self) -> Vec<ValueSpec> {
        self.now().program.inputs().to_vec()
    }

    /// What comes back.
    pub fn outputs(&self) -> Vec<ValueSpec> {
        self.now().program.outputs().to_vec()
    }

    /// Runs once, with feeds of exactly the shapes that the model takes.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn run(&self, feeds: &[(&str, &Tensor)]) -> Result<TensorMap, RuntimeError> {
        let serving = self.now();
        if !serving.program.state().iter().any(|s| s.updated) {
            return serving.program.run(&mut serving.store.snapshot(), feeds);
        }
        let mut stream = self.stream();
        // What serves now may be another program than before the lock was held, with the memory in its form.
        let serving = self.now();
        let mut store = serving.store.snapshot();
        store.commit(stream.clone());
        let outputs = serving.program.run(&mut store, feeds)?;
        *stream = memory(&*serving.program, &store);
        Ok(outputs)
    }

    /// Runs over any number of rows, in the model's fixed batch: `[rows, ...]` in, `[rows, ...]` out. The last batch is
    /// filled up with copies of the last row, whose results are cut off.
    ///
    /// # Errors
    /// As [`Program::run`]; no feed, no row, feeds with different row counts, an output that does not follow the batch,
    /// a model with a stream's memory (padding would enter it).
    pub fn predict(&self, feeds: &[(&str, &Tensor)]) -> Result<TensorMap, RuntimeError> {
        let serving = self.now();
        predict(&*serving.program, &serving.store, feeds)
    }

    /// Runs once on zeros, so that the first request does not pay for first-time work. Changes no state.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn warm_up(&self) -> Result<(), RuntimeError> {
        let serving = self.now();
        let zeros = (serving.program.inputs().iter())
            .map(|spec| {
                let shape: Vec<usize> = spec.dims.iter().map(|d| d.unwrap_or(1)).collect();
                Ok((spec.name.as_str(), Tensor::zeros(spec.dtype, shape)?))
            })
            .collect::<Result<Vec<_>, RuntimeError>>()?;
        let feeds: Vec<(&str, &Tensor)> = zeros.iter().map(|(name, tensor)| (*name, tensor)).collect();
        serving.program.run(&mut serving.store.snapshot(), &feeds).map(|_| ())
    }

    /// Forgets a streaming model's memory: the next call starts as the first did.
    pub fn reset(&self) {
        self.stream().clear();
    }

    /// Serves with the model's values in `store` from now on. Copies no tensor; requests that run keep the old ones.
    ///
    /// # Errors
    /// State that is missing, of another type or shape, or in another engine's memory. The session is then unchanged.
    pub fn adopt(&self, store: &StateStore) -> Result<(), RuntimeError> {
        let _unchanged = self.stream();
        let program = self.program();
        check_state(&*program, store)?;
        self.replace(Serving { program, store: store.snapshot() });
        Ok(())
    }

    /// Serves with another program, such as one compiled for other threads or by another engine, from now on. What a
    /// streaming model remembers goes with it.
    ///
    /// # Errors
    /// A program whose inputs, outputs or memory are others, and as [`Session::adopt`]. The session is then unchanged.
    pub fn swap(&self, program: Arc<dyn Program>, store: StateStore) -> Result<(), RuntimeError> {
        let mut stream = self.stream();
        let now = self.program();
        let names = |p: &dyn Program| -> BTreeSet<String> {
            p.state().iter().filter(|s| s.updated).map(|s| s.name.clone()).collect()
        };
        let other = match () {
            () if program.inputs() != now.inputs() => "inputs",
            () if program.outputs() != now.outputs() => "outputs",
            () if names(&*program) != names(&*now) => "memory",
            () => "",
        };
        if !other.is_empty() {
            let reason = format!("has other {other} than the one it is to replace; open a new session");
            return Err(RuntimeError::Data { what: "the program".into(), reason });
        }
        check_state(&*program, &store)?;
        let mut remembered = store.snapshot();
        for (name, value) in stream.iter() {
            remembered.insert(name.clone(), &value.to_tensor()?.aligned())?;
        }
        check_state(&*program, &remembered)?;
        if !stream.is_empty() {
            *stream = memory(&*program, &remembered);
        }
        self.replace(Serving { program, store });
        Ok(())
    }

    fn stream(&self) -> MutexGuard<'_, Vec<(String, Arc<dyn StateValue>)>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Arc<Serving> {
        self.serving.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, serving: Serving) {
        *self.serving.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(serving);
    }
}

/// The values of `store` that the program updates.
fn memory(program: &dyn Program, store: &StateStore) -> Vec<(String, Arc<dyn StateValue>)> {
    let updated = program.state().iter().filter(|s| s.updated);
    updated.filter_map(|s| Some((s.name.clone(), store.value(&s.name)?.clone()))).collect()
}

/// A file may declare any extent: nothing of this size is made for it.
pub(crate) fn check_size(spec: &ValueSpec) -> Result<(), RuntimeError> {
    // An extent of 0 makes no other harmless: rows are counted, whatever their width.
    let dims: Vec<usize> = spec.dims.iter().map(|d| d.unwrap_or(1).max(1)).collect();
    match element_count(&dims).and_then(|n| spec.dtype.byte_len(n)) {
        Some(bytes) if bytes <= LARGEST_TENSOR => Ok(()),
        _ => Err(RuntimeError::Data {
            what: format!("input `{}`", spec.name),
            reason: format!(
                "is {spec}, more than the {LARGEST_TENSOR} bytes that are fed at once; export a smaller batch"
            ),
        }),
    }
}

fn check_state(program: &dyn Program, store: &StateStore) -> Result<(), RuntimeError> {
    if store.engine() != program.engine() {
        return Err(RuntimeError::OtherEngine { store: store.engine(), program: program.engine() });
    }
    for spec in program.state() {
        let expected = spec.value.clone();
        let Some(value) = store.value(&spec.name) else {
            return Err(RuntimeError::MissingState { name: spec.name.clone(), expected });
        };
        if !expected.accepts(value.dtype(), value.shape()) {
            let (dtype, shape) = (value.dtype(), value.shape().to_vec());
            return Err(RuntimeError::InputMismatch { expected, dtype, shape });
        }
    }
    Ok(())
}

/// [`Session::predict`] with a store of one's own, which is not changed.
pub(crate) fn predict(
    program: &dyn Program,
    store: &StateStore,
    feeds: &[(&str, &Tensor)],
) -> Result<TensorMap, RuntimeError> {
    let refuse = |what: &str, reason: String| Err(RuntimeError::Data { what: what.into(), reason });
    let Some(&(first, x)) = feeds.first() else {
        return refuse("feeds", "are empty".into());
    };
    let total = rows::count(x)?;
    if total == 0 {
        return refuse(first, "has no row".into());
    }
    if let Some(memory) = program.state().iter().find(|s| s.updated) {
        return refuse(&memory.name, "is memory that padding would enter; use `run`".into());
    }
    let input = |name: &str| program.inputs().iter().find(|s| s.name == name);
    let fixed = input(first).and_then(|s| s.dims.first().copied().flatten());
    let batch = fixed.unwrap_or(ROWS_PER_RUN.min(total)).max(1);
    for &(name, tensor) in feeds {
        let n = rows::count(tensor)?;
        if n != total {
            return refuse(name, format!("has {n} rows, but {first} has {total}"));
        }
        let Some(expected) = input(name) else {
            let known = program.inputs().iter().map(|s| s.name.clone()).collect();
            return Err(RuntimeError::UnknownInput { input: name.into(), known });
        };
        // Before a batch is filled up: its rows are as large as those that are fed.
        check_size(expected)?;
        let mut shape = tensor.shape().to_vec();
        shape[0] = batch;
        if !expected.accepts(tensor.dtype(), &shape) {
            let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
            return Err(RuntimeError::InputMismatch { expected: expected.clone(), dtype, shape });
        }
    }
    let mut store = store.snapshot();
    let mut parts: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
    for start in (0..total).step_by(batch) {
        let indices: Vec<usize> = (start..start + batch).map(|i| i.min(total - 1)).collect();
        let fed = (feeds.iter())
            .map(|&(name, tensor)| Ok((name, rows::gather(tensor, &indices)?)))
            .collect::<Result<Vec<_>, RuntimeError>>()?;
        let fed: Vec<(&str, &Tensor)> = fed.iter().map(|(name, tensor)| (*name, tensor)).collect();
        for (name, tensor) in program.run(&mut store, &fed)? {
            if tensor.shape().first() != Some(&batch) {
                let reason = format!("is {:?}, which does not follow the batch of {batch}; use `run`", tensor.shape());
                return refuse(&name, reason);
            }
            parts.entry(name).or_default().push(tensor.rows(0..batch.min(total - start))?);
        }
    }
    parts.into_iter().map(|(name, list)| Ok((name, rows::concat(&list)?))).collect()
}
