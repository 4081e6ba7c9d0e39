//! Relational distillation: distances and angles between the samples of a batch.

use super::{Objective, Param, Side, Tap, Terms, smooth_l1};
use limbeck_graph::Var;

/// Squared distances are floored at this before the root, so that duplicates have a finite gradient; and so are what
/// means divide by, so that a batch with one row that counts, which has no relations, has the loss 0.
const FLOOR: f64 = 1e-12;

/// Relational knowledge distillation.
pub(super) static RKD: Objective = Objective {
    name: "rkd",
    title: "Relational distillation of distances and angles",
    source: "Park et al., Relational Knowledge Distillation (2019), section 3.2",
    formula: "L = lambda_d mean_ij h(d_s[ij]/mu_s - d_t[ij]/mu_t) + lambda_a mean_ijk h(cos_s[ijk] - cos_t[ijk]); \
              d distances, mu their mean over i != j, cos the angle at i between j and k, h = smooth L1; a pair or \
              triple counts by the product of its row weights",
    taps: &[
        Tap { name: "student_feature", shape: "[batch, ...]", side: Side::Student },
        Tap { name: "teacher_feature", shape: "[batch, ...], of any width", side: Side::Teacher },
    ],
    params: &[
        Param { name: "lambda_d", default: 25.0, min: 0.0, max: 1e6, about: "weight of the distances" },
        Param { name: "lambda_a", default: 50.0, min: 0.0, max: 1e6, about: "weight of the angles" },
    ],
    build: |t| {
        let (s, f) = (t.tap("student_feature")?, t.tap("teacher_feature")?);
        t.same_rows(("student_feature", s), ("teacher_feature", f))?;
        if let Some(w) = t.row_weight() {
            t.same_rows(("student_feature", s), ("row_weight", w))?;
        }
        let ((ds, cs), (dt, ct)) = (relations(t, s), relations(t, f));
        let pairs = t.row_weight().map(|w| w.unsqueeze(&[1]) * w);
        let triples = t.row_weight().zip(pairs).map(|(w, p)| p.unsqueeze(&[2]) * w);
        let distance = mean(smooth_l1(ds - dt), pairs);
        let angle = mean(smooth_l1(cs - ct), triples);
        Ok(distance * t.param("lambda_d") + angle * t.param("lambda_a"))
    },
};

/// Distances `[batch, batch]` over their mean, and cosines `[batch, batch, batch]` with the vertex first.
fn relations<'c>(t: &Terms<'c>, feature: Var<'c>) -> (Var<'c>, Var<'c>) {
    let e = feature.flatten();
    let n = e.dim(0);
    let apart: Vec<f64> = (0..n * n).map(|k| f64::from(u8::from(k / n != k % n))).collect();
    let apart = t.cx.floats(&[n, n], &apart);
    let difference = e.unsqueeze(&[0]) - e.unsqueeze(&[1]);
    let length = difference.square().sum_keep(&[-1]).at_least(FLOOR).sqrt();
    let distance = length.squeeze(&[-1]) * apart;
    let counted = t.row_weight().map_or(apart, |w| apart * w.unsqueeze(&[1]) * w);
    let direction = difference / length;
    (distance / mean(distance, Some(counted)).at_least(FLOOR), direction.matmul(direction.t()))
}

fn mean<'c>(values: Var<'c>, weight: Option<Var<'c>>) -> Var<'c> {
    weight.map_or_else(|| values.mean(&[]), |w| (values * w).sum(&[]) / w.sum(&[]).at_least(FLOOR))
}
