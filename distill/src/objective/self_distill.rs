//! Self-distillation: the student's own snapshot or average as teacher.

use super::{Objective, Param, Side, Tap, kl_rows, mse_rows};

/// Distillation from a frozen or averaged copy.
pub(super) static SELF_DISTILL: Objective = Objective {
    name: "self_distill",
    title: "Distillation from a snapshot or average of the student",
    source: "Tarvainen & Valpola, Mean Teachers (2017), section 2 (squared error); Furlanello et al., Born-Again Neural \
             Networks (2018), section 3 (KL); confidence threshold as Sohn et al., FixMatch (2020), eq. 4",
    formula: "L = mean_i m_i [ (1-a) T^2 KL(softmax(z_t/T) || softmax(z_s/T)) + a mean_c (z_s - z_t)^2 ], \
              a = mse, m_i = 1 where max_c softmax(z_t)[c] >= threshold, else 0; the mean is over all rows",
    taps: &[
        Tap { name: "student_logits", shape: "[batch, classes]", side: Side::Student },
        Tap { name: "teacher_logits", shape: "[batch, classes]", side: Side::Teacher },
    ],
    params: &[
        Param { name: "temperature", default: 1.0, min: 1e-2, max: 1e4, about: "T, softens both distributions" },
        Param {
            name: "threshold",
            default: 0.0,
            min: 0.0,
            max: 1.0,
            about: "least probability of the teacher's class",
        },
        Param { name: "mse", default: 0.0, min: 0.0, max: 1.0, about: "a: 0 for KL, 1 for the error of the logits" },
    ],
    build: |t| {
        let (zs, zt) = (t.tap("student_logits")?, t.tap("teacher_logits")?);
        t.same_shape(("student_logits", zs), ("teacher_logits", zt))?;
        let (tau, share, threshold) = (t.param("temperature"), t.param("mse"), t.param("threshold"));
        let kl = || kl_rows(zt / tau, zs / tau) * (tau * tau);
        let rows = match share {
            0.0 => kl(),
            1.0 => mse_rows(zs, zt),
            _ => kl() * (1.0 - share) + mse_rows(zs, zt) * share,
        };
        if threshold == 0.0 {
            return t.batch_mean(rows);
        }
        let confidence = zt.softmax(-1).max_keep(&[-1]).squeeze(&[-1]);
        let sure = confidence.greater_or_equal(t.cx.scalar_of(threshold, zt.dtype())).cast(zt.dtype());
        t.batch_mean(rows * sure)
    },
};
