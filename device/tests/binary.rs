//! The binary itself, on the runtime's toy bundle: it computes what the library computes, learns, and says with its exit
//! code how it went.

#[path = "../../runtime/tests/common/mod.rs"]
mod common;

use common::{rows, write};
use limbeck_runtime::{Bundle, CompileOptions, Session, WeightsOrigin, engine};
use limbeck_tensor::{
    Tensor,
    io::{read_npy, write_npy},
};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Exit code, standard output, standard error.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_limbeck-device")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

/// The report of a run that ends with `code`.
#[track_caller]
fn report(arguments: &[&str], code: i32) -> Value {
    let (got, out, err) = run(arguments);
    assert_eq!(got, code, "{out} {err}");
    serde_json::from_str(&out).unwrap()
}

fn session(root: &Path) -> Session {
    Bundle::open(root).unwrap().session(engine("tract").unwrap(), &CompileOptions::default()).unwrap()
}

/// A bundle, and a folder for files, as text.
struct Place {
    bundle: tempfile::TempDir,
    files: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { bundle: tempfile::tempdir().unwrap(), files: tempfile::tempdir().unwrap() };
        write(place.bundle.path(), true);
        place
    }

    fn root(&self) -> &str {
        self.bundle.path().to_str().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn npy(&self, name: &str, tensor: &Tensor) -> String {
        write_npy(&self.path(name), tensor).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }
}

#[test]
fn it_tests_itself_and_predicts_what_the_library_predicts() {
    let place = Place::new();
    let tested = report(&["self-test", "--received", place.root()], 0);
    assert_eq!((&tested["engine"], &tested["outputs"][0]["rows"]), (&"tract".into(), &11.into()));
    let info = report(&["info", place.root()], 0);
    assert_eq!((&info["name"], &info["weights"], &info["commits"]), (&"circle".into(), &"shipped".into(), &0.into()));

    let (x, _) = rows(19, 10.0, 4);
    let (inputs, out) = (place.npy("x.npy", &x), place.path("y.npy"));
    let said = report(&["predict", place.root(), "--inputs", &inputs, "--out", out.to_str().unwrap()], 0);
    assert_eq!((&said["rows"], &said["shape"]), (&19.into(), &serde_json::json!([19, 3])));
    assert_eq!(read_npy(&out).unwrap(), session(place.bundle.path()).predict(&[("x", &x)]).unwrap()["logits"]);
}

#[test]
fn it_learns_commits_and_rolls_back() {
    let place = Place::new();
    let (x, y) = rows(120, 40.0, 5);
    let (inputs, labels) = (place.npy("x.npy", &x), place.npy("y.npy", &y));
    let learn = ["learn", place.root(), "--inputs", &inputs, "--labels", &labels, "--lr", "0.5", "--max-drop", "0.1"];
    let dry = report(&learn, 0);
    assert_eq!((&dry["promoted"], &dry["steps"], &dry["commit"]), (&true.into(), &40.into(), &Value::Null));
    assert_eq!(Bundle::open(place.root()).unwrap().report().origin, WeightsOrigin::Shipped);

    let before = session(place.bundle.path()).predict(&[("x", &x)]).unwrap();
    let kept = report(&[&learn[..], &["--commit"]].concat(), 0);
    assert_eq!((&kept["commit"], &kept["step"]), (&1.into(), &"adapt (portable)".into()));
    let slot = WeightsOrigin::Slot { slot: "a".into(), sequence: 1 };
    assert_eq!(Bundle::open(place.root()).unwrap().report().origin, slot);
    assert_ne!(session(place.bundle.path()).predict(&[("x", &x)]).unwrap(), before);
    assert_eq!(report(&["info", place.root()], 0)["commits"], 1);

    // Labels that are wrong throughout: the held-out rows say so, and nothing is committed.
    let wrong: Vec<i64> = y.to_i64_vec().unwrap().iter().map(|class| (class + 1) % 3).collect();
    let wrong = place.npy("wrong.npy", &Tensor::new([120], wrong).unwrap());
    let poisoned = ["learn", place.root(), "--inputs", &inputs, "--labels", &wrong, "--lr", "0.5", "--commit"];
    let verdict = report(&poisoned, 3);
    assert_eq!((&verdict["promoted"], &verdict["commit"]), (&false.into(), &Value::Null));
    assert_eq!(Bundle::open(place.root()).unwrap().report().origin, slot);
    let (code, _, err) = run(&["self-test", "--received", place.root()]);
    assert!(code == 1 && err.contains("does not list"), "{err}");
    report(&["self-test", place.root()], 0);
}

#[test]
fn what_is_wrong_is_said_with_an_exit_code() {
    let place = Place::new();
    assert_eq!(run(&["fly"]).0, 2);
    assert_eq!(run(&["predict", place.root()]).0, 2);
    let out = place.path("y.npy").to_str().unwrap().to_owned();
    let predict = |inputs: &str| {
        let (code, text, err) = run(&["predict", place.root(), "--inputs", inputs, "--out", &out]);
        assert!(code == 1 && text.is_empty(), "{code} {text}");
        err
    };
    let wide = place.npy("wide.npy", &Tensor::new([2, 3], vec![0f32; 6]).unwrap());
    assert!(predict(&wide).contains("input `x` got float32 [2, 3], but expected float32 [8, 2]"));
    assert!(predict("nowhere.npy").contains("nowhere.npy"));
    std::fs::write(place.path("junk.npy"), b"junk").unwrap();
    assert!(predict(place.path("junk.npy").to_str().unwrap()).contains("not an npy file"));
    assert!(!place.path("y.npy").exists());

    let (x, y) = rows(12, 0.0, 5);
    let (inputs, labels) = (place.npy("x.npy", &x), place.npy("y.npy", &y.rows(0..5).unwrap()));
    let (code, _, err) = run(&["learn", place.root(), "--inputs", &inputs, "--labels", &labels]);
    assert!(code == 1 && err.contains("5 labels for 12 rows"), "{err}");
    std::fs::write(place.bundle.path().join("state.safetensors"), b"other").unwrap();
    let (code, _, err) = run(&["self-test", place.root()]);
    assert!(code == 1 && err.contains("state.safetensors"), "{err}");
}
