//! Counts of what was seen, in bounded memory, and the ranges that follow from them.

use super::calibrate::Record;

/// Bins behind [`Method::Percentile`](super::Method::Percentile).
pub(super) const PERCENTILE_BINS: usize = 2048;

/// Bins that [`Method::Entropy`](super::Method::Entropy) begins with, and levels that it tries to represent them with.
pub(super) const ENTROPY_BINS: usize = 128;

/// Bins that entropy's histogram may grow to; beyond, they merge in pairs.
pub(super) const MOST_ENTROPY_BINS: usize = 4096;

impl Record {
    /// Makes room for values up to `reach`: the reach doubles until they fit.
    pub(super) fn widen(&mut self, reach: f64) {
        self.begin(PERCENTILE_BINS, reach);
        while self.reach < reach {
            self.double();
        }
    }

    /// Makes room for values up to `reach` in bins of the width that the first batch set, as ONNX Runtime's collector
    /// does; where that would take too many, the reach doubles instead.
    pub(super) fn extend(&mut self, reach: f64) {
        self.begin(ENTROPY_BINS, reach);
        while self.reach < reach {
            let step = 2.0 * self.reach / self.bins.len() as f64;
            let more = ((reach - self.reach) / step).floor() + 1.0;
            if more * 2.0 + self.bins.len() as f64 <= MOST_ENTROPY_BINS as f64 {
                self.pad(more as usize);
            } else {
                if !self.bins.len().is_multiple_of(4) {
                    self.pad(1);
                }
                self.double();
            }
        }
    }

    fn begin(&mut self, bins: usize, reach: f64) {
        if self.bins.is_empty() {
            self.bins = vec![0; bins];
        }
        if self.reach == 0.0 {
            // All values so far were zero: they stay in the middle at any reach.
            self.reach = reach;
        }
    }

    /// Adds empty bins at both ends.
    fn pad(&mut self, more: usize) {
        let step = 2.0 * self.reach / self.bins.len() as f64;
        let old = std::mem::take(&mut self.bins);
        self.bins.resize(more, 0);
        self.bins.extend(old);
        self.bins.resize(self.bins.len() + more, 0);
        self.reach += step * more as f64;
    }

    /// Doubles the reach; bins merge in pairs.
    fn double(&mut self) {
        let quarter = self.bins.len() / 4;
        let empty = vec![0; self.bins.len()];
        for (i, n) in std::mem::replace(&mut self.bins, empty).into_iter().enumerate() {
            self.bins[quarter + i / 2] += n;
        }
        self.reach *= 2.0;
    }

    /// Counts values within the reach.
    pub(super) fn count(&mut self, values: &[f64]) {
        let bins = self.bins.len();
        for v in values {
            let place = if self.reach > 0.0 { (v / self.reach + 1.0) / 2.0 } else { 0.5 };
            self.bins[((place * bins as f64) as usize).min(bins - 1)] += 1;
        }
    }

    /// The range that remains when half of what exceeds `percent` is cut on either side.
    pub(super) fn percentile(&self, percent: f64) -> (f64, f64) {
        let total: u64 = self.bins.iter().sum();
        let cut = (total as f64 * (100.0 - percent) / 200.0).max(0.0);
        let width = 2.0 * self.reach / self.bins.len().max(1) as f64;
        let low = passing(self.bins.iter(), cut).map_or(self.min, |i| i as f64 * width - self.reach);
        let high = passing(self.bins.iter().rev(), cut).map_or(self.max, |i| self.reach - i as f64 * width);
        (low.max(self.min), high.min(self.max))
    }

    /// The range around zero whose values, on 128 levels, are the least divergent from all (Migacz 2017; ONNX Runtime's
    /// `get_entropy_threshold`).
    pub(super) fn entropy(&self) -> (f64, f64) {
        let (n, middle) = (self.bins.len(), self.bins.len() / 2);
        let window = |i: usize| (middle.saturating_sub(i), (middle + i + 1).min(n));
        let mut best = (f64::INFINITY, window(ENTROPY_BINS / 2));
        for i in ENTROPY_BINS / 2..=middle {
            let (start, end) = window(i);
            let divergence = self.divergence(start, end);
            if divergence < best.0 {
                best = (divergence, (start, end));
            }
        }
        let edge = |k: usize| k as f64 * 2.0 * self.reach / n.max(1) as f64 - self.reach;
        (edge(best.1.0).max(self.min), edge(best.1.1).min(self.max))
    }

