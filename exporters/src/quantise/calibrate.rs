//! Ranges of activations, gathered batch by batch in bounded memory and kept as JSON.

use crate::ExportError;
use crate::edit::fail;
use limbeck_graph::Graph;
use limbeck_tensor::{Tensor, TensorMap};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Bins of the histogram behind [`Method::Percentile`].
const BINS: usize = 2048;

/// How a range follows from what was seen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Method {
    /// The smallest and the largest value.
    MinMax,
    /// The smallest and largest value of each batch, averaged with this weight for the newest (0.01 is usual).
    MovingAverage(f64),
    /// The range that holds this percentage of all values (99.999 is usual), cut equally on both sides, to the precision
    /// of a histogram of 2048 bins.
    Percentile(f64),
}

/// What was seen of one activation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    min: f64,
    max: f64,
    batches: u64,
    /// Counts of equal bins over `[-reach, reach]`; empty when the method needs none.
    bins: Vec<u64>,
    reach: f64,
}

/// Ranges of named activations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    method: Method,
    records: BTreeMap<String, Record>,
}

impl Calibration {
    /// An empty record.
    pub fn new(method: Method) -> Calibration {
        Calibration { method, records: BTreeMap::new() }
    }

    /// Takes one batch of an activation into account. Empty tensors change nothing.
    ///
    /// # Errors
    /// Values that are no numbers or not finite, with the activation's name.
    pub fn observe(&mut self, name: &str, values: &Tensor) -> Result<(), ExportError> {
        let values = values.to_f64_vec()?;
        if let Some(v) = values.iter().find(|v| !v.is_finite()) {
            return fail("calibrate", format!("activation '{name}' holds {v}; mend the model or leave that batch out"));
        }
        let Some(first) = values.first() else { return Ok(()) };
        let (min, max) = values.iter().fold((*first, *first), |(a, b), &v| (a.min(v), b.max(v)));
        let record =
            self.records.entry(name.into()).or_insert(Record { min, max, batches: 0, bins: vec![], reach: 0.0 });
        match self.method {
            Method::MovingAverage(c) => {
                record.min += c * (min - record.min);
                record.max += c * (max - record.max);
            }
            _ => (record.min, record.max) = (record.min.min(min), record.max.max(max)),
        }
        record.batches += 1;
        if matches!(self.method, Method::Percentile(_)) {
            record.count(&values, min.abs().max(max.abs()));
        }
        Ok(())
    }

    /// As [`Calibration::observe`] for all tensors of a run.
    ///
    /// # Errors
    /// As [`Calibration::observe`].
    pub fn observe_all(&mut self, values: &TensorMap) -> Result<(), ExportError> {
        values.iter().try_for_each(|(name, tensor)| self.observe(name, tensor))
    }

    /// The range of an activation, as the method gives it; `None` for what was never observed.
    pub fn range(&self, name: &str) -> Option<(f64, f64)> {
        let record = self.records.get(name)?;
        Some(match self.method {
            Method::Percentile(percent) => record.percentile(percent),
            _ => (record.min, record.max),
        })
    }

    /// Names of all observed activations.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.records.keys().map(String::as_str)
    }

    /// Writes the record as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), ExportError> {
        match serde_json::to_vec(self) {
            Ok(json) => Ok(limbeck_tensor::replace_file(path, &json)?),
            Err(e) => fail("calibrate", format!("{}: {e}", path.display())),
        }
    }

    /// Reads what [`Calibration::save`] wrote.
    ///
    /// # Errors
    /// A file that cannot be read or is no such record.
    pub fn load(path: &Path) -> Result<Calibration, ExportError> {
        let bytes = std::fs::read(path).or_else(|e| fail("calibrate", format!("{}: {e}", path.display())))?;
        let read: Result<Calibration, _> = serde_json::from_slice(&bytes);
        let record = read.or_else(|e| fail("calibrate", format!("{}: {e}", path.display())))?;
        match record.records.iter().find(|(_, r)| !r.bins.is_empty() && r.bins.len() != BINS) {
            Some((name, _)) => fail("calibrate", format!("{}: '{name}' has not {BINS} bins", path.display())),
            None => Ok(record),
        }
    }
}

