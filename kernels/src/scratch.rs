//! Scratch memory, aligned to lines of the cache and kept per thread.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Values of a line of the cache, which the widest vectors fill.
pub(crate) const LINE: usize = 16;

/// A buffer that begins with a line.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl Lines {
    /// Sets the length. What it holds is arbitrary.
    #[inline(always)]
    pub(crate) fn resize(&mut self, len: usize) {
        if self.values.len() < len + LINE {
            self.values = vec![0.0; len + LINE];
            self.start = self.values.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        }
        self.len = len;
    }
}

impl Deref for Lines {
    type Target = [f32];

    #[inline(always)]
    fn deref(&self) -> &[f32] {
        &self.values[self.start..][..self.len]
    }
}

impl DerefMut for Lines {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..][..self.len]
    }
}

thread_local!(static SCRATCH: RefCell<Vec<Lines>> = RefCell::default());

/// Values that the calling thread keeps.
#[cfg(test)]
pub(crate) fn kept_values() -> usize {
    SCRATCH.with_borrow(|kept| kept.iter().map(|buffer| buffer.values.len()).sum())
}

/// Lends `work` the calling thread's scratch slices of the given lengths, each from the begin of a line on. Their contents
/// are arbitrary.
///
/// The memory is kept until the thread ends, one buffer for each depth of nested calls, so that repeated calls do not
/// allocate.
pub(crate) fn with_scratch<const N: usize, R>(lens: [usize; N], work: impl FnOnce([&mut [f32]; N]) -> R) -> R {
    let mut buffer = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    buffer.resize(lens.iter().map(|len| len.next_multiple_of(LINE)).sum());
    let mut rest = &mut buffer[..];
    let slices = lens.map(|len| {
        let (slice, tail) = std::mem::take(&mut rest).split_at_mut(len.next_multiple_of(LINE));
        rest = tail;
        &mut slice[..len]
    });
    let result = work(slices);
    SCRATCH.with_borrow_mut(|kept| kept.push(buffer));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_may_be_nested() {
        with_scratch([3, 2], |[a, b]| {
            a.fill(1.0);
            b.fill(2.0);
            with_scratch([5], |[c]| c.fill(3.0));
            assert_eq!((a, b), (&mut [1.0; 3][..], &mut [2.0; 2][..]));
        });
        let kept = kept_values();
        with_scratch([20], |_| with_scratch([5], |_| ()));
        assert_eq!(kept_values(), kept);
    }
}
