//! Floating point operations that the products of a train step take.

use anyhow::{Context, Result};
use limbeck::graph::{Graph, Node};

/// Operations of the convolutions and matrix products of a net and of their two gradients, a multiply-add being two. No
/// gradient with respect to the net's input is counted; all else (normalisation, activations, the update) is left out.
pub(crate) fn of_step(graph: &Graph) -> Result<f64> {
    let mut total = 0.0;
    for (_, node) in graph.nodes() {
        let passes = if node.input(0).is_some_and(|x| graph.inputs.contains(&x)) { 2.0 } else { 3.0 };
        total += passes * of_node(graph, node)?;
    }
    Ok(total)
}

/// Twice the output's elements times the length of the sums that each is, for a product; else 0.
fn of_node(graph: &Graph, node: &Node) -> Result<f64> {
    let shape = |i: usize| -> Result<Vec<usize>> {
        Ok(graph.shape(node.input(i).with_context(|| format!("{} lacks operand {i}", node.full_op()))?)?)
    };
    let length: usize = match node.op.as_str() {
        "Conv" => shape(1)?[1..].iter().product(),
        "MatMul" => *shape(0)?.last().context("MatMul of a scalar")?,
        "Gemm" => shape(0)?[usize::from(node.int("transA").unwrap_or(0) == 0)],
        _ => return Ok(0.0),
    };
    let output = graph.shape(node.output(0).context("a node without output")?)?;
    Ok(2.0 * output.iter().product::<usize>() as f64 * length as f64)
}
