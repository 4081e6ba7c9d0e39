//! What ONNX Runtime is given of a model with Limbeck's own operators. Nodes are placed for the order in which it takes them:
//! not as they stand, but back from the ends, depth first. A train step in its own order would run the gradients of weights
//! last and keep all that they read until then. And matrix products become its own operator.

use super::nodes::{Model, Node, OperatorSet, damaged};
use crate::{
    RuntimeError,
    fused::{DOMAIN, op_of},
};
use limbeck_plan::placed_for_depth_first;
use prost::{
    DecodeError, Message,
    encoding::{self, DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field},
};
use std::{collections::HashMap, ops::Range};

/// Fields of a model, a graph and a node.
const GRAPH: u32 = 7;
const OPSETS: u32 = 8;
const NODE: u32 = 1;
const OP_TYPE: u32 = 4;
const OP_DOMAIN: u32 = 7;

/// The library's operator that does what Limbeck's does, with the same attributes.
const PRODUCT: &str = "FusedMatMul";
const LIBRARY: &str = "com.microsoft";

/// The model, rewritten. What it computes, and all that is not said above, stays as it is.
///
/// # Errors
/// A file that is no ONNX model, or damaged.
pub(super) fn for_library(model: &[u8]) -> Result<Vec<u8>, RuntimeError> {
    rewritten(model).map_err(damaged)
}

fn rewritten(model: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut written = Vec::with_capacity(model.len());
    for field in fields(model)? {
        if field.number == GRAPH {
            let graph = graph(&model[field.content])?;
            put(GRAPH, &graph, &mut written);
        } else {
            written.extend_from_slice(&model[field.whole]);
        }
    }
    if !Model::decode(model)?.opsets.iter().any(|opset| opset.domain == LIBRARY) {
        let opset = OperatorSet { domain: LIBRARY.into(), version: 1 };
        put(OPSETS, &opset.encode_to_vec(), &mut written);
    }
    Ok(written)
}

/// A graph with its nodes behind all else. Those that wait for each other are the library's to name.
fn graph(graph: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let (records, others): (Vec<Field>, Vec<Field>) = fields(graph)?.into_iter().partition(|f| f.number == NODE);
    let nodes: Vec<Node> = records.iter().map(|r| Node::decode(&graph[r.content.clone()])).collect::<Result<_, _>>()?;
    let placed = placed_for_depth_first(&makers(&nodes));
    let order = if placed.len() == nodes.len() { placed } else { (0..nodes.len()).collect() };
    let mut written = Vec::with_capacity(graph.len());
    others.into_iter().for_each(|field| written.extend_from_slice(&graph[field.whole]));
    for n in order {
        let record = &graph[records[n].content.clone()];
        if is_product(&nodes[n]) {
            put(NODE, &product(record)?, &mut written);
        } else {
            put(NODE, record, &mut written);
        }
    }
    Ok(written)
}

/// Whether a node is a product that the library has too, which knows no other order of axes than that of its factors' last.
fn is_product(node: &Node) -> bool {
    let own = node.domain == DOMAIN && op_of(&node.op_type) == Some(PRODUCT);
    own && !node.attributes.iter().any(|attribute| attribute.name.starts_with("perm"))
}

/// A node of Limbeck's product as one of the library's.
fn product(node: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut written = vec![];
    for field in fields(node)?.into_iter().filter(|field| ![OP_TYPE, OP_DOMAIN].contains(&field.number)) {
        written.extend_from_slice(&node[field.whole]);
    }
    encoding::string::encode(OP_TYPE, &PRODUCT.to_owned(), &mut written);
    encoding::string::encode(OP_DOMAIN, &LIBRARY.to_owned(), &mut written);
    Ok(written)
}

/// Appends a field that is a message.
fn put(number: u32, message: &[u8], to: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, to);
    encode_varint(message.len() as u64, to);
    to.extend_from_slice(message);
}

/// A field of a message: its number, and where it lies, with its number and length and without.
struct Field {
    number: u32,
    whole: Range<usize>,
    content: Range<usize>,
}

/// All fields of a message, in the order in which they lie there.
fn fields(message: &[u8]) -> Result<Vec<Field>, DecodeError> {
    let mut rest = message;
    let mut found = vec![];
    while !rest.is_empty() {
        let start = message.len() - rest.len();
        let (number, wire) = decode_key(&mut rest)?;
        let mut content = rest;
        if wire == WireType::LengthDelimited {
            decode_varint(&mut content)?;
        }
        // Which checks that the length is within the message.
        skip_field(wire, number, &mut rest, DecodeContext::default())?;
        let end = message.len() - rest.len();
        found.push(Field { number, whole: start..end, content: message.len() - content.len()..end });
    }
    Ok(found)
}

