//! Running a map: tiles in order, each through all operators.

use super::layout::{Strides, Tile};
use super::op::{self, Op, Source};
use super::plan::{Extent, MapKernel, Target};
use super::{MapInput, Step};
use crate::error::{KernelError, check_len};
use crate::parallel::{Parallelism, piece};
use crate::vector::vectorised;
use std::mem::take;
use std::ops::Range;

impl MapKernel {
    /// Computes the map; what `outputs` held is overwritten. The result is the same at every run with one thread count.
    ///
    /// # Errors
    /// Inputs or outputs whose number or length is not the plan's.
    pub fn run(
        &self,
        inputs: &[MapInput],
        outputs: &mut [&mut [f32]],
        parallelism: Parallelism,
    ) -> Result<(), KernelError> {
        if inputs.len() != self.input_count() || outputs.len() != self.results.len() {
            let reason = format!("{} inputs and {} outputs are not the plan's", inputs.len(), outputs.len());
            return Err(KernelError::Map { reason });
        }
        for (input, &(_, expected)) in inputs.iter().zip(&self.inputs) {
            if let Some(got) = input.len()
                && got != expected
            {
                return Err(KernelError::Length { what: "an input of a map", got, expected });
            }
        }
        for (output, &(_, _, expected)) in outputs.iter().zip(&self.results) {
            check_len("an output of a map", output, expected)?;
        }
        for (i, input) in inputs.iter().enumerate() {
            if let MapInput::Output(j) = *input
                && !self.in_place(i).contains(&j)
            {
                let reason = format!("input {i} and output {j} cannot share their memory");
                return Err(KernelError::Map { reason });
            }
        }
        let tiles = self.layout.tiles();
        let threads = parallelism.threads().min(tiles).max(1);
        let mut pieces = self.pieces(tiles, threads, outputs);
        let parallelism = if threads == 1 { Parallelism::Serial } else { parallelism };
        parallelism.for_each(pieces.iter_mut().collect(), |piece: &mut Piece| {
            let mut worker = Worker::new(self, inputs);
            vectorised(
                // A loop and not an iterator's closure: only what is inlined here is compiled for them.
                #[inline(always)]
                || {
                    for i in piece.tiles.clone() {
                        worker.tile(&self.layout.at(i), &mut piece.outputs);
                    }
                },
            );
        });
        self.finish(pieces);
        Ok(())
    }

    /// The tiles cut into contiguous pieces, each with its part of every output.
    fn pieces<'o>(&self, tiles: usize, threads: usize, outputs: &'o mut [&mut [f32]]) -> Vec<Piece<'o>> {
        let mut pieces: Vec<Piece> = (0..threads)
            .map(|i| Piece { tiles: piece(tiles, threads, i), outputs: Vec::with_capacity(outputs.len()) })
            .collect();
        for (output, (_, target, len)) in outputs.iter_mut().zip(&self.results) {
            let mut rest: &mut [f32] = output;
            let mut done = 0;
            for piece in &mut pieces {
                if let Target::Sums(_) = target {
                    // The first piece has the output itself to write the sums to.
                    piece.outputs.push(Output { start: 0, values: take(&mut rest), sums: vec![0.0; *len] });
                    continue;
                }
                let end = match target {
                    _ if piece.tiles.end == tiles => *len,
                    Target::All => self.layout.at(piece.tiles.end).start,
                    _ => self.layout.at(piece.tiles.end).row,
                };
                let (values, later) = take(&mut rest).split_at_mut(end - done);
                piece.outputs.push(Output { start: done, values, sums: vec![] });
                (rest, done) = (later, end);
            }
        }
        pieces
    }

    /// Adds the pieces' sums in their order.
    fn finish(&self, mut pieces: Vec<Piece>) {
        for (i, (value, target, _)) in self.results.iter().enumerate() {
            if !matches!(target, Target::Sums(_)) {
                continue;
            }
            let mean = self.steps[value - self.input_count()].op == Op::ReduceMean;
            let factor = if mean { 1.0 / self.reduced as f64 } else { 1.0 };
            let Some((first, others)) = pieces.split_first_mut() else { continue };
            let Output { values, sums, .. } = &mut first.outputs[i];
            for (at, value) in values.iter_mut().enumerate() {
                let total: f64 = sums[at] + others.iter().map(|p| p.outputs[i].sums[at]).sum::<f64>();
                *value = (total * factor) as f32;
            }
        }
    }
}

/// A thread's share of a map.
struct Piece<'o> {
    tiles: Range<usize>,
    outputs: Vec<Output<'o>>,
}

/// A thread's part of a result: values from `start` on, or sums of its own.
#[derive(Default)]
struct Output<'o> {
    start: usize,
    values: &'o mut [f32],
    sums: Vec<f64>,
}

