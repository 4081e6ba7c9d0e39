//! A map for given shapes: what each value is within a tile, where it is kept, and where results go.

use super::layout::{LONGEST_ROW, Layout, Strides, broadcast, strides};
use super::pass::{Pass, passes};
use super::{MapProgram, Op, Step};
use crate::error::KernelError;

/// Rows of up to so many values are reduced as rows; longer ones in blocks.
const SHORT_ROW: usize = 512;

/// How much of a tile a value fills: one number, one a row, or one a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Extent {
    One,
    Rows,
    All,
}

/// Where a result goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A value a position.
    All,
    /// A value a row.
    Rows,
    /// A reduction over axes that are not the rows, from the sums of the result number `from`: its own, or those of the
    /// variance of the same value.
    Sums { statistic: Statistic, from: usize },
}

/// What is made of sums over axes that are not the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Statistic {
    Sum,
    Mean,
    Variance,
}

/// For each result its value, where it goes, and how many values it has.
pub(super) type Results = Vec<(usize, Target, usize)>;

/// A [`MapProgram`] for inputs of given shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapKernel {
    pub(super) passes: Vec<Pass>,
    steps: usize,
    pub(super) layout: Layout,
    /// Strides and lengths of the inputs.
    pub(super) inputs: Vec<(Strides, usize)>,
    /// By value.
    pub(super) extents: Vec<Extent>,
    /// By value: the buffer that holds it during a tile, if one does.
    pub(super) slots: Vec<usize>,
    pub(super) slot_count: usize,
    /// By value: the output that holds it, if it has a value a position and is a result.
    pub(super) homes: Vec<Option<usize>>,
    /// By value: the outputs that it is copied or added to.
    pub(super) copies: Vec<Vec<usize>>,
    pub(super) results: Results,
    /// Strides of what is reduced over axes that are not the rows.
    pub(super) sums: Strides,
    /// How many values a reduction takes together.
    pub(super) reduced: usize,
    /// Whether reductions are of whole rows of a tile.
    pub(super) by_row: bool,
    shapes: Vec<Vec<usize>>,
}

impl MapKernel {
    /// Plans a program for inputs of these shapes.
    ///
    /// # Errors
    /// [`KernelError::Map`]: shapes that do not broadcast or have no values, a result that has neither the broadcast shape nor that of a
    /// reduction, a reduction that is used within the map although its axes are not the rows or they are too long.
    pub fn new(program: &MapProgram, shapes: &[&[usize]]) -> Result<MapKernel, KernelError> {
        let refuse = |reason: String| KernelError::Map { reason };
        if shapes.len() != program.inputs {
            return Err(refuse(format!("{} inputs are given, the program has {}", shapes.len(), program.inputs)));
        }
        let shape =
            broadcast(shapes).ok_or_else(|| refuse(format!("the shapes {shapes:?} do not broadcast together")))?;
        if shape.iter().try_fold(4usize, |n, &d| n.checked_mul(d)).is_none() {
            return Err(KernelError::Overflow { what: "a map's shape" });
        }
        if shape.contains(&0) {
            return Err(refuse(format!("{shape:?} has no values")));
        }
        let kept = reduced_shape(&shape, &program.axes).map_err(refuse)?;
        let own = value_shapes(program, shapes, &shape, &kept).map_err(refuse)?;
        let reduced = shape.iter().zip(&kept).map(|(a, b)| if b == a { 1 } else { *a }).product();

        let mut operands: Vec<Strides> = shapes.iter().map(|own| strides(own, &shape)).collect();
        operands.push(strides(&kept, &shape));
        operands.push(strides(&shape, &shape));
        let used = (program.steps.iter()).any(|s| s.args.iter().any(|&a| program.reduces(a)));
        let (layout, mut operands) = Layout::new(&shape, &operands);
        operands.pop();
        let sums = operands.pop().unwrap_or_default();
        let rows = reduced > 1 && rows_are_reduced(&shape, &kept) && layout.cols() == reduced;
        let must = reduced > 1 && (used || program.takes_largest());
        if must && !(rows && reduced <= LONGEST_ROW) {
            let axes = &program.axes;
            return Err(refuse(format!(
                "{shape:?} is reduced over {axes:?} and goes on; the axes must be the innermost one, of at most {LONGEST_ROW}"
            )));
        }
        let by_row = rows && (must || reduced <= SHORT_ROW);
        let layout = if by_row { layout.by_row() } else { layout };

        let inputs: Vec<(Strides, usize)> =
            operands.into_iter().zip(shapes).map(|(strides, own)| (strides, own.iter().product())).collect();
        let extents = extents(program, &layout, &inputs, by_row);
        let mut results = vec![];
        for &value in &program.results {
            let target = match program.statistic(value) {
                Some(statistic) if reduced > 1 && !by_row => Target::Sums { statistic, from: program.source(value) },
                _ if own[value] == shape => Target::All,
                _ if by_row && own[value] == kept && extents[value] < Extent::All => Target::Rows,
                _ => return Err(refuse(format!("a result has the shape {:?} within {shape:?}", own[value]))),
            };
            results.push((value, target, own[value].iter().product()));
        }
        let passes = passes(program, &extents, &results);
        let (slots, slot_count) = slots(program.inputs, extents.len(), &passes);
        let home = |value: usize| {
            results
                .iter()
                .position(|(v, target, _)| (*v, target) == (value, &Target::All))
                .filter(|_| extents[value] == Extent::All)
        };
        let homes: Vec<Option<usize>> = (0..extents.len()).map(home).collect();
        let to = |value: usize, j: usize| match results[j] {
            (v, Target::Sums { from, .. }, _) => v == value && from == j,
            (v, ..) => v == value && homes[value] != Some(j),
        };
        let of = |value: usize| (0..results.len()).filter(|&j| to(value, j)).collect();
        let copies = (0..extents.len()).map(of).collect();
        let shapes = program.results.iter().map(|&v| own[v].clone()).collect();
        let steps = program.steps.len();
        Ok(MapKernel {
            passes,
            steps,
            layout,
            inputs,
            extents,
            slots,
            slot_count,
            homes,
            copies,
            results,
            sums,
            reduced,
            by_row,
            shapes,
        })
    }

