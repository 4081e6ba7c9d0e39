//! The reference evaluator: slow, obvious, in f64 with every result rounded to its dtype. What engines,
//! gradients and passes are compared with.

use crate::ops::{self, EvalCx};
use crate::{Array, Graph, GraphError, ValueId};
use limbeck_tensor::Tensor;
use std::collections::{BTreeMap, HashMap};

impl Graph {
    /// Runs the graph on named inputs and returns its outputs by name. Missing, unknown and mistyped inputs
    /// and operators without evaluation are errors that name them.
    pub fn evaluate(&self, feeds: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, GraphError> {
        let values = self.evaluate_all(feeds)?;
        self.outputs
            .iter()
            .map(|id| {
                let name = self.name_of(*id);
                let array = values
                    .get(id)
                    .ok_or_else(|| GraphError::Value { name: name.into(), reason: "output was not computed".into() })?;
                let tensor = array.to_tensor().map_err(|e| GraphError::Value { name: name.into(), reason: e.0 })?;
                Ok((name.to_owned(), tensor))
            })
            .collect()
    }

    /// As [`Graph::evaluate`], returning every value that was computed.
    pub fn evaluate_all(&self, feeds: &BTreeMap<String, Tensor>) -> Result<HashMap<ValueId, Array>, GraphError> {
        let mut values: HashMap<ValueId, Array> = HashMap::new();
        let to_array = |name: &str, tensor: &Tensor| {
            Array::from_tensor(tensor).map_err(|e| GraphError::Value { name: name.into(), reason: e.0 })
        };
        for (id, tensor) in self.initializers() {
            values.insert(id, to_array(self.name_of(id), tensor)?);
        }
        for (name, tensor) in feeds {
            let id = self.require(name)?;
            if !self.inputs.contains(&id) {
                return Err(GraphError::Value { name: name.clone(), reason: "is not an input of the graph".into() });
            }
            self.check_feed(id, tensor)?;
            values.insert(id, to_array(name, tensor)?);
        }
        for &id in &self.inputs {
            if !values.contains_key(&id) {
                let expected = self.ty(id).map_or_else(String::new, |t| format!("; it takes {t}"));
                return Err(GraphError::Value {
                    name: self.name_of(id).into(),
                    reason: format!("input was not given{expected}"),
                });
            }
        }
        for (id, node) in self.nodes() {
            let label = self.label(id);
            let spec = ops::spec_of(node, &label)?;
            let inputs: Vec<Option<&Array>> = node.inputs.iter().map(|i| i.and_then(|i| values.get(&i))).collect();
            let results = (spec.eval)(&EvalCx { node, inputs }).map_err(|e| GraphError::Node {
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
