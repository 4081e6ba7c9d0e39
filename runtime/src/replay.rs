//! Replay: old rows that are shown again so that they are not forgotten, within a budget of bytes.

use crate::{RuntimeError, noise, rows};
use limbeck_tensor::{Bytes, DType, Tensor, io, io::TensorMap};
use std::collections::BTreeMap;
use std::path::Path;

/// Which rows are kept when there is no room for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReplayPolicy {
    /// Every row ever seen is kept with the same probability (Vitter 1985, algorithm R).
    Reservoir,
    /// Classes are kept in equal numbers, and a class's rows with the same probability (Chrysakis and Moens 2020,
    /// class-balancing reservoir sampling).
    #[default]
    ClassBalanced,
}

#[derive(Debug, Clone)]
struct Row {
    x: Bytes,
    label: i64,
    logits: Vec<f32>,
}

/// Kept rows: inputs of one type and shape, labels, and the logits that are to be held on to.
///
/// Everything random is a function of the seed and the number of rows seen or draws made, so that the same rows in
/// the same order leave the same content.
#[derive(Debug, Clone)]
pub struct Replay {
    budget: usize,
    policy: ReplayPolicy,
    seed: u64,
    dtype: DType,
    row_shape: Vec<usize>,
    classes: usize,
    rows: Vec<Row>,
    seen: u64,
    seen_of: BTreeMap<i64, u64>,
    draws: u64,
}

/// Rows drawn from a [`Replay`].
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayBatch {
    /// Inputs, `[rows, ...]`.
    pub x: Tensor,
    /// Labels, int64 `[rows]`.
    pub labels: Tensor,
    /// Stored logits, f32 `[rows, classes]`.
    pub logits: Tensor,
}

fn refuse<T>(what: &str, reason: impl Into<String>) -> Result<T, RuntimeError> {
    Err(RuntimeError::Data { what: what.into(), reason: reason.into() })
}

impl Replay {
    /// An empty replay for rows of `row_shape` (without the batch axis) and `classes` logits each. `budget` is in bytes
    /// of what is stored: input, label and logits.
    ///
    /// # Errors
    /// A budget that holds not even one row; a type without separate rows.
    pub fn new(
        budget: usize,
        policy: ReplayPolicy,
        seed: u64,
        (dtype, row_shape): (DType, &[usize]),
        classes: usize,
    ) -> Result<Replay, RuntimeError> {
        rows::count(&Tensor::zeros(dtype, [0])?)?;
        let row_shape = row_shape.to_vec();
        let empty = BTreeMap::new();
        let replay =
            Replay { budget, policy, seed, dtype, row_shape, classes, rows: vec![], seen: 0, seen_of: empty, draws: 0 };
        match replay.capacity() {
            0 => refuse("replay", format!("a row takes {} bytes, the budget is {budget}", replay.row_bytes())),
            _ => Ok(replay),
        }
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        let elements = limbeck_tensor::element_count(&self.row_shape);
        let x = elements.and_then(|n| self.dtype.byte_len(n)).unwrap_or(usize::MAX);
        x.saturating_add(8).saturating_add(self.classes.saturating_mul(4))
    }

    /// Rows that the budget holds.
    pub fn capacity(&self) -> usize {
        self.budget / self.row_bytes()
    }

    /// Rows held.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether no row is held.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes held; never more than the budget.
    pub fn bytes(&self) -> usize {
        self.rows.len() * self.row_bytes()
    }

    /// Rows ever offered.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Rows held of each class.
    pub fn histogram(&self) -> BTreeMap<i64, usize> {
        self.rows.iter().fold(BTreeMap::new(), |mut counts, row| {
            *counts.entry(row.label).or_default() += 1;
            counts
        })
    }

    /// Offers rows: `x` `[n, ...]`, one label a row, `logits` `[n, classes]`. The policy decides what stays.
    ///
    /// # Errors
    /// Another type or shape than the replay's, counts that differ. Nothing is added then.
    pub fn add(&mut self, x: &Tensor, labels: &[i64], logits: &Tensor) -> Result<(), RuntimeError> {
        let n = rows::count(x)?;
        if x.dtype() != self.dtype || x.shape()[1..] != self.row_shape {
            let want = format!("{} [n, {:?}]", self.dtype, self.row_shape);
            return refuse("replay rows", format!("are {} {:?}, but {want} is kept", x.dtype(), x.shape()));
        }
        if labels.len() != n || logits.shape() != [n, self.classes] {
            let got = format!("{} labels and logits {:?}", labels.len(), logits.shape());
            return refuse("replay rows", format!("{got} for {n} rows; [{n}, {}] is needed", self.classes));
        }
        let (bytes, logits) = (x.bytes(), logits.cast(DType::F32)?.to_vec::<f32>()?);
        let size = bytes.len() / n.max(1);
        for (i, &label) in labels.iter().enumerate() {
            self.seen += 1;
            *self.seen_of.entry(label).or_default() += 1;
            if let Some(place) = self.place(label) {
                // Copied: a slice would keep the whole batch alive.
                let x = Bytes::copy_from_slice(&bytes[i * size..(i + 1) * size]);
                let row = Row { x, label, logits: logits[i * self.classes..(i + 1) * self.classes].to_vec() };
                match self.rows.get_mut(place) {
                    Some(old) => *old = row,
                    None => self.rows.push(row),
                }
            }
        }
        Ok(())
    }

