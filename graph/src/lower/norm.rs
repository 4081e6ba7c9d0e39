//! BatchNormalization whose parameters are not constants, as arithmetic: engines fold it into what is before it and want
//! constants for that (tract refuses anything else).

use crate::{Cx, Node, Var};

/// `(x - mean) scale / sqrt(var + epsilon) + bias` by channel, axis 1 of `x`, where any of the four is computed or fed;
/// `None` for constants and for batch statistics.
pub(super) fn batch_norm<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>]) -> Option<Var<'c>> {
    let [Some(x), Some(scale), Some(bias), Some(mean), Some(variance)] = operands[..] else { return None };
    let parameters = [scale, bias, mean, variance];
    // An input with a default may be fed something else.
    let is_fixed = |p: &Var<'c>| {
        let graph = cx.graph();
        graph.constant(p.id()).is_some() && !graph.inputs.contains(&p.id())
    };
    let fixed = parameters.iter().all(is_fixed);
    if fixed || node.int("training_mode").unwrap_or(0) != 0 || x.rank() < 2 {
        return None;
    }
    let epsilon = f64::from(node.float("epsilon").unwrap_or(1e-5));
    let mut shape = vec![1; x.rank()];
    shape[1] = scale.len();
    let factor = scale / (variance + epsilon).sqrt();
    let offset = bias - mean * factor;
    Some(x * factor.reshape(&shape) + offset.reshape(&shape))
}
