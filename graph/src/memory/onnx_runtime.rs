//! How ONNX Runtime runs a graph on the processor: in what order it takes the nodes, and in which blocks of memory it puts
//! what they make. The library's optimiser comes before that and is not followed.

use super::VIEWS;
use crate::{Graph, LIMBECK, Node, NodeId, ValueId};
use limbeck_plan::{Task, Work, depth_first, placed_for_depth_first};
use std::collections::{HashMap, HashSet};

/// Operators whose kernel may write over its first operand. Arithmetic is not among them.
const IN_PLACE: &[&str] = &[
    "Cast",
    "Celu",
    "Clip",
    "Elu",
    "HardSigmoid",
    "LeakyRelu",
    "LogSoftmax",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Softsign",
    "Tanh",
    "ThresholdedRelu",
    "Trilu",
];

/// So many operands and results of a map may share memory, the first ones, each with each: what the runtime tells the library.
const SHARED: (usize, usize) = (16, 8);

/// The graph as tasks in ONNX Runtime's order, with the node of each. The values of the work are blocks of memory, each
/// named by a graph's value that lies in it.
pub(super) fn work(graph: &Graph) -> (Work, Vec<NodeId>, Vec<ValueId>) {
    let order = order(graph);
    let blocks = Blocks::new(graph, &order);
    let (mut work, mut numbers, mut values) = (Work::default(), HashMap::new(), vec![]);
    let mut add = |work: &mut Work, values: &mut Vec<ValueId>, id: ValueId| {
        let block = blocks.of(id);
        *numbers.entry(block).or_insert_with(|| {
            values.push(block);
            let made = graph.producer(block).is_some();
            let number = if made { work.made(graph.bytes_of(block)) } else { work.given(graph.bytes_of(block)) };
            if made && !blocks.goes(block) {
                work.result(number);
            }
            number
        })
    };
    for (place, &id) in order.iter().enumerate() {
        let node = graph.node(id);
        let mut reads: Vec<usize> = node.reads().into_iter().map(|v| add(&mut work, &mut values, v)).collect();
        let mut writes = vec![];
        for &result in node.outputs.iter().flatten() {
            let number = add(&mut work, &mut values, result);
            if blocks.of(result) == result {
                writes.push(number)
            } else {
                reads.push(number)
            }
            let beside = beside(graph, node, result);
            if beside > 0 {
                values.push(result);
                writes.push(work.made(beside));
            }
        }
        work.task(Task { reads, writes, in_place: vec![], place });
    }
    for &input in &graph.inputs {
        add(&mut work, &mut values, input);
    }
    (work, order, values)
}

/// Bytes that the kernel takes beside a result.
fn beside(graph: &Graph, node: &Node, result: ValueId) -> u64 {
    // It selects from either side alone and joins the two.
    if node.is("", "Where") { 2 * graph.bytes_of(result) } else { 0 }
}

/// The order of running, for nodes that are placed as Limbeck's runtime places them.
fn order(graph: &Graph) -> Vec<NodeId> {
    let nodes = graph.node_ids();
    let makers = makers(graph, &nodes);
    let placed: Vec<NodeId> = placed_for_depth_first(&makers).into_iter().map(|n| nodes[n]).collect();
    depth_first(&self::makers(graph, &placed)).into_iter().map(|n| placed[n]).collect()
}

/// For each node, the nodes that make what it reads, by where they stand.
fn makers(graph: &Graph, nodes: &[NodeId]) -> Vec<Vec<usize>> {
    let places: HashMap<NodeId, usize> = nodes.iter().enumerate().map(|(place, &id)| (id, place)).collect();
    let makers = |id: &NodeId| {
        let makers = graph.node(*id).reads().into_iter().filter_map(|v| graph.producer(v));
        makers.filter_map(|id| places.get(&id).copied()).collect()
    };
    nodes.iter().map(makers).collect()
}

