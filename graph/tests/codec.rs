//! The ONNX codec on files made by the `onnx` package (`models/make.py`): untouched files come back byte for
//! byte, rewritten ones mean the same, damaged ones are refused.

mod any_bytes;

use any_bytes::{described, touch};
use bytes::Bytes;
use limbeck_graph::{Form, Graph, GraphError, Node, TensorType};
use limbeck_tensor::{DType, Tensor};
use proptest::prelude::*;
use std::path::{Path, PathBuf};

const MODELS: &[&str] = &[
    "mlp",
    "branches",
    "loop",
    "function",
    "dtypes",
    "sparse",
    "old",
    "unknown_fields",
    "external",
    "infos",
    "everything",
    "shuffled",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models")
}

fn path(name: &str) -> PathBuf {
    folder().join(format!("{name}.onnx"))
}

fn read(name: &str) -> Graph {
    Graph::read(path(name)).unwrap()
}

#[test]
fn untouched_files_come_back_byte_for_byte() {
    let out = tempfile::tempdir().unwrap();
    for name in MODELS.iter().filter(|n| **n != "shuffled") {
        let target = out.path().join("model.onnx");
        read(name).write(&target).unwrap();
        assert_eq!(std::fs::read(path(name)).unwrap(), std::fs::read(target).unwrap(), "{name}");
    }
    let data = |folder: &Path| std::fs::read(folder.join("data/external.bin")).unwrap();
    assert_eq!(data(out.path()), data(&folder()));
}

#[test]
fn rewritten_nodes_mean_the_same() {
    for name in MODELS {
        let mut graph = read(name);
        let before = described(&graph);
        touch(&mut graph);
        graph.verify().unwrap();
        let bytes = graph.to_bytes().unwrap();
        assert_eq!(described(&Graph::from_bytes(bytes, None).unwrap()), before, "{name}");
    }
}

#[test]
fn a_model_with_everything_is_written_anew_byte_for_byte() {
    let raw = std::fs::read(path("everything")).unwrap();
    let mut graph = read("everything");
    touch(&mut graph);
    assert!(graph.to_bytes().unwrap() == raw);
}

#[test]
fn what_a_file_says_of_values_and_weights_survives_other_names_types_and_data() {
    let mut g = read("everything");
    let count =
        |g: &Graph, text: &str| g.to_bytes().unwrap().windows(text.len()).filter(|w| *w == text.as_bytes()).count();
    let (notes, unknown) = (count(&g, "a note"), count(&g, "hello"));
    let types = |g: &Graph| ["org.exampleThing", "IMAGE"].map(|part| count(g, part));
    let before = types(&g);
    for name in ["sequence", "optional", "map", "opaque", "odd", "hidden", "w.f32", "w.words", "x"] {
        g.rename(g.find(name).unwrap(), &format!("new.{name}")).unwrap();
    }
    let weight = g.find("w.f16").unwrap();
    g.set_initializer(weight, Tensor::new([3], vec![1f32; 3]).unwrap());
    assert_eq!((count(&g, "a note"), count(&g, "hello"), types(&g)), (notes, unknown, before));
    let x = g.find("new.x").unwrap();
    g.set_ty(x, Some(TensorType::new(DType::F32, &[7])));
    let back = Graph::from_bytes(g.to_bytes().unwrap(), None).unwrap();
    assert_eq!(back.ty(back.find("new.x").unwrap()), Some(&TensorType::new(DType::F32, &[7])));
    assert_eq!(count(&g, "a note"), notes, "notes are no part of the type");
    assert_eq!(back.initializer(back.find("w.f16").unwrap()).unwrap().to_vec::<f32>().unwrap(), [1.0; 3]);
}

#[test]
fn declarations_of_element_types_that_nobody_knows_come_back() {
    let raw = std::fs::read(path("infos")).unwrap();
    // The start of a float32 tensor type with a shape.
    let places: Vec<usize> = (0..raw.len()).filter(|&at| raw[at..].starts_with(&[8, 1, 18])).collect();
    assert!(places.len() > 10, "{places:?}");
    for at in places {
        let mut odd = raw.clone();
        odd[at + 1] = 72;
        any_bytes::codec(&odd);
        let mut graph = Graph::from_bytes(odd.clone().into(), None).unwrap();
        assert!(graph.to_bytes().unwrap() == odd, "with another type at byte {at}");
        touch(&mut graph);
        assert!(graph.to_bytes().unwrap() == odd, "written anew, with another type at byte {at}");
    }
}

