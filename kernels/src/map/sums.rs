//! Reductions over axes that are not the rows. Each tile is reduced to one number a position of the result, in float32,
//! and added to a thread's numbers in float64; the threads' are merged in their order.
//!
//! A variance takes one pass over memory: a tile gives its sums of deviations and of squared deviations from the mean of
//! what came before it, and means and squares are merged as in Chan, Golub and LeVeque, "Updating formulae and a pairwise
//! algorithm for computing sample variances" (1979).

use super::reduce;
use crate::scratch::Lines;

/// The part of a result that a tile is reduced to. The value at row r and column c belongs to the position
/// `at + r * row + c * col`, where `row` or `col` is 0 if they are reduced over; `col` is at most 1.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) at: usize,
    pub(super) row: usize,
    pub(super) col: usize,
    /// Extents of the tile.
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Block {
    /// Number of positions.
    fn len(&self) -> usize {
        let rows = if self.row == 0 { 1 } else { self.rows };
        if self.col == 0 { rows } else { rows * self.cols }
    }

    /// How many runs of neighbours the positions are, and the length of each; one begins [`Block::row`] after the other.
    #[inline(always)]
    fn runs(&self) -> (usize, usize) {
        let len = if self.col == 0 { 1 } else { self.cols };
        match self.row {
            0 => (1, len),
            row if row == len => (1, self.rows * len),
            _ => (self.rows, len),
        }
    }

    /// Values of the tile that are summed as one, at a time.
    fn together(&self) -> usize {
        if self.row == 0 { self.rows * self.cols } else { self.cols }
    }
}

/// What a thread has reduced so far.
#[derive(Default)]
pub(super) enum Sums {
    #[default]
    Nothing,
    Totals(Totals),
    Moments(Moments),
}

impl Sums {
    /// Sums of `len` positions.
    pub(super) fn totals(len: usize) -> Sums {
        Sums::Totals(Totals { sums: vec![0.0; len], tile: Lines::default() })
    }

    /// Means and variances of `len` positions.
    pub(super) fn moments(len: usize) -> Sums {
        let [counts, means, squares] = [(); 3].map(|()| vec![0.0; len]);
        Sums::Moments(Moments { counts, means, squares, tile: Default::default() })
    }

    /// Adds a tile of values, or of their products with as many others if the columns are reduced over.
    #[inline(always)]
    pub(super) fn add(&mut self, values: &[f32], others: Option<&[f32]>, block: &Block) {
        match self {
            Sums::Nothing => {}
            Sums::Totals(totals) => totals.add(values, others, block),
            Sums::Moments(moments) => moments.add(values, block),
        }
    }

    /// Adds what another thread has reduced.
    pub(super) fn merge(&mut self, other: &Sums) {
        match (self, other) {
            (Sums::Totals(own), Sums::Totals(other)) => {
                own.sums.iter_mut().zip(&other.sums).for_each(|(own, other)| *own += other);
            }
            (Sums::Moments(own), Sums::Moments(other)) => own.merge(other),
            _ => {}
        }
    }

    pub(super) fn sum(&self, at: usize) -> f64 {
        match self {
            Sums::Nothing => 0.0,
            Sums::Totals(totals) => totals.sums[at],
            Sums::Moments(moments) => moments.means[at] * moments.counts[at],
        }
    }

    /// The sum of squared deviations from the mean.
    pub(super) fn squares(&self, at: usize) -> f64 {
        match self {
            // NaN stays.
            Sums::Moments(moments) if moments.squares[at] < 0.0 => 0.0,
            Sums::Moments(moments) => moments.squares[at],
            _ => 0.0,
        }
    }
}

/// Sums by position.
pub(super) struct Totals {
    sums: Vec<f64>,
    tile: Lines,
}

impl Totals {
    #[inline(always)]
    fn add(&mut self, values: &[f32], others: Option<&[f32]>, block: &Block) {
        self.tile.resize(block.len());
        reduce_tile(values, others, block, &mut self.tile);
        let (runs, len) = block.runs();
        for run in 0..runs {
            let sums = &mut self.sums[block.at + run * block.row..][..len];
            for (sum, &total) in sums.iter_mut().zip(&self.tile[run * len..]) {
                *sum += f64::from(total);
            }
        }
    }
}

