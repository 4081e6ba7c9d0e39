//! Reshapes next to maps: a map reads an operand, and gives a result, in whatever shape its neighbours have it.

use crate::ops::map::{shapes, shapes_attr};
use crate::{Graph, GraphError, LIMBECK, Node, NodeId, ValueId};
use limbeck_tensor::Tensor;

/// Operators whose result is their first operand in another shape.
const RESHAPES: &[&str] = &["Reshape", "Flatten", "Squeeze", "Unsqueeze"];

/// Takes reshapes into the maps around them. Shapes must be concrete, and the graph in order.
pub(super) fn absorb(graph: &mut Graph) -> Result<(), GraphError> {
    for map in maps(graph) {
        read_through(graph, map)?;
    }
    graph.remove_dead();
    give_reshaped(graph)
}

fn maps(graph: &Graph) -> Vec<NodeId> {
    graph.nodes().filter(|(_, node)| node.is(LIMBECK, "Map")).map(|(id, _)| id).collect()
}

fn extents(graph: &Graph, value: ValueId) -> Result<Vec<i64>, GraphError> {
    Ok(graph.shape(value)?.iter().map(|&n| n as i64).collect())
}

fn reshapes(node: &Node) -> bool {
    node.domain_or_default().is_empty() && RESHAPES.contains(&node.op.as_str())
}

/// Lets a map read what a reshape reads.
fn read_through(graph: &mut Graph, map: NodeId) -> Result<(), GraphError> {
    let operands: Vec<ValueId> = graph.node(map).operands().collect();
    for (i, &operand) in operands.iter().enumerate() {
        let mut source = operand;
        while let Some(node) = graph.producer(source).map(|id| graph.node(id)).filter(|node| reshapes(node)) {
            source = node.operands().next().unwrap_or(source);
        }
        if source != operand {
            read(graph, map, i, operand, source)?;
        }
    }
    Ok(())
}

/// Lets operand `i` of a map, which is `former`, be a value with the same values.
fn read(graph: &mut Graph, map: NodeId, i: usize, former: ValueId, value: ValueId) -> Result<(), GraphError> {
    let seen = extents(graph, former)?;
    let own = extents(graph, value)?;
    set_shape(graph, map, "operand_shapes", i, seen, &own)?;
    graph.node_mut(map).inputs[i] = Some(value);
    Ok(())
}

/// Notes the shape of an operand or a result that has `own`, unless one is noted already, in which the chain has it.
fn set_shape(
    graph: &mut Graph,
    map: NodeId,
    name: &str,
    i: usize,
    shape: Vec<i64>,
    own: &[i64],
) -> Result<(), GraphError> {
    let node = graph.node(map);
    let count = if name == "operand_shapes" { node.inputs.len() } else { node.outputs.len() };
    let named = shapes(node, name, count);
    let mut named = named.map_err(|e| GraphError::Node { node: graph.label(map), op: node.full_op(), reason: e.0 })?;
    let kept = named[i].take().unwrap_or(shape);
    named[i] = (kept != own).then_some(kept);
    let node = graph.node_mut(map);
    match shapes_attr(&named) {
        Some(attr) => drop(node.attrs.insert(name.to_owned(), attr)),
        None => drop(node.attrs.shift_remove(name)),
    }
    Ok(())
}

/// Lets maps give results as a reshape of them does, if all others that read it are maps and reshapes too.
fn give_reshaped(graph: &mut Graph) -> Result<(), GraphError> {
    let mut readers = graph.consumers();
    let mut gone = vec![];
    for map in maps(graph) {
        let mut outputs = graph.node(map).outputs.clone();
        for (i, output) in outputs.iter_mut().enumerate() {
            let Some(result) = output.filter(|v| !graph.outputs.contains(v)) else { continue };
            let own = readers.get(&result).cloned().unwrap_or_default();
            let is_map = |id: NodeId| graph.node(id).is(LIMBECK, "Map");
            let Some(first) = own.iter().copied().find(|&id| reshapes(graph.node(id))) else { continue };
            let Some(given) = graph.node(first).output(0) else { continue };
            if !own.iter().all(|&id| is_map(id) || reshapes(graph.node(id))) {
                continue;
            }
            let others: Vec<NodeId> = own.into_iter().filter(|&id| id != first).collect();
            for &reader in &others {
                follow(graph, reader, result, given)?;
            }
            let seen = (extents(graph, given)?, extents(graph, result)?);
            set_shape(graph, map, "result_shapes", i, seen.0, &seen.1)?;
            *output = Some(given);
            readers.entry(given).or_default().extend(others);
            gone.push(first);
        }
        graph.set_outputs(map, outputs);
    }
    graph.remove_nodes(&gone);
    Ok(())
}

/// Lets a map, or a reshape, that reads `former` read `value` instead.
fn follow(graph: &mut Graph, reader: NodeId, former: ValueId, value: ValueId) -> Result<(), GraphError> {
    if graph.node(reader).is(LIMBECK, "Map") {
        let operands = graph.node(reader).inputs.clone();
        for (at, _) in operands.iter().enumerate().filter(|(_, v)| **v == Some(former)) {
            read(graph, reader, at, former, value)?;
        }
    } else if let Some(result) = graph.node(reader).output(0) {
        // What was written relative to the former shape.
        let shape = extents(graph, result)?;
        let shape = Tensor::new([shape.len()], shape)
            .map_err(|e| GraphError::Value { name: graph.name_of(result).into(), reason: e.to_string() })?;
        let shape = graph.add_literal("shape", shape);
        let name = graph.node(reader).name.clone();
        *graph.node_mut(reader) = Node { name, ..Node::new("Reshape", &[value, shape], &[result]) };
    }
    Ok(())
}
