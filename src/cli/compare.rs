//! `limbeck compare`: do all engines give the same answers?

use super::{output, run, tensors};
use anyhow::{Result, bail};
use limbeck_runtime::ENGINES;
use limbeck_tensor::{Tensor, TensorMap};
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// ONNX model.
    model: PathBuf,
    /// safetensors file with inputs, or NAME=FILE.npy; repeatable.
    #[arg(long)]
    feeds: Vec<String>,
    /// Largest allowed difference, relative to the largest value of each output.
    #[arg(long, default_value_t = 1e-4)]
    tolerance: f64,
}

/// The answers of every runner that can run the model against those of the first. Fewer than two runners, an output that
/// only one of two has, or too large a difference is no agreement.
pub(super) fn run(args: &Args, json: bool) -> Result<bool> {
    let feeds = tensors::read_feeds(&args.feeds)?;
    let (mut answers, mut rows, mut reasons): (Vec<(&str, TensorMap)>, Vec<Value>, Vec<String>) = Default::default();
    for name in std::iter::once("reference").chain(ENGINES.iter().copied()) {
        match run::run_on(name, &args.model, &feeds, 1) {
            Ok((outputs, _)) => answers.push((name, outputs)),
            Err(e) => {
                reasons.push(format!("{name}: {e:#}"));
                rows.push(json!({"engine": name, "cannot": format!("{e:#}")}));
            }
        }
    }
    let Some((base, expected)) = answers.first() else {
        bail!("nothing could run the model: {}", reasons.join("; "));
    };
    let mut agree = answers.len() > 1;
    for (name, outputs) in &answers[1..] {
        for output in expected.keys().chain(outputs.keys().filter(|o| !expected.contains_key(*o))) {
            let difference = match (outputs.get(output), expected.get(output)) {
                (Some(got), Some(expected)) => Some(relative_difference(got, expected)?),
                _ => None,
            };
            agree &= difference.is_some_and(|d| d <= args.tolerance);
            rows.push(match difference {
                Some(d) if d.is_finite() => json!({"engine": name, "output": output, "relative_difference": d}),
                Some(_) => json!({"engine": name, "output": output, "differs": "in shape, or NaN or infinity against a number"}),
                None => json!({"engine": name, "output": output, "differs": format!("only one of {name} and {base} has it")}),
            });
        }
    }
    let compared: Vec<&str> = answers.iter().map(|a| a.0).collect();
    output::print(
        &json!({
            "base": base, "compared": compared, "agree": agree, "tolerance": args.tolerance, "results": rows,
        }),
        json,
    );
    if answers.len() < 2 {
        eprintln!("only {base} could run the model: there is nothing to compare it with");
    }
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
