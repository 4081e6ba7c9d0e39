//! Runners that do not take tasks as they stand but go back from the ends, depth first, as ONNX Runtime does.

use std::collections::BinaryHeap;

/// The order of such a runner. `makers[n]` are the tasks whose values task `n` reads, by where they stand. It goes back from
/// the tasks that make nothing for others, through the makers of what each reads, in both cases from the one that stands
/// last; a task runs when all that it reads is there. Tasks that wait for each other may be left out.
pub fn depth_first(makers: &[Vec<usize>]) -> Vec<usize> {
    let mut read = vec![false; makers.len()];
    makers.iter().flatten().for_each(|&maker| read[maker] = true);
    // A task, and whether all that it reads was visited.
    let mut stack: Vec<(usize, bool)> = (0..makers.len()).filter(|&n| !read[n]).map(|n| (n, false)).collect();
    let mut seen = vec![false; makers.len()];
    let mut order = Vec::with_capacity(makers.len());
    while let Some((task, ready)) = stack.pop() {
        if ready {
            order.push(task);
        } else if !std::mem::replace(&mut seen[task], true) {
            stack.push((task, true));
            let mut next: Vec<usize> = makers[task].iter().copied().filter(|&n| !seen[n]).collect();
            next.sort_unstable();
            next.dedup();
            stack.extend(next.into_iter().map(|n| (n, false)));
        }
    }
    order
}

/// How to place tasks, which stand as they should run, for such a runner: each after its makers and, where there is a choice,
/// the later it should run the earlier, so that it goes back through those first that should run first. [`depth_first`] of
/// the tasks so placed is near the order in which they stand. Tasks that wait for each other are left out.
pub fn placed_for_depth_first(makers: &[Vec<usize>]) -> Vec<usize> {
    let mut readers = vec![vec![]; makers.len()];
    let mut waits = vec![0; makers.len()];
    for (task, makers) in makers.iter().enumerate() {
        let mut makers = makers.clone();
        makers.sort_unstable();
        makers.dedup();
        waits[task] = makers.len();
        makers.into_iter().for_each(|maker| readers[maker].push(task));
    }
    let mut ready: BinaryHeap<usize> = (0..makers.len()).filter(|&n| waits[n] == 0).collect();
    let mut order = Vec::with_capacity(makers.len());
    while let Some(task) = ready.pop() {
        order.push(task);
        for &reader in &readers[task] {
            waits[reader] -= 1;
            if waits[reader] == 0 {
                ready.push(reader);
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs tasks that were placed in this order: those of `order`, as they are run, by their first numbers.
    fn run(makers: &[Vec<usize>], order: &[usize]) -> Vec<usize> {
        let mut at = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, &task)| at[task] = place);
        let placed: Vec<Vec<usize>> =
            order.iter().map(|&task| makers[task].iter().map(|&maker| at[maker]).collect()).collect();
        depth_first(&placed).into_iter().map(|place| order[place]).collect()
    }

    /// Three layers forward, three back, each with the gradient of its weight, and an update that reads all gradients.
    fn step() -> Vec<Vec<usize>> {
        let [forward, back, weight] = [[0, 1, 2], [3, 5, 7], [4, 6, 8]];
        vec![
            vec![],
            vec![forward[0]],
            vec![forward[1]],
            vec![forward[2]],
            vec![forward[1], back[0]],
            vec![back[0]],
            vec![forward[0], back[1]],
            vec![back[1]],
            vec![back[2]],
            weight.to_vec(),
        ]
    }

    #[test]
    fn ends_come_last_and_what_stands_last_first() {
        assert_eq!(depth_first(&[vec![], vec![0], vec![0], vec![1, 2]]), [0, 2, 1, 3]);
        assert_eq!(depth_first(&[vec![], vec![0], vec![0]]), [0, 2, 1]);
        // As they stand, the gradients of weights wait for the whole way back.
        assert_eq!(depth_first(&step()), [0, 1, 2, 3, 5, 7, 8, 6, 4, 9]);
    }

    #[test]
    fn placed_tasks_run_as_they_should() {
        let makers = step();
        let placed = placed_for_depth_first(&makers);
        assert_eq!(placed, [0, 1, 2, 3, 5, 7, 8, 6, 4, 9]);
        assert_eq!(run(&makers, &placed), (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn circles_end() {
        let circle = [vec![1], vec![0], vec![]];
        assert_eq!(depth_first(&circle), [2]);
        assert_eq!(placed_for_depth_first(&circle), [2]);
        assert_eq!(depth_first(&[vec![0, 0]]), Vec::<usize>::new());
    }
}
