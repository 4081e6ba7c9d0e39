//! Thread counts, and scratch memory kept per thread.

use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// How many threads a kernel may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Parallelism {
    /// The calling thread only; rayon is not touched.
    #[default]
    Serial,
    /// At most so many threads of the current rayon pool (the global one outside of `ThreadPool::install`).
    Rayon(usize),
}

impl Parallelism {
    /// `threads` threads; 0 and 1 mean [`Parallelism::Serial`].
    pub fn new(threads: usize) -> Self {
        if threads <= 1 { Self::Serial } else { Self::Rayon(threads) }
    }

    /// As [`Parallelism::new`], but serial for passes of less than 2 million floating point operations
    /// ([`ConvGeometry::flops`](crate::ConvGeometry::flops)), which end before a second thread has woken up.
    pub fn for_work(threads: usize, flops: f64) -> Self {
        if flops < 2e6 { Self::Serial } else { Self::new(threads) }
    }

    /// The number of pieces that work is cut into, at least 1.
    pub fn threads(self) -> usize {
        match self {
            Self::Serial => 1,
            Self::Rayon(threads) => threads.max(1),
        }
    }

    /// Runs `work` on each task: in order, or one rayon job a task.
    pub(crate) fn for_each<T: Send>(self, tasks: Vec<T>, work: impl Fn(T) + Sync + Send) {
        if self.threads() == 1 || tasks.len() <= 1 {
            tasks.into_iter().for_each(work);
        } else {
            tasks.into_par_iter().with_max_len(1).for_each(work);
        }
    }
}

/// Range `index` of `pieces` contiguous ranges that cover `0..len`, the longer ones first.
pub(crate) fn piece(len: usize, pieces: usize, index: usize) -> Range<usize> {
    let (base, longer) = (len / pieces, len % pieces);
    let start = index * base + index.min(longer);
    start..start + base + usize::from(index < longer)
}

thread_local!(static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) });

/// Values that the calling thread keeps.
#[cfg(test)]
pub(crate) fn kept_values() -> usize {
    let buffer = SCRATCH.take();
    let len = buffer.len();
    SCRATCH.set(buffer);
    len
}

/// Lends `work` the calling thread's scratch slices of the given lengths. Their contents are arbitrary.
///
/// The memory is kept until the thread ends, so that repeated calls do not allocate.
pub(crate) fn with_scratch<const N: usize, R>(lens: [usize; N], work: impl FnOnce([&mut [f32]; N]) -> R) -> R {
    let mut buffer = SCRATCH.take();
    let total = lens.iter().sum();
    if buffer.len() < total {
        buffer = vec![0.0; total];
    }
    let mut rest = buffer.as_mut_slice();
    let slices = lens.map(|len| {
        let (slice, tail) = std::mem::take(&mut rest).split_at_mut(len);
        rest = tail;
        slice
    });
    let result = work(slices);
    SCRATCH.set(buffer);
    result
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

    #[test]
    fn scratch_may_be_nested() {
        with_scratch([3, 2], |[a, b]| {
            a.fill(1.0);
            b.fill(2.0);
            with_scratch([5], |[c]| c.fill(3.0));
            assert_eq!((a, b), (&mut [1.0; 3][..], &mut [2.0; 2][..]));
        });
    }
}
