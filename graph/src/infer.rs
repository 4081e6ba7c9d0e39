//! Type and shape inference: one node (the builder's check) and whole graphs.

use crate::ops::{self, InferCx};
use crate::types::MAX_RANK;
use crate::{Graph, GraphError, Node, OpError, TensorType, op_bail};
use limbeck_tensor::Tensor;

/// Largest constant (in elements) that inference looks into: shapes and axes, not weights.
const SMALL: usize = 4096;

/// Types of the outputs of `node`, whose operands are values of `graph`. `label` names it in errors.
pub fn infer_node(graph: &Graph, node: &Node, label: &str) -> Result<Vec<TensorType>, GraphError> {
    let spec = ops::spec_of(node, label)?;
    let inputs: Vec<Option<&TensorType>> = node.inputs.iter().map(|i| i.and_then(|i| graph.ty(i))).collect();
    let constants: Vec<Option<Tensor>> = node
        .inputs
        .iter()
        .map(|i| {
            i.and_then(|i| graph.constant(i)).filter(|t| t.len() <= SMALL && (t.len() <= 1 || !t.dtype().is_float()))
        })
        .collect();
    let cx = InferCx { node, inputs: inputs.clone(), constants };
    (spec.infer)(&cx).and_then(check_ranks).map_err(|e| {
        let operands: Vec<String> = node
            .inputs
            .iter()
            .zip(&inputs)
            .map(|(id, ty)| match (id, ty) {
                (Some(id), Some(ty)) => format!("{}: {ty}", graph.name_of(*id)),
                (Some(id), None) => format!("{}: ?", graph.name_of(*id)),
                (None, _) => "absent".into(),
            })
            .collect();
        GraphError::Node {
            node: label.into(),
            op: node.full_op(),
            reason: format!("{} (operands: {})", e.0, operands.join("; ")),
        }
    })
}

fn check_ranks(types: Vec<TensorType>) -> Result<Vec<TensorType>, OpError> {
    match types.iter().filter_map(TensorType::rank).find(|&rank| rank > MAX_RANK) {
        Some(rank) => op_bail!("a result has {rank} dims; shapes have at most {MAX_RANK}"),
        None => Ok(types),
    }
}

impl Graph {
    /// Infers the types of all values from inputs and initializers. Nodes of unknown operators leave their
    /// outputs as declared; a contradiction with a declared shape is an error.
    pub fn infer_types(&mut self) -> Result<(), GraphError> {
        for id in self.node_ids() {
            let node = self.node(id);
            let label = self.label(id);
            if ops::find(node.domain_or_default(), &node.op).is_none() {
                continue;
            }
            if node.inputs.iter().flatten().any(|&i| self.ty(i).is_none()) {
                continue;
            }
            let types = infer_node(self, node, &label)?;
            let outputs = node.outputs.clone();
            for (output, ty) in outputs.into_iter().zip(types) {
                if let Some(output) = output {
                    self.set_ty(output, Some(ty));
                }
            }
        }
        Ok(())
    }

    /// How errors call a node: its name, or its first output's.
    pub fn label(&self, id: crate::NodeId) -> String {
        let node = self.node(id);
        if !node.name.is_empty() {
            return node.name.clone();
        }
        node.outputs.iter().flatten().next().map_or_else(|| node.op.clone(), |&o| self.name_of(o).to_owned())
    }
}
