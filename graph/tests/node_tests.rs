//! The node tests that come with ONNX (one folder a case: `model.onnx` and `test_data_set_0` with the inputs and the
//! expected outputs): reading, the canonical form, type inference and the reference evaluation of each. Their folder
//! is named by the variable `LIMBECK_NODE_TESTS`, which `cargo xtask test` sets.

use limbeck_graph::{Dim, Graph, TensorType, ValueId, ops, read_tensor_proto};
use limbeck_tensor::{DType, Tensor};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// How far a case comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Nothing worked.
    None,
    /// Read, brought to canonical form and verified.
    Read,
    /// The inferred types do not contradict the expected outputs.
    Inferred,
    /// The evaluated outputs are the expected ones.
    Evaluated,
}

/// Cases (by a part of their names, `$` being the end) that do not reach the last stage: the one they reach, and why.
const LEFT_OUT: &[(&str, Stage, &str)] = &[
    ("test_ai_onnx_ml_", Stage::Read, ML),
    ("test_adagrad", Stage::Read, TRAINING),
    ("test_adam", Stage::Read, TRAINING),
    ("momentum", Stage::Read, TRAINING),
    ("string", Stage::Read, STRINGS),
    ("test_strnormalizer", Stage::Read, STRINGS),
    ("test_regex", Stage::Read, STRINGS),
    ("test_tfidf", Stage::Read, STRINGS),
    ("test_image_decoder", Stage::Read, "decoding image files is no arithmetic on tensors"),
    ("test_sequence_", Stage::Read, SEQUENCES),
    ("_to_sequence", Stage::Read, SEQUENCES),
    ("test_identity_sequence", Stage::Read, SEQUENCES),
    ("test_identity_opt", Stage::Read, SEQUENCES),
    ("test_optional_", Stage::Read, SEQUENCES),
    ("test_if_opt", Stage::Read, SEQUENCES),
    ("test_if_seq", Stage::Read, SEQUENCES),
    ("test_loop13_seq", Stage::Read, SEQUENCES),
    ("test_loop16_seq_none", Stage::Read, SEQUENCES),
    ("test_not_", Stage::None, "opset 1 is declared; 7 to 24 are understood"),
    ("test_scan_sum", Stage::None, "the batched Scan of opset 8 is refused by name"),
    ("test_bernoulli", Stage::Inferred, "draws from a generator; noise enters graphs as inputs"),
    ("test_training_dropout", Stage::Inferred, "draws from a generator; noise enters graphs as inputs"),
    ("qk_matmul_bias$", Stage::Inferred, ATTENTION),
    ("qk_matmul_bias_3d_mask$", Stage::Inferred, ATTENTION),
    ("qk_matmul_bias_3d_mask_causal$", Stage::Inferred, ATTENTION),
    ("qk_matmul_bias_4d_mask$", Stage::Inferred, ATTENTION),
    ("qk_matmul_bias_4d_mask_causal$", Stage::Inferred, ATTENTION),
    ("qk_matmul_softcap$", Stage::Inferred, ATTENTION),
    ("downsample_scales_cubic_align_corners", Stage::Inferred, FRACTION),
    ("downsample_scales_linear_align_corners", Stage::Inferred, FRACTION),
    ("test_qlinearmatmul_2D_int8", Stage::Inferred, "-236 is expected to wrap to 20 where the specification saturates"),
    ("test_qlinearmatmul_3D_int8", Stage::Inferred, "values are expected to wrap where the specification saturates"),
    ("test_l2normalization_axis_0", Stage::Inferred, "NaN is expected of 0 / 0, which ONNX Runtime takes as 0"),
    (
        "test_maxunpool_export_with_output_shape",
        Stage::Inferred,
        "indices are expected to count the elements of another shape than the result's, as no MaxPool's do",
    ),
];

const ML: &str = "ai.onnx.ml holds operators of classical learning, which no network of Limbeck has";
const TRAINING: &str = "optimisers are graphs of plain operators in Limbeck";
const STRINGS: &str = "the table is about numbers; text is prepared before a network";
const SEQUENCES: &str = "the table is about tensors; sequences and optionals are carried along in files";
const ATTENTION: &str =
    "ONNX 1.23 corrected the operator: the mask is added behind the softcap, and mode 1 is ahead of it";
const FRACTION: &str = "a fractional length is expected where the specification and ONNX Runtime take the result's";

/// Cases whose expected values are written with four digits.
const ROUNDED: &[&str] = &[
    "test_averagepool_2d_ceil_last_window_starts_on_pad",
    "test_gridsample_bicubic",
    "test_roialign_aligned_false",
    "test_roialign_aligned_true",
];

