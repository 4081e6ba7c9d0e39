//! A compiled tract model.

use super::{
    NAME,
    convert::{TractValue, to_tract},
    failed,
    load::Loaded,
    pool::{self, Pool},
    schedule::{self, Planned},
    threads::Threads,
};
use crate::{
    RuntimeError,
    engine::{Memory, Program, StatePair, StateSpec, ValueSpec, guarded},
    signature::{Argument, Signature, Slot},
    store::{StateStore, StateValue},
};
use limbeck_tensor::{Tensor, io::TensorMap};
use std::{
    any::Any,
    sync::{Arc, Mutex},
};
use tract_onnx::{
    prelude::{RunOptions, TValue, TVec, TypedSimplePlan},
    tract_hir::internal::{SymbolValues, TDim},
};

pub(super) struct TractProgram {
    plan: Arc<TypedSimplePlan>,
    signature: Signature,
    threads: Threads,
    memory: Option<Memory>,
    pool: Mutex<Pool>,
}

impl TractProgram {
    pub(super) fn new(loaded: Loaded, state: &[StatePair], threads: Threads) -> Result<TractProgram, RuntimeError> {
        let signature = Signature::new(NAME, loaded.inputs, loaded.outputs, state)?;
        let options = RunOptions { executor: Some(threads.executor()), ..RunOptions::default() };
        let is_state = |input: &str| state.iter().any(|pair| pair.input == input);
        let Planned { plan, memory, buffers } = schedule::plan(loaded.model, &loaded.places, &is_state, &options)?;
        memory.iter().for_each(|memory| pool::keep_heap(memory.peak));
        Ok(TractProgram { plan: Arc::new(plan), signature, threads, memory, pool: Mutex::new(Pool::new(buffers)) })
    }

    /// Runs the plan.
    fn evaluate(&self, arguments: Vec<Argument<'_>>) -> Result<Vec<TractValue>, RuntimeError> {
        let run = || {
            let inputs = arguments
                .into_iter()
                .map(|argument| match argument {
                    Argument::Feed(tensor) => to_tract(tensor),
                    Argument::State(value) => state_value(&**value),
                })
                .collect::<Result<TVec<TValue>, _>>()?;
            let symbols = self.symbols(&inputs)?;
            let results = pool::lent(&self.pool, || self.plan.run(inputs)).map_err(|e| failed("run the model", e))?;
            results.into_iter().map(|result| TractValue::from_result(result, &symbols)).collect()
        };
        self.threads.run(run)
    }

    /// What the inputs' shapes say about the model's named extents.
    fn symbols(&self, inputs: &[TValue]) -> Result<SymbolValues, RuntimeError> {
        let mut symbols = SymbolValues::default();
        for (i, input) in inputs.iter().enumerate() {
            let fact = self.plan.model().input_fact(i).map_err(|e| failed("read an input's shape", e))?;
            for (dim, &extent) in fact.shape.iter().zip(input.shape()) {
                if let TDim::Sym(symbol) = dim {
                    symbols.set(symbol, extent as i64);
                }
            }
        }
        Ok(symbols)
    }
}

impl Program for TractProgram {
    fn engine(&self) -> &'static str {
        NAME
    }

    fn provider(&self) -> &str {
        "cpu"
    }

    fn inputs(&self) -> &[ValueSpec] {
        &self.signature.inputs
    }

    fn outputs(&self) -> &[ValueSpec] {
        &self.signature.outputs
    }

    fn state(&self) -> &[StateSpec] {
        &self.signature.state
    }

    fn memory(&self) -> Option<Memory> {
        self.memory
    }

    fn run(&self, store: &mut StateStore, feeds: &[(&str, &Tensor)]) -> Result<TensorMap, RuntimeError> {
        let arguments = self.signature.arguments(store, feeds)?;
        let results = guarded(NAME, "run the model", || self.evaluate(arguments))?;
        let (mut outputs, mut updates) = (TensorMap::new(), Vec::new());
        for (slot, value) in self.signature.sinks().iter().zip(results) {
            match *slot {
                Slot::Free(i) => {
                    outputs.insert(self.signature.outputs[i].name.clone(), value.to_tensor()?);
                }
                Slot::State(i) => {
                    self.signature.check_update(i, &value)?;
                    let value: Arc<dyn StateValue> = Arc::new(value);
                    updates.push((self.signature.state[i].name.clone(), value));
                }
            }
        }
        store.commit(updates);
        Ok(outputs)
    }
}

fn state_value(value: &dyn StateValue) -> Result<TValue, RuntimeError> {
    match (value as &dyn Any).downcast_ref::<TractValue>() {
        Some(value) => Ok(value.value.clone()),
        None => Err(RuntimeError::OtherEngine { store: "another engine", program: NAME }),
    }
}
