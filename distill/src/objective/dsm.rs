//! Denoising score matching: the fit of a score net, such as the fake one of distribution matching.

use super::{Objective, Side, Tap, mse_rows};

/// Denoising score matching.
pub(super) static DSM: Objective = Objective {
    name: "dsm",
    title: "Denoising: fit of a score net to samples",
    source: "Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models (2022), eq. 2; \
             w = (s^2 + s_d^2)/(s s_d)^2 at noise level s",
    formula: "L = mean_i w_i mean_k (D(x + s e) - sg[x])^2",
    taps: &[
        Tap { name: "denoised", shape: "[batch, ...], by the net that is fitted", side: Side::Student },
        Tap { name: "sample", shape: "[batch, ...], without noise", side: Side::Data },
        Tap { name: "weight", shape: "[batch], w of the noise level", side: Side::Data },
    ],
    params: &[],
    build: |t| {
        let (d, x) = (t.tap("denoised")?, t.tap("sample")?);
        t.same_shape(("denoised", d), ("sample", x))?;
        t.batch_mean(mse_rows(d, x) * t.number_per_row("weight", ("denoised", d))?)
    },
};
