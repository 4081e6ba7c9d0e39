//! Ranges of activations, gathered batch by batch in bounded memory and kept as JSON.

use super::histogram::{ENTROPY_BINS, MOST_ENTROPY_BINS, PERCENTILE_BINS};
use crate::ExportError;
use crate::edit::fail;
use limbeck_graph::Graph;
use limbeck_tensor::{Tensor, TensorMap};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

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
    /// The range around zero that loses the least information on 128 levels, in nats of Kullback-Leibler divergence; for
    /// activations with rare outliers. The histogram begins with 128 bins and keeps at most 4096.
    Entropy,
}

impl Method {
    /// Whether a record can have this many bins.
    fn has_bins(self, bins: usize) -> bool {
        match self {
            Method::MinMax | Method::MovingAverage(_) => bins == 0,
            Method::Percentile(_) => bins == PERCENTILE_BINS,
            Method::Entropy => (ENTROPY_BINS..=MOST_ENTROPY_BINS).contains(&bins) && bins.is_multiple_of(2),
        }
    }

    fn is_sound(self) -> bool {
        match self {
            Method::MovingAverage(weight) => (0.0..=1.0).contains(&weight),
            Method::Percentile(percent) => (0.0..=100.0).contains(&percent),
            Method::MinMax | Method::Entropy => true,
        }
    }
}

/// What was seen of one activation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) min: f64,
    pub(super) max: f64,
    batches: u64,
    /// Counts of equal bins over `[-reach, reach]`; empty when the method needs none.
    pub(super) bins: Vec<u64>,
    pub(super) reach: f64,
}

impl Record {
    /// What is wrong with a record that was read.
    fn fault(&self, method: Method) -> Option<&'static str> {
        let counted = self.bins.iter().try_fold(0u64, |sum, &n| sum.checked_add(n));
        match () {
            () if !(self.min.is_finite() && self.max.is_finite() && self.min <= self.max) => {
                Some("a range that is none")
            }
            () if !(self.reach.is_finite() && self.reach >= 0.0) => Some("a reach that is not 0 or more"),
            () if !method.has_bins(self.bins.len()) => Some("another number of bins than its method makes"),
            () if counted.is_none_or(|n| n > 1 << 53) => Some("more counts than there can be"),
            () => None,
        }
    }
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
        let reach = min.abs().max(max.abs());
        match self.method {
            Method::Percentile(_) => record.widen(reach),
            Method::Entropy => record.extend(reach),
            Method::MinMax | Method::MovingAverage(_) => return Ok(()),
        }
        record.count(&values);
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
            Method::Entropy => record.entropy(),
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
        if !record.method.is_sound() {
            return fail("calibrate", format!("{}: {:?} is out of range", path.display(), record.method));
        }
        match record.records.iter().find_map(|(name, r)| Some((name, r.fault(record.method)?))) {
            Some((name, fault)) => {
                fail("calibrate", format!("{}: '{name}' has {fault}; calibrate again", path.display()))
            }
            None => Ok(record),
        }
    }
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
        let hostile = |method: &str, record: serde_json::Value| {
            let method: serde_json::Value = serde_json::from_str(method).unwrap();
            let json = serde_json::json!({ "method": method, "records": { "x": record } });
            std::fs::write(&path, json.to_string()).unwrap();
            Calibration::load(&path).unwrap_err().to_string()
        };
        let record = |min: f64, max: f64, bins: Vec<u64>, reach: f64| serde_json::json!({ "min": min, "max": max, "batches": 1, "bins": bins, "reach": reach });
        let percentile = "{\"percentile\": 99.0}";
        for (error, says) in [
            // Doubling a negative reach never ends.
            (hostile(percentile, record(0.0, 1.0, vec![0; 2048], -1.0)), "'x' has a reach"),
            (hostile(percentile, record(2.0, 1.0, vec![0; 2048], 1.0)), "'x' has a range"),
            (hostile(percentile, record(0.0, 1.0, vec![0; 7], 1.0)), "number of bins"),
            (hostile(percentile, record(0.0, 1.0, vec![u64::MAX; 2048], 1.0)), "more counts"),
            (hostile("\"entropy\"", record(0.0, 1.0, vec![0; 129], 1.0)), "number of bins"),
            (hostile("\"min_max\"", record(0.0, 1.0, vec![0; 2048], 1.0)), "number of bins"),
            (hostile("{\"percentile\": -5.0}", record(0.0, 1.0, vec![0; 2048], 1.0)), "out of range"),
        ] {
            assert!(error.contains(says), "{error}");
        }
    }
}