impl Record {
    /// Adds values to the histogram, whose reach doubles (bins merge in pairs) until they fit.
    fn count(&mut self, values: &[f64], reach: f64) {
        if self.bins.is_empty() {
            self.bins = vec![0; BINS];
        }
        if self.reach == 0.0 {
            // All values so far were zero: they stay in the middle at any reach.
            self.reach = reach;
        }
        while self.reach < reach {
            let old = std::mem::replace(&mut self.bins, vec![0; BINS]);
            for (i, n) in old.into_iter().enumerate() {
                self.bins[BINS / 4 + i / 2] += n;
            }
            self.reach *= 2.0;
        }
        for v in values {
            let place = if self.reach > 0.0 { (v / self.reach + 1.0) / 2.0 } else { 0.5 };
            self.bins[((place * BINS as f64) as usize).min(BINS - 1)] += 1;
        }
    }

    /// The range that remains when half of what exceeds `percent` is cut on either side.
    fn percentile(&self, percent: f64) -> (f64, f64) {
        let total: u64 = self.bins.iter().sum();
        let cut = (total as f64 * (100.0 - percent) / 200.0).max(0.0);
        let width = 2.0 * self.reach / BINS as f64;
        let low = passing(self.bins.iter(), cut).map_or(self.min, |i| i as f64 * width - self.reach);
        let high = passing(self.bins.iter().rev(), cut).map_or(self.max, |i| self.reach - i as f64 * width);
        (low.max(self.min), high.min(self.max))
    }
}

/// The bin at which the running count passes `cut`.
fn passing<'a>(mut counts: impl Iterator<Item = &'a u64>, cut: f64) -> Option<usize> {
    let mut sum = 0;
    counts.position(|&n| {
        sum += n;
        sum as f64 > cut
    })
}

/// The graph with these values as further outputs, to observe them on an engine. Names of graph inputs and of present
/// outputs are passed over: feeds and results have them.
///
/// # Errors
/// A name that the graph lacks.
pub fn with_outputs(graph: &Graph, names: &[String]) -> Result<Graph, ExportError> {
    let mut graph = graph.clone();
    for name in names {
        let id = graph.require(name)?;
        if !graph.inputs.contains(&id) && !graph.outputs.contains(&id) {
            graph.outputs.push(id);
        }
    }
    Ok(graph)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new([values.len()], values.to_vec()).unwrap()
    }

    #[test]
    fn each_method_gives_its_range() {
        let batches = [tensor(&[-1.0, 2.0]), tensor(&[0.5, 4.0])];
        let range = |method| {
            let mut c = Calibration::new(method);
            batches.iter().for_each(|b| c.observe("x", b).unwrap());
            c.range("x").unwrap()
        };
        assert_eq!(range(Method::MinMax), (-1.0, 4.0));
        let (low, high) = range(Method::MovingAverage(0.25));
        assert_eq!((low, high), (-1.0 + 0.25 * 1.5, 2.0 + 0.25 * 2.0));
    }

    #[test]
    fn a_percentile_cuts_outliers_whatever_the_order() {
        // 0, 1/n, ..., 1 in batches, with one outlier; the quantile of a uniform distribution is its probability.
        let n = 20_000;
        let uniform: Vec<f32> = (0..n).map(|i| i as f32 / n as f32).collect();
        for outlier_first in [true, false] {
            let mut c = Calibration::new(Method::Percentile(99.0));
            if outlier_first {
                c.observe("x", &tensor(&[50.0])).unwrap();
            }
            uniform.chunks(700).for_each(|b| c.observe("x", &tensor(b)).unwrap());
            if !outlier_first {
                c.observe("x", &tensor(&[50.0])).unwrap();
            }
            let (low, high) = c.range("x").unwrap();
            // One bin of [-64, 64] is 1/16 wide.
            assert!((low - 0.005).abs() <= 1.0 / 16.0 && (high - 0.995).abs() <= 1.0 / 16.0, "{low} {high}");
        }
    }

    #[test]
    fn records_survive_a_file_and_refuse_nonsense() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calibration.json");
        let mut c = Calibration::new(Method::Percentile(99.999));
        c.observe("a/b", &tensor(&[0.1, -0.7, 3.0])).unwrap();
        c.save(&path).unwrap();
        assert_eq!(Calibration::load(&path).unwrap(), c);
        let error = c.observe("a/b", &tensor(&[f32::NAN])).unwrap_err().to_string();
        assert!(error.contains("a/b") && error.contains("NaN"), "{error}");
        std::fs::write(&path, b"{\"method\": \"min_max\"}").unwrap();
        assert!(Calibration::load(&path).unwrap_err().to_string().contains("calibration.json"));
    }
}
