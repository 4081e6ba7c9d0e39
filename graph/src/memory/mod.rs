//! The memory of a graph's values over time: how much they take at one time, and the order of nodes that takes the least.

mod onnx_runtime;

use crate::ops::map::{Times, is_element_wise};
use crate::{Graph, GraphError, LIMBECK, Node, NodeId, ValueId};
use limbeck_plan::{Task, Usage, Work};
use std::collections::HashMap;

/// What a run of a graph takes, node after node in the graph's order, by liveness: a value takes memory from the node that
/// makes it to the last that reads it, and a value-by-value operator writes over an operand that nothing else needs. What
/// Limbeck's operators make and are the last to read lies in buffers that stay.
/// What engines use beside values (packed operands, columns of convolutions) is not in it, and neither are the values within
/// the body of a loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The most bytes at one time, all included, and buffers whether they are in use or not.
    pub peak_bytes: u64,
    /// Bytes of constants and of inputs that are not fed, which are there throughout.
    pub given_bytes: u64,
    /// Name and operator of the node that runs at the peak; `None` for a graph without nodes.
    pub at: Option<(String, String)>,
    /// The other values that live at the peak, with their bytes, the largest first.
    pub live: Vec<(String, u64)>,
    /// Values that get memory of their own in a run; the others take an operand's place.
    pub allocations: usize,
}

/// Operators whose result is their first operand in another shape.
const VIEWS: &[&str] = &["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"];

impl Graph {
    /// What a run takes. The inputs `fed` are given back once nothing needs them, the others are kept by someone else.
    ///
    /// # Errors
    /// A value without a concrete shape, by name.
    pub fn memory_plan(&self, fed: &[&str]) -> Result<MemoryPlan, GraphError> {
        self.require_shapes()?;
        let (work, nodes, values) = self.work(&HashMap::new(), fed);
        let order: Vec<usize> = (0..nodes.len()).collect();
        let usage = work.usage(&order);
        let buffered = work.slots(&order, &usage, &|task| self.node(nodes[task]).domain == LIMBECK);
        Ok(MemoryPlan { peak_bytes: buffered.peak, ..self.planned(&work, &usage, &nodes, &values) })
    }

    /// What a run takes on ONNX Runtime, which orders nodes and places values itself; all inputs are kept by someone else.
    /// What a kernel takes beside a result is listed under the result's name.
    ///
    /// The nodes are taken as they are. That holds for steps in the fused form; in those of the portable form the library's
    /// optimiser merges and moves nodes.
    ///
    /// # Errors
    /// A value without a concrete shape, by name.
    pub fn onnx_runtime_plan(&self) -> Result<MemoryPlan, GraphError> {
        self.require_shapes()?;
        let (work, nodes, values) = onnx_runtime::work(self);
        let usage = work.usage(&(0..nodes.len()).collect::<Vec<_>>());
        Ok(self.planned(&work, &usage, &nodes, &values))
    }

    /// An error that names a value without a concrete shape.
    fn require_shapes(&self) -> Result<(), GraphError> {
        let mut values = self.nodes().flat_map(|(_, node)| node.outputs.iter().flatten()).chain(&self.inputs);
        values.try_for_each(|id| self.shape(*id).map(|_| ()))
    }

    /// What tasks take, with the node of each and a value for each of theirs.
    fn planned(&self, work: &Work, usage: &Usage, nodes: &[NodeId], values: &[ValueId]) -> MemoryPlan {
        let mut live: Vec<(String, u64)> =
            usage.live.iter().map(|&v| (self.name_of(values[v]).to_owned(), work.bytes(v))).collect();
        live.sort_by(|a, b| (b.1, &a.0).cmp(&(a.1, &b.0)));
        let named = |id: NodeId| (self.label(id), self.node(id).op.clone());
        MemoryPlan {
            peak_bytes: usage.peak,
            given_bytes: usage.given,
            at: usage.at.map(|task| named(nodes[task])),
            live,
            allocations: usage.allocations,
        }
    }

    /// Orders the nodes so that each follows what it reads and the peak of [`Graph::memory_plan`] is low; otherwise by
    /// `places`, and without one by where they stand.
    pub(crate) fn order_for_memory(&mut self, places: &HashMap<NodeId, usize>) {
        let (work, nodes, _) = self.work(places, &[]);
        // Nodes in a circle stay as they are; the verifier names them.
        if let Some((order, _)) = work.ordered() {
            self.set_order(order.into_iter().map(|task| nodes[task]).collect());
        }
    }

