//! An operator prepared for operands of certain shapes, which most often are those of the next call too.

use super::map::Maps;
use super::{Elements, FusedError, Kind};
use limbeck_kernels::{ConvGeometry, MapInput, Parallelism, Product};
use limbeck_kernels::{conv_forward, conv_grad_input, conv_grad_weight};
use std::sync::{Arc, Mutex, PoisonError};

/// Operations of a call below which it runs on the calling thread alone.
const SERIAL_BELOW: f64 = 2e5;

/// An operator for operands of certain shapes.
#[derive(Debug)]
pub(crate) struct Plan {
    operands: Vec<Vec<usize>>,
    results: Vec<Vec<usize>>,
    in_place: Vec<Vec<usize>>,
    kernel: Kernel,
}

/// What computes the results.
#[derive(Debug)]
pub(super) enum Kernel {
    Conv(Pass, ConvGeometry),
    Map(Maps),
    Product(Product),
}

/// A convolution, or one of its gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Pass {
    Forward,
    GradInput,
    GradWeight,
}

impl Plan {
    fn new(op: &Kind, operands: &[&[usize]]) -> Result<Plan, FusedError> {
        let (results, kernel) = match op {
            Kind::Conv(conv) => (vec![conv.output_shape(operands)?], conv.kernel(operands)?),
            Kind::MatMul(product) => (vec![product.output_shape(operands)?], product.kernel(operands)?),
            Kind::Map(map) => {
                let kernel = map.kernel(operands)?;
                (kernel.output_shapes().to_vec(), Kernel::Map(kernel))
            }
        };
        let in_place = (0..operands.len()).map(|i| match &kernel {
            Kernel::Map(map) => map.in_place(i),
            Kernel::Conv(..) | Kernel::Product(_) => vec![],
        });
        let in_place = in_place.collect();
        Ok(Plan { operands: operands.iter().map(|s| s.to_vec()).collect(), results, in_place, kernel })
    }

    /// Shapes of the results.
    pub(crate) fn output_shapes(&self) -> &[Vec<usize>] {
        &self.results
    }

    /// The results in whose memory an operand of type float32 may lie that nothing else needs.
    pub(crate) fn in_place(&self, operand: usize) -> &[usize] {
        self.in_place.get(operand).map_or(&[], Vec::as_slice)
    }

    /// The threads of so many that a call is worth: one when it ends before a second has woken up.
    pub(crate) fn worth_threads(&self, threads: usize) -> usize {
        // Those of a product are fast: a tenth counts.
        let operations = match &self.kernel {
            Kernel::Conv(_, geometry) => geometry.flops() / 10.0,
            Kernel::Map(map) => map.operations(),
            Kernel::Product(product) => product.flops() / 10.0,
        };
        if operations < SERIAL_BELOW { 1 } else { threads }
    }

    /// Computes the results. What they hold before the call does not matter but where an operand lies in it.
    ///
    /// # Errors
    /// Another number or length of operands or results than the shapes say, bools where floats belong.
    pub(crate) fn run(
        &self,
        operands: &[Elements<'_>],
        results: &mut [&mut [f32]],
        parallelism: Parallelism,
    ) -> Result<(), FusedError> {
        if operands.len() != self.operands.len() || results.len() != self.results.len() {
            let (got, want) = ((operands.len(), results.len()), (self.operands.len(), self.results.len()));
            return Err(FusedError(format!("takes and gives {want:?} tensors, not {got:?}")));
        }
        let floats = |i: usize| operands[i].floats();
        match &self.kernel {
            Kernel::Map(map) => return map.run(operands, results, parallelism),
            Kernel::Product(product) => product.run(floats(0)?, floats(1)?, results[0], parallelism),
            Kernel::Conv(Pass::Forward, geometry) => {
                let bias = operands.get(2).map(|bias| bias.floats()).transpose()?;
                conv_forward(geometry, floats(0)?, floats(1)?, bias, results[0], parallelism)
            }
            Kernel::Conv(Pass::GradInput, geometry) => {
                conv_grad_input(geometry, floats(0)?, floats(1)?, results[0], parallelism)
            }
            Kernel::Conv(Pass::GradWeight, geometry) => {
                conv_grad_weight(geometry, floats(0)?, floats(1)?, results[0], parallelism)
            }
        }?;
        Ok(())
    }
}

impl<'a> From<Elements<'a>> for MapInput<'a> {
    fn from(elements: Elements<'a>) -> MapInput<'a> {
        match elements {
            Elements::F32(values) => MapInput::F32(values),
            Elements::Bool(values) => MapInput::Bool(values),
            Elements::Result(j) => MapInput::Output(j),
        }
    }
}

/// The plan of an operator's last call. It is no part of what the operator is.
#[derive(Debug, Default)]
pub(super) struct Last(Mutex<Option<Arc<Plan>>>);

impl Last {
    /// The plan for operands of these shapes.
    pub(super) fn plan(&self, op: &Kind, operands: &[&[usize]]) -> Result<Arc<Plan>, FusedError> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(plan) if plan.operands.iter().map(Vec::as_slice).eq(operands.iter().copied()) => Ok(plan.clone()),
            _ => Ok(last.insert(Arc::new(Plan::new(op, operands)?)).clone()),
        }
    }
}

impl Clone for Last {
    fn clone(&self) -> Last {
        Last::default()
    }
}

impl PartialEq for Last {
    fn eq(&self, _: &Last) -> bool {
        true
    }
}

impl Eq for Last {}

impl std::hash::Hash for Last {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}
