//! Whole train steps against torch in float64: alternating distribution matching over one store, a gradient penalty,
//! continuous-time consistency, a GRU. Each runs on the reference evaluator and on every engine.
//! `tests/golden/objectives/make_probes.py` holds the references.

mod common;

use common::golden;
use common::machine::{machines, machines_within};
use common::nets::{apply, loss, perceptron, tensors};
use limbeck_autodiff::Differentiate;
use limbeck_distill::models::gru;
use limbeck_distill::objective::{self, scm_tangents};
use limbeck_distill::optim::{AdamW, Optimiser, Sgd};
use limbeck_distill::{DistillError, GradOptions, Group, Mode, Net, ParamSet, Step, StepBuilder, build_step};
use limbeck_graph::Var;
use limbeck_runtime::StateRole;
use limbeck_tensor::{DType, Tensor, TensorMap};
use serde_json::Value;

const B: usize = 8;
const SGD: Sgd = Sgd { momentum: 0.0, nesterov: false };

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
    // Twenty alternating AdamW steps under weights up to 1/(0.1*0.15)^2: rounding grows to 2.3e-5 in float32.
    for mut machine in machines_within(5e-5) {
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
    for machine in machines().into_iter().filter(|m| m.float == DType::F32) {
        let cell = gru(vocab, width, hidden, 1, 0).unwrap();
        let mut cell = cell.with_weights(&tensors(DType::F32, &golden["final"])).unwrap();
        cell.bind_dims(&[("batch", vocab)]).unwrap();
        let mut decoded = vec![vec![]; vocab];
        let mut token = Tensor::new([vocab, 1], (0..vocab as i64).collect::<Vec<_>>()).unwrap();
        let mut state = Tensor::zeros(DType::F32, [vocab, hidden]).unwrap();
        for _ in 0..8 {
            let feeds = TensorMap::from([("tokens".into(), token), ("hidden".into(), state)]);
            let mut out = machine.infer(&cell, &feeds);
            state = out.remove("hidden_next").unwrap();
            let logits = out["logits"].to_f64_vec().unwrap();
            let next: Vec<i64> = logits.chunks(vocab).map(|row| limbeck_distill::argmax(row) as i64).collect();
            decoded.iter_mut().zip(&next).for_each(|(row, &c)| row.push(c as f64));
            token = Tensor::new([vocab, 1], next).unwrap();
        }
        assert_eq!(decoded.concat(), common::numbers(&golden["decoded"]["data"]), "{}", machine.name);
    }
}
