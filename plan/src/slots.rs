//! Which results of Limbeck's operators lie in the same memory on tract, settled before any run: buffers that are made in the
//! first run and lent in all of them, so that later ones neither ask for memory nor clear it.

use crate::{Task, Usage, ValueId, Work};
use std::collections::HashMap;

/// Results of fewer values get no buffer.
pub const LEAST: usize = 4096;

/// What planning knows of a task.
#[derive(Debug)]
struct Step<'t> {
    task: &'t Task,
    /// Whether it is one of Limbeck's operators.
    own: bool,
    /// Bytes while it runs, without buffers.
    during: u64,
}

/// The buffers of a program, all of float32 values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slots {
    /// By task, in the order of running: the values that the buffer of each result has room for, where one is lent to it.
    pub lent: Vec<Vec<Option<usize>>>,
    /// By task, in the order of running: whether each operand lies in a buffer.
    pub kept: Vec<Vec<bool>>,
    /// How many buffers have room for so many values.
    pub count: HashMap<usize, usize>,
    /// Bytes at the peak, all buffers and what is given included.
    pub peak: u64,
}

/// Values one after the other in the same memory, of which the first is made and the last read by operators of Limbeck's.
#[derive(Debug)]
struct Tenant {
    len: usize,
    /// The task that makes the first, and which of its results that is.
    from: (usize, usize),
    /// The task that reads the last.
    to: Option<usize>,
    /// Whether nobody but Limbeck's operators touches it: others look at the whole buffer.
    own: bool,
}

/// A buffer.
#[derive(Debug)]
struct Slot {
    len: usize,
    /// First and last tasks of its tenants.
    taken: Vec<(usize, usize)>,
}

impl Work {
    /// Lends buffers to results of tasks that run in this order and take what [`Work::usage`] says of it. `own` says which tasks
    /// are operators of Limbeck's: only what they make, and are the last to read, lies in buffers.
    pub fn slots(&self, order: &[usize], usage: &Usage, own: &dyn Fn(usize) -> bool) -> Slots {
        let steps = order.iter().zip(&usage.during);
        let step = |(&task, &during): (&usize, &u64)| Step { task: &self.tasks[task], own: own(task), during };
        Slots::of(self, &steps.map(step).collect::<Vec<_>>())
    }
}

impl Slots {
    fn of(work: &Work, steps: &[Step<'_>]) -> Slots {
        let (tenants, home) = tenants(work, steps);
        let mut lent: Vec<Vec<Option<usize>>> = steps.iter().map(|s| vec![None; s.task.writes.len()]).collect();
        let mut settled = vec![false; tenants.len()];
        let mut outside: Vec<u64> = steps.iter().map(|s| s.during).collect();
        let mut slots: Vec<Slot> = vec![];
        // The largest first: what comes later fits into any buffer that is free for as long as it lives.
        let mut order: Vec<usize> = (0..tenants.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(tenants[i].len), tenants[i].from));
        for i in order {
            let Tenant { len, from, to: Some(to), own } = tenants[i] else { continue };
            let fits = |slot: &Slot| {
                (own || slot.len == len) && slot.taken.iter().all(|&(first, last)| to < first || last < from.0)
            };
            let at = slots.iter().rposition(fits).unwrap_or_else(|| {
                slots.push(Slot { len, taken: vec![] });
                slots.len() - 1
            });
            slots[at].taken.push((from.0, to));
            lent[from.0][from.1] = Some(slots[at].len);
            settled[i] = true;
            outside[from.0..=to].iter_mut().for_each(|bytes| *bytes = bytes.saturating_sub(size(len)));
        }
        let is_kept = |value: &ValueId| home.get(value).is_some_and(|&tenant| settled[tenant]);
        let kept = steps.iter().map(|s| s.task.reads.iter().map(is_kept).collect()).collect();
        let mut count = HashMap::new();
        slots.iter().for_each(|slot| *count.entry(slot.len).or_default() += 1);
        let all: u64 = slots.iter().map(|slot| size(slot.len)).sum();
        Slots { lent, kept, count, peak: all + outside.into_iter().max().unwrap_or(0) }
    }
}

/// Bytes of so many float32 values.
fn size(len: usize) -> u64 {
    (len * size_of::<f32>()) as u64
}

