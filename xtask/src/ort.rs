//! The ONNX Runtime library for the tests, taken from its PyPI wheel: pinned version, pinned hash.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::python;

/// The version that the tests run against.
const VERSION: &str = "1.32.0";

const NO_PIP: &str = "no python3 with pip was found to fetch ONNX Runtime with: install python3-pip, or the library, and set ORT_DYLIB_PATH";

/// A wheel that holds the library for one kind of machine.
#[derive(Debug, PartialEq)]
pub(crate) struct Wheel {
    os: &'static str,
    arch: &'static str,
    /// The wheel's platform tag: pip is told it, so that any Python can fetch it.
    platform: &'static str,
    sha256: &'static str,
}

/// The cp311 wheels; the library inside does not depend on the Python.
const WHEELS: &[Wheel] = &[
    Wheel {
        os: "linux",
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        sha256: "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d",
    },
    Wheel {
        os: "linux",
        arch: "aarch64",
        platform: "manylinux_2_28_aarch64",
        sha256: "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c",
    },
];

/// The wheel for the machine this runs on.
pub(crate) fn host_wheel() -> Result<&'static Wheel> {
    wheel_for(env::consts::OS, env::consts::ARCH)
}

fn wheel_for(os: &str, arch: &str) -> Result<&'static Wheel> {
    let wheel = WHEELS.iter().find(|wheel| wheel.os == os && wheel.arch == arch);
    wheel.with_context(|| {
        let known: Vec<String> = WHEELS.iter().map(|wheel| format!("{} {}", wheel.os, wheel.arch)).collect();
        format!(
            "no ONNX Runtime wheel is pinned for {os} {arch} (only {}): install the library and set ORT_DYLIB_PATH",
            known.join(", ")
        )
    })
}

/// What the tests find of ONNX Runtime.
pub(crate) enum Library {
    /// The path of the library.
    Found(PathBuf),
    /// Why there is none, and what to do about it.
    None(String),
}

/// The library the user names with `ORT_DYLIB_PATH`, the one fetched before, or one fetched now. Fails if there is a way
/// to get it and it does not work.
pub(crate) fn for_tests() -> Result<Library> {
    if let Some(path) = env::var_os("ORT_DYLIB_PATH").map(PathBuf::from) {
        // Absolute, since every test runs in the folder of its own package.
        let path = path.canonicalize().with_context(|| format!("ORT_DYLIB_PATH names {}", path.display()))?;
        return Ok(Library::Found(path));
    }
    let wheel = match host_wheel() {
        Ok(wheel) => wheel,
        Err(reason) => return Ok(Library::None(reason.to_string())),
    };
    if !wheel.library()?.is_file() && python::with_pip().is_none() {
        return Ok(Library::None(NO_PIP.to_owned()));
    }
    fetch(wheel).map(Library::Found)
}

/// Fetches the wheel with pip, unpacks the library under `target/onnxruntime/`, and gives its path. Does nothing if it
/// is there already.
pub(crate) fn fetch(wheel: &Wheel) -> Result<PathBuf> {
    let library = wheel.library()?;
    if library.is_file() {
        return Ok(library);
    }
    let Some(python) = python::with_pip() else {
        bail!(NO_PIP);
    };
    let folder = library.parent().context("the library lies in a folder")?;
    let scratch = folder.join(format!("fetching-{}", std::process::id()));
    fs::create_dir_all(&scratch)?;
    let fetched = fetch_into(wheel, &python, &scratch);
    let placed = fetched.and_then(|fetched| Ok(fs::rename(fetched, &library)?));
    fs::remove_dir_all(&scratch)?;
    placed.context("ONNX Runtime could not be fetched; `cargo xtask test --offline` tests without it")?;
    Ok(library)
}

/// The path of the unpacked library inside `scratch`.
fn fetch_into(wheel: &Wheel, python: &Path, scratch: &Path) -> Result<PathBuf> {
    let tags = ["--platform", wheel.platform, "--implementation", "cp", "--python-version", "3.11", "--abi", "cp311"];
    let unpacked = scratch.join("unpacked");
    python::unpack_wheel(python, &wheel.requirement(), &tags, &unpacked)?;
    let library = unpacked.join("onnxruntime/capi").join(Wheel::file_name());
    if !library.is_file() {
        bail!("the wheel holds no onnxruntime/capi/{}", Wheel::file_name());
    }
    Ok(library)
}

impl Wheel {
    fn file_name() -> String {
        format!("libonnxruntime.so.{VERSION}")
    }

    /// Where the unpacked library is kept.
    fn library(&self) -> Result<PathBuf> {
        let folder = env::current_dir()?.join("target/onnxruntime").join(self.platform);
        Ok(folder.join(Wheel::file_name()))
    }

    /// The line that pins version and hash for pip.
    fn requirement(&self) -> String {
        format!("onnxruntime=={VERSION} --hash=sha256:{}\n", self.sha256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wheel_is_pinned_by_a_hash_and_tagged_for_its_machine() {
        for wheel in WHEELS {
            assert!(wheel.platform.ends_with(wheel.arch), "{wheel:?}");
            assert!(wheel.sha256.len() == 64 && wheel.sha256.bytes().all(|b| b.is_ascii_hexdigit()), "{wheel:?}");
            assert_eq!(wheel_for(wheel.os, wheel.arch).unwrap(), wheel);
        }
    }

    #[test]
    fn a_machine_without_a_wheel_is_told_what_to_do() {
        let error = wheel_for("linux", "arm").unwrap_err().to_string();
        assert!(error.contains("linux arm") && error.contains("ORT_DYLIB_PATH"), "{error}");
    }

    #[test]
    fn the_requirement_line_is_what_pip_reads() {
        let wheel = Wheel { os: "linux", arch: "x86_64", platform: "any_x86_64", sha256: "abc" };
        assert_eq!(wheel.requirement(), "onnxruntime==1.32.0 --hash=sha256:abc\n");
    }
}
