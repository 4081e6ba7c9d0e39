//! Memory that Limbeck's operators hand on: what an operator was the last to read becomes the result of a later one, without
//! being given back, asked for and cleared in between. A program keeps its pool from run to run.

use std::{
    cell::RefCell,
    collections::HashMap,
    hint::black_box,
    mem::take,
    sync::{Arc, Mutex, PoisonError},
};
use tract_onnx::tract_hir::internal::*;

/// Tensors of fewer values are not kept.
pub(super) const LEAST: usize = 4096;

/// Values that may lie idle where it is not known what a run takes: 16 MiB.
const IDLE: usize = 1 << 22;

/// Float32 tensors by their number of values.
#[derive(Default)]
pub(super) struct Pool {
    idle: HashMap<usize, Vec<Tensor>>,
    /// By node.
    room: Arc<HashMap<usize, Room>>,
}

/// Values that may lie idle, so that no more is allocated at any time than a run takes at its peak.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// While a node runs.
    pub(super) during: usize,
    /// From then until the next of Limbeck's operators runs, which looks after itself.
    pub(super) after: usize,
}

/// Where it is not known what a run takes.
const ANY: Room = Room { during: IDLE, after: IDLE };

impl Pool {
    /// An empty pool for a program with so much room while each node runs.
    pub(super) fn new(room: HashMap<usize, Room>) -> Pool {
        Pool { idle: HashMap::new(), room: Arc::new(room) }
    }

    fn room(&self, node: usize) -> Room {
        self.room.get(&node).copied().unwrap_or(ANY)
    }

    /// Gives memory back until no more values are idle than these.
    fn shrink(&mut self, room: usize) {
        let mut idle: usize = self.idle.iter().map(|(len, tensors)| len * tensors.len()).sum();
        while idle > room {
            let largest = self.idle.iter_mut().filter(|(_, tensors)| !tensors.is_empty()).max_by_key(|(len, _)| **len);
            let Some((len, tensors)) = largest else { return };
            tensors.pop();
            idle -= len;
        }
    }
}

/// The most that glibc's malloc learns from one block: 32 MiB.
const MOST_LEARNT: usize = 32 << 20;

/// Keeps what a run gives back from being returned to the system and asked for again, page by page, within the next run.
/// glibc's malloc returns free memory beyond twice the largest mapped block that was ever freed (mallopt(3), on
/// M_MMAP_THRESHOLD), so a block of half a run's memory, which is never touched, makes it keep as much as a run takes.
/// Others do not mind.
pub(super) fn keep_heap(run_bytes: u64) {
    let len = usize::try_from(run_bytes / 2).unwrap_or(MOST_LEARNT).min(MOST_LEARNT);
    drop(black_box(Vec::<u8>::with_capacity(len)));
}

thread_local!(static CURRENT: RefCell<Pool> = RefCell::default());

/// Runs `f`, which stays on this thread, with a program's pool. A run beside another of the same program starts with an
/// empty one.
pub(super) fn lent<R>(pool: &Mutex<Pool>, f: impl FnOnce() -> R) -> R {
    let own = {
        let mut pool = pool.lock().unwrap_or_else(PoisonError::into_inner);
        Pool { idle: take(&mut pool.idle), room: pool.room.clone() }
    };
    let outer = CURRENT.replace(own);
    let result = f();
    *pool.lock().unwrap_or_else(PoisonError::into_inner) = CURRENT.replace(outer);
    result
}

/// A tensor of this shape with arbitrary values, for a result of this node.
pub(super) fn tensor(shape: &[usize], node: usize) -> TractResult<Tensor> {
    let len = shape.iter().product();
    let kept = CURRENT.with_borrow_mut(|pool| pool.idle.get_mut(&len).and_then(Vec::pop));
    match kept {
        Some(tensor) => tensor.into_shape(shape),
        None => {
            CURRENT.with_borrow_mut(|pool| pool.shrink(pool.room(node).during));
            Tensor::zero::<f32>(shape)
        }
    }
}

/// Keeps the memory of what this node has read, as far as nothing else needs it.
pub(super) fn keep(values: TVec<TValue>, node: usize) {
    CURRENT.with_borrow_mut(|pool| {
        for value in values {
            if value.len() >= LEAST && value.datum_type() == f32::datum_type() && value.is_exclusive() {
                let tensor = value.into_tensor();
                pool.idle.entry(tensor.len()).or_default().push(tensor);
            }
        }
        pool.shrink(pool.room(node).after);
    });
}