/// Buffers of one thread.
struct Worker<'m> {
    map: &'m MapKernel,
    inputs: &'m [MapInput<'m>],
    /// A tile's part of each input that cannot be read in place, then results of operators.
    slots: Vec<Vec<f32>>,
    /// What an input's slot holds: from which offset, and how many rows and columns.
    held: Vec<Option<(usize, usize, usize)>>,
    /// Where each input begins in the tile at hand, when it is read in place.
    direct: Vec<Option<usize>>,
    /// Operands spread over the tile.
    spread: [Vec<f32>; 3],
}

impl<'m> Worker<'m> {
    fn new(map: &'m MapKernel, inputs: &'m [MapInput<'m>]) -> Self {
        let count = inputs.len();
        let slots = vec![vec![]; map.slot_count];
        Worker { map, inputs, slots, held: vec![None; count], direct: vec![None; count], spread: Default::default() }
    }

    #[inline(always)]
    fn tile(&mut self, tile: &Tile, outputs: &mut [Output]) {
        for i in 0..self.inputs.len() {
            match self.inputs[i] {
                MapInput::Output(j) => {
                    let output = &outputs[j];
                    let values = &output.values[tile.start - output.start..][..tile.rows * tile.cols];
                    self.slots[i].resize(values.len(), 0.0);
                    self.slots[i].copy_from_slice(values);
                }
                _ => self.load(i, tile),
            }
        }
        let map = self.map;
        for (i, step) in map.steps.iter().enumerate() {
            let value = self.inputs.len() + i;
            if let Some(home) = map.homes[value] {
                // Taken out, so that operands can be read from the other outputs meanwhile.
                let whole = take(&mut outputs[home].values);
                self.step(step, value, tile, outputs, part(whole, outputs[home].start, tile));
                outputs[home].values = whole;
            } else {
                let mut out = take(&mut self.slots[map.slots[value]]);
                out.resize(len(map.extents[value], tile), 0.0);
                self.step(step, value, tile, outputs, &mut out);
                self.slots[map.slots[value]] = out;
            }
            for j in (0..outputs.len()).filter(|&j| map.results[j].0 == value && map.homes[value] != Some(j)) {
                let mut output = take(&mut outputs[j]);
                match &map.results[j].1 {
                    Target::Sums(strides) => self.add(step.args[0], tile, strides, outputs, &mut output.sums),
                    Target::All => {
                        let own = self.value(value, tile, outputs);
                        spread(own, map.extents[value], tile, part(output.values, output.start, tile));
                    }
                    Target::Rows => {
                        let to = &mut output.values[tile.row - output.start..][..tile.rows];
                        to.copy_from_slice(&self.slots[map.slots[value]][..tile.rows]);
                    }
                }
                outputs[j] = output;
            }
        }
    }

    /// A tile of a value: of an input that is read in place, of an output that holds it, or what a buffer holds.
    #[inline(always)]
    fn value<'a>(&'a self, value: usize, tile: &Tile, outputs: &'a [Output]) -> &'a [f32] {
        let all = tile.rows * tile.cols;
        if let Some(offset) = self.direct.get(value).copied().flatten() {
            return match self.inputs[value] {
                MapInput::F32(values) => &values[offset..][..all],
                MapInput::Bool(_) | MapInput::Output(_) => &[],
            };
        }
        match self.map.homes[value] {
            Some(home) => &outputs[home].values[tile.start - outputs[home].start..][..all],
            None => &self.slots[self.map.slots[value]],
        }
    }

    /// Makes an input's part of the tile ready: in place if it is contiguous, else copied.
    #[inline(always)]
    fn load(&mut self, i: usize, tile: &Tile) {
        let (strides, _) = &self.map.inputs[i];
        let (row, col) = (strides[strides.len() - 2], strides[strides.len() - 1]);
        let offset = self.map.layout.offset(tile, strides);
        let extent = self.map.extents[i];
        let contiguous = extent == Extent::All && (tile.rows == 1 || row == self.map.layout.cols());
        self.direct[i] = None;
        if contiguous && matches!(self.inputs[i], MapInput::F32(_)) {
            self.direct[i] = Some(offset);
            return;
        }
        let wanted = Some((offset, tile.rows, tile.cols));
        if self.held[i] == wanted {
            return;
        }
        self.held[i] = wanted;
        let slot = &mut self.slots[i];
        let (rows, cols) = match extent {
            Extent::One => (1, 1),
            Extent::Rows => (tile.rows, 1),
            Extent::All => (tile.rows, tile.cols),
        };
        slot.resize(rows * cols, 0.0);
        for (r, to) in slot.chunks_exact_mut(cols).enumerate() {
            let from = offset + r * row;
            match self.inputs[i] {
                MapInput::F32(values) if col == 0 => to[0] = values[from],
                MapInput::F32(values) => to.copy_from_slice(&values[from..][..cols]),
                MapInput::Output(_) => {}
                MapInput::Bool(values) => {
                    to.iter_mut().zip(&values[from..]).for_each(|(to, &b)| *to = if b != 0 { 1.0 } else { 0.0 });
                }
            }
        }
    }

    /// Runs an operator on a tile.
    #[inline(always)]
    fn step(&mut self, step: &Step, value: usize, tile: &Tile, outputs: &[Output], out: &mut [f32]) {
        let map = self.map;
        let mut temporary = take(&mut self.spread);
        if step.op.reduces() {
            let (arg, own) = (self.value(step.args[0], tile, outputs), map.extents[step.args[0]]);
            match map.reduced {
                1 => spread(arg, own, tile, out),
                _ if map.by_row => reduce_rows(step.op, arg, own, tile, out),
                // The tile is added to sums when the result is written.
                _ => {}
            }
        } else {
            let mut operands = [Source::One(0.0); 3];
            for ((operand, &arg), temporary) in operands.iter_mut().zip(&step.args).zip(temporary.iter_mut()) {
                let values = self.value(arg, tile, outputs);
                *operand = match map.extents[arg] {
                    Extent::One => Source::One(values[0]),
                    own if own == map.extents[value] => Source::Values(&values[..out.len()]),
                    own => {
                        temporary.resize(out.len(), 0.0);
                        spread(values, own, tile, temporary);
                        Source::Values(&temporary[..])
                    }
                };
            }
            op::apply(step.op, out, operands);
        }
        self.spread = temporary;
    }

    /// Adds a tile of a value to sums over axes that are not the rows.
    #[inline(always)]
    fn add(&mut self, value: usize, tile: &Tile, strides: &Strides, outputs: &[Output], sums: &mut [f64]) {
        let map = self.map;
        let (row, col) = (strides[strides.len() - 2], strides[strides.len() - 1]);
        let at = map.layout.offset(tile, strides);
        let mut temporary = take(&mut self.spread);
        let own = self.value(value, tile, outputs);
        let [values, total, _] = &mut temporary;
        let values = match map.extents[value] {
            Extent::All => &own[..tile.rows * tile.cols],
            extent => {
                values.resize(tile.rows * tile.cols, 0.0);
                spread(own, extent, tile, values);
                &values[..]
            }
        };
        match (row, col) {
            (0, 0) => sums[at] += f64::from(op::sum(values)),
            (row, 0) => {
                for (r, values) in values.chunks_exact(tile.cols).enumerate() {
                    sums[at + r * row] += f64::from(op::sum(values));
                }
            }
            (0, _) => {
                total.clear();
                total.resize(tile.cols, 0.0);
                for values in values.chunks_exact(tile.cols) {
                    for (t, v) in total.iter_mut().zip(values) {
                        *t += v;
                    }
                }
                for (s, &t) in sums[at..][..tile.cols].iter_mut().zip(&*total) {
                    *s += f64::from(t);
                }
            }
            (row, _) => {
                for (r, values) in values.chunks_exact(tile.cols).enumerate() {
                    for (s, &v) in sums[at + r * row..][..tile.cols].iter_mut().zip(values) {
                        *s += f64::from(v);
                    }
                }
            }
        }
        self.spread = temporary;
    }
}

/// An output's part for a tile.
#[inline(always)]
fn part<'a>(values: &'a mut [f32], start: usize, tile: &Tile) -> &'a mut [f32] {
    &mut values[tile.start - start..][..tile.rows * tile.cols]
}

