//! Whole networks: each file is read as a user's is, made a train step and run on every engine, and the gradient of each of
//! its weights agrees with torch in float64; and ONNX Runtime gives the same bits for it as Limbeck writes it. The files are those of torch's exporters (`tests/golden/models/make.py`), and
//! two that other people trained (`make_real.py`), which `cargo xtask test --full` fetches.
#![allow(missing_docs)]

#[path = "models/anew.rs"]
mod anew;
#[path = "models/generated.rs"]
mod generated;
#[path = "models/golden.rs"]
mod golden;

use golden::Golden;
use std::io::Write;
use std::path::Path;

/// A golden network: its step, on every engine.
fn check(name: &str) {
    let golden = Golden::read(name);
    let net = golden.net(None);
    let step = golden.step(&net).unwrap_or_else(|error| panic!("{name}: {error}"));
    golden.compare(&step);
    written_anew(&golden, None);
}

fn written_anew(golden: &Golden, real: Option<&Path>) {
    let folder = tempfile::tempdir().unwrap();
    anew::check(&golden.place(real, folder.path()), &golden.batch());
}

/// A network of a package, where the packages are.
fn check_real(name: &str) {
    let Some(folder) = std::env::var_os("LIMBECK_REAL_MODELS") else {
        // Written past the harness, which would keep it to itself.
        let mut stderr = std::io::stderr();
        writeln!(stderr, "NOT TESTED: {name}: LIMBECK_REAL_MODELS names no folder of models").unwrap();
        return;
    };
    let golden = Golden::read(name);
    let net = golden.net(Some(Path::new(&folder)));
    golden.compare(&golden.step(&net).unwrap_or_else(|e| panic!("{name}: {e}")));
    written_anew(&golden, Some(Path::new(&folder)));
}

macro_rules! networks {
    ($check:ident: $($name:ident)*) => { $(#[test] fn $name() { $check(stringify!($name)); })* };
}

networks! { check:
    mobilenet_v3 mobilenet_v3_plain mobilenet_v2 mobilenet_v2_fused mobilenet_v2_script
    shufflenet_v2 shufflenet_dynamo shufflenet_plain convnext convnext_dynamo convnext_script
    unet unet_dynamo unet_folded bert bert_dynamo bert_script vit vit_attention transformer transformer_plain
    gru gru_dynamo gru_plain tcn tcn_dynamo mixed_dynamo mixed_plain
}
networks! { check_real: minilm classifier }

/// The oracle of the engines, too; it is slow.
#[test]
fn the_reference_evaluator_agrees_with_torch() {
    let golden = Golden::read("tcn");
    golden.compare_reference(&golden.step(&golden.net(None)).unwrap());
}
