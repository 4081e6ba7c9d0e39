//! Gradients of convolutions. The three bilinear maps between data, weight and result (Conv, ConvGradInput,
//! ConvGradWeight) are each other's gradients, so the set is closed under differentiation.
//!
//! `ai.limbeck::ConvGradInput(w, gy)` and `ai.limbeck::ConvGradWeight(x, gy)` carry Conv's attributes with padding
//! resolved, `kernel_shape`, and the former also `input_shape`: the spatial extents of the data.

use super::RuleFn;
use limbeck_graph::ops::ConvAttrs;
use limbeck_graph::{Attr, LIMBECK, OpError, Var};

pub(super) const RULES: &[(&str, RuleFn)] = &[
    ("Conv", |r| {
        let (x, w, g) = (r.x(0), r.x(1), r.g());
        let map = Map::new(ConvAttrs::of(r.node, &spatial(x), &spatial(w)), spatial(x))?;
        Ok(vec![
            r.wants(0).then(|| map.input(w, g)),
            r.wants(1).then(|| map.weight(x, g)),
            r.wants(2).then(|| per_channel(g)),
        ])
    }),
    // The data of a transposed convolution are the result of a convolution, and the other way round.
    ("ConvTranspose", |r| {
        let (x, w, g) = (r.x(0), r.x(1), r.g());
        let map = Map::new(ConvAttrs::of_transposed(r.node, &spatial(x), &spatial(w)), spatial(g))?;
        Ok(vec![
            r.wants(0).then(|| map.forward(g, w, x)).transpose()?,
            r.wants(1).then(|| map.weight(g, x)),
            r.wants(2).then(|| per_channel(g)),
        ])
    }),
    ("ai.limbeck::ConvGradInput", |r| {
        let (w, gy, g) = (r.x(0), r.x(1), r.g());
        let map = Map::new(ConvAttrs::of(r.node, &spatial(g), &spatial(w)), spatial(g))?;
        Ok(vec![r.wants(0).then(|| map.weight(g, gy)), r.wants(1).then(|| map.forward(g, w, gy)).transpose()?])
    }),
    ("ai.limbeck::ConvGradWeight", |r| {
        let (x, gy, g) = (r.x(0), r.x(1), r.g());
        let map = Map::new(ConvAttrs::of(r.node, &spatial(x), &spatial(g)), spatial(x))?;
        Ok(vec![r.wants(0).then(|| map.input(g, gy)), r.wants(1).then(|| map.forward(x, g, gy)).transpose()?])
    }),
];

/// Extents behind batch and channels.
fn spatial(v: Var<'_>) -> Vec<usize> {
    v.shape().into_iter().skip(2).collect()
}

/// Sum over all but the channels: the gradient of a bias.
pub(super) fn per_channel(g: Var<'_>) -> Var<'_> {
    let axes: Vec<i64> = (0..g.rank() as i64).filter(|&i| i != 1).collect();
    if axes.is_empty() { g } else { g.sum(&axes) }
}

/// The geometry that the three maps share.
struct Map {
    attrs: Vec<(&'static str, Attr)>,
    input_shape: Vec<usize>,
}

impl Map {
    fn new(attrs: Result<ConvAttrs, OpError>, input_shape: Vec<usize>) -> Result<Map, String> {
        let a = attrs.map_err(|e| e.0)?;
        let attrs = vec![
            ("kernel_shape", a.kernel.into()),
            ("strides", a.strides.into()),
            ("pads", [a.pads_begin, a.pads_end].concat().into()),
            ("dilations", a.dilations.into()),
            ("group", a.group.into()),
        ];
        Ok(Map { attrs, input_shape })
    }

    /// The convolution, whose result must have the shape of `like`.
    fn forward<'c>(&self, x: Var<'c>, w: Var<'c>, like: Var<'c>) -> Result<Var<'c>, String> {
        let y = x.cx().op("Conv", &[x, w], &self.attrs);
        if y.shape() == like.shape() {
            return Ok(y);
        }
        let (made, needed) = (y.shape(), like.shape());
        Err(format!("output_padding of a stride or more has no gradient ({made:?} instead of {needed:?})"))
    }

    fn input<'c>(&self, w: Var<'c>, gy: Var<'c>) -> Var<'c> {
        let attrs = [&self.attrs[..], &[("input_shape", self.input_shape.clone().into())]].concat();
        w.cx().op_n(LIMBECK, "ConvGradInput", &[Some(w), Some(gy)], &attrs, 1)[0]
    }

    fn weight<'c>(&self, x: Var<'c>, gy: Var<'c>) -> Var<'c> {
        x.cx().op_n(LIMBECK, "ConvGradWeight", &[Some(x), Some(gy)], &self.attrs, 1)[0]
    }
}
