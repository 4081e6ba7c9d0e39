//! Whole train steps against torch in float64: alternating distribution matching over one store, a gradient penalty,
//! continuous-time consistency, DOT, a GRU. Each runs on the reference evaluator and on every engine.
//! `tests/golden/objectives/make_probes.py` holds the references.

mod common;

use common::machine::machines;
use common::{golden, tensor};
use limbeck_autodiff::Differentiate;
use limbeck_distill::models::{Layers, gru};
use limbeck_distill::objective::{self, scm_tangents};
use limbeck_distill::optim::{AdamW, Dot, Optimiser, Sgd, Split};
use limbeck_distill::{DistillError, GradOptions, Group, Mode, Net, ParamSet, Step, StepBuilder, build_step};
use limbeck_graph::Var;
use limbeck_runtime::{StateRole, noise};
use limbeck_tensor::{DType, Tensor, TensorMap};
use serde_json::Value;
use std::collections::BTreeMap;

const B: usize = 8;
const SGD: Sgd = Sgd { momentum: 0.0, nesterov: false };

fn tensors(float: DType, v: &Value) -> TensorMap {
    v.as_object().unwrap().iter().map(|(k, v)| (k.clone(), tensor(float, v))).collect()
}

/// Two layers with tanh between, and the weights of a golden.
fn perceptron(widths: [usize; 3], weights: &Value) -> Net {
    let net = Net::build("perceptron", |cx| {
        let l = Layers::new(cx, 0);
        let h = l.linear("layer0", l.input("x", &[widths[0]]), (widths[0], widths[1]), 1.0).tanh();
        cx.output("y", l.linear("layer1", h, (widths[1], widths[2]), 1.0));
        Ok(())
    });
    net.unwrap().reweighted(&tensors(DType::F32, weights)).unwrap()
}

fn loss<'c>(s: &StepBuilder<'c>, name: &str, taps: &[(&str, Var<'c>)]) -> Result<Var<'c>, DistillError> {
    objective::find(name)?.loss(s.cx(), taps, &[], None)
}

fn apply<'c>(s: &StepBuilder<'c>, net: &Net, x: Var<'c>, params: &ParamSet<'c>) -> Result<Var<'c>, DistillError> {
    net.apply(s.cx(), &[x], params, Mode::Training)?.first()
}

fn descend<'c>(
    s: &StepBuilder<'c>,
    loss: Var<'c>,
    sets: &[&ParamSet<'c>],
    optimiser: &dyn Optimiser,
) -> Result<(), DistillError> {
    s.loss("loss", loss);
    let groups: Vec<Group<'_, 'c>> =
        sets.iter().map(|params| Group { params, lr_scale: 1.0, weight_decay: 0.0 }).collect();
    s.minimise("", loss, &groups, optimiser, GradOptions::default())
}

/// Runs a probe of one set of weights, called `student`, and compares each loss and the final weights.
fn follow(golden: &Value, lr: f64, step: impl Fn(DType) -> Step) {
    for mut machine in machines() {
        let loaded = machine.load(step(machine.float));
        for (i, reference) in golden["steps"].as_array().unwrap().iter().enumerate() {
            let found = machine.run(&loaded, tensors(machine.float, &reference["feeds"]), lr);
            machine.check(&format!("loss of step {i}"), &[found], &reference["loss"]);
        }
        machine.check_set("student", &golden["final"]);
    }
}

#[test]
fn gradient_penalty_is_differentiated_inside_a_train_step() {
    let golden = &golden("probes.json")["r1"];
    let net = perceptron([2, 12, 1], &golden["first"]);
    follow(golden, 0.05, |float| {
        build_step("critic", float, |s| {
            let (real, fake) = (s.batch("real", float, &[B, 2])?, s.batch("fake", float, &[B, 2])?);
            let params = s.params("student", &net, StateRole::Parameter)?;
            let score = apply(s, &net, real, &params)?;
            let fake_score = apply(s, &net, fake, &params)?;
            let gan = loss(s, "gan_critic", &[("fake_score", fake_score), ("real_score", score)])?;
            let taps = [("real_score", score), ("critic_input", real)];
            let penalty = objective::find("r1")?.loss(s.cx(), &taps, &[("gamma", 2.0)], None)?;
            descend(s, gan + penalty, &[&params], &SGD)
        })
        .unwrap()
    });
}

