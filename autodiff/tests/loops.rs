//! Gradients of Loop and Scan that stay loops: against central differences of the reference evaluator in float64 and against
//! the same loops unrolled, in both forms of lowering, written and read again; and what is refused.

mod common;

use common::loops::{CASES, LoopCase, body, looped, scan};
use limbeck_autodiff::{Differentiate, GradError, compose};
use limbeck_graph::{Cx, Form, Graph, ImportOptions, Var};
use limbeck_tensor::{DType, Tensor, TensorMap};
use std::collections::HashMap;

/// Step of the differences; their error is of the order of its square.
const STEP: f64 = 1e-5;

fn numbers(result: &TensorMap, name: &str) -> Vec<f64> {
    result[name].to_f64_vec().unwrap()
}

/// The largest difference between a gradient and the differences in each of its elements.
fn disagreement(case: &LoopCase, order: usize) -> f64 {
    let graph = case.graph(DType::F64, order).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let feeds = case.feeds(DType::F64);
    let exact = graph.evaluate(&feeds).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let mut worst = 0.0f64;
    for (name, x) in &feeds {
        let gradient = &exact[&format!("g.{name}")];
        assert_eq!(gradient.shape(), x.shape(), "{}: {name}", case.name);
        for (i, exact) in gradient.to_f64_vec().unwrap().into_iter().enumerate() {
            let loss = |step: f64| {
                let mut moved = x.to_f64_vec().unwrap();
                moved[i] += step;
                let mut feeds = feeds.clone();
                feeds.insert(name.clone(), Tensor::new(x.shape(), moved).unwrap());
                numbers(&graph.evaluate(&feeds).unwrap(), "loss")[0]
            };
            let numeric = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
            let error = (numeric - exact).abs() / exact.abs().max(1.0);
            worst = if error.is_nan() { f64::NAN } else { worst.max(error) };
        }
    }
    worst
}

#[test]
fn gradients_agree_with_differences() {
    for case in CASES {
        let d = disagreement(case, 1);
        assert!(d < 1e-8, "{}: off by {d:e}", case.name);
    }
}

#[test]
fn gradients_can_be_differentiated_again() {
    for case in CASES {
        let d = disagreement(case, 2);
        assert!(d < 1e-7, "{}: off by {d:e}", case.name);
    }
}