    /// Where the row just counted goes, if it is to stay.
    fn place(&self, label: i64) -> Option<usize> {
        if self.rows.len() < self.capacity() {
            return Some(self.rows.len());
        }
        let mut stream = noise::stream(self.seed, self.seen, "replay.add");
        let in_class =
            |class: i64| -> Vec<usize> { (0..self.rows.len()).filter(|&i| self.rows[i].label == class).collect() };
        match self.policy {
            ReplayPolicy::Reservoir => {
                Some(stream.below(usize::try_from(self.seen).unwrap_or(usize::MAX))).filter(|&i| i < self.rows.len())
            }
            ReplayPolicy::ClassBalanced => {
                let counts = self.histogram();
                let most = counts.values().copied().max()?;
                let own = in_class(label);
                if own.len() < most {
                    let largest: Vec<usize> =
                        (counts.iter().filter(|(_, n)| **n == most)).flat_map(|(&class, _)| in_class(class)).collect();
                    return largest.get(stream.below(largest.len())).copied();
                }
                let seen = usize::try_from(self.seen_of.get(&label).copied().unwrap_or(1)).unwrap_or(usize::MAX);
                own.get(stream.below(seen)).copied()
            }
        }
    }

    /// Draws `k` rows with replacement.
    ///
    /// # Errors
    /// A replay without rows.
    pub fn sample(&mut self, k: usize) -> Result<ReplayBatch, RuntimeError> {
        if self.rows.is_empty() {
            return refuse("replay", "is empty: seed it from the bundle, or let it remember what is observed");
        }
        let mut stream = noise::stream(self.seed, self.draws, "replay.sample");
        self.draws += 1;
        let picked: Vec<usize> = (0..k).map(|_| stream.below(self.rows.len())).collect();
        self.gather(&picked)
    }

    fn gather(&self, picked: &[usize]) -> Result<ReplayBatch, RuntimeError> {
        let rows = || picked.iter().map(|&i| &self.rows[i]);
        let mut shape = vec![picked.len()];
        shape.extend_from_slice(&self.row_shape);
        let bytes: Vec<u8> = rows().flat_map(|r| r.x.iter().copied()).collect();
        Ok(ReplayBatch {
            x: Tensor::from_bytes(self.dtype, shape, bytes.into())?.aligned(),
            labels: Tensor::new([picked.len()], rows().map(|r| r.label).collect::<Vec<_>>())?,
            logits: Tensor::new(
                [picked.len(), self.classes],
                rows().flat_map(|r| r.logits.clone()).collect::<Vec<_>>(),
            )?,
        })
    }

