//! Optimisers against those of torch in float64 and against their recurrences, on the reference evaluator and on every
//! engine. `tests/golden/objectives/make_probes.py` holds the references.

mod common;

use common::golden;
use common::machine::machines;
use common::nets::{apply, loss, perceptron, tensors};
use limbeck_autodiff::Differentiate;
use limbeck_distill::optim::{AdamW, Dot, Optimiser, Sgd, Split};
use limbeck_distill::{DistillError, GradOptions, Group, ParamSet, Step, build_step};
use limbeck_graph::Var;
use limbeck_runtime::{StateRole, noise};
use limbeck_tensor::{DType, Tensor, TensorMap};
use serde_json::Value;
use std::collections::BTreeMap;

const B: usize = 8;

/// A step on the net of the optimisers' probe: cross-entropy and distillation, `layer0` at half the rate.
fn optimised(golden: &Value, name: &str, float: DType) -> Result<Step, DistillError> {
    let net = perceptron([3, 6, 2], &golden["first"]);
    build_step(name, float, |s| {
        let (x, z) = (s.batch("x", float, &[B, 3])?, s.batch("teacher_logits", float, &[B, 2])?);
        let labels = s.batch("labels", DType::I64, &[B])?;
        let params = s.params("student", &net, StateRole::Parameter)?;
        let logits = apply(s, &net, x, &params)?;
        let task = loss(s, "ce", &[("student_logits", logits), ("labels", labels)])?;
        let distillation = loss(s, "kd", &[("student_logits", logits), ("teacher_logits", z)])?;
        s.loss("loss", task + distillation);
        let [slow, fast] = [true, false].map(|slow| params.filter(|n| n.starts_with("layer0") == slow));
        let group = |params, lr_scale| Group { params, lr_scale, weight_decay: 0.1 };
        let groups = [group(&slow, 0.5), group(&fast, 1.0)];
        let descend = |o: &dyn Optimiser| s.minimise("", task + distillation, &groups, o, GradOptions::default());
        match name {
            "sgd" => descend(&Sgd { momentum: 0.9, nesterov: false }),
            "nesterov" => descend(&Sgd { momentum: 0.9, nesterov: true }),
            "adamw" => descend(&AdamW::default()),
            _ => {
                let (names, wrt): (Vec<String>, Vec<Var<'_>>) =
                    params.iter().map(|(n, v)| (format!("student/{n}"), v)).unzip();
                let (g, k) = (s.cx().grad(task, &wrt)?, s.cx().grad(distillation, &wrt)?);
                let each = wrt.iter().zip(&names).zip(g.iter().zip(&k));
                let splits: Vec<Split<'_, '_>> = each
                    .map(|((value, name), (g, k))| Split {
                        name,
                        value: *value,
                        task: Some(*g),
                        distillation: Some(*k),
                    })
                    .collect();
                let dot = Dot { momentum: 0.9, delta: 0.05, weight_decay: 0.01 };
                let next = dot.update(s, &splits, s.scalar("lr", 0.0)?)?;
                wrt.iter().zip(next).try_for_each(|(v, next)| s.update(*v, next))
            }
        }
    })
}

#[test]
fn optimisers_end_where_those_of_torch_do() {
    let golden = &golden("probes.json")["optimisers"];
    for (name, lr) in [("sgd", 0.1), ("nesterov", 0.1), ("adamw", 0.02), ("dot", 0.05)] {
        for mut machine in machines() {
            let loaded = machine.load(optimised(golden, name, machine.float).unwrap());
            for feeds in golden["feeds"].as_array().unwrap() {
                machine.run(&loaded, tensors(machine.float, feeds), lr);
            }
            machine.check_set("student", &golden["final"][name]);
        }
    }
}

#[test]
fn dot_refuses_gradients_that_are_not_finite() {
    for mut machine in machines() {
        let float = machine.float;
        // The gradient of the root is infinite at 0, the loss is not.
        let step = build_step("dot", float, |s| {
            let w = s.state("w", common::floats(float, &[2], &[0.0, 1.0]), StateRole::Parameter)?;
            let task = w.sqrt().sum(&[]);
            s.loss("loss", task);
            let grad = s.cx().grad(task, &[w])?[0];
            let split = Split { name: "w", value: w, task: Some(grad), distillation: None };
            let next =
                Dot { momentum: 0.9, delta: 0.0, weight_decay: 0.0 }.update(s, &[split], s.scalar("lr", 0.0)?)?;
            s.update(w, next[0])
        });
        let loaded = machine.load(step.unwrap());
        machine.run(&loaded, TensorMap::new(), 0.0);
        assert_eq!(machine.get("w").to_f64_vec().unwrap(), [0.0, 1.0], "{}", machine.name);
        assert_eq!(machine.get("w.velocity_task").to_f64_vec().unwrap(), [0.0, 0.0], "{}", machine.name);
    }
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
