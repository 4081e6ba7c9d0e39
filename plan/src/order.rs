//! The choice of an order.

use crate::{Task, Usage, Work};
use std::collections::BTreeSet;

/// How the next task is picked among those whose values are there.
#[derive(Debug, Clone, Copy)]
enum Pick {
    /// The first by place.
    Place,
    /// The first that leaves no more bytes behind than there were, else the first by place.
    Freeing,
    /// The one that leaves the fewest bytes behind.
    Least,
}

impl Work {
    /// An order of the tasks, and what it takes. Several are made by simple rules; the one with the lowest peak is returned,
    /// of equal ones that which is nearest to the tasks' places. It is `None` where tasks wait for each other's values.
    ///
    /// The best order is NP-hard to find. In a train step most of the gain lies in computing a weight's gradient as soon as
    /// it can be, which sets free what the forward pass has kept for it.
    pub fn ordered(&self) -> Option<(Vec<usize>, Usage)> {
        let mut best: Option<(Vec<usize>, Usage)> = None;
        for pick in [Pick::Place, Pick::Freeing, Pick::Least] {
            let order = self.order_by(pick)?;
            let usage = self.usage(&order);
            if best.as_ref().is_none_or(|(_, b)| usage.peak < b.peak) {
                best = Some((order, usage));
            }
        }
        best
    }

    fn order_by(&self, pick: Pick) -> Option<Vec<usize>> {
        let mut maker = vec![None; self.values.len()];
        for (number, task) in self.tasks.iter().enumerate() {
            task.writes.iter().for_each(|&v| maker[v] = Some(number));
        }
        // A value that is neither given nor made by a task counts as there.
        let mut waits = vec![0; self.tasks.len()];
        let mut readers = vec![vec![]; self.tasks.len()];
        for (number, task) in self.tasks.iter().enumerate() {
            let makers: BTreeSet<usize> = task.reads.iter().filter_map(|&v| maker[v]).collect();
            waits[number] = makers.len();
            makers.into_iter().for_each(|m| readers[m].push(number));
        }
        let mut left = self.reads_left();
        let mut ready: BTreeSet<(usize, usize)> =
            (0..waits.len()).filter(|&n| waits[n] == 0).map(|n| (self.tasks[n].place, n)).collect();
        let mut order = Vec::with_capacity(self.tasks.len());
        while let Some(&first) = ready.first() {
            let grows = |n: usize| self.grows(&self.tasks[n], &left);
            let next = match pick {
                Pick::Place => first,
                Pick::Freeing => ready.iter().copied().find(|&(_, n)| grows(n) <= 0).unwrap_or(first),
                Pick::Least => ready.iter().copied().min_by_key(|&(_, n)| grows(n)).unwrap_or(first),
            };
            ready.remove(&next);
            let number = next.1;
            order.push(number);
            self.read(&self.tasks[number], &mut left);
            for &reader in &readers[number] {
                waits[reader] -= 1;
                if waits[reader] == 0 {
                    ready.insert((self.tasks[reader].place, reader));
                }
            }
        }
        (order.len() == self.tasks.len()).then_some(order)
    }

    /// Bytes after a task less bytes before it.
    fn grows(&self, task: &Task, left: &[usize]) -> i128 {
        let freed: u64 = crate::distinct(&task.reads)
            .filter(|&v| left[v] == 1 && self.passing(v))
            .map(|v| self.values[v].bytes)
            .sum();
        i128::from(self.sum(&task.writes)) - i128::from(freed)
    }
}
