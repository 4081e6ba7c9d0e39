//! Knowledge distillation by softened logits.

use super::{Objective, Param, Side, Tap, kl_rows};

/// Knowledge distillation.
pub(super) static KD: Objective = Objective {
    name: "kd",
    title: "Knowledge distillation by softened logits",
    source: "Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network (2015)",
    formula: "L = T^2 mean_i KL(softmax(z_t/T) || softmax(z_s/T))",
    taps: &[
        Tap { name: "student_logits", shape: "[batch, classes]", side: Side::Student },
        Tap { name: "teacher_logits", shape: "[batch, classes]", side: Side::Teacher },
    ],
    params: &[Param { name: "temperature", default: 4.0, min: 1e-2, max: 1e4, about: "T, softens both distributions" }],
    build: |t| {
        let tau = t.param("temperature");
        let (zs, zt) = (t.tap("student_logits")?, t.tap("teacher_logits")?);
        t.same_shape(("student_logits", zs), ("teacher_logits", zt))?;
        Ok(t.batch_mean(kl_rows(zt / tau, zs / tau))? * (tau * tau))
    },
};
