//! Predictions over a data set, and their score.

use crate::DistillError;
use crate::data::{data_error, gather_rows};
use limbeck_runtime::Program;
use limbeck_tensor::{Tensor, TensorMap};
use std::collections::BTreeMap;

/// Outputs of an inference program over all rows of `x`, in batches of `batch` (the program's fixed batch, at least 1);
/// the last batch is filled up and cut.
pub fn predict(program: &dyn Program, input: &str, x: &Tensor, batch: usize) -> Result<TensorMap, DistillError> {
    let rows = x.shape().first().copied().unwrap_or(0);
    if rows == 0 || batch == 0 {
        return Err(data_error(input, format!("{rows} rows in batches of {batch}: nothing to predict")));
    }
    let mut parts: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
    for start in (0..rows).step_by(batch) {
        let indices: Vec<usize> = (start..start + batch).map(|i| i.min(rows - 1)).collect();
        let outputs = program.infer(&[(input, &gather_rows(x, &indices)?)])?;
        for (name, tensor) in outputs {
            parts.entry(name).or_default().push(tensor.rows(0..batch.min(rows - start))?);
        }
    }
    parts.into_iter().map(|(name, list)| Ok((name, concat_rows(&list)?))).collect()
}

/// Tensors of one dtype and row shape under one another.
pub fn concat_rows(parts: &[Tensor]) -> Result<Tensor, DistillError> {
    let Some(first) = parts.first() else {
        return Err(data_error("rows", "nothing to join"));
    };
    let mut bytes = vec![];
    let mut count = 0;
    for part in parts {
        let fits = part.dtype() == first.dtype() && part.shape().get(1..) == first.shape().get(1..);
        let Some(&rows) = part.shape().first().filter(|_| fits) else {
            let [a, b] = [first, part].map(|t| format!("{}{:?}", t.dtype(), t.shape()));
            return Err(data_error("rows", format!("{a} and {b} cannot be joined: dtype and row shape must agree")));
        };
        count += rows;
        bytes.extend_from_slice(&part.bytes());
    }
    let mut shape = first.shape().to_vec();
    shape[0] = count;
    Ok(Tensor::from_bytes(first.dtype(), shape, bytes.into())?.aligned())
}

/// Share of rows of the logits `[rows, classes]` whose largest is the label's `[rows]`, 0..=1.
///
/// # Errors
/// Other shapes, no row, a logit that is NaN.
pub fn accuracy(logits: &Tensor, labels: &Tensor) -> Result<f64, DistillError> {
    let (&[rows, classes], &[count]) = (logits.shape(), labels.shape()) else {
        let shapes = format!("{:?} and {:?}", logits.shape(), labels.shape());
        return Err(data_error("logits and labels", format!("are {shapes}; [rows, classes] and [rows] are needed")));
    };
    if rows != count || rows == 0 || classes == 0 {
        return Err(data_error("logits and labels", format!("{rows} rows of {classes} logits, {count} labels")));
    }
    let (logits, labels) = (logits.to_f64_vec()?, labels.to_i64_vec()?);
    if let Some(i) = logits.iter().position(|v| v.is_nan()) {
        return Err(data_error("logits", format!("row {} holds NaN; the model has diverged", i / classes)));
    }
    let hits = logits.chunks(classes).zip(&labels).filter(|(row, y)| argmax(row) as i64 == **y).count();
    Ok(hits as f64 / rows as f64)
}

/// Index of the largest number, the first of equals.
pub fn argmax(row: &[f64]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, &v)| if v > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::new(shape, values.to_vec()).unwrap()
    }

    #[test]
    fn accuracy_counts_hits_and_refuses_what_it_cannot_count() {
        let labels = |values: &[i64]| Tensor::new([values.len()], values.to_vec()).unwrap();
        let logits = tensor(&[2, 2], &[0.0, 1.0, 2.0, 1.0]);
        assert_eq!(accuracy(&logits, &labels(&[1, 1])).unwrap(), 0.5);
        let message = |logits: &Tensor, labels: &Tensor| accuracy(logits, labels).unwrap_err().to_string();
        assert!(message(&logits, &labels(&[1])).contains("2 rows of 2 logits, 1 labels"));
        assert!(message(&logits, &tensor(&[2, 1], &[0.0; 2])).contains("[2, 1]"));
        assert!(message(&tensor(&[2, 2], &[0.0, 1.0, f32::NAN, 0.0]), &labels(&[1, 0])).contains("row 1 holds NaN"));
    }

    #[test]
    fn rows_are_joined_when_they_fit() {
        let (a, b) = (tensor(&[1, 2], &[1.0, 2.0]), tensor(&[2, 2], &[3.0, 4.0, 5.0, 6.0]));
        let joined = concat_rows(&[a.clone(), b]).unwrap();
        assert_eq!(
            (joined.shape(), joined.to_vec::<f32>().unwrap()),
            (&[3, 2][..], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        );
        for other in [tensor(&[1, 3], &[0.0; 3]), Tensor::new([1, 2], vec![0i64; 2]).unwrap(), Tensor::scalar(1f32)] {
            assert!(concat_rows(&[a.clone(), other.clone()]).is_err(), "{other:?}");
            assert!(concat_rows(&[other, a.clone()]).is_err());
        }
    }
}
