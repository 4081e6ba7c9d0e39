//! Independent tasks on a few threads, results in task order.

use anyhow::{Result, anyhow};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `task` on every item with at most `threads` at once. The first error in item order is returned; `done` is
/// called after each task.
pub(super) fn map<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    task: impl Fn(&T) -> Result<R> + Sync,
    done: impl Fn() + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<R>>>> = items.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(i) else { break };
                    let result = task(item);
                    if let Ok(mut slot) = results[i].lock() {
                        *slot = Some(result);
                    }
                    done();
                }
            });
        }
    });
    results
        .into_iter()
        .map(|slot| slot.into_inner().ok().flatten().unwrap_or_else(|| Err(anyhow!("a task did not finish"))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::map;

    #[test]
    fn results_keep_their_order_and_errors_surface() {
        let squares = map(&[1, 2, 3, 4, 5], 2, |x| Ok(x * x), || {}).unwrap();
        assert_eq!(squares, [1, 4, 9, 16, 25]);
        let failed = map(&[1, 2, 3], 2, |x| if *x == 2 { anyhow::bail!("two") } else { Ok(*x) }, || {});
        assert_eq!(failed.unwrap_err().to_string(), "two");
    }
}