/// The block of each value, which is named by the first value in it.
struct Blocks<'g> {
    graph: &'g Graph,
    of: HashMap<ValueId, ValueId>,
    /// Uses to come of what lies in a block, one more for what is there before or after the run.
    uses: HashMap<ValueId, usize>,
    /// Blocks that nothing needs, the last one to become so at the end.
    dead: Vec<ValueId>,
    /// Blocks that are read: what no node reads keeps its block to the end.
    read: HashSet<ValueId>,
}

impl<'g> Blocks<'g> {
    fn new(graph: &'g Graph, order: &[NodeId]) -> Blocks<'g> {
        let mut blocks = Blocks { graph, of: HashMap::new(), uses: HashMap::new(), dead: vec![], read: HashSet::new() };
        let results = |node: &Node| node.outputs.iter().flatten().copied().collect::<Vec<_>>();
        for &id in order {
            let node = graph.node(id);
            for value in node.reads() {
                let first = usize::from(graph.producer(value).is_none());
                *blocks.uses.entry(value).or_insert(first) += 1;
            }
            results(node).into_iter().for_each(|value| *blocks.uses.entry(value).or_default() += 1);
        }
        graph.outputs.iter().for_each(|&value| *blocks.uses.entry(value).or_default() += 1);
        for &id in order {
            let node = graph.node(id);
            for (at, result) in node.outputs.iter().enumerate().filter_map(|(at, v)| v.map(|v| (at, v))) {
                let block = match graph.outputs.contains(&result) {
                    true => None,
                    false => blocks.operand(node, at, result).or_else(|| blocks.take_dead(result)),
                };
                if let Some(block) = block {
                    blocks.of.insert(result, block);
                    let more = blocks.uses.get(&result).copied().unwrap_or(0);
                    *blocks.uses.entry(block).or_default() += more;
                }
            }
            for value in node.reads() {
                blocks.read.insert(blocks.of(value));
            }
            for value in node.reads().into_iter().chain(results(node)) {
                let block = blocks.of(value);
                let left = blocks.uses.entry(block).or_insert(1);
                *left -= 1;
                if *left == 0 {
                    blocks.dead.push(block);
                }
            }
        }
        blocks
    }

    /// The block that a value lies in.
    fn of(&self, value: ValueId) -> ValueId {
        self.of.get(&value).copied().unwrap_or(value)
    }

    /// Whether a block is freed within the run.
    fn goes(&self, block: ValueId) -> bool {
        self.read.contains(&block) && !self.graph.outputs.contains(&block)
    }

    /// The block of an operand that the result of this number lies in.
    fn operand(&self, node: &Node, at: usize, result: ValueId) -> Option<ValueId> {
        let standard = node.domain_or_default().is_empty();
        let first = node.input(0)?;
        if standard && VIEWS.contains(&node.op.as_str()) {
            return Some(self.of(first));
        }
        let last = |value| self.uses.get(&self.of(value)) == Some(&1);
        let free = |&value: &ValueId| last(value) && self.same_size(value, result);
        let map = node.is(LIMBECK, "Map") && at < SHARED.1;
        let operands = match (map, standard && IN_PLACE.contains(&node.op.as_str())) {
            (true, _) => SHARED.0,
            (false, true) => 1,
            (false, false) => 0,
        };
        node.inputs.iter().take(operands).flatten().copied().find(free).map(|value| self.of(value))
    }

    /// The dead block, of those of a result's size the last one to become so.
    fn take_dead(&mut self, result: ValueId) -> Option<ValueId> {
        let scalar = self.graph.shape(result).is_ok_and(|shape| shape.is_empty());
        let at = self.dead.iter().rposition(|&block| !scalar && self.same_size(block, result))?;
        Some(self.dead.remove(at))
    }

    /// Whether two values have one shape and elements of one size.
    fn same_size(&self, a: ValueId, b: ValueId) -> bool {
        let shape = |v| self.graph.ty(v).and_then(|ty| ty.concrete());
        self.graph.bytes_of(a) == self.graph.bytes_of(b) && shape(a).is_some() && shape(a) == shape(b)
    }
}
