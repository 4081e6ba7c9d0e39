//! `exp(log softmax(x))`, as gradients of cross-entropies and divergences have it, is the exponential that the logarithm was
//! taken of, over its sum: one exponential less a value.

use crate::{Graph, Node, NodeId, ValueId};
use std::collections::HashMap;

/// What `exp(a - log(sum(exp(a))))` is made of.
struct Softmax {
    /// `exp(a)`.
    exponential: ValueId,
    /// Its sum.
    sum: ValueId,
}

impl Graph {
    /// Makes softmaxes out of exponentials of their logarithms, where `a` is a difference from the largest value, so that no
    /// exponential overflows and the sum is 1 at least.
    pub(super) fn derive_softmax(&mut self) {
        let order = self.node_ids();
        let exponentials: HashMap<ValueId, ValueId> = (order.iter().map(|&id| self.node(id)))
            .filter(|node| node.is("", "Exp"))
            .filter_map(|node| Some((node.input(0)?, node.output(0)?)))
            .collect();
        let mut ahead: HashMap<NodeId, NodeId> = HashMap::new();
        for &id in &order {
            let Some(Softmax { exponential, sum }) = self.as_softmax(id, &exponentials) else { continue };
            let inverse = self.add_value(self.free_name("inverse"), self.ty(sum).cloned());
            ahead.insert(id, self.add_node(Node::new("Reciprocal", &[sum], &[inverse])));
            let node = self.node_mut(id);
            node.op = "Mul".to_owned();
            node.inputs = vec![Some(exponential), Some(inverse)];
        }
        if !ahead.is_empty() {
            self.set_order(order.into_iter().flat_map(|id| ahead.remove(&id).into_iter().chain([id])).collect());
        }
    }

    /// What the node is to be made of, if it is the exponential of a logarithm of a softmax.
    fn as_softmax(&self, id: NodeId, exponentials: &HashMap<ValueId, ValueId>) -> Option<Softmax> {
        let operand = |node: &Node, i: usize, op: &str| {
            let made = self.node(self.producer(node.input(i)?)?);
            made.is("", op).then_some(made)
        };
        let exp = Some(self.node(id)).filter(|node| node.is("", "Exp"))?;
        let difference = operand(exp, 0, "Sub")?;
        let shifted = operand(difference, 0, "Sub")?;
        let largest = operand(shifted, 1, "ReduceMax")?;
        let log = operand(difference, 1, "Log")?;
        let total = operand(log, 0, "ReduceSum")?;
        let exponential = *exponentials.get(&difference.input(0)?)?;
        let over_same = largest.input(0) == shifted.input(0) && largest.input(1) == total.input(1);
        let fits = over_same && total.input(0) == Some(exponential);
        fits.then_some(Softmax { exponential, sum: log.input(0)? })
    }
}

#[cfg(test)]
mod tests {
    use crate::{Cx, Form, Graph, Var};
    use limbeck_tensor::{DType, Tensor, TensorMap};

    /// Exponentials in the fused form, and how far its values are from the graph's.
    fn lowered(graph: &Graph, x: &[f32]) -> (usize, f64) {
        let feeds = TensorMap::from([("x".to_owned(), Tensor::new([2, x.len() / 2], x.to_vec()).unwrap())]);
        let lowered = graph.lowered(Form::Fused).unwrap();
        let plain = lowered.nodes().filter(|(_, node)| node.op == "Exp").count();
        let maps = lowered.nodes().filter_map(|(_, node)| node.str("ops"));
        let within: usize = maps.map(|ops| ops.split(' ').filter(|op| *op == "Exp").count()).sum();
        let [want, got] = [graph, &lowered].map(|g| g.evaluate(&feeds).unwrap()["y"].to_f64_vec().unwrap());
        let off = want.iter().zip(&got).map(|(a, b)| (a - b).abs());
        assert!(want.iter().zip(&got).all(|(a, b)| a.is_nan() == b.is_nan()), "{want:?} {got:?}");
        (plain + within, off.filter(|off| !off.is_nan()).fold(0.0, f64::max))
    }

    /// The exponential of a logarithm of `softmax(x)`, and that logarithm.
    fn graph(log: impl for<'c> Fn(Var<'c>) -> Var<'c>) -> Graph {
        let cx = Cx::new("softmax", DType::F32);
        let log = log(cx.input("x", DType::F32, &[2, 4]));
        cx.output("y", log.exp() * log);
        cx.finish().unwrap()
    }

    const ROWS: [f32; 8] = [1.0, -2.0, 0.5, 3.0, 90.0, -90.0, 88.0, 0.0];

    #[test]
    fn one_exponential_gives_a_softmax_and_its_logarithm() {
        let (exponentials, off) = lowered(&graph(|x| x.log_softmax(-1)), &ROWS);
        assert_eq!(exponentials, 1);
        assert!(off < 1e-6, "{off}");
        let (_, off) = lowered(&graph(|x| x.log_softmax(-1)), &[f32::NAN, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, f32::INFINITY]);
        assert!(off < 1e-6, "{off}");
    }

    /// Without the largest value taken off, `exp(90)` is infinite in float32, and a quotient of it no number.
    #[test]
    fn what_could_overflow_stays() {
        let (exponentials, _) = lowered(&graph(|x| x - x.exp().sum_keep(&[-1]).ln()), &ROWS);
        assert_eq!(exponentials, 2);
    }

    #[test]
    fn a_sum_over_another_axis_stays() {
        let other = graph(|x| {
            let shifted = x - x.max_keep(&[-1]);
            shifted - shifted.exp().sum_keep(&[0]).ln()
        });
        assert_eq!(lowered(&other, &ROWS).0, 2);
    }
}
