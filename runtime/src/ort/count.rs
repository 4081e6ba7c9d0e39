//! An allocator under ONNX Runtime that counts what its runs take.

use super::ffi::{check, host_memory};
use crate::{RuntimeError, engine::Counted};
use ort::{AsPointer, environment::Environment};
use ort_sys::{OrtAllocator, OrtMemoryInfo};
use std::{
    alloc::{Layout, alloc, dealloc},
    ffi::c_void,
    ptr::null_mut,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// An allocator that counts what a session takes. ONNX Runtime knows it by the pointer to `table`, which therefore comes
/// first. It must outlive the session and every value in its memory.
#[repr(C)]
pub(super) struct Counter {
    table: OrtAllocator,
    info: *const OrtMemoryInfo,
    /// Bytes that are taken.
    live: AtomicUsize,
    /// Bytes before the last run.
    before: AtomicUsize,
    /// The most bytes since then.
    peak: AtomicUsize,
    /// Blocks given since then.
    allocations: AtomicUsize,
}

// SAFETY: nothing writes to the table and to what `info` points to; the rest is atomic.
unsafe impl Send for Counter {}
unsafe impl Sync for Counter {}

/// Bytes before each block that hold its length; as many as the library aligns its own blocks to.
const HEAD: usize = 64;

impl Counter {
    pub(super) fn new() -> Result<Arc<Counter>, RuntimeError> {
        unsafe extern "system" fn give(counter: *mut OrtAllocator, bytes: usize) -> *mut c_void {
            // SAFETY: the pointer is to the table of a `Counter` that lives, as `register` gave it to the library.
            unsafe { &*counter.cast::<Counter>().cast_const() }.give(bytes).cast()
        }
        unsafe extern "system" fn reserve(counter: *const OrtAllocator, bytes: usize) -> *mut c_void {
            // SAFETY: as above.
            unsafe { &*counter.cast::<Counter>() }.give(bytes).cast()
        }
        unsafe extern "system" fn take_back(counter: *mut OrtAllocator, block: *mut c_void) {
            // SAFETY: as above; the library gives back what it was given, once.
            unsafe { (*counter.cast::<Counter>().cast_const()).take_back(block.cast()) };
        }
        unsafe extern "system" fn info(counter: *const OrtAllocator) -> *const OrtMemoryInfo {
            // SAFETY: as above.
            unsafe { &*counter.cast::<Counter>() }.info
        }
        let table = OrtAllocator {
            version: ort_sys::ORT_API_VERSION,
            Alloc: Some(give),
            Free: Some(take_back),
            Info: Some(info),
            Reserve: Some(reserve),
        };
        let [live, before, peak, allocations] = [const { AtomicUsize::new(0) }; 4];
        Ok(Arc::new(Counter { table, info: host_memory()?, live, before, peak, allocations }))
    }

    /// Calls `load`, whose session takes its memory from this allocator.
    pub(super) fn with<T>(
        self: &Arc<Counter>,
        environment: &Environment,
        load: impl FnOnce() -> Result<T, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        // The environment has one allocator for sessions that ask for its own.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let environment = environment.ptr().cast_mut();
        let table = Arc::as_ptr(self).cast::<OrtAllocator>().cast_mut();
        // SAFETY: both pointers are valid. The session is kept with this allocator by `Loaded` and every `Keeper`.
        check("count its memory", unsafe { (ort::api().RegisterAllocator)(environment, table) })?;
        let loaded = load();
        // SAFETY: the session has the allocator by now, and the environment forgets it.
        check("count its memory", unsafe { (ort::api().UnregisterAllocator)(environment, self.info) })?;
        loaded
    }

    /// Counts from here on.
    pub(super) fn start(&self) {
        let live = self.live.load(Ordering::Relaxed);
        self.before.store(live, Ordering::Relaxed);
        self.peak.store(live, Ordering::Relaxed);
        self.allocations.store(0, Ordering::Relaxed);
    }

    /// What was taken since [`Counter::start`].
    pub(super) fn counted(&self) -> Counted {
        let peak = self.peak.load(Ordering::Relaxed).saturating_sub(self.before.load(Ordering::Relaxed));
        Counted { peak: peak as u64, allocations: self.allocations.load(Ordering::Relaxed) }
    }

    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes.checked_add(HEAD)?, HEAD).ok()
    }

    /// A block of memory; null for none, and where there is none to be had.
    fn give(&self, bytes: usize) -> *mut u8 {
        let Some(layout) = Counter::layout(bytes).filter(|_| bytes > 0) else { return null_mut() };
        // SAFETY: the layout is not empty.
        let block = unsafe { alloc(layout) };
        if block.is_null() {
            return block;
        }
        // SAFETY: the block is aligned and longer than its head, which holds the length.
        unsafe { block.cast::<usize>().write(bytes) };
        let live = self.live.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(live, Ordering::Relaxed);
        self.allocations.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the block is longer than its head.
        unsafe { block.add(HEAD) }
    }

    /// Frees a block.
    ///
    /// # Safety
    /// It is null or one that `give` returned, and is given back once.
    unsafe fn take_back(&self, block: *mut u8) {
        if block.is_null() {
            return;
        }
        // SAFETY: `give` returned the place behind the head, which holds the length.
        let (block, bytes) = unsafe { (block.sub(HEAD), block.sub(HEAD).cast::<usize>().read()) };
        if let Some(layout) = Counter::layout(bytes) {
            self.live.fetch_sub(bytes, Ordering::Relaxed);
            // SAFETY: `give` allocated it with this layout.
            unsafe { dealloc(block, layout) };
        }
    }
}
