//! Maps: chains of element-wise operators with reductions.
//!
//! `Map` takes any number of float32 and bool tensors. Its attributes are the program of
//! [`limbeck_kernels::MapProgram`]: `ops` (names between spaces), `args`, `results`, `axes`.

use super::{Attributes, FusedError};
use limbeck_kernels::{MapKernel, MapProgram};

/// A map with its program.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Map(MapProgram);

impl Map {
    pub(super) fn parse(operands: usize, results: usize, attributes: &dyn Attributes) -> Result<Map, FusedError> {
        let ints = |name: &str| Ok::<_, FusedError>(attributes.ints(name)?.unwrap_or_default());
        let ops = attributes.string("ops")?.unwrap_or_default();
        let ops: Vec<&str> = ops.split_whitespace().collect();
        let made = ints("results")?;
        if made.len() != results {
            return Err(FusedError(format!("Map has {results} outputs, but its attribute names {}", made.len())));
        }
        Ok(Map(MapProgram::new(operands, &ops, &ints("args")?, &made, &ints("axes")?)?))
    }

    pub(super) fn kernel(&self, operands: &[&[usize]]) -> Result<MapKernel, FusedError> {
        Ok(MapKernel::new(&self.0, operands)?)
    }
}
