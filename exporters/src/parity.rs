//! Do two graphs compute the same? The check behind every pass.

use crate::ExportError;
use crate::edit::fail;
use limbeck_graph::Graph;
use limbeck_tensor::{Tensor, TensorMap};

/// How far one output of two models is apart.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Difference {
    /// Name of the output.
    pub output: String,
    /// max|a - b|; NaN when either side holds one that the other lacks.
    pub max_abs: f64,
    /// `max_abs` over max|b|; 0 when both are zero.
    pub max_rel: f64,
}

/// Runs both graphs on the reference evaluator and compares their outputs, in the order of `b`.
///
/// # Errors
/// Feeds that do not fit, operators that cannot be evaluated, an output that `a` lacks or gives another shape.
pub fn compare(a: &Graph, b: &Graph, feeds: &TensorMap) -> Result<Vec<Difference>, ExportError> {
    compare_outputs(&a.evaluate(feeds)?, &b.evaluate(feeds)?)
}

/// Compares outputs that any runners gave.
///
/// # Errors
/// An output of `b` that `a` lacks or gives another shape; outputs that are not numbers.
pub fn compare_outputs(a: &TensorMap, b: &TensorMap) -> Result<Vec<Difference>, ExportError> {
    b.iter()
        .map(|(name, b)| {
            let Some(a) = a.get(name) else { return fail("parity", format!("output '{name}' is missing")) };
            difference(name, a, b)
        })
        .collect()
}

fn difference(name: &str, a: &Tensor, b: &Tensor) -> Result<Difference, ExportError> {
    if a.shape() != b.shape() {
        return fail("parity", format!("output '{name}' has shape {:?} and {:?}", a.shape(), b.shape()));
    }
    let larger = |m: f64, v: f64| if v.is_nan() || v > m { v } else { m };
    let (mut max_abs, mut largest) = (0.0, 0.0);
    for (x, y) in a.to_f64_vec()?.into_iter().zip(b.to_f64_vec()?) {
        let same = x == y || x.is_nan() && y.is_nan();
        max_abs = larger(max_abs, if same { 0.0 } else { (x - y).abs() });
        largest = larger(largest, y.abs());
        if max_abs.is_nan() {
            break;
        }
    }
    let max_rel = if max_abs == 0.0 { 0.0 } else { max_abs / largest };
    Ok(Difference { output: name.into(), max_abs, max_rel })
}
