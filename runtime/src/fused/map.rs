//! Maps: chains of element-wise operators with reductions.
//!
//! `Map` takes any number of float32 and bool tensors. Its attributes are the program of
//! [`limbeck_kernels::MapProgram`]: `ops` (names between spaces), `args`, `results`, `axes`.

use super::{Attributes, Elements, Extent, FusedError, Operand};
use limbeck_kernels::{MapInput, MapKernel, MapProgram, Parallelism};
use std::sync::{Arc, Mutex, PoisonError};

/// A map with its program.
#[derive(Debug)]
pub(crate) struct Map {
    program: MapProgram,
    /// The plan for the shapes of the last call, which are most often those of the next.
    planned: Mutex<Option<Arc<Planned>>>,
}

#[derive(Debug)]
struct Planned {
    shapes: Vec<Vec<usize>>,
    kernel: MapKernel,
}

impl Clone for Map {
    fn clone(&self) -> Map {
        Map { program: self.program.clone(), planned: Mutex::default() }
    }
}

impl PartialEq for Map {
    fn eq(&self, other: &Map) -> bool {
        self.program == other.program
    }
}

impl Eq for Map {}

impl std::hash::Hash for Map {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.program.hash(state);
    }
}

impl Map {
    pub(super) fn parse(operands: usize, results: usize, attributes: &dyn Attributes) -> Result<Map, FusedError> {
        let ints = |name: &str| Ok::<_, FusedError>(attributes.ints(name)?.unwrap_or_default());
        let ops = attributes.string("ops")?.unwrap_or_default();
        let ops: Vec<&str> = ops.split_whitespace().collect();
        let made = ints("results")?;
        if made.len() != results {
            return Err(FusedError(format!("Map has {results} outputs, but its attribute names {}", made.len())));
        }
        let program = MapProgram::new(operands, &ops, &ints("args")?, &made, &ints("axes")?)?;
        Ok(Map { program, planned: Mutex::default() })
    }

    /// The plan for these shapes.
    fn plan(&self, shapes: &[&[usize]]) -> Result<Arc<Planned>, FusedError> {
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        match &*planned {
            Some(last) if last.shapes.iter().map(Vec::as_slice).eq(shapes.iter().copied()) => Ok(last.clone()),
            _ => {
                let kernel = MapKernel::new(&self.program, shapes)?;
                let shapes = shapes.iter().map(|s| s.to_vec()).collect();
                Ok(planned.insert(Arc::new(Planned { shapes, kernel })).clone())
            }
        }
    }

    pub(super) fn output_shapes<D: Extent>(&self, operands: &[&[D]]) -> Result<Vec<Vec<D>>, FusedError> {
        let known = |shape: &&[D]| shape.iter().map(Extent::known).collect::<Option<Vec<usize>>>();
        let shapes: Option<Vec<Vec<usize>>> = operands.iter().map(known).collect();
        let shapes = shapes.ok_or_else(|| FusedError(format!("{operands:?} must be known before a run")))?;
        let plan = self.plan(&shapes.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        let outputs = plan.kernel.output_shapes().iter();
        Ok(outputs.map(|shape| shape.iter().map(|&n| D::from(n)).collect()).collect())
    }

    /// Values times operators.
    pub(super) fn operations(&self, operands: &[&[usize]]) -> f64 {
        self.plan(operands).map_or(0.0, |plan| plan.kernel.operations())
    }

    pub(super) fn in_place(&self, operands: &[&[usize]], operand: usize) -> Result<Vec<usize>, FusedError> {
        Ok(self.plan(operands)?.kernel.in_place(operand))
    }

    pub(super) fn run(
        &self,
        operands: &[Operand<'_>],
        results: &mut [&mut [f32]],
        parallelism: Parallelism,
    ) -> Result<(), FusedError> {
        let plan = self.plan(&operands.iter().map(|o| o.shape).collect::<Vec<_>>())?;
        let inputs: Vec<MapInput> = (operands.iter())
            .map(|o| match o.elements {
                Elements::F32(values) => MapInput::F32(values),
                Elements::Bool(values) => MapInput::Bool(values),
                Elements::Result(j) => MapInput::Output(j),
            })
            .collect();
        Ok(plan.kernel.run(&inputs, results, parallelism)?)
    }
}
