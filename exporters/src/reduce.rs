//! Layer reduction: finds residual blocks that can be taken out, scores them on data, and takes them out.

use crate::ExportError;
use crate::edit::{fail, sole_reader};
use limbeck_graph::{Graph, Node, NodeId, ValueId};
use limbeck_tensor::TensorMap;
use std::collections::{BTreeSet, HashSet};

/// A single-entry, single-exit part of a graph between two values of one shape, with a residual connection around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What flows in.
    pub entry: ValueId,
    /// What flows out, of the same type.
    pub exit: ValueId,
    /// All nodes between, in execution order.
    pub nodes: Vec<NodeId>,
    /// Elements of the constants that only this block reads.
    pub parameters: u64,
    /// Name of the exit.
    pub name: String,
}

/// Finds the removable blocks in execution order: every Add that reads a value of its own shape directly, with all that
/// computes its other operand from that value alone. A Relu or normalisation behind the Add belongs to the block when the
/// value that flows in comes from the same kind of node (post-norm transformers, ResNets).
pub fn removable_blocks(graph: &Graph) -> Vec<Block> {
    let adds: Vec<NodeId> = graph.nodes().filter(|(_, n)| n.is("", "Add")).map(|(id, _)| id).collect();
    adds.into_iter().filter_map(|add| (0..2).find_map(|i| block_of(graph, add, i))).collect()
}

fn block_of(graph: &Graph, add: NodeId, operand: usize) -> Option<Block> {
    let node = graph.node(add);
    let (entry, mut exit) = (node.input(operand)?, node.output(0)?);
    if graph.constant(entry).is_some() || graph.ty(entry)? != graph.ty(exit)? {
        return None;
    }
    // Everything that the other operand needs, back to the entry or to constants.
    let mut inside: HashSet<NodeId> = HashSet::from([add]);
    let mut open = vec![node.input(1 - operand)?];
    let mut meets_entry = false;
    while let Some(value) = open.pop() {
        if value == entry {
            meets_entry = true;
        } else if let Some(producer) = graph.producer(value) {
            if inside.insert(producer) {
                open.extend(graph.node(producer).reads());
            }
        } else if graph.initializer(value).is_none() || graph.inputs.contains(&value) {
            return None;
        }
    }
    if let (true, Some(next), Some(before)) = (meets_entry, sole_reader(graph, exit), graph.producer(entry)) {
        let (next_node, op) = (graph.node(next), &graph.node(before).op);
        let kind = ["Relu", "LayerNormalization", "RMSNormalization", "BatchNormalization"];
        if next_node.op == *op && kind.contains(&op.as_str()) && next_node.input(0) == Some(exit) {
            exit = next_node.output(0)?;
            inside.insert(next);
        }
    }
    let leaks = |id: &NodeId| {
        graph.node(*id).outputs.iter().flatten().any(|&v| v != exit && is_read_outside(graph, v, &inside))
    };
    if !meets_entry || inside.iter().any(leaks) || graph.ty(entry)? != graph.ty(exit)? {
        return None;
    }
    let nodes: Vec<NodeId> = graph.node_ids().into_iter().filter(|n| inside.contains(n)).collect();
    let reads: BTreeSet<ValueId> = nodes.iter().flat_map(|&n| graph.node(n).reads()).collect();
    let own = reads.into_iter().filter(|&v| !is_read_outside(graph, v, &inside));
    let parameters = own.filter_map(|v| graph.initializer(v)).map(|t| t.len() as u64).sum();
    Some(Block { entry, exit, nodes, parameters, name: graph.name_of(exit).to_owned() })
}

fn is_read_outside(graph: &Graph, value: ValueId, inside: &HashSet<NodeId>) -> bool {
    graph.outputs.contains(&value) || graph.nodes().any(|(id, n)| !inside.contains(&id) && n.reads().contains(&value))
}

/// Names of the values that [`score_blocks`] needs; make them outputs with [`crate::with_outputs`].
pub fn block_values(graph: &Graph, blocks: &[Block]) -> Vec<String> {
    let ids: BTreeSet<ValueId> = blocks.iter().flat_map(|b| [b.entry, b.exit]).collect();
    ids.into_iter().map(|id| graph.name_of(id).to_owned()).collect()
}

