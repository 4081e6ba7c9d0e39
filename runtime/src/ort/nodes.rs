//! What is read of a model's nodes before the library reads the model. Those of Limbeck's own operators are counted: a session
//! that lacks kernels for them would not fail, it would run the functions that the file defines them by.

use super::failed;
use crate::{RuntimeError, fused::DOMAIN};
use prost::{DecodeError, Message};
use std::collections::BTreeMap;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Model {
    #[prost(message, optional, tag = "7")]
    pub(super) graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    pub(super) opsets: Vec<OperatorSet>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct OperatorSet {
    #[prost(string, tag = "1")]
    pub(super) domain: String,
    #[prost(int64, tag = "2")]
    pub(super) version: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Graph {
    #[prost(message, repeated, tag = "1")]
    pub(super) nodes: Vec<Node>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Node {
    #[prost(string, repeated, tag = "1")]
    pub(super) inputs: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(super) outputs: Vec<String>,
    #[prost(string, tag = "4")]
    pub(super) op_type: String,
    #[prost(string, tag = "7")]
    pub(super) domain: String,
    #[prost(message, repeated, tag = "5")]
    pub(super) attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Attribute {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, optional, tag = "6")]
    pub(super) graph: Option<Graph>,
    #[prost(message, repeated, tag = "11")]
    pub(super) graphs: Vec<Graph>,
}

impl Node {
    fn subgraphs(&self) -> impl Iterator<Item = &Graph> {
        self.attributes.iter().flat_map(|a| a.graph.iter().chain(&a.graphs))
    }

    /// Names that it or a node of its subgraphs reads.
    pub(super) fn reads(&self) -> Vec<&str> {
        let inner = self.subgraphs().flat_map(|graph| &graph.nodes).flat_map(Node::reads);
        self.inputs.iter().map(String::as_str).chain(inner).collect()
    }
}

pub(super) fn damaged(e: DecodeError) -> RuntimeError {
    failed("read the model", format!("not an ONNX file, or truncated or damaged: {e}"))
}

/// Operator types of the domain with their numbers of nodes, subgraphs included.
pub(super) fn own(model: &[u8]) -> Result<BTreeMap<String, usize>, RuntimeError> {
    let model = Model::decode(model).map_err(damaged)?;
    let mut counts = BTreeMap::new();
    model.graph.iter().for_each(|graph| count(graph, &mut counts));
    Ok(counts)
}

fn count(graph: &Graph, counts: &mut BTreeMap<String, usize>) {
    for node in &graph.nodes {
        if node.domain == DOMAIN {
            *counts.entry(node.op_type.clone()).or_default() += 1;
        }
        node.subgraphs().for_each(|graph| count(graph, counts));
    }
}
