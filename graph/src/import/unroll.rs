//! Scan and Loop with a known number of steps as these steps: gradients and engines then meet plain nodes only.

use crate::bodies::trip_count;
use crate::ops::{Looped, Slices};
use crate::{Graph, GraphError, Node, NodeId, ValueId};
use limbeck_tensor::Tensor;

/// Most nodes of a graph whose loops are unrolled.
const MOST_NODES: usize = 1 << 20;

/// A loop whose number of steps is known.
struct Unrolled {
    body: Graph,
    steps: usize,
    /// Values carried from step to step, before the first.
    state: Vec<ValueId>,
    /// What a step reads slices of, all `steps` long.
    read: Vec<(ValueId, Slices)>,
    /// What its slices are put together to.
    written: Vec<Slices>,
    /// True for Loop: its body also takes the step's number and a condition, and gives a condition.
    counts: bool,
}

impl Graph {
    /// Replaces a Scan or Loop of at most `most` steps by its steps; false when there is none. The graph must be
    /// canonical, and a Loop's condition constant.
    pub(crate) fn unroll_loop(&mut self, most: usize) -> Result<bool, GraphError> {
        let known = |id: NodeId| Some((id, self.as_unrolled(id)?));
        let fits = |(_, l): &(NodeId, Unrolled)| (1..=most).contains(&l.steps);
        let Some((id, unrolled)) = self.node_ids().into_iter().filter_map(known).find(fits) else { return Ok(false) };
        let more =
            unrolled.steps.saturating_mul(unrolled.body.node_count() + unrolled.read.len() + unrolled.written.len());
        if self.node_count().saturating_add(more) > MOST_NODES {
            let reason = format!("its {} steps would make more than {MOST_NODES} nodes; unroll fewer", unrolled.steps);
            return Err(GraphError::Node { node: self.label(id), op: self.node(id).full_op(), reason });
        }
        self.unroll(id, unrolled)?;
        Ok(true)
    }

    /// A Scan whose slices have a known number, or a Loop with a constant trip count that nothing ends earlier; all carried
    /// and scanned operands are present.
    fn as_unrolled(&self, id: NodeId) -> Option<Unrolled> {
        let node = self.node(id);
        let form = Looped::of(node).ok()?;
        let body = node.graph("body")?.clone();
        let operands: Vec<ValueId> = node.inputs.iter().skip(form.first()).copied().collect::<Option<_>>()?;
        let (state, read) = operands.split_at_checked(form.carried)?;
        let read: Vec<(ValueId, Slices)> = read.iter().copied().zip(form.read.iter().copied()).collect();
        let extent = |(v, s): &(ValueId, Slices)| {
            let dims = self.ty(*v)?.dims.as_deref()?;
            dims.get(crate::ops::normalize_axis(s.axis, dims.len()).ok()?)?.known()
        };
        let steps = if form.counts { trip_count(self, node) } else { extent(read.first()?) }?;
        let fits = body.inputs.len() == form.first() + operands.len() && read.iter().all(|r| extent(r) == Some(steps));
        let state = state.to_vec();
        fits.then_some(Unrolled { body, steps, state, read, written: form.written, counts: form.counts })
    }

    fn unroll(&mut self, id: NodeId, mut l: Unrolled) -> Result<(), GraphError> {
        let label = self.label(id);
        // All steps share the constants of the body, weights above all.
        self.take_constants(&mut l.body, "", |_, _| true);
        let mut state = l.state.clone();
        let mut parts: Vec<Vec<ValueId>> = l.written.iter().map(|_| vec![]).collect();
        let mut nodes = vec![];
        for step in 0..l.steps {
            let number = self.add_literal("step", Tensor::scalar(step as i64));
            let mut operands = vec![];
            if l.counts {
                operands.push(number);
                let holds = Tensor::bools([], &[true]).map_err(GraphError::from)?;
                operands.push(self.add_literal("condition", holds));
            }
            operands.extend(&state);
            for (from, slices) in &l.read {
                let at = if slices.backwards { l.steps - 1 - step } else { step };
                let index = self.add_literal("step", Tensor::scalar(at as i64));
                let slice = Node::new("Gather", &[*from, index], &[]).with("axis", slices.axis);
                operands.push(self.appended(&mut nodes, slice));
            }
            let results: Vec<ValueId> =
                l.body.outputs.iter().map(|&o| self.add_value(l.body.name_of(o), None)).collect();
            let wanted: Vec<Option<ValueId>> = results.iter().copied().map(Some).collect();
            let inputs = l.body.inputs.iter().copied().zip(operands);
            let captures = l.body.captures.iter().map(|c| (c.inner, c.outer));
            let place = inputs.chain(captures).map(|(inner, outer)| (inner, Some(outer))).collect();
            nodes.extend(self.expanded(id, &l.body, place, &wanted)?);
            let results = &results[usize::from(l.counts)..];
            state = results[..state.len()].to_vec();
            for ((part, own), slices) in parts.iter_mut().zip(&results[state.len()..]).zip(&l.written) {
                let axis = Tensor::new([1], vec![slices.axis]).map_err(GraphError::from)?;
                let axis = self.add_literal("axis", axis);
                let own = self.appended(&mut nodes, Node::new("Unsqueeze", &[*own, axis], &[]));
                part.insert(if slices.backwards { 0 } else { part.len() }, own);
            }
        }
        for (part, slices) in parts.iter().zip(&l.written) {
            state.push(self.appended(&mut nodes, Node::new("Concat", part, &[]).with("axis", slices.axis)));
        }
        let outputs = self.node(id).outputs.clone();
        if outputs.len() > state.len() {
            let reason = format!("has {} results, its body gives {}", outputs.len(), state.len());
            return Err(GraphError::Node { node: label, op: self.node(id).full_op(), reason });
        }
        for (output, value) in outputs.into_iter().zip(state) {
            nodes.extend(output.map(|output| Node::new("Identity", &[value], &[output])));
        }
        self.replace_node(id, nodes);
        Ok(())
    }

