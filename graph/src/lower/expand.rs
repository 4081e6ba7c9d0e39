//! Operands that an operator would broadcast itself: what an `Expand` reads takes the place of what it makes.

use crate::ops::broadcast_shapes;
use crate::ops::map::ELEMENT_WISE;
use crate::{Graph, ValueId};

impl Graph {
    /// Lets element-wise nodes read the operand of an `Expand` instead of its result where their own shape stays. An
    /// expansion that nothing reads any more is left to [`Graph::remove_dead`].
    pub(super) fn look_through_expansions(&mut self) {
        for id in self.node_ids() {
            let node = self.node(id);
            let element_wise = ELEMENT_WISE.iter().any(|(op, operands)| node.is("", op) && *operands > 1);
            let Some(own) = node.output(0).and_then(|v| self.shape(v).ok()).filter(|_| element_wise) else { continue };
            let mut operands = node.inputs.clone();
            for i in 0..operands.len() {
                let source = |v: ValueId| {
                    let expand = self.node(self.producer(v)?);
                    expand.is("", "Expand").then(|| expand.input(0)).flatten()
                };
                let Some(source) = operands[i].and_then(source) else { continue };
                let kept = operands[i].replace(source);
                let shapes = operands.iter().flatten().map(|&v| self.shape(v).ok()).collect::<Option<Vec<_>>>();
                let joint = shapes.and_then(|s| s.iter().try_fold(vec![], |joint, s| broadcast_shapes(&joint, s).ok()));
                if joint.as_ref() != Some(&own) {
                    operands[i] = kept;
                }
            }
            if operands != self.node(id).inputs {
                self.node_mut(id).inputs = operands;
            }
        }
    }
}
