//! Liveness: in what order the tasks of a program run, and how much memory its values then take at one time. It knows
//! nothing of graphs and engines: whoever has one describes it as a [`Work`].
#![forbid(unsafe_code)]

mod depth_first;
mod order;
mod slots;

pub use depth_first::{depth_first, placed_for_depth_first};
pub use slots::{LEAST, Slots};

/// A value of a [`Work`], by its number.
pub type ValueId = usize;

#[derive(Debug, Clone, Copy)]
struct Value {
    bytes: u64,
    /// There before the first task.
    given: bool,
    /// Needed after the last task.
    stays: bool,
}

/// What one task does to memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Task {
    /// Values that it reads.
    pub reads: Vec<ValueId>,
    /// Values that it makes. Each is made by one task.
    pub writes: Vec<ValueId>,
    /// Pairs of a read and a written value of which the second may take the place of the first, if nothing needs that any
    /// more. Each written value takes the first place that is to be had.
    pub in_place: Vec<(ValueId, ValueId)>,
    /// Where it stands among the tasks as they were written. What else is equal, the lower runs first.
    pub place: usize,
}

/// Values and the tasks between them.
#[derive(Debug, Clone, Default)]
pub struct Work {
    values: Vec<Value>,
    tasks: Vec<Task>,
}

/// What an order of tasks takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all values that are given and stay: part of every other figure.
    pub given: u64,
    /// The most bytes at one time, what is given included.
    pub peak: u64,
    /// The task that runs when the peak is reached, by its number; `None` without tasks.
    pub at: Option<usize>,
    /// The other values that live at the peak, those that the task makes included.
    pub live: Vec<ValueId>,
    /// Values that get memory of their own in a run.
    pub allocations: usize,
    /// Bytes while each task runs, in the order of running.
    pub during: Vec<u64>,
}

impl Work {
    /// Adds a value that is there from the beginning and stays: a constant, or what someone else keeps.
    pub fn given(&mut self, bytes: u64) -> ValueId {
        self.add(Value { bytes, given: true, stays: true })
    }

    /// Adds a value that is there from the beginning and goes with the last task that reads it.
    pub fn fed(&mut self, bytes: u64) -> ValueId {
        self.add(Value { bytes, given: true, stays: false })
    }

    /// Adds a value that a task makes.
    pub fn made(&mut self, bytes: u64) -> ValueId {
        self.add(Value { bytes, given: false, stays: false })
    }

    fn add(&mut self, value: Value) -> ValueId {
        self.values.push(value);
        self.values.len() - 1
    }

    /// Marks a value that is needed after the last task.
    pub fn result(&mut self, value: ValueId) {
        self.values[value].stays = true;
    }

    /// Adds a task, which gets the next number. Its values must have been added.
    pub fn task(&mut self, task: Task) -> usize {
        let known = |v: &ValueId| *v < self.values.len();
        assert!(task.reads.iter().chain(&task.writes).all(known), "a task's values are added before it");
        self.tasks.push(task);
        self.tasks.len() - 1
    }

    /// Bytes of a value.
    pub fn bytes(&self, value: ValueId) -> u64 {
        self.values[value].bytes
    }

    /// What the tasks take in this order, which has each of them once, after those whose values it reads.
    pub fn usage(&self, order: &[usize]) -> Usage {
        let mut left = self.reads_left();
        let given = self.values.iter().filter(|v| v.given && v.stays).map(|v| v.bytes).sum();
        let mut usage =
            Usage { given, peak: 0, at: None, live: vec![], allocations: 0, during: Vec::with_capacity(order.len()) };
        let mut live: Vec<bool> = self.values.iter().map(|v| v.given && !v.stays).collect();
        let mut bytes = self.values.iter().filter(|v| v.given).map(|v| v.bytes).sum();
        usage.peak = bytes;
        for &number in order {
            let task = &self.tasks[number];
            let reused = self.reused(task, &left);
            let new = self.sum(&task.writes).saturating_sub(reused.bytes);
            task.writes.iter().for_each(|&v| live[v] = true);
            reused.places.iter().for_each(|&v| live[v] = false);
            let own = |values: &[ValueId]| values.iter().filter(|&&v| self.values[v].bytes > 0).count();
            usage.allocations += own(&task.writes) - own(&reused.places);
            bytes += new;
            usage.during.push(bytes);
            if usage.at.is_none() || bytes > usage.peak {
                usage.peak = bytes;
                usage.at = Some(number);
                usage.live = (0..live.len()).filter(|&v| live[v]).collect();
            }
            self.read(task, &mut left);
            let dead = task.reads.iter().chain(&task.writes).filter(|&&v| left[v] == 0 && self.passing(v));
            for &v in dead {
                if std::mem::take(&mut live[v]) {
                    bytes = bytes.saturating_sub(self.values[v].bytes);
                }
            }
        }
        usage
    }

    /// Whether a value is only needed by tasks.
    fn passing(&self, value: ValueId) -> bool {
        !self.values[value].stays
    }

    fn sum(&self, values: &[ValueId]) -> u64 {
        values.iter().map(|&v| self.values[v].bytes).sum()
    }

    /// How many tasks are to read each value.
    fn reads_left(&self) -> Vec<usize> {
        let mut left = vec![0; self.values.len()];
        for task in &self.tasks {
            distinct(&task.reads).for_each(|v| left[v] += 1);
        }
        left
    }

    /// Notes that a task has read its values.
    fn read(&self, task: &Task, left: &mut [usize]) {
        distinct(&task.reads).for_each(|v| left[v] -= 1);
    }

    /// What a task that runs now takes the place of.
    fn reused(&self, task: &Task, left: &[usize]) -> Reused {
        let mut reused = Reused::default();
        let mut filled: Vec<ValueId> = vec![];
        for &(read, written) in &task.in_place {
            let last = left[read] == 1 && self.passing(read) && self.values[read].bytes == self.values[written].bytes;
            if last && !filled.contains(&written) && !reused.places.contains(&read) {
                filled.push(written);
                reused.places.push(read);
                reused.bytes += self.values[read].bytes;
            }
        }
        reused
    }
}

#[derive(Default)]
struct Reused {
    places: Vec<ValueId>,
    bytes: u64,
}

/// The values of a list, each once.
fn distinct(values: &[ValueId]) -> impl Iterator<Item = ValueId> + '_ {
    values.iter().enumerate().filter(|(i, v)| !values[..*i].contains(v)).map(|(_, &v)| v)
}
