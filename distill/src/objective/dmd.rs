//! Distribution matching: a score difference as the generator's gradient.

use super::{Objective, Side, Tap};

/// Distribution matching distillation, the generator's loss.
pub(super) static DMD: Objective = Objective {
    name: "dmd",
    title: "Distribution matching: the difference of two denoisers as gradient",
    source: "Yin et al., One-step Diffusion with Distribution Matching Distillation (2024), eq. 7-8",
    formula: "L = mean_i mean_k (x - sg[x - g])^2 / 2, whose gradient in x is g/(batch elements), \
              g = (D_fake - D_real) / mean_k|x - D_real|, both denoisers at the same noised x; the mean in g is at \
              least 1e-8",
    taps: &[
        Tap { name: "sample", shape: "[batch, ...], the generator's", side: Side::Student },
        Tap { name: "fake_denoised", shape: "[batch, ...], by the net fitted to the generator", side: Side::Teacher },
        Tap { name: "real_denoised", shape: "[batch, ...], by the teacher", side: Side::Teacher },
    ],
    params: &[],
    build: |t| {
        let (x, fake, real) = (t.tap("sample")?, t.tap("fake_denoised")?, t.tap("real_denoised")?);
        t.same_shape(("sample", x), ("fake_denoised", fake))?;
        t.same_shape(("sample", x), ("real_denoised", real))?;
        let (x, fixed) = (x.flatten(), x.flatten().stop_gradient());
        let scale = (fixed - real.flatten()).abs().mean_keep(&[-1]).at_least(1e-8);
        let g = (fake.flatten() - real.flatten()) / scale;
        // x - sg[x] is 0, so that the value is exact and the gradient is g.
        let rows = (x.with_grad(g) - fixed + g.square() * 0.5).mean(&[-1]);
        t.batch_mean(rows)
    },
};
