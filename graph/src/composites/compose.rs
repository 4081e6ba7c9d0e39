//! Composites built from primitives that have gradient rules, while a network is instantiated.

use super::{ComposeFn, Composite, TABLE};
use crate::{Cx, Node, Var};
use limbeck_tensor::DType;

/// The primitives that `node` stands for, given its operands; `None` when the node can stay as it is. Made to be
/// the `rewrite` of [`Cx::inline_with`].
///
/// - BatchNormalization with `training_mode` = 1: [`batch_norm`]. Its further outputs are the running statistics
///   `running * momentum + batch * (1 - momentum)` as ONNX defines them, with the biased variance in both places
///   (torch keeps the unbiased one, `n / (n - 1)` times as large, and calls `1 - momentum` momentum).
/// - The ops of [`crate::COMPOSITES`].
/// - Loop and Scan: the same with what they replace in the body, whose weights become weights of `cx`, under their names in its
///   scope, so that gradients can be asked for in them.
/// - Dropout outside training: the identity, and a mask of `true`. Dropout in training needs noise from the caller
///   and stays as it is, which differentiation then refuses by name; see [`dropout`].
///
/// Errors of the formulas are kept by `cx`.
pub fn compose<'c>(cx: &'c Cx, node: &Node, inputs: &[Option<Var<'c>>]) -> Option<Vec<Var<'c>>> {
    if node.is("", "BatchNormalization") && node.int("training_mode").unwrap_or(0) != 0 {
        let [Some(x), Some(scale), Some(bias), Some(mean), Some(variance)] = *inputs else { return None };
        let [y, batch_mean, batch_variance] = batch_norm(node, x, (scale, bias), None);
        let kept = momentum(node);
        let running = |old: Var<'c>, new: Var<'c>| old * kept + new * (1.0 - kept);
        let mut outputs = vec![y];
        if node.outputs.len() > 1 {
            outputs.push(running(mean, batch_mean));
        }
        if node.outputs.len() > 2 {
            outputs.push(running(variance, batch_variance));
        }
        return Some(outputs);
    }
    if node.is("", "Dropout") && !trains(cx, inputs.get(2).copied().flatten()) {
        let x = inputs.first().copied().flatten()?;
        let mut outputs = vec![x.identity()];
        if node.outputs.len() > 1 {
            outputs.push(cx.full(1.0, DType::Bool, &x.shape()));
        }
        return Some(outputs);
    }
    if node.subgraphs().next().is_some() {
        return cx.with_body(node, inputs, true, &mut compose);
    }
    let formula = formula(node)?;
    let mut outputs = formula(&Composite { cx, node, inputs }).unwrap_or_else(|reason| {
        let error = cx.fail_with(format!("{}: {reason}", node.full_op()));
        vec![error; node.outputs.len()]
    });
    outputs.truncate(node.outputs.len());
    Some(outputs)
}

/// The row of the table of composites for this node.
fn formula(node: &Node) -> Option<ComposeFn> {
    let known = |&&(name, _): &&(&str, ComposeFn)| node.is("", name);
    TABLE.iter().find(known).map(|&(_, formula)| formula)
}

/// BatchNormalization in training: `x` `[batch, channels, ...]` normalised with its mean and biased variance over all
/// axes but 1, then scaled and shifted; and these mean and variance, `[channels]` each. Rows count by `row_weight`
/// `[batch]` when there is one: those of weight 0 leave no trace in the moments.
pub fn batch_norm<'c>(
    node: &Node,
    x: Var<'c>,
    (scale, bias): (Var<'c>, Var<'c>),
    row_weight: Option<Var<'c>>,
) -> [Var<'c>; 3] {
    let shape = x.shape();
    let (Some(&rows), Some(&channels)) = (shape.first(), shape.get(1)) else {
        return [x.cx().fail_with(format!("BatchNormalization needs [batch, channels, ...], this is {shape:?}")); 3];
    };
    if let Some(w) = row_weight.filter(|w| w.shape() != [rows]) {
        let reason = format!("BatchNormalization of {rows} rows cannot count them by a row weight {:?}", w.shape());
        return [x.cx().fail_with(reason); 3];
    }
    let share = row_weight.map(|w| {
        let mut column = vec![1; shape.len()];
        column[0] = rows;
        (w.cast(x.dtype()) / w.cast(x.dtype()).sum(&[])).reshape(&column)
    });
    let inner: Vec<i64> = (2..shape.len() as i64).collect();
    let all: Vec<i64> = (0..shape.len() as i64).filter(|&i| i != 1).collect();
    let moment = |v: Var<'c>| match share {
        None => v.mean_keep(&all),
        Some(share) => {
            let by_row = if inner.is_empty() { v } else { v.mean_keep(&inner) };
            (by_row * share).sum_keep(&[0])
        }
    };
    let mut wide = vec![1; shape.len()];
    wide[1] = channels;
    let mean = moment(x);
    let centred = x - mean;
    let variance = moment(centred.square());
    let slope = scale.reshape(&wide) / (variance + node.float("epsilon").map_or(1e-5, f64::from)).sqrt();
    [centred * slope + bias.reshape(&wide), mean.reshape(&[channels]), variance.reshape(&[channels])]
}

/// Share of the running statistics that BatchNormalization keeps at a step of training.
pub fn momentum(node: &Node) -> f64 {
    node.float("momentum").map_or(0.9, f64::from)
}

/// Dropout in training: `x` over `1 - ratio` where `noise` is at least `ratio`, else 0, and the mask. `noise` is
/// uniform in 0..1, of x's shape and dtype; `ratio` lies in 0..1.
#[track_caller]
pub fn dropout<'c>(x: Var<'c>, noise: Var<'c>, ratio: f64) -> (Var<'c>, Var<'c>) {
    let cx = x.cx();
    if !(0.0..1.0).contains(&ratio) {
        let error = cx.fail_with(format!("dropout ratio {ratio} is outside 0..1"));
        return (error, error);
    }
    let mask = noise.greater_or_equal(cx.scalar_of(ratio, noise.dtype()));
    (x * mask.cast(x.dtype()) * (1.0 - ratio).recip(), mask)
}

/// True unless `training_mode` is absent or the constant false.
fn trains(cx: &Cx, training_mode: Option<Var<'_>>) -> bool {
    training_mode.is_some_and(|v| {
        let constant = cx.graph().constant(v.id()).and_then(|t| t.to_i64_vec().ok());
        constant.as_deref() != Some(&[0])
    })
}
