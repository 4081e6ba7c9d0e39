//! Stage 3: the student made small. Channels pruned by dependency group and recovered, a residual block taken out and
//! recovered, normalisation folded, everything quantised to int8; measured after each step.

use anyhow::{Context, Result, bail};
use limbeck_distill::Net;
use limbeck_exporters::{
    Calibration, ExportError, Method, Profile, PruneOptions, PruneTarget, QuantOptions, block_values, fold_batch_norm,
    model_cost, observed_values, prune, quantise, removable_blocks, remove_block, score_blocks, with_outputs,
};
use limbeck_graph::Graph;
use limbeck_runtime::Engine;
use limbeck_tensor::{DType, Tensor, TensorMap};
use std::time::Instant;

use super::Prepared;
use super::data::{PIXELS, SIDE};
use super::distil::{Teaching, train_student};
use super::engine::{compile, outputs, score};

/// Share of the channels of each group that stays: more than 40 % of the parameters go.
const KEEP: f64 = 0.75;
/// Runs of which the median latency is taken.
const LATENCY_RUNS: usize = 200;

/// The student after one step.
#[derive(Debug, Clone)]
pub struct Measured {
    /// What was done.
    pub stage: &'static str,
    /// Accuracy on the test digits, 0..=1.
    pub accuracy: f64,
    /// Trained numbers, buffers not counted.
    pub parameters: usize,
    /// Bytes of the ONNX file.
    pub bytes: usize,
    /// Median time of one image on one thread, in ms; NaN until it is measured.
    pub latency_ms: f64,
    /// Nodes that compute in integers and in floating point.
    pub nodes: (usize, usize),
}

/// A compressed student.
pub struct Compressed {
    /// After each step.
    pub stages: Vec<Measured>,
    /// The network of each step.
    graphs: Vec<Graph>,
    /// Folded, in float: what goes on learning.
    pub float: Net,
    /// In int8: the smallest form.
    pub int8: Graph,
    /// Name of the block that was taken out, with its score and the other blocks' scores.
    pub removed: (String, Vec<f64>),
    /// Ranges of the activations.
    pub calibration: Calibration,
}

/// Compresses a distilled student with its teacher's stored outputs.
pub fn compress(student: &Net, p: &Prepared, engine: &dyn Engine, seed: u64) -> Result<Compressed> {
    let mut graphs: Vec<Graph> = vec![];
    let mut stages: Vec<Measured> = vec![];
    let mut keep = |stage: &'static str, graph: &Graph, parameters: usize| -> Result<()> {
        stages.push(measure(stage, graph, parameters, engine, p)?);
        graphs.push(graph.clone());
        Ok(())
    };
    keep("distilled", student.graph(), student.parameter_count())?;

    let mut graph = student.graph().clone();
    graph.infer_types()?;
    let options = PruneOptions {
        target: PruneTarget::Channels(KEEP),
        round_to: 1,
        max_per_round: 1.0,
        ..PruneOptions::default()
    };
    let report = prune(&mut graph, &options)?;
    if report.parameters.1 >= report.parameters.0 {
        bail!("pruning removed nothing: {:?}", report.frozen);
    }
    let pruned = Net::from_graph(graph)?;
    keep("pruned", pruned.graph(), pruned.parameter_count())?;
    let recovered = train_student(&pruned, &p.pool, engine, Teaching::Recovery, 18, seed)?.net;
    keep("pruned, recovered", recovered.graph(), recovered.parameter_count())?;

    let calibration_x = p.split.calibration.get("x")?;
    let mut graph = recovered.graph().clone();
    graph.infer_types()?;
    let blocks = removable_blocks(&graph);
    let probed = with_outputs(&graph, &block_values(&graph, &blocks))?;
    let values = outputs(&probed, engine, calibration_x)?;
    let scores = score_blocks(&graph, &blocks, [Ok::<TensorMap, ExportError>(values)])?;
    let weakest = (0..scores.len()).min_by(|&a, &b| scores[a].total_cmp(&scores[b])).context("no removable block")?;
    let removed = (blocks[weakest].name.clone(), scores);
    remove_block(&mut graph, &blocks[weakest])?;
    let reduced = Net::from_graph(graph)?;
    keep("block removed", reduced.graph(), reduced.parameter_count())?;
    let recovered = train_student(&reduced, &p.pool, engine, Teaching::Recovery, 30, seed + 1)?.net;
    keep("block removed, recovered", recovered.graph(), recovered.parameter_count())?;

    let mut folded = recovered.graph().clone();
    fold_batch_norm(&mut folded)?;
    let float = Net::from_graph(folded)?;
    keep("normalisation folded", float.graph(), float.parameter_count())?;

    let mut observed = observed_values(float.graph())?;
    observed.retain(|n| n != "x");
    let probed = with_outputs(float.graph(), &observed)?;
    let mut calibration = Calibration::new(Method::MinMax);
    calibration.observe_all(&outputs(&probed, engine, calibration_x)?)?;
    calibration.observe("x", calibration_x)?;
    let profile = if engine.name() == "tract" { Profile::Tract } else { Profile::Server };
    let options = QuantOptions { profile, activations: DType::U8, ..QuantOptions::default() };
    let (int8, _) = quantise(float.graph(), &calibration, &options)?;
    keep("int8", &int8, float.parameter_count())?;
    Ok(Compressed { stages, graphs, float, int8, removed, calibration })
}

impl Compressed {
    /// Times each step's network on one image and one thread. Nothing else should run meanwhile.
    pub fn measure_latency(&mut self, engine: &dyn Engine) -> Result<()> {
        let image = Tensor::new([1, 1, SIDE, SIDE], vec![0.5f32; PIXELS])?;
        for (stage, graph) in self.stages.iter_mut().zip(&self.graphs) {
            let program = compile(graph, engine, 1)?;
            let mut times = Vec::with_capacity(LATENCY_RUNS);
            for _ in 0..LATENCY_RUNS {
                let start = Instant::now();
                program.infer(&[("x", &image)])?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            times.sort_by(f64::total_cmp);
            stage.latency_ms = times[times.len() / 2];
        }
        Ok(())
    }
}

/// What can be said of a step without a clock.
fn measure(
    stage: &'static str,
    graph: &Graph,
    parameters: usize,
    engine: &dyn Engine,
    p: &Prepared,
) -> Result<Measured> {
    let mut bound = graph.clone();
    bound.bind_dims(&[("batch", 1)])?;
    let cost = model_cost(&bound);
    Ok(Measured {
        stage,
        accuracy: score(graph, engine, &p.split.test)?,
        parameters,
        bytes: graph.to_bytes()?.len(),
        latency_ms: f64::NAN,
        nodes: (cost.int_nodes, cost.float_nodes),
    })
}