    /// How far the bins `start..end`, what lies outside moved into the first and the last, are from the same on 128
    /// levels, in nats.
    fn divergence(&self, start: usize, end: usize) -> f64 {
        let inside = &self.bins[start..end];
        let mut p = inside.to_vec();
        let last = p.len() - 1;
        p[0] += self.bins[..start].iter().sum::<u64>();
        p[last] += self.bins[end..].iter().sum::<u64>();
        let merged = inside.len() / ENTROPY_BINS;
        let mut q = vec![0; p.len()];
        for level in 0..ENTROPY_BINS {
            let part = level * merged..(level + 1) * merged;
            let rest = if level + 1 == ENTROPY_BINS { &inside[part.end..] } else { &[] };
            let sum: u64 = inside[part.clone()].iter().chain(rest).sum();
            let used = p[part.clone()].iter().filter(|n| **n > 0).count() as u64;
            if let Some(each) = sum.checked_div(used) {
                q[part].fill(each);
            }
        }
        match (smooth(&p), smooth(&q)) {
            (Some(p), Some(q)) => p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum(),
            _ => f64::INFINITY,
        }
    }
}

/// Shares of counts with 1e-4 in place of each zero, taken from the others; `None` for zeros alone.
fn smooth(counts: &[u64]) -> Option<Vec<f64>> {
    let zeros = counts.iter().filter(|n| **n == 0).count() as f64;
    let others = counts.len() as f64 - zeros;
    if others == 0.0 {
        return None;
    }
    let taken = 1e-4 * zeros / others;
    let filled: Vec<f64> = counts.iter().map(|&n| if n == 0 { 1e-4 } else { n as f64 - taken }).collect();
    let total: f64 = filled.iter().sum();
    Some(filled.into_iter().map(|v| v / total).collect())
}

/// The bin at which the running count passes `cut`.
fn passing<'a>(mut counts: impl Iterator<Item = &'a u64>, cut: f64) -> Option<usize> {
    let mut sum = 0;
    counts.position(|&n| {
        sum += n;
        sum as f64 > cut
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Calibration, Method};
    use super::*;
    use limbeck_tensor::Tensor;

    fn observed(method: Method, batches: &[Vec<f32>]) -> Calibration {
        let mut c = Calibration::new(method);
        batches.iter().for_each(|b| c.observe("x", &Tensor::new([b.len()], b.clone()).unwrap()).unwrap());
        c
    }

    #[test]
    fn entropys_ranges_are_those_of_onnxruntime() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/golden/quant/quant.json")).unwrap();
        let cases = golden["entropy"].as_array().unwrap();
        assert!(cases.len() >= 5);
        for case in cases {
            let batches: Vec<Vec<f32>> = serde_json::from_value(case["batches"].clone()).unwrap();
            let (low, high) = observed(Method::Entropy, &batches).range("x").unwrap();
            for (got, key) in [(low, "low"), (high, "high")] {
                let want = case[key].as_f64().unwrap();
                // Edges are computed in f32 there.
                assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{}: {key} {got} {want}", case["name"]);
            }
        }
    }

    #[test]
    fn entropys_memory_is_bounded_however_far_values_reach() {
        let batches: Vec<Vec<f32>> =
            (0..30).map(|i| (0..100).map(|k| k as f32 * 10f32.powi(i - 25)).collect()).collect();
        let c = observed(Method::Entropy, &batches);
        let json = serde_json::to_value(&c).unwrap();
        let bins = json["records"]["x"]["bins"].as_array().unwrap();
        assert!((ENTROPY_BINS..=MOST_ENTROPY_BINS).contains(&bins.len()), "{} bins", bins.len());
        assert_eq!(bins.iter().map(|n| n.as_u64().unwrap()).sum::<u64>(), 3000);
        let (low, high) = c.range("x").unwrap();
        assert!(low == 0.0 && high > 0.0 && high <= 99e4, "{low} {high}");
    }
}