    /// Adds a node with one new result to the list.
    fn appended(&mut self, nodes: &mut Vec<Node>, mut node: Node) -> ValueId {
        let result = self.add_value(node.op.to_lowercase(), None);
        node.outputs = vec![Some(result)];
        nodes.push(node);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attr, Cx, ImportOptions, Meta, TensorType};
    use limbeck_tensor::{DType, TensorMap};

    /// `h <- w * h + x` with a weight of its own; also gives the new `h`, when `counts` as a body of Loop, whose `x` is
    /// the step's number.
    fn body(counts: bool) -> Graph {
        let cx = Cx::new("body", DType::F64);
        let w = cx.initializer("w", Tensor::new([2], vec![2.0, -1.0]).unwrap());
        if counts {
            let (i, go) = (cx.input("i", DType::I64, &[]), cx.input("go", DType::Bool, &[]));
            let next = w * cx.input("h", DType::F64, &[2]) + i.cast(DType::F64);
            cx.output("go_on", go);
            cx.output("next", next);
            cx.output("seen", next);
        } else {
            let next = w * cx.input("h", DType::F64, &[2]) + cx.input("x", DType::F64, &[2]);
            cx.output("next", next);
            cx.output("seen", next);
        }
        let mut graph = cx.finish().unwrap();
        graph.meta = Meta::default();
        graph
    }

    /// A graph with this loop over `h` `[2]` and, for Scan, `x` `[2, 3]` along its last axis.
    fn looped(op: &str, set: impl FnOnce(Node) -> Node) -> Graph {
        let cx = Cx::new("looped", DType::F64);
        let (h, x) = (cx.input("h", DType::F64, &[2]), cx.input("x", DType::F64, &[2, 3]));
        let trips = cx.scalar_of(3.0, DType::I64);
        cx.output("kept", x + 0.0);
        cx.output("trips", trips);
        let (h, x, trips) = (h.id(), x.id(), trips.id());
        let mut graph = cx.finish().unwrap();
        let ty = |shape: &[usize]| Some(TensorType::new(DType::F64, shape));
        let (last, seen) = (graph.add_value("last", ty(&[2])), graph.add_value("seen", None));
        let node = match op {
            "Scan" => Node::new("Scan", &[h, x], &[last, seen]).with("num_scan_inputs", 1i64),
            _ => {
                let mut node = Node::new("Loop", &[trips, trips, h], &[last, seen]);
                node.inputs[1] = None;
                node
            }
        };
        graph.add_node(set(node.with("body", Attr::Graph(Box::new(body(op == "Loop"))))));
        graph.outputs.extend([last, seen]);
        graph
    }

    fn results(mut graph: Graph, weights: usize) -> [Vec<f64>; 2] {
        let report = graph.import(&ImportOptions { unroll: 3, ..ImportOptions::default() }).unwrap();
        assert_eq!(report.loops, 1);
        assert!(graph.nodes().all(|(_, n)| n.subgraphs().next().is_none()));
        assert_eq!(graph.initializers().filter(|(id, _)| !graph.is_literal(*id)).count(), weights);
        let feeds = TensorMap::from([
            ("h".to_owned(), Tensor::new([2], vec![1.0, 2.0]).unwrap()),
            ("x".to_owned(), Tensor::new([2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap()),
        ]);
        let found = graph.evaluate(&feeds).unwrap();
        ["last", "seen"].map(|name| found[name].to_f64_vec().unwrap())
    }

    #[test]
    fn a_scan_becomes_its_steps_and_keeps_one_weight() {
        let axes = |node: Node| node.with("scan_input_axes", vec![1i64]);
        // 2 h + x from 1 with 1, 2, 3; x - h from 2 with 4, 5, 6.
        let [last, seen] = results(looped("Scan", axes), 1);
        assert_eq!(last, [19.0, 3.0]);
        assert_eq!(seen, [3.0, 2.0, 8.0, 3.0, 19.0, 3.0]);
        let backwards = |node: Node| {
            let node = axes(node).with("scan_input_directions", vec![1i64]).with("scan_output_axes", vec![1i64]);
            node.with("scan_output_directions", vec![1i64])
        };
        let [last, seen] = results(looped("Scan", backwards), 1);
        assert_eq!(last, [25.0, 3.0]);
        assert_eq!(seen, [25.0, 12.0, 5.0, 3.0, 1.0, 4.0]);
    }

    #[test]
    fn a_loop_of_known_length_becomes_its_steps() {
        // 2 h + i from 1, i - h from 2.
        let [last, seen] = results(looped("Loop", |node| node), 1);
        assert_eq!(last, [12.0, -1.0]);
        assert_eq!(seen, [2.0, -2.0, 5.0, 3.0, 12.0, -1.0]);
    }

    #[test]
    fn longer_loops_stay() {
        let mut graph = looped("Scan", |node| node.with("scan_input_axes", vec![1i64]));
        for unroll in [0, 2] {
            let report = graph.import(&ImportOptions { unroll, ..ImportOptions::default() }).unwrap();
            assert_eq!(report.loops, 0);
        }
        assert!(graph.nodes().any(|(_, n)| n.op == "Scan"));
    }
}
