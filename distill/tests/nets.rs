//! Nets in training and inference: what is trained, batch statistics of the rows that count, frozen normalisation,
//! Dropout, two views, other float widths.

mod common;

use common::fit::SGD;
use limbeck_distill::models::Layers;
use limbeck_distill::optim::AdamW;
use limbeck_distill::{DistillError, GradOptions, Group, Mode, Net, ParamSet, Step, Trainer, Training, build_step};
use limbeck_graph::{Cx, Form, Graph, Var};
use limbeck_runtime::{CompileOptions, StateRole, engines, noise};
use limbeck_tensor::{DType, Tensor, TensorMap};
use std::collections::BTreeMap;

/// Convolution, batch normalisation, ReLU, pooling, a classifier of three.
fn normalising() -> Net {
    Net::build("normalising", |cx| {
        let l = Layers::new(cx, 1);
        let h = l.conv("conv", l.input("x", &[2, 3, 3]), (2, 4), 3, 1);
        let h = l.tap("normal", l.batch_norm("bn", h, 4, 1.5)).relu();
        cx.output("logits", l.linear("fc", l.pool(h), (4, 3), 1.0));
        Ok(())
    })
    .unwrap()
}

fn images(rows: usize) -> Tensor {
    let mut stream = noise::stream(3, 0, "images");
    let values: Vec<f64> = (0..rows * 18).map(|_| f64::from(stream.normal() as f32)).collect();
    Tensor::from_f64(DType::F64, [rows, 2, 3, 3], &values).unwrap()
}

/// Rows of a tensor under those of another.
fn under(a: &Tensor, b: &Tensor) -> Tensor {
    limbeck_distill::concat_rows(&[a.clone(), b.clone()]).unwrap()
}

fn values(map: &TensorMap, name: &str) -> Vec<f64> {
    map[name].to_f64_vec().unwrap()
}

fn assert_close(found: &[f64], expected: &[f64], what: &str) {
    let e = common::relative_error(found, expected, 0.0);
    assert!(e < 1e-12, "{what}: {found:?} instead of {expected:?}");
}

/// `normal`, the running statistics and the convolution's gradient after a step on `x` with these row weights.
fn statistics(net: &Net, x: &Tensor, weights: Option<&[f64]>) -> TensorMap {
    let step = build_step("statistics", DType::F64, |s| {
        let x = s.batch("x", DType::F64, x.shape())?;
        let w = weights.map(|w| s.batch("row_weight", DType::F64, &[w.len()])).transpose()?;
        let params = s.params("student", net, StateRole::Parameter)?;
        let out = s.apply(net, &[x], &params, &params)?;
        let rows = out.first()?.square().sum(&[-1]);
        let loss = w.map_or_else(|| rows.mean(&[]), |w| (rows * w).sum(&[]) / w.sum(&[]));
        s.loss("loss", loss);
        s.cx().output("normal", out.get("normal")?);
        let group = Group { params: &params, lr_scale: 1.0, weight_decay: 0.0 };
        s.minimise("", loss, &[group], &SGD, GradOptions::default())
    })
    .unwrap();
    let mut feeds = step.initial.clone();
    feeds.insert("x".into(), x.clone());
    feeds.insert("lr".into(), Tensor::scalar(1f64));
    if let Some(w) = weights {
        feeds.insert("row_weight".into(), Tensor::from_f64(DType::F64, [w.len()], w).unwrap());
    }
    step.graph.evaluate(&feeds).unwrap()
}

#[test]
fn rows_of_weight_zero_leave_no_trace_in_batch_statistics() {
    let (net, real) = (normalising(), images(3));
    let junk = Tensor::from_f64(DType::F64, [2, 2, 3, 3], &[7.0; 36]).unwrap();
    let alone = statistics(&net, &real, None);
    let padded = statistics(&net, &under(&real, &junk), Some(&[1.0, 1.0, 1.0, 0.0, 0.0]));
    for name in ["loss", "student/bn.running_mean.next", "student/bn.running_var.next", "student/conv.weight.next"] {
        assert_close(&values(&padded, name), &values(&alone, name), name);
    }
    let normal = values(&alone, "normal");
    assert_close(&values(&padded, "normal")[..normal.len()], &normal, "normal");
    // A row of weight 2 is a row that occurs twice.
    let twice = statistics(&net, &under(&real, &real.rows(0..1).unwrap()), None);
    let weighted = statistics(&net, &real, Some(&[2.0, 1.0, 1.0]));
    for name in ["loss", "student/bn.running_mean.next", "student/bn.running_var.next", "student/conv.weight.next"] {
        assert_close(&values(&weighted, name), &values(&twice, name), name);
    }
}

