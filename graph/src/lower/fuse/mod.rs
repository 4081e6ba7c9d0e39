//! Fusing what works value by value into maps ([`crate::ops`]' `ai.limbeck.Map`): chains of arithmetic, comparisons and
//! reductions of float32 tensors become one node each, so that a kernel reads and writes memory once.
//!
//! Nodes join a group when they walk through the same extents, reduce over the same axes and no path leads out of the
//! group and back. What was reduced may be used within the group only if rows are reduced (the last axis), where a kernel
//! has the whole row at hand: a softmax or a layer normalisation is one map; batch statistics are the result of one map
//! and an operand of the next. Reductions of one value are one map too. A node joins none that ran long before it: the backward pass would else be partly computed in
//! the forward pass, and kept.
//!
//! Reshapes next to maps become part of them, and at the end of a step, where many small weights are updated alike, one map
//! does so for all of them.

pub(super) mod element;
mod emit;
mod group;
mod repeat;
mod reshape;
mod variance;

use super::frozen::Frozen;
use crate::{Graph, GraphError, NodeId};
use std::collections::HashMap;

impl Graph {
    /// Replaces element-wise nodes by maps, but for those `apart`. Shapes must be concrete.
    pub(super) fn fuse_maps(&mut self, apart: Option<&Frozen>) -> Result<(), GraphError> {
        variance::find(self);
        let mut places: HashMap<NodeId, usize> = self.node_ids().into_iter().zip(0..).collect();
        let groups = group::groups(self, apart);
        emit::emit(self, groups, &mut places);
        self.sort()?;
        reshape::absorb(self)?;
        repeat::join_equal(self, &mut places)?;
        self.order_for_memory(&places);
        self.remove_dead();
        self.verify()
    }
}