/// Cases whose result's extents depend on values (a count, the iterations of a loop, the branch that is taken).
const COUNTED: &[&str] = &[
    "test_affine_grid_2d_align_corners_expanded",
    "test_affine_grid_2d_expanded",
    "test_affine_grid_3d_align_corners_expanded",
    "test_affine_grid_3d_expanded",
    "test_compress_",
    "test_loop11",
    "test_nonmaxsuppression_",
    "test_nonzero_",
    "test_unique_",
];

/// Whether one of these parts is in the name of a case, `$` being its end.
fn named<'a>(folder: &Path, mut parts: impl Iterator<Item = &'a str>) -> bool {
    let name = format!("{}$", folder.file_name().unwrap_or_default().to_string_lossy());
    parts.any(|part| name.contains(part))
}

/// The tensor in a file that holds a TensorProto.
fn tensor(path: &Path) -> Result<Tensor, String> {
    let proto = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    read_tensor_proto(&proto.into()).map(|(_, tensor)| tensor).map_err(|e| e.to_string())
}

/// The files `{kind}_0.pb`, `{kind}_1.pb`, ... of a case.
fn tensors(folder: &Path, kind: &str) -> Result<Vec<Tensor>, String> {
    let file = |i: usize| folder.join(format!("test_data_set_0/{kind}_{i}.pb"));
    (0..).map(file).take_while(|f| f.exists()).map(|f| tensor(&f)).collect()
}

fn fits(ty: &TensorType, want: &Tensor) -> bool {
    let fits = |(d, &n): (&Dim, &usize)| d.known().is_none_or(|k| k == n);
    let dims = ty.dims.as_ref();
    ty.dtype == want.dtype()
        && dims.is_none_or(|d| d.len() == want.shape().len() && d.iter().zip(want.shape()).all(fits))
}

/// Relative and absolute tolerance. The expected values were computed by numpy, some of them in the dtype itself.
fn tolerance(dtype: DType, rounded: bool) -> (f64, f64) {
    match dtype {
        DType::F32 if rounded => (1e-3, 1e-7),
        DType::F64 => (1e-7, 1e-7),
        DType::F32 => (1e-4, 1e-6),
        DType::F16 => (1e-3, 1e-3),
        DType::BF16 => (1e-2, 1e-3),
        _ => (0.0, 0.0),
    }
}

fn difference(got: &Tensor, want: &Tensor, rounded: bool) -> Result<(), String> {
    if got.dtype() != want.dtype() || got.shape() != want.shape() {
        return Err(format!("{} instead of {}", TensorType::of(got), TensorType::of(want)));
    }
    if got.bytes() == want.bytes() {
        return Ok(());
    }
    let (relative, absolute) = tolerance(want.dtype(), rounded);
    let numbers = |t: &Tensor| t.to_f64_vec().map_err(|e| e.to_string());
    let (got, want) = (numbers(got)?, numbers(want)?);
    let close = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= absolute + relative * b.abs();
    match got.iter().zip(&want).position(|(a, b)| !close(*a, *b)) {
        Some(at) => Err(format!("element {at} is {} instead of {}", got[at], want[at])),
        None => Ok(()),
    }
}

/// An error unless the inferred types of the graph's outputs can be those of these values.
fn check_types(graph: &Graph, outputs: &[Tensor]) -> Result<(), String> {
    for (&id, want) in graph.outputs.iter().zip(outputs) {
        let name = graph.name_of(id);
        let ty = graph.ty(id).ok_or_else(|| format!("no type is inferred for '{name}'"))?;
        if !fits(ty, want) {
            return Err(format!("'{name}' is inferred as {ty}, its value is {}", TensorType::of(want)));
        }
    }
    Ok(())
}

/// The first operator, subgraphs included, that the table lacks.
fn unknown(graph: &Graph) -> Option<String> {
    graph.nodes().find_map(|(_, n)| {
        let own = ops::find(n.domain_or_default(), &n.op).is_none().then(|| n.full_op());
        own.or_else(|| n.subgraphs().find_map(unknown))
    })
}

/// The stage that a case reaches, and what stopped it there.
fn run(folder: &Path) -> (Stage, Result<(), String>) {
    let mut stage = Stage::None;
    let result = stages(folder, &mut stage);
    (stage, result)
}