#[test]
fn row_weights_of_other_rows_are_refused() {
    let net = normalising();
    let built = build_step("other", DType::F32, |s| {
        let x = s.batch("x", DType::F32, &[4, 2, 3, 3])?;
        s.batch("row_weight", DType::F32, &[3])?;
        let params = s.params("student", &net, StateRole::Parameter)?;
        s.apply(&net, &[x], &params, &params).map(|_| ())
    });
    let error = built.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("BatchNormalization") && error.contains("4 rows"), "{error}");
}

#[test]
fn normalisation_whose_weights_are_frozen_runs_as_in_inference() {
    let net = normalising();
    let run = |frozen: &[&str]| {
        let step = build_step("frozen", DType::F32, |s| {
            let x = s.batch("x", DType::F32, &[3, 2, 3, 3])?;
            let params = s.params("student", &net, StateRole::Parameter)?;
            let trained = params.filter(|name| !frozen.contains(&name));
            let loss = s.apply(&net, &[x], &params, &trained)?.first()?.sum(&[]);
            s.loss("loss", loss);
            let group = Group { params: &trained, lr_scale: 1.0, weight_decay: 0.0 };
            s.minimise("", loss, &[group], &SGD, GradOptions::default())
        })
        .unwrap();
        let updated = step.manifest.state.iter().filter(|e| !e.output.is_empty()).map(|e| e.name.clone());
        let updated: Vec<String> = updated.collect();
        let mut feeds = step.initial.clone();
        feeds.insert("x".into(), images(3).cast(DType::F32).unwrap());
        feeds.insert("lr".into(), Tensor::scalar(0f32));
        (values(&step.graph.evaluate(&feeds).unwrap(), "loss")[0], updated)
    };
    let inference = {
        let mut graph = net.graph().clone();
        graph.bind_dims(&[("batch", 3)]).unwrap();
        let feeds = TensorMap::from([("x".into(), images(3).cast(DType::F32).unwrap())]);
        values(&graph.evaluate(&feeds).unwrap(), "logits").iter().sum::<f64>()
    };
    let (loss, updated) = run(&["bn.weight", "bn.bias"]);
    assert!((loss - inference).abs() < 1e-5, "{loss} instead of {inference}");
    assert_eq!(updated, ["student/conv.weight", "student/fc.bias", "student/fc.weight"]);
    // One of the two is enough to learn from the batch.
    let (loss, updated) = run(&["bn.weight"]);
    assert!((loss - inference).abs() > 1e-2, "{loss}");
    assert!(updated.contains(&"student/bn.running_mean".to_owned()), "{updated:?}");
}

#[test]
fn two_views_move_running_statistics_one_after_the_other() {
    let net = normalising();
    let (a, b) = (images(6).rows(0..3).unwrap(), images(6).rows(3..6).unwrap());
    let step = build_step("views", DType::F64, |s| {
        let (x, y) = (s.batch("x", DType::F64, a.shape())?, s.batch("y", DType::F64, b.shape())?);
        let params = s.params("student", &net, StateRole::Parameter)?;
        for view in [x, y] {
            s.apply(&net, &[view], &params, &params)?;
        }
        s.loss("loss", x.mean(&[]));
        Ok(())
    })
    .unwrap();
    let mut feeds = step.initial.clone();
    feeds.extend([("x".to_owned(), a.clone()), ("y".to_owned(), b.clone())]);
    let found = step.graph.evaluate(&feeds).unwrap();
    // Each view moves statistics m to 0.9 m + 0.1 s; both are seen alone from m = 0 (mean) and 1 (variance).
    for (name, start) in [("bn.running_mean", 0.0), ("bn.running_var", 1.0)] {
        let output = format!("student/{name}.next");
        let (one, two) = (statistics(&net, &a, None), statistics(&net, &b, None));
        let expected: Vec<f64> = values(&one, &output)
            .iter()
            .zip(values(&two, &output))
            .map(|(after_a, after_b)| after_b + 0.9 * (after_a - start))
            .collect();
        let momentum_error = common::relative_error(&values(&found, &output), &expected, 0.0);
        // The attribute is a float32: 0.9 within 3e-8.
        assert!(momentum_error < 1e-7, "{name}: {momentum_error:e}");
    }
}

/// A layer exported in training mode: normalisation and Dropout of a quarter.
fn in_training_mode() -> Net {
    let cx = Cx::new("layer", DType::F32);
    let l = Layers::new(&cx, 2);
    let x = l.input("x", &[2, 3, 3]);
    let parts = ["scale", "bias", "mean", "var"].map(|name| {
        let value = if name == "var" { 4.0 } else { 0.5 };
        l.constant(name, &[2], value)
    });
    let operands: Vec<Option<Var<'_>>> = std::iter::once(x).chain(parts).map(Some).collect();
    let h = cx.op_n("", "BatchNormalization", &operands, &[("training_mode", 1i64.into())], 3)[0];
    let flag = cx.constant(Tensor::bools([], &[true]).unwrap());
    let y = cx.op("Dropout", &[h, cx.scalar(0.25), flag], &[]);
    cx.output("dropped", y);
    Net::from_graph(cx.finish().unwrap()).unwrap()
}

