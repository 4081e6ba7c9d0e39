//! Compiling and scoring digit networks.

use anyhow::Result;
use limbeck_distill::data::Arrays;
use limbeck_distill::{accuracy, inference_form_for, predict};
use limbeck_graph::{Form, Graph};
use limbeck_runtime::{CompileOptions, Engine, Model, Program};
use limbeck_tensor::{Tensor, TensorMap};

/// Images that a scoring program takes at once.
pub const SCORE_BATCH: usize = 64;

/// An inference program for a fixed batch.
pub fn compile(graph: &Graph, engine: &dyn Engine, batch: usize) -> Result<Box<dyn Program>> {
    let bytes = inference_graph(graph, inference_form_for(engine), batch)?.to_bytes()?;
    Ok(engine.compile(&Model::new(bytes), &CompileOptions { threads: 1, ..CompileOptions::default() })?)
}

/// The graph for a fixed batch, in a form.
pub fn inference_graph(graph: &Graph, form: Form, batch: usize) -> Result<Graph> {
    let mut graph = graph.clone();
    graph.bind_dims(&[("batch", batch)])?;
    // Integer graphs hold no op that the fused form changes, and their own quantised types stay as they are.
    if graph.nodes().any(|(_, n)| n.op == "QLinearConv") { Ok(graph) } else { Ok(graph.lowered(form)?) }
}

/// A network's outputs over all images.
pub fn outputs(graph: &Graph, engine: &dyn Engine, x: &Tensor) -> Result<TensorMap> {
    let program = compile(graph, engine, SCORE_BATCH)?;
    Ok(predict(&*program, "x", x, SCORE_BATCH)?)
}

/// Accuracy of a network on labelled digits, 0..=1.
pub fn score(graph: &Graph, engine: &dyn Engine, data: &Arrays) -> Result<f64> {
    let mut out = outputs(graph, engine, data.get("x")?)?;
    let logits = out.remove("logits").ok_or_else(|| anyhow::anyhow!("the network has no output 'logits'"))?;
    Ok(accuracy(&logits, data.get("y")?)?)
}