#[test]
fn fields_that_nobody_knows_survive_a_rewrite() {
    let mut graph = read("unknown_fields");
    touch(&mut graph);
    let bytes = graph.to_bytes().unwrap();
    let found = bytes.windows(8).filter(|w| w == b"\xa2\x3e\x05hello").count();
    assert_eq!(found, 3, "in the model, the graph and a node");
    assert!(bytes.windows(11).any(|w| w == b"first layer"));
}

#[test]
fn nodes_are_put_in_order() {
    let graph = read("shuffled");
    assert_eq!(graph.nodes().map(|(_, n)| n.name.as_str()).collect::<Vec<_>>(), ["fc1", "act", "fc2"]);
}

#[test]
fn every_storage_form_is_read() {
    let g = read("dtypes");
    let t = |name: &str| g.initializer(g.find(name).unwrap()).unwrap().clone();
    assert_eq!(t("f32_data").to_vec::<f32>().unwrap(), [1.5, -2.0]);
    assert_eq!(t("f64_data").to_vec::<f64>().unwrap(), [1e300, -2.0]);
    assert_eq!(t("i8_data").to_vec::<i8>().unwrap(), [-1, 127, -128]);
    assert_eq!(t("u8_data").to_vec::<u8>().unwrap(), [0, 255]);
    assert_eq!(t("i16_data").to_vec::<i16>().unwrap(), [-300, 300]);
    assert_eq!(t("i32_data").to_vec::<i32>().unwrap(), [-70000, 70000]);
    assert_eq!(t("i64_data").to_vec::<i64>().unwrap(), [-(1 << 62), 5]);
    assert_eq!(t("u32_data").to_vec::<u32>().unwrap(), [0, u32::MAX]);
    assert_eq!(t("u64_data").to_vec::<u64>().unwrap(), [1, 1 << 63]);
    assert_eq!(t("bool_data").to_vec::<u8>().unwrap(), [1, 0, 1]);
    assert_eq!(t("f16_data").to_f64_vec().unwrap(), [1.0, -2.5, 65504.0]);
    assert_eq!(t("f16_data"), t("f16_raw"));
    assert_eq!(t("bf16_data").to_f64_vec().unwrap(), [1.5]);
    assert_eq!(t("i4_data"), t("i4_raw"));
    assert_eq!((t("i4_raw").dtype(), t("i4_raw").bytes()), (DType::I4, Bytes::from_static(b"\x7f\x08")));
    assert_eq!((t("f8_raw").dtype(), t("f8_raw").len()), (DType::F8E4M3FN, 2));
    assert_eq!(t("c64_data").bytes().len(), 8);
    assert_eq!(t("words").as_strings().unwrap(), [Bytes::from("lim"), Bytes::from("béck")]);
    assert_eq!((t("empty").shape().to_vec(), t("scalar").to_vec::<f32>().unwrap()), (vec![0, 3], vec![2.5]));
}

#[test]
fn sparse_weights_are_made_dense() {
    let g = read("sparse");
    for (name, expected) in [("s1", [1., 0., 0., 2., 0., 0., 3., 0.]), ("s2", [0., 1., 0., 0., 2., 0., 0., 3.])] {
        assert_eq!(g.initializer(g.find(name).unwrap()).unwrap().to_vec::<f32>().unwrap(), expected);
    }
}

#[test]
fn subgraphs_capture_by_id_and_follow_renames() {
    let mut g = read("branches");
    let (_, node) = g.nodes().next().unwrap();
    let captured: Vec<&str> = node.reads().into_iter().map(|id| g.name_of(id)).collect();
    for name in ["flag", "x", "scale"] {
        assert!(captured.contains(&name), "{captured:?}");
    }
    g.rename(g.find("x").unwrap(), "pixels").unwrap();
    g.rename(g.find("flag").unwrap(), "switch").unwrap();
    g.rename(g.find("scale").unwrap(), "gain").unwrap();
    let back = Graph::from_bytes(g.to_bytes().unwrap(), None).unwrap();
    let (_, node) = back.nodes().next().unwrap();
    let captured: Vec<&str> = node.reads().into_iter().map(|id| back.name_of(id)).collect();
    assert!(["switch", "pixels", "gain"].iter().all(|n| captured.contains(n)), "{captured:?}");
    assert_eq!(back.nodes().count(), 1);
    // A name that a subgraph uses itself cannot be given to what it captures.
    g.rename(g.find("pixels").unwrap(), "moved").unwrap();
    assert!(g.to_bytes().unwrap_err().to_string().contains("moved"));
}

