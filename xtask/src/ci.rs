//! The checks of continuous integration, and the test run they share with the README's command.

use anyhow::{Context, Result};

use crate::arm;
use crate::ort::{self, Library};
use crate::process::{cargo, run as run_command};

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

/// All tests, with ONNX Runtime unless `tract_only` or there is no way to get it; with `full` at length (`LIMBECK_TEST_FULL`:
/// the whole demo on every engine; more random cases).
pub(crate) fn test(full: bool, tract_only: bool) -> Result<()> {
    let mut tests = cargo();
    tests.args(["test", "--workspace"]);
    if full {
        tests.env("LIMBECK_TEST_FULL", "1").env("PROPTEST_CASES", "200000");
    }
    if tract_only {
        eprintln!("ONNX Runtime is not tested, as asked: tract alone is.");
        // Not merely unset: a library could be found elsewhere.
        tests.env("ORT_DYLIB_PATH", "none, tract alone is tested");
    } else {
        match ort::for_tests()? {
            Library::Found(library) => {
                eprintln!("ONNX Runtime: {}", library.display());
                tests.env("ORT_DYLIB_PATH", library);
            }
            Library::None(reason) => eprintln!("ONNX Runtime is not tested, tract alone is: {reason}."),
        }
    }
    run_command(&mut tests)
}
