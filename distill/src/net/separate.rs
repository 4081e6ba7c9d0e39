//! Weights of a fresh model. Its normalisations all start with ones and zeros, and torch's exporters store tensors that
//! hold equal numbers once: behind Identity nodes (TorchScript in inference mode), or read by several layers (dynamo).
//! Trained like that, scales of different layers would be one weight, and running statistics would be scales.

use super::classify::{is_statistic, is_weight_place};
use super::origin::noted_module;
use limbeck_graph::{Graph, Node, NodeId, ValueId};
use limbeck_tensor::Tensor;
use std::collections::BTreeMap;

/// What modules call the operands of their normalisation, from the second on.
const NORMALISATION: &[&str] = &["weight", "bias", "running_mean", "running_var"];

/// Gives each layer its own tensor where several share one that holds the same number throughout. Returns the names of
/// the new ones. What is tied in the model holds different numbers, or is used by one module, and stays.
pub(super) fn separate(graph: &mut Graph) -> Vec<String> {
    let mut names = behind_identities(graph);
    names.extend(read_by_several_modules(graph));
    names
}

/// The float tensor of rank 1 or more that a file stores as a weight, when all its numbers are equal.
fn uniform(graph: &Graph, id: ValueId) -> Option<Tensor> {
    let stored = !graph.is_literal(id) && !graph.inputs.contains(&id);
    let tensor = graph.initializer(id).filter(|t| stored && t.dtype().is_float() && !t.shape().is_empty())?;
    let (bytes, width) = (tensor.bytes(), tensor.dtype().bits() / 8);
    let equal = width > 0 && bytes.chunks(width).all(|c| c == &bytes[..width]);
    equal.then(|| tensor.clone())
}

fn behind_identities(graph: &mut Graph) -> Vec<String> {
    let mut names = vec![];
    for id in graph.node_ids() {
        let node = graph.node(id);
        let (true, Some(from), Some(to)) = (node.is("", "Identity"), node.input(0), node.output(0)) else { continue };
        if let Some(tensor) = uniform(graph, from).filter(|_| !graph.outputs.contains(&to)) {
            graph.remove_node(id);
            graph.set_initializer(to, tensor);
            names.push(graph.name_of(to).to_owned());
        }
    }
    names
}

/// The name that an operand has in the model: its module, and what the module calls it.
type Owner = (String, String);

fn owner(graph: &Graph, node: &Node, at: usize, value: ValueId) -> Option<Owner> {
    let own = graph.name_of(value).rsplit_once('.').map(|(_, leaf)| leaf);
    let normalising = node.op.ends_with("Normalization");
    let leaf = if normalising { NORMALISATION.get(at.checked_sub(1)?).copied() } else { own };
    Some((noted_module(node)?, leaf?.to_owned()))
}

fn read_by_several_modules(graph: &mut Graph) -> Vec<String> {
    let mut shared: BTreeMap<ValueId, Vec<(NodeId, usize, Owner)>> = BTreeMap::new();
    for (id, node) in graph.nodes() {
        for (at, value) in node.inputs.iter().enumerate() {
            let Some(value) = value.filter(|_| is_weight_place(node, at) || is_statistic(node, at)) else { continue };
            if let Some(owner) = owner(graph, node, at, value) {
                shared.entry(value).or_default().push((id, at, owner));
            }
        }
    }
    let mut names = vec![];
    for (value, uses) in shared {
        let Some(tensor) = uniform(graph, value) else { continue };
        let named = graph.name_of(value).rsplit_once('.').map(|(module, leaf)| (module.to_owned(), leaf.to_owned()));
        let keeper = named.filter(|n| uses.iter().any(|u| u.2 == *n)).unwrap_or_else(|| uses[0].2.clone());
        let mut own: BTreeMap<Owner, ValueId> = BTreeMap::from([(keeper, value)]);
        for (node, at, owner) in uses {
            let name = format!("{}.{}", owner.0, owner.1);
            let id = *own.entry(owner).or_insert_with(|| {
                let id = graph.add_initializer(name, tensor.clone());
                names.push(graph.name_of(id).to_owned());
                id
            });
            graph.node_mut(node).inputs[at] = Some(id);
        }
    }
    names
}
