//! A model as its file is and as Limbeck writes it: ONNX Runtime gives the same bits for both.

use limbeck::graph::{Attr, Graph};
use limbeck::runtime::{CompileOptions, Model, engine};
use limbeck::tensor::{Tensor, TensorMap, map_file};
use std::io::Write;
use std::path::Path;

/// Gives every node and constant up for writing anew, subgraphs included.
fn touch(graph: &mut Graph) {
    let constants: Vec<_> = graph.initializers().map(|(id, tensor)| (id, tensor.clone())).collect();
    constants.into_iter().for_each(|(id, tensor)| graph.set_initializer(id, tensor));
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

fn run(path: &Path, feeds: &TensorMap) -> TensorMap {
    let model = Model { folder: path.parent().map(Path::to_owned), ..Model::new(map_file(path).unwrap()) };
    let options = CompileOptions { threads: 1, ..CompileOptions::default() };
    let program =
        engine("ort").unwrap().compile(&model, &options).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let taken: Vec<(&str, &Tensor)> = program.inputs().iter().map(|i| (i.name.as_str(), &feeds[&i.name])).collect();
    program.infer(&taken).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Reads the model and writes it, untouched and wholly anew, and compares what ONNX Runtime gives.
pub(crate) fn check(path: &Path, feeds: &TensorMap) {
    if let Err(reason) = engine("ort") {
        let mut out = std::io::stderr();
        writeln!(out, "NOT TESTED: {} as Limbeck writes it: {reason}", path.display()).unwrap();
        return;
    }
    let (wanted, mut graph) = (run(path, feeds), Graph::read(path).unwrap());
    assert!(!wanted.is_empty(), "{}", path.display());
    for anew in [false, true] {
        if anew {
            touch(&mut graph);
        }
        let folder = tempfile::tempdir().unwrap();
        let written = folder.path().join("model.onnx");
        graph.write(&written).unwrap();
        let found = run(&written, feeds);
        assert!(found == wanted, "{}: other outputs when written{}", path.display(), if anew { " anew" } else { "" });
    }
}
