//! Operators on float32 that become chains of primitives in the fused form, where they are fused into maps.

use crate::{Cx, Node, Var};
use limbeck_tensor::DType;

/// The node in primitives that maps hold; `None` when it stays.
pub(super) fn primitive<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>]) -> Option<Vec<Var<'c>>> {
    let x = operands.first().copied().flatten()?;
    if !node.domain_or_default().is_empty() || node.outputs.len() != 1 || cx.graph().ty(x.id())?.dtype != DType::F32 {
        return None;
    }
    let operand = |i: usize| operands.get(i).copied().flatten();
    let number = |v: Var<'c>| {
        let value = cx.graph().settled(v.id())?.to_f64_vec().ok()?;
        (value.len() == 1).then(|| value[0])
    };
    let attr = |name: &str, default: f64| node.float(name).map_or(default, f64::from);
    let last = x.rank() as i64 - 1;
    let is_last = |axis: i64| x.rank() > 0 && (axis == -1 || axis == last);
    Some(vec![match node.op.as_str() {
        "Softmax" if is_last(node.int("axis").unwrap_or(-1)) => {
            let e = (x - x.max_keep(&[last])).exp();
            e / e.sum_keep(&[last])
        }
        "LogSoftmax" if is_last(node.int("axis").unwrap_or(-1)) => {
            let shifted = x - x.max_keep(&[last]);
            shifted - shifted.exp().sum_keep(&[last]).ln()
        }
        "LayerNormalization" if is_last(node.int("axis").unwrap_or(-1)) => {
            let centred = x - x.mean_keep(&[last]);
            let variance = centred.square().mean_keep(&[last]);
            let y = centred * (variance + attr("epsilon", 1e-5)).sqrt().reciprocal() * operand(1)?;
            operand(2).map_or(y, |bias| y + bias)
        }
        "RMSNormalization" if is_last(node.int("axis").unwrap_or(-1)) => {
            let square = x.square().mean_keep(&[last]);
            x * (square + attr("epsilon", 1e-5)).sqrt().reciprocal() * operand(1)?
        }
        "Gelu" if node.str("approximate").unwrap_or("none") == "none" => {
            x * 0.5 * ((x * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0)
        }
        "Clip" => {
            let bounded = |v: Var<'c>, op: &str, bound: Option<Var<'c>>| match bound {
                Some(bound) => cx.op(op, &[v, bound], &[]),
                None => v,
            };
            bounded(bounded(x, "Max", operand(1)), "Min", operand(2))
        }
        "GlobalAveragePool" if x.rank() > 2 => x.mean_keep(&(2..=last).collect::<Vec<_>>()),
        "LeakyRelu" => x.greater(cx.scalar_of(0.0, DType::F32)).select(x, x * attr("alpha", 0.01)),
        "HardSigmoid" => (x * attr("alpha", 0.2) + attr("beta", 0.5)).at_least(0.0).at_most(1.0),
        "HardSwish" => x * (x / 6.0 + 0.5).at_least(0.0).at_most(1.0),
        "Pow" => match number(operand(1)?)? {
            2.0 => x * x,
            3.0 => x * x * x,
            0.5 => x.sqrt(),
            -1.0 => x.reciprocal(),
            _ => return None,
        },
        _ => return None,
    }])
}