    /// Shapes of the results.
    pub fn output_shapes(&self) -> &[Vec<usize>] {
        &self.shapes
    }

    /// The outputs in whose memory an input may lie: those with a value a position, if the input has one too. A tile is read
    /// before it is written, and no other tile reads it.
    pub fn in_place(&self, input: usize) -> Vec<usize> {
        let whole = |target: &Target| *target == Target::All;
        let len = self.layout.len();
        match self.inputs.get(input) {
            Some(&(_, own)) if own == len => (0..self.results.len()).filter(|&j| whole(&self.results[j].1)).collect(),
            _ => vec![],
        }
    }

    /// Whether an input is needed no more once a tile of an output is written, so that it can be read there.
    pub(super) fn is_read_before(&self, input: usize, output: usize) -> bool {
        let reads = |pass: &Pass| pass.args.contains(&input);
        let writes = |pass: &Pass| self.homes[pass.value] == Some(output) || self.copies[pass.value].contains(&output);
        let first = self.passes.iter().position(writes);
        first.is_some_and(|first| !self.passes[first..].iter().any(reads))
    }

    /// Values times operators: what a call costs.
    pub fn operations(&self) -> f64 {
        self.layout.len() as f64 * self.steps as f64
    }

    /// Number of inputs.
    pub(super) fn input_count(&self) -> usize {
        self.inputs.len()
    }
}

impl MapProgram {
    /// Whether a value is the result of a reduction.
    fn reduces(&self, value: usize) -> bool {
        value.checked_sub(self.inputs).is_some_and(|i| self.steps[i].op.reduces())
    }

    /// What a reduction makes of sums.
    fn statistic(&self, value: usize) -> Option<Statistic> {
        match self.steps[value - self.inputs].op {
            Op::ReduceSum => Some(Statistic::Sum),
            Op::ReduceMean => Some(Statistic::Mean),
            Op::ReduceVariance => Some(Statistic::Variance),
            _ => None,
        }
    }

    /// The number of the result whose sums a result of this value comes from.
    fn source(&self, value: usize) -> usize {
        let step = |value: usize| &self.steps[value - self.inputs];
        let own = step(value);
        let variance =
            |&v: &usize| own.op == Op::ReduceMean && step(v).op == Op::ReduceVariance && step(v).args == own.args;
        let results = || self.results.iter();
        results().position(variance).or_else(|| results().position(|v| *v == value)).unwrap_or_default()
    }

