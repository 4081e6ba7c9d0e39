//! Learning without forgetting: the old net's answers about its own classes.

use super::{Objective, Param, Side, Tap};

/// The distillation term of learning without forgetting.
pub(super) static LWF: Objective = Objective {
    name: "lwf",
    title: "Learning without forgetting: the old classes as before",
    source: "Li & Hoiem, Learning without Forgetting (2016), eq. 2-3; the factor T^2 is Hinton et al. (2015)",
    formula: "L = T^2 mean_i -sum_c softmax(z_old/T)[c] log softmax(z_s[:old]/T)[c], over the old classes, which come \
              first; with the factor T^2, which the original leaves out",
    taps: &[
        Tap { name: "student_logits", shape: "[batch, classes]", side: Side::Student },
        Tap { name: "teacher_logits", shape: "[batch, old classes]", side: Side::Teacher },
    ],
    params: &[Param { name: "temperature", default: 2.0, min: 1e-2, max: 1e4, about: "T, softens both distributions" }],
    build: |t| {
        let (zs, zt, tau) = (t.tap("student_logits")?, t.tap("teacher_logits")?, t.param("temperature"));
        t.same_rows(("student_logits", zs), ("teacher_logits", zt))?;
        let (classes, old) = (zs.dim(-1), zt.dim(-1));
        if old > classes {
            return Err(t.error(format!("teacher_logits has {old} classes, student_logits only {classes}")));
        }
        let ours = if old == classes { zs } else { zs.slice(-1, 0, old) };
        let rows = -((zt / tau).softmax(-1) * (ours / tau).log_softmax(-1)).sum(&[-1]);
        Ok(t.batch_mean(rows)? * (tau * tau))
    },
};
