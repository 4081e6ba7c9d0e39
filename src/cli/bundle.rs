//! `limbeck bundle`: writes a bundle, says what one holds, and whether an engine reproduces its self-test.

use super::{output, tensors};
use anyhow::{Context, Result, bail};
use limbeck_distill::data::Dataset;
use limbeck_distill::recipe::{Loaded, Recipe};
use limbeck_distill::{Mode, Net, build_step};
use limbeck_exporters::{BundleContents, ModelContents, SelfTestContents, StepContents, write_bundle};
use limbeck_graph::{Form, Graph};
use limbeck_runtime::{Bundle, CompileOptions, RuntimeError, StateRole, TensorEntry, engine};
use limbeck_tensor::{DType, TensorMap};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Vectors of the self-test where none are given.
const SELF_TEST_ROWS: usize = 8;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Writes a bundle: a student with self-test vectors, and the train step of a recipe if it is to learn.
    Write(Write),
    /// What a bundle holds. Opening checks every size and hash.
    Info {
        /// Folder of the bundle.
        bundle: PathBuf,
    },
    /// Runs the self-test vectors on an engine. Exit code 3 when it does not reproduce them.
    SelfTest {
        /// Folder of the bundle.
        bundle: PathBuf,
        /// tract or ort.
        #[arg(long, default_value = "tract")]
        engine: String,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Write {
    /// The student: an ONNX model.
    model: PathBuf,
    /// New folder for the bundle.
    #[arg(long)]
    out: PathBuf,
    /// Inputs to make self-test vectors of: safetensors, or NAME=FILE.npy; repeatable. Not needed with a recipe.
    #[arg(long)]
    feeds: Vec<String>,
    /// Recipe whose train step the device learns with; its student must have this model's weights by name.
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// What the bundle is called; the model's file name if not given.
    #[arg(long)]
    name: Option<String>,
    /// Licence of the weights, as an SPDX expression.
    #[arg(long)]
    licence: String,
    /// What an application must do to raw data before it is fed.
    #[arg(long, default_value = "none")]
    preprocessing: String,
    /// Class names in the order of the logits, separated by commas.
    #[arg(long, value_delimiter = ',')]
    classes: Vec<String>,
}

pub(super) fn run(command: &Command, json: bool) -> Result<bool> {
    match command {
        Command::Write(args) => write(args, json),
        Command::Info { bundle } => info(bundle, json),
        Command::SelfTest { bundle, engine } => self_test(bundle, engine, json),
    }
}

fn write(args: &Write, json: bool) -> Result<bool> {
    let loaded = args.recipe.as_deref().map(Recipe::load).transpose()?;
    let net = Net::from_graph(Graph::read(&args.model)?)?;
    let feeds = self_test_feeds(args, loaded.as_ref(), &net)?;
    let (model, mut state) = serving(&net, &feeds)?;
    let mut steps = vec![];
    for (form, kind) in loaded
        .iter()
        .flat_map(|_| [(Form::Fused, limbeck_runtime::Form::Fused), (Form::Portable, limbeck_runtime::Form::Portable)])
    {
        let Some(loaded) = &loaded else { break };
        let step = loaded.step(form)?;
        for (name, first) in &step.initial {
            // The student's weights are those of the model, not the recipe's first ones.
            if !state.contains_key(name) {
                state.insert(name.clone(), first.clone());
            }
        }
        let unknown = step.manifest.state.iter().find(|s| {
            s.role == StateRole::Parameter && s.name.starts_with("student/") && state[&s.name].shape() != s.shape
        });
        if let Some(entry) = unknown {
            bail!(
                "the recipe's student has {} of shape {:?}, the model another: they are different nets",
                entry.name,
                entry.shape
            );
        }
        let predicted_bytes = step.memory_plan()?.peak_bytes;
        steps.push(StepContents { form: kind, onnx: step.bytes()?, manifest: step.manifest, predicted_bytes });
    }
    let mut graph = net.graph().clone();
    tensors::shape_inputs(&mut graph, &feeds)?;
    let outputs = graph.evaluate(&feeds)?;
    let stem = args.model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let manifest = write_bundle(
        &args.out,
        &BundleContents {
            name: args.name.clone().unwrap_or(stem),
            licence: args.licence.clone(),
            provenance: BTreeMap::from([
                ("model".into(), args.model.display().to_string()),
                ("made_by".into(), concat!("limbeck ", env!("CARGO_PKG_VERSION")).into()),
            ]),
            preprocessing: args.preprocessing.clone(),
            classes: args.classes.clone(),
            model,
            state,
            steps,
            self_test: SelfTestContents {
                inputs: feeds,
                outputs,
                tolerances: BTreeMap::from([("float32".into(), 1e-4), ("float16".into(), 1e-2)]),
            },
            ..BundleContents::default()
        },
    )?;
    output::print(
        &json!({
            "written": args.out.display().to_string(), "name": manifest.name, "files": manifest.files().count(),
            "bytes": manifest.files().map(|f| f.bytes).sum::<u64>(),
            "steps": manifest.steps.iter().map(|s| format!("{} ({})", s.name, s.form)).collect::<Vec<_>>(),
        }),
        json,
    );
    Ok(true)
}

/// The inputs of the self-test: those given, or the first rows of the recipe's data.
fn self_test_feeds(args: &Write, loaded: Option<&Loaded>, net: &Net) -> Result<TensorMap> {
    if !args.feeds.is_empty() {
        return tensors::read_feeds(&args.feeds);
    }
    let loaded = loaded.context("give --feeds to make self-test vectors of, or a --recipe with data")?;
    let rows: Vec<usize> = (0..SELF_TEST_ROWS.min(loaded.train.len())).collect();
    let data = loaded.train.batch(&rows)?;
    let inputs = &loaded.recipe.student.inputs;
    let graph = net.graph();
    let fed = graph.inputs.iter().filter(|&&i| graph.initializer(i).is_none()).map(|&i| graph.name_of(i));
    fed.map(|name| {
        let source = inputs.get(name).and_then(|s| s.strip_prefix("data:"));
        let field = source.with_context(|| format!("the recipe feeds no '{name}' to its student"))?;
        Ok((name.to_owned(), data.get(field).with_context(|| format!("no field '{field}'"))?.clone()))
    })
    .collect()
}

/// The model that serves, at the batch of the self-test, its weights as state `student/...`.
fn serving(net: &Net, feeds: &TensorMap) -> Result<(ModelContents, TensorMap)> {
    let step = build_step("serve", DType::F32, |s| {
        let graph = net.graph();
        let mut inputs = vec![];
        for &input in graph.inputs.iter().filter(|&&i| graph.initializer(i).is_none()) {
            let name = graph.name_of(input);
            let fed = feeds.get(name).ok_or_else(|| limbeck_distill::DistillError::Net {
                reason: format!("no self-test vectors for the input '{name}'; give them with --feeds"),
            })?;
            inputs.push(s.batch(name, fed.dtype(), fed.shape())?);
        }
        let params = s.params("student", net, StateRole::Parameter)?;
        let out = net.apply(s.cx(), &inputs, &params, Mode::Inference)?;
        for &output in &graph.outputs {
            s.metric(graph.name_of(output), out.get(graph.name_of(output))?);
        }
        Ok(())
    })?;
    let graph = step.graph.lowered(Form::Portable)?;
    let entry = |name: &str| -> Result<TensorEntry> {
        let id = graph.require(name)?;
        let dtype = graph.ty(id).with_context(|| format!("'{name}' has no type"))?.dtype.name().into();
        Ok(TensorEntry { name: name.into(), dtype, shape: graph.shape(id)? })
    };
    let model = ModelContents {
        onnx: graph.to_bytes()?,
        inputs: step.manifest.batch.clone(),
        outputs: step.manifest.metrics.iter().map(|name| entry(name)).collect::<Result<_>>()?,
        manifest: Some(step.manifest),
    };
    Ok((model, step.initial))
}

fn info(bundle: &Path, json: bool) -> Result<bool> {
    let bundle = Bundle::open(bundle)?;
    let m = bundle.manifest();
    let steps: Vec<_> = m
        .steps
        .iter()
        .map(|s| json!({"name": s.name, "form": s.form.to_string(), "predicted_bytes": s.predicted_bytes}))
        .collect();
    let files: Vec<_> = m.files().map(|f| json!({"file": f.file, "bytes": f.bytes, "sha256": f.sha256})).collect();
    output::print(
        &json!({
            "name": m.name, "licence": m.licence, "provenance": m.provenance,
            "preprocessing": m.preprocessing, "classes": m.classes,
            "steps": steps, "files": files, "commits": bundle.ledger()?.len(),
        }),
        json,
    );
    Ok(true)
}

fn self_test(bundle: &Path, name: &str, json: bool) -> Result<bool> {
    let bundle = Bundle::open(bundle)?;
    let report = match bundle.self_test(engine(name)?, &CompileOptions::default()) {
        Err(error @ RuntimeError::SelfTest { .. }) => {
            output::print(&json!({"engine": name, "reproduced": false, "reason": error.to_string()}), json);
            return Ok(false);
        }
        report => report?,
    };
    let outputs: Vec<_> = report
        .outputs
        .iter()
        .map(|o| json!({"output": o.name, "rows": o.rows, "difference": o.difference, "tolerance": o.tolerance}))
        .collect();
    let facts = json!({"engine": report.engine, "provider": report.provider, "reproduced": true, "outputs": outputs});
    output::print(&facts, json);
    Ok(true)
}