    fn takes_largest(&self) -> bool {
        self.steps.iter().any(|s| s.op == Op::ReduceMax)
    }
}

/// `shape` with extent 1 at the axes.
fn reduced_shape(shape: &[usize], axes: &[i64]) -> Result<Vec<usize>, String> {
    let mut kept = shape.to_vec();
    for &axis in axes {
        let at = if axis < 0 { axis + shape.len() as i64 } else { axis };
        match usize::try_from(at).ok().and_then(|at| kept.get_mut(at)) {
            Some(extent) => *extent = 1,
            None => return Err(format!("axis {axis} does not exist in {shape:?}")),
        }
    }
    Ok(kept)
}

/// Whether the axes that are reduced are the innermost ones (extents of 1 aside).
fn rows_are_reduced(shape: &[usize], kept: &[usize]) -> bool {
    let wide = shape.iter().zip(kept).filter(|(extent, _)| **extent != 1);
    wide.skip_while(|(extent, kept)| extent == kept).all(|(extent, kept)| extent != kept)
}

/// Shapes of all values.
fn value_shapes(
    program: &MapProgram,
    shapes: &[&[usize]],
    shape: &[usize],
    kept: &[usize],
) -> Result<Vec<Vec<usize>>, String> {
    let mut all: Vec<Vec<usize>> = shapes.iter().map(|s| s.to_vec()).collect();
    for step in &program.steps {
        let operands: Vec<&[usize]> = step.args.iter().map(|&a| &*all[a]).collect();
        let own = match step.op.reduces() {
            true if operands[0] == shape => kept.to_vec(),
            true => return Err(format!("a reduction of {:?} within {shape:?}", operands[0])),
            false => broadcast(&operands).ok_or_else(|| format!("{operands:?} do not broadcast"))?,
        };
        all.push(own);
    }
    Ok(all)
}

/// How much of a tile each value fills.
fn extents(program: &MapProgram, layout: &Layout, inputs: &[(Strides, usize)], by_row: bool) -> Vec<Extent> {
    let rows = if layout.tile[0] == 1 { Extent::One } else { Extent::Rows };
    let mut all: Vec<Extent> = (inputs.iter())
        .map(|(strides, _)| match strides[strides.len() - 2..] {
            [_, col] if col != 0 => Extent::All,
            [row, _] if row != 0 => rows,
            _ => Extent::One,
        })
        .collect();
    for step in &program.steps {
        let widest = step.args.iter().map(|&a| all[a]).max().unwrap_or(Extent::One);
        all.push(if step.op.reduces() && by_row { rows } else { widest });
    }
    // An input that is only ever needed a value a position is spread when it is read.
    for input in 0..inputs.len() {
        let mut uses = (program.steps.iter().enumerate()).filter(|(_, step)| step.args.contains(&input));
        let wide = |(i, step): (usize, &Step)| !step.op.reduces() && all[program.inputs + i] == Extent::All;
        if all[input] == Extent::Rows && uses.all(wide) {
            all[input] = Extent::All;
        }
    }
    all
}

/// A buffer for each value that a pass makes, shared by values that are not needed at the same time. Inputs keep theirs
/// from tile to tile.
fn slots(inputs: usize, values: usize, passes: &[Pass]) -> (Vec<usize>, usize) {
    let mut last = vec![0; values];
    for (i, pass) in passes.iter().enumerate() {
        last[pass.value] = i;
        pass.args.iter().for_each(|&a| last[a] = i);
    }
    let mut slots: Vec<usize> = (0..values).collect();
    let (mut free, mut count) = (vec![], inputs);
    for (i, pass) in passes.iter().enumerate() {
        slots[pass.value] = free.pop().unwrap_or_else(|| {
            count += 1;
            count - 1
        });
        let mut ended: Vec<usize> = pass.args.iter().copied().filter(|&a| a >= inputs && last[a] == i).collect();
        if last[pass.value] == i {
            ended.push(pass.value);
        }
        ended.sort_unstable();
        ended.dedup();
        free.extend(ended.into_iter().map(|v| slots[v]));
    }
    (slots, count)
}
