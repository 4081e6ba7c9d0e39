//! Continuous-time consistency: the tangent of the student along the teacher's trajectory.

use super::{Objective, Param, Side, Tap, per_row};
use limbeck_graph::Var;

/// Simplified continuous-time consistency distillation, in TrigFlow with data of unit deviation.
pub(super) static SCM: Objective = Objective {
    name: "scm",
    title: "Continuous-time consistency distillation",
    source: "Lu & Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models (2025), \
             algorithm 1, without its learned weighting",
    formula: "L = mean_i w_i mean_k (F - sg[F] - g)^2, \
              g = -cos^2 t (sg[F] - F_T) - r (cos t sin t x_t + dF), g <- g / (|g| + c); \
              dF = JVP of F along the tangents (cos t sin t F_T, cos t sin t) of (x_t, t)",
    taps: &[
        Tap { name: "velocity", shape: "[batch, ...], F(x_t, t)", side: Side::Student },
        Tap { name: "velocity_tangent", shape: "[batch, ...], dF", side: Side::Teacher },
        Tap { name: "teacher_velocity", shape: "[batch, ...], F_T(x_t, t)", side: Side::Teacher },
        Tap { name: "x_t", shape: "[batch, ...]", side: Side::Data },
        Tap { name: "t", shape: "[batch], radians in 0..pi/2", side: Side::Data },
        Tap { name: "weight", shape: "[batch], w of the time", side: Side::Data },
    ],
    params: &[
        Param { name: "warmup", default: 1.0, min: 0.0, max: 1.0, about: "r, rises from 0 to 1 early in training" },
        Param { name: "c", default: 0.1, min: 1e-6, max: 1e3, about: "added to the norm of the tangent" },
    ],
    build: |t| {
        let (f, df, ft, x) =
            (t.tap("velocity")?, t.tap("velocity_tangent")?, t.tap("teacher_velocity")?, t.tap("x_t")?);
        for (name, other) in [("velocity_tangent", df), ("teacher_velocity", ft), ("x_t", x)] {
            t.same_shape(("velocity", f), (name, other))?;
        }
        let time = per_row(t.number_per_row("t", ("velocity", f))?, f);
        let (cos, sin) = (time.cos(), time.sin());
        let fixed = f.stop_gradient();
        let g = -cos.square() * (fixed - ft) - (cos * sin * x + df) * t.param("warmup");
        let g = g.flatten();
        let g = (g / (g.norm_keep(&[-1], 0.0) + t.param("c"))).stop_gradient();
        let rows = ((f - fixed).flatten() - g).square().mean(&[-1]);
        t.batch_mean(rows * t.number_per_row("weight", ("velocity", f))?)
    },
};

/// The tangents of (x_t, t) along which `scm` takes the student's Jacobian-vector product:
/// `(cos t sin t F_T, cos t sin t)`, shaped `[batch, ...]` and `[batch]`.
pub fn scm_tangents<'c>(t: Var<'c>, teacher_velocity: Var<'c>) -> (Var<'c>, Var<'c>) {
    let speed = t.cos() * t.sin();
    (per_row(speed, teacher_velocity) * teacher_velocity, speed)
}
