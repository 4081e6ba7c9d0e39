//! Maps: chains of element-wise operators with reductions.
//!
//! `Map` takes any number of float32 and bool tensors. Its attributes are the program of
//! [`limbeck_kernels::MapProgram`]: `ops` (names between spaces), `args`, `results`, `axes`. The program runs `times` times,
//! each time on operands and for results of its own beside the first `shared` operands. `operand_shapes` and
//! `result_shapes` give a rank and extents for each operand and result that the program has in another shape, -1 for others.

use super::{Attributes, Elements, FusedError, ensure};
use limbeck_kernels::{MapInput, MapKernel, MapProgram, Parallelism};
use std::ops::Range;

/// A program, its times, and the shapes in which it has its operands and results.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Map {
    program: MapProgram,
    times: Times,
    operand_shapes: Vec<Option<Vec<usize>>>,
    result_shapes: Vec<Option<Vec<usize>>>,
}

/// How operands and results belong to the times that a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Times {
    count: usize,
    shared: usize,
    /// Operands and results of each time alone.
    own: [usize; 2],
}

impl Times {
    fn operands(&self, time: usize) -> impl Iterator<Item = usize> + use<> {
        let first = self.shared + time * self.own[0];
        (0..self.shared).chain(first..first + self.own[0])
    }

    fn results(&self, time: usize) -> Range<usize> {
        time * self.own[1]..(time + 1) * self.own[1]
    }
}

impl Map {
    pub(super) fn parse(operands: usize, results: usize, attributes: &dyn Attributes) -> Result<Map, FusedError> {
        let ints = |name: &str| Ok::<_, FusedError>(attributes.ints(name)?.unwrap_or_default());
        let number = |name: &str, default: i64| {
            let value = attributes.int(name)?.unwrap_or(default);
            usize::try_from(value).map_err(|_| FusedError(format!("Map has {value} as its {name}")))
        };
        let (count, shared) = (number("times", 1)?, number("shared", 0)?);
        let ops = attributes.string("ops")?.unwrap_or_default();
        let ops: Vec<&str> = ops.split_whitespace().collect();
        let made = ints("results")?;
        ensure!(
            shared <= operands && count > 0 && (operands - shared).is_multiple_of(count),
            "Map has {operands} inputs, {shared} of them shared, which are not {count} times as many"
        );
        ensure!(
            made.len().checked_mul(count) == Some(results),
            "Map has {results} outputs, but its attribute names {}, {count} times",
            made.len()
        );
        let times = Times { count, shared, own: [(operands - shared) / count, made.len()] };
        Ok(Map {
            program: MapProgram::new(times.operands(0).count(), &ops, &ints("args")?, &made, &ints("axes")?)?,
            times,
            operand_shapes: shapes("operand_shapes", &ints("operand_shapes")?, operands)?,
            result_shapes: shapes("result_shapes", &ints("result_shapes")?, results)?,
        })
    }

    pub(super) fn kernel(&self, operands: &[&[usize]]) -> Result<Maps, FusedError> {
        let (wanted, got) = (self.operand_shapes.len(), operands.len());
        ensure!(wanted == got, "Map has {got} inputs, not {wanted}");
        let seen = operands.iter().zip(&self.operand_shapes).map(|(own, named)| seen(own, named.as_deref()));
        let seen = seen.collect::<Result<Vec<_>, _>>()?;
        let mut maps = Maps { kernels: vec![], times: self.times, shapes: vec![] };
        for time in 0..self.times.count {
            let own: Vec<&[usize]> = self.times.operands(time).map(|i| seen[i]).collect();
            let kernel = MapKernel::new(&self.program, &own)?;
            for (shape, i) in kernel.output_shapes().iter().zip(self.times.results(time)) {
                maps.shapes.push(self::seen(shape, self.result_shapes[i].as_deref())?.to_vec());
            }
            maps.kernels.push(kernel);
        }
        Ok(maps)
    }
}

