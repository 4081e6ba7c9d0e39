//! Running a map: tiles in order, each through all operators.

use super::layout::{Strides, Tile};
use super::op::{self, Source};
use super::pass::{Kind, Pass};
use super::plan::{Extent, MapKernel, Target};
use super::reduce;
use super::{MapInput, Op};
use crate::error::{KernelError, check_len};
use crate::parallel::{Parallelism, piece};
use crate::scratch::Lines;
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
            let mean = |pass: &Pass| pass.value == *value && pass.kind == Kind::Sum { mean: true };
            let factor = if self.passes.iter().any(mean) { 1.0 / self.reduced as f64 } else { 1.0 };
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

/// Where a value's part of a tile is.
#[derive(Clone, Copy)]
enum Place {
    /// In an input, which is read in place.
    Input,
    /// In a buffer.
    Slot(usize),
    /// In an output.
    Output(usize),
}

/// Buffers of one thread.
struct Worker<'m> {
    map: &'m MapKernel,
    inputs: &'m [MapInput<'m>],
    /// By value.
    places: Vec<Place>,
    /// A tile's part of each input that cannot be read in place, then results of passes.
    slots: Vec<Lines>,
    /// What an input's slot holds: from which offset, and how many rows and columns.
    held: Vec<Option<(usize, usize, usize)>>,
    /// Position of the tile at hand along each axis of the layout.
    position: Vec<usize>,
    /// Where each input begins in the tile at hand.
    offsets: Vec<usize>,
    /// Operands spread over the tile.
    spread: [Lines; 3],
}

