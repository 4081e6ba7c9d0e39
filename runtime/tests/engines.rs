//! One suite for every engine that is usable here. Expected values are float64 torch results, written with the models by
//! `models/make.py`.

use limbeck_runtime::{CompileOptions, ENGINES, Engine, Model, Program, RuntimeError, StatePair, engine, engines};
use limbeck_tensor::{
    DType, Tensor,
    io::{TensorMap, read_safetensors},
};
use std::{path::PathBuf, sync::LazyLock, thread};

static EXPECTED: LazyLock<TensorMap> =
    LazyLock::new(|| read_safetensors(&folder().join("expected.safetensors")).unwrap());

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/models")
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(name).with_extension("onnx")).unwrap()
}

/// Compiles a model for one thread. `state` rows are store name, input, output.
fn compile(engine: &dyn Engine, name: &str, state: &[[&str; 3]]) -> Result<Box<dyn Program>, RuntimeError> {
    let state = state
        .iter()
        .map(|&[name, input, output]| StatePair { name: name.into(), input: input.into(), output: output.into() })
        .collect();
    let model = Model { state, ..Model::new(bytes(name)) };
    engine.compile(&model, &CompileOptions { threads: 1, ..Default::default() })
}

fn expected(key: &str) -> &'static Tensor {
    &EXPECTED[key]
}

/// Largest difference relative to the largest expected value.
#[track_caller]
fn assert_close(what: &str, got: &Tensor, want: &Tensor) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let (got, want) = (got.to_f64_vec().unwrap(), want.to_f64_vec().unwrap());
    let scale = want.iter().fold(1e-30, |m: f64, w| m.max(w.abs()));
    let error = got.iter().zip(&want).fold(0.0, |m: f64, (g, w)| m.max((g - w).abs())) / scale;
    assert!(error < 2e-6, "{what}: relative error {error:e}");
}

fn message<T>(result: Result<T, RuntimeError>) -> String {
    result.err().map(|e| e.to_string()).expect("an error")
}

#[test]
fn engines_not_tested_here_give_their_reason() {
    for name in ENGINES {
        match engine(name) {
            Ok(engine) => assert_eq!(engine.describe().name, *name),
            Err(error) => eprintln!("NOT TESTED: {name}: {error}"),
        }
    }
    assert!(!engines().is_empty(), "no engine to test");
    assert!(message(engine("nonesuch").map(|_| ())).contains("nonesuch"));
}

#[test]
fn inference_agrees_with_torch() {
    for engine in engines() {
        let program = compile(engine, "mlp", &[]).unwrap();
        let out = program.infer(&[("x", expected("mlp.x"))]).unwrap();
        assert_close(engine.name(), &out["y"], expected("mlp.y"));
        assert_eq!(out.len(), 1);
        assert_eq!(program.inputs()[0].to_string(), "float32 [5, 6]");
    }
}

const SGD: &[[&str; 3]] = &[["weight", "w", "w1"], ["momentum", "v", "v1"], ["scale", "scale", ""]];

fn sgd_store(engine: &dyn Engine) -> limbeck_runtime::StateStore {
    let mut store = engine.new_store();
    store.insert("weight", expected("sgd.w")).unwrap();
    store.insert("momentum", &Tensor::zeros(DType::F32, [6, 3]).unwrap()).unwrap();
    store.insert("scale", expected("sgd.scale")).unwrap();
    store
}

fn sgd_feeds() -> [(&'static str, &'static Tensor); 3] {
    [("x", expected("sgd.x")), ("t", expected("sgd.t")), ("lr", expected("sgd.lr"))]
}

#[test]
fn state_stays_in_the_store_and_learns_as_torch_does() {
    for engine in engines() {
        let program = compile(engine, "sgd", SGD).unwrap();
        let mut store = sgd_store(engine);
        let losses: Vec<f64> =
            (0..5).map(|_| program.run(&mut store, &sgd_feeds()).unwrap()["loss"].to_f64_vec().unwrap()[0]).collect();
        assert_close("losses", &Tensor::new([5], losses).unwrap(), expected("sgd.losses"));
        assert_close("weight", &store.get("weight").unwrap(), expected("sgd.w_after"));
        assert_close("momentum", &store.get("momentum").unwrap(), expected("sgd.v_after"));
        assert_eq!(&store.get("scale").unwrap(), expected("sgd.scale"));
        assert_eq!(store.bytes(), (18 + 18 + 3) * 4);
        assert_eq!(store.names().collect::<Vec<_>>(), ["momentum", "scale", "weight"]);
        let updated: Vec<bool> = program.state().iter().map(|s| s.updated).collect();
        assert_eq!(updated, [true, true, false]);
    }
}

