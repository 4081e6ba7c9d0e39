//! Gradients of poolings in standard ops.

use super::{Window, window_slices};
use crate::{Attr, Cx, Node, Var};
use limbeck_tensor::DType;

/// Each window's gradient goes to its first maximum: windows as a stack, first arg-max as a one-hot mask, and the
/// masked gradients folded back onto the input.
pub(super) fn max_pool_grad<'c>(cx: &'c Cx, node: &Node, x: Var<'c>, gy: Var<'c>) -> Var<'c> {
    let (xs, ys) = (x.shape(), gy.shape());
    if cx.has_error() || xs.len() < 3 || xs.len() != ys.len() {
        return cx.fail_with("MaxPoolGrad needs x and gy of equal rank, at least 3");
    }
    let window = reaching(Window::of(cx, node, xs.len() - 2), &xs[2..], &ys[2..]);
    let low = if x.dtype() == DType::F64 { f64::MIN } else { f64::from(f32::MIN) };
    let slices = window_slices(cx, x, &window, &ys[2..], low);
    let stack: Vec<Var<'c>> = slices.into_iter().map(|s| s.unsqueeze(&[2])).collect();
    let Some((&first, rest)) = stack.split_first() else { return cx.fail_with("a pooling window has no element") };
    let stack = if rest.is_empty() { first } else { first.concat(rest, 2) };
    let taps = stack.dim(2);
    // [N, C, out...] of tap numbers against [taps, 1...]: a mask [N, C, taps, out...].
    let winner = stack.argmax(2).unsqueeze(&[2]);
    let mut numbers = vec![taps];
    numbers.extend(vec![1; ys.len() - 2]);
    let count: Vec<i64> = (0..taps as i64).collect();
    let mask = winner.equals(cx.ints(&count).reshape(&numbers)).cast(gy.dtype());
    fold(cx, mask * gy.unsqueeze(&[2]), &window, &xs)
}

/// Each element of a window gets an equal share of the window's gradient.
pub(super) fn average_pool_grad<'c>(cx: &'c Cx, node: &Node, gy: Var<'c>) -> Var<'c> {
    let ys = gy.shape();
    let xs: Vec<usize> =
        node.ints("input_shape").unwrap_or_default().iter().map(|&n| usize::try_from(n).unwrap_or(0)).collect();
    if cx.has_error() || xs.len() != ys.len() || xs.len() < 3 {
        return cx.fail_with("AveragePoolGrad needs input_shape, the shape of the pooled tensor");
    }
    let spatial = xs.len() - 2;
    let window = Window::of(cx, node, spatial);
    let include_pad = node.int("count_include_pad").unwrap_or(0) != 0;
    // How many elements each window averages, per axis.
    let counts: Vec<Vec<f64>> = (0..spatial)
        .map(|a| {
            (0..ys[2 + a])
                .map(|o| {
                    let limit = if include_pad { xs[2 + a] + window.begin[a] + window.end[a] } else { xs[2 + a] };
                    let inside = |t: usize| {
                        let at = o * window.strides[a] + t * window.dilations[a];
                        if include_pad { at < limit } else { at >= window.begin[a] && at - window.begin[a] < limit }
                    };
                    (0..window.kernel[a]).filter(|&t| inside(t)).count().max(1) as f64
                })
                .collect()
        })
        .collect();
    let mut inverse = vec![1.0];
    for axis in &counts {
        inverse = inverse.iter().flat_map(|v| axis.iter().map(move |c| v / c)).collect();
    }
    let mut shape = vec![1, 1];
    shape.extend(&ys[2..]);
    let share = gy * cx.floats(&shape, &inverse).cast(gy.dtype());
    let taps: usize = window.kernel.iter().product();
    let mut stacked = vec![ys[0], ys[1], taps];
    stacked.extend(&ys[2..]);
    let window = reaching(window, &xs[2..], &ys[2..]);
    fold(cx, share.unsqueeze(&[2]).expand(&stacked), &window, &xs)
}

/// The window with end padding such that the last output fits exactly (ceil mode may reach beyond the padding).
fn reaching(mut window: Window, input: &[usize], out: &[usize]) -> Window {
    for i in 0..out.len() {
        let reach = (out[i].max(1) - 1) * window.strides[i] + (window.kernel[i] - 1) * window.dilations[i] + 1;
        window.end[i] = reach.saturating_sub(input[i] + window.begin[i]);
    }
    window
}

/// Adds `[N, C, taps, out...]` back onto `[N, C, in...]`: a transposed convolution with one-hot kernels.
fn fold<'c>(cx: &'c Cx, stack: Var<'c>, window: &Window, input: &[usize]) -> Var<'c> {
    let shape = stack.shape();
    let (n, c, taps) = (input[0], input[1], shape[2]);
    let mut flat = vec![n * c, taps];
    flat.extend(&shape[3..]);
    let mut kernel_shape = vec![taps, 1];
    kernel_shape.extend(&window.kernel);
    let identity: Vec<f64> = (0..taps * taps).map(|i| if i / taps == i % taps { 1.0 } else { 0.0 }).collect();
    let kernel = cx.floats(&kernel_shape, &identity).cast(stack.dtype());
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
        let (begin, want) = (window.begin[i], input[2 + i]);
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
