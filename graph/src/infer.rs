//! Type and shape inference: one node (the builder's check) and whole graphs.

use crate::ops::{self, InferCx};
use crate::types::{Dim, MAX_RANK};
use crate::{Graph, GraphError, Node, NodeId, OpError, TensorType, op_bail};
use limbeck_tensor::Tensor;

/// Largest constant (in elements) that inference looks into: shapes and axes, not weights. Of floats only those with an
/// entry a dim at most: the scales of a Resize.
pub(crate) const SMALL: usize = 4096;

/// Types of the outputs of `node`, whose operands are values of `graph`: all of them, or of a node with subgraphs those
/// up to the first that is not known. `label` names the node in errors.
pub fn infer_node(graph: &Graph, node: &Node, label: &str) -> Result<Vec<TensorType>, GraphError> {
    let spec = ops::spec_of(node, label)?;
    seen(graph, node, label, |cx| (spec.infer)(cx).and_then(check_shapes))
}

/// The body of the Loop or Scan `node`, whose operands are values of `graph`, with the types that its values have in every
/// iteration and with what is computed of shapes folded. A constant that it captures is stored with the capture. `label`
/// names the node in errors.
pub fn typed_body(graph: &Graph, node: &Node, label: &str) -> Result<Graph, GraphError> {
    seen(graph, node, label, ops::typed_body)
}

/// What `look` finds of the node, with the types of its operands in the error.
fn seen<T>(
    graph: &Graph,
    node: &Node,
    label: &str,
    look: impl FnOnce(&InferCx) -> Result<T, OpError>,
) -> Result<T, GraphError> {
    let inputs: Vec<Option<&TensorType>> = node.inputs.iter().map(|i| i.and_then(|i| graph.ty(i))).collect();
    let constants: Vec<Option<Tensor>> = node
        .inputs
        .iter()
        .map(|i| {
            i.and_then(|i| graph.constant(i)).filter(|t| t.len() <= if t.dtype().is_float() { MAX_RANK } else { SMALL })
        })
        .collect();
    let cx = InferCx { node, inputs: inputs.clone(), constants, outer: graph };
    look(&cx).map_err(|e| {
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

fn check_shapes(types: Vec<TensorType>) -> Result<Vec<TensorType>, OpError> {
    match types.iter().filter_map(TensorType::rank).find(|&rank| rank > MAX_RANK) {
        Some(rank) => op_bail!("a result has {rank} dims; shapes have at most {MAX_RANK}"),
        None => match types.iter().flat_map(|ty| ty.dims.iter().flatten()).find_map(beyond) {
            Some(extent) => op_bail!("a result has an extent of {extent}; shapes are int64"),
            None => Ok(types),
        },
    }
}

/// An extent that no shape can hold.
fn beyond(dim: &Dim) -> Option<usize> {
    dim.known().filter(|&extent| i64::try_from(extent).is_err())
}

/// Unites the types that the results of a node must have with those that are declared. Nodes of unknown operators
/// and nodes with an untyped operand say nothing.
pub(crate) fn infer_results(graph: &mut Graph, id: NodeId) -> Result<(), GraphError> {
    let node = graph.node(id);
    let untyped = node.inputs.iter().flatten().any(|&i| graph.ty(i).is_none());
    if untyped || ops::find(node.domain_or_default(), &node.op).is_none() {
        return Ok(());
    }
    let label = graph.label(id);
    let types = infer_node(graph, node, &label)?;
    for (output, ty) in node.outputs.clone().into_iter().zip(types) {
        let Some(output) = output else { continue };
        let united = match graph.ty(output) {
            None => ty,
            Some(declared) => ty.unify(declared).ok_or_else(|| GraphError::Value {
                name: graph.name_of(output).into(),
                reason: format!(
                    "is declared as {declared}, but node '{label}' ({}) gives {ty}; correct or remove the declaration",
                    graph.node(id).full_op()
                ),
            })?,
        };
        graph.set_ty(output, Some(united));
    }
    Ok(())
}

impl Graph {
    /// Infers the types of all values from inputs and initializers and unites them with the declared ones: a number
    /// beats a name, a name beats an unknown dim. A contradiction is an error that names the value and both types.
    /// Nodes of unknown operators leave their results as declared. Shapes that integer operators compute stay
    /// unknown: see [`Graph::fold_shapes`].
    pub fn infer_types(&mut self) -> Result<(), GraphError> {
        self.node_ids().into_iter().try_for_each(|id| infer_results(self, id))
    }

    /// How errors call a node: its name, or its first output's.
    pub fn label(&self, id: NodeId) -> String {
        let node = self.node(id);
        if !node.name.is_empty() {
            return node.name.clone();
        }
        node.outputs.iter().flatten().next().map_or_else(|| node.op.clone(), |&o| self.name_of(o).to_owned())
    }
}
