//! Accuracy control: the layers that cost the most go back to float until the model is good enough.

use super::{Calibration, QuantOptions, QuantReport, candidates, quantise, rewritten};
use crate::ExportError;
use crate::edit::fail;
use limbeck_graph::Graph;

/// What one layer costs when it alone is quantised.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Sensitivity {
    /// Name of the node, or of its first output.
    pub node: String,
    /// Score of the float model less that with this node quantised.
    pub drop: f64,
}

/// What accuracy control found and did.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct AccuracyReport {
    /// Score of the float model.
    pub float: f64,
    /// Score with every layer quantised.
    pub all: f64,
    /// Score of the result.
    pub result: f64,
    /// Every layer, the costliest first; empty when none had to be looked at.
    pub layers: Vec<Sensitivity>,
    /// Layers that went back to float, in that order; those of `keep_float` are not among them.
    pub reverted: Vec<String>,
}

/// As [`quantise`], but within a loss: `score` judges a model (larger is better, such as the accuracy on calibration
/// data), and if the quantised one scores more than `max_drop` (0.01 is usual) below the float one, layers go back to
/// float, those first that cost the most when they alone are quantised. Scores once for every layer and once for every
/// layer that goes back.
///
/// # Errors
/// As [`quantise`]; what `score` says; a score that is not finite; a drop that remains until the last layer but one went
/// back.
pub fn quantise_within(
    graph: &Graph,
    calibration: &Calibration,
    options: &QuantOptions,
    max_drop: f64,
    mut score: impl FnMut(&Graph) -> Result<f64, ExportError>,
) -> Result<(Graph, QuantReport, AccuracyReport), ExportError> {
    if !(max_drop.is_finite() && max_drop >= 0.0) {
        return fail("quantise", format!("max_drop is {max_drop}; it is a finite number, at least 0"));
    }
    let mut judge = |graph: &Graph| match score(graph)? {
        s if s.is_finite() => Ok(s),
        s => fail("quantise", format!("the score is {s}; it must be finite")),
    };
    let float = judge(graph)?;
    let (mut quantised, mut report) = quantise(graph, calibration, options)?;
    let all = judge(&quantised)?;
    let mut accuracy = AccuracyReport { float, all, result: all, layers: vec![], reverted: vec![] };
    if float - all <= max_drop {
        return Ok((quantised, report, accuracy));
    }
    let names = candidates(graph, options)?;
    let keeping = |more: &[String]| {
        let keep_float = [&options.keep_float, more].concat();
        QuantOptions { keep_float, ..options.clone() }
    };
    for name in &names {
        let others: Vec<String> = names.iter().filter(|other| *other != name).cloned().collect();
        let drop = float - judge(&rewritten(graph, calibration, &keeping(&others))?)?;
        accuracy.layers.push(Sensitivity { node: name.clone(), drop });
    }
    accuracy.layers.sort_by(|a, b| b.drop.total_cmp(&a.drop));
    let costliest: Vec<String> = accuracy.layers.iter().map(|layer| layer.node.clone()).collect();
    for reverted in 1..costliest.len() {
        (quantised, report) = quantise(graph, calibration, &keeping(&costliest[..reverted]))?;
        accuracy.result = judge(&quantised)?;
        tracing::info!(layer = costliest[reverted - 1], score = accuracy.result, "went back to float");
        if float - accuracy.result <= max_drop {
            accuracy.reverted = costliest[..reverted].to_vec();
            return Ok((quantised, report, accuracy));
        }
    }
    fail(
        "quantise",
        format!(
            "the score falls from {float} by more than {max_drop} whatever stays quantised; ship the float model, calibrate \
             with more data, or distil with quantisation"
        ),
    )
}
