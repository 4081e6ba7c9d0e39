//! Windows as explicit slices: what gradients of convolutions and poolings are made of in standard ops.

use crate::ops::ConvAttrs;
use crate::{Cx, Node, OpError, Var, op_bail};

/// Most elements of a window whose elements become slices of their own.
const MAX_TAPS: usize = 1024;

/// The checked geometry of a node over data of spatial extents `x` with results of `out`. The kernel is the node's
/// `kernel_shape` unless given.
pub(super) fn geometry(
    node: &Node,
    x: &[usize],
    out: &[usize],
    kernel: Option<&[usize]>,
) -> Result<ConvAttrs, OpError> {
    let (window, expected) = ConvAttrs::with_output(node, x, kernel)?;
    if out != expected || out.contains(&0) {
        op_bail!("windows over {x:?} give {expected:?}, the gradient has {out:?}");
    }
    match window.kernel.iter().try_fold(1usize, |n, &k| n.checked_mul(k)) {
        Some(taps) if taps <= MAX_TAPS => Ok(window),
        _ => op_bail!(
            "a kernel of {:?} has more than the {MAX_TAPS} elements that the portable form can slice; use a smaller one",
            window.kernel
        ),
    }
}

/// Offsets of the kernel's taps in row-major order.
fn taps(window: &ConvAttrs) -> Vec<Vec<usize>> {
    let mut taps = vec![vec![]];
    for (&k, &d) in window.kernel.iter().zip(&window.dilations) {
        taps = taps.into_iter().flat_map(|t| (0..k).map(move |i| [t.clone(), vec![i * d]].concat())).collect();
    }
    taps
}

/// For each tap of the window, the elements of `x` `[N, C, spatial...]` that it meets: `[N, C, out...]`, `x` being
/// padded with `fill` first.
pub(super) fn window_slices<'c>(cx: &'c Cx, x: Var<'c>, window: &ConvAttrs, out: &[usize], fill: f64) -> Vec<Var<'c>> {
    let spatial = out.len();
    let padded = if window.pads_begin.iter().chain(&window.pads_end).any(|&p| p > 0) {
        let mut pads = vec![0i64; 2 * (spatial + 2)];
        for i in 0..spatial {
            pads[2 + i] = window.pads_begin[i] as i64;
            pads[spatial + 4 + i] = window.pads_end[i] as i64;
        }
        cx.op("Pad", &[x, cx.ints(&pads), cx.scalar_of(fill, x.dtype())], &[])
    } else {
        x
    };
    let axes = cx.ints(&(2..spatial as i64 + 2).collect::<Vec<_>>());
    let steps = cx.ints(&window.strides.iter().map(|&s| s as i64).collect::<Vec<_>>());
    taps(window)
        .into_iter()
        .map(|tap| {
            let starts: Vec<i64> = tap.iter().map(|&t| t as i64).collect();
            let ends: Vec<i64> = (0..spatial).map(|i| (tap[i] + (out[i] - 1) * window.strides[i] + 1) as i64).collect();
            cx.op("Slice", &[padded, cx.ints(&starts), cx.ints(&ends), axes, steps], &[])
        })
        .collect()
}
