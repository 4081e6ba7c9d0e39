//! The reference evaluator: slow, obvious, in f64 with every result rounded to its dtype. What engines,
//! gradients and passes are compared with.

use crate::ops::{self, EvalCx};
use crate::{Array, Graph, GraphError, ValueId};
use limbeck_tensor::Tensor;
use std::collections::{BTreeMap, HashMap, hash_map::Entry};

impl Graph {
    /// Runs the graph on named inputs and returns its outputs by name. Missing, unknown and mistyped inputs
    /// and operators without evaluation are errors that name them.
    pub fn evaluate(&self, feeds: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, GraphError> {
        let values = self.evaluate_all(feeds)?;
        self.outputs
            .iter()
            .map(|id| {
                let name = self.name_of(*id);
                let array = values.get(id).ok_or_else(|| self.not_computed(*id))?;
                let tensor = array.to_tensor().map_err(|e| GraphError::Value { name: name.into(), reason: e.0 })?;
                Ok((name.to_owned(), tensor))
            })
            .collect()
    }

    /// As [`Graph::evaluate`], returning every value that was computed.
    pub fn evaluate_all(&self, feeds: &BTreeMap<String, Tensor>) -> Result<HashMap<ValueId, Array>, GraphError> {
        let mut values = HashMap::new();
        for (name, tensor) in feeds {
            let id = self.require(name)?;
            if !self.inputs.contains(&id) {
                return Err(GraphError::Value { name: name.clone(), reason: "is not an input of the graph".into() });
            }
            self.check_feed(id, tensor)?;
            values.insert(id, self.array_of(id, tensor)?);
        }
        for &id in &self.inputs {
            if !values.contains_key(&id) && self.initializer(id).is_none() {
                let expected = self.ty(id).map_or_else(String::new, |t| format!("; it takes {t}"));
                return Err(GraphError::Value {
                    name: self.name_of(id).into(),
                    reason: format!("input was not given{expected}"),
                });
            }
        }
        self.compute(values)
    }

    /// Runs a subgraph: its outputs for these inputs, with what it captures taken from the values of the graph around.
    pub(crate) fn call(&self, inputs: Vec<Array>, outer: &HashMap<ValueId, Array>) -> Result<Vec<Array>, GraphError> {
        if inputs.len() != self.inputs.len() {
            let reason = format!("has {} inputs, {} are given", self.inputs.len(), inputs.len());
            return Err(GraphError::Invalid { graph: self.name.clone(), reason });
        }
        let mut values: HashMap<ValueId, Array> = self.inputs.iter().copied().zip(inputs).collect();
        for capture in &self.captures {
            let value = outer.get(&capture.outer).cloned();
            values.insert(capture.inner, value.ok_or_else(|| self.not_computed(capture.inner))?);
        }
        let values = self.compute(values)?;
        self.outputs.iter().map(|id| values.get(id).cloned().ok_or_else(|| self.not_computed(*id))).collect()
    }

    fn not_computed(&self, id: ValueId) -> GraphError {
        GraphError::Value { name: self.name_of(id).into(), reason: "was not computed".into() }
    }

    fn array_of(&self, id: ValueId, tensor: &Tensor) -> Result<Array, GraphError> {
        Array::from_tensor(tensor).map_err(|e| GraphError::Value { name: self.name_of(id).into(), reason: e.0 })
    }

    /// All values from those of inputs and captures.
    fn compute(&self, mut values: HashMap<ValueId, Array>) -> Result<HashMap<ValueId, Array>, GraphError> {
        for (id, tensor) in self.initializers() {
            // What an input is given stands before its default.
            if let Entry::Vacant(free) = values.entry(id) {
                free.insert(self.array_of(id, tensor)?);
            }
        }
        for (id, node) in self.nodes() {
            let label = self.label(id);
            let spec = ops::spec_of(node, &label)?;
            let inputs: Vec<Option<&Array>> = node.inputs.iter().map(|i| i.and_then(|i| values.get(&i))).collect();
            let results = (spec.eval)(&EvalCx { node, inputs, outer: &values }).map_err(|e| GraphError::Node {
                node: label,
                op: node.full_op(),
                reason: e.0,
            })?;
            for (output, array) in node.outputs.iter().zip(results) {
                if let Some(output) = output {
                    values.insert(*output, array.rounded());
                }
            }
        }
        Ok(values)
    }

    fn check_feed(&self, id: ValueId, tensor: &Tensor) -> Result<(), GraphError> {
        let Some(ty) = self.ty(id) else { return Ok(()) };
        let fits = ty.dtype == tensor.dtype()
            && ty.dims.as_ref().is_none_or(|dims| {
                dims.len() == tensor.shape().len()
                    && dims.iter().zip(tensor.shape()).all(|(d, &n)| d.known().is_none_or(|k| k == n))
            });
        if fits {
            return Ok(());
        }
        Err(GraphError::Value {
            name: self.name_of(id).into(),
            reason: format!("takes {ty}, but {}{:?} was given", tensor.dtype(), tensor.shape()),
        })
    }
}
