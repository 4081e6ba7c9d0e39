//! Running a map: its tiles cut among threads, each with its part of every output.

use super::MapInput;
use super::plan::{MapKernel, Statistic, Target};
use super::sums::Sums;
use super::worker::Worker;
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
        for (i, (output, (_, target, len))) in outputs.iter_mut().zip(&self.results).enumerate() {
            let mut rest: &mut [f32] = output;
            let mut done = 0;
            for piece in &mut pieces {
                if let Target::Sums { statistic, from } = target {
                    let sums = match statistic {
                        _ if *from != i => Sums::Nothing,
                        Statistic::Variance => Sums::moments(*len),
                        Statistic::Sum | Statistic::Mean => Sums::totals(*len),
                    };
                    // The first piece has the output itself to write the sums to.
                    piece.outputs.push(Output { start: 0, values: take(&mut rest), sums });
                    continue;
                }
                let end = match target {
                    _ if piece.tiles.end == tiles => *len,
                    Target::All => self.layout.at(piece.tiles.end).start,
                    _ => self.layout.at(piece.tiles.end).row,
                };
                let (values, later) = take(&mut rest).split_at_mut(end - done);
                piece.outputs.push(Output { start: done, values, sums: Sums::Nothing });
                (rest, done) = (later, end);
            }
        }
        pieces
    }

    /// Merges the pieces' sums in their order.
    fn finish(&self, mut pieces: Vec<Piece>) {
        let Some((first, others)) = pieces.split_first_mut() else { return };
        for (i, output) in first.outputs.iter_mut().enumerate() {
            others.iter().for_each(|piece| output.sums.merge(&piece.outputs[i].sums));
        }
        let factor = 1.0 / self.reduced as f64;
        for (i, (_, target, _)) in self.results.iter().enumerate() {
            let Target::Sums { statistic, from } = target else { continue };
            let values = take(&mut first.outputs[i].values);
            let sums = &first.outputs[*from].sums;
            for (at, value) in values.iter_mut().enumerate() {
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
    outputs: Vec<Output<'o>>,
}

/// A thread's part of a result: values from `start` on, or sums of its own.
#[derive(Default)]
pub(super) struct Output<'o> {
    pub(super) start: usize,
    pub(super) values: &'o mut [f32],
    pub(super) sums: Sums,
}