#[test]
fn a_snapshot_brings_the_state_back() {
    for engine in engines() {
        let program = compile(engine, "sgd", SGD).unwrap();
        let mut store = sgd_store(engine);
        program.run(&mut store, &sgd_feeds()).unwrap();
        let before = store.snapshot();
        assert!(store.share("weight", "average"));
        let first = program.run(&mut store, &sgd_feeds()).unwrap();
        assert_eq!(store.get("average").unwrap(), before.get("weight").unwrap(), "a shared value is not overwritten");
        assert_ne!(store.get("weight").unwrap(), before.get("weight").unwrap());
        store = before;
        assert_eq!(program.run(&mut store, &sgd_feeds()).unwrap(), first, "{}", engine.name());
    }
}

#[test]
fn a_failed_run_leaves_the_store_as_it_was() {
    for engine in engines() {
        let program = compile(engine, "gather", &[["w", "w", "w1"]]).unwrap();
        let mut store = engine.new_store();
        let w = Tensor::new([4], vec![0f32, 1.0, 2.0, 3.0]).unwrap();
        store.insert("w", &w).unwrap();
        let far = Tensor::new([2], vec![0i64, 1_000_000]).unwrap();
        assert!(program.run(&mut store, &[("index", &far)]).is_err(), "{}", engine.name());
        assert_eq!(store.get("w").unwrap(), w, "{}", engine.name());
        let near = Tensor::new([2], vec![0i64, 3]).unwrap();
        let out = program.run(&mut store, &[("index", &near)]).unwrap();
        assert_eq!(out["y"].to_vec::<f32>().unwrap(), [1.0, 4.0]);
        assert_eq!(store.get("w").unwrap().to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    }
}

#[test]
fn a_named_dimension_takes_any_batch() {
    for engine in engines() {
        let program = compile(engine, "dynamic", &[]).unwrap();
        assert_eq!(program.inputs()[0].dims, [None, Some(4)]);
        for rows in [7, 1, 3] {
            let x = expected("dynamic.x").rows(0..rows).unwrap();
            let out = program.infer(&[("x", &x)]).unwrap();
            assert_close(engine.name(), &out["y"], &expected("dynamic.y").rows(0..rows).unwrap());
            assert_eq!(out["rows"].to_vec::<i64>().unwrap(), [rows as i64]);
        }
    }
}

#[test]
fn types_pass_and_results_outlive_everything() {
    for engine in engines() {
        let program = compile(engine, "types", &[]).unwrap();
        let out = {
            let x = Tensor::new([3], vec![-1f32, 0.0, f32::NAN]).unwrap();
            let mask = Tensor::bools([3], &[true, false, true]).unwrap();
            program.infer(&[("x", &x), ("mask", &mask)]).unwrap()
        };
        drop(program);
        let same = out["same"].to_vec::<f32>().unwrap();
        assert!(same[..2] == [-1.0, 0.0] && same[2].is_nan(), "{}: {same:?}", engine.name());
        assert_eq!(out["positive"].dtype(), DType::Bool);
        assert_eq!(out["positive"].to_vec::<u8>().unwrap(), [0, 0, 0]);
        assert_eq!(out["count"].to_vec::<i64>().unwrap(), [1, 0, 1]);
    }
}

#[test]
fn equal_nodes_may_all_be_outputs() {
    let (x, y) = (Tensor::new([4], vec![1f32, 2.0, 3.0, 4.0]).unwrap(), Tensor::new([4], vec![5f32; 4]).unwrap());
    for engine in engines() {
        let out = compile(engine, "thrice", &[]).unwrap().infer(&[("x", &x), ("y", &y)]).unwrap();
        for name in ["first", "last"] {
            assert_eq!(out[name].to_vec::<f32>().unwrap(), [5.0, 10.0, 15.0, 20.0], "{} {name}", engine.name());
        }
        assert_eq!(out["sum"].to_vec::<f32>().unwrap(), [6.0, 12.0, 18.0, 24.0], "{}", engine.name());
    }
}

#[test]
fn fused_convolutions_agree_with_torch() {
    for engine in engines() {
        for threads in [1, 2] {
            let model = Model::new(bytes("conv"));
            let program = engine.compile(&model, &CompileOptions { threads, ..Default::default() }).unwrap();
            let feeds = ["x", "w", "b", "gy"].map(|name| (name, expected(&format!("conv.{name}"))));
            let out = program.infer(&feeds).unwrap();
            for name in ["y", "gx", "gw"] {
                let what = format!("{} {name}, {threads} threads", engine.name());
                assert_close(&what, &out[name], expected(&format!("conv.{name}")));
            }
        }
        let program = compile(engine, "conv_batch", &[]).unwrap();
        for rows in [5, 2] {
            let x = expected("conv_batch.x").rows(0..rows).unwrap();
            let out = program.infer(&[("x", &x)]).unwrap();
            assert_close(engine.name(), &out["y"], &expected("conv_batch.y").rows(0..rows).unwrap());
        }
    }
}

#[test]
fn several_threads_run_one_program() {
    for engine in engines() {
        for (name, threads) in [("sgd", 1), ("sgd", 2)] {
            let model = Model {
                state: SGD
                    .iter()
                    .map(|&[n, i, o]| StatePair { name: n.into(), input: i.into(), output: o.into() })
                    .collect(),
                ..Model::new(bytes(name))
            };
            let program = engine.compile(&model, &CompileOptions { threads, ..Default::default() }).unwrap();
            let program = &*program;
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(move || {
                        for _ in 0..50 {
                            let mut store = sgd_store(engine);
                            (0..5).for_each(|_| drop(program.run(&mut store, &sgd_feeds()).unwrap()));
                            assert_close("weight", &store.get("weight").unwrap(), expected("sgd.w_after"));
                        }
                    });
                }
            });
        }
    }
}

