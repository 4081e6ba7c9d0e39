//! Types of values: dtype and a shape whose dims may be named or unknown.

use limbeck_tensor::{DType, Tensor};
use std::fmt;
use std::sync::Arc;

/// Most dims that a shape may have. Bounds what a short list of inputs can make inference and reading allocate.
pub(crate) const MAX_RANK: usize = 64;

/// One extent of a shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A number.
    Known(usize),
    /// A symbol, such as `batch`; equal symbols are equal extents.
    Named(Arc<str>),
    /// Not known.
    Unknown,
}

impl Dim {
    /// The number, when known.
    pub fn known(&self) -> Option<usize> {
        match self {
            Dim::Known(n) => Some(*n),
            _ => None,
        }
    }
}

impl Dim {
    /// What two extents that are equal say together: a number beats a name, a name beats nothing, and of two names
    /// this one stays. `None` when the numbers differ.
    pub(crate) fn unify(&self, other: &Dim) -> Option<Dim> {
        match (self, other) {
            (Dim::Known(a), Dim::Known(b)) if a != b => None,
            (Dim::Known(_), _) | (_, Dim::Unknown) | (Dim::Named(_), Dim::Named(_)) => Some(self.clone()),
            _ => Some(other.clone()),
        }
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Dim {
        Dim::Known(n)
    }
}

impl From<&str> for Dim {
    fn from(name: &str) -> Dim {
        Dim::Named(name.into())
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Known(n) => write!(f, "{n}"),
            Dim::Named(n) => f.write_str(n),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

/// Type of a tensor value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Extents; `None` when even the rank is unknown.
    pub dims: Option<Vec<Dim>>,
}

impl TensorType {
    /// A type with a fully known shape.
    pub fn new(dtype: DType, shape: &[usize]) -> TensorType {
        TensorType { dtype, dims: Some(shape.iter().map(|&n| Dim::Known(n)).collect()) }
    }

    /// A type with dims.
    pub fn with_dims(dtype: DType, dims: Vec<Dim>) -> TensorType {
        TensorType { dtype, dims: Some(dims) }
    }

    /// The type of a tensor.
    pub fn of(tensor: &Tensor) -> TensorType {
        TensorType::new(tensor.dtype(), tensor.shape())
    }

    /// The shape when every extent is known.
    pub fn concrete(&self) -> Option<Vec<usize>> {
        self.dims.as_ref()?.iter().map(Dim::known).collect()
    }

    /// What two types of one value say together, dim by dim a number before a name before nothing. `None` when they
    /// contradict each other.
    pub fn unify(&self, other: &TensorType) -> Option<TensorType> {
        let dims = match (&self.dims, &other.dims) {
            (Some(a), Some(b)) if a.len() == b.len() => {
                Some(a.iter().zip(b).map(|(a, b)| a.unify(b)).collect::<Option<_>>()?)
            }
            (Some(_), Some(_)) => return None,
            (a, b) => a.clone().or_else(|| b.clone()),
        };
        (self.dtype == other.dtype).then_some(TensorType { dtype: self.dtype, dims })
    }

    /// Number of dimensions, when known.
    pub fn rank(&self) -> Option<usize> {
        self.dims.as_ref().map(Vec::len)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dtype)?;
        match &self.dims {
            None => write!(f, "[...]"),
            Some(dims) => {
                f.write_str("[")?;
                for (i, d) in dims.iter().enumerate() {
                    write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
        }
    }
}
