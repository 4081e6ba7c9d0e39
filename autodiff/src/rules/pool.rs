//! Gradients of pooling. The maximum of a window is its first one, as in torch.
//!
//! `ai.limbeck::MaxPoolGrad(x, gy)` and `ai.limbeck::AveragePoolGrad(gy)` carry the pool's attributes; the latter
//! also `input_shape`, the whole shape of the data.

use super::elementwise::one;
use super::{Rule, RuleFn};
use limbeck_graph::{Attr, LIMBECK, Var};

pub(super) const RULES: &[(&str, RuleFn)] = &[
    ("MaxPool", |r| one(max_pool_grad(r.x(0), r.g(), &attrs(r)))),
    ("GlobalMaxPool", |r| {
        let kernel: Vec<usize> = r.x(0).shape().into_iter().skip(2).collect();
        one(max_pool_grad(r.x(0), r.g(), &[("kernel_shape", kernel.into())]))
    }),
    // Linear in gy: its gradient picks the element that was the maximum.
    ("ai.limbeck::MaxPoolGrad", |r| {
        let picks = r.cx.op_n("", "MaxPool", &[Some(r.x(0))], &attrs(r), 2)[1];
        Ok(vec![None, Some(r.g().reshape(&[r.g().len()]).gather(picks, 0))])
    }),
    ("AveragePool", |r| {
        let attrs = [&attrs(r)[..], &[("input_shape", r.x(0).shape().into())]].concat();
        one(r.cx.op_n(LIMBECK, "AveragePoolGrad", &[Some(r.g())], &attrs, 1)[0])
    }),
    ("ai.limbeck::AveragePoolGrad", |r| one(r.cx.op("AveragePool", &[r.g()], &attrs(r)))),
    ("GlobalAveragePool", |r| {
        let shape = r.x(0).shape();
        let count: usize = shape.iter().skip(2).product();
        one((r.g() / count as f64).expand(&shape))
    }),
];

fn max_pool_grad<'c>(x: Var<'c>, gy: Var<'c>, attrs: &[(&str, Attr)]) -> Var<'c> {
    x.cx().op_n(LIMBECK, "MaxPoolGrad", &[Some(x), Some(gy)], attrs, 1)[0]
}

/// The attributes that state windows.
fn attrs<'r>(r: &Rule<'r, '_>) -> Vec<(&'r str, Attr)> {
    let own = |name: &str| name != "storage_order" && name != "input_shape";
    r.node.attrs.iter().filter(|(name, _)| own(name)).map(|(name, value)| (name.as_str(), value.clone())).collect()
}
