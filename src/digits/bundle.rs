//! Stage 4: the bundle that a device gets.

use anyhow::Result;
use limbeck_distill::Net;
use limbeck_exporters::{BundleContents, ModelContents, SelfTestContents, StepContents, write_bundle};
use limbeck_graph::Form;
use limbeck_runtime::{Engine, TensorEntry, noise};
use limbeck_tensor::{TensorMap, io::write_safetensors};
use std::collections::BTreeMap;
use std::path::Path;

use super::data::{CLASSES, SIDE, class_balanced, rows};
use super::engine::{SCORE_BATCH, outputs};
use super::field::{device_step, serving_step};
use super::nets::student;
use super::{Prepared, compress::Compressed};

/// Digits in the replay memory, per class.
const MEMORY_PER_CLASS: usize = 40;
/// A recipe for the student.
const RECIPE: &[u8] = include_bytes!("../../examples/digits.toml");
/// Vectors of the self-test.
const SELF_TEST_ROWS: usize = 16;

/// Writes the bundle of a compressed student to the new folder `folder`.
pub fn write(folder: &Path, c: &Compressed, p: &Prepared, engine: &dyn Engine, seed: u64) -> Result<()> {
    let net = &c.float;
    let serving = serving_step(net, Form::Portable)?;
    let mut state = serving.initial.clone();
    let mut steps = vec![];
    for (form, kind) in [(Form::Fused, limbeck_runtime::Form::Fused), (Form::Portable, limbeck_runtime::Form::Portable)]
    {
        let step = device_step(net, form)?;
        state.extend(step.initial.clone());
        steps.push(StepContents {
            form: kind,
            onnx: step.bytes()?,
            predicted_bytes: step.memory_plan()?.peak_bytes,
            manifest: step.manifest,
        });
    }
    let memory = class_balanced(&p.split.train, MEMORY_PER_CLASS, &mut noise::stream(seed, 0, "memory"))?;
    let memory_x = rows(&p.split.train, "x", &memory)?;
    let mut replay = TensorMap::new();
    replay.insert("logits".into(), logits(net, engine, &memory_x)?);
    replay.insert("y".into(), rows(&p.split.train, "y", &memory)?);
    replay.insert("x".into(), memory_x);
    let test_x = p.split.calibration.get("x")?.rows(0..SELF_TEST_ROWS)?.aligned();
    let mut feeds = TensorMap::new();
    feeds.insert("x".into(), test_x);
    // The reference evaluator is the oracle of the self-test: it is none of the engines that will be tested.
    let mut graph = net.graph().clone();
    graph.bind_dims(&[("batch", SELF_TEST_ROWS)])?;
    let expected = graph.evaluate(&feeds)?;
    let entry = |name: &str, shape: Vec<usize>| TensorEntry { name: name.into(), dtype: "float32".into(), shape };
    write_bundle(
        folder,
        &BundleContents {
            name: "digits".into(),
            licence: "MIT OR Apache-2.0".into(),
            provenance: BTreeMap::from([
                ("data".into(), "UCI handwritten digits 8x8, CC BY 4.0".into()),
                ("seed".into(), seed.to_string()),
                ("made_by".into(), concat!("limbeck ", env!("CARGO_PKG_VERSION")).into()),
            ]),
            preprocessing: "pixel values 0..16 divided by 16; [n, 1, 8, 8] float32".into(),
            classes: (0..CLASSES).map(|c| c.to_string()).collect(),
            model: ModelContents {
                onnx: serving.bytes()?,
                inputs: vec![entry("x", vec![SCORE_BATCH, 1, SIDE, SIDE])],
                outputs: vec![entry("logits", vec![SCORE_BATCH, CLASSES])],
                manifest: Some(serving.manifest),
            },
            state,
            steps,
            teacher: Some(p.teacher.net.graph().to_bytes()?),
            calibration: Some(serde_json::to_value(&c.calibration)?),
            self_test: SelfTestContents {
                inputs: feeds,
                outputs: expected,
                tolerances: BTreeMap::from([("float32".into(), 1e-4)]),
            },
            replay: Some(replay),
            gate: Some(p.split.calibration.tensors().clone()),
        },
    )?;
    Ok(())
}

/// Writes what others may want beside the bundle: the networks of split 0 as ONNX files in `models/`, its test digits
/// (`x`, `y`) with the shipped student's `logits` on this engine as `test-digits.safetensors`, and in `recipe/` what
/// `limbeck distill` needs to train the student again.
pub fn write_models(folder: &Path, c: &Compressed, p: &Prepared, engine: &dyn Engine) -> Result<()> {
    let models = folder.join("models");
    std::fs::create_dir_all(&models)?;
    for (file, graph) in [("teacher", p.teacher.net.graph()), ("student", c.float.graph()), ("student-int8", &c.int8)] {
        graph.write(models.join(format!("{file}.onnx")))?;
    }
    let mut digits = p.split.test.tensors().clone();
    digits.insert("logits".into(), logits(&c.float, engine, p.split.test.get("x")?)?);
    write_safetensors(&folder.join("test-digits.safetensors"), &digits)?;
    let recipe = folder.join("recipe");
    std::fs::create_dir_all(&recipe)?;
    limbeck_tensor::replace_file(&recipe.join("digits.toml"), RECIPE)?;
    student(0)?.graph().write(recipe.join("student.onnx"))?;
    write_safetensors(&recipe.join("train.safetensors"), p.split.train.tensors())?;
    Ok(write_safetensors(&recipe.join("validation.safetensors"), p.split.validation.tensors())?)
}

fn logits(net: &Net, engine: &dyn Engine, x: &limbeck_tensor::Tensor) -> Result<limbeck_tensor::Tensor> {
    let mut out = outputs(net.graph(), engine, x)?;
    out.remove("logits").ok_or_else(|| anyhow::anyhow!("the student has no output 'logits'"))
}
