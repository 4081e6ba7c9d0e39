//! Matrix products.
//!
//! `FusedMatMul` multiplies `a [batch.., m, k]` by `b`, which has as many axes or just two: `[.., k, n]`. With `transA` or
//! `transB` the last two axes of an operand are exchanged first. All tensors are float32.

use super::plan::Kernel;
use super::{Attributes, Extent, FusedError, ensure};
use limbeck_kernels::Product;

/// A matrix product with its attributes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct MatMul {
    transpose: [bool; 2],
}

impl MatMul {
    pub(super) fn parse(operands: usize, results: usize, attributes: &dyn Attributes) -> Result<MatMul, FusedError> {
        ensure!(operands == 2 && results == 1, "FusedMatMul has 2 inputs and 1 output, not {operands} and {results}");
        let flag = |name: &str| Ok::<_, FusedError>(attributes.int(name)?.unwrap_or(0) != 0);
        Ok(MatMul { transpose: [flag("transA")?, flag("transB")?] })
    }

    pub(super) fn output_shape<D: Extent>(&self, operands: &[&[D]]) -> Result<Vec<D>, FusedError> {
        let [a, b] = *operands else { return Err(FusedError(format!("got {} operands, not 2", operands.len()))) };
        ensure!(a.len() >= 2 && b.len() >= 2, "{a:?} and {b:?} are no matrices");
        let ((batch, left), (own, right)) = (a.split_at(a.len() - 2), b.split_at(b.len() - 2));
        ensure!(own.is_empty() || own == batch, "{a:?} and {b:?} have other batches");
        let [ta, tb] = self.transpose.map(usize::from);
        ensure!(left[1 - ta] == right[tb], "{a:?} and {b:?} do not multiply with transA = {ta}, transB = {tb}");
        Ok([batch, &[left[ta].clone(), right[1 - tb].clone()]].concat())
    }

    pub(super) fn kernel(&self, operands: &[&[usize]]) -> Result<Kernel, FusedError> {
        let shape = self.output_shape(operands)?;
        let [.., rows, cols] = shape[..] else { return Err(FusedError::new("a product has two axes at least")) };
        let [a, b] = [operands[0], operands[1]];
        let batch = shape[..shape.len() - 2].iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let [transpose_a, transpose_b] = self.transpose;
        Ok(Kernel::Product(Product {
            batch: batch.ok_or_else(|| FusedError(format!("the batch of {a:?} overflows")))?,
            rows,
            cols,
            depth: a[a.len() - 1 - usize::from(transpose_a)],
            transpose_a,
            transpose_b,
            shared_b: b.len() == 2 && a.len() > 2,
        }))
    }
}