#[test]
fn changed_weights_are_written_and_others_stay() {
    let mut g = read("mlp");
    let b1 = g.find("b1").unwrap();
    let w1 = g.initializer(g.find("w1").unwrap()).unwrap().clone();
    g.set_initializer(b1, Tensor::new([5], vec![9f32; 5]).unwrap());
    let back = Graph::from_bytes(g.to_bytes().unwrap(), None).unwrap();
    assert_eq!(back.initializer(back.find("b1").unwrap()).unwrap().to_vec::<f32>().unwrap(), [9.0; 5]);
    assert_eq!(back.initializer(back.find("w1").unwrap()).unwrap(), &w1);
    assert_eq!(back.metadata("licence"), Some("CC0"));
}

#[test]
fn gradient_primitives_become_identity() {
    let mut g = read("mlp");
    let (y, a) = (g.find("y").unwrap(), g.find("a").unwrap());
    let ty = g.ty(a).cloned();
    let (dead, stopped) = (g.add_value("dead", ty.clone()), g.add_value("stopped", ty));
    let last = g.producer(y).unwrap();
    g.insert_node_before(last, Node::new("Neg", &[a], &[dead]));
    g.insert_node_before(last, Node::new("WithGrad", &[a, dead], &[stopped]).in_domain("ai.limbeck"));
    g.node_mut(last).replace_input(a, stopped);
    let back = Graph::from_bytes(g.to_bytes().unwrap(), None).unwrap();
    let ops: Vec<String> = back.nodes().map(|(_, n)| n.full_op()).collect();
    assert_eq!(ops, ["Gemm", "Relu", "Identity", "Gemm"]);
    assert_eq!(back.opset("ai.limbeck"), None);
    assert_eq!(g.node_count(), 5, "the graph itself stays as it is");
}

#[test]
fn a_copied_node_is_written_as_it_now_is() {
    let mut g = read("mlp");
    let act = g.node_ids()[1];
    let y = g.find("y").unwrap();
    let last = g.producer(y).unwrap();
    for (at, op) in [(Some(last), "Tanh"), (None, "Sigmoid")] {
        let mut copy = g.node(act).clone();
        let output = g.add_value(op, None);
        (copy.op, copy.name, copy.outputs) = (op.into(), op.into(), vec![Some(output)]);
        match at {
            Some(at) => g.insert_node_before(at, copy),
            None => g.add_node(copy),
        };
        g.outputs.push(output);
    }
    let back = Graph::from_bytes(g.to_bytes().unwrap(), None).unwrap();
    let ops: Vec<String> = back.nodes().map(|(_, n)| n.full_op()).collect();
    assert_eq!(ops, ["Gemm", "Relu", "Tanh", "Gemm", "Sigmoid"]);
}

#[test]
fn edits_that_break_the_rules_are_named() {
    let spoilt = |edit: fn(&mut Graph)| {
        let mut g = read("mlp");
        edit(&mut g);
        g.verify().unwrap_err().to_string()
    };
    let other = |g: &Graph| {
        let mut other = g.clone();
        (0..100).map(|_| other.add_value("far", None)).last()
    };
    let error = spoilt(|g| g.node_mut(g.node_ids()[0]).outputs = vec![]);
    assert!(error.contains("'h'"), "{error}");
    let error = spoilt(|g| {
        let spare = g.add_value("spare", None);
        g.node_mut(g.node_ids()[1]).outputs.push(Some(spare));
    });
    assert!(error.contains("'spare'") && error.contains("remove the node"), "{error}");
    let far = other(&read("mlp"));
    let mut g = read("mlp");
    g.node_mut(g.node_ids()[1]).inputs = vec![far];
    assert!(g.verify().unwrap_err().to_string().contains("'act' (Relu) uses a value of another graph"));
    let mut g = read("mlp");
    g.outputs.extend(far);
    assert!(g.verify().unwrap_err().to_string().contains("another graph"));
}

#[test]
fn every_declaration_of_a_value_survives() {
    let mut g = read("infos");
    let declared = |g: &Graph| -> Vec<String> {
        let bytes = g.to_bytes().unwrap();
        let named = ["ghost", "h-first", "h-again", "y-too", "x-too", "captured"];
        named.iter().filter(|n| bytes.windows(n.len()).any(|w| w == n.as_bytes())).map(|n| (*n).to_owned()).collect()
    };
    assert_eq!(declared(&g).len(), 6, "{:?}", declared(&g));
    // A declaration that no longer holds goes.
    let h = g.find("h").unwrap();
    g.set_ty(h, None);
    assert_eq!(declared(&g), ["ghost", "y-too", "x-too", "captured"]);
}

