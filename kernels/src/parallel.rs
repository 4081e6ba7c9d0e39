//! The threads of a kernel.

use rayon::Yield;
use std::hint::spin_loop;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Threads that run the tasks of one kernel together.
pub trait Team {
    /// How many threads there are, the calling one included.
    fn threads(&self) -> usize;

    /// Calls `task` with each number below `count`, in any order and on any of the threads, and returns when all have
    /// returned.
    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync));
}

/// The threads that a kernel may use.
#[derive(Clone, Copy, Default)]
pub enum Parallelism<'t> {
    /// The calling thread only; rayon is not touched.
    #[default]
    Serial,
    /// At most so many threads of the current rayon pool (the global one outside of `ThreadPool::install`).
    Rayon(usize),
    /// The threads of someone else.
    Team(&'t dyn Team),
}

impl Parallelism<'_> {
    /// `threads` threads of rayon; 0 and 1 mean [`Parallelism::Serial`].
    pub fn new(threads: usize) -> Self {
        if threads <= 1 { Self::Serial } else { Self::Rayon(threads) }
    }

    /// The number of pieces that work is cut into, at least 1.
    pub fn threads(self) -> usize {
        match self {
            Self::Serial => 1,
            Self::Rayon(threads) => threads.max(1),
            Self::Team(team) => team.threads().max(1),
        }
    }

    /// Runs `work` on each task, on as many threads.
    ///
    /// # Errors
    /// The first of the tasks' errors, by their order.
    pub fn each<T: Send, E: Send>(
        self,
        tasks: Vec<T>,
        work: impl Fn(T) -> Result<(), E> + Sync + Send,
    ) -> Result<(), E> {
        let mut results: Vec<Result<(), E>> = tasks.iter().map(|_| Ok(())).collect();
        let tasks = tasks.into_iter().zip(&mut results).collect();
        self.for_each(tasks, |(task, result): (T, &mut Result<(), E>)| *result = work(task));
        results.into_iter().collect()
    }

    /// Runs `work` on each task, on as many threads.
    pub(crate) fn for_each<T: Send>(self, tasks: Vec<T>, work: impl Fn(T) + Sync + Send) {
        match self {
            Self::Rayon(_) if tasks.len() > 1 => on_rayon(tasks, &work),
            Self::Team(team) if tasks.len() > 1 => {
                let tasks: Vec<Mutex<Option<T>>> = tasks.into_iter().map(|task| Mutex::new(Some(task))).collect();
                team.run(tasks.len(), &|i| {
                    // Each number comes once, so that nobody waits and the lock is never poisoned.
                    let task = tasks[i].lock().unwrap_or_else(PoisonError::into_inner).take();
                    task.into_iter().for_each(&work);
                });
            }
            _ => tasks.into_iter().for_each(work),
        }
    }
}

/// Looks for other threads' end so many times before it sleeps, which takes longer than most kernels: about 0.1 ms.
const PATIENCE: usize = 2000;

/// One rayon job a task, the first on the calling thread.
fn on_rayon<T: Send>(tasks: Vec<T>, work: &(impl Fn(T) + Sync + Send)) {
    let open = AtomicUsize::new(tasks.len() - 1);
    rayon::scope(|scope| {
        let mut tasks = tasks.into_iter();
        let first = tasks.next();
        for task in tasks {
            let open = &open;
            scope.spawn(move |_| {
                work(task);
                open.fetch_sub(1, Ordering::Release);
            });
        }
        first.into_iter().for_each(work);
        for _ in 0..PATIENCE {
            if open.load(Ordering::Acquire) == 0 {
                break;
            }
            // Jobs that no other thread has taken.
            if rayon::yield_local() != Some(Yield::Executed) {
                spin_loop();
            }
        }
    });
}

/// Range `index` of `pieces` contiguous ranges that cover `0..len`, the longer ones first.
pub(crate) fn piece(len: usize, pieces: usize, index: usize) -> Range<usize> {
    let (base, longer) = (len / pieces, len % pieces);
    let start = index * base + index.min(longer);
    start..start + base + usize::from(index < longer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_without_overlap() {
        for (len, pieces) in [(7, 3), (2, 4), (0, 2), (8, 2)] {
            let all: Vec<usize> = (0..pieces).flat_map(|i| piece(len, pieces, i)).collect();
            assert_eq!(all, (0..len).collect::<Vec<_>>());
        }
    }
}
