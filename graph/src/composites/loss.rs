//! The losses that ai.onnx has as operators.

use super::{Composite, constant};
use crate::Var;
use limbeck_tensor::DType;

/// NegativeLogLikelihoodLoss of log-probabilities `[N, C, ...]`, labels `[N, ...]` and weights `[C]`.
pub(super) fn negative_log_likelihood<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    likelihood(op, op.x(0)?).map(|loss| vec![loss])
}

/// SoftmaxCrossEntropyLoss of scores: that loss of their log-softmax, which is the second result.
pub(super) fn softmax_cross_entropy<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let log_prob = op.x(0)?.log_softmax(1);
    likelihood(op, log_prob).map(|loss| vec![loss, log_prob])
}

/// `-w[label] * log_prob[label]`; the mean is over the weights that count. Labels of `ignore_index` weigh nothing.
fn likelihood<'c>(op: &Composite<'_, 'c>, log_prob: Var<'c>) -> Result<Var<'c>, String> {
    let (cx, shape) = (op.cx, log_prob.shape());
    let labels = op.x(1)?.cast(DType::I64).unsqueeze(&[1]);
    let &[_, classes, ..] = &shape[..] else { return Err(format!("{shape:?} has no classes")) };
    let by_class = [&[1, classes][..], &vec![1; shape.len() - 2]].concat();
    let numbers: Vec<i64> = (0..classes as i64).collect();
    let mut hit = labels.equals(cx.ints(&numbers).reshape(&by_class));
    if let Some(ignored) = op.node.int("ignore_index") {
        hit = hit.and(!labels.equals(cx.ints(&[ignored])));
    }
    let zero = cx.scalar_of(0.0, log_prob.dtype());
    let weight = op.opt(2).map_or_else(|| constant(log_prob, &[1], &[1.0]), |w| w.reshape(&by_class));
    // Impossible classes have the logarithm -inf, which no zero may multiply.
    let loss = -(hit.select(log_prob, zero) * weight).sum(&[1]);
    match op.text("reduction", "mean") {
        "none" => Ok(loss),
        "sum" => Ok(loss.sum(&[])),
        "mean" => Ok(loss.sum(&[]) / hit.select(weight, zero).sum(&[])),
        other => Err(format!("reduction '{other}' is none of none, sum and mean")),
    }
}