/// All that could lie in buffers, and which of them each value belongs to.
fn tenants(work: &Work, steps: &[Step<'_>]) -> (Vec<Tenant>, HashMap<ValueId, usize>) {
    let last: HashMap<ValueId, usize> =
        steps.iter().enumerate().flat_map(|(at, s)| s.task.reads.iter().map(move |&v| (v, at))).collect();
    let (mut tenants, mut home): (Vec<Tenant>, HashMap<ValueId, usize>) = Default::default();
    for (at, Step { task, own, .. }) in steps.iter().enumerate() {
        let ends = |value: &ValueId| last.get(value) == Some(&at) && work.passing(*value);
        let mut moved: Vec<(ValueId, ValueId)> = vec![];
        for &(read, written) in &task.in_place {
            let free = moved.iter().all(|&(r, w)| r != read && w != written);
            if free && ends(&read) && work.bytes(read) == work.bytes(written) {
                moved.push((read, written));
            }
        }
        for value in &task.reads {
            let Some(&tenant) = home.get(value) else { continue };
            tenants[tenant].own &= own;
            if ends(value) && *own && moved.iter().all(|(read, _)| read != value) {
                tenants[tenant].to = Some(at);
            }
        }
        for (j, &value) in task.writes.iter().enumerate() {
            let len = work.bytes(value) as usize / size_of::<f32>();
            match moved.iter().find(|(_, written)| *written == value) {
                Some((read, _)) => {
                    if let Some(&tenant) = home.get(read) {
                        home.insert(value, tenant);
                    }
                }
                None if *own && len >= LEAST => {
                    home.insert(value, tenants.len());
                    tenants.push(Tenant { len, from: (at, j), to: None, own: true });
                }
                None => {}
            }
        }
    }
    (tenants, home)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(reads: &[ValueId], writes: &[ValueId], in_place: &[(ValueId, ValueId)]) -> Task {
        Task { reads: reads.to_vec(), writes: writes.to_vec(), in_place: in_place.to_vec(), place: 0 }
    }

    /// Of tasks that are all Limbeck's but those of these numbers. Values have the length 4096 or as `lens` says; the last
    /// one stays.
    fn slots(tasks: &[Task], lens: &[(ValueId, usize)], others: &[usize], stays: ValueId) -> Slots {
        let len = |v: ValueId| lens.iter().find(|(value, _)| *value == v).map_or(LEAST, |(_, len)| *len);
        let mut work = Work::default();
        (0..=stays).for_each(|v| _ = work.made(size(len(v))));
        work.result(stays);
        let steps: Vec<Step<'_>> = (tasks.iter().enumerate())
            .map(|(at, task)| Step { task, own: !others.contains(&at), during: 1 << 20 })
            .collect();
        Slots::of(&work, &steps)
    }

    #[test]
    fn what_lives_at_different_times_shares_a_buffer_as_large_as_the_largest() {
        let chain = [task(&[0], &[1], &[]), task(&[1], &[2], &[]), task(&[2], &[3], &[]), task(&[3], &[4], &[])];
        let found = slots(&chain, &[(3, 5000)], &[], 4);
        assert_eq!(found.lent, [[Some(5000)], [Some(4096)], [Some(5000)], [None]], "the last is a result");
        assert_eq!(found.kept, [[false], [true], [true], [true]], "the first is fed");
        assert_eq!(found.count, HashMap::from([(5000, 1), (4096, 1)]));
        // While the last task runs, its operand alone lies in a buffer.
        assert_eq!(found.peak, (1 << 20) - size(4096) + size(5000) + size(4096));
    }

    #[test]
    fn what_another_operator_reads_has_a_buffer_of_its_length() {
        let tasks = [task(&[0], &[1], &[]), task(&[1], &[2], &[]), task(&[1, 2], &[3], &[]), task(&[3], &[4], &[])];
        let larger = [(1, 5000), (3, 4500)];
        assert_eq!(slots(&tasks, &larger, &[], 4).count, HashMap::from([(5000, 1), (4500, 1), (4096, 1)]));
        let tasks = [task(&[0], &[1], &[]), task(&[1], &[2], &[]), task(&[2], &[3], &[]), task(&[3], &[4], &[])];
        assert_eq!(slots(&tasks, &[(1, 5000), (3, 4500)], &[], 4).count, HashMap::from([(5000, 1), (4096, 1)]));
        let tasks = [tasks.to_vec(), vec![task(&[3], &[5], &[]), task(&[3], &[6], &[])]].concat();
        let found = slots(&tasks, &[(1, 5000), (3, 4500)], &[4], 6);
        assert_eq!(found.lent[2], [Some(4500)], "the task 4 sees the whole buffer");
    }

    #[test]
    fn what_another_operator_reads_last_does_not_come_back() {
        let tasks = [task(&[0], &[1], &[]), task(&[1], &[2], &[]), task(&[1], &[3], &[])];
        assert_eq!(slots(&tasks, &[], &[2], 3).lent[0], [None]);
        assert_eq!(slots(&tasks, &[], &[1], 3).lent[0], [Some(LEAST)]);
    }

    #[test]
    fn a_result_in_its_operands_place_stays_in_the_buffer() {
        let tasks = [task(&[0], &[1], &[]), task(&[1], &[2], &[(1, 2)]), task(&[2], &[3], &[])];
        let found = slots(&tasks, &[], &[], 3);
        assert_eq!(found.lent, [[Some(LEAST)], [None], [None]]);
        assert_eq!(found.kept, [[false], [true], [true]]);
        assert_eq!(found.count, HashMap::from([(LEAST, 1)]));
    }

    #[test]
    fn small_results_and_those_of_others_have_none() {
        let tasks = [task(&[0], &[1], &[]), task(&[1], &[2], &[]), task(&[2], &[3], &[])];
        assert_eq!(slots(&tasks, &[(1, LEAST - 1)], &[1], 3).count, HashMap::new());
    }
}
