//! Memory that Limbeck's operators hand on: what an operator was the last to read becomes the result of a later one, without
//! being given back, asked for and cleared in between. A program keeps its pool from run to run.

use limbeck_plan::LEAST;
use std::{
    cell::RefCell,
    collections::HashMap,
    hint::black_box,
    mem::take,
    sync::{Arc, Mutex, PoisonError},
};
use tract_onnx::tract_hir::internal::*;

/// Values that may lie idle where nothing is planned: 16 MiB.
const IDLE: usize = 1 << 22;

/// What is planned for a node.
#[derive(Debug, Clone, Default)]
pub(super) struct Lent {
    /// Values that there is room for in the buffer of each result, where one is lent to it.
    pub(super) results: Vec<Option<usize>>,
    /// Whether each operand lies in a buffer.
    pub(super) operands: Vec<bool>,
}

/// The buffers of a program whose shapes are known.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// By node.
    pub(super) nodes: HashMap<usize, Lent>,
    /// How many have room for so many values.
    pub(super) count: HashMap<usize, usize>,
}

/// Float32 tensors by the number of values that they have room for.
#[derive(Default)]
pub(super) struct Pool {
    idle: HashMap<usize, Vec<Tensor>>,
    /// `None` where shapes are not known before a run: then tensors of any length are kept.
    buffers: Option<Arc<Buffers>>,
}

impl Pool {
    /// An empty pool.
    pub(super) fn new(buffers: Option<Buffers>) -> Pool {
        Pool { idle: HashMap::new(), buffers: buffers.map(Arc::new) }
    }

    /// Values that a buffer for this result has room for, if it is to have one.
    fn room(&self, node: usize, result: usize, len: usize) -> Option<usize> {
        match &self.buffers {
            Some(buffers) => {
                buffers.nodes.get(&node)?.results.get(result).copied().flatten().filter(|room| *room >= len)
            }
            None => Some(len),
        }
    }

    /// Keeps a node's operand if it lies in a buffer and no more come back than were lent.
    fn keep(&mut self, node: usize, operand: usize, value: TValue) {
        let room = value.as_bytes().len() / size_of::<f32>();
        let idle = self.idle.entry(room).or_default();
        let wanted = match &self.buffers {
            Some(buffers) => {
                let lies = buffers.nodes.get(&node).and_then(|lent| lent.operands.get(operand)).copied();
                lies == Some(true) && buffers.count.get(&room).is_some_and(|&count| idle.len() < count)
            }
            None => room >= LEAST,
        };
        if wanted {
            idle.push(value.into_tensor());
        }
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
        Pool { idle: take(&mut pool.idle), buffers: pool.buffers.clone() }
    };
    let outer = CURRENT.replace(own);
    let result = f();
    *pool.lock().unwrap_or_else(PoisonError::into_inner) = CURRENT.replace(outer);
    result
}

/// A tensor of this shape with arbitrary values, for a node's result of this number. Its buffer may be larger.
pub(super) fn tensor(shape: &[usize], node: usize, result: usize) -> TractResult<Tensor> {
    let len = shape.iter().product();
    let Some(room) = CURRENT.with_borrow(|pool| pool.room(node, result, len)) else {
        return Tensor::zero::<f32>(shape);
    };
    let kept = CURRENT.with_borrow_mut(|pool| pool.idle.get_mut(&room).and_then(Vec::pop));
    let buffer = kept.map_or_else(|| Tensor::zero::<f32>(&[room]), Ok)?;
    Tensor::from_storage(f32::datum_type(), shape, PlainStorage::from(buffer.into_blob()?)).into_plain_ram()
}

/// Keeps the memory of what this node has read, as far as nothing else needs it.
pub(super) fn keep(values: TVec<TValue>, node: usize) {
    CURRENT.with_borrow_mut(|pool| {
        for (operand, value) in values.into_iter().enumerate() {
            if value.datum_type() == f32::datum_type() && value.is_exclusive() {
                pool.keep(node, operand, value);
            }
        }
        if pool.buffers.is_none() {
            pool.shrink(IDLE);
        }
    });
}
