//! Results that a Scan's body gives slice by slice and reads itself get copies. tract 0.23.9 gives slices the axis along
//! which they are stacked, and then all else that reads them.

use crate::ops::Looped;
use crate::{Graph, Node, ValueSet};

impl Graph {
    /// Parts what the bodies of all Scans give in slices from what they read. Returns how many Scans that changes.
    pub(crate) fn part_slices(&mut self) -> usize {
        let mut parted = 0;
        for id in self.node_ids() {
            let node = self.node(id);
            if node.subgraphs().next().is_none() {
                continue;
            }
            let first = Looped::of(node).ok().filter(|form| !form.counts).map(|form| form.carried);
            let mut node = node.clone();
            let before = parted;
            for body in node.subgraphs_mut() {
                parted += body.part_slices();
                parted += usize::from(first.is_some_and(|first| body.copy_read_results(first)));
            }
            if parted > before {
                *self.node_mut(id) = Node { changed: true, ..node };
            }
        }
        parted
    }

    /// Gives copies as outputs, from `first` on, of what nodes read or another output is. Tells whether there are any.
    fn copy_read_results(&mut self, first: usize) -> bool {
        let mut read: ValueSet = self.nodes().flat_map(|(_, node)| node.operands()).collect();
        read.extend(self.outputs.iter().take(first).copied());
        let nodes = self.node_count();
        for i in first..self.outputs.len() {
            let own = self.outputs[i];
            if !read.insert(own) {
                let copy = self.add_value(format!("{}.slice", self.name_of(own)), self.ty(own).cloned());
                self.add_node(Node::new("Identity", &[own], &[copy]));
                self.outputs[i] = copy;
            }
        }
        self.node_count() > nodes
    }
}

#[cfg(test)]
mod tests {
    use crate::{Attr, Cx, Graph};
    use limbeck_tensor::{DType, Tensor, TensorMap};

    /// `s <- 2 (s + x)` over `x` `[3]`, and each `s + x`.
    #[test]
    fn results_that_are_read_get_copies() {
        let cx = Cx::new("scan", DType::F64);
        let (x, start) = (cx.input("x", DType::F64, &[3]), cx.scalar(1.0));
        let body = cx.body("scan");
        let scalar = || crate::TensorType::new(DType::F64, &[]);
        let sum = body.operand("sum", scalar()) + body.operand("x", scalar());
        body.result(sum * 2.0);
        body.result(sum);
        let attrs = [("body", Attr::from(body.finish_body().unwrap())), ("num_scan_inputs", 1i64.into())];
        let results = cx.op_n("", "Scan", &[Some(start), Some(x)], &attrs, 2);
        ["last", "sums"].into_iter().zip(results).for_each(|(name, v)| cx.output(name, v));
        let mut graph = cx.finish().unwrap();
        let values = |graph: &Graph| {
            let feeds = TensorMap::from([("x".to_owned(), Tensor::new([3], vec![1.0, 2.0, 4.0]).unwrap())]);
            graph.evaluate(&feeds).unwrap()
        };
        let before = values(&graph);
        assert_eq!(graph.part_slices(), 1);
        graph.verify().unwrap();
        assert_eq!(values(&graph), before);
        assert_eq!(graph.part_slices(), 0);
    }
}
