//! The layers hold: who may depend on whom, who may be unsafe, who may print, what a device build contains.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// The workspace's layers, lowest first: a crate may depend on those named and on whatever they may depend on.
const LAYERS: &[(&str, &[&str])] = &[
    ("limbeck-tensor", &[]),
    ("limbeck-plan", &[]),
    ("limbeck-kernels", &[]),
    ("limbeck-targets", &[]),
    ("limbeck-graph", &["limbeck-tensor", "limbeck-plan"]),
    ("limbeck-autodiff", &["limbeck-graph"]),
    ("limbeck-runtime", &["limbeck-tensor", "limbeck-plan", "limbeck-kernels", "limbeck-targets"]),
    ("limbeck-exporters", &["limbeck-graph", "limbeck-runtime", "limbeck-targets"]),
    ("limbeck-distill", &["limbeck-autodiff", "limbeck-runtime", "limbeck-exporters"]),
    ("limbeck-device", &["limbeck-runtime"]),
    ("limbeck", &["limbeck-distill"]),
    ("xtask", &[]),
];

/// The only files with unsafe code: their crates deny it except there, every other crate forbids it.
const UNSAFE: &[(&str, &[&str])] = &[
    ("limbeck-tensor", &["src/map.rs"]),     // maps files
    ("limbeck-kernels", &["src/matmul.rs"]), // calls the GEMM
    // ONNX Runtime's C functions
    ("limbeck-runtime", &["src/ort/ffi.rs", "src/ort/custom.rs", "src/ort/call.rs", "src/ort/count.rs"]),
];

/// The programs: they talk to people, libraries do not.
const PRINTING: &[&str] = &["limbeck", "limbeck-device", "xtask"];

/// Builds for a device, as arguments of `cargo tree`.
const DEVICE_BUILDS: &[(&str, &[&str])] =
    &[("limbeck-runtime", &["--no-default-features", "--features", "tract"]), ("limbeck-device", &[])];

/// What a device build must not contain: the workstation's layers, and the engine that a device need not have.
const NOT_ON_A_DEVICE: &[&str] =
    &["limbeck-graph", "limbeck-autodiff", "limbeck-distill", "limbeck-exporters", "limbeck", "ort", "ort-sys"];

#[test]
fn dependencies_follow_the_layers() -> Result<()> {
    let metadata = metadata()?;
    let allowed = allowed();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        let allowed = allowed.get(name).with_context(|| format!("{name} has no row in LAYERS"))?;
        let ours = package.dependencies.iter().filter(|dependency| {
            dependency.kind != DependencyKind::Development && dependency.name.starts_with("limbeck")
        });
        for dependency in ours {
            ensure!(allowed.contains(dependency.name.as_str()), "{name} may not depend on {}", dependency.name);
        }
    }
    Ok(())
}

#[test]
fn unsafe_code_is_where_it_is_listed() -> Result<()> {
    for package in metadata()?.workspace_packages() {
        let listed = UNSAFE.iter().find(|(name, _)| *name == package.name.as_str()).map_or(&[][..], |(_, files)| files);
        let attribute = if listed.is_empty() { "#![forbid(unsafe_code)]" } else { "#![deny(unsafe_code)]" };
        for root in package.targets.iter().filter(|target| target.is_lib() || target.is_bin()) {
            let text = std::fs::read_to_string(&root.src_path)?;
            ensure!(text.lines().any(|line| line == attribute), "{} lacks {attribute}", root.src_path);
        }
        let folder = folder(package)?;
        for file in rust_files(&folder.join("src"))? {
            // The hyphen keeps the name of a web page's policy, `unsafe-inline`, one word; no Rust puts one after the keyword.
            let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
            let lines = code_lines(&file)?;
            let uses = lines.iter().any(|(_, line)| line.split(|c| !is_word(c)).any(|word| word == "unsafe"));
            let may = listed.iter().any(|listed| folder.join(listed) == file);
            ensure!(uses == may, "{}: uses unsafe: {uses}, listed in UNSAFE: {may}", file.display());
        }
    }
    Ok(())
}

#[test]
fn libraries_do_not_print() -> Result<()> {
    let macros = ["println!", "eprintln!", "print!", "eprint!", "dbg!"];
    for package in metadata()?.workspace_packages() {
        if PRINTING.contains(&package.name.as_str()) {
            continue;
        }
        for file in rust_files(&folder(package)?.join("src"))? {
            for (number, line) in code_lines(&file)? {
                let prints = macros.iter().find(|name| line.contains(*name));
                ensure!(prints.is_none(), "{}:{number}: a library prints: {line}", file.display());
            }
        }
    }
    Ok(())
}

#[test]
fn a_device_build_contains_no_workstation_code() -> Result<()> {
    for (package, features) in DEVICE_BUILDS {
        let mut tree = Command::new(env!("CARGO"));
        tree.args(["tree", "--offline", "--prefix", "none", "--edges", "normal"]);
        let output = tree.args(["--package", package]).args(*features).current_dir(root()).output()?;
        ensure!(output.status.success(), "{package}: {}", String::from_utf8_lossy(&output.stderr));
        let linked = String::from_utf8(output.stdout)?;
        let linked: BTreeSet<&str> = linked.lines().filter_map(|line| line.split_whitespace().next()).collect();
        for needed in ["limbeck-runtime", "limbeck-tensor", "tract-onnx"] {
            ensure!(linked.contains(needed), "{package}: {needed} is not linked: {linked:?}");
        }
        for unwanted in NOT_ON_A_DEVICE {
            ensure!(!linked.contains(unwanted), "{package} links {unwanted} on a device");
        }
    }
    Ok(())
}

/// Every crate with all crates it may depend on, directly or not. `xtask` may use anything.
fn allowed() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let mut allowed: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, direct) in LAYERS {
        let mut reachable: BTreeSet<&str> = direct.iter().copied().collect();
        for lower in *direct {
            reachable.extend(allowed.get(lower).into_iter().flatten());
        }
        allowed.insert(name, reachable);
    }
    allowed.insert("xtask", LAYERS.iter().map(|(name, _)| *name).collect());
    allowed
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The workspace's packages as their manifests declare them; nothing is resolved or fetched.
fn metadata() -> Result<Metadata> {
    Ok(MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec()?)
}

fn folder(package: &Package) -> Result<PathBuf> {
    Ok(package.manifest_path.parent().context("a manifest lies in a folder")?.into())
}

/// All Rust files below a folder.
fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    ensure!(!files.is_empty(), "{} holds no Rust", folder.display());
    Ok(files)
}

/// The numbered lines of a file that are not comments.
fn code_lines(file: &Path) -> Result<Vec<(usize, String)>> {
    let text = std::fs::read_to_string(file)?;
    let numbered = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim().to_owned()));
    Ok(numbered.filter(|(_, line)| !line.starts_with("//")).collect())
}
