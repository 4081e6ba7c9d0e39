//! Sums that follow from others: over the same axes, `sum(a + c b) = sum(a) + c sum(b)` where `c` does not vary along them,
//! and `sum(x - mean(x)) = 0`. In the gradient of a normalisation by batch statistics the last of three sums is made of
//! the first two, and one pass over the activations less is made.

use super::fuse::element::{Element, element, kept};
use crate::{Graph, Node, NodeId, ValueId};
use std::cell::Cell;
use std::collections::HashMap;

/// The most terms that a sum is taken apart into.
const MOST_TERMS: usize = 8;

/// The most nodes that are looked at for one sum.
const MOST_NODES: usize = 64;

/// A term of a sum whose own sum is known.
struct Term {
    negative: bool,
    /// Factors that do not vary along the axes.
    factors: Vec<ValueId>,
    sum: ValueId,
}

/// Sums found so far: what is summed, over which axes, and the result with those kept.
type Known = HashMap<(ValueId, Vec<usize>), ValueId>;

impl Graph {
    /// Computes sums from those that they follow from.
    pub(super) fn derive_sums(&mut self) {
        let order = self.node_ids();
        let mut known = Known::new();
        let mut ahead: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
        for &id in &order {
            let node = self.node(id);
            if !node.is("", "ReduceSum") {
                continue;
            }
            let Some(Element { shape, axes: Some(axes), keeps: true, operands, result }) = element(self, node) else {
                continue;
            };
            let mut terms = vec![];
            let search = Search { graph: self, shape: &shape, axes: &axes, known: &known, left: Cell::new(MOST_NODES) };
            if search.terms(operands[0], false, &[], &mut terms).is_some() && !terms.is_empty() {
                ahead.insert(id, self.replace_by_terms(id, result, &terms));
            }
            known.insert((operands[0], axes), result);
        }
        if !ahead.is_empty() {
            let order = order.into_iter();
            self.set_order(
                order.flat_map(|id| ahead.remove(&id).unwrap_or_default().into_iter().chain([id])).collect(),
            );
        }
    }

    /// Makes the node compute its result from terms. Returns the nodes that have to run ahead of it.
    fn replace_by_terms(&mut self, id: NodeId, result: ValueId, terms: &[Term]) -> Vec<NodeId> {
        let mut steps: Vec<(&str, Vec<ValueId>, ValueId)> = vec![];
        let ty = self.ty(result).cloned();
        let mut total = None;
        for term in terms {
            let mut value = term.sum;
            for &factor in &term.factors {
                let product = self.add_value(self.free_name("term"), ty.clone());
                steps.push(("Mul", vec![value, factor], product));
                value = product;
            }
            let (op, operands) = match (total, term.negative) {
                (None, false) => {
                    total = Some(value);
                    continue;
                }
                (None, true) => ("Neg", vec![value]),
                (Some(total), false) => ("Add", vec![total, value]),
                (Some(total), true) => ("Sub", vec![total, value]),
            };
            let joint = self.add_value(self.free_name("sum"), ty.clone());
            steps.push((op, operands, joint));
            total = Some(joint);
        }
        let last = steps.pop().unwrap_or(("Identity", total.into_iter().collect(), result));
        let node = |(op, inputs, output): &(&str, Vec<ValueId>, ValueId)| Node::new(op, inputs, &[*output]);
        let ahead = steps.iter().map(|step| self.add_node(node(step))).collect();
        let name = self.node(id).name.clone();
        *self.node_mut(id) = Node { name, ..node(&(last.0, last.1, result)) };
        ahead
    }
}

struct Search<'g> {
    graph: &'g Graph,
    shape: &'g [usize],
    axes: &'g [usize],
    known: &'g Known,
    /// How many nodes may still be looked at.
    left: Cell<usize>,
}

