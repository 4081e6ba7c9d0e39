//! Maps that run one chain on different tensors, such as the updates of all weights and their guards: one node that runs the
//! chain several times, since an engine takes longer to get to a node than to update a small weight.

use crate::lower::pauses::is_heavy;
use crate::ops::map::{shapes, shapes_attr};
use crate::{Graph, GraphError, LIMBECK, Node, NodeId, OpError, ValueId, ValueSet};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Replaces maps with one chain, none of which needs another, by a map that runs it for each of them. These are maps of the
/// end: nothing heavy waits for them, and they do not keep large operands from being freed, so that to run later costs nothing.
/// The graph must be in order.
pub(super) fn join_equal(graph: &mut Graph, places: &mut HashMap<NodeId, usize>) -> Result<(), GraphError> {
    for equal in by_chain(graph) {
        for group in independent(graph, equal) {
            let joint = joint(graph, &group).map_err(|e| GraphError::Node {
                node: graph.label(group[0]),
                op: graph.node(group[0]).full_op(),
                reason: e.0,
            })?;
            let place = group.iter().filter_map(|id| places.get(id)).max().copied().unwrap_or_default();
            graph.remove_nodes(&group);
            places.insert(graph.add_node(joint), place);
        }
        graph.sort()?;
    }
    Ok(())
}

/// The maps of the end, those with the same chain together.
fn by_chain(graph: &Graph) -> Vec<HashSet<NodeId>> {
    let mut awaited = ValueSet::default();
    let mut last = vec![];
    for (id, node) in graph.node_ids().into_iter().rev().map(|id| (id, graph.node(id))) {
        if is_heavy(node) || node.outputs.iter().flatten().any(|&v| awaited.contains(v)) {
            awaited.extend(node.reads());
        } else if node.is(LIMBECK, "Map") {
            last.push(id);
        }
    }
    // What updates read stays until the end anyway.
    let updates = last.iter().filter(|&&id| frees_little(graph, id, &ValueSet::default()));
    let stays: ValueSet = updates.flat_map(|&id| graph.node(id).operands()).collect();
    last.retain(|&id| frees_little(graph, id, &stays));
    let mut chains: BTreeMap<String, HashSet<NodeId>> = BTreeMap::new();
    for id in last {
        let node = graph.node(id);
        let chain = ["ops", "args", "results", "axes"].map(|name| node.attrs.get(name));
        chains.entry(format!("{} {chain:?}", node.inputs.len())).or_default().insert(id);
    }
    chains.into_values().filter(|equal| equal.len() > 1).collect()
}

/// Whether no operand that may be freed after the node is larger than all that the node makes.
fn frees_little(graph: &Graph, id: NodeId, stays: &ValueSet) -> bool {
    let node = graph.node(id);
    let made: u64 = node.outputs.iter().flatten().map(|&v| graph.bytes_of(v)).sum();
    node.operands().all(|v| graph.producer(v).is_none() || stays.contains(v) || graph.bytes_of(v) <= made)
}

/// Groups of these nodes, of two or more, in which none needs what another makes.
fn independent(graph: &Graph, mut left: HashSet<NodeId>) -> Vec<Vec<NodeId>> {
    let mut groups = vec![];
    while !left.is_empty() {
        let (mut group, mut following) = (vec![], ValueSet::default());
        for (id, node) in graph.nodes() {
            let follows = node.reads().into_iter().any(|v| following.contains(v));
            let joins = !follows && left.remove(&id);
            if joins {
                group.push(id);
            }
            if follows || joins {
                following.extend(node.outputs.iter().flatten().copied());
            }
        }
        if group.len() > 1 {
            groups.push(group);
        }
    }
    groups
}

/// One map for several with the same chain.
fn joint(graph: &Graph, group: &[NodeId]) -> Result<Node, OpError> {
    type Operand = (Option<ValueId>, Option<Vec<i64>>);
    let first = graph.node(group[0]);
    let mut operands: Vec<Vec<Operand>> = vec![];
    let (mut outputs, mut given) = (vec![], vec![]);
    for &id in group {
        let node = graph.node(id);
        let seen = shapes(node, "operand_shapes", node.inputs.len())?;
        operands.push(node.inputs.iter().copied().zip(seen).collect());
        outputs.extend(node.outputs.iter().copied());
        given.extend(shapes(node, "result_shapes", node.outputs.len())?);
    }
    // What all have in common comes first.
    let count = first.inputs.len();
    let (common, own): (Vec<usize>, Vec<usize>) =
        (0..count).partition(|&i| operands.iter().all(|each| each[i] == operands[0][i]));
    let mut numbers = vec![0; count];
    common.iter().chain(&own).enumerate().for_each(|(now, &former)| numbers[former] = now as i64);
    let renumbered = |&arg: &i64| usize::try_from(arg).ok().and_then(|i| numbers.get(i)).copied().unwrap_or(arg);
    let args: Vec<i64> = first.ints("args").unwrap_or_default().iter().map(renumbered).collect();
    let each = operands.iter().flat_map(|each| own.iter().map(move |&i| &each[i]));
    let (inputs, seen): (Vec<_>, Vec<_>) = common.iter().map(|&i| &operands[0][i]).chain(each).cloned().unzip();
    let mut node = Node { inputs, outputs, ..Node::new("Map", &[], &[]) }.in_domain(LIMBECK);
    node.attrs = first.attrs.clone();
    node.attrs.retain(|name, _| !["operand_shapes", "result_shapes"].contains(&name.as_str()));
    node.attrs.insert("args".into(), args.into());
    node.attrs.insert("times".into(), (group.len() as i64).into());
    node.attrs.insert("shared".into(), (common.len() as i64).into());
    node.attrs.extend(shapes_attr(&seen).map(|attr| ("operand_shapes".to_owned(), attr)));
    node.attrs.extend(shapes_attr(&given).map(|attr| ("result_shapes".to_owned(), attr)));
    Ok(node)
}
