//! Plans of random programs against a simulation that looks at every value at every moment, and of programs whose best
//! order is known.
#![allow(missing_docs)]

use limbeck_plan::{Task, Usage, ValueId, Work};
use proptest::prelude::*;

/// A program as a list of values and of tasks, for the simulation.
#[derive(Debug, Clone, Default)]
struct Program {
    bytes: Vec<u64>,
    /// So many values are there from the beginning, and so many of them stay.
    given: usize,
    staying: usize,
    tasks: Vec<Task>,
    results: Vec<ValueId>,
}

impl Program {
    fn work(&self) -> Work {
        let mut work = Work::default();
        for (i, &bytes) in self.bytes.iter().enumerate() {
            match i {
                _ if i < self.staying => work.given(bytes),
                _ if i < self.given => work.fed(bytes),
                _ => work.made(bytes),
            };
        }
        self.tasks.iter().for_each(|task| {
            work.task(task.clone());
        });
        self.results.iter().for_each(|&v| work.result(v));
        work
    }

    /// Bytes while each task runs: of every value that was made by then, or is being made, and is still needed then. A value
    /// that takes another's place shares its bytes.
    fn during(&self, order: &[usize]) -> Vec<u64> {
        let made_at = |v: ValueId| match v < self.given {
            true => Some(0),
            false => order.iter().position(|&t| self.tasks[t].writes.contains(&v)),
        };
        let last_read = |v: ValueId| order.iter().rposition(|&t| self.tasks[t].reads.contains(&v));
        let stays = |v: ValueId| v < self.staying || self.results.contains(&v);
        let needed = |v: ValueId, at: usize| {
            made_at(v).is_some_and(|made| {
                // What is fed and never read is not taken back.
                let unread = if v < self.given { order.len() } else { made };
                let until = if stays(v) { order.len() } else { last_read(v).unwrap_or(unread) };
                made <= at && at <= until
            })
        };
        let dies = |v: ValueId, at: usize| !stays(v) && last_read(v) == Some(at);
        (0..order.len())
            .map(|at| {
                let task = &self.tasks[order[at]];
                let all: u64 = (0..self.bytes.len()).filter(|&v| needed(v, at)).map(|v| self.bytes[v]).sum();
                let mut pairs: Vec<(ValueId, ValueId)> = vec![];
                for &(read, written) in &task.in_place {
                    let free = pairs.iter().all(|&(r, w)| r != read && w != written);
                    if free && dies(read, at) && self.bytes[read] == self.bytes[written] {
                        pairs.push((read, written));
                    }
                }
                all - pairs.iter().map(|&(r, _)| self.bytes[r]).sum::<u64>()
            })
            .collect()
    }
}

/// Tasks that read what earlier ones made; some write two values, some may write in place, the places are shuffled.
fn programs() -> impl Strategy<Value = Program> {
    let task = (any::<[u16; 3]>(), 1..=2usize, any::<bool>(), any::<u16>());
    ((1..4usize, 0..4usize), prop::collection::vec((task, [0..4u64, 0..4u64]), 1..12), any::<u32>()).prop_map(
        |((given, staying), made, results)| {
            let staying = staying.min(given);
            let mut program = Program { bytes: (1..=given as u64).collect(), given, staying, ..Program::default() };
            for ((reads, writes, in_place, place), bytes) in made {
                let known = program.bytes.len();
                let reads: Vec<ValueId> = reads.iter().map(|&r| usize::from(r) % known).collect();
                let writes: Vec<ValueId> = (known..known + writes).collect();
                program.bytes.extend(&bytes[..writes.len()]);
                let pairs = reads.iter().flat_map(|&r| writes.iter().map(move |&w| (r, w)));
                let in_place = if in_place { pairs.collect() } else { vec![] };
                program.tasks.push(Task { reads, writes, in_place, place: usize::from(place) });
            }
            program.results = (0..program.bytes.len()).filter(|v| (results >> (v % 32)) & 1 == 1).collect();
            program
        },
    )
}