#[test]
fn inference_normalises_by_running_statistics_and_drops_nothing_whatever_the_file_says() {
    let net = in_training_mode();
    let cx = Cx::new("inference", DType::F32);
    let x = cx.input("x", DType::F32, &[3, 2, 3, 3]);
    let out = net.apply(&cx, &[x], &ParamSet::new("teacher", BTreeMap::new()), Mode::Inference).unwrap();
    assert!(out.statistics.is_empty());
    cx.output("out", out.first().unwrap());
    let x = images(3).cast(DType::F32).unwrap();
    let found = cx.finish().unwrap().evaluate(&TensorMap::from([("x".into(), x.clone())])).unwrap();
    let expected: Vec<f64> =
        x.to_f64_vec().unwrap().iter().map(|x| (x - 0.5) * 0.5 / (4.0f64 + 1e-5).sqrt() + 0.5).collect();
    let e = common::relative_error(&values(&found, "out"), &expected, 0.0);
    assert!(e < 1e-6, "{e:e}");
}

#[test]
fn training_drops_by_a_noise_input() {
    let net = in_training_mode();
    let shape = [3, 2, 3, 3];
    let step = build_step("drop", DType::F32, |s| {
        let x = s.batch("x", DType::F32, &shape)?;
        let params = s.params("student", &net, StateRole::Parameter)?;
        let out = s.apply(&net, &[x], &params, &params)?;
        s.loss("loss", out.first()?.sum(&[]));
        s.cx().output("y", out.first()?);
        Ok(())
    })
    .unwrap();
    let [entry] = &step.manifest.noise[..] else { panic!("{:?}", step.manifest.noise) };
    assert_eq!((entry.name.as_str(), &entry.shape[..]), ("student/dropped.noise", &shape[..]));
    let noise = noise::draw(1, 0, entry).unwrap();
    let run = |noise: &Tensor| {
        let mut feeds = step.initial.clone();
        feeds.extend([("x".to_owned(), images(3).cast(DType::F32).unwrap()), (entry.name.clone(), noise.clone())]);
        values(&step.graph.evaluate(&feeds).unwrap(), "y")
    };
    let kept = run(&Tensor::from_f64(DType::F32, shape, &[1.0; 54]).unwrap());
    let noise_values = noise.to_f64_vec().unwrap();
    let expected: Vec<f64> = kept.iter().zip(&noise_values).map(|(y, u)| if *u < 0.25 { 0.0 } else { *y }).collect();
    assert_eq!(run(&noise), expected);
    assert!(noise_values.iter().any(|u| *u < 0.25) && noise_values.iter().any(|u| *u >= 0.25));
}

#[test]
fn dropout_without_noise_is_refused_in_training() {
    let net = in_training_mode();
    let cx = Cx::new("training", DType::F32);
    let x = cx.input("x", DType::F32, &[3, 2, 3, 3]);
    let set = ParamSet::new("student", BTreeMap::new());
    let message = |r: Result<limbeck_distill::Outputs<'_>, DistillError>| r.map(|_| ()).unwrap_err().to_string();
    let error = message(net.apply(&cx, &[x], &set, Mode::Training));
    assert!(error.contains("'dropped'") && error.contains("StepBuilder::apply"), "{error}");
    let error = message(net.apply_training(&cx, &[x], &set, &Training::default()));
    assert!(error.contains("noise"), "{error}");
}

#[test]
fn what_sets_operators_up_is_not_trained() {
    let cx = Cx::new("quantised", DType::F32);
    let l = Layers::new(&cx, 3);
    let x = l.input("x", &[3]);
    let weight = l.normal("weight", &[3, 2], 1.0);
    let scale = l.constant("scale", &[2], 0.1);
    let zero = cx.initializer("zero", Tensor::from_f64(DType::I8, [2], &[0.0; 2]).unwrap());
    let axis = [("axis", 1i64.into())];
    let q = cx.op("QuantizeLinear", &[weight, scale, zero], &axis);
    let w = cx.op("DequantizeLinear", &[q, scale, zero], &axis);
    let values = cx.initializer("values", Tensor::new([2], vec![0f32, 1.0]).unwrap());
    let hot = cx.op("OneHot", &[cx.ints(&[1]), cx.constant(Tensor::scalar(2i64)), values], &[]);
    cx.output("y", x.matmul(w) + hot);
    let net = Net::from_graph(cx.finish().unwrap()).unwrap();
    assert_eq!(net.parameters(), ["weight"]);
}

