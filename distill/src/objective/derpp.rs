//! Dark experience replay with labels (DER++).

use super::{Objective, Param, Side, Tap, mse_rows};

/// DER++.
pub(super) static DERPP: Objective = Objective {
    name: "derpp",
    title: "Replay of stored logits and of stored labels",
    source: "Buzzega et al., Dark Experience for General Continual Learning (2020), section 3",
    formula: "L = CE(z, y) + alpha MSE(z', stored z') + beta CE(z'', y''), the primes being two independent draws of \
              the buffer; MSE is the mean over rows and classes; row weights count in all three batches",
    taps: &[
        Tap { name: "student_logits", shape: "[batch, classes]", side: Side::Student },
        Tap { name: "labels", shape: "[batch] int64", side: Side::Data },
        Tap { name: "replay_logits", shape: "[batch, classes], of the first draw", side: Side::Student },
        Tap { name: "stored_logits", shape: "[batch, classes], stored with the first draw", side: Side::Teacher },
        Tap { name: "second_logits", shape: "[batch, classes], of the second draw", side: Side::Student },
        Tap { name: "second_labels", shape: "[batch] int64, of the second draw", side: Side::Data },
    ],
    params: &[
        Param { name: "alpha", default: 1.0, min: 0.0, max: 1e6, about: "weight of the stored logits" },
        Param { name: "beta", default: 0.5, min: 0.0, max: 1e6, about: "weight of the stored labels" },
    ],
    build: |t| {
        let (replayed, stored) = (t.tap("replay_logits")?, t.tap("stored_logits")?);
        t.same_shape(("replay_logits", replayed), ("stored_logits", stored))?;
        let now = t.batch_mean(t.cross_entropy("student_logits", "labels")?)?;
        let dark = t.batch_mean(mse_rows(replayed, stored))?;
        let again = t.batch_mean(t.cross_entropy("second_logits", "second_labels")?)?;
        Ok(now + dark * t.param("alpha") + again * t.param("beta"))
    },
};
