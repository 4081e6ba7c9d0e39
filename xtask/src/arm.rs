//! The device binary for 64-bit ARM: finding or making a cross toolchain, building with it, running the result.
//!
//! Three hosts are served. On 64-bit ARM itself nothing is needed. With rustup, `rustup target add` gives the standard
//! library. Without it, on Debian, the distribution's `rustc-web` serves: the ARM half of its standard library is
//! fetched and unpacked under `target/arm/`, beside the system and not in it, and handed over with `--sysroot`.
//! The last two also take a cross linker and QEMU's user-mode emulator. What an emulated run takes says nothing about
//! a board: no time is reported.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use limbeck_tensor::Tensor;
use limbeck_tensor::io::{read_npy, read_safetensors, write_npy};

use crate::process::{self, cargo, output};

/// What is built for.
const TRIPLE: &str = "aarch64-unknown-linux-gnu";
/// The cross linker, from Debian's package `gcc-aarch64-linux-gnu`.
const LINKER: &str = "aarch64-linux-gnu-gcc";
/// Where Debian's `libc6-dev-arm64-cross` puts the C library that emulated programs load.
const LIBC: &str = "/usr/aarch64-linux-gnu";
/// The emulator's names: Debian's static build, and other distributions'.
const EMULATORS: &[&str] = &["qemu-aarch64-static", "qemu-aarch64"];
/// Debian's compiler, whose ARM standard library can be had from Debian too.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Everything of ours that is not part of the project: standard library, package lists, build output.
const FOLDER: &str = "target/arm";

/// How to build for the device, and how to run what was built.
#[derive(Debug, PartialEq)]
pub(crate) struct Toolchain {
    /// The compiler, where it is not cargo's own.
    rustc: Option<PathBuf>,
    /// Where its ARM standard library lies, if outside its own folder.
    sysroot: Option<PathBuf>,
    /// The program and arguments that run a device binary; empty if the host can run it itself.
    runner: Vec<String>,
}

impl Toolchain {
    /// The toolchain of this machine. As root on Debian, installs the packages that are missing.
    ///
    /// The error says what is missing and how to get it.
    pub(crate) fn find_or_install() -> Result<Toolchain> {
        if cfg!(all(target_os = "linux", target_arch = "aarch64")) {
            return Ok(Toolchain { rustc: None, sysroot: None, runner: Vec::new() });
        }
        let missing = Missing::look(rustup_std().is_some());
        if !missing.packages().is_empty() {
            missing.install()?;
        }
        let emulator = process::find_program(EMULATORS).context("the emulator is not in PATH")?;
        let runner = vec![emulator.display().to_string(), "-L".to_owned(), LIBC.to_owned()];
        if rustup_std().is_some() {
            return Ok(Toolchain { rustc: None, sysroot: None, runner });
        }
        let sysroot = debian_std().context(
            "the ARM standard library of Debian's rustc could not be had: upgrade rustc-web to the archive's version, or \
             `rustup target add aarch64-unknown-linux-gnu`",
        )?;
        Ok(Toolchain { rustc: Some(DEBIAN_RUSTC.into()), sysroot: Some(sysroot), runner })
    }

    /// Builds the binary of `package` with the profile `device` and gives its path.
    fn build(&self, package: &str) -> Result<PathBuf> {
        let folder = env::current_dir()?.join(FOLDER).join("build");
        let mut build = cargo();
        build.args(["build", "--locked", "--package", package, "--bin", package]);
        build.args(["--profile", "device", "--target", TRIPLE]);
        process::run(build.envs(self.environment()).env("CARGO_TARGET_DIR", &folder))?;
        Ok(folder.join(TRIPLE).join("device").join(package))
    }

