//! Limbeck's own operators (domain [`DOMAIN`]) as descriptions and kernels, whatever engine they run in. An engine reads
//! a node's attributes into a [`FusedOp`], asks it for shapes, and calls it on plain slices.

mod conv;
mod map;
mod plan;
mod product;

use conv::Conv;
use limbeck_kernels::KernelError;
use map::Map;
pub(crate) use plan::Plan;
use product::MatMul;
use std::fmt::{Debug, Display};
use std::sync::Arc;

/// Domain of the operators.
pub(crate) const DOMAIN: &str = "ai.limbeck";

/// Types of all operators.
pub(crate) const OPS: &[&str] = &["FusedConv", "ConvGradInput", "ConvGradWeight", "FusedMatMul", "Map"];

/// The operator that a node's type in a file stands for, `None` for an unknown one. A file tells the functions that define
/// an operator apart by a number behind its type, `FusedConv_2`.
pub(crate) fn op_of(op_type: &str) -> Option<&'static str> {
    let base = match op_type.rsplit_once('_') {
        Some((base, number)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => base,
        _ => op_type,
    };
    OPS.iter().copied().find(|op| *op == base)
}

/// Why a node or a call was refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct FusedError(String);

impl FusedError {
    /// Refused for this reason.
    pub(crate) fn new(reason: impl Display) -> FusedError {
        FusedError(reason.to_string())
    }
}

impl From<KernelError> for FusedError {
    fn from(error: KernelError) -> FusedError {
        FusedError::new(error)
    }
}

/// Returns an error unless a condition holds.
macro_rules! ensure {
    ($holds:expr, $($reason:tt)*) => {
        if !$holds {
            return Err(FusedError(format!($($reason)*)));
        }
    };
}
use ensure;

/// The attributes of one node, as its engine reads them. An attribute that the node lacks is `None`.
pub(crate) trait Attributes {
    /// An integer.
    fn int(&self, name: &str) -> Result<Option<i64>, FusedError>;

    /// A list of integers.
    fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, FusedError>;

    /// A string.
    fn string(&self, name: &str) -> Result<Option<String>, FusedError>;
}

/// An extent of a tensor's shape: a number, or what an engine has in place of one that it does not know yet.
pub(crate) trait Extent: Clone + PartialEq + Debug + From<usize> {
    /// The number, if it is known.
    fn known(&self) -> Option<usize>;
}

impl Extent for usize {
    fn known(&self) -> Option<usize> {
        Some(*self)
    }
}

/// Elements of an operand, dense and row-major.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Elements<'a> {
    /// float32.
    F32(&'a [f32]),
    /// bool, a byte each: 0 is false, anything else true.
    Bool(&'a [u8]),
    /// What the result of this number holds before the call (see [`Plan::in_place`]).
    Result(usize),
}

impl<'a> Elements<'a> {
    /// The elements of a float32 operand.
    pub(crate) fn floats(self) -> Result<&'a [f32], FusedError> {
        match self {
            Elements::F32(values) => Ok(values),
            Elements::Bool(values) => Err(FusedError(format!("takes float32 tensors, got {} bools", values.len()))),
            Elements::Result(j) => Err(FusedError(format!("an operand cannot lie in the memory of result {j}"))),
        }
    }
}

/// One operator with its attributes. Its results are float32.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct FusedOp {
    kind: Kind,
    last: plan::Last,
}

/// The kinds of operators.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    /// A convolution or one of its gradients.
    Conv(Conv),
    /// A chain of element-wise operators.
    Map(Map),
    /// A matrix product.
    MatMul(MatMul),
}

impl FusedOp {
    /// Reads a node of an operator type in [`OPS`] that has so many operands and results, absent ones at the end left out.
    ///
    /// # Errors
    /// Another type, another number of operands or results than it has, attributes that do not fit.
    pub(crate) fn parse(
        op_type: &str,
        operands: usize,
        results: usize,
        attributes: &dyn Attributes,
    ) -> Result<FusedOp, FusedError> {
        let kind = match op_of(op_type) {
            Some("Map") => Kind::Map(Map::parse(operands, results, attributes)?),
            Some("FusedMatMul") => Kind::MatMul(MatMul::parse(operands, results, attributes)?),
            _ => Kind::Conv(Conv::parse(op_type, operands, results, attributes)?),
        };
        Ok(FusedOp { kind, last: plan::Last::default() })
    }

    /// The operator's type.
    pub(crate) fn op_type(&self) -> &'static str {
        match &self.kind {
            Kind::Conv(conv) => conv.op_type(),
            Kind::Map(_) => "Map",
            Kind::MatMul(_) => "FusedMatMul",
        }
    }

    /// Shapes of the results. Only the batch of a convolution or a product, the first extent, may be unknown.
    ///
    /// # Errors
    /// Shapes that do not fit together or with the attributes.
    #[cfg(feature = "tract")]
    pub(crate) fn output_shapes<D: Extent>(&self, operands: &[&[D]]) -> Result<Vec<Vec<D>>, FusedError> {
        match &self.kind {
            Kind::Conv(conv) => Ok(vec![conv.output_shape(operands)?]),
            Kind::MatMul(product) => Ok(vec![product.output_shape(operands)?]),
            Kind::Map(_) => {
                let known = operands.iter().map(|shape| known(shape)).collect::<Result<Vec<_>, _>>()?;
                let plan = self.plan(&known.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
                Ok(plan.output_shapes().iter().map(|shape| shape.iter().map(|&n| D::from(n)).collect()).collect())
            }
        }
    }

    /// The operator for operands of these shapes.
    ///
    /// # Errors
    /// Shapes that do not fit together or with the attributes.
    pub(crate) fn plan(&self, operands: &[&[usize]]) -> Result<Arc<Plan>, FusedError> {
        self.last.plan(&self.kind, operands)
    }
}

/// The numbers that extents are.
fn known<D: Extent>(extents: &[D]) -> Result<Vec<usize>, FusedError> {
    let all: Option<Vec<usize>> = extents.iter().map(Extent::known).collect();
    all.ok_or_else(|| FusedError(format!("{extents:?} must be known before a run")))
}