/// Rows are counted: the gradient of the sum of results for a bias.
#[test]
fn a_bias_that_its_file_holds_as_a_literal_is_not_folded_before_it_is_trained() {
    let cx = Cx::new("literal", DType::F32);
    let l = Layers::new(&cx, 3);
    let product = l.input("x", &[3]).matmul(l.normal("weight", &[3, 2], 1.0));
    let bias = cx.constant(Tensor::new([2], vec![0.5f32, -1.0]).unwrap());
    let name = bias.name();
    cx.output("y", product + bias.reshape(&[1, 2]));
    let net = Net::from_graph(cx.finish().unwrap()).unwrap();
    assert!(net.graph().is_literal(net.graph().find(&name).unwrap()));
    assert_eq!(net.parameters(), ["weight", &name]);
    let step = build_step("literal", DType::F32, |s| {
        let x = s.batch("x", DType::F32, &[5, 3])?;
        let params = s.params("student", &net, StateRole::Parameter)?;
        let loss = s.apply(&net, &[x], &params, &params)?.first()?.sum(&[]);
        s.loss("loss", loss);
        let group = Group { params: &params, lr_scale: 1.0, weight_decay: 0.0 };
        s.minimise("", loss, &[group], &SGD, GradOptions::default())
    })
    .unwrap();
    let mut feeds = step.initial.clone();
    feeds.insert("x".into(), Tensor::new([5, 3], vec![1f32; 15]).unwrap());
    feeds.insert("lr".into(), Tensor::scalar(0.1f32));
    let found = values(&step.graph.evaluate(&feeds).unwrap(), &format!("student/{name}.next"));
    let e = common::relative_error(&found, &[0.5 - 0.1 * 5.0, -1.0 - 0.1 * 5.0], 0.0);
    assert!(e < 1e-6, "{found:?}");
}

/// A linear layer of float64 with a constant and a Cast to its width.
fn double() -> Net {
    let cx = Cx::new("double", DType::F64);
    let x = cx.edit(|g| {
        let dims = vec!["batch".into(), limbeck_graph::Dim::Known(2)];
        g.add_input("x", limbeck_graph::TensorType::with_dims(DType::F64, dims))
    });
    let w = cx.initializer("weight", Tensor::new([2, 2], vec![0.1, -0.7, 1.0 / 3.0, 0.9]).unwrap());
    let b = cx.initializer("bias", Tensor::new([2], vec![0.1, 2.0 / 3.0]).unwrap());
    let h = cx.op("Cast", &[cx.var(x)], &[("to", i64::from(DType::F64.to_onnx()).into())]);
    cx.output("y", h.matmul(w) * cx.scalar(0.5) + b);
    Net::from_graph(cx.finish().unwrap()).unwrap()
}

fn double_step(net: &Net) -> Step {
    let mut step = build_step("double", DType::F32, |s| {
        let x = s.batch("x", DType::F32, &[3, 2])?;
        let params = s.params("student", net, StateRole::Parameter)?;
        let trained = params.filter(|name| name == "weight");
        let loss = s.apply(net, &[x], &params, &trained)?.first()?.square().mean(&[]);
        s.loss("loss", loss);
        let group = Group { params: &trained, lr_scale: 1.0, weight_decay: 0.0 };
        s.minimise("", loss, &[group], &AdamW::default(), GradOptions::default())
    })
    .unwrap();
    step.graph = step.graph.lowered(Form::Portable).unwrap();
    step
}

#[test]
fn a_float64_student_trains_in_float32_and_gets_its_weights_back() {
    let net = double();
    for engine in engines() {
        let mut t = Trainer::new(engine, &double_step(&net), &CompileOptions::default(), 1).unwrap();
        let x = Tensor::new([3, 2], vec![1f32, 2.0, -1.0, 0.5, 0.25, 3.0]).unwrap();
        t.run(&TensorMap::from([("x".into(), x)]), &[("lr", 0.01)]).unwrap();
        let weights = t.weights("student").unwrap();
        let graph: Graph = net.with_weights(&weights).unwrap();
        let of = |graph: &Graph, name: &str| graph.initializer(graph.find(name).unwrap()).unwrap().clone();
        // The trained weight is exactly what was trained; the other keeps the bits that float32 cannot hold.
        let trained = of(&graph, "weight");
        assert_eq!(trained.dtype(), DType::F64);
        assert_eq!(trained.to_f64_vec().unwrap(), weights["weight"].to_f64_vec().unwrap());
        assert_ne!(trained.bytes(), of(net.graph(), "weight").bytes());
        assert_eq!(of(&graph, "bias").bytes(), of(net.graph(), "bias").bytes(), "{}", engine.name());
    }
    let wrong = TensorMap::from([("bias".into(), Tensor::new([2], vec![1i64, 2]).unwrap())]);
    assert!(net.with_weights(&wrong).unwrap_err().to_string().contains("'bias' is int64[2]"));
}