/// Values that a value of this extent has in a tile.
fn len(extent: Extent, tile: &Tile) -> usize {
    match extent {
        Extent::One => 1,
        Extent::Rows => tile.rows,
        Extent::All => tile.rows * tile.cols,
    }
}

/// Spreads a value over `out`: a whole tile, or its rows.
#[inline(always)]
fn spread(values: &[f32], extent: Extent, tile: &Tile, out: &mut [f32]) {
    match extent {
        Extent::One => out.fill(values[0]),
        Extent::Rows if out.len() == tile.rows => out.copy_from_slice(&values[..tile.rows]),
        Extent::Rows => out.chunks_exact_mut(tile.cols).zip(values).for_each(|(out, &v)| out.fill(v)),
        Extent::All => out.copy_from_slice(&values[..out.len()]),
    }
}

/// Reduces each row of a tile.
#[inline(always)]
fn reduce_rows(op: Op, values: &[f32], extent: Extent, tile: &Tile, out: &mut [f32]) {
    let factor = if op == Op::ReduceMean { 1.0 / tile.cols as f32 } else { 1.0 };
    for (r, out) in out.iter_mut().enumerate().take(tile.rows) {
        // A value that is the same along the row is summed as if it were spread.
        let one = |v: f32| if op == Op::ReduceSum { v * tile.cols as f32 } else { v };
        *out = match (extent, op) {
            (Extent::One, _) => one(values[0]),
            (Extent::Rows, _) => one(values[r]),
            (Extent::All, Op::ReduceMax) => op::largest(&values[r * tile.cols..][..tile.cols]),
            (Extent::All, _) => op::sum(&values[r * tile.cols..][..tile.cols]) * factor,
        };
    }
}
