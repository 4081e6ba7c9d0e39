//! Matrix products.
//!
//! `FusedMatMul` multiplies `a [batch.., m, k]` by `b`, which has as many axes or just two: `[.., k, n]`. The axes of an operand
//! are first put in the order `permA` or `permB`, then with `transA` or `transB` the last two are exchanged. The axes of the
//! product are put in the order `permY`. All tensors are float32.

use super::plan::Kernel;
use super::{Attributes, Extent, FusedError, ensure};
use limbeck_kernels::Product;

/// A matrix product with its attributes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct MatMul {
    transpose: [bool; 2],
    /// Orders of the axes of the operands and the result, where they are not as they are.
    orders: [Option<Vec<usize>>; 3],
}

impl MatMul {
    pub(super) fn parse(operands: usize, results: usize, attributes: &dyn Attributes) -> Result<MatMul, FusedError> {
        ensure!(operands == 2 && results == 1, "FusedMatMul has 2 inputs and 1 output, not {operands} and {results}");
        let flag = |name: &str| Ok::<_, FusedError>(attributes.int(name)?.unwrap_or(0) != 0);
        let order = |name: &str| match attributes.ints(name)? {
            None => Ok(None),
            Some(order) => {
                let axes = order.iter().map(|&axis| usize::try_from(axis).ok()).collect::<Option<Vec<_>>>();
                ensure!(
                    (0..order.len() as i64).all(|axis| order.contains(&axis)),
                    "{name} is {order:?}, no order of axes"
                );
                Ok(axes)
            }
        };
        Ok(MatMul {
            transpose: [flag("transA")?, flag("transB")?],
            orders: [order("permA")?, order("permB")?, order("permY")?],
        })
    }

    /// The order of the axes of operand or result `i`, exchanges included.
    fn order(&self, i: usize, rank: usize) -> Result<Vec<usize>, FusedError> {
        let mut order = self.orders[i].clone().unwrap_or_else(|| (0..rank).collect());
        ensure!(rank >= 2 && order.len() == rank, "{order:?} is no order of {rank} axes of matrices");
        if self.transpose.get(i) == Some(&true) {
            order.swap(rank - 2, rank - 1);
        }
        Ok(order)
    }

    pub(super) fn output_shape<D: Extent>(&self, operands: &[&[D]]) -> Result<Vec<D>, FusedError> {
        let [a, b] = *operands else { return Err(FusedError(format!("got {} operands, not 2", operands.len()))) };
        let ordered = |i: usize, axes: &[D]| {
            let order = self.order(i, axes.len())?;
            Ok::<Vec<D>, FusedError>(order.into_iter().map(|axis| axes[axis].clone()).collect())
        };
        let (left, right) = (ordered(0, a)?, ordered(1, b)?);
        let ([batch @ .., rows, depth], [own @ .., inner, cols]) = (&left[..], &right[..]) else {
            return Err(FusedError(format!("{a:?} and {b:?} are no matrices")));
        };
        ensure!(own.is_empty() || own == batch, "{left:?} and {right:?} have other batches");
        ensure!(depth == inner, "{left:?} and {right:?} do not multiply");
        ordered(2, &[batch, &[rows.clone(), cols.clone()]].concat())
    }

    pub(super) fn kernel(&self, operands: &[&[usize]]) -> Result<Kernel, FusedError> {
        let rank = self.output_shape(operands)?.len();
        let [a, b] = [operands[0], operands[1]];
        let [left, right, result] = [self.order(0, a.len())?, self.order(1, b.len())?, self.order(2, rank)?];
        Ok(Kernel::Product(Product::new((a, &left), (b, &right), &result)?))
    }
}