fn stages(folder: &Path, stage: &mut Stage) -> Result<(), String> {
    let mut graph = Graph::read(folder.join("model.onnx")).map_err(|e| e.to_string())?;
    let declared = graph.inputs.clone();
    graph.canonicalise().map_err(|e| e.to_string())?;
    graph.verify().map_err(|e| e.to_string())?;
    *stage = Stage::Read;
    let (inputs, outputs) = (tensors(folder, "input")?, tensors(folder, "output")?);
    if let Some(op) = unknown(&graph) {
        return Err(format!("{op} is not in the table"));
    }
    // What the file declares of anything but its inputs is not to help inference.
    for id in graph.value_ids() {
        if !graph.inputs.contains(&id) && graph.constant(id).is_none() {
            graph.set_ty(id, None);
        }
    }
    let names = declared.iter().map(|&id| graph.name_of(id).to_owned());
    let feeds: BTreeMap<String, Tensor> = names.zip(inputs).collect();
    let mut fixed = graph.clone();
    graph.infer_types().map_err(|e| e.to_string())?;
    check_types(&graph, &outputs)?;
    // With the inputs' values at hand more is known.
    for (name, value) in &feeds {
        fixed.fix_input(name, value).map_err(|e| e.to_string())?;
    }
    fixed.fold_shapes().map_err(|e| format!("with constant inputs: {e}"))?;
    check_types(&fixed, &outputs).map_err(|e| format!("with constant inputs: {e}"))?;
    let exact = |(&id, want): (&ValueId, &Tensor)| fixed.ty(id) == Some(&TensorType::of(want));
    let (exact, listed) = (fixed.outputs.iter().zip(&outputs).all(exact), named(folder, COUNTED.iter().copied()));
    if exact == listed {
        let what = if listed { "is inferred though listed as unknown" } else { "is not fully inferred" };
        return Err(format!("the shape of an output {what} with constant inputs"));
    }
    *stage = Stage::Inferred;
    let rounded = named(folder, ROUNDED.iter().copied());
    let got = graph.evaluate(&feeds).map_err(|e| e.to_string())?;
    if graph.outputs.len() != outputs.len() {
        return Err(format!("{} outputs are expected of {}", outputs.len(), graph.outputs.len()));
    }
    for (&id, want) in graph.outputs.iter().zip(&outputs) {
        let name = graph.name_of(id);
        difference(&got[name], want, rounded).map_err(|e| format!("'{name}': {e}"))?;
    }
    *stage = Stage::Evaluated;
    Ok(())
}

#[test]
fn node_tests_of_onnx() {
    let Some(folder) = std::env::var_os("LIMBECK_NODE_TESTS").filter(|f| !f.is_empty()) else {
        // Written past the harness, which would keep it to itself.
        writeln!(std::io::stderr(), "NOT TESTED: ONNX's node tests (`cargo xtask test` generates them)").unwrap();
        return;
    };
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", Path::new(&folder).display()));
    let mut cases: Vec<PathBuf> = entries.map(|e| e.expect("entry").path()).collect();
    cases.retain(|c| c.join("model.onnx").exists());
    cases.sort();
    assert!(cases.len() > 1000, "{} holds {} cases only", Path::new(&folder).display(), cases.len());
    let (mut failures, mut reached, mut used) = (vec![], BTreeMap::new(), vec![false; LEFT_OUT.len()]);
    for case in &cases {
        let name = case.file_name().unwrap_or_default().to_string_lossy();
        let (stage, result) = run(case);
        *reached.entry(stage).or_insert(0) += 1;
        let listed = LEFT_OUT.iter().position(|(part, ..)| named(case, [*part].into_iter()));
        listed.into_iter().for_each(|i| used[i] = true);
        match (listed.map(|i| LEFT_OUT[i]), result) {
            (None, Ok(())) => {}
            (None, Err(e)) => failures.push(format!("{name}: {stage:?}: {e}")),
            (Some(_), Ok(())) => failures.push(format!("{name} passes: take it off the list")),
            (Some((_, want, _)), Err(e)) if want != stage => {
                failures.push(format!("{name} is listed as {want:?} and reaches {stage:?}: {e}"));
            }
            (Some(_), Err(_)) => {}
        }
    }
    let unused = LEFT_OUT.iter().zip(&used).filter(|(_, used)| !**used);
    failures.extend(unused.map(|((part, ..), _)| format!("'{part}' is listed and no case is called so")));
    let at_least = |stage: Stage| reached.iter().filter(|(s, _)| **s >= stage).map(|(_, n)| n).sum::<usize>();
    println!(
        "{} cases: {} read, {} inferred, {} evaluated",
        cases.len(),
        at_least(Stage::Read),
        at_least(Stage::Inferred),
        at_least(Stage::Evaluated)
    );
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