#[test]
fn consistency_tangent_is_a_jacobian_vector_product() {
    let golden = &golden("probes.json")["scm"];
    let net = perceptron([3, 12, 2], &golden["first"]);
    follow(golden, 0.1, |float| {
        build_step("consistency", float, |s| {
            let (x, t) = (s.batch("x_t", float, &[B, 2])?, s.batch("t", float, &[B])?);
            let teacher = s.batch("teacher_velocity", float, &[B, 2])?;
            let params = s.params("student", &net, StateRole::Parameter)?;
            let velocity = apply(s, &net, x.concat(&[t.unsqueeze(&[1])], 1), &params)?;
            let (dx, dt) = scm_tangents(t, teacher);
            let tangent = s.cx().jvp(&[velocity], &[x, t], &[dx, dt])?[0];
            let taps = [
                ("velocity", velocity),
                ("velocity_tangent", tangent),
                ("teacher_velocity", teacher),
                ("x_t", x),
                ("t", t),
                ("weight", t.cos() / t.sin()),
            ];
            let total = loss(s, "scm", &taps)?;
            descend(s, total, &[&params], &SGD)
        })
        .unwrap()
    });
}

/// Nets of the alternating probe.
struct Nets {
    generator: Net,
    fake: Net,
    critic: Net,
}

/// `x + sigma eps` with sigma as a further column.
fn noised<'c>(x: Var<'c>, sigma: Var<'c>, eps: Var<'c>) -> Var<'c> {
    let sigma = sigma.unsqueeze(&[1]);
    (x + sigma * eps).concat(&[sigma], 1)
}

/// The exact denoiser of eight Gaussians of deviation 0.15 on a circle of radius 2.
fn real_denoised<'c>(x: Var<'c>, sigma: Var<'c>) -> Var<'c> {
    let angles = (0..8).map(|i| f64::from(i) * std::f64::consts::FRAC_PI_4);
    let centres: Vec<f64> = angles.flat_map(|a| [2.0 * a.cos(), 2.0 * a.sin()]).collect();
    let centres = x.cx().floats(&[8, 2], &centres);
    let noise = sigma.unsqueeze(&[1]).square();
    let variance = noise + 0.0225;
    let distance = (x.unsqueeze(&[1]) - centres).square().sum(&[-1]);
    let share = (-distance / (variance * 2.0)).softmax(-1);
    (x * 0.0225 + noise * share.matmul(centres)) / variance
}

impl Nets {
    /// The fake score net and the critic follow the generator.
    fn d_step(&self, float: DType) -> Result<Step, DistillError> {
        build_step("fake_and_critic", float, |s| {
            let (z, eps) = (s.batch("z", float, &[B, 2])?, s.batch("eps", float, &[B, 2])?);
            let (sigma, data) = (s.batch("sigma", float, &[B])?, s.batch("data", float, &[B, 2])?);
            let generator = s.params("generator", &self.generator, StateRole::Frozen)?;
            let fake = s.params("fake", &self.fake, StateRole::Parameter)?;
            let critic = s.params("critic", &self.critic, StateRole::Parameter)?;
            let x = apply(s, &self.generator, z, &generator)?.stop_gradient();
            let denoised = apply(s, &self.fake, noised(x, sigma, eps), &fake)?;
            let weight = (sigma.square() + 0.0225) / (sigma * 0.15).square();
            let dsm = loss(s, "dsm", &[("denoised", denoised), ("sample", x), ("weight", weight)])?;
            let (on_fake, on_real) = (apply(s, &self.critic, x, &critic)?, apply(s, &self.critic, data, &critic)?);
            let gan = loss(s, "gan_critic", &[("fake_score", on_fake), ("real_score", on_real)])?;
            descend(s, dsm + gan, &[&fake, &critic], &AdamW::default())
        })
    }

    /// The generator follows the score difference and the critic, and its average follows it.
    fn g_step(&self, float: DType) -> Result<Step, DistillError> {
        build_step("generator", float, |s| {
            let (z, eps) = (s.batch("z", float, &[B, 2])?, s.batch("eps", float, &[B, 2])?);
            let sigma = s.batch("sigma", float, &[B])?;
            let generator = s.params("generator", &self.generator, StateRole::Parameter)?;
            let average = s.params("ema", &self.generator, StateRole::Average)?;
            let fake = s.params("fake", &self.fake, StateRole::Frozen)?;
            let critic = s.params("critic", &self.critic, StateRole::Frozen)?;
            let x = apply(s, &self.generator, z, &generator)?;
            let x_tau = noised(x.stop_gradient(), sigma, eps);
            let fake_denoised = apply(s, &self.fake, x_tau, &fake)?;
            let real = real_denoised(x_tau.slice(1, 0, 2), sigma);
            let dmd = loss(s, "dmd", &[("sample", x), ("fake_denoised", fake_denoised), ("real_denoised", real)])?;
            let gan = loss(s, "gan_generator", &[("fake_score", apply(s, &self.critic, x, &critic)?)])?;
            descend(s, dmd + gan * 0.1, &[&generator], &AdamW::default())?;
            s.average(&average, &generator, s.cx().scalar(0.9))
        })
    }
}

