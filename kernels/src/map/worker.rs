//! Computing one tile of a map: each pass in turn, in one thread's buffers.

use super::layout::Tile;
use super::op::{self, Source};
use super::pass::{Kind, Pass};
use super::plan::{Extent, MapKernel, Target};
use super::run::Output;
use super::sums::{Block, Sums};
use super::{MapInput, Op, reduce};
use crate::scratch::Lines;
use std::mem::take;

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
pub(super) struct Worker<'m> {
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
}

/// Operands spread over a tile.
pub(super) type Spread = [Lines; 4];

impl<'m> Worker<'m> {
    pub(super) fn new(map: &'m MapKernel, inputs: &'m [MapInput<'m>]) -> Self {
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
            None => match inputs.get(value) {
                Some(&MapInput::Output(j)) if map.is_read_before(value, j) => Place::Output(j),
                _ => Place::Slot(map.slots[value]),
            },
        };
        Worker {
            map,
            inputs,
            places: (0..map.homes.len()).map(place).collect(),
            slots: (0..map.slot_count).map(|_| Lines::default()).collect(),
            held: vec![None; count],
            position: vec![],
            offsets: vec![0; count],
        }
    }

    #[inline(always)]
    pub(super) fn tile(&mut self, tile: &Tile, outputs: &mut [Output], sums: &mut [Sums], whole: &mut Spread) {
        let map = self.map;
        map.layout.position(tile, &mut self.position);
        for i in 0..self.inputs.len() {
            self.offsets[i] = map.layout.offset(&self.position, &map.inputs[i].0);
            match (self.places[i], self.inputs[i]) {
                (Place::Slot(_), MapInput::Output(j)) => {
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
            if !matches!(pass.kind, Kind::Sums(_)) {
                self.make(pass, tile, outputs, whole);
            }
            for &j in &map.copies[pass.value] {
                match &map.results[j].1 {
                    Target::Sums { .. } => self.add(&pass.args, tile, outputs, &mut sums[j], whole),
                    Target::All => {
                        let values = take(&mut outputs[j].values);
                        let own = self.value(pass.value, tile, outputs);
                        spread(own, map.extents[pass.value], tile, part(values, outputs[j].start, tile));
                        outputs[j].values = values;
                    }
                    Target::Rows => {
                        let output = &mut outputs[j];
                        let to = &mut output.values[tile.row - output.start..][..tile.rows];
                        to.copy_from_slice(&self.slots[map.slots[pass.value]][..tile.rows]);
                    }
                }
            }
        }
    }

    /// Runs a pass over a tile. What it writes to is taken out, so that its operands can be read meanwhile.
    #[inline(always)]
    fn make(&mut self, pass: &Pass, tile: &Tile, outputs: &mut [Output], whole: &mut Spread) {
        match self.places[pass.value] {
            Place::Input => {}
            Place::Output(home) => {
                let values = take(&mut outputs[home].values);
                self.pass(pass, tile, outputs, whole, part(values, outputs[home].start, tile));
                outputs[home].values = values;
            }
            Place::Slot(slot) => {
                let mut out = take(&mut self.slots[slot]);
                out.resize(len(self.map.extents[pass.value], tile));
                self.pass(pass, tile, outputs, whole, &mut out);
                self.slots[slot] = out;
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

    #[inline(always)]
    fn pass(&self, pass: &Pass, tile: &Tile, outputs: &[Output], whole: &mut Spread, out: &mut [f32]) {
        let map = self.map;
        if let Kind::One(op) = pass.kind
            && op.reduces()
        {
            let (arg, own) = (self.value(pass.args[0], tile, outputs), map.extents[pass.args[0]]);
            match map.reduced {
                1 => {
                    spread(arg, own, tile, out);
                    if op == Op::ReduceVariance {
                        out.iter_mut().for_each(|v| *v = reduce::no_variance(*v));
                    }
                }
                _ if map.by_row => reduce_rows(op, arg, own, tile, out),
                // A reduction that nobody uses.
                _ => {}
            }
            return;
        }
        let mut operands = [Source::One(0.0); 4];
        for ((operand, &arg), whole) in operands.iter_mut().zip(&pass.args).zip(whole) {
            let values = self.value(arg, tile, outputs);
            *operand = match map.extents[arg] {
                Extent::One => Source::One(values[0]),
                own if own == map.extents[pass.value] => Source::Values(&values[..out.len()]),
                own => {
                    whole.resize(out.len());
                    spread(values, own, tile, whole);
                    Source::Values(&whole[..])
                }
            };
        }
        match pass.kind {
            Kind::One(op) => op::apply(op, out, operands),
            Kind::Two(first, second) => op::apply_two(first, second, out, operands),
            Kind::Sums(_) => {}
        }
    }

    /// Adds a tile of a value, or of the product of two, to sums over axes that are not the rows.
    #[inline(always)]
    fn add(&self, args: &[usize], tile: &Tile, outputs: &[Output], sums: &mut Sums, whole: &mut Spread) {
        let strides = &self.map.sums;
        let (row, col) = (strides[strides.len() - 2], strides[strides.len() - 1]);
        let at = self.map.layout.offset(&self.position, strides);
        let block = Block { at, row, col, rows: tile.rows, cols: tile.cols };
        let all = tile.rows * tile.cols;
        let whole = &mut whole[0];
        let own = self.value(args[0], tile, outputs);
        let others = args.get(1).map(|&other| &self.value(other, tile, outputs)[..all]);
        let (own, others) = match (self.map.extents[args[0]], others) {
            (Extent::All, Some(others)) if col != 0 => {
                whole.resize(all);
                let [own, others] = [&own[..all], others].map(Source::Values);
                op::apply(Op::Mul, whole, [own, others, Source::One(0.0), Source::One(0.0)]);
                (&whole[..], None)
            }
            (Extent::All, others) => (&own[..all], others),
            (extent, _) => {
                whole.resize(all);
                spread(own, extent, tile, whole);
                (&whole[..], None)
            }
        };
        sums.add(own, others, &block);
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
    let cols = tile.cols as f32;
    if extent == Extent::All {
        match op {
            Op::ReduceMax => reduce::largest(values, tile.cols, out),
            Op::ReduceVariance => reduce::variances(values, tile.cols, out),
            _ => reduce::sums(values, tile.cols, out),
        }
        if op == Op::ReduceMean {
            out.iter_mut().for_each(|v| *v *= 1.0 / cols);
        }
        return;
    }
    // A value that is the same along the row is reduced as if it were spread.
    spread(values, extent, tile, out);
    for value in out.iter_mut() {
        *value = match op {
            Op::ReduceSum => *value * cols,
            Op::ReduceVariance => reduce::no_variance(*value),
            _ => *value,
        };
    }
}