/// How much each block changes what flows through it: `1 - E[cos(entry, exit)]` over calibration batches (values by
/// name; those of graph inputs too). Rank 3 is taken token by token (`[N, S, D]`), anything else row by row. Low scores
/// go first. A row of zeros counts as unchanged when both sides are zero, else as cosine 0.
///
/// # Errors
/// A batch that lacks a value or holds shapes that differ between entry and exit; no batch at all.
pub fn score_blocks(
    graph: &Graph,
    blocks: &[Block],
    batches: impl IntoIterator<Item = Result<TensorMap, ExportError>>,
) -> Result<Vec<f64>, ExportError> {
    let mut sums = vec![(0.0, 0usize); blocks.len()];
    for batch in batches {
        let batch = batch?;
        for (block, (sum, count)) in blocks.iter().zip(&mut sums) {
            let get = |id: ValueId| match batch.get(graph.name_of(id)) {
                Some(t) => Ok(t),
                None => fail("reduce", format!("a batch lacks '{}'; see block_values()", graph.name_of(id))),
            };
            let (a, b) = (get(block.entry)?, get(block.exit)?);
            if a.shape() != b.shape() {
                return fail("reduce", format!("block '{}' turns {:?} into {:?}", block.name, a.shape(), b.shape()));
            }
            let rows = match a.shape() {
                [n, s, _] => n * s,
                [n, ..] => *n,
                [] => 1,
            };
            if a.is_empty() {
                continue;
            }
            let (x, y) = (a.to_f64_vec()?, b.to_f64_vec()?);
            let width = x.len() / rows;
            *sum += x.chunks(width).zip(y.chunks(width)).map(|(x, y)| cosine(x, y)).sum::<f64>();
            *count += rows;
        }
    }
    if sums.iter().any(|(_, n)| *n == 0) {
        return fail("reduce", "scores need at least one batch with rows");
    }
    Ok(sums.into_iter().map(|(sum, n)| 1.0 - sum / n as f64).collect())
}

fn cosine(x: &[f64], y: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (xx, yy) = (dot(x, x), dot(y, y));
    match (xx > 0.0, yy > 0.0) {
        (true, true) => dot(x, y) / (xx.sqrt() * yy.sqrt()),
        (false, false) => 1.0,
        _ => 0.0,
    }
}

/// Which blocks to take out first.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// The lowest scores of [`score_blocks`].
    Scores(Vec<f64>),
    /// From the last backwards: a baseline.
    Last,
    /// Every other, from the last backwards: a baseline.
    Alternate,
}

/// Chooses blocks to take out in one round: none of the first quarter, and at most `share` (a third is usual) of
/// `parameters`, the model's. Returns indices in execution order.
///
/// # Errors
/// As many scores as blocks are needed.
pub fn choose_blocks(blocks: &[Block], order: &Order, parameters: u64, share: f64) -> Result<Vec<usize>, ExportError> {
    let n = blocks.len();
    let mut ranked: Vec<usize> = (n.div_ceil(4)..n).collect();
    match order {
        Order::Scores(scores) if scores.len() != n => {
            return fail("reduce", format!("{n} blocks have {} scores", scores.len()));
        }
        Order::Scores(scores) => ranked.sort_by(|&a, &b| scores[a].total_cmp(&scores[b])),
        Order::Last => ranked.reverse(),
        Order::Alternate => {
            ranked.reverse();
            ranked = ranked.into_iter().step_by(2).collect();
        }
    }
    let mut left = parameters as f64 * share;
    let mut chosen: Vec<usize> = vec![];
    for i in ranked {
        if blocks[i].parameters as f64 > left {
            break;
        }
        left -= blocks[i].parameters as f64;
        chosen.push(i);
    }
    chosen.sort_unstable();
    Ok(chosen)
}

/// Takes a block out: readers of its exit read its entry.
///
/// # Errors
/// A block of another graph, or one of which something else was changed since.
pub fn remove_block(graph: &mut Graph, block: &Block) -> Result<(), ExportError> {
    remove_blocks(graph, std::slice::from_ref(block))
}

/// Takes several blocks of one search out. One block's exit may be the next one's entry.
///
/// # Errors
/// As [`remove_block`].
pub fn remove_blocks(graph: &mut Graph, blocks: &[Block]) -> Result<(), ExportError> {
    // From the back, so that an exit still exists when the block behind it has gone.
    let place = |b: &Block| graph.node_ids().iter().position(|n| b.nodes.last() == Some(n));
    let mut placed: Vec<(usize, &Block)> = vec![];
    for block in blocks {
        match place(block).filter(|_| graph.producer(block.exit) == block.nodes.last().copied()) {
            Some(at) => placed.push((at, block)),
            None => return fail("reduce", format!("'{}' is no block of this graph", block.name)),
        }
    }
    placed.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    for (at, block) in placed {
        let (mut from, ids) = (block.entry, graph.node_ids());
        let fixed = graph.inputs.contains(&from) || graph.outputs.contains(&from);
        if graph.outputs.contains(&block.exit) && fixed {
            let first = *block.nodes.first().unwrap_or(&ids[at]);
            let name = format!("{}.kept", graph.name_of(from));
            from = crate::edit::before(graph, first, Node::new("Identity", &[from], &[]), &name);
        }
        graph.replace_uses(block.exit, from);
    }
    graph.remove_dead();
    graph.verify()?;
    Ok(())
}