proptest! {
    #[test]
    fn usage_is_what_a_simulation_sees(program in programs()) {
        let order: Vec<usize> = (0..program.tasks.len()).collect();
        let usage = program.work().usage(&order);
        let during = program.during(&order);
        prop_assert_eq!(&usage.during, &during);
        prop_assert_eq!(usage.peak, during.iter().copied().max().unwrap_or(0));
        let at = usage.at.unwrap();
        prop_assert_eq!(during[at], usage.peak);
        let named: u64 = usage.live.iter().map(|&v| program.bytes[v]).sum();
        prop_assert_eq!(usage.given + named, usage.peak);
    }

    #[test]
    fn an_order_is_one_and_no_worse_than_that_of_the_places(program in programs()) {
        let work = program.work();
        let (order, usage) = work.ordered().unwrap();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..program.tasks.len()).collect::<Vec<_>>());
        for (at, &task) in order.iter().enumerate() {
            for read in program.tasks[task].reads.iter().filter(|&&v| v >= program.given) {
                let made = order.iter().position(|&t| program.tasks[t].writes.contains(read));
                prop_assert!(made.is_some_and(|made| made < at), "task {task} runs before what it reads");
            }
        }
        prop_assert_eq!(&usage, &work.usage(&order));
        let mut places = program.clone();
        places.tasks.iter_mut().enumerate().for_each(|(i, task)| task.place = i);
        let written = places.work().usage(&(0..program.tasks.len()).collect::<Vec<_>>());
        prop_assert!(places.work().ordered().unwrap().1.peak <= written.peak);
    }
}

/// A chain of `layers` layers and its gradient, all gradients of weights written last, as if someone had appended them.
fn train_step(layers: usize) -> Work {
    let mut work = Work::default();
    let input = work.given(100);
    let mut place = 0;
    let mut task = |work: &mut Work, reads: Vec<ValueId>, bytes: u64| {
        let made = work.made(bytes);
        work.task(Task { reads, writes: vec![made], place, ..Task::default() });
        place += 1;
        made
    };
    let mut kept = vec![input];
    for _ in 0..layers {
        let above = task(&mut work, vec![*kept.last().unwrap()], 100);
        kept.push(above);
    }
    let mut gradients = vec![task(&mut work, vec![kept[layers]], 100)];
    for layer in (1..layers).rev() {
        let gradient = task(&mut work, vec![*gradients.last().unwrap(), kept[layer]], 100);
        gradients.push(gradient);
    }
    for (gradient, layer) in gradients.iter().zip((0..layers).rev()) {
        let weight = task(&mut work, vec![*gradient, kept[layer]], 1);
        work.result(weight);
    }
    work
}

#[test]
fn gradients_of_weights_are_computed_before_more_is_kept() {
    let work = train_step(8);
    let written: Vec<usize> = (0..24).collect();
    // As written every activation and every gradient of one is kept until the end; the best order has, beside the input and
    // all eight activations, the gradient at the top and that of its weight.
    assert!(work.usage(&written).peak > 1600);
    let (_, usage) = work.ordered().unwrap();
    assert_eq!((usage.given, usage.peak), (100, 100 + 900 + 1));
}

#[test]
fn a_result_takes_the_place_of_an_operand_that_nothing_else_needs() {
    let mut work = Work::default();
    let x = work.given(8);
    let [a, b, c] = [8, 8, 8].map(|bytes| work.made(bytes));
    for (read, written) in [(x, a), (a, b), (b, c)] {
        work.task(Task {
            reads: vec![read],
            writes: vec![written],
            in_place: vec![(read, written)],
            ..Task::default()
        });
    }
    work.result(c);
    let Usage { peak, allocations, .. } = work.usage(&[0, 1, 2]);
    assert_eq!((peak, allocations), (16, 1), "x stays, and a, b and c share 8 bytes");
    work.result(a);
    let Usage { peak, allocations, .. } = work.usage(&[0, 1, 2]);
    assert_eq!((peak, allocations), (24, 2), "a is needed after the run");
}

#[test]
fn tasks_in_a_circle_have_no_order() {
    let mut work = Work::default();
    let [a, b] = [1, 1].map(|bytes| work.made(bytes));
    work.task(Task { reads: vec![a], writes: vec![b], ..Task::default() });
    work.task(Task { reads: vec![b], writes: vec![a], ..Task::default() });
    assert_eq!(work.ordered(), None);
}