/// The shapes that an attribute names for so many values.
fn shapes(name: &str, mut numbers: &[i64], count: usize) -> Result<Vec<Option<Vec<usize>>>, FusedError> {
    if numbers.is_empty() {
        return Ok(vec![None; count]);
    }
    let mut all = vec![];
    while let Some((&rank, rest)) = numbers.split_first() {
        let Ok(rank) = usize::try_from(rank) else {
            ensure!(rank == -1, "{name} has the rank {rank}");
            all.push(None);
            numbers = rest;
            continue;
        };
        ensure!(rank <= rest.len(), "{name} has a rank of {rank} before {} numbers", rest.len());
        let (shape, rest) = rest.split_at(rank);
        let shape: Result<Vec<usize>, _> = shape.iter().map(|&n| usize::try_from(n)).collect();
        all.push(Some(shape.map_err(|_| FusedError(format!("{name} has a negative extent")))?));
        numbers = rest;
    }
    ensure!(all.len() == count, "{name} has {} shapes, not {count}", all.len());
    Ok(all)
}

/// The shape that stands for a value's own, of as many values.
fn seen<'a>(own: &'a [usize], named: Option<&'a [usize]>) -> Result<&'a [usize], FusedError> {
    let Some(named) = named else { return Ok(own) };
    let len = |shape: &[usize]| shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    ensure!(len(own).is_some() && len(own) == len(named), "{own:?} cannot be read as {named:?}");
    Ok(named)
}

/// A map for operands of certain shapes.
#[derive(Debug)]
pub(super) struct Maps {
    /// By time.
    kernels: Vec<MapKernel>,
    times: Times,
    shapes: Vec<Vec<usize>>,
}

/// Those times that one thread runs: their operands, and their part of the results.
struct Share<'s, 'r> {
    times: Range<usize>,
    results: &'s mut [&'r mut [f32]],
}

impl Maps {
    pub(super) fn output_shapes(&self) -> &[Vec<usize>] {
        &self.shapes
    }

    /// The results in whose memory an operand may lie. What several times read stays.
    pub(super) fn in_place(&self, operand: usize) -> Vec<usize> {
        let Times { count, shared, own } = self.times;
        let time = match operand.checked_sub(shared) {
            None if count > 1 => return vec![],
            None => 0,
            Some(at) => at / own[0],
        };
        let within = operand - if operand < shared { 0 } else { time * own[0] };
        let results = self.times.results(time);
        self.kernels.get(time).map_or(vec![], |k| k.in_place(within).iter().map(|j| results.start + j).collect())
    }

    pub(super) fn operations(&self) -> f64 {
        self.kernels.iter().map(MapKernel::operations).sum()
    }

    pub(super) fn run(
        &self,
        operands: &[Elements<'_>],
        results: &mut [&mut [f32]],
        parallelism: Parallelism,
    ) -> Result<(), FusedError> {
        if let [only] = &self.kernels[..] {
            let inputs: Vec<MapInput> = operands.iter().map(|&o| o.into()).collect();
            return Ok(only.run(&inputs, results, parallelism)?);
        }
        parallelism.each(self.shares(results, parallelism.threads()), |share: Share| {
            let mut rest = share.results;
            for time in share.times {
                let (own, later) = rest.split_at_mut(self.times.own[1]);
                self.kernels[time].run(&self.inputs(operands, time), own, Parallelism::Serial)?;
                rest = later;
            }
            Ok(())
        })
    }

    /// The operands of a time, with results by their numbers within it.
    fn inputs<'a>(&self, operands: &[Elements<'a>], time: usize) -> Vec<MapInput<'a>> {
        let first = self.times.results(time).start;
        let own = self.times.operands(time).map(|i| match operands[i] {
            Elements::Result(j) => MapInput::Output(j.wrapping_sub(first)),
            other => other.into(),
        });
        own.collect()
    }

    /// The times cut into contiguous shares that cost about the same.
    fn shares<'s, 'r>(&self, mut results: &'s mut [&'r mut [f32]], threads: usize) -> Vec<Share<'s, 'r>> {
        let each = self.operations() / threads.max(1) as f64;
        let (mut shares, mut start, mut cost) = (vec![], 0, 0.0);
        for (time, kernel) in self.kernels.iter().enumerate() {
            cost += kernel.operations();
            if time + 1 == self.kernels.len() || cost >= each * (shares.len() + 1) as f64 {
                let (own, rest) = std::mem::take(&mut results).split_at_mut((time + 1 - start) * self.times.own[1]);
                shares.push(Share { times: start..time + 1, results: own });
                (results, start) = (rest, time + 1);
            }
        }
        shares
    }
}