    /// The graph as tasks, in the order of its nodes, with the node of each task and the value of each of its values.
    fn work(&self, places: &HashMap<NodeId, usize>, fed: &[&str]) -> (Work, Vec<NodeId>, Vec<ValueId>) {
        let mut work = Work::default();
        let (mut numbers, mut values) = (HashMap::new(), vec![]);
        let mut add = |work: &mut Work, id: ValueId| {
            *numbers.entry(id).or_insert_with(|| {
                values.push(id);
                match self.producer(id) {
                    Some(_) => work.made(self.bytes_of(id)),
                    None if fed.contains(&self.name_of(id)) => work.fed(self.bytes_of(id)),
                    None => work.given(self.bytes_of(id)),
                }
            })
        };
        let nodes = self.node_ids();
        for (place, &id) in nodes.iter().enumerate() {
            let node = self.node(id);
            let reads = node.operands().map(|v| add(&mut work, v)).collect();
            let writes = node.outputs.iter().flatten().map(|&v| add(&mut work, v)).collect();
            let in_place = self.in_place(node).into_iter();
            let in_place = in_place.map(|(a, b)| (add(&mut work, a), add(&mut work, b))).collect();
            let place = places.get(&id).copied().unwrap_or(place);
            work.task(Task { reads, writes, in_place, place });
        }
        for &output in &self.outputs {
            let number = add(&mut work, output);
            work.result(number);
        }
        for &input in &self.inputs {
            add(&mut work, input);
        }
        (work, nodes, values)
    }

    pub(crate) fn bytes_of(&self, id: ValueId) -> u64 {
        let bytes = self.ty(id).and_then(|ty| ty.dtype.byte_len(ty.concrete()?.iter().product()));
        bytes.unwrap_or(0) as u64
    }

    /// Operands in whose place results may lie.
    fn in_place(&self, node: &Node) -> Vec<(ValueId, ValueId)> {
        if node.is(LIMBECK, "Map") {
            let Ok(times) = Times::of(node) else { return vec![] };
            let of_time = |time| {
                let operands: Vec<ValueId> = times.operands(time).filter_map(|i| node.input(i)).collect();
                let outputs: Vec<ValueId> = times.results(time).filter_map(|i| node.output(i)).collect();
                self.value_by_value(&operands, &outputs)
            };
            return (0..times.count).flat_map(of_time).collect();
        }
        let outputs: Vec<ValueId> = node.outputs.iter().flatten().copied().collect();
        let operands: Vec<ValueId> = node.operands().collect();
        let standard = node.domain_or_default().is_empty();
        match (operands.first(), outputs.first()) {
            (Some(&operand), Some(&output)) if standard && VIEWS.contains(&node.op.as_str()) => vec![(operand, output)],
            _ if standard && is_element_wise(&node.op) => {
                let mut pairs = self.value_by_value(&operands, &outputs);
                pairs.retain(|&(a, b)| self.ty(a) == self.ty(b));
                pairs
            }
            _ => vec![],
        }
    }

    /// Pairs of an operand and a result of its type that have as many values. A result that is smaller than the widest
    /// operand is a reduction.
    fn value_by_value(&self, operands: &[ValueId], outputs: &[ValueId]) -> Vec<(ValueId, ValueId)> {
        let widest = operands.iter().chain(outputs).map(|&v| self.bytes_of(v)).max().unwrap_or(0);
        let dtype = |v: ValueId| self.ty(v).map(|ty| ty.dtype);
        let fits = |a: ValueId, b: ValueId| {
            self.bytes_of(a) == widest && self.bytes_of(b) == widest && dtype(a).is_some() && dtype(a) == dtype(b)
        };
        let pairs = operands.iter().flat_map(|&a| outputs.iter().map(move |&b| (a, b)));
        pairs.filter(|&(a, b)| fits(a, b)).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::Cx;
    use limbeck_tensor::DType;

    #[test]
    fn a_plan_counts_what_lives() {
        let cx = Cx::new("g", DType::F32);
        let [x, w] = ["x", "w"].map(|name| cx.input(name, DType::F32, &[2, 2]));
        let y = x.matmul(w).relu();
        cx.output("y", y.reshape(&[4]));
        let graph = cx.finish().unwrap();
        // 16 bytes each of x, w and the product, which ReLU and Reshape leave where it is, and 8 of the shape.
        let plan = graph.memory_plan(&[]).unwrap();
        assert_eq!((plan.peak_bytes, plan.given_bytes, plan.allocations), (56, 40, 1));
        assert_eq!(plan.at.unwrap().1, "MatMul");
        let plan = graph.memory_plan(&["x"]).unwrap();
        assert_eq!((plan.peak_bytes, plan.given_bytes), (56, 24));
        assert_eq!(plan.live.len(), 2, "x and the product: {:?}", plan.live);
    }

    #[test]
    fn open_shapes_are_named() {
        let mut graph = crate::Graph::new("g");
        let x = graph
            .add_input("x", crate::TensorType { dtype: DType::F32, dims: Some(vec![crate::Dim::Named("n".into())]) });
        graph.outputs.push(x);
        let error = graph.memory_plan(&[]).unwrap_err().to_string();
        assert!(error.contains("'x'") && error.contains("--dim"), "{error}");
    }
}
