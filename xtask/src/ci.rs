//! The checks of continuous integration, and the test run they share with the README's command.

use std::process::Command;

use anyhow::{Context, Result};

use crate::ort::{self, Library};
use crate::process::{cargo, run as run_command};
use crate::{arm, models, node_tests};

/// Formatting, lints, documentation, tests on both engines, and unless `no_arm` the device binary on ARM; stops at the
/// first failure.
pub(crate) fn run(no_arm: bool) -> Result<()> {
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    run_command(cargo().args(["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    for engine in ["tract", "ort"] {
        let alone = ["clippy", "--package", "limbeck", "--no-default-features", "--features", engine];
        run_command(cargo().args(alone).args(["--", "-D", "warnings"]))?;
    }
    let mut doc = cargo();
    run_command(doc.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    test(false, false)?;
    if no_arm {
        eprintln!("ARM is not checked, as asked.");
        return Ok(());
    }
    let toolchain = arm::Toolchain::find_or_install().context("`cargo xtask ci --no-arm` does without ARM")?;
    arm::run(&toolchain, "limbeck-device", None)
}

/// All tests, with what [`given`] finds; with `full` at length (`LIMBECK_TEST_FULL`: the whole demo on every engine; models of
/// other people; more random cases).
pub(crate) fn test(full: bool, offline: bool) -> Result<()> {
    let mut tests = cargo();
    tests.args(["test", "--workspace"]);
    if full {
        tests.env("LIMBECK_TEST_FULL", "1").env("PROPTEST_CASES", "200000");
    }
    if offline {
        eprintln!("Nothing is fetched, as asked: tract alone is tested, and without ONNX's node tests.");
        // Not merely unset: a library could be found elsewhere.
        tests.env("ORT_DYLIB_PATH", "none, tract alone is tested");
    } else {
        given(&mut tests, full)?;
    }
    run_command(&mut tests)
}

/// Writes the catalogue of operators anew, by the test that checks it.
pub(crate) fn catalogue() -> Result<()> {
    let mut tests = cargo();
    tests.args(["test", "--workspace", "--test", "node_tests", "catalogue"]).env("LIMBECK_CATALOGUE", "write");
    given(&mut tests, false)?;
    run_command(&mut tests)
}

/// Tells the tests where ONNX Runtime, ONNX's node tests and, with `full`, models of other people lie; what is not there is
/// fetched. Says what cannot be had.
fn given(tests: &mut Command, full: bool) -> Result<()> {
    match ort::for_tests()? {
        Library::Found(library) => {
            eprintln!("ONNX Runtime: {}", library.display());
            tests.env("ORT_DYLIB_PATH", library);
        }
        Library::None(reason) => eprintln!("ONNX Runtime is not tested, tract alone is: {reason}."),
    }
    match node_tests::folder()? {
        Some(folder) => _ = tests.env("LIMBECK_NODE_TESTS", folder),
        None => eprintln!("ONNX's node tests do not run: no python3 with pip was found to generate them with."),
    }
    match full.then(models::folder).transpose()? {
        Some(Some(folder)) => _ = tests.env("LIMBECK_REAL_MODELS", folder),
        Some(None) => {
            eprintln!("Models of other people are not tested: no python3 with pip was found to fetch them with.")
        }
        None => {}
    }
    Ok(())
}