    /// Writes rows and position as safetensors, atomically.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), RuntimeError> {
        let all = self.gather(&(0..self.rows.len()).collect::<Vec<_>>())?;
        let classes: Vec<i64> = self.seen_of.keys().copied().collect();
        let counts: Vec<u64> = self.seen_of.values().copied().collect();
        let map = TensorMap::from([
            ("x".into(), all.x),
            ("y".into(), all.labels),
            ("logits".into(), all.logits),
            ("position".into(), Tensor::new([2], vec![self.seen, self.draws])?),
            ("seen_classes".into(), Tensor::new([classes.len()], classes)?),
            ("seen_counts".into(), Tensor::new([counts.len()], counts)?),
        ]);
        Ok(io::write_safetensors(path, &map)?)
    }

    /// Replaces rows and position by those of a file of [`Replay::save`]; budget, policy and seed stay. What follows
    /// equals what would have followed the save.
    ///
    /// # Errors
    /// A file of another layout, of rows of another type or shape, or of more rows than the budget holds. The replay is
    /// then unchanged.
    pub fn load(&mut self, path: &Path) -> Result<(), RuntimeError> {
        let wrong = |reason: String| RuntimeError::Manifest { file: path.display().to_string(), reason };
        let map = io::read_safetensors(path)?;
        let get = |name: &str| map.get(name).ok_or_else(|| wrong(format!("lacks `{name}`: not a saved replay")));
        let (x, labels) = (get("x")?, get("y")?.to_i64_vec()?);
        let mut fresh = Replay { rows: vec![], seen: 0, seen_of: BTreeMap::new(), draws: 0, ..self.clone() };
        if rows::count(x)? > fresh.capacity() {
            return Err(wrong(format!("holds {} rows, the budget {}", rows::count(x)?, fresh.capacity())));
        }
        fresh.add(x, &labels, get("logits")?)?;
        let [seen, draws] = get("position")?.to_vec::<u64>()?[..] else {
            return Err(wrong("`position` is not two numbers".into()));
        };
        let (classes, counts) = (get("seen_classes")?.to_i64_vec()?, get("seen_counts")?.to_vec::<u64>()?);
        (fresh.seen, fresh.draws) = (seen, draws);
        fresh.seen_of = classes.into_iter().zip(counts).collect();
        *self = fresh;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of one number, their index in the stream.
    fn fill(replay: &mut Replay, labels: &[i64]) {
        for (i, &label) in labels.iter().enumerate() {
            let x = Tensor::new([1, 1], vec![i as f32]).unwrap();
            replay.add(&x, &[label], &Tensor::new([1, 2], vec![i as f32, -1.0]).unwrap()).unwrap();
        }
    }

    fn replay(rows: usize, policy: ReplayPolicy, seed: u64) -> Replay {
        Replay::new(rows * 20, policy, seed, (DType::F32, &[1]), 2).unwrap()
    }

    #[test]
    fn a_reservoir_keeps_every_row_with_the_same_probability() {
        let (runs, stream, room) = (400, 100, 20);
        let mut kept = vec![0u32; stream];
        for seed in 0..runs {
            let mut r = replay(room, ReplayPolicy::Reservoir, seed);
            fill(&mut r, &vec![0; stream]);
            assert_eq!((r.len(), r.bytes(), r.seen()), (room, room * 20, 100));
            r.rows.iter().for_each(|row| kept[row.logits[0] as usize] += 1);
        }
        // Binomial(400, 0.2): mean 80, deviation 8. Pearson's statistic over 100 cells has mean 100 * 0.8 = 80 and
        // deviation about 11.4 (the cells add up to a constant).
        let statistic: f64 = kept.iter().map(|&n| (f64::from(n) - 80.0).powi(2) / 80.0).sum();
        assert!((35.0..135.0).contains(&statistic), "{statistic}: {kept:?}");
    }

    #[test]
    fn classes_stay_balanced_however_rare() {
        let mut r = replay(30, ReplayPolicy::ClassBalanced, 1);
        let labels: Vec<i64> = (0..600).map(|i| if i % 30 == 29 { 2 } else { i64::from(i % 3 == 0) }).collect();
        fill(&mut r, &labels);
        let counts = r.histogram();
        assert_eq!(counts.values().sum::<usize>(), 30);
        assert!(counts.values().all(|n| (9..=11).contains(n)), "{counts:?}");
        let mut plain = replay(30, ReplayPolicy::Reservoir, 1);
        fill(&mut plain, &labels);
        assert!(plain.histogram().get(&2).copied().unwrap_or(0) < 6, "{:?}", plain.histogram());
    }

    #[test]
    fn it_repeats_and_resumes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("replay.safetensors");
        let mut a = replay(8, ReplayPolicy::ClassBalanced, 5);
        fill(&mut a, &[0, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1]);
        a.sample(3).unwrap();
        a.save(&path).unwrap();
        let mut b = replay(8, ReplayPolicy::ClassBalanced, 5);
        b.load(&path).unwrap();
        fill(&mut a, &[1, 1, 0, 1]);
        fill(&mut b, &[1, 1, 0, 1]);
        assert_eq!(a.sample(16).unwrap(), b.sample(16).unwrap());
        let mut small = replay(4, ReplayPolicy::ClassBalanced, 5);
        assert!(small.load(&path).unwrap_err().to_string().contains("8 rows"));
        assert!(small.sample(1).unwrap_err().to_string().contains("empty"));
        assert!(Replay::new(19, ReplayPolicy::Reservoir, 0, (DType::F32, &[1]), 2).is_err());
        assert!(small.add(&Tensor::new([1, 2], vec![0f32; 2]).unwrap(), &[0], &Tensor::scalar(0f32)).is_err());
    }
}
