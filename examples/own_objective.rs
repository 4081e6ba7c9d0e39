//! An objective of one's own: a formula, and its gradient comes for free.
//!
//! `cargo run --example own_objective`

use limbeck::autodiff::Differentiate;
use limbeck::distill::objective::{Objective, Param, Side, Tap};
use limbeck::graph::Cx;
use limbeck::tensor::{DType, Tensor, TensorMap};

/// Huber distance between standardised logits: cares for their pattern, not for their scale.
static STANDARDISED: Objective = Objective {
    name: "standardised-huber",
    title: "Huber distance between standardised logits",
    source: "example",
    formula: "L = mean_i mean_c huber_b(s(z_s) - s(z_t)), s(z) = (z - mean z) / std z",
    taps: &[
        Tap { name: "student_logits", shape: "[batch, classes]", side: Side::Student },
        Tap { name: "teacher_logits", shape: "[batch, classes]", side: Side::Teacher },
    ],
    params: &[Param { name: "beta", default: 1.0, min: 1e-3, max: 1e3, about: "where the loss turns linear" }],
    build: |t| {
        let standardised = |name: &str| {
            let z = t.tap(name)?;
            let centred = z - z.mean_keep(&[-1]);
            Ok::<_, limbeck::distill::DistillError>(centred / (centred.square().mean_keep(&[-1]) + 1e-5).sqrt())
        };
        let beta = t.param("beta");
        let d = (standardised("student_logits")? - standardised("teacher_logits")?).abs();
        let inside = d.at_most(beta);
        t.batch_mean((inside.square() / (2.0 * beta) + (d - inside)).mean(&[-1]))
    },
};

fn main() -> anyhow::Result<()> {
    let cx = Cx::new("example", DType::F32);
    let student = cx.input("student_logits", DType::F32, &[2, 3]);
    let teacher = cx.input("teacher_logits", DType::F32, &[2, 3]);
    let loss = STANDARDISED.loss(&cx, &[("student_logits", student), ("teacher_logits", teacher)], &[], None)?;
    let gradient = cx.grad(loss, &[student])?[0];
    cx.output("loss", loss);
    cx.output("gradient", gradient);
    let graph = cx.finish()?;

    let mut feeds = TensorMap::new();
    feeds.insert("student_logits".into(), Tensor::new([2, 3], vec![1.0f32, 2.0, 0.5, -1.0, 0.0, 3.0])?);
    feeds.insert("teacher_logits".into(), Tensor::new([2, 3], vec![2.0f32, 1.0, 0.0, -2.0, 1.0, 4.0])?);
    let results = graph.evaluate(&feeds)?;
    println!("loss     {:?}", results["loss"].to_f64_vec()?);
    println!("gradient {:?}", results["gradient"].to_f64_vec()?);
    Ok(())
}
