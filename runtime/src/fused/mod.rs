//! Limbeck's own operators (domain [`DOMAIN`]) as descriptions and kernels, whatever engine they run in. An engine reads
//! a node's attributes into a [`FusedOp`], asks it for shapes, and calls it on plain slices.

mod conv;
mod map;
mod product;

use conv::Conv;
use limbeck_kernels::{KernelError, Parallelism};
use map::Map;
use product::MatMul;
use std::fmt::{Debug, Display};

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

/// Operations of a call below which it runs on the calling thread alone.
const SERIAL_BELOW: f64 = 2e5;

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
    /// What the result of this number holds before the call (see [`FusedOp::in_place`]).
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

/// An operand of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand<'a> {
    /// Its extents.
    pub(crate) shape: &'a [usize],
    /// Its elements.
    pub(crate) elements: Elements<'a>,
}

/// One operator with its attributes. Its results are float32.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum FusedOp {
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
        match op_of(op_type) {
            Some("Map") => Map::parse(operands, results, attributes).map(FusedOp::Map),
            Some("FusedMatMul") => MatMul::parse(operands, results, attributes).map(FusedOp::MatMul),
            _ => Conv::parse(op_type, operands, results, attributes).map(FusedOp::Conv),
        }
    }

    /// The operator's type.
    pub(crate) fn op_type(&self) -> &'static str {
        match self {
            FusedOp::Conv(conv) => conv.op_type(),
            FusedOp::Map(_) => "Map",
            FusedOp::MatMul(_) => "FusedMatMul",
        }
    }

    /// Shapes of the results. Only a convolution's batch, the first extent, may be unknown.
    ///
    /// # Errors
    /// Shapes that do not fit together or with the attributes.
    pub(crate) fn output_shapes<D: Extent>(&self, operands: &[&[D]]) -> Result<Vec<Vec<D>>, FusedError> {
        match self {
            FusedOp::Conv(conv) => Ok(vec![conv.output_shape(operands)?]),
            FusedOp::Map(map) => map.output_shapes(operands),
            FusedOp::MatMul(product) => Ok(vec![product.output_shape(operands)?]),
        }
    }

    /// The results in whose memory an operand of type float32 may lie that nothing else needs.
    ///
    /// # Errors
    /// As [`FusedOp::output_shapes`].
    pub(crate) fn in_place(&self, operands: &[&[usize]], operand: usize) -> Result<Vec<usize>, FusedError> {
        match self {
            FusedOp::Conv(_) | FusedOp::MatMul(_) => Ok(vec![]),
            FusedOp::Map(map) => map.in_place(operands, operand),
        }
    }

    /// The threads of so many that a call is worth: one when it ends before a second has woken up.
    pub(crate) fn worth_threads(&self, operands: &[&[usize]], threads: usize) -> usize {
        let operations = match self {
            FusedOp::Conv(conv) => conv.operations(operands),
            FusedOp::Map(map) => map.operations(operands),
            FusedOp::MatMul(product) => product.operations(operands),
        };
        if operations < SERIAL_BELOW { 1 } else { threads }
    }

    /// Computes the results. What they hold before the call does not matter but where an operand lies in it.
    ///
    /// # Errors
    /// Operands that do not fit together, or with the length of a result.
    pub(crate) fn run(
        &self,
        operands: &[Operand<'_>],
        results: &mut [&mut [f32]],
        parallelism: Parallelism,
    ) -> Result<(), FusedError> {
        match (self, results) {
            (FusedOp::Map(map), results) => map.run(operands, results, parallelism),
            (FusedOp::Conv(conv), [result]) => conv.run(operands, result, parallelism),
            (FusedOp::MatMul(product), [result]) => product.run(operands, result, parallelism),
            (FusedOp::Conv(_) | FusedOp::MatMul(_), results) => {
                Err(FusedError(format!("{} has 1 result, not {}", self.op_type(), results.len())))
            }
        }
    }
}
