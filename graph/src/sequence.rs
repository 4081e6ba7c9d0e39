//! Sequences that only pass parts of a tensor on: `SplitToSequence` whose parts are all taken by `SequenceAt` at constant
//! positions becomes `Split`, which has types, an evaluation and a gradient.

use crate::ops::normalize_axis;
use crate::{Graph, Node, NodeId, ValueId};
use limbeck_tensor::Tensor;
use std::collections::{HashMap, HashSet};

/// Most parts that a sequence is unpacked to.
const MOST: usize = 1024;

/// What stands for a sequence.
struct Parts {
    /// The `SequenceAt` nodes and the parts they take.
    taken: Vec<(NodeId, usize)>,
    /// Extents along the axis.
    sizes: Vec<i64>,
    axis: i64,
    /// The parts are of extent 1, and lose the axis.
    squeezed: bool,
}

impl Graph {
    /// Unpacks the sequences whose number of parts is known. Returns how many.
    pub(crate) fn unpack_sequences(&mut self) -> usize {
        let mut splits = self.nodes().filter(|(_, n)| n.is("", "SplitToSequence")).peekable();
        if splits.peek().is_none() {
            return 0;
        }
        let readers = self.consumers();
        let found: Vec<(NodeId, Parts)> =
            splits.filter_map(|(id, node)| Some((id, self.parts(node, &readers)?))).collect();
        for (id, parts) in &found {
            self.unpack(*id, parts);
        }
        found.len()
    }

    fn parts(&self, node: &Node, readers: &HashMap<ValueId, Vec<NodeId>>) -> Option<Parts> {
        let (sequence, x) = (node.output(0)?, node.input(0)?);
        let numbers = |id: ValueId| {
            let fixed = self.constant(id).filter(|t| t.len() <= MOST && !self.inputs.contains(&id))?;
            Some((fixed.shape().is_empty(), fixed.to_i64_vec().ok()?))
        };
        let dims = self.ty(x)?.dims.as_ref()?;
        let axis = normalize_axis(node.int("axis").unwrap_or(0), dims.len()).ok()?;
        let extent = dims[axis].known().and_then(|n| i64::try_from(n).ok());
        let given = node.inputs.get(1).copied().flatten();
        let sizes = match given {
            None => even(extent?, 1)?,
            Some(split) => match numbers(split)? {
                (true, size) => even(extent?, *size.first()?)?,
                (false, sizes) => sizes,
            },
        };
        let at = |id: &NodeId| {
            let reader = self.node(*id);
            let (_, position) = numbers(reader.input(1).filter(|_| reader.is("", "SequenceAt"))?)?;
            Some((*id, normalize_axis(*position.first()?, sizes.len()).ok()?))
        };
        let taken = readers.get(&sequence)?.iter().map(at).collect::<Option<Vec<_>>>()?;
        let squeezed = given.is_none() && node.int("keepdims").unwrap_or(1) == 0;
        (!self.outputs.contains(&sequence)).then_some(Parts { taken, sizes, axis: axis as i64, squeezed })
    }

    fn unpack(&mut self, split: NodeId, parts: &Parts) {
        let Some(x) = self.node(split).input(0) else { return };
        let vector = |values: &[i64]| Tensor::new([values.len()], values.to_vec()).ok();
        let (Some(sizes), Some(axes)) = (vector(&parts.sizes), vector(&[parts.axis])) else { return };
        let label = self.label(split);
        let sizes = self.add_literal(format!("{label}.sizes"), sizes);
        let axes = parts.squeezed.then(|| self.add_literal(format!("{label}.axes"), axes));
        let outputs: Vec<ValueId> =
            (0..parts.sizes.len()).map(|i| self.add_value(format!("{label}.{i}"), None)).collect();
        self.insert_node_before(split, Node::new("Split", &[x, sizes], &outputs).with("axis", parts.axis));
        for &(id, part) in &parts.taken {
            let Some(result) = self.node(id).output(0) else { continue };
            let node = match axes {
                Some(axes) => Node::new("Squeeze", &[outputs[part], axes], &[result]),
                None => Node::new("Identity", &[outputs[part]], &[result]),
            };
            self.insert_node_before(id, node);
        }
        let gone: HashSet<NodeId> = parts.taken.iter().map(|(id, _)| *id).chain([split]).collect();
        self.remove_nodes(&gone);
    }
}

