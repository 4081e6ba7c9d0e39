//! Loops compiled for the widest vectors that the processor has.

/// Runs `f`, compiled once for each set of vector instructions, with the best that is there. The closure, and whatever it
/// calls that shall use them, must be `#[inline(always)]`.
pub(crate) fn vectorised<R>(f: impl FnMut() -> R) -> R {
    pulp::Arch::new().dispatch(Body(f))
}

/// A closure called through `FnMut`: that of `FnOnce` is a function of its own, compiled for the oldest processors.
struct Body<F>(F);

impl<R, F: FnMut() -> R> pulp::NullaryFnOnce for Body<F> {
    type Output = R;

    #[inline(always)]
    fn call(mut self) -> R {
        (self.0)()
    }
}
