//! What holds for any bytes that someone gives as a model, valid or not. Shared by the fuzz targets and by the tests
//! that replay what these found.
#![allow(dead_code)] // each user has its part

use bytes::Bytes;
use limbeck_graph::{Attr, Form, Graph, ImportOptions, TensorType, ValueId};
use limbeck_tensor::{DType, Tensor};
use std::collections::HashMap;
use std::fmt::Write;

/// Bytes give an error or a sound graph, which comes back equal from its file, untouched and written wholly anew.
pub(crate) fn codec(data: &[u8]) {
    let Ok(graph) = Graph::from_bytes(Bytes::copy_from_slice(data), None) else { return };
    if holds_primitives(&graph) {
        return; // Written as Identity.
    }
    round_trip(&graph);
    let mut anew = graph.clone();
    touch(&mut anew);
    round_trip(&anew);
    let mut canonical = graph;
    if canonical.canonicalise().is_ok() {
        round_trip(&canonical);
        let _ = canonical.infer_types();
        canonical.verify().expect("inference leaves a sound graph");
    }
}

/// A first byte chooses extents and values, the rest is the model: importing is an error or gives a sound graph.
pub(crate) fn import(data: &[u8]) {
    let Some((&choice, model)) = data.split_first() else { return };
    let Ok(mut graph) = Graph::from_bytes(Bytes::copy_from_slice(model), None) else { return };
    let mut options = ImportOptions { both_branches: choice & 8 > 0, ..ImportOptions::default() };
    let inputs: Vec<(String, TensorType)> =
        graph.inputs.iter().filter_map(|&id| Some((graph.name_of(id).to_owned(), graph.ty(id)?.clone()))).collect();
    for (name, ty) in inputs {
        for dim in ty.dims.iter().flatten() {
            let dim = dim.to_string();
            if dim != "?" && dim.parse::<usize>().is_err() && !options.dims.iter().any(|(known, _)| *known == dim) {
                options.dims.push((dim, usize::from(choice & 3)));
            }
        }
        let shape =
            ty.concrete().filter(|s| s.iter().try_fold(1, |n: usize, d| n.checked_mul(*d)).is_some_and(|n| n <= 16));
        if let (Some(shape), true, DType::I64 | DType::I32 | DType::Bool) = (shape, choice & 4 > 0, ty.dtype) {
            let values = vec![f64::from(choice >> 4); shape.iter().product()];
            options.fixed.insert(name, Tensor::from_f64(ty.dtype, shape, &values).unwrap());
        }
    }
    if graph.import(&options).is_err() {
        return;
    }
    graph.verify().expect("an imported graph is sound");
    let _ = graph.lowered(Form::Portable);
    if choice & 8 > 0 && graph.fold_constants().is_ok() {
        graph.verify().expect("a folded graph is sound");
    }
    if !holds_primitives(&graph) {
        round_trip(&graph);
    }
}

/// Written and read again, a graph is what it was. Declarations of values may then have another order, in which they stay.
pub(crate) fn round_trip(graph: &Graph) {
    let bytes = graph.to_bytes().expect("a sound graph can be written");
    let again = Graph::from_bytes(bytes, None).expect("what was written can be read");
    assert_eq!(described(&again), described(graph));
    let second = again.to_bytes().expect("it can be written again");
    let third = Graph::from_bytes(second.clone(), None).and_then(|graph| graph.to_bytes());
    assert!(third.expect("and again") == second, "the file changes at every writing");
}

/// Changes all names, nodes and constants to what they are, subgraphs included, so that they are written anew.
pub(crate) fn touch(graph: &mut Graph) {
    let constants: Vec<_> = graph.initializers().map(|(id, tensor)| (id, tensor.clone())).collect();
    for (id, tensor) in constants {
        graph.set_initializer(id, tensor);
    }
    for id in graph.value_ids() {
        let name = graph.name_of(id).to_owned();
        if graph.rename(id, &format!("{name} renamed")).is_ok() {
            graph.rename(id, &name).unwrap();
        }
    }
    for id in graph.node_ids() {
        for attr in graph.node_mut(id).attrs.values_mut() {
            match attr {
                Attr::Graph(sub) => touch(sub),
                Attr::Graphs(subs) => subs.iter_mut().for_each(touch),
                _ => {}
            }
        }
    }
}

/// The graph as text by names, without encoded forms and ids.
pub(crate) fn described(graph: &Graph) -> String {
    let mut text = String::new();
    describe(graph, &HashMap::new(), &mut text).unwrap();
    text
}

/// Captured values have the names of what they stand for, as in a file.
fn describe(graph: &Graph, captured: &HashMap<ValueId, String>, text: &mut String) -> std::fmt::Result {
    let name_of = |id: ValueId| captured.get(&id).map_or_else(|| graph.name_of(id), String::as_str);
    let names = |ids: &[Option<ValueId>]| ids.iter().map(|i| i.map_or("-", name_of)).collect::<Vec<_>>().join(",");
    let within = |sub: &Graph| sub.captures.iter().map(|c| (c.inner, name_of(c.outer).to_owned())).collect();
    writeln!(text, "{} {:?} {:?}", graph.name, graph.meta.opsets, graph.meta.metadata)?;
    for &id in graph.inputs.iter().chain(&graph.outputs) {
        writeln!(text, "{} {:?}", name_of(id), graph.ty(id))?;
    }
    for (id, tensor) in graph.initializers() {
        writeln!(text, "{} {tensor:?}", name_of(id))?;
    }
    for (_, node) in graph.nodes() {
        let (inputs, outputs) = (names(&node.inputs), names(&node.outputs));
        writeln!(text, "{} {} {}: {inputs} -> {outputs}", node.name, node.full_op(), node.overload)?;
        for &id in node.outputs.iter().flatten() {
            writeln!(text, "  {} {:?}", name_of(id), graph.ty(id))?;
        }
        for (name, attr) in &node.attrs {
            match attr {
                Attr::Graph(sub) => describe(sub, &within(sub), text)?,
                Attr::Graphs(subs) => subs.iter().try_for_each(|sub| describe(sub, &within(sub), text))?,
                other => writeln!(text, "  {name} {other:?}")?,
            }
        }
    }
    Ok(())
}

fn holds_primitives(graph: &Graph) -> bool {
    graph.nodes().any(|(_, n)| {
        n.is("ai.limbeck", "StopGradient") || n.is("ai.limbeck", "WithGrad") || n.subgraphs().any(holds_primitives)
    })
}