impl Search<'_> {
    /// Adds the terms of a value to `terms`; `None` if the sum of one is not known.
    fn terms(&self, value: ValueId, negative: bool, factors: &[ValueId], terms: &mut Vec<Term>) -> Option<()> {
        self.left.set(self.left.get().checked_sub(1)?);
        if terms.len() > MOST_TERMS || factors.len() > MOST_TERMS {
            return None;
        }
        if let Some(&sum) = self.known.get(&(value, self.axes.to_vec())) {
            terms.push(Term { negative, factors: factors.to_vec(), sum });
            return Some(());
        }
        let node = self.graph.node(self.graph.producer(value)?);
        if !node.domain_or_default().is_empty() {
            return None;
        }
        let (a, b) = (node.input(0), node.input(1));
        match node.op.as_str() {
            "Neg" => self.terms(a?, !negative, factors, terms),
            "Sub" if self.is_mean(b?, a?) => Some(()),
            op @ ("Add" | "Sub") if self.is_whole(a?) && self.is_whole(b?) => {
                self.terms(a?, negative, factors, terms)?;
                self.terms(b?, negative != (op == "Sub"), factors, terms)
            }
            "Mul" => {
                let (whole, factor) = if self.is_factor(b?) { (a?, b?) } else { (b?, a?) };
                if !self.is_whole(whole) || !self.is_factor(factor) {
                    return None;
                }
                self.terms(whole, negative, &[factors, &[factor]].concat(), terms)
            }
            _ => None,
        }
    }

    fn is_whole(&self, value: ValueId) -> bool {
        self.graph.shape(value).is_ok_and(|shape| shape == self.shape)
    }

    /// Whether a value is the same all along the axes.
    fn is_factor(&self, value: ValueId) -> bool {
        let Ok(shape) = self.graph.shape(value) else { return false };
        let Some(first) = self.shape.len().checked_sub(shape.len()) else { return false };
        self.axes.iter().all(|&axis| axis < first || shape[axis - first] == 1)
    }

    /// Whether `mean` is the mean of `x` along the axes.
    fn is_mean(&self, mean: ValueId, x: ValueId) -> bool {
        let Some(node) = self.graph.producer(mean).map(|id| self.graph.node(id)) else { return false };
        let own = || element(self.graph, node).filter(|e| e.operands == [x] && e.axes.as_deref() == Some(self.axes));
        let keeps = || self.graph.shape(mean).is_ok_and(|shape| shape == kept(self.shape, self.axes));
        node.is("", "ReduceMean") && self.is_whole(x) && own().is_some() && keeps()
    }
}

#[cfg(test)]
mod tests {
    use crate::{Cx, Form, Graph};
    use limbeck_tensor::{DType, Tensor, TensorMap};

    fn values(shape: &[usize], seed: usize) -> Tensor {
        let value = |i: usize| ((i * 7 + seed * 13) % 29) as f32 / 29.0 - 0.3;
        Tensor::new(shape, (0..shape.iter().product()).map(value).collect::<Vec<f32>>()).unwrap()
    }

    /// Channel sums of `g` and of a sum of `g` and centred values with factors by channel, in the order of a gradient.
    fn sums(mean_axes: &[i64]) -> Graph {
        let cx = Cx::new("sums", DType::F32);
        let [x, g] = ["x", "g"].map(|name| cx.input(name, DType::F32, &[3, 4, 5]));
        let [c, d] = ["c", "d"].map(|name| cx.input(name, DType::F32, &[1, 4, 1]));
        let centred = x - x.mean_keep(mean_axes);
        cx.output("first", g.sum_keep(&[0, 2]));
        cx.output("second", (-(g * c - centred * d)).sum_keep(&[0, 2]));
        cx.finish().unwrap()
    }

    fn check(graph: &Graph, sums: usize) {
        let feeds: TensorMap = (graph.inputs.iter().enumerate())
            .map(|(i, &v)| (graph.name_of(v).to_owned(), values(&graph.shape(v).unwrap(), i)))
            .collect();
        let want = graph.evaluate(&feeds).unwrap();
        for form in [Form::Portable, Form::Fused] {
            let lowered = graph.lowered(form).unwrap();
            let got = lowered.evaluate(&feeds).unwrap();
            for (name, want) in &want {
                let (want, got) = (want.to_f64_vec().unwrap(), got[name].to_f64_vec().unwrap());
                want.iter().zip(&got).for_each(|(a, b)| assert!((a - b).abs() < 1e-5, "{name}: {a} {b}"));
            }
            let plain = lowered.nodes().filter(|(_, node)| node.op == "ReduceSum").count();
            let maps = lowered.nodes().filter_map(|(_, node)| node.str("ops"));
            let within: usize = maps.map(|ops| ops.split(' ').filter(|op| *op == "ReduceSum").count()).sum();
            assert_eq!(plain + within, sums, "{form:?}");
        }
    }

    #[test]
    fn a_sum_is_made_of_known_ones() {
        check(&sums(&[0, 2]), 1);
    }

    #[test]
    fn a_mean_over_other_axes_leaves_a_sum() {
        check(&sums(&[0]), 2);
    }

    /// Taken apart without a bound, `2^100 (x - mean(x))` by doubling would never end.
    #[test]
    fn what_has_too_many_terms_is_summed() {
        let cx = Cx::new("doubled", DType::F32);
        let x = cx.input("x", DType::F32, &[3, 4, 5]);
        let centred = x - x.mean_keep(&[0, 2]);
        cx.output("sum", (0..100).fold(centred, |v, _| v + v).sum_keep(&[0, 2]));
        let lowered = cx.finish().unwrap().lowered(Form::Portable).unwrap();
        assert_eq!(lowered.nodes().filter(|(_, node)| node.op == "ReduceSum").count(), 1);
    }
}