    /// What cargo must know. The host's own flags (`RUSTFLAGS`) must not reach the device.
    fn environment(&self) -> Vec<(&'static str, String)> {
        let mut variables = Vec::new();
        if !self.runner.is_empty() {
            variables.push(("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER.to_owned()));
        }
        if let Some(rustc) = &self.rustc {
            variables.push(("RUSTC", rustc.display().to_string()));
        }
        let flags = match &self.sysroot {
            Some(sysroot) => format!("--sysroot\u{1f}{}", sysroot.display()),
            None => String::new(),
        };
        variables.push(("CARGO_ENCODED_RUSTFLAGS", flags));
        variables
    }

    /// A command that runs `binary`, emulated if need be.
    fn command(&self, binary: &Path) -> Command {
        match self.runner.split_first() {
            None => Command::new(binary),
            Some((emulator, arguments)) => {
                let mut command = Command::new(emulator);
                command.args(arguments).arg(binary);
                command
            }
        }
    }
}

/// Builds `package` for the device and exercises it on a bundle: the given one, or one of the demo, made first.
pub(crate) fn run(toolchain: &Toolchain, package: &str, bundle: Option<&Path>) -> Result<()> {
    let bundle = match bundle {
        Some(bundle) => bundle.to_owned(),
        None => demo_bundle()?,
    };
    let binary = toolchain.build(package)?;
    let kib = fs::metadata(&binary)?.len().div_ceil(1024);
    eprintln!("{}: {kib} KiB", binary.display());
    exercise(toolchain, &binary, &bundle)
}

/// A bundle of the demo on one split, made by this machine's own build.
fn demo_bundle() -> Result<PathBuf> {
    let folder = env::current_dir()?.join(FOLDER).join("demo");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    // With the tests, so that their crates, built with their features, are used again.
    process::run(cargo().args(["build", "--workspace", "--bin", "limbeck", "--tests", "--examples"]))?;
    let limbeck = env::current_dir()?.join("target/debug/limbeck");
    process::run(Command::new(limbeck).args(["demo", "--splits", "1", "--out"]).arg(&folder))?;
    Ok(folder.join("bundle-0"))
}

/// What a device does with a bundle, step by step; each must succeed, and the answers must be the host's.
fn exercise(toolchain: &Toolchain, binary: &Path, bundle: &Path) -> Result<()> {
    let folder = env::current_dir()?.join(FOLDER);
    let (inputs, labels, outputs) = (folder.join("x.npy"), folder.join("y.npy"), folder.join("logits.npy"));
    let digits = bundle.with_file_name("test-digits.safetensors");
    let digits = read_safetensors(&digits).context("the digits and answers that the demo writes beside its bundles")?;
    let field = |name: &str| digits.get(name).with_context(|| format!("test-digits.safetensors lacks `{name}`"));
    // The bundle itself stays as it is.
    let learning = folder.join("learning");
    copy_folder(bundle, &learning)?;
    let on = |command: &str, bundle: &Path| {
        let mut on = toolchain.command(binary);
        on.arg(command).arg(bundle);
        on
    };
    process::run(&mut on("self-test", bundle))?;
    write_npy(&inputs, &field("x")?.aligned())?;
    process::run(on("predict", bundle).arg("--inputs").arg(&inputs).arg("--out").arg(&outputs))?;
    let (theirs, ours) = (read_npy(&outputs)?, field("logits")?);
    let difference = agreement(&theirs, ours)?;
    eprintln!("{} digits answered as on this machine; logits differ by {difference:.1e}", ours.shape()[0]);

    const ROWS: usize = 48;
    write_npy(&inputs, &field("x")?.rows(0..ROWS)?.aligned())?;
    write_npy(&labels, &field("y")?.rows(0..ROWS)?.aligned())?;
    // Whether the candidate is any good is not the question here.
    let learn = ["--max-drop", "1", "--commit", "--inputs"];
    process::run(on("learn", &learning).args(learn).arg(&inputs).arg("--labels").arg(&labels))?;
    process::run(on("learn", &learning).args(learn).arg(&inputs))?;
    process::run(&mut on("self-test", &learning))?;
    let info: serde_json::Value = serde_json::from_str(&process::output(&mut on("info", &learning))?)?;
    ensure!(info["commits"] == 2 && info["weights"]["sequence"] == 2, "two commits were made, but: {info:#}");
    write_npy(&inputs, &field("x")?.aligned())?;
    process::run(on("predict", &learning).arg("--inputs").arg(&inputs).arg("--out").arg(&outputs))?;
    ensure!(read_npy(&outputs)?.bytes() != theirs.bytes(), "the committed weights answer as the shipped ones do");
    Ok(())
}

/// The largest difference relative to the largest logit; an error if it exceeds 1e-4 or an answer differs.
fn agreement(got: &Tensor, wanted: &Tensor) -> Result<f64> {
    ensure!(got.shape() == wanted.shape(), "logits are {:?}, not {:?}", got.shape(), wanted.shape());
    let classes = wanted.shape().last().copied().unwrap_or(1).max(1);
    let (a, b) = (got.to_f64_vec()?, wanted.to_f64_vec()?);
    let best = |row: &[f64]| (0..row.len()).max_by(|&i, &j| row[i].total_cmp(&row[j]));
    for (i, (x, y)) in a.chunks(classes).zip(b.chunks(classes)).enumerate() {
        ensure!(best(x) == best(y), "digit {i}: the device answers {:?}, this machine {:?}", best(x), best(y));
    }
    let largest = b.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
    let difference = a.iter().zip(&b).fold(0.0, |m, (x, y)| f64::max(m, (x - y).abs())) / largest;
    ensure!(difference <= 1e-4, "logits differ by {difference:e} of the largest");
    Ok(difference)
}

/// Copies a folder of files and folders, in place of an earlier copy.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let path = entry?.path();
        let target = to.join(path.file_name().context("an entry has a name")?);
        if path.is_dir() {
            copy_folder(&path, &target)?;
        } else {
            fs::copy(&path, &target).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Which parts of a cross toolchain this machine lacks.
#[derive(Debug, Default, PartialEq)]
struct Missing {
    rustc: bool,
    linker: bool,
    libc: bool,
    emulator: bool,
}

impl Missing {
    /// `has_std`: the compiler in use has the ARM standard library, so that Debian's is not needed.
    fn look(has_std: bool) -> Missing {
        let debian_rustc = || output(Command::new(DEBIAN_RUSTC).arg("--version")).is_ok();
        Missing {
            rustc: !has_std && !debian_rustc(),
            linker: process::find_program(&[LINKER]).is_none(),
            libc: !Path::new(LIBC).join("lib").is_dir(),
            emulator: process::find_program(EMULATORS).is_none(),
        }
    }

    /// The Debian packages that hold them.
    fn packages(&self) -> Vec<&'static str> {
        let parts = [
            (self.rustc, "rustc-web"),
            (self.linker, "gcc-aarch64-linux-gnu"),
            (self.libc, "libc6-dev-arm64-cross"),
            (self.emulator, "qemu-user-static"),
        ];
        parts.iter().filter(|(missing, _)| *missing).map(|(_, package)| *package).collect()
    }

    /// What to say to someone who must install them by hand.
    fn remedy(&self) -> String {
        let rustup = if self.rustc {
            format!("`rustup target add {TRIPLE}` (or Debian's rustc-web) for the standard library, and ")
        } else {
            String::new()
        };
        format!("{rustup}on Debian `apt-get install --no-install-recommends {}`", self.packages().join(" "))
    }

    /// Installs them, if this is Debian and we are root.
    fn install(&self) -> Result<()> {
        let packages = self.packages();
        let root = output(Command::new("id").arg("-u")).is_ok_and(|user| user == "0");
        if !root || process::find_program(&["apt-get"]).is_none() {
            bail!("for a build for ARM this machine lacks {}: {}", packages.join(", "), self.remedy());
        }
        let apt = || {
            let mut command = Command::new("apt-get");
            command.env("DEBIAN_FRONTEND", "noninteractive");
            command
        };
        process::run(apt().args(["--quiet", "--quiet", "update"])).with_context(|| self.remedy())?;
        process::run(apt().args(["--quiet", "--yes", "install", "--no-install-recommends"]).args(&packages))
            .with_context(|| self.remedy())
    }
}

/// The ARM standard library of the compiler in use, which `rustup target add` puts there.
fn rustup_std() -> Option<PathBuf> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let sysroot = output(Command::new(rustc).args(["--print", "sysroot"])).ok()?;
    Some(std_in(Path::new(&sysroot))).filter(|folder| folder.is_dir())
}

/// The folder of the ARM standard library inside a sysroot.
fn std_in(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib").join(TRIPLE).join("lib")
}

/// A sysroot that holds the ARM standard library of Debian's rustc, of exactly its version: found, or fetched and
/// unpacked. apt gets lists and folders of its own, so that the system's architectures stay what they are.
fn debian_std() -> Result<PathBuf> {
    const PACKAGE: &str = "libstd-rust-web-dev";
    let version = output(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", PACKAGE]))
        .context("/usr/bin/rustc is not Debian's rustc-web")?;
    let folder = env::current_dir()?.join(FOLDER);
    let unpacked = folder.join(format!("std-{version}"));
    if unpacked.is_dir() {
        return Ok(unpacked.join("usr"));
    }
    let apt = folder.join("apt");
    // Nothing of a run that failed may be taken for this version's.
    if apt.exists() {
        fs::remove_dir_all(&apt)?;
    }
    for needed in ["lists/partial", "cache/archives/partial", "state", "fetched"] {
        fs::create_dir_all(apt.join(needed))?;
    }
    fs::write(apt.join("status"), "")?;
    let fetched = apt.join("fetched");
    let apt_get = || {
        let mut command = Command::new("apt-get");
        let folders = [("::lists", "lists"), ("::status", "status"), ("", "state")];
        command.args(["--quiet", "--quiet", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64"]);
        command.args(["-o", "APT::Sandbox::User=", "-o", "Debug::NoLocking=1"]);
        for (key, file) in folders {
            command.arg("-o").arg(format!("Dir::State{key}={}", apt.join(file).display()));
        }
        command.arg("-o").arg(format!("Dir::Cache={}", apt.join("cache").display()));
        command.current_dir(&fetched);
        command
    };
    process::run(apt_get().arg("update"))?;
    process::run(apt_get().arg("download").arg(format!("{PACKAGE}={version}")))?;
    let deb = fs::read_dir(&fetched)?.next().context("apt-get left no package behind")??.path();
    let partial = folder.join(format!("unpacking-{}", std::process::id()));
    process::run(Command::new("dpkg-deb").arg("--extract").args([&deb, &partial]))?;
    if !std_in(&partial.join("usr")).is_dir() {
        bail!("{} holds no usr/lib/rustlib/{TRIPLE}", deb.display());
    }
    fs::rename(&partial, &unpacked)?;
    fs::remove_dir_all(&apt)?;
    Ok(unpacked.join("usr"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_names_only_what_is_missing() {
        let emulator = Missing { emulator: true, ..Missing::default() };
        assert_eq!(emulator.packages(), ["qemu-user-static"]);
        assert!(!emulator.remedy().contains("rustup"), "{}", emulator.remedy());
        let all = Missing { rustc: true, linker: true, libc: true, emulator: true };
        assert_eq!(all.packages().len(), 4);
        assert!(all.remedy().contains("rustup target add aarch64-unknown-linux-gnu"), "{}", all.remedy());
        assert!(Missing::default().packages().is_empty());
    }

    #[test]
    fn debians_compiler_gets_its_sysroot_and_rustups_none() {
        let runner = vec!["qemu".to_owned(), "-L".to_owned(), LIBC.to_owned()];
        let debian = Toolchain {
            rustc: Some(DEBIAN_RUSTC.into()),
            sysroot: Some("/with space/usr".into()),
            runner: runner.clone(),
        };
        let environment = debian.environment();
        assert!(environment.contains(&("RUSTC", DEBIAN_RUSTC.to_owned())));
        assert!(environment.contains(&("CARGO_ENCODED_RUSTFLAGS", "--sysroot\u{1f}/with space/usr".to_owned())));
        let rustup = Toolchain { rustc: None, sysroot: None, runner };
        assert!(!rustup.environment().iter().any(|(key, _)| *key == "RUSTC"));
        assert!(rustup.environment().contains(&("CARGO_ENCODED_RUSTFLAGS", String::new())));
    }

    #[test]
    fn a_device_binary_is_emulated_only_on_another_host() {
        let words = |toolchain: &Toolchain| {
            let command = toolchain.command(Path::new("/b"));
            let mut words = vec![command.get_program().to_owned()];
            words.extend(command.get_args().map(ToOwned::to_owned));
            words
        };
        let native = Toolchain { rustc: None, sysroot: None, runner: Vec::new() };
        assert_eq!(words(&native), ["/b"]);
        let emulated = Toolchain { runner: vec!["qemu".into(), "-L".into(), LIBC.into()], ..native };
        assert_eq!(words(&emulated), ["qemu", "-L", LIBC, "/b"]);
    }
}