#[test]
fn external_data_comes_from_the_models_folder_only() {
    for engine in engines() {
        let options = CompileOptions::default();
        let mut model = Model { folder: Some(folder()), ..Model::new(bytes("external")) };
        let program = engine.compile(&model, &options).unwrap();
        let out = program.infer(&[("x", expected("external.x"))]).unwrap();
        assert_close(engine.name(), &out["y"], expected("external.y"));
        model.folder = None;
        assert!(engine.compile(&model, &options).is_err(), "{}: no folder was given", engine.name());

        let place = tempfile::tempdir().unwrap();
        let inner = place.path().join("model");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(place.path().join("escaping.data"), [0; 32]).unwrap();
        let model = Model { folder: Some(inner), ..Model::new(bytes("escaping")) };
        let error = message(engine.compile(&model, &options).map(|_| ()));
        assert!(error.contains("escaping.data"), "{}: {error}", engine.name());
    }
}

#[test]
fn wrong_feeds_and_state_are_named() {
    for engine in engines() {
        let program = compile(engine, "sgd", SGD).unwrap();
        let [x, t, lr] = sgd_feeds();
        let short = x.1.rows(0..4).unwrap();
        let double = x.1.cast(DType::F64).unwrap();
        for (feeds, says) in [
            (vec![x, t], "input `lr` is missing; expected float32 []"),
            (vec![x, t, lr, ("y", x.1)], "`y` is not an input; the inputs are [\"x\", \"t\", \"lr\"]"),
            (vec![x, t, lr, ("w", x.1)], "`w` is not an input"),
            (vec![x, t, lr, x], "input `x` was fed twice"),
            (vec![("x", &short), t, lr], "input `x` got float32 [4, 6], but expected float32 [8, 6]"),
            (vec![("x", &double), t, lr], "input `x` got float64 [8, 6], but expected float32 [8, 6]"),
        ] {
            let error = message(program.run(&mut sgd_store(engine), &feeds));
            assert!(error.contains(says), "{}: {error}", engine.name());
        }
        let mut store = sgd_store(engine);
        store.remove("momentum");
        let error = message(program.run(&mut store, &sgd_feeds()));
        assert!(error.contains("no value `momentum`, which input `v` needs"), "{error}");
        store.insert("momentum", x.1).unwrap();
        let error = message(program.run(&mut store, &sgd_feeds()));
        assert!(error.contains("input `v` got float32 [8, 6], but expected float32 [6, 3]"), "{error}");
        assert!(message(store.get("nothing")).contains("`nothing`"));
        let error = message(compile(engine, "sgd", &[["w", "w", "v2"]]).map(|_| ()));
        assert!(error.contains("no output `v2`"), "{error}");
        for other in engines().into_iter().filter(|e| e.name() != engine.name()) {
            let error = message(program.run(&mut other.new_store(), &sgd_feeds()));
            assert!(error.contains(other.name()) && error.contains(engine.name()), "{error}");
        }
    }
}

