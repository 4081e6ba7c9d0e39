//! Composites built from primitives that have gradient rules, while a network is instantiated.

use limbeck_graph::{Cx, Node, Var};
use limbeck_tensor::DType;

/// The primitives that `node` stands for, given its operands; `None` when the node can stay as it is. Made to be
/// the `rewrite` of [`Cx::inline_with`].
///
/// - BatchNormalization with `training_mode` = 1: normalises with the batch's mean and biased variance over all
///   axes but 1. Its further outputs are the running statistics
///   `running * momentum + batch * (1 - momentum)` as ONNX defines them, with the biased variance in both places
///   (torch keeps the unbiased one, `n / (n - 1)` times as large, and calls `1 - momentum` momentum).
/// - Dropout outside training: the identity, and a mask of `true`. Dropout in training needs noise from the caller
///   and stays as it is, which differentiation then refuses by name; see [`dropout`].
///
/// Errors of the formulas are kept by `cx`.
pub fn compose<'c>(cx: &'c Cx, node: &Node, inputs: &[Option<Var<'c>>]) -> Option<Vec<Var<'c>>> {
    if node.is("", "BatchNormalization") && node.int("training_mode").unwrap_or(0) != 0 {
        let [x, scale, bias, mean, variance] = inputs else { return None };
        return Some(batch_norm(node, (*x)?, (*scale)?, (*bias)?, (*mean)?, (*variance)?));
    }
    if node.is("", "Dropout") && !trains(cx, inputs.get(2).copied().flatten()) {
        let x = inputs.first().copied().flatten()?;
        let mut outputs = vec![x.identity()];
        if node.outputs.len() > 1 {
            outputs.push(cx.full(1.0, DType::Bool, &x.shape()));
        }
        return Some(outputs);
    }
    None
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

fn batch_norm<'c>(
    node: &Node,
    x: Var<'c>,
    scale: Var<'c>,
    bias: Var<'c>,
    mean: Var<'c>,
    variance: Var<'c>,
) -> Vec<Var<'c>> {
    let float = |name: &str, default: f64| node.float(name).map_or(default, f64::from);
    let axes: Vec<i64> = (0..x.rank() as i64).filter(|&i| i != 1).collect();
    let mut channels = vec![1; x.rank()];
    if let Some(n) = channels.get_mut(1) {
        *n = x.dim(1);
    }
    let batch_mean = x.mean_keep(&axes);
    let centred = x - batch_mean;
    let batch_variance = centred.square().mean_keep(&axes);
    let slope = scale.reshape(&channels) / (batch_variance + float("epsilon", 1e-5)).sqrt();
    let y = centred * slope + bias.reshape(&channels);
    let momentum = float("momentum", 0.9);
    let running = |old: Var<'c>, new: Var<'c>| old * momentum + new.reshape(&old.shape()) * (1.0 - momentum);
    let mut outputs = vec![y];
    if node.outputs.len() > 1 {
        outputs.push(running(mean, batch_mean));
    }
    if node.outputs.len() > 2 {
        outputs.push(running(variance, batch_variance));
    }
    outputs
}
