//! The importer takes apart what other exporters write; ONNX Runtime's answers on the models as they were
//! (`models/make_import.py`) are the reference.

use limbeck_graph::{Graph, ImportOptions, Node, TensorType};
use limbeck_tensor::{Bytes, DType, Tensor, io::read_npy};
use std::collections::BTreeMap;
use std::path::PathBuf;

fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/models")
}

fn npy(name: &str) -> Tensor {
    read_npy(&models().join(name)).unwrap().aligned()
}

fn check(graph: &Graph, name: &str) {
    let feeds = BTreeMap::from([("x".to_owned(), npy(&format!("{name}.x.npy")))]);
    let found = graph.evaluate(&feeds).unwrap()["y"].to_f64_vec().unwrap();
    for (a, b) in found.iter().zip(npy(&format!("{name}.y.npy")).to_f64_vec().unwrap()) {
        assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{name}: {a} is not {b}");
    }
}

fn ops(graph: &Graph) -> Vec<String> {
    graph.nodes().map(|(_, n)| n.full_op()).collect()
}

#[test]
fn functions_are_inlined_with_their_attributes_in_branches_too() {
    let mut graph = Graph::read(models().join("calls.onnx")).unwrap();
    let report = graph.import(&ImportOptions::default()).unwrap();
    // Both calls Centre and Scaled; it is called once outside and once in a branch, Scaled once more in the other.
    assert_eq!(report.functions, 7);
    assert!(graph.meta.functions.is_empty());
    assert!(graph.meta.opsets.iter().all(|(domain, _)| domain.is_empty()), "{:?}", graph.meta.opsets);
    // The branch that the file leaves open is taken by hand, once each way.
    let taken = graph.nodes().find(|(_, n)| n.op == "If").map(|(id, n)| (id, n.input(0).unwrap())).unwrap();
    let written = Graph::from_bytes(graph.to_bytes().unwrap(), None).unwrap();
    assert!(written.nodes().flat_map(|(_, n)| n.subgraphs()).flat_map(|g| g.nodes()).all(|(_, n)| n.domain.is_empty()));
    let x = npy("calls.x.npy");
    let condition = {
        let mut probe = graph.clone();
        probe.outputs = vec![taken.1];
        probe.remove_dead();
        probe.evaluate(&BTreeMap::from([("x".to_owned(), x)])).unwrap().into_values().next().unwrap()
    };
    let mut settled = graph.clone();
    let producer = settled.producer(taken.1).unwrap();
    settled.remove_node(producer);
    settled.set_initializer(taken.1, condition);
    assert_eq!(settled.resolve_branches().unwrap().1, 1);
    check(&settled, "calls");
}

#[test]
fn sequences_of_settled_elements_become_tensors() {
    let mut graph = Graph::read(models().join("sequences.onnx")).unwrap();
    let report = graph.import(&ImportOptions::default()).unwrap();
    // All twelve nodes on sequences.
    assert_eq!(report.sequences, 12);
    assert!(ops(&graph).iter().all(|op| !op.contains("Sequence")), "{:?}", ops(&graph));
    check(&graph, "sequences");
}

#[test]
fn a_position_that_is_not_settled_leaves_the_sequence_alone() {
    let mut graph = Graph::read(models().join("sequences.onnx")).unwrap();
    let one = graph.find("one").unwrap();
    // What is stored for an input is its default, which a feed replaces.
    graph.inputs.push(one);
    graph.import(&ImportOptions::default()).unwrap();
    let ops = ops(&graph);
    assert_eq!(ops.iter().filter(|op| *op == "SequenceAt").count(), 1, "{ops:?}");
    assert_eq!(ops.iter().filter(|op| *op == "SplitToSequence").count(), 1, "{ops:?}");
}

/// FunctionProto: name 1, output 5, node 7 (output 2, operator 4, domain 7), domain 10.
fn function(name: &str, callees: &[&str]) -> Bytes {
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8], content].concat()
    }
    let mut all = [field(1, name.as_bytes()), field(10, b"local")].concat();
    for (i, callee) in callees.iter().enumerate() {
        let output = format!("v{i}");
        let node = [field(2, output.as_bytes()), field(4, callee.as_bytes()), field(7, b"local")].concat();
        all.extend(field(7, &node));
    }
    all.extend(field(5, b"v0"));
    all.into()
}

#[test]
fn functions_that_never_end_or_grow_without_bound_are_refused() {
    let graph = |functions: Vec<Bytes>, called: &str| {
        let mut graph = Graph::new("g");
        let y = graph.add_value("y", None);
        graph.add_node(limbeck_graph::Node::new(called, &[], &[y]).in_domain("local"));
        graph.outputs = vec![y];
        graph.meta.functions = functions;
        graph
    };
    let error = graph(vec![function("a", &["b"]), function("b", &["a"])], "a").inline_functions().unwrap_err();
    assert!(error.to_string().contains("calls itself"), "{error}");
    // Thirty functions, each of which calls the next one twice: 2^30 nodes.
    let names: Vec<String> = (0..31).map(|i| format!("f{i}")).collect();
    let chain = names.windows(2).map(|w| function(&w[0], &[&w[1], &w[1]])).chain([function("f30", &["f31", "f31"])]);
    let error = graph(chain.collect(), "f0").inline_functions().unwrap_err();
    assert!(error.to_string().contains("once its functions are inlined"), "{error}");
}

/// A scale that is fed is put in other words, whatever the quantised type.
#[test]
fn quantisation_keeps_its_values() {
    for dtype in [DType::I8, DType::U16, DType::I4, DType::F8E4M3FN, DType::F4E2M1] {
        for (there, back) in [(None, None), (Some(DType::F16), None), (None, Some(DType::F16))] {
            let mut g = Graph::new("g");
            g.meta.opsets = vec![(String::new(), 23)];
            let x = g.add_input("x", TensorType::new(DType::F32, &[4]));
            let scale = g.add_input("scale", TensorType::new(DType::F32, &[]));
            let (q, y) = (g.add_value("q", None), g.add_value("y", None));
            let node = Node::new("QuantizeLinear", &[x, scale], &[q]).with("output_dtype", i64::from(dtype.to_onnx()));
            let code = |dtype: DType| i64::from(dtype.to_onnx());
            g.add_node(if let Some(dtype) = there { node.with("precision", code(dtype)) } else { node });
            let node = Node::new("DequantizeLinear", &[q, scale], &[y]);
            g.add_node(if let Some(dtype) = back { node.with("output_dtype", code(dtype)) } else { node });
            g.outputs.push(y);
            let fed =
                [("x", Tensor::new([4], vec![0.3f32, 0.6, 1.3, -0.55]).unwrap()), ("scale", Tensor::scalar(0.2f32))];
            let fed = fed.map(|(name, value)| (name.to_owned(), value)).into();
            let before = g.evaluate(&fed).unwrap();
            g.import(&ImportOptions::default()).unwrap();
            assert_eq!(g.evaluate(&fed).unwrap(), before, "{dtype} {there:?} {back:?}");
            assert_eq!(before["y"].dtype(), back.unwrap_or(DType::F32));
        }
    }
}
