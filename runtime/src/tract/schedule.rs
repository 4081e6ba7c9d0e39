//! The order in which a compiled model's nodes run, chosen so that their values take little memory.
//!
//! tract orders nodes by their numbers, which are arbitrary after its optimiser: gradients of weights would run late, and
//! what the forward pass kept for them would stay.

use super::{
    failed,
    ops::Fused,
    pool::{Buffers, Lent},
};
use crate::{RuntimeError, engine::Memory};
use limbeck_plan::{LEAST, Task, Work};
use std::collections::HashMap;
use tract_onnx::{
    prelude::{RunOptions, TypedModel, TypedNode, TypedSimplePlan},
    tract_core::{
        internal::*,
        ops::{
            change_axes::AxisOp, element_wise::ElementWiseOp, identity::Identity, konst::Const, source::TypedSource,
        },
        plan::SimplePlan,
    },
};

/// A plan and what it takes.
pub(super) struct Planned {
    pub(super) plan: TypedSimplePlan,
    /// What a run takes; `None` where shapes are not known before.
    pub(super) memory: Option<Memory>,
    /// The memory that Limbeck's operators lend each other; `None` where shapes are not known before.
    pub(super) buffers: Option<Buffers>,
}

/// Orders the nodes of a model. `places` says where nodes stand in the file, `is_state` which inputs a store keeps.
pub(super) fn plan(
    mut model: TypedModel,
    places: &HashMap<String, usize>,
    is_state: &dyn Fn(&str) -> bool,
    options: &RunOptions,
) -> Result<Planned, RuntimeError> {
    let failed = |e| failed("order the model's nodes", e);
    let (work, nodes) = work(&model, places, is_state).map_err(failed)?;
    let known = model.nodes.iter().flat_map(|n| &n.outputs).all(|o| o.fact.shape.as_concrete().is_some());
    let (order, usage) = work.ordered().ok_or_else(|| failed(format_err!("its nodes wait for each other")))?;
    let at: HashMap<usize, usize> = order.iter().map(|&task| nodes[task]).zip(0..).collect();
    let mut sequence = vec![];
    for node in order.iter().map(|&task| nodes[task]) {
        sequence.push(node);
        if ends_apart(&model, node, &at).map_err(failed)? {
            sequence.extend(hand_on(&mut model, node).map_err(failed)?);
        }
    }
    // Each node waits for the one before it.
    let chain: Vec<(usize, usize)> = sequence.windows(2).map(|pair| (pair[1], pair[0])).collect();
    let slots = work.slots(&order, &usage, &|task| model.node(nodes[task]).op_is::<Fused>());
    let memory = Memory { peak: slots.peak, given: usage.given, allocations: usage.allocations };
    let lent = slots.lent.into_iter().zip(slots.kept).map(|(results, operands)| Lent { results, operands });
    let buffers = Buffers { nodes: order.iter().map(|&task| nodes[task]).zip(lent).collect(), count: slots.count };
    let outputs = model.outputs.clone();
    // The only constructor that takes an order.
    #[allow(deprecated)]
    let plan = SimplePlan::build_with_outputs_and_deps(model, &outputs, &chain, options).map_err(failed)?;
    Ok(Planned { plan, memory: known.then_some(memory), buffers: known.then_some(buffers) })
}

/// Whether some large result of a node is needed less long than another of its results. `at` are places in the order.
fn ends_apart(model: &TypedModel, id: usize, at: &HashMap<usize, usize>) -> TractResult<bool> {
    let mut ends = vec![];
    for from in (0..model.node(id).outputs.len()).map(|slot| OutletId::new(id, slot)) {
        let last = model.outlet_successors(from).iter().filter_map(|reader| at.get(&reader.node)).max().copied();
        let end = if model.outputs.contains(&from) { Some(usize::MAX) } else { last };
        let large = model.outlet_fact(from)?.shape.as_concrete().is_none_or(|s| s.iter().product::<usize>() >= LEAST);
        ends.push((end, large));
    }
    let last = ends.iter().map(|(end, _)| *end).max().flatten();
    Ok(ends.iter().any(|(end, large)| *large && *end != last))
}

