//! Running a map: its tiles cut among threads, each with its part of every output.

use super::MapInput;
use super::plan::{MapKernel, Statistic, Target};
use super::sums::Sums;
use super::worker::{Spread, Worker};
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
            let mut spread = Spread::default();
            vectorised(
                // A loop and not an iterator's closure: only what is inlined here is compiled for them.
                #[inline(always)]
                || {
                    for i in piece.tiles.clone() {
                        worker.tile(&self.layout.at(i), &mut piece.outputs, &mut piece.sums, &mut spread);
                    }
                },
            );
        });
        self.finish(pieces);
        Ok(())
    }

    /// The tiles cut into contiguous pieces, each with its part of every output.
    fn pieces<'o>(&self, tiles: usize, threads: usize, outputs: &'o mut [&mut [f32]]) -> Vec<Piece<'o>> {
        let sums = || self.results.iter().enumerate().map(|(j, result)| new_sums(j, result)).collect();
        let mut pieces: Vec<Piece> =
            (0..threads).map(|i| Piece { tiles: piece(tiles, threads, i), outputs: vec![], sums: sums() }).collect();
        for (output, (_, target, len)) in outputs.iter_mut().zip(&self.results) {
            let mut rest: &mut [f32] = output;
            let mut done = 0;
            for piece in &mut pieces {
                let end = match target {
                    // The first piece has all of it, to write the sums to.
                    Target::Sums { .. } => *len,
                    _ if piece.tiles.end == tiles => *len,
                    Target::All => self.layout.at(piece.tiles.end).start,
                    Target::Rows => self.layout.at(piece.tiles.end).row,
                };
                let (values, later) = take(&mut rest).split_at_mut(end - done);
                piece.outputs.push(Output { start: done, values });
                (rest, done) = (later, end);
            }
        }
        pieces
    }

    /// Merges the pieces' sums in their order.
    fn finish(&self, mut pieces: Vec<Piece>) {
        let Some((first, others)) = pieces.split_first_mut() else { return };
        for (j, sums) in first.sums.iter_mut().enumerate() {
            others.iter().for_each(|piece| sums.merge(&piece.sums[j]));
        }
        let factor = 1.0 / self.reduced as f64;
        for (output, (_, target, _)) in first.outputs.iter_mut().zip(&self.results) {
            let Target::Sums { statistic, from } = target else { continue };
            let sums = &first.sums[*from];
            for (at, value) in output.values.iter_mut().enumerate() {
                *value = match statistic {
                    Statistic::Sum => sums.sum(at),
                    Statistic::Mean => sums.sum(at) * factor,
                    Statistic::Variance => sums.squares(at) * factor,
                } as f32;
            }
        }
    }
}

/// A thread's share of a map.
struct Piece<'o> {
    tiles: Range<usize>,
    /// Its part of every output.
    outputs: Vec<Output<'o>>,
    /// By output.
    sums: Vec<Sums>,
}

/// A thread's part of a result: values from `start` on.
pub(super) struct Output<'o> {
    pub(super) start: usize,
    pub(super) values: &'o mut [f32],
}

/// The sums that a result number `j` begins with, if it has its own.
fn new_sums(j: usize, (_, target, len): &(usize, Target, usize)) -> Sums {
    match target {
        Target::Sums { statistic, from } if *from == j => match statistic {
            Statistic::Variance => Sums::moments(*len),
            Statistic::Sum | Statistic::Mean => Sums::totals(*len),
        },
        _ => Sums::Nothing,
    }
}
