//! The state store: named values in engine memory, shared by the programs of one engine.
//!
//! Values are immutable once stored and replaced as a whole, so that a snapshot is a copy of the name table and a
//! failed run leaves nothing half-written.

use crate::RuntimeError;
use limbeck_tensor::{DType, Tensor};
use std::{any::Any, collections::BTreeMap, fmt, sync::Arc};

/// A tensor in an engine's memory.
pub(crate) trait StateValue: Any + Send + Sync {
    fn dtype(&self) -> DType;
    fn shape(&self) -> &[usize];
    fn to_tensor(&self) -> Result<Tensor, RuntimeError>;
}

pub(crate) type Upload = fn(&Tensor) -> Result<Arc<dyn StateValue>, RuntimeError>;

/// Named tensors in one engine's memory: parameters, optimiser state, averages, queues. Programs of that engine read
/// and replace them. Cloning it is a cheap [`StateStore::snapshot`].
#[derive(Clone)]
pub struct StateStore {
    engine: &'static str,
    upload: Upload,
    values: BTreeMap<String, Arc<dyn StateValue>>,
}

impl fmt::Debug for StateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (name, v) in &self.values {
            map.entry(name, &format_args!("{} {:?}", v.dtype(), v.shape()));
        }
        map.finish()
    }
}

impl StateStore {
    #[cfg_attr(not(any(feature = "tract", feature = "ort")), allow(dead_code))]
    pub(crate) fn new(engine: &'static str, upload: Upload) -> StateStore {
        StateStore { engine, upload, values: BTreeMap::new() }
    }

    /// Name of the engine whose programs can use this store.
    pub fn engine(&self) -> &'static str {
        self.engine
    }

    /// Puts a tensor into engine memory, in place of any value of this name. An engine may share the tensor's bytes.
    ///
    /// # Errors
    /// A type that the engine does not have.
    pub fn insert(&mut self, name: impl Into<String>, tensor: &Tensor) -> Result<(), RuntimeError> {
        self.values.insert(name.into(), (self.upload)(tensor)?);
        Ok(())
    }

    /// The value as a tensor, which shares the engine's memory where it can.
    ///
    /// # Errors
    /// No value of this name; a value that cannot be brought to host memory.
    pub fn get(&self, name: &str) -> Result<Tensor, RuntimeError> {
        self.values.get(name).ok_or_else(|| RuntimeError::NoValue { name: name.into() })?.to_tensor()
    }

    /// Removes a value; false when there was none.
    pub fn remove(&mut self, name: &str) -> bool {
        self.values.remove(name).is_some()
    }

    /// Names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// Whether there is a value of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// Makes the value of `from` also the value of `to`, without copying it (a target network, an average's start).
    /// False when there is no `from`.
    pub fn share(&mut self, from: &str, to: impl Into<String>) -> bool {
        match self.values.get(from).cloned() {
            Some(value) => {
                self.values.insert(to.into(), value);
                true
            }
            None => false,
        }
    }

    /// Bytes of all values; what is shared between two names counts twice.
    pub fn bytes(&self) -> usize {
        self.values
            .values()
            .map(|v| v.dtype().byte_len(v.shape().iter().product()).unwrap_or(usize::MAX))
            .fold(0, usize::saturating_add)
    }

    /// The store as it is now, to roll back to. Copies no tensor; a replaced value's memory is kept while a snapshot
    /// holds it.
    pub fn snapshot(&self) -> StateStore {
        self.clone()
    }

    #[cfg_attr(not(any(feature = "tract", feature = "ort")), allow(dead_code))]
    pub(crate) fn value(&self, name: &str) -> Option<&Arc<dyn StateValue>> {
        self.values.get(name)
    }

    #[cfg_attr(not(any(feature = "tract", feature = "ort")), allow(dead_code))]
    pub(crate) fn commit(&mut self, updates: Vec<(String, Arc<dyn StateValue>)>) {
        self.values.extend(updates);
    }
}
