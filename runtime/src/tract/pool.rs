//! Memory that Limbeck's operators hand on: what an operator was the last to read becomes the result of a later one, without
//! being given back, asked for and cleared in between. A program keeps its pool from run to run.

use std::{
    cell::RefCell,
    collections::HashMap,
    mem::take,
    sync::{Mutex, PoisonError},
};
use tract_onnx::tract_hir::internal::*;

/// Tensors of fewer values are not kept.
const LEAST: usize = 4096;

/// Values that may lie idle when new memory is asked for: 16 MiB.
const IDLE: usize = 1 << 22;

/// Float32 tensors by their number of values.
#[derive(Default)]
pub(super) struct Pool(HashMap<usize, Vec<Tensor>>);

impl Pool {
    /// Gives memory back until with `values` more no more than [`IDLE`] would be idle: what is allocated exceeds what is
    /// needed at one time by no more than that.
    fn make_room(&mut self, values: usize) {
        let mut idle: usize = self.0.iter().map(|(len, tensors)| len * tensors.len()).sum();
        while idle > 0 && idle.saturating_add(values) > IDLE {
            let largest = self.0.iter_mut().filter(|(_, tensors)| !tensors.is_empty()).max_by_key(|(len, _)| **len);
            let Some((len, tensors)) = largest else { return };
            tensors.pop();
            idle -= len;
        }
    }
}

thread_local!(static CURRENT: RefCell<Pool> = RefCell::default());

/// Runs `f`, which stays on this thread, with a program's pool. A run beside another of the same program starts with an
/// empty one.
pub(super) fn lent<R>(pool: &Mutex<Pool>, f: impl FnOnce() -> R) -> R {
    let own = take(&mut *pool.lock().unwrap_or_else(PoisonError::into_inner));
    let outer = CURRENT.replace(own);
    let result = f();
    *pool.lock().unwrap_or_else(PoisonError::into_inner) = CURRENT.replace(outer);
    result
}

/// A tensor of this shape with arbitrary values.
pub(super) fn tensor(shape: &[usize]) -> TractResult<Tensor> {
    let len = shape.iter().product();
    let kept = CURRENT.with_borrow_mut(|pool| pool.0.get_mut(&len).and_then(Vec::pop));
    match kept {
        Some(tensor) => tensor.into_shape(shape),
        None => {
            CURRENT.with_borrow_mut(|pool| pool.make_room(len));
            Tensor::zero::<f32>(shape)
        }
    }
}

/// Keeps a value's memory if nothing else needs it.
pub(super) fn keep(value: TValue) {
    if value.len() >= LEAST && value.datum_type() == f32::datum_type() && value.is_exclusive() {
        let tensor = value.into_tensor();
        CURRENT.with_borrow_mut(|pool| pool.0.entry(tensor.len()).or_default().push(tensor));
    }
}
