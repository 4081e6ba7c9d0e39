//! Convolution and its two gradients: the public functions, which choose among the ways to compute them.

use crate::error::{KernelError, check_len};
use crate::geometry::ConvGeometry;
use crate::matmul::Mat;
use crate::parallel::Parallelism;
use crate::scratch::LINE;
use crate::share::Share;
use crate::transpose::transpose;
use crate::{dense, depthwise, winograd};

/// `y = conv(x, w) + bias`, `bias` being `[out_channels]`.
///
/// # Errors
/// A slice whose length is not the geometry's.
pub fn conv_forward(
    geometry: &ConvGeometry,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
    parallelism: Parallelism,
) -> Result<(), KernelError> {
    check_len("x", x, geometry.input_len())?;
    check_len("w", w, geometry.weight_len())?;
    check_len("y", y, geometry.output_len())?;
    if let Some(bias) = bias {
        check_len("bias", bias, geometry.out_channels)?;
    }
    if winograd::suits(geometry) {
        winograd::forward(geometry, x, w, bias, y, parallelism);
        return Ok(());
    }
    let shares = Share::cut(y, geometry.batch, geometry.out_channels, geometry.output_plane(), 1, parallelism);
    if geometry.is_depthwise() {
        parallelism.for_each(shares, |share| depthwise::forward(geometry, x, w, bias, share));
    } else {
        parallelism.for_each(shares, |share| dense::forward(geometry, x, w, bias, share));
    }
    Ok(())
}

/// `gx`, the gradient of `<gy, conv(x, w)>` with respect to `x`. What `gx` held is overwritten.
///
/// # Errors
/// A slice whose length is not the geometry's.
pub fn conv_grad_input(
    geometry: &ConvGeometry,
    w: &[f32],
    gy: &[f32],
    gx: &mut [f32],
    parallelism: Parallelism,
) -> Result<(), KernelError> {
    check_len("w", w, geometry.weight_len())?;
    check_len("gy", gy, geometry.output_len())?;
    check_len("gx", gx, geometry.input_len())?;
    if !geometry.is_depthwise()
        && let Some(transposed) = geometry.transposed()
    {
        if winograd::suits(geometry) {
            winograd::grad_input(geometry, &transposed, w, gy, gx, parallelism);
            return Ok(());
        }
        let mut flipped = vec![0.0; w.len()];
        flip(geometry, w, &mut flipped);
        return conv_forward(&transposed, gy, &flipped, None, gx, parallelism);
    }
    let shares = Share::cut(gx, geometry.batch, geometry.in_channels, geometry.input_plane(), 1, parallelism);
    if geometry.is_depthwise() {
        parallelism.for_each(shares, |share| depthwise::grad_input(geometry, w, gy, share));
    } else {
        parallelism.for_each(shares, |share| dense::grad_input(geometry, w, gy, share));
    }
    Ok(())
}

/// `gw`, the gradient of `<gy, conv(x, w)>` with respect to `w`. What `gw` held is overwritten.
///
/// # Errors
/// A slice whose length is not the geometry's.
pub fn conv_grad_weight(
    geometry: &ConvGeometry,
    x: &[f32],
    gy: &[f32],
    gw: &mut [f32],
    parallelism: Parallelism,
) -> Result<(), KernelError> {
    check_len("x", x, geometry.input_len())?;
    check_len("gy", gy, geometry.output_len())?;
    check_len("gw", gw, geometry.weight_len())?;
    if geometry.is_depthwise() {
        depthwise::grad_weight(geometry, x, gy, gw, parallelism);
    } else if winograd::suits(geometry) {
        winograd::grad_weight(geometry, x, gy, gw, parallelism);
    } else {
        dense::grad_weight(geometry, x, gy, gw, parallelism);
    }
    Ok(())
}

impl ConvGeometry {
    /// An upper bound of the bytes that one pass allocates beside its arguments with so many threads: what a tile or block
    /// of tiles needs a thread, and weights and their gradient a thread. It does not grow with a large batch, and leaves out
    /// what `gemm` packs. Most of it stays allocated until the thread ends.
    pub fn scratch_bytes(&self, parallelism: Parallelism) -> usize {
        let scratch = |g: &Self| {
            if g.is_depthwise() {
                depthwise::scratch_len(g)
            } else if winograd::suits(g) {
                winograd::scratch_len(g)
            } else {
                dense::scratch_len(g)
            }
        };
        let tile = scratch(self).max(self.transposed().map_or(0, |t| scratch(&t)));
        let weight = if winograd::suits(self) { winograd::weight_len(self) } else { dense::weight_len(self) };
        // Slices of scratch begin with a line of the cache.
        let own = tile.saturating_add(weight).saturating_add(8 * LINE);
        size_of::<f32>().saturating_mul(parallelism.threads().saturating_mul(own))
    }
}

/// Writes weights `[in_channels, out_channels / group, taps]` with the taps in reverse order.
pub(crate) fn flip(g: &ConvGeometry, w: &[f32], flipped: &mut [f32]) {
    let (ins, outs, taps) = (g.group_in(), g.group_out(), g.taps());
    for (flipped, w) in flipped.chunks_mut(ins * outs * taps).zip(w.chunks(ins * outs * taps)) {
        if taps == 1 {
            transpose(Mat::new(w, outs, ins, ins), flipped, outs);
            continue;
        }
        for (out, w) in w.chunks(ins * taps).enumerate() {
            for (input, w) in w.chunks(taps).enumerate() {
                let to = &mut flipped[(input * outs + out) * taps..][..taps];
                to.iter_mut().zip(w.iter().rev()).for_each(|(to, w)| *to = *w);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ConvParams;

    /// Each case runs on a fresh thread, whose scratch is then what its passes needed.
    #[test]
    fn scratch_stays_within_its_bound() {
        for (channels, input, kernel, stride, group) in [
            ([16, 16], [8, 8], [3, 3], 1, 1),
            ([3, 8], [70, 50], [5, 5], 2, 1),
            ([8, 40], [20, 20], [1, 1], 2, 2),
            ([40, 3], [20, 20], [3, 3], 1, 1),
            ([6, 12], [60, 60], [3, 3], 2, 6),
            ([32, 48], [9, 7], [3, 3], 1, 1),
            ([16, 16], [70, 150], [3, 3], 1, 1),
        ] {
            let pad = [kernel[0] / 2; 2];
            let params = ConvParams { group, stride: [stride; 2], pad_begin: pad, pad_end: pad, ..Default::default() };
            let geometry = |batch| ConvGeometry::new(batch, channels[0], channels[1], input, kernel, &params).unwrap();
            let g = geometry(9);
            let run = move || {
                let (mut x, mut w, mut y) =
                    (vec![0.0; g.input_len()], vec![0.0; g.weight_len()], vec![0.0; g.output_len()]);
                conv_forward(&g, &x, &w, None, &mut y, Parallelism::Serial).unwrap();
                conv_grad_input(&g, &w, &y, &mut x, Parallelism::Serial).unwrap();
                conv_grad_weight(&g, &x, &y, &mut w, Parallelism::Serial).unwrap();
                crate::scratch::kept_values() * size_of::<f32>()
            };
            let (kept, bound) = (std::thread::spawn(run).join().unwrap(), g.scratch_bytes(Parallelism::Serial));
            assert!(0 < kept && kept <= bound, "{kept} bytes, bound {bound}, {g:?}");
            assert_eq!(
                geometry(1 << 20).scratch_bytes(Parallelism::Serial),
                geometry(1 << 12).scratch_bytes(Parallelism::Serial)
            );
        }
    }
}
