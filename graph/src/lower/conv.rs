//! Gradients of convolutions in standard ops.

use super::{Window, window_slices};
use crate::{Attr, Cx, Node, Var};

/// True when the kernels of the fused form can run this node: 1 or 2 spatial dims, explicit pads, f32.
pub(super) fn is_fusable(node: &Node, x: Var<'_>) -> bool {
    let explicit = matches!(node.str("auto_pad"), None | Some("NOTSET"));
    explicit && matches!(x.rank(), 3 | 4) && x.dtype() == limbeck_tensor::DType::F32
}

/// The gradient with respect to the input is the transposed convolution with the same weights; what the stride
/// cut off at the end comes back as output padding.
pub(super) fn grad_input<'c>(cx: &'c Cx, node: &Node, w: Var<'c>, gy: Var<'c>) -> Var<'c> {
    let spatial = gy.rank().saturating_sub(2);
    let window = Window::of(cx, node, spatial);
    let input = node.ints("input_shape").unwrap_or_default().to_vec();
    let out = gy.shape();
    if cx.has_error() || input.len() != spatial {
        return cx.fail_with("ConvGradInput needs input_shape with one extent per spatial axis");
    }
    let extra: Vec<i64> = (0..spatial)
        .map(|i| {
            let reach = window.strides[i] * (out[2 + i] - 1) + (window.kernel[i] - 1) * window.dilations[i] + 1;
            input[i] + (window.begin[i] + window.end[i]) as i64 - reach as i64
        })
        .collect();
    let mut pads = window.begin.clone();
    pads.extend(&window.end);
    let attrs = [
        ("kernel_shape", Attr::from(window.kernel.clone())),
        ("strides", window.strides.clone().into()),
        ("pads", pads.into()),
        ("dilations", window.dilations.clone().into()),
        ("group", node.int("group").unwrap_or(1).into()),
    ];
    // Output padding must stay below the stride; what exceeds it is rows that no window met: zeros.
    let inside: Vec<i64> = extra.iter().zip(&window.strides).map(|(&e, &s)| e.min(s as i64 - 1)).collect();
    let mut attrs = attrs.to_vec();
    if inside.iter().any(|&e| e > 0) {
        attrs.push(("output_padding", inside.clone().into()));
    }
    let gx = cx.op("ConvTranspose", &[gy, w], &attrs);
    let beyond: Vec<i64> = extra.iter().zip(&inside).map(|(e, i)| e - i).collect();
    if beyond.iter().all(|&b| b == 0) {
        return gx;
    }
    let mut zeros = vec![0i64; spatial + 4];
    zeros.extend(&beyond);
    cx.op("Pad", &[gx, cx.ints(&zeros), cx.scalar_of(0.0, gx.dtype())], &[])
}

/// The gradient with respect to the weights: the input's windows as columns, one matrix product per image and
/// group, summed over the batch.
pub(super) fn grad_weight<'c>(cx: &'c Cx, node: &Node, x: Var<'c>, gy: Var<'c>) -> Var<'c> {
    let (xs, ys) = (x.shape(), gy.shape());
    if cx.has_error() || xs.len() < 3 || ys.len() != xs.len() {
        return cx.fail_with("ConvGradWeight needs x and gy of equal rank, at least 3");
    }
    let window = Window::of(cx, node, xs.len() - 2);
    let group = usize::try_from(node.int("group").unwrap_or(1)).unwrap_or(1).max(1);
    let (n, c, m) = (xs[0], xs[1], ys[1]);
    let taps: usize = window.kernel.iter().product();
    let pixels: usize = ys[2..].iter().product();
    let slices = window_slices(cx, x, &window, &ys[2..], 0.0);
    let columns: Vec<Var<'c>> = slices.into_iter().map(|s| s.reshape(&[n, c, 1, pixels])).collect();
    let columns = match columns.split_first() {
        Some((&one, [])) => one,
        Some((&first, rest)) => first.concat(rest, 2),
        None => return cx.fail_with("a convolution kernel has no element"),
    };
    let mut weight_shape = vec![m, c / group];
    weight_shape.extend(&window.kernel);
    let per_image = if group == 1 {
        gy.reshape(&[n, m, pixels]).matmul(columns.reshape(&[n, c * taps, pixels]).t())
    } else {
        let columns = columns.reshape(&[n, group, c / group * taps, pixels]);
        gy.reshape(&[n, group, m / group, pixels]).matmul(columns.t())
    };
    per_image.sum(&[0]).reshape(&weight_shape)
}