#[test]
fn distribution_matching_alternates_over_one_store() {
    let golden = &golden("probes.json")["dmd"];
    let first = &golden["first"];
    let nets = Nets {
        generator: perceptron([2, 16, 2], &first["generator"]),
        fake: perceptron([3, 16, 2], &first["fake"]),
        critic: perceptron([2, 16, 1], &first["critic"]),
    };
    for mut machine in machines() {
        let float = machine.float;
        let (d_step, g_step) = (machine.load(nets.d_step(float).unwrap()), machine.load(nets.g_step(float).unwrap()));
        for (i, reference) in golden["steps"].as_array().unwrap().iter().enumerate() {
            let d = machine.run(&d_step, tensors(float, &reference["d"]), 5e-3);
            machine.check(&format!("critic loss {i}"), &[d], &reference["d_loss"]);
            let g = machine.run(&g_step, tensors(float, &reference["g"]), 2e-3);
            machine.check(&format!("generator loss {i}"), &[g], &reference["g_loss"]);
        }
        for set in ["generator", "fake", "critic", "ema"] {
            machine.check_set(set, &golden["final"][set]);
        }
    }
}

#[test]
fn gru_student_trains_and_decodes_as_in_torch() {
    let golden = &golden("probes.json")["gru"];
    let (vocab, width, hidden, length) = (7, 5, 6, 4);
    let net = gru(vocab, width, hidden, length, 0).unwrap().reweighted(&tensors(DType::F32, &golden["first"])).unwrap();
    follow(golden, 0.5, |float| {
        build_step("gru", float, |s| {
            let tokens = s.batch("tokens", DType::I64, &[B, length])?;
            let targets = s.batch("targets", DType::I64, &[B, length])?;
            let params = s.params("student", &net, StateRole::Parameter)?;
            let state = s.cx().full(0.0, float, &[B, hidden]);
            let logits = net.apply(s.cx(), &[tokens, state], &params, Mode::Training)?.get("logits")?;
            let taps =
                [("student_logits", logits.reshape(&[B * length, vocab])), ("labels", targets.reshape(&[B * length]))];
            let total = loss(s, "ce", &taps)?;
            descend(s, total, &[&params], &SGD)
        })
        .unwrap()
    });
    // One token a run, the hidden state carried by the host.
    let cell = gru(vocab, width, hidden, 1, 0).unwrap().with_weights(&tensors(DType::F32, &golden["final"])).unwrap();
    let mut decoded = vec![vec![]; vocab];
    let mut token = Tensor::new([vocab, 1], (0..vocab as i64).collect::<Vec<_>>()).unwrap();
    let mut state = Tensor::zeros(DType::F32, [vocab, hidden]).unwrap();
    for _ in 0..8 {
        let mut out = cell.evaluate(&TensorMap::from([("tokens".into(), token), ("hidden".into(), state)])).unwrap();
        state = out.remove("hidden_next").unwrap();
        let logits = out["logits"].to_f64_vec().unwrap();
        let next: Vec<i64> = logits.chunks(vocab).map(|row| limbeck_distill::argmax(row) as i64).collect();
        decoded.iter_mut().zip(&next).for_each(|(row, &c)| row.push(c as f64));
        token = Tensor::new([vocab, 1], next).unwrap();
    }
    assert_eq!(decoded.concat(), common::numbers(&golden["decoded"]["data"]));
}

/// How the DOT probes update.
enum Update {
    Sum(Sgd),
    Dot(Dot),
}

