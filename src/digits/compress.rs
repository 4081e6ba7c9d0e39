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
use limbeck_tensor::{DType, TensorMap};
use std::time::Instant;

use super::Prepared;
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
    /// Median time of one image on one thread, in ms.
    pub latency_ms: f64,
    /// Nodes that compute in integers and in floating point.
    pub nodes: (usize, usize),
}

/// A compressed student.
pub struct Compressed {
    /// After each step.
    pub stages: Vec<Measured>,
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
    let mut stages = vec![measure("distilled", student, engine, p)?];

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
    stages.push(measure("pruned", &pruned, engine, p)?);
    let recovered = train_student(&pruned, &p.pool, engine, Teaching::Recovery, 18, seed)?.net;
    stages.push(measure("pruned, recovered", &recovered, engine, p)?);

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
    stages.push(measure("block removed", &reduced, engine, p)?);
    let recovered = train_student(&reduced, &p.pool, engine, Teaching::Recovery, 30, seed + 1)?.net;
    stages.push(measure("block removed, recovered", &recovered, engine, p)?);

    let mut folded = recovered.graph().clone();
    fold_batch_norm(&mut folded)?;
    let float = Net::from_graph(folded)?;
    stages.push(measure("normalisation folded", &float, engine, p)?);

    let mut observed = observed_values(float.graph())?;
    observed.retain(|n| n != "x");
    let probed = with_outputs(float.graph(), &observed)?;
    let mut calibration = Calibration::new(Method::MinMax);
    calibration.observe_all(&outputs(&probed, engine, calibration_x)?)?;
    calibration.observe("x", calibration_x)?;
    let profile = if engine.name() == "tract" { Profile::Tract } else { Profile::Server };
    let options = QuantOptions { profile, activations: DType::U8, ..QuantOptions::default() };
    let (int8, _) = quantise(float.graph(), &calibration, &options)?;
    let mut last = measure_graph("int8", &int8, engine, p)?;
    last.parameters = float.parameter_count();
    stages.push(last);
    Ok(Compressed { stages, float, int8, removed, calibration })
}

fn measure(stage: &'static str, net: &Net, engine: &dyn Engine, p: &Prepared) -> Result<Measured> {
    let mut measured = measure_graph(stage, net.graph(), engine, p)?;
    measured.parameters = net.parameter_count();
    Ok(measured)
}

fn measure_graph(stage: &'static str, graph: &Graph, engine: &dyn Engine, p: &Prepared) -> Result<Measured> {
    let accuracy = score(graph, engine, &p.split.test)?;
    let program = compile(graph, engine, 1)?;
    let one = p.split.test.get("x")?.rows(0..1)?.aligned();
    let mut times = Vec::with_capacity(LATENCY_RUNS);
    for _ in 0..LATENCY_RUNS {
        let start = Instant::now();
        program.infer(&[("x", &one)])?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let mut bound = graph.clone();
    bound.bind_dims(&[("batch", 1)])?;
    let cost = model_cost(&bound);
    Ok(Measured {
        stage,
        accuracy,
        parameters: 0,
        bytes: graph.to_bytes()?.len(),
        latency_ms: times[times.len() / 2],
        nodes: (cost.int_nodes, cost.float_nodes),
    })
}
