//! Gradients of poolings in standard ops.

use super::window::{geometry, window_slices};
use super::{Lowered, MAX_ELEMENTS};
use crate::ops::{ConvAttrs, extents};
use crate::{Attr, Cx, Node, Var, op_bail};
use limbeck_tensor::{DType, element_count};

/// Each window's gradient goes to its first maximum: windows as a stack, first arg-max as a one-hot mask, and the
/// masked gradients folded back onto the input.
pub(super) fn max_pool_grad<'c>(cx: &'c Cx, node: &Node, x: Var<'c>, gy: Var<'c>) -> Lowered<'c> {
    let (xs, ys) = (x.shape(), gy.shape());
    if xs.len() < 3 || xs.len() != ys.len() {
        op_bail!("MaxPoolGrad needs x and gy of equal rank, at least 3");
    }
    let window = reaching(geometry(node, &xs[2..], &ys[2..], None)?, &xs[2..], &ys[2..]);
    let low = if x.dtype() == DType::F64 { f64::MIN } else { f64::from(f32::MIN) };
    let slices = window_slices(cx, x, &window, &ys[2..], low);
    let stack: Vec<Var<'c>> = slices.into_iter().map(|s| s.unsqueeze(&[2])).collect();
    let Some((&first, rest)) = stack.split_first() else { op_bail!("a pooling window has no element") };
    let stack = if rest.is_empty() { first } else { first.concat(rest, 2) };
    let taps = stack.dim(2);
    // [N, C, out...] of tap numbers against [taps, 1...]: a mask [N, C, taps, out...].
    let winner = stack.argmax(2).unsqueeze(&[2]);
    let mut numbers = vec![taps];
    numbers.extend(vec![1; ys.len() - 2]);
    let count: Vec<i64> = (0..taps as i64).collect();
    let mask = winner.equals(cx.ints(&count).reshape(&numbers)).cast(gy.dtype());
    let one_hot: Vec<f64> = (0..taps * taps).map(|i| if i / taps == i % taps { 1.0 } else { 0.0 }).collect();
    Ok(fold(cx, mask * gy.unsqueeze(&[2]), &one_hot, &window, &xs))
}

/// Each element of a window gets an equal share of the window's gradient.
pub(super) fn average_pool_grad<'c>(cx: &'c Cx, node: &Node, gy: Var<'c>) -> Lowered<'c> {
    let ys = gy.shape();
    let xs = extents(node.ints("input_shape").unwrap_or_default(), "input_shape")?;
    if xs.len() != ys.len() || xs.len() < 3 || xs[..2] != ys[..2] {
        op_bail!("input_shape {xs:?} is not the shape of a tensor pooled to {ys:?}");
    }
    if element_count(&xs).is_none_or(|n| n > MAX_ELEMENTS) {
        op_bail!("input_shape {xs:?} is too large to lower");
    }
    let window = geometry(node, &xs[2..], &ys[2..], None)?;
    let counts = window.counts(&xs[2..], &ys[2..], node.int("count_include_pad").unwrap_or(0) != 0)?;
    let shares: Vec<f64> = counts.iter().map(|n| 1.0 / n).collect();
    let share = gy * cx.floats(&[&[1, 1], &ys[2..]].concat(), &shares).cast(gy.dtype());
    let ones = vec![1.0; window.kernel.iter().product()];
    Ok(fold(cx, share.unsqueeze(&[2]), &ones, &reaching(window, &xs[2..], &ys[2..]), &xs))
}

/// The window with end padding such that the last output fits exactly (ceil mode may reach beyond the padding).
fn reaching(mut window: ConvAttrs, input: &[usize], out: &[usize]) -> ConvAttrs {
    for i in 0..out.len() {
        let reach = (out[i].max(1) - 1) * window.strides[i] + (window.kernel[i] - 1) * window.dilations[i] + 1;
        window.pads_end[i] = reach.saturating_sub(input[i] + window.pads_begin[i]);
    }
    window
}

/// Adds `[N, C, parts, out...]` back onto `[N, C, in...]`: a transposed convolution whose kernels `[parts, kernel...]`
/// say where each part goes.
fn fold<'c>(cx: &'c Cx, stack: Var<'c>, kernels: &[f64], window: &ConvAttrs, input: &[usize]) -> Var<'c> {
    let shape = stack.shape();
    if cx.has_error() {
        return stack;
    }
    let (n, c, parts) = (input[0], input[1], shape[2]);
    let mut flat = vec![n * c, parts];
    flat.extend(&shape[3..]);
    let mut kernel_shape = vec![parts, 1];
    kernel_shape.extend(&window.kernel);
    let kernel = cx.floats(&kernel_shape, kernels).cast(stack.dtype());
    let attrs = [
        ("kernel_shape", Attr::from(window.kernel.clone())),
        ("strides", window.strides.clone().into()),
        ("dilations", window.dilations.clone().into()),
    ];
    let full = cx.op("ConvTranspose", &[stack.reshape(&flat), kernel], &attrs);
    // Crop the padding away; rows that no window met are zeros.
    let spatial = input.len() - 2;
    let have = full.shape();
    if cx.has_error() {
        return full;
    }
    let (mut starts, mut ends, mut zeros) = (vec![], vec![], vec![0i64; spatial + 4]);
    for i in 0..spatial {
        let (begin, want) = (window.pads_begin[i], input[2 + i]);
        starts.push(begin as i64);
        ends.push((begin + want).min(have[2 + i]) as i64);
        zeros.push((begin + want).saturating_sub(have[2 + i]) as i64);
    }
    let axes: Vec<i64> = (2..spatial as i64 + 2).collect();
    let cropped = cx.op("Slice", &[full, cx.ints(&starts), cx.ints(&ends), cx.ints(&axes)], &[]);
    let padded = if zeros.iter().any(|&z| z > 0) {
        cx.op("Pad", &[cropped, cx.ints(&zeros), cx.scalar_of(0.0, cropped.dtype())], &[])
    } else {
        cropped
    };
    padded.reshape(input)
}