#[test]
fn unknown_operators_are_named() {
    for engine in engines() {
        let error = message(compile(engine, "foreign", &[]).map(|_| ()));
        assert!(error.contains("example.org") && error.contains("Relu"), "{}: {error}", engine.name());
    }
}

#[test]
fn damaged_models_give_errors() {
    let whole = bytes("mlp");
    for engine in engines() {
        let options = CompileOptions { threads: 1, ..Default::default() };
        for len in 0..whole.len() {
            let model = Model::new(whole[..len].to_vec());
            assert!(engine.compile(&model, &options).is_err(), "{}: the first {len} bytes", engine.name());
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            // Many flips give another valid model; that none of them ends the process is the point.
            if let Ok(program) = engine.compile(&Model::new(bytes), &options) {
                let _ = program.infer(&[("x", expected("mlp.x"))]);
            }
        }
    }
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    use limbeck_runtime::Device;
    for engine in engines().into_iter().filter(|e| !e.describe().providers.iter().any(|p| p.contains("CUDA"))) {
        for device in [Device::Cuda(0), Device::TensorRt(0)] {
            let options = CompileOptions { device, ..Default::default() };
            assert!(engine.compile(&Model::new(bytes("mlp")), &options).is_err(), "{} {device:?}", engine.name());
        }
    }
}

#[test]
fn options_that_would_change_nothing_are_refused() {
    let model = Model::new(bytes("mlp"));
    for engine in engines() {
        let said = |options: CompileOptions| message(engine.compile(&model, &options));
        let half = said(CompileOptions { half: true, ..Default::default() });
        assert!(half.contains("`half`") && half.contains("float16 model") && half.contains("Cpu"), "{half}");
        let cache = said(CompileOptions { cache: Some("cache".into()), ..Default::default() });
        assert!(cache.contains("`cache`") && cache.contains("TensorRT"), "{cache}");
        let provider = compile(engine, "mlp", &[]).unwrap().provider().to_owned();
        assert!(["cpu", "CPUExecutionProvider"].contains(&provider.as_str()), "{provider}");
    }
}

#[cfg(feature = "ort")]
mod without_library {
    use super::*;

    /// Runs in a process of its own, started by the test below.
    #[test]
    #[ignore = "started by a_missing_library_is_an_error_with_a_remedy"]
    fn child() {
        let error = message(engine("ort").map(|_| ()));
        assert!(error.contains("pip install onnxruntime") && error.contains("ORT_DYLIB_PATH"), "{error}");
        assert_eq!(message(engine("ort").map(|_| ())), error, "asking again gives the same answer");
        assert!(engines().iter().all(|e| e.name() != "ort"));
    }

    #[test]
    fn a_missing_library_is_an_error_with_a_remedy() {
        let place = tempfile::tempdir().unwrap();
        let junk = place.path().join("libonnxruntime.so");
        std::fs::write(&junk, b"not a library").unwrap();
        for path in [place.path().join("absent.so"), junk, std::env::current_exe().unwrap()] {
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "without_library::child", "--ignored"])
                .env("ORT_DYLIB_PATH", &path)
                .output()
                .unwrap();
            assert!(child.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&child.stdout));
        }
    }
}
