//! Cross-entropy with the labels.

use super::{Objective, Param, Side, Tap};

/// Cross-entropy with integer labels.
pub(super) static CE: Objective = Objective {
    name: "ce",
    title: "Cross-entropy with the labels",
    source: "maximum likelihood of a categorical distribution; smoothing: Szegedy et al., Rethinking the Inception \
             Architecture (2016), section 7",
    formula: "L = mean_i [ (1-e) (-log softmax(z_s)[y_i]) + e mean_c -log softmax(z_s)[c] ], e = label_smoothing",
    taps: &[
        Tap { name: "student_logits", shape: "[batch, classes]", side: Side::Student },
        Tap { name: "labels", shape: "[batch] int64", side: Side::Data },
    ],
    params: &[Param {
        name: "label_smoothing",
        default: 0.0,
        min: 0.0,
        max: 1.0,
        about: "e, share of the target that is spread evenly over all classes",
    }],
    build: |t| {
        let (z, e) = (t.tap("student_logits")?, t.param("label_smoothing"));
        let hard = t.cross_entropy("student_logits", "labels")?;
        let rows = if e == 0.0 { hard } else { hard * (1.0 - e) - z.log_softmax(-1).mean(&[-1]) * e };
        t.batch_mean(rows)
    },
};
