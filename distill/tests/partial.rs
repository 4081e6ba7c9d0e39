//! A step that trains a part of a net and holds the rest as constants does to that part what the step does that keeps all
//! weights in the store.

use limbeck_distill::optim::Sgd;
use limbeck_distill::{GradOptions, Group, Net, Step, Trainer, build_step, lowering_for, models, objective};
use limbeck_runtime::{CompileOptions, StateRole, engines, noise};
use limbeck_tensor::{DType, Tensor, TensorMap};

const BATCH: usize = 4;

fn trains(name: &str) -> bool {
    ["block2", "fc"].iter().any(|start| name.starts_with(start))
}

fn step(net: &Net, constant: bool) -> Step {
    build_step("partial", DType::F32, |s| {
        let x = s.batch("x", DType::F32, &[BATCH, 3, 32, 32])?;
        let labels = s.class_labels("y", &[BATCH], 10)?;
        let params = s.params_where("student", net, StateRole::Parameter, &|name| !constant || trains(name))?;
        let trained = params.filter(trains);
        let student = s.apply(net, &[x], &params, &trained)?.first()?;
        let loss =
            objective::find("ce")?.loss(s.cx(), &[("student_logits", student), ("labels", labels)], &[], None)?;
        s.loss("loss", loss);
        let group = Group { params: &trained, lr_scale: 1.0, weight_decay: 0.0 };
        s.minimise("", loss, &[group], &Sgd { momentum: 0.9, nesterov: false }, GradOptions::default())
    })
    .unwrap()
}

fn rows() -> TensorMap {
    let mut stream = noise::stream(3, 0, "partial");
    let x = (0..BATCH * 3 * 32 * 32).map(|_| stream.normal() as f32).collect::<Vec<_>>();
    TensorMap::from([
        ("x".to_owned(), Tensor::new([BATCH, 3, 32, 32], x).unwrap()),
        ("y".to_owned(), Tensor::new([BATCH], vec![1i64, 7, 0, 3]).unwrap()),
    ])
}

#[test]
fn constant_layers_change_nothing_for_the_trained_ones() {
    let net = models::resnet8(5).unwrap();
    for engine in engines() {
        let run = |constant| {
            let mut step = step(&net, constant);
            step = step.lowered(lowering_for(engine)).unwrap();
            let mut trainer = Trainer::new(engine, &step, &CompileOptions::default(), 0).unwrap();
            let losses = [0, 1, 2].map(|_| trainer.run(&rows(), &[("lr", 0.05)]).unwrap()["loss"]);
            (losses, trainer)
        };
        let ((whole, kept), (part, held)) = (run(false), run(true));
        assert!(whole.iter().zip(&part).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs()), "{whole:?} {part:?}");
        assert!(part[2] < part[0], "{part:?}");
        let names: Vec<&str> = held.store().names().filter(|n| n.starts_with("student/")).collect();
        assert!(!names.is_empty() && names.iter().all(|n| trains(&n["student/".len()..])), "{names:?}");
        for name in names {
            let [a, b] = [&kept, &held].map(|t| t.store().get(name).unwrap().to_f64_vec().unwrap());
            let largest = a.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            let off = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off <= 1e-5 * largest.max(1e-3), "{} {name}: {off} of {largest}", engine.name());
        }
    }
}