/// A step of two losses on a net of two matrices `student/w1` and `student/w2`.
fn two_losses(update: &Update) -> Step {
    let float = DType::F64;
    let draw = |name: &str, shape: [usize; 2]| {
        let mut stream = noise::stream(5, 0, name);
        let values: Vec<f64> = (0..shape[0] * shape[1]).map(|_| f64::from(stream.normal() as f32)).collect();
        Tensor::from_f64(float, shape, &values).unwrap()
    };
    build_step("two_losses", float, |s| {
        let (x, target) = (s.batch("x", float, &[B, 3])?, s.batch("target", float, &[B, 2])?);
        let labels = s.batch("labels", DType::I64, &[B])?;
        let w1 = s.state("student/w1", draw("w1", [3, 4]), StateRole::Parameter)?;
        let w2 = s.state("student/w2", draw("w2", [4, 2]), StateRole::Parameter)?;
        let logits = x.matmul(w1).tanh().matmul(w2);
        let task = loss(s, "ce", &[("student_logits", logits), ("labels", labels)])?;
        let distillation = loss(s, "kd", &[("student_logits", logits), ("teacher_logits", target)])?;
        s.loss("loss", task + distillation);
        match update {
            Update::Sum(sgd) => {
                let vars = BTreeMap::from([("w1".to_owned(), w1), ("w2".to_owned(), w2)]);
                let params = ParamSet::new("student", vars);
                let group = Group { params: &params, lr_scale: 1.0, weight_decay: 1e-2 };
                s.minimise("", task + distillation, &[group], sgd, GradOptions::default())
            }
            Update::Dot(dot) => {
                let (g, k) = (s.cx().grad(task, &[w1, w2])?, s.cx().grad(distillation, &[w1, w2])?);
                let split = |name, value, i: usize| Split { name, value, task: Some(g[i]), distillation: Some(k[i]) };
                let splits = [split("student/w1", w1, 0), split("student/w2", w2, 1)];
                let next = dot.update(s, &splits, s.scalar("lr", 0.0)?)?;
                s.update(w1, next[0])?;
                s.update(w2, next[1])
            }
        }
    })
    .unwrap()
}

#[test]
fn dot_without_difference_is_sgd_on_the_sum() {
    let run = |update: &Update| {
        let mut machine = machines().remove(0);
        let loaded = machine.load(two_losses(update));
        for i in 0..100 {
            let mut stream = noise::stream(6, i, "batch");
            let mut normal = |n: usize| (0..n).map(|_| f64::from(stream.normal() as f32)).collect::<Vec<_>>();
            let feeds = TensorMap::from([
                ("x".into(), common::floats(DType::F64, &[B, 3], &normal(B * 3))),
                ("target".into(), common::floats(DType::F64, &[B, 2], &normal(B * 2))),
                (
                    "labels".into(),
                    Tensor::new([B], (0..B as i64).map(|r| (r + i as i64) % 2).collect::<Vec<_>>()).unwrap(),
                ),
            ]);
            machine.run(&loaded, feeds, 0.05);
        }
        [machine.get("student/w1"), machine.get("student/w2")].map(|t| t.to_f64_vec().unwrap()).concat()
    };
    let sum = run(&Update::Sum(Sgd { momentum: 0.9, nesterov: false }));
    let same = run(&Update::Dot(Dot { momentum: 0.9, delta: 0.0, weight_decay: 1e-2 }));
    let apart = run(&Update::Dot(Dot { momentum: 0.9, delta: 0.075, weight_decay: 1e-2 }));
    let distance = |other: &[f64]| sum.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(distance(&same) <= 1e-7, "{:e}", distance(&same));
    assert!(distance(&apart) > 1e-3, "the difference of momenta has no effect");
}

#[test]
fn dot_follows_its_recurrence() {
    // Losses a w and b w^2 / 2 have the gradients a and b w.
    let (a, b, start, lr) = ([0.5, -1.0], [2.0, 0.75], [1.0, -0.5], 0.1);
    let (mu, delta, decay) = (0.9, 0.05, 0.02);
    for mut machine in machines() {
        let float = machine.float;
        let step = build_step("dot", float, |s| {
            let w = s.state("w", common::floats(float, &[2], &start), StateRole::Parameter)?;
            let (task, kd) =
                ((w * s.cx().floats(&[2], &a)).sum(&[]), (w.square() * s.cx().floats(&[2], &b)).sum(&[]) * 0.5);
            s.loss("loss", task + kd);
            let (g, k) = (s.cx().grad(task, &[w])?[0], s.cx().grad(kd, &[w])?[0]);
            let split = Split { name: "w", value: w, task: Some(g), distillation: Some(k) };
            let dot = Dot { momentum: mu, delta, weight_decay: decay };
            let next = dot.update(s, &[split], s.scalar("lr", 0.0)?)?;
            s.update(w, next[0])
        });
        let loaded = machine.load(step.unwrap());
        for _ in 0..2 {
            machine.run(&loaded, TensorMap::new(), lr);
        }
        let expected: Vec<f64> = (0..2)
            .map(|i| {
                let w0 = start[i];
                let (task0, kd0) = (a[i] + decay * w0, b[i] * w0);
                let w1 = w0 - lr * (task0 + kd0);
                let (task1, kd1) = (a[i] + decay * w1, b[i] * w1);
                w1 - lr * ((mu - delta) * task0 + task1 + (mu + delta) * kd0 + kd1)
            })
            .collect();
        machine.check("w", &machine.get("w").to_f64_vec().unwrap(), &serde_json::json!({ "data": expected }));
    }
}