/// For each node, the nodes that make what it and its subgraphs read.
fn makers(nodes: &[Node]) -> Vec<Vec<usize>> {
    let made = nodes.iter().enumerate().flat_map(|(at, node)| node.outputs.iter().map(move |name| (name.as_str(), at)));
    let maker: HashMap<&str, usize> = made.filter(|(name, _)| !name.is_empty()).collect();
    nodes.iter().map(|node| node.reads().into_iter().filter_map(|name| maker.get(name).copied()).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::nodes::{Attribute, Graph};
    use super::*;

    fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> Node {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Node { op_type: op.into(), inputs: names(inputs), outputs: names(outputs), ..Default::default() }
    }

    fn model(nodes: Vec<Node>) -> Vec<u8> {
        Model { graph: Some(Graph { nodes }), opsets: vec![] }.encode_to_vec()
    }

    /// A forward pass of two layers, back through them, each with the gradient of its weight.
    fn step() -> Vec<Node> {
        let mut inner = node("If", &["cond"], &["gw1"]);
        let body = Graph { nodes: vec![node("Mul", &["x", "g1"], &["inner"])] };
        inner.attributes.push(Attribute { name: "then_branch".into(), graph: Some(body), graphs: vec![] });
        vec![
            node("F1", &["x", "w1", ""], &["y1"]),
            node("F2", &["y1", "w2"], &["y2"]),
            node("Loss", &["y2"], &["loss", "g2", ""]),
            node("W2", &["y1", "g2"], &["gw2"]),
            node("B2", &["g2", "w2"], &["g1"]),
            inner,
            node("Update", &["gw1", "gw2"], &["new"]),
        ]
    }

    #[test]
    fn gradients_of_weights_are_placed_to_run_early() {
        // Fields that the structures here do not know: a version before and training information after the graph.
        let [before, after] = [[0x08, 0x0a, 0x50, 0x01], [0xa2, 0x01, 0x01, 0x00]];
        let moved = for_library(&[&before[..], &model(step()), &after].concat()).unwrap();
        assert_eq!(moved[..4], before);
        assert!(moved.windows(4).any(|bytes| bytes == after));
        let read = Model::decode(&moved[..]).unwrap();
        let nodes = read.graph.unwrap().nodes;
        let ops: Vec<&str> = nodes.iter().map(|node| node.op_type.as_str()).collect();
        assert_eq!(ops, ["F1", "F2", "Loss", "B2", "If", "W2", "Update"]);
        assert_eq!(nodes[4], step()[5], "nodes stay whole");
        assert_eq!(read.opsets, [OperatorSet { domain: LIBRARY.into(), version: 1 }]);
        // Once is enough.
        assert_eq!(Model::decode(&for_library(&moved).unwrap()[..]).unwrap().opsets, read.opsets);
    }

    #[test]
    fn products_become_the_librarys() {
        let own = |op: &str| Node { domain: DOMAIN.into(), ..node(op, &["a", "b"], &["c"]) };
        let mut ordered = own("FusedMatMul_4");
        ordered.attributes.push(Attribute { name: "permB".into(), ..Default::default() });
        let nodes = vec![own("FusedMatMul_3"), own("FusedMatMul"), ordered, node("FusedMatMul", &["a"], &["d"])];
        let read = Model::decode(&for_library(&model(nodes)).unwrap()[..]).unwrap().graph.unwrap().nodes;
        let mut kinds: Vec<_> = read.iter().map(|node| (node.domain.as_str(), node.op_type.as_str())).collect();
        kinds.sort_unstable();
        let library = (LIBRARY, "FusedMatMul");
        assert_eq!(kinds, [("", "FusedMatMul"), (DOMAIN, "FusedMatMul_4"), library, library]);
        assert!(read.iter().filter(|node| node.domain == LIBRARY).all(|node| node.inputs == ["a", "b"]));
    }

    #[test]
    fn nodes_in_a_circle_stay() {
        let nodes = vec![node("A", &["b"], &["a"]), node("B", &["a"], &["b"])];
        let read = Model::decode(&for_library(&model(nodes.clone())).unwrap()[..]).unwrap();
        assert_eq!(read.graph.unwrap().nodes, nodes);
    }

    #[test]
    fn damaged_files_are_errors() {
        let file = model(step());
        for len in 1..file.len() {
            let error = for_library(&file[..len]).unwrap_err().to_string();
            assert!(error.contains("damaged"), "{len}: {error}");
        }
        assert!(for_library(&[0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]).is_err());
    }
}