/// Extents of `n` cut into parts of `size`, the last of which may be smaller.
fn even(n: i64, size: i64) -> Option<Vec<i64>> {
    let count = usize::try_from(n.checked_add(size)?.checked_sub(1)?.checked_div(size)?).ok()?;
    let sizes = (0..n).step_by(usize::try_from(size).ok()?).map(|start| size.min(n - start));
    (count <= MOST).then(|| sizes.collect())
}

#[cfg(test)]
mod tests {
    use crate::{Graph, Node, TensorType};
    use limbeck_tensor::{DType, Tensor, TensorMap};

    /// `y` is the part of `x` `[2, 5]` at `position` of a split along the last axis.
    fn graph(split: Option<Tensor>, keepdims: i64, position: i64) -> Graph {
        let mut g = Graph::new("g");
        let x = g.add_input("x", TensorType::new(DType::F32, &[2, 5]));
        let split = split.map(|s| g.add_initializer("split", s));
        let position = g.add_initializer("position", Tensor::scalar(position));
        let [parts, y] = ["parts", "y"].map(|name| g.add_value(name, None));
        let operands: Vec<_> = [x].into_iter().chain(split).collect();
        let node = Node::new("SplitToSequence", &operands, &[parts]).with("axis", -1i64);
        g.add_node(node.with("keepdims", keepdims));
        g.add_node(Node::new("SequenceAt", &[parts, position], &[y]));
        g.outputs.push(y);
        g
    }

    #[test]
    fn parts_are_those_of_the_specification() {
        let x = TensorMap::from([("x".into(), Tensor::new([2, 5], (0..10).map(|v| v as f32).collect()).unwrap())]);
        let sizes = |values: &[i64]| Tensor::new([values.len()], values.to_vec()).unwrap();
        let cases: [(Option<Tensor>, i64, i64, &[usize], &[f64]); 5] = [
            (None, 1, 1, &[2, 1], &[1.0, 6.0]),
            (None, 0, -1, &[2], &[4.0, 9.0]),
            (Some(Tensor::scalar(2i64)), 1, -1, &[2, 1], &[4.0, 9.0]),
            // keepdims is for a split that is not given.
            (Some(Tensor::scalar(2i64)), 0, 0, &[2, 2], &[0.0, 1.0, 5.0, 6.0]),
            (Some(sizes(&[2, 3])), 1, 1, &[2, 3], &[2.0, 3.0, 4.0, 7.0, 8.0, 9.0]),
        ];
        for (split, keepdims, position, shape, values) in cases {
            let mut g = graph(split, keepdims, position);
            g.fold_shapes().unwrap();
            let y = &g.evaluate(&x).unwrap()["y"];
            assert_eq!((y.shape(), &y.to_f64_vec().unwrap()[..]), (shape, values), "{keepdims} {position}");
        }
    }

    #[test]
    fn a_sequence_with_other_readers_or_positions_stays() {
        let mut g = graph(None, 1, 7);
        let mut read = graph(None, 1, 0);
        let (parts, length) = (read.find("parts").unwrap(), read.add_value("length", None));
        read.add_node(Node::new("SequenceLength", &[parts], &[length]));
        read.outputs.push(length);
        let mut zero = graph(Some(Tensor::scalar(0i64)), 1, 0);
        assert_eq!([&mut g, &mut read, &mut zero].map(Graph::unpack_sequences), [0; 3]);
    }
}
