//! Feature matching.

use super::{Objective, Side, Tap, mse_rows};

/// Mean squared error between features.
pub(super) static HINT: Objective = Objective {
    name: "hint",
    title: "Matching of a teacher's feature",
    source: "Romero et al., FitNets: Hints for Thin Deep Nets (2015), eq. 3, with the mean in place of half the sum",
    formula: "L = mean_i mean_k (f_s[i,k] - f_t[i,k])^2, f_s already projected to the teacher's shape",
    taps: &[
        Tap { name: "student_feature", shape: "[batch, ...]", side: Side::Student },
        Tap { name: "teacher_feature", shape: "[batch, ...], the same", side: Side::Teacher },
    ],
    params: &[],
    build: |t| {
        let (s, f) = (t.tap("student_feature")?, t.tap("teacher_feature")?);
        t.same_shape(("student_feature", s), ("teacher_feature", f))?;
        t.batch_mean(mse_rows(s, f))
    },
};