/// By position: how many values there were, their mean, and the sum of their squared deviations from it.
pub(super) struct Moments {
    counts: Vec<f64>,
    means: Vec<f64>,
    squares: Vec<f64>,
    tile: [Lines; 3],
}

impl Moments {
    #[inline(always)]
    fn add(&mut self, values: &[f32], block: &Block) {
        let (runs, len) = block.runs();
        let [shifts, sums, squares] = &mut self.tile;
        for buffer in [&mut *shifts, sums, squares] {
            buffer.resize(block.len());
        }
        let new = (values.len() / block.len()) as f64;
        // Tiles have the same positions or none in common, so that those of a block have seen equally many values.
        let old = self.counts[block.at];
        if old < new {
            reduce_tile(values, None, block, shifts);
            let factor = (1.0 / new) as f32;
            for shift in shifts.iter_mut() {
                *shift *= factor;
            }
        } else {
            // A mean of as many values is as near: what it is off counts as much in the merged squares.
            for run in 0..runs {
                let means = &self.means[block.at + run * block.row..][..len];
                for (shift, &mean) in shifts[run * len..].iter_mut().zip(means) {
                    *shift = mean as f32;
                }
            }
        }
        deviations(values, block, shifts, sums, squares);
        let (each, weight) = (1.0 / new, new / (old + new));
        for run in 0..runs {
            let (from, at) = (run * len, block.at + run * block.row);
            let tile = shifts[from..][..len].iter().zip(&sums[from..][..len]).zip(&squares[from..][..len]);
            let own = self.means[at..][..len].iter_mut().zip(&mut self.squares[at..][..len]);
            for (((&shift, &sum), &square), (own_mean, own_square)) in tile.zip(own) {
                let [shift, sum, square] = [shift, sum, square].map(f64::from);
                let off = shift + sum * each - *own_mean;
                *own_square += square - sum * sum * each + off * off * old * weight;
                *own_mean += off * weight;
            }
            self.counts[at..][..len].fill(old + new);
        }
    }

    fn merge(&mut self, other: &Moments) {
        for (at, &new) in other.counts.iter().enumerate().filter(|(_, new)| **new > 0.0) {
            let old = self.counts[at];
            let (off, weight) = (other.means[at] - self.means[at], new / (old + new));
            self.squares[at] += other.squares[at] + off * off * old * weight;
            self.means[at] += off * weight;
            self.counts[at] += new;
        }
    }
}

/// Sums of a tile's values, or of products, by position.
#[inline(always)]
fn reduce_tile(values: &[f32], others: Option<&[f32]>, block: &Block, totals: &mut [f32]) {
    match (block.row, block.col, others) {
        (_, 0, None) => reduce::sums(values, block.together(), totals),
        (_, 0, Some(others)) => reduce::sums_of_products(values, others, block.together(), totals),
        (0, _, _) => {
            totals.fill(0.0);
            for values in values.chunks_exact(block.cols) {
                for (total, value) in totals.iter_mut().zip(values) {
                    *total += value;
                }
            }
        }
        _ => totals.copy_from_slice(values),
    }
}

/// Sums of deviations from the shifts and of their squares, by position.
#[inline(always)]
fn deviations(values: &[f32], block: &Block, shifts: &[f32], sums: &mut [f32], squares: &mut [f32]) {
    if block.col == 0 {
        return reduce::deviations(values, block.together(), shifts, sums, squares);
    }
    sums.fill(0.0);
    squares.fill(0.0);
    for values in values.chunks_exact(block.len()) {
        for ((&value, &shift), (sum, square)) in values.iter().zip(shifts).zip(sums.iter_mut().zip(squares.iter_mut()))
        {
            let off = value - shift;
            *sum += off;
            *square += off * off;
        }
    }
}
