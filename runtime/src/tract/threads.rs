//! The threads of programs. All programs of one thread count share a rayon pool.

use rayon::Yield;
use std::{
    collections::BTreeMap,
    hint::spin_loop,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::yield_now,
};
use tract_linalg::multithread::Executor;

/// Times that a thread looks for work without a pause before it lets others have the processor: about a millisecond.
const PATIENCE: usize = 20_000;

/// Threads of one count.
#[derive(Clone)]
pub(super) struct Threads {
    executor: Executor,
    /// Whether a run or a load has the threads.
    taken: Arc<AtomicBool>,
}

impl Threads {
    /// So many, 0 and 1 being the calling thread alone.
    pub(super) fn of(count: usize) -> Threads {
        static POOLS: Mutex<BTreeMap<usize, Threads>> = Mutex::new(BTreeMap::new());
        let with = |executor| Threads { executor, taken: Arc::default() };
        if count <= 1 {
            return with(Executor::SingleThread);
        }
        let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || with(Executor::multithread_with_name(count, "limbeck-tract"));
        pools.entry(count).or_insert_with(start).clone()
    }

    /// What tract is told. It is set even for one thread: otherwise a thread's last one would be used.
    pub(super) fn executor(&self) -> Executor {
        self.executor.clone()
    }

    /// Runs `work` inside the pool, so that the caller's thread waits and does not share a processor with workers. As long
    /// as it runs, the other threads look for work and do not sleep: waking one up takes longer than most operators.
    pub(super) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.first(work, look_for_work)
    }

    /// Loads a program where it will run.
    pub(super) fn load<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.first(work, |_| ())
    }

    /// Runs `work` on the pool's first thread if no other does, since an allocator keeps memory for each thread, and
    /// `others` on all others. Its argument tells when the work is done.
    fn first<R: Send>(&self, work: impl FnOnce() -> R + Send, others: impl Fn(&AtomicBool) + Sync) -> R {
        let Executor::MultiThread(pool) = &self.executor else { return work() };
        // One at a time: two that waited on each other's threads would wait for ever.
        if self.taken.swap(true, Ordering::Acquire) {
            return pool.install(work);
        }
        let _free = Set(&self.taken, false);
        let done = AtomicBool::new(false);
        let work = Mutex::new(Some(work));
        let results = pool.broadcast(|context| {
            if context.index() > 0 {
                others(&done);
                return None;
            }
            let _done = Set(&done, true);
            let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
            work.map(|work| work())
        });
        match results.into_iter().flatten().next() {
            Some(result) => result,
            None => unreachable!("a pool has a first thread"),
        }
    }
}

/// Sets a flag in the end, come what may.
struct Set<'f>(&'f AtomicBool, bool);

impl Drop for Set<'_> {
    fn drop(&mut self) {
        self.0.store(self.1, Ordering::Release);
    }
}

/// Runs jobs of the pool until the flag is set.
fn look_for_work(done: &AtomicBool) {
    let mut idle = 0;
    while !done.load(Ordering::Acquire) {
        match rayon::yield_now() {
            Some(Yield::Executed) => idle = 0,
            _ if idle < PATIENCE => {
                idle += 1;
                spin_loop();
            }
            _ => yield_now(),
        }
    }
}
