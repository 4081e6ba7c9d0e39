//! BatchNormalization as arithmetic: where its parameters are not constants, which is all that engines take (tract refuses
//! anything else), and in the fused form, where it joins the map of what follows it.

use crate::{Cx, Form, Node, Var};

/// `(x - mean) scale / sqrt(var + epsilon) + bias` by channel, axis 1 of `x`; `None` for batch statistics, and in the
/// portable form where all four are constants, which an engine folds into the layer before.
pub(super) fn batch_norm<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>], form: Form) -> Option<Var<'c>> {
    let [Some(x), Some(scale), Some(bias), Some(mean), Some(variance)] = operands[..] else { return None };
    let parameters = [scale, bias, mean, variance];
    // An input with a default may be fed something else.
    let is_fixed = |p: &Var<'c>| {
        let graph = cx.graph();
        graph.constant(p.id()).is_some() && !graph.inputs.contains(&p.id())
    };
    let fixed = form == Form::Portable && parameters.iter().all(is_fixed);
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
