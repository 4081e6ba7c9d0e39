//! The self-test: an engine that does not reproduce a bundle's vectors is refused.

use super::SelfTestEntry;
use crate::{RuntimeError, Session};
use limbeck_tensor::{Tensor, TensorMap};

/// What a self-test found.
#[derive(Debug, Clone, PartialEq)]
pub struct SelfTestReport {
    /// Engine.
    pub engine: String,
    /// The provider that really ran.
    pub provider: String,
    /// One for every vector.
    pub outputs: Vec<OutputCheck>,
}

/// One output against its vector.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputCheck {
    /// Name of the output.
    pub name: String,
    /// Rows compared.
    pub rows: usize,
    /// max|got - want| / max(max|want|, 1e-3).
    pub difference: f64,
    /// The largest that was allowed.
    pub tolerance: f64,
}

pub(super) fn run(
    session: &Session,
    vectors: &TensorMap,
    entry: &SelfTestEntry,
) -> Result<SelfTestReport, RuntimeError> {
    let wrong = |reason: String| RuntimeError::Manifest { file: entry.vectors.file.clone(), reason };
    let with = |prefix: &str| -> Vec<(&str, &Tensor)> {
        vectors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor))).collect()
    };
    let program = session.program();
    let inputs: Vec<(&str, &Tensor)> = with("input/");
    let wanted = with("output/");
    if wanted.is_empty() {
        return Err(wrong("holds no `output/NAME`: an engine cannot be tested".into()));
    }
    // In the graph's order, so that the batch is that of the model's first input.
    let feeds: Vec<(&str, &Tensor)> = (program.inputs().iter())
        .filter_map(|spec| inputs.iter().find(|(name, _)| *name == spec.name).copied())
        .collect();
    if let Some((name, _)) = inputs.iter().find(|(name, _)| !feeds.iter().any(|(fed, _)| fed == name)) {
        return Err(wrong(format!("`input/{name}` is not an input of the model")));
    }
    let got = session.predict(&feeds)?;
    let mut outputs = vec![];
    for (name, want) in wanted {
        let got = got.get(name).ok_or_else(|| wrong(format!("`output/{name}` is not an output of the model")))?;
        if got.shape() != want.shape() || got.dtype() != want.dtype() {
            let of = |t: &Tensor| format!("{} {:?}", t.dtype(), t.shape());
            return Err(wrong(format!("`output/{name}` is {}, but the model gives {}", of(want), of(got))));
        }
        let tolerance = entry.tolerances.get(want.dtype().name()).copied().unwrap_or(0.0);
        let difference = difference(&got.to_f64_vec()?, &want.to_f64_vec()?);
        let within = difference <= tolerance;
        if !within {
            let (engine, tensor) = (program.engine(), name.to_owned());
            return Err(RuntimeError::SelfTest { engine, tensor, difference, tolerance });
        }
        let rows = want.shape().first().copied().unwrap_or(1);
        outputs.push(OutputCheck { name: name.into(), rows, difference, tolerance });
    }
    Ok(SelfTestReport { engine: program.engine().into(), provider: program.provider().into(), outputs })
}

/// Infinite when one of a pair is not finite and the other is another value.
fn difference(got: &[f64], want: &[f64]) -> f64 {
    let scale = want.iter().filter(|w| w.is_finite()).fold(1e-3, |m: f64, w| m.max(w.abs()));
    let of = |(g, w): (&f64, &f64)| match (g.is_finite(), w.is_finite()) {
        (true, true) => (g - w).abs() / scale,
        _ if g == w || (g.is_nan() && w.is_nan()) => 0.0,
        _ => f64::INFINITY,
    };
    got.iter().zip(want).map(of).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn what_is_not_finite_differs() {
        assert_eq!(difference(&[2.0, 4.5], &[2.0, 5.0]), 0.1);
        assert_eq!(difference(&[f64::NAN, 1.0], &[0.0, 1.0]), f64::INFINITY);
        assert_eq!(difference(&[1.0], &[f64::NAN]), f64::INFINITY);
        assert_eq!(difference(&[f64::INFINITY], &[f64::INFINITY]), 0.0);
        assert_eq!(difference(&[0.0], &[1e-6]), 1e-6 / 1e-3);
    }
}
