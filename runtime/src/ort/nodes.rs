//! Counts a model's nodes of Limbeck's own operators: a session that lacks kernels for them would not fail, it would run
//! the functions that the file defines them by.

use super::failed;
use crate::{RuntimeError, fused::DOMAIN};
use prost::Message;
use std::collections::BTreeMap;

#[derive(Message)]
struct Model {
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
}

#[derive(Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<Node>,
}

#[derive(Message)]
struct Node {
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(string, tag = "7")]
    domain: String,
    #[prost(message, repeated, tag = "5")]
    attributes: Vec<Attribute>,
}

#[derive(Message)]
struct Attribute {
    #[prost(message, optional, tag = "6")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "11")]
    graphs: Vec<Graph>,
}

/// Operator types of the domain with their numbers of nodes, subgraphs included.
pub(super) fn own(model: &[u8]) -> Result<BTreeMap<String, usize>, RuntimeError> {
    let model = Model::decode(model)
        .map_err(|e| failed("read the model", format!("not an ONNX file, or truncated or damaged: {e}")))?;
    let mut counts = BTreeMap::new();
    model.graph.iter().for_each(|graph| count(graph, &mut counts));
    Ok(counts)
}

fn count(graph: &Graph, counts: &mut BTreeMap<String, usize>) {
    for node in &graph.nodes {
        if node.domain == DOMAIN {
            *counts.entry(node.op_type.clone()).or_default() += 1;
        }
        let subgraphs = node.attributes.iter().flat_map(|a| a.graph.iter().chain(&a.graphs));
        subgraphs.for_each(|graph| count(graph, counts));
    }
}
