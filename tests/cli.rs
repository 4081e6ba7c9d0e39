//! The command as a user meets it: exit codes, named errors, files in and out.

use limbeck::graph::Cx;
use limbeck::tensor::{DType, Tensor, TensorMap, io};
use std::path::Path;
use std::process::{Command, Output};

fn limbeck(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_limbeck")).args(args).output().expect("the command starts")
}

fn fails_naming(args: &[&str], code: i32, names: &[&str]) {
    let out = limbeck(args);
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
    for name in names {
        assert!(text.contains(name), "{args:?} should name '{name}': {text}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// `loss = sum((x w)²)`, x `[2, 3]`, w `[3, 1]`.
fn square_model(folder: &Path) -> std::path::PathBuf {
    let cx = Cx::new("square", DType::F32);
    let x = cx.input("x", DType::F32, &[2, 3]);
    let w = cx.initializer("w", Tensor::new([3, 1], vec![1f32, -2.0, 0.5]).unwrap());
    cx.output("loss", x.matmul(w).square().sum(&[]));
    let path = folder.join("square.onnx");
    cx.finish().unwrap().write(&path).unwrap();
    path
}

#[test]
fn gradients_equal_the_closed_form_on_every_engine() {
    let folder = tempfile::tempdir().unwrap();
    let model = square_model(folder.path());
    let x = [1f32, 2.0, 3.0, -1.0, 0.5, 2.0];
    let mut feeds = TensorMap::new();
    feeds.insert("x".into(), Tensor::new([2, 3], x.to_vec()).unwrap());
    let feeds_file = folder.path().join("feeds.safetensors");
    io::write_safetensors(&feeds_file, &feeds).unwrap();
    // d/dw = 2 x'(x w), d/dx = 2 (x w) w'.
    let w = [1f32, -2.0, 0.5];
    let y: Vec<f32> = x.chunks(3).map(|r| r.iter().zip(&w).map(|(a, b)| a * b).sum()).collect();
    let dw: Vec<f32> = (0..3).map(|j| 2.0 * (x[j] * y[0] + x[3 + j] * y[1])).collect();
    let dx: Vec<f32> = (0..6).map(|i| 2.0 * y[i / 3] * w[i % 3]).collect();
    let engines = limbeck::runtime::engines().into_iter().map(|e| e.name());
    for engine in std::iter::once("reference").chain(engines) {
        let out = folder.path().join(format!("{engine}.safetensors"));
        let args = [
            "grad",
            text(&model),
            "--loss",
            "loss",
            "--feeds",
            text(&feeds_file),
            "--out",
            text(&out),
            "--inputs",
            "--engine",
            engine,
        ];
        let run = limbeck(&args);
        assert!(run.status.success(), "{engine}: {}", String::from_utf8_lossy(&run.stderr));
        let got = io::read_safetensors(&out).unwrap();
        assert_eq!(got["w"].to_vec::<f32>().unwrap(), dw, "{engine}");
        assert_eq!(got["x"].to_vec::<f32>().unwrap(), dx, "{engine}");
    }
}

#[test]
fn objectives_are_listed_and_evaluated() {
    let list = limbeck(&["objective", "list", "--json"]);
    assert!(String::from_utf8_lossy(&list.stdout).contains("\"kd\""));
    let folder = tempfile::tempdir().unwrap();
    let taps_file = folder.path().join("taps.safetensors");
    let logits = Tensor::new([1, 2], vec![0f32, 0.0]).unwrap();
    let mut taps = TensorMap::new();
    taps.insert("student_logits".into(), logits);
    taps.insert("labels".into(), Tensor::new([1], vec![1i64]).unwrap());
    io::write_safetensors(&taps_file, &taps).unwrap();
    let out = folder.path().join("out.safetensors");
    let run = limbeck(&["objective", "eval", "ce", "--tensors", text(&taps_file), "--out", text(&out)]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let got = io::read_safetensors(&out).unwrap();
    // Equal logits of two classes: ln 2, and p - y.
    assert!((got["loss"].to_f64_vec().unwrap()[0] - 2f64.ln()).abs() < 1e-6);
    assert_eq!(got["student_logits"].to_vec::<f32>().unwrap(), [0.5, -0.5]);
    let args = ["objective", "eval", "ce", "--tensors", text(&taps_file), "--out", text(&out), "--set", "tau=2"];
    fails_naming(&args, 1, &["tau", "label_smoothing"]);
}

#[test]
fn bad_input_is_named_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let model = square_model(folder.path());
    let whole = std::fs::read(&model).unwrap();
    let damaged = folder.path().join("damaged.onnx");
    std::fs::write(&damaged, &whole[..whole.len() / 2]).unwrap();
    fails_naming(&["inspect", text(&damaged)], 1, &["damaged.onnx"]);
    fails_naming(&["inspect", text(&folder.path().join("absent.onnx"))], 1, &["absent.onnx"]);

    let feeds_file = folder.path().join("feeds.safetensors");
    let out = folder.path().join("out.safetensors");
    let mut feeds = TensorMap::new();
    feeds.insert("x".into(), Tensor::new([2, 4], vec![0f32; 8]).unwrap());
    io::write_safetensors(&feeds_file, &feeds).unwrap();
    let grad = |loss: &str| {
        ["grad", text(&model), "--loss", loss, "--feeds", text(&feeds_file), "--out", text(&out)]
            .map(str::to_owned)
            .to_vec()
    };
    let args = grad("loss");
    fails_naming(&args.iter().map(String::as_str).collect::<Vec<_>>(), 1, &["'x'", "[2, 4]"]);
    assert!(!out.exists());

    fails_naming(&["targets", "show", "raspbery-pi-4"], 1, &["raspberry-pi-4"]);
    fails_naming(&["run", text(&model), "--feeds", text(&feeds_file), "--engine", "abacus"], 1, &["abacus", "tract"]);
    fails_naming(&["frobnicate"], 2, &["frobnicate"]);
    let recipe = folder.path().join("recipe.toml");
    std::fs::write(&recipe, "name = \"a\"\nepochs = 3\n").unwrap();
    fails_naming(&["distill", text(&recipe), "--out", text(&out)], 1, &["recipe.toml", "epochs"]);
}

#[test]
fn a_missing_onnx_runtime_is_an_error_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let model = square_model(folder.path());
    let feeds_file = folder.path().join("x.npy");
    io::write_npy(&feeds_file, &Tensor::new([2, 3], vec![0f32; 6]).unwrap()).unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_limbeck"))
        .args(["run", text(&model), "--engine", "ort", "--feeds", &format!("x={}", text(&feeds_file))])
        .env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.contains("/nowhere/libonnxruntime.so") && text.contains("ORT_DYLIB_PATH"), "{text}");
}
