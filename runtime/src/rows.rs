//! Rows: tensors whose first axis counts samples. Picking, joining and scoring them.

use crate::RuntimeError;
use limbeck_tensor::{DType, Tensor};

fn refuse(what: &str, reason: impl Into<String>) -> RuntimeError {
    RuntimeError::Data { what: what.into(), reason: reason.into() }
}

/// Number of rows: the first extent.
///
/// # Errors
/// A scalar, strings, and types narrower than a byte.
pub fn count(x: &Tensor) -> Result<usize, RuntimeError> {
    match x.shape().first() {
        Some(&n) if x.dtype() != DType::String && x.dtype().bits() >= 8 => Ok(n),
        Some(_) => Err(refuse("rows", format!("{} has no separate rows; cast it", x.dtype()))),
        None => Err(refuse("rows", "a scalar has no rows; give it a first axis")),
    }
}

/// The rows of `x` at `indices`, in that order; a row may be taken several times. `[n, ...]` to `[indices, ...]`.
///
/// # Errors
/// As [`count`]; an index that is not below n.
pub fn gather(x: &Tensor, indices: &[usize]) -> Result<Tensor, RuntimeError> {
    let n = count(x)?;
    let bytes = x.bytes();
    let row = bytes.len().checked_div(n).unwrap_or(0);
    let mut out = Vec::with_capacity(row.saturating_mul(indices.len()));
    for &i in indices {
        let cell = (i < n).then(|| bytes.get(i * row..(i + 1) * row)).flatten();
        out.extend_from_slice(cell.ok_or_else(|| refuse("rows", format!("row {i} was asked for, there are {n}")))?);
    }
    let mut shape = x.shape().to_vec();
    shape[0] = indices.len();
    Ok(Tensor::from_bytes(x.dtype(), shape, out.into())?.aligned())
}

/// Tensors of one type and row shape under one another.
///
/// # Errors
/// No part; parts of other types or row shapes than the first.
pub fn concat(parts: &[Tensor]) -> Result<Tensor, RuntimeError> {
    let first = parts.first().ok_or_else(|| refuse("rows", "nothing to join"))?;
    let mut shape = first.shape().to_vec();
    let (mut rows, mut bytes) = (0, Vec::new());
    for part in parts {
        rows += count(part)?;
        if part.dtype() != first.dtype() || part.shape()[1..] != first.shape()[1..] {
            let (a, b) = (first, part);
            let reason = format!("{} {:?} and {} {:?} do not join", a.dtype(), a.shape(), b.dtype(), b.shape());
            return Err(refuse("rows", reason));
        }
        bytes.extend_from_slice(&part.bytes());
    }
    shape[0] = rows;
    Ok(Tensor::from_bytes(first.dtype(), shape, bytes.into())?.aligned())
}

/// Index of the largest number, the first of equals.
pub fn argmax(row: &[f64]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, &v)| if v > row[best] { i } else { best })
}

/// The class of every row of `logits` `[n, classes]`: its largest entry.
///
/// # Errors
/// Logits that are not of rank 2 or have no class.
pub fn classes(logits: &Tensor) -> Result<Vec<i64>, RuntimeError> {
    Ok(values(logits)?.iter().map(|row| argmax(row) as i64).collect())
}

/// Softmax of the largest logit of every row, in 0..=1.
///
/// # Errors
/// As [`classes`].
pub fn confidences(logits: &Tensor) -> Result<Vec<f64>, RuntimeError> {
    let of = |row: &Vec<f64>| 1.0 / row.iter().map(|v| (v - row[argmax(row)]).exp()).sum::<f64>();
    Ok(values(logits)?.iter().map(of).collect())
}

/// Share of rows of `logits` `[n, classes]` whose class is the label's, in 0..=1; 0 for no row.
///
/// # Errors
/// As [`classes`]; as many labels as rows are needed.
pub fn accuracy(logits: &Tensor, labels: &[i64]) -> Result<f64, RuntimeError> {
    let got = classes(logits)?;
    if got.len() != labels.len() {
        return Err(refuse("labels", format!("{} labels for {} rows", labels.len(), got.len())));
    }
    let hits = got.iter().zip(labels).filter(|(a, b)| a == b).count();
    Ok(hits as f64 / labels.len().max(1) as f64)
}

fn values(logits: &Tensor) -> Result<Vec<Vec<f64>>, RuntimeError> {
    match logits.shape() {
        &[_, classes] if classes > 0 => Ok(logits.to_f64_vec()?.chunks(classes).map(<[f64]>::to_vec).collect()),
        shape => Err(refuse("logits", format!("are {shape:?}, but [rows, classes] is needed"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_picked_joined_and_scored() {
        let x = Tensor::new([3, 2], vec![1f32, 2.0, 3.0, 4.0, 5.0, 5.0]).unwrap();
        let picked = gather(&x, &[2, 0, 0]).unwrap();
        assert_eq!(picked.to_vec::<f32>().unwrap(), [5.0, 5.0, 1.0, 2.0, 1.0, 2.0]);
        assert!(gather(&x, &[3]).unwrap_err().to_string().contains("row 3"));
        assert_eq!(concat(&[picked.clone(), x.clone()]).unwrap().shape(), [6, 2]);
        assert!(concat(&[x.clone(), Tensor::new([1, 3], vec![0f32; 3]).unwrap()]).is_err());
        assert_eq!(classes(&x).unwrap(), [1, 1, 0]);
        assert_eq!(accuracy(&x, &[1, 0, 0]).unwrap(), 2.0 / 3.0);
        let sure = confidences(&x).unwrap();
        assert!((sure[0] - 1.0 / (1.0 + (-1f64).exp())).abs() < 1e-12 && (sure[2] - 0.5).abs() < 1e-12, "{sure:?}");
        assert!(accuracy(&x, &[1]).is_err() && classes(&Tensor::scalar(1f32)).is_err());
    }
}
