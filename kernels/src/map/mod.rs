//! Maps: chains of element-wise operators, with reductions, in one pass over memory.
//!
//! A map is a list of ai.onnx operators, each of which takes inputs of the map or results of earlier operators, with
//! ONNX's broadcasting. The values that the chain makes in between never leave a block of about two thousand values, which
//! stays in the first-level cache; only results are written. A softmax, a normalisation or a loss is one map, and so is an
//! optimiser's update.
//!
//! `ReduceSum`, `ReduceMean`, `ReduceVariance` (of the population) and `ReduceMax` keep their axes with extent 1 and reduce
//! over the map's `axes`. When those are the innermost ones (the rows), later operators of the same map may use what was
//! reduced. Otherwise a sum, mean or variance can only be a result: each thread sums blocks in float64, and the threads'
//! sums are added in their order. Mean and variance of one value are taken together.

mod layout;
mod math;
mod op;
mod pass;
mod plan;
mod reduce;
mod run;
mod sums;
mod worker;

use crate::error::KernelError;
use op::Op;
pub use plan::MapKernel;

/// A chain of operators, whatever the shapes of its inputs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MapProgram {
    inputs: usize,
    steps: Vec<Step>,
    results: Vec<usize>,
    axes: Vec<i64>,
}

/// An operator and its operands: numbers of values, inputs first, then the results of steps.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Step {
    op: Op,
    args: Vec<usize>,
}

/// The most operators of a map: far more than are of use, and few enough for every table to stay small.
const MOST_STEPS: usize = 1024;

impl MapProgram {
    /// Reads a program. Values are numbered: first the `inputs`, then the result of each operator of `ops` (names of
    /// ai.onnx, and `ReduceVariance`). `args` holds three numbers an operator, -1 where it has no operand; `results` are the values that leave
    /// the map; `axes` are those that reductions are over, of the inputs' broadcast shape.
    ///
    /// # Errors
    /// [`KernelError::Map`]: an unknown operator, an operand that does not exist yet, a result that is an input.
    pub fn new(
        inputs: usize,
        ops: &[&str],
        args: &[i64],
        results: &[i64],
        axes: &[i64],
    ) -> Result<MapProgram, KernelError> {
        let refuse = |reason: String| Err(KernelError::Map { reason });
        if ops.len() > MOST_STEPS || inputs > MOST_STEPS {
            return refuse(format!("{} operators of {inputs} inputs; {MOST_STEPS} are the most", ops.len()));
        }
        if ops.is_empty() || args.len() != 3 * ops.len() {
            return refuse(format!("{} operators need three operands each, got {}", ops.len(), args.len()));
        }
        let mut steps = Vec::with_capacity(ops.len());
        for (i, (name, args)) in ops.iter().zip(args.chunks(3)).enumerate() {
            let Some((op, operands)) = Op::of(name) else { return refuse(format!("no map has the operator {name}")) };
            let known = |&arg: &i64| usize::try_from(arg).ok().filter(|&arg| arg < inputs + i);
            let used: Option<Vec<usize>> = args[..operands].iter().map(known).collect();
            match used {
                Some(args) => steps.push(Step { op, args }),
                None => return refuse(format!("operator {i}, {name}, has the operands {args:?}")),
            }
        }
        let own = |&v: &i64| usize::try_from(v).ok().filter(|v| (inputs..inputs + steps.len()).contains(v));
        match results.iter().map(own).collect::<Option<Vec<usize>>>() {
            Some(results) if !results.is_empty() => Ok(MapProgram { inputs, steps, results, axes: axes.to_vec() }),
            _ => refuse(format!("the results {results:?} are no operators of the map")),
        }
    }
}

/// An operand of a map: dense, row-major values.
#[derive(Debug, Clone, Copy)]
pub enum MapInput<'a> {
    /// Numbers.
    F32(&'a [f32]),
    /// Truth values, 0 being false.
    Bool(&'a [u8]),
    /// What the output of this number holds before the call: see [`MapKernel::in_place`].
    Output(usize),
}

impl MapInput<'_> {
    fn len(&self) -> Option<usize> {
        match self {
            MapInput::F32(values) => Some(values.len()),
            MapInput::Bool(values) => Some(values.len()),
            MapInput::Output(_) => None,
        }
    }
}