/// Lets nodes of their own hand on each result of a node that has several: tract keeps them all for as long as one is
/// needed. Returns the new nodes.
fn hand_on(model: &mut TypedModel, id: usize) -> TractResult<Vec<usize>> {
    let outlets = model.node(id).outputs.len();
    let mut added = vec![];
    for from in (0..outlets).map(|slot| OutletId::new(id, slot)) {
        let (fact, readers) = (model.outlet_fact(from)?.clone(), model.outlet_successors(from).to_vec());
        if readers.is_empty() && !model.outputs.contains(&from) {
            continue;
        }
        let name = format!("{}.{}", model.node(id).name, from.slot);
        let to = OutletId::new(model.add_node(name, Identity, tvec![fact])?, 0);
        model.add_edge(from, InletId::new(to.node, 0))?;
        readers.into_iter().try_for_each(|reader| model.add_edge(to, reader))?;
        model.outputs.iter_mut().filter(|output| **output == from).for_each(|output| *output = to);
        added.push(to.node);
    }
    Ok(added)
}

/// The nodes that compute something as tasks, with the node of each task.
fn work(
    model: &TypedModel,
    places: &HashMap<String, usize>,
    is_state: &dyn Fn(&str) -> bool,
) -> TractResult<(Work, Vec<usize>)> {
    let mut work = Work::default();
    let mut values: HashMap<OutletId, usize> = HashMap::new();
    let (mut nodes, mut place_of): (Vec<usize>, HashMap<usize, usize>) = Default::default();
    for id in model.eval_order()? {
        let node = model.node(id);
        let (source, constant) = (node.op_is::<TypedSource>(), node.op_is::<Const>());
        let fed = source && !is_state(&node.name);
        let made: Vec<usize> = node
            .outputs
            .iter()
            .enumerate()
            .map(|(slot, outlet)| {
                let bytes = bytes(&outlet.fact);
                let value = match () {
                    _ if fed => work.fed(bytes),
                    _ if source || constant => work.given(bytes),
                    _ => work.made(bytes),
                };
                values.insert(OutletId::new(id, slot), value);
                value
            })
            .collect();
        if source || constant {
            continue;
        }
        let before = node.inputs.iter().filter_map(|input| place_of.get(&input.node)).max().copied().unwrap_or(0);
        let place = place(&node.name, places).map_or(before, |place| place.max(before));
        place_of.insert(id, place);
        let reads: Vec<usize> = node.inputs.iter().map(|input| values[input]).collect();
        let in_place = in_place(model, node)?.into_iter().map(|(i, j)| (reads[i], made[j])).collect();
        work.task(Task { reads, writes: made, in_place, place });
        nodes.push(id);
    }
    for output in &model.outputs {
        work.result(values[output]);
    }
    Ok((work, nodes))
}

/// The place in the file of the node that a node of the optimised model comes from: tract appends to its name.
fn place(name: &str, places: &HashMap<String, usize>) -> Option<usize> {
    let mut name = name;
    loop {
        match places.get(name) {
            Some(&place) => return Some(place),
            None => name = name.rsplit_once('.')?.0,
        }
    }
}

/// Bytes of a value, unknown extents counted as 1.
fn bytes(fact: &TypedFact) -> u64 {
    let len: u64 = fact.shape.iter().map(|d| d.to_usize().map_or(1, |n| n as u64)).product();
    len * fact.datum_type.size_of() as u64
}

/// Operands that a node overwrites with a result when nothing else needs them.
fn in_place(model: &TypedModel, node: &TypedNode) -> TractResult<Vec<(usize, usize)>> {
    let facts = model.node_input_facts(node.id)?;
    if let Some(fused) = node.op_as::<Fused>() {
        return fused.in_place(&facts);
    }
    let same = |i: usize| facts.get(i).is_some_and(|f| bytes(f) == bytes(&node.outputs[0].fact));
    let view = node.op_as::<AxisOp>().is_some_and(|op| !matches!(op, AxisOp::Move(..)));
    Ok(if (view || node.op_is::<ElementWiseOp>()) && same(0) { vec![(0, 0)] } else { vec![] })
}