#[test]
fn errors_name_file_node_and_tensor() {
    let bad = tempfile::tempdir().unwrap();
    let file = bad.path().join("torn.onnx");
    let whole = std::fs::read(path("mlp")).unwrap();
    std::fs::write(&file, &whole[..200]).unwrap();
    let error = Graph::read(&file).unwrap_err();
    assert!(matches!(error, GraphError::Format { .. }));
    assert!(error.to_string().contains("torn.onnx"), "{error}");
    std::fs::write(&file, b"").unwrap();
    assert!(Graph::read(&file).unwrap_err().to_string().contains("not an ONNX model"));
    // Renaming an operand in place leaves a dangling reference; a longer dim makes the data too short.
    let replace = |from: &[u8], to: &[u8]| {
        let mut raw = whole.clone();
        let at = raw.windows(from.len()).position(|w| w == from).unwrap();
        raw[at..at + to.len()].copy_from_slice(to);
        Graph::from_bytes(raw.into(), None).unwrap_err().to_string()
    };
    let dangling = replace(b"\x0a\x01a\x0a\x02w2", b"\x0a\x01q\x0a\x02w2");
    assert!(dangling.contains("'fc2' (Gemm) reads 'q'"), "{dangling}");
    let short = replace(b"\x08\x05\x08\x04\x10\x01", b"\x08\x05\x08\x07\x10\x01");
    assert!(short.contains("tensor 'w1'") && short.contains("[5, 7]"), "{short}");
    let twice = replace(b"\x12\x01a\x1a\x03act", b"\x12\x01h\x1a\x03act");
    assert!(twice.contains("'act' (Relu) assigns 'h'"), "{twice}");
}

#[test]
fn deep_nesting_and_huge_shapes_are_refused() {
    // A message nested in itself: graph > node > attribute > graph > ...
    let wrap = |number: u8, content: &[u8]| {
        let mut out = vec![number << 3 | 2];
        let mut n = content.len();
        while n > 127 {
            out.push((n & 127) as u8 | 128);
            n >>= 7;
        }
        out.push(n as u8);
        out.extend_from_slice(content);
        out
    };
    let mut graph = wrap(2, b"g");
    for _ in 0..2000 {
        let attribute = [wrap(1, b"body"), wrap(6, &graph), vec![0xa0, 1, 5]].concat();
        graph = wrap(1, &[wrap(4, b"Loop"), wrap(5, &attribute)].concat());
    }
    let error = Graph::from_bytes(wrap(7, &graph).into(), None).unwrap_err().to_string();
    assert!(error.contains("nested"), "{error}");
    // 2^40 floats, no data.
    let dims = [0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20];
    let tensor = [&dims[..], &[0x10, 1], &wrap(8, b"big")].concat();
    let error = Graph::from_bytes(wrap(7, &wrap(5, &tensor)).into(), None).unwrap_err().to_string();
    assert!(error.contains("'big'"), "{error}");
    let values = [&[0x08, 1, 0x10, 1][..], &wrap(8, b"big"), &wrap(9, &[0; 4])].concat();
    let indices = [&[0x08, 1, 0x10, 7][..], &wrap(9, &[0; 8])].concat();
    let sparse = [&wrap(1, &values)[..], &wrap(2, &indices), &[0x18], &dims[1..]].concat();
    let error = Graph::from_bytes(wrap(7, &wrap(15, &sparse)).into(), None).unwrap_err().to_string();
    assert!(error.contains("'big'") && error.contains("too large"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(2000)))]

    /// Whatever a damaged file gives, it is no panic; what still reads can be written and read again, and every pass
    /// either refuses it or leaves it sound.
    #[test]
    fn damaged_files_never_panic(
        model in 0..MODELS.len(),
        cut in 0.0..1.0f64,
        flips in prop::collection::vec((0.0..1.0f64, 0..8u8), 0..6),
    ) {
        let mut raw = std::fs::read(path(MODELS[model])).unwrap();
        for (at, bit) in flips {
            let at = (raw.len() as f64 * at) as usize;
            raw[at] ^= 1 << bit;
        }
        if cut < 0.5 {
            raw.truncate((raw.len() as f64 * cut * 2.0) as usize);
        }
        let Ok(graph) = Graph::from_bytes(raw.into(), Some(&folder())) else { return Ok(()) };
        if let Ok(bytes) = graph.to_bytes() {
            prop_assert!(Graph::from_bytes(bytes, None).is_ok());
        }
        let mut changed = graph.clone();
        if changed.canonicalise().is_ok() {
            let _ = changed.infer_types();
            prop_assert!(changed.verify().is_ok());
            let _ = changed.fold_constants();
            let _ = changed.lowered(Form::Portable);
        }
        let mut bound = graph;
        let _ = bound.bind_dims(&[("batch", 2)]);
        prop_assert!(bound.verify().is_ok());
    }

    #[test]
    fn random_bytes_never_panic(raw in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Graph::from_bytes(raw.into(), None);
    }
}
