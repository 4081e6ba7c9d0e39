//! Gradients of convolutions in standard ops.

use super::Lowered;
use super::window::{geometry, window_slices};
use crate::ops::extents;
use crate::{Attr, Cx, Node, Var, op_bail};

/// True when the kernels of the fused form can run this node: 1 or 2 spatial dims, explicit pads, f32.
pub(super) fn is_fusable(node: &Node, x: Var<'_>) -> bool {
    let explicit = matches!(node.str("auto_pad"), None | Some("NOTSET"));
    explicit && matches!(x.rank(), 3 | 4) && x.dtype() == limbeck_tensor::DType::F32
}

/// The gradient with respect to the input is the transposed convolution with the same weights; what the stride
/// cut off at the end comes back as output padding.
pub(super) fn grad_input<'c>(cx: &'c Cx, node: &Node, w: Var<'c>, gy: Var<'c>) -> Lowered<'c> {
    let (ws, ys) = (w.shape(), gy.shape());
    let input = extents(node.ints("input_shape").unwrap_or_default(), "input_shape")?;
    if ws.len() < 3 || ys.len() != ws.len() {
        op_bail!("ConvGradInput needs w and gy of equal rank, at least 3");
    }
    let window = geometry(node, &input, &ys[2..], Some(&ws[2..]))?;
    let spatial = input.len();
    let extra: Vec<i64> = (0..spatial)
        .map(|i| {
            let reach = window.strides[i] * (ys[2 + i] - 1) + (window.kernel[i] - 1) * window.dilations[i] + 1;
            (input[i] + window.pads_begin[i] + window.pads_end[i]) as i64 - reach as i64
        })
        .collect();
    let attrs = [
        ("kernel_shape", Attr::from(window.kernel.clone())),
        ("strides", window.strides.clone().into()),
        ("pads", [&window.pads_begin[..], &window.pads_end].concat().into()),
        ("dilations", window.dilations.clone().into()),
        ("group", window.group.into()),
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
        return Ok(gx);
    }
    let mut zeros = vec![0i64; spatial + 4];
    zeros.extend(&beyond);
    Ok(cx.op("Pad", &[gx, cx.ints(&zeros), cx.scalar_of(0.0, gx.dtype())], &[]))
}

/// The gradient with respect to the weights: the input's windows as columns, one matrix product per image and
/// group, summed over the batch.
pub(super) fn grad_weight<'c>(cx: &'c Cx, node: &Node, x: Var<'c>, gy: Var<'c>) -> Lowered<'c> {
    let (xs, ys) = (x.shape(), gy.shape());
    if xs.len() < 3 || ys.len() != xs.len() {
        op_bail!("ConvGradWeight needs x and gy of equal rank, at least 3");
    }
    let window = geometry(node, &xs[2..], &ys[2..], None)?;
    let (n, c, m, group) = (xs[0], xs[1], ys[1], window.group);
    if !c.is_multiple_of(group) || !m.is_multiple_of(group) {
        op_bail!("{c} and {m} channels do not fall into {group} groups");
    }
    let taps: usize = window.kernel.iter().product();
    let pixels: usize = ys[2..].iter().product();
    let slices = window_slices(cx, x, &window, &ys[2..], 0.0);
    let columns: Vec<Var<'c>> = slices.into_iter().map(|s| s.reshape(&[n, c, 1, pixels])).collect();
    let columns = match columns.split_first() {
        Some((&one, [])) => one,
        Some((&first, rest)) => first.concat(rest, 2),
        None => op_bail!("a convolution kernel has no element"),
    };
    let mut weight_shape = vec![m, c / group];
    weight_shape.extend(&window.kernel);
    let per_image = if group == 1 {
        gy.reshape(&[n, m, pixels]).matmul(columns.reshape(&[n, c * taps, pixels]).t())
    } else {
        let columns = columns.reshape(&[n, group, c / group * taps, pixels]);
        gy.reshape(&[n, group, m / group, pixels]).matmul(columns.t())
    };
    Ok(per_image.sum(&[0]).reshape(&weight_shape))
}
