//! From groups to map nodes.

use super::element::{Element, kept};
use super::group::Group;
use crate::{Attr, Graph, LIMBECK, Node, NodeId, TensorType, ValueId};
use limbeck_tensor::{DType, Tensor};
use std::collections::{HashMap, HashSet};

/// Replaces the nodes of each group by a map. The order of the nodes is to be made anew; a map's place is that of its last
/// node.
pub(super) fn emit(graph: &mut Graph, groups: Vec<Group>, places: &mut HashMap<NodeId, usize>) {
    let consumers = graph.consumers();
    let outputs: HashSet<ValueId> = graph.outputs.iter().copied().collect();
    for group in groups {
        let own: Vec<NodeId> = group.nodes.iter().map(|(id, _)| *id).collect();
        let leaves = |value: ValueId| {
            let outside = |n: &NodeId| !own.contains(n);
            outputs.contains(&value) || consumers.get(&value).is_some_and(|readers| readers.iter().any(outside))
        };
        let mut map = Map::default();
        for (_, element) in &group.nodes {
            for &operand in &element.operands {
                if !group.nodes.iter().any(|(_, e)| e.result == operand) && !map.inputs.contains(&operand) {
                    map.inputs.push(operand);
                }
            }
        }
        let numbers = map.inputs.iter().enumerate().map(|(i, &v)| (v, i as i64));
        map.numbers = numbers.collect();
        for (id, element) in &group.nodes {
            map.step(&graph.node(*id).op, element);
        }
        let results: Vec<&Element> = group.nodes.iter().map(|(_, e)| e).filter(|e| leaves(e.result)).collect();
        let after = map.leave(graph, &group, &results);
        let place = own.iter().filter_map(|id| places.get(id)).max().copied().unwrap_or_default();
        graph.remove_nodes(&own);
        for node in [vec![map.node(&group)], after].concat() {
            places.insert(graph.add_node(node), place);
        }
    }
}

/// A map node under construction.
#[derive(Default)]
struct Map {
    inputs: Vec<ValueId>,
    ops: Vec<String>,
    args: Vec<i64>,
    /// Numbers of the values so far.
    numbers: HashMap<ValueId, i64>,
    outputs: Vec<ValueId>,
    results: Vec<i64>,
}

impl Map {
    /// Adds an operator; returns the number of its result.
    fn push(&mut self, op: &str, args: impl IntoIterator<Item = i64>) -> i64 {
        self.ops.push(op.to_owned());
        let mut three = [-1; 3];
        three.iter_mut().zip(args).for_each(|(to, arg)| *to = arg);
        self.args.extend(three);
        (self.inputs.len() + self.ops.len()) as i64 - 1
    }

    fn step(&mut self, op: &str, element: &Element) {
        let args: Vec<i64> = element.operands.iter().map(|v| self.numbers[v]).collect();
        let number = self.push(op, args);
        self.numbers.insert(element.result, number);
    }

    /// Makes outputs of what is used outside. A map gives floats, and keeps reduced extents as 1: the nodes that are
    /// returned make of these what the readers expect.
    fn leave(&mut self, graph: &mut Graph, group: &Group, results: &[&Element]) -> Vec<Node> {
        let mut after = vec![];
        for element in results {
            let (result, number) = (element.result, self.numbers[&element.result]);
            let ty = graph.ty(result).cloned();
            let shape = match &element.axes {
                Some(axes) => kept(&group.shape, axes),
                None => element.shape.clone(),
            };
            let name = format!("{}.map", graph.name_of(result));
            let mut inner = || graph.add_value(name.clone(), Some(TensorType::new(DType::F32, &shape)));
            if ty.as_ref().is_some_and(|ty| ty.dtype == DType::Bool) {
                let inner = inner();
                let cast = self.push("Cast", [number]);
                self.results.push(cast);
                self.outputs.push(inner);
                let to = i64::from(DType::Bool.to_onnx());
                after.push(Node::new("Cast", &[inner], &[result]).with("to", to));
            } else if ty.as_ref().and_then(TensorType::concrete).is_some_and(|own| own != shape) {
                let inner = inner();
                let own: Vec<i64> = ty.iter().flat_map(|t| t.concrete()).flatten().map(|n| n as i64).collect();
                let Ok(own) = Tensor::new([own.len()], own) else { continue };
                let own = graph.add_literal("shape", own);
                self.results.push(number);
                self.outputs.push(inner);
                after.push(Node::new("Reshape", &[inner, own], &[result]));
            } else {
                self.results.push(number);
                self.outputs.push(result);
            }
        }
        after
    }

    fn node(self, group: &Group) -> Node {
        let axes: Vec<i64> = group.axes.iter().flatten().map(|&axis| axis as i64).collect();
        Node::new("Map", &self.inputs, &self.outputs)
            .in_domain(LIMBECK)
            .with("ops", Attr::Str(self.ops.join(" ").into_bytes().into()))
            .with("args", self.args)
            .with("results", self.results)
            .with("axes", axes)
    }
}
