//! `limbeck compare`: do all engines give the same answers?

use super::{output, run, tensors};
use anyhow::{Result, bail};
use limbeck_runtime::ENGINES;
use limbeck_tensor::{Tensor, TensorMap};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// ONNX model.
    model: PathBuf,
    /// safetensors file with all inputs, or NAME=FILE.npy; repeatable.
    #[arg(long, required = true)]
    feeds: Vec<String>,
    /// Largest allowed difference, relative to the largest value of each output.
    #[arg(long, default_value_t = 1e-4)]
    tolerance: f64,
}

pub(super) fn run(args: &Args, json: bool) -> Result<bool> {
    let feeds = tensors::read_feeds(&args.feeds)?;
    let mut results: Vec<(String, Result<TensorMap>)> = vec![];
    for name in std::iter::once("reference").chain(ENGINES.iter().copied()) {
        results.push((name.into(), run::run_on(name, &args.model, &feeds, 1).map(|r| r.0)));
    }
    let Some(base) = results.iter().position(|r| r.1.is_ok()) else {
        let reasons: Vec<String> =
            results.iter().filter_map(|(n, r)| Some(format!("{n}: {:#}", r.as_ref().err()?))).collect();
        bail!("nothing could run the model: {}", reasons.join("; "));
    };
    let mut agree = true;
    let mut rows = vec![];
    for (i, (name, result)) in results.iter().enumerate() {
        match (result, &results[base].1) {
            (Ok(_), _) if i == base => rows.push(json!({"engine": name, "compared": "is the base"})),
            (Ok(outputs), Ok(expected)) => {
                for (output, tensor) in outputs {
                    let Some(reference) = expected.get(output) else { continue };
                    let difference = relative_difference(tensor, reference)?;
                    agree &= difference <= args.tolerance;
                    rows.push(json!({"engine": name, "output": output, "relative_difference": difference}));
                }
            }
            (Err(e), _) => rows.push(json!({"engine": name, "cannot": format!("{e:#}")})),
            (Ok(_), Err(_)) => {}
        }
    }
    output::print(
        &json!({"base": results[base].0, "agree": agree, "tolerance": args.tolerance, "results": rows}),
        json,
    );
    Ok(agree)
}

/// Largest absolute difference over the largest absolute value; infinite when shapes differ or a NaN stands
/// against a number.
pub(super) fn relative_difference(got: &Tensor, expected: &Tensor) -> Result<f64> {
    if got.shape() != expected.shape() {
        return Ok(f64::INFINITY);
    }
    let (a, b) = (got.to_f64_vec()?, expected.to_f64_vec()?);
    let scale = b.iter().filter(|v| v.is_finite()).fold(1e-12f64, |m, v| m.max(v.abs()));
    let worst = a.iter().zip(&b).map(|(x, y)| {
        if x == y || (x.is_nan() && y.is_nan()) {
            0.0
        } else {
            let d = (x - y).abs() / scale;
            if d.is_nan() { f64::INFINITY } else { d }
        }
    });
    Ok(worst.fold(0.0, f64::max))
}
