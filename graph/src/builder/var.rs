//! The handle of a value under construction, and what can be asked of it.

use super::Cx;
use crate::{Dim, ValueId};
use limbeck_tensor::{DType, element_count};
use std::fmt;

/// A value of a graph under construction. Copyable; all operations are methods and operators.
#[derive(Clone, Copy)]
pub struct Var<'c> {
    cx: &'c Cx,
    id: ValueId,
}

impl<'c> Var<'c> {
    pub(super) fn new(cx: &'c Cx, id: ValueId) -> Var<'c> {
        Var { cx, id }
    }

    /// The graph under construction.
    pub fn cx(self) -> &'c Cx {
        self.cx
    }

    /// The value's id.
    pub fn id(self) -> ValueId {
        self.id
    }

    /// The value's name.
    pub fn name(self) -> String {
        self.cx.graph().name_of(self.id).to_owned()
    }

    /// Dtype; the context's float type when unknown (an error is then already kept).
    pub fn dtype(self) -> DType {
        self.cx.graph().ty(self.id).map_or(self.cx.float(), |t| t.dtype)
    }

    /// Concrete shape. When a dim is not known this is an error of the construction, and the shape is empty.
    #[track_caller]
    pub fn shape(self) -> Vec<usize> {
        let shape = self.cx.graph().shape(self.id);
        match shape {
            Ok(s) => s,
            Err(e) => {
                self.cx.fail(e);
                vec![]
            }
        }
    }

    /// Extents as far as they are known; `None` when even the rank is not.
    pub fn dims(self) -> Option<Vec<Dim>> {
        self.cx.graph().ty(self.id).and_then(|t| t.dims.clone())
    }

    /// Number of dimensions, whose extents need not be known. When it is not known itself this is an error of the
    /// construction, and the rank 0.
    #[track_caller]
    pub fn rank(self) -> usize {
        self.dims().map_or_else(|| self.shape().len(), |dims| dims.len())
    }

    /// Extent along `axis` (negative from the end), those of other axes need not be known; 1 after an error.
    #[track_caller]
    pub fn dim(self, axis: i64) -> usize {
        let rank = self.rank();
        match crate::ops::normalize_axis(axis, rank) {
            Ok(a) => match self.dims().and_then(|dims| dims.get(a)?.known()) {
                Some(n) => n,
                None => self.shape().get(a).copied().unwrap_or(1),
            },
            Err(e) => {
                self.cx.fail_with(e.0);
                1
            }
        }
    }

    /// Number of elements; 1 after an error (one that cannot be addressed is an error).
    #[track_caller]
    pub fn len(self) -> usize {
        element_count(&self.shape()).unwrap_or_else(|| {
            self.cx.fail_with(format!("{self:?} is too large to address"));
            1
        })
    }

    /// True when there are no elements.
    #[track_caller]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Var<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let graph = self.cx.graph();
        match graph.ty(self.id) {
            Some(t) => write!(f, "{}: {t}", graph.name_of(self.id)),
            None => write!(f, "{}: ?", graph.name_of(self.id)),
        }
    }
}