impl<'m> Worker<'m> {
    fn new(map: &'m MapKernel, inputs: &'m [MapInput<'m>]) -> Self {
        let count = inputs.len();
        let in_place = |i: usize| {
            let (strides, _) = &map.inputs[i];
            let contiguous = strides[strides.len() - 1] == 1
                && (map.layout.tile[0] == 1 || strides[strides.len() - 2] == map.layout.cols());
            contiguous && matches!(inputs[i], MapInput::F32(_))
        };
        let place = |value: usize| match map.homes[value] {
            Some(home) => Place::Output(home),
            None if value < count && in_place(value) => Place::Input,
            None => Place::Slot(map.slots[value]),
        };
        Worker {
            map,
            inputs,
            places: (0..map.homes.len()).map(place).collect(),
            slots: (0..map.slot_count).map(|_| Lines::default()).collect(),
            held: vec![None; count],
            position: vec![],
            offsets: vec![0; count],
            spread: Default::default(),
        }
    }

    #[inline(always)]
    fn tile(&mut self, tile: &Tile, outputs: &mut [Output]) {
        let map = self.map;
        map.layout.position(tile, &mut self.position);
        for i in 0..self.inputs.len() {
            self.offsets[i] = map.layout.offset(&self.position, &map.inputs[i].0);
            match (self.places[i], self.inputs[i]) {
                (_, MapInput::Output(j)) => {
                    let output = &outputs[j];
                    let values = &output.values[tile.start - output.start..][..tile.rows * tile.cols];
                    self.slots[i].resize(values.len());
                    self.slots[i].copy_from_slice(values);
                }
                (Place::Slot(_), _) => self.load(i, tile),
                _ => {}
            }
        }
        for pass in &map.passes {
            match self.places[pass.value] {
                Place::Output(home) => {
                    // Taken out, so that operands can be read from the other outputs meanwhile.
                    let whole = take(&mut outputs[home].values);
                    self.pass(pass, tile, outputs, part(whole, outputs[home].start, tile));
                    outputs[home].values = whole;
                }
                Place::Slot(slot) if !matches!(pass.kind, Kind::Sum { .. }) => {
                    let mut out = take(&mut self.slots[slot]);
                    out.resize(len(map.extents[pass.value], tile));
                    self.pass(pass, tile, outputs, &mut out);
                    self.slots[slot] = out;
                }
                _ => {}
            }
            for &j in &map.copies[pass.value] {
                let mut output = take(&mut outputs[j]);
                match &map.results[j].1 {
                    Target::Sums(strides) => self.add(&pass.args, tile, strides, outputs, &mut output.sums),
                    Target::All => {
                        let own = self.value(pass.value, tile, outputs);
                        spread(own, map.extents[pass.value], tile, part(output.values, output.start, tile));
                    }
                    Target::Rows => {
                        let to = &mut output.values[tile.row - output.start..][..tile.rows];
                        to.copy_from_slice(&self.slots[map.slots[pass.value]][..tile.rows]);
                    }
                }
                outputs[j] = output;
            }
        }
    }

    /// A tile of a value.
    #[inline(always)]
    fn value<'a>(&'a self, value: usize, tile: &Tile, outputs: &'a [Output]) -> &'a [f32] {
        let all = tile.rows * tile.cols;
        match self.places[value] {
            Place::Slot(slot) => &self.slots[slot],
            Place::Output(home) => &outputs[home].values[tile.start - outputs[home].start..][..all],
            Place::Input => match self.inputs[value] {
                MapInput::F32(values) => &values[self.offsets[value]..][..all],
                MapInput::Bool(_) | MapInput::Output(_) => &[],
            },
        }
    }

    /// Copies an input's part of the tile to its slot, if it is not there from the tile before.
    #[inline(always)]
    fn load(&mut self, i: usize, tile: &Tile) {
        let (strides, _) = &self.map.inputs[i];
        let (row, col) = (strides[strides.len() - 2], strides[strides.len() - 1]);
        let wanted = Some((self.offsets[i], tile.rows, tile.cols));
        if self.held[i] == wanted {
            return;
        }
        self.held[i] = wanted;
        let slot = &mut self.slots[i];
        let (rows, cols) = match self.map.extents[i] {
            Extent::One => (1, 1),
            Extent::Rows => (tile.rows, 1),
            Extent::All => (tile.rows, tile.cols),
        };
        slot.resize(rows * cols);
        for (r, to) in slot.chunks_exact_mut(cols).enumerate() {
            let from = self.offsets[i] + r * row;
            match self.inputs[i] {
                MapInput::F32(values) if col == 0 => to.fill(values[from]),
                MapInput::F32(values) => to.copy_from_slice(&values[from..][..cols]),
                MapInput::Output(_) => {}
                MapInput::Bool(values) if col == 0 => to.fill(op::truth(values[from] != 0)),
                MapInput::Bool(values) => {
                    to.iter_mut().zip(&values[from..]).for_each(|(to, &b)| *to = op::truth(b != 0));
                }
            }
        }
    }

    /// Runs a pass over a tile.
    #[inline(always)]
    fn pass(&mut self, pass: &Pass, tile: &Tile, outputs: &[Output], out: &mut [f32]) {
        let map = self.map;
        if let Kind::One(op) = pass.kind
            && op.reduces()
        {
            let (arg, own) = (self.value(pass.args[0], tile, outputs), map.extents[pass.args[0]]);
            match map.reduced {
                1 => spread(arg, own, tile, out),
                _ if map.by_row => reduce_rows(op, arg, own, tile, out),
                // A reduction that nobody uses.
                _ => {}
            }
            return;
        }
        let mut temporary = take(&mut self.spread);
        let mut operands = [Source::One(0.0); 3];
        for ((operand, &arg), temporary) in operands.iter_mut().zip(&pass.args).zip(temporary.iter_mut()) {
            let values = self.value(arg, tile, outputs);
            *operand = match map.extents[arg] {
                Extent::One => Source::One(values[0]),
                own if own == map.extents[pass.value] => Source::Values(&values[..out.len()]),
                own => {
                    temporary.resize(out.len());
                    spread(values, own, tile, temporary);
                    Source::Values(&temporary[..])
                }
            };
        }
        match pass.kind {
            Kind::One(op) => op::apply(op, out, operands),
            Kind::Two(first, second) => op::apply_two(first, second, out, operands),
            Kind::Sum { .. } => {}
        }
        self.spread = temporary;
    }

    /// Adds a tile of a value, or of the product of two, to sums over axes that are not the rows.
    #[inline(always)]
    fn add(&mut self, args: &[usize], tile: &Tile, strides: &Strides, outputs: &[Output], sums: &mut [f64]) {
        let (row, col) = (strides[strides.len() - 2], strides[strides.len() - 1]);
        let at = self.map.layout.offset(&self.position, strides);
        let all = tile.rows * tile.cols;
        let mut temporary = take(&mut self.spread);
        let [values, total, _] = &mut temporary;
        let own = self.value(args[0], tile, outputs);
        let other = args.get(1).map(|&other| &self.value(other, tile, outputs)[..all]);
        let own = match (self.map.extents[args[0]], other) {
            (Extent::All, None) => &own[..all],
            (Extent::All, Some(other)) if col == 0 => {
                // Sums of values that are together: the products are needed nowhere.
                let own = &own[..all];
                if row == 0 {
                    sums[at] += f64::from(reduce::sum_of_products(own, other));
                } else {
                    for (r, (a, b)) in own.chunks_exact(tile.cols).zip(other.chunks_exact(tile.cols)).enumerate() {
                        sums[at + r * row] += f64::from(reduce::sum_of_products(a, b));
                    }
                }
                self.spread = temporary;
                return;
            }
            (_, Some(other)) => {
                values.resize(all);
                op::apply(Op::Mul, values, [Source::Values(&own[..all]), Source::Values(other), Source::One(0.0)]);
                &values[..]
            }
            (extent, None) => {
                values.resize(all);
                spread(own, extent, tile, values);
                &values[..]
            }
        };
        match (row, col) {
            (0, 0) => sums[at] += f64::from(reduce::sum(own)),
            (row, 0) => {
                for (r, values) in own.chunks_exact(tile.cols).enumerate() {
                    sums[at + r * row] += f64::from(reduce::sum(values));
                }
            }
            (0, _) => {
                total.resize(tile.cols);
                total.fill(0.0);
                for values in own.chunks_exact(tile.cols) {
                    for (t, v) in total.iter_mut().zip(values) {
                        *t += v;
                    }
                }
                for (s, &t) in sums[at..][..tile.cols].iter_mut().zip(total.iter()) {
                    *s += f64::from(t);
                }
            }
            (row, _) => {
                for (r, values) in own.chunks_exact(tile.cols).enumerate() {
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
            (Extent::All, Op::ReduceMax) => reduce::largest(&values[r * tile.cols..][..tile.cols]),
            (Extent::All, _) => reduce::sum(&values[r * tile.cols..][..tile.cols]) * factor,
        };
    }
}
