//! What goes where: binds a graph's inputs and outputs to feeds, state and results, and checks every value that
//! enters. Shared by the engines, so that they refuse the same things with the same words.

use crate::{
    RuntimeError,
    engine::{StatePair, StateSpec, ValueSpec},
    store::{StateStore, StateValue},
};
use limbeck_tensor::{DType, Tensor};
use std::{collections::BTreeSet, sync::Arc};

/// A graph's interface, its state pairs resolved.
pub(crate) struct Signature {
    engine: &'static str,
    /// What is fed.
    pub(crate) inputs: Vec<ValueSpec>,
    /// What is returned.
    pub(crate) outputs: Vec<ValueSpec>,
    /// What is kept in the store.
    pub(crate) state: Vec<StateSpec>,
    sources: Vec<Slot>,
    sinks: Vec<Slot>,
}

/// Where a graph input comes from, or where a graph output goes to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Slot {
    /// Index into `inputs` or `outputs`.
    Free(usize),
    /// Index into `state`.
    State(usize),
}

/// A checked value for one graph input.
pub(crate) enum Argument<'a> {
    Feed(&'a Tensor),
    State(&'a Arc<dyn StateValue>),
}

impl Signature {
    /// Resolves the state pairs against all of a graph's inputs and outputs.
    pub(crate) fn new(
        engine: &'static str,
        graph_inputs: Vec<ValueSpec>,
        graph_outputs: Vec<ValueSpec>,
        pairs: &[StatePair],
    ) -> Result<Signature, RuntimeError> {
        for spec in graph_inputs.iter().chain(&graph_outputs) {
            if spec.dtype == DType::String {
                let what = format!("strings (`{}`); remove the string input or output from the model", spec.name);
                return Err(RuntimeError::Unsupported { engine, what });
            }
        }
        let refuse = |p: &StatePair, reason: String| Err(RuntimeError::StatePair { name: p.name.clone(), reason });
        let (mut written, mut state) = (BTreeSet::new(), Vec::new());
        for p in pairs {
            let Some(value) = graph_inputs.iter().find(|v| v.name == p.input) else {
                return refuse(p, format!("the graph has no input `{}`", p.input));
            };
            if pairs.iter().filter(|q| q.input == p.input).count() > 1 {
                return refuse(p, format!("input `{}` is used by two state pairs", p.input));
            }
            if !p.output.is_empty() {
                let Some(out) = graph_outputs.iter().find(|v| v.name == p.output) else {
                    return refuse(p, format!("the graph has no output `{}`", p.output));
                };
                let fits = out.dtype == value.dtype
                    && out.dims.len() == value.dims.len()
                    && out.dims.iter().zip(&value.dims).all(|(a, b)| a.is_none() || b.is_none() || a == b);
                if !fits {
                    return refuse(p, format!("output `{}` is {out}, but input `{}` is {value}", p.output, p.input));
                }
                if pairs.iter().filter(|q| q.output == p.output).count() > 1 || !written.insert(&p.name) {
                    return refuse(p, format!("is written twice, or output `{}` is used twice", p.output));
                }
            }
            state.push(StateSpec { name: p.name.clone(), value: value.clone(), updated: !p.output.is_empty() });
        }
        let split = |specs: Vec<ValueSpec>, name_of: fn(&StatePair) -> &String| {
            let (mut free, mut slots) = (Vec::new(), Vec::new());
            for spec in specs {
                match pairs.iter().position(|p| *name_of(p) == spec.name) {
                    Some(i) => slots.push(Slot::State(i)),
                    None => {
                        slots.push(Slot::Free(free.len()));
                        free.push(spec);
                    }
                }
            }
            (free, slots)
        };
        let (inputs, sources) = split(graph_inputs, |p| &p.input);
        let (outputs, sinks) = split(graph_outputs, |p| &p.output);
        Ok(Signature { engine, inputs, outputs, state, sources, sinks })
    }

    /// One checked value for every graph input, in the graph's order.
    pub(crate) fn arguments<'a>(
        &self,
        store: &'a StateStore,
        feeds: &[(&str, &'a Tensor)],
    ) -> Result<Vec<Argument<'a>>, RuntimeError> {
        if store.engine() != self.engine {
            return Err(RuntimeError::OtherEngine { store: store.engine(), program: self.engine });
        }
        let mut fed: Vec<Option<&Tensor>> = vec![None; self.inputs.len()];
        for &(name, tensor) in feeds {
            let Some(i) = self.inputs.iter().position(|spec| spec.name == name) else {
                let known = self.inputs.iter().map(|spec| spec.name.clone()).collect();
                return Err(RuntimeError::UnknownInput { input: name.into(), known });
            };
            if fed[i].replace(tensor).is_some() {
                return Err(RuntimeError::RepeatedInput { input: name.into() });
            }
        }
        let check = |spec: &ValueSpec, dtype: DType, shape: &[usize]| match spec.accepts(dtype, shape) {
            true => Ok(()),
            false => Err(RuntimeError::InputMismatch { expected: spec.clone(), dtype, shape: shape.to_vec() }),
        };
        self.sources
            .iter()
            .map(|slot| match *slot {
                Slot::Free(i) => {
                    let spec = &self.inputs[i];
                    let tensor = fed[i].ok_or_else(|| RuntimeError::MissingInput { expected: spec.clone() })?;
                    check(spec, tensor.dtype(), tensor.shape())?;
                    Ok(Argument::Feed(tensor))
                }
                Slot::State(i) => {
                    let StateSpec { name, value: spec, .. } = &self.state[i];
                    let value = store
                        .value(name)
                        .ok_or_else(|| RuntimeError::MissingState { name: name.clone(), expected: spec.clone() })?;
                    check(spec, value.dtype(), value.shape())?;
                    Ok(Argument::State(value))
                }
            })
            .collect()
    }

    /// Where every graph output goes, in the graph's order.
    pub(crate) fn sinks(&self) -> &[Slot] {
        &self.sinks
    }

    /// Refuses an updated value that could not enter the next run.
    pub(crate) fn check_update(&self, state: usize, value: &dyn StateValue) -> Result<(), RuntimeError> {
        let spec = &self.state[state];
        if spec.value.accepts(value.dtype(), value.shape()) {
            return Ok(());
        }
        let reason = format!("its update is {} {:?}, but it must stay {}", value.dtype(), value.shape(), spec.value);
        Err(RuntimeError::StatePair { name: spec.name.clone(), reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, dims: &[usize]) -> ValueSpec {
        ValueSpec { name: name.into(), dtype: DType::F32, dims: dims.iter().map(|&d| Some(d)).collect() }
    }

    fn pair(name: &str, input: &str, output: &str) -> StatePair {
        StatePair { name: name.into(), input: input.into(), output: output.into() }
    }

    fn sign(pairs: &[StatePair]) -> Result<Signature, RuntimeError> {
        let inputs = vec![spec("x", &[4]), spec("w", &[2]), spec("v", &[2])];
        Signature::new("test", inputs, vec![spec("loss", &[]), spec("w1", &[2]), spec("v1", &[3])], pairs)
    }

    #[test]
    fn state_is_neither_fed_nor_returned() {
        let s = sign(&[pair("weight", "w", "w1"), pair("frozen", "v", "")]).unwrap();
        let names = |specs: &[ValueSpec]| specs.iter().map(|s| s.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&s.inputs), ["x"]);
        assert_eq!(names(&s.outputs), ["loss", "v1"]);
        assert_eq!(s.state.iter().map(|s| s.updated).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn pairs_that_do_not_fit_are_named() {
        for (pairs, says) in [
            (vec![pair("a", "nope", "w1")], "no input `nope`"),
            (vec![pair("a", "w", "nope")], "no output `nope`"),
            (vec![pair("a", "v", "v1")], "output `v1` is float32 [3]"),
            (vec![pair("a", "w", "w1"), pair("b", "w", "")], "used by two"),
            (vec![pair("a", "w", "w1"), pair("b", "v", "w1")], "used twice"),
        ] {
            let error = sign(&pairs).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(says), "{error:?} does not contain {says:?}");
        }
    }
}
