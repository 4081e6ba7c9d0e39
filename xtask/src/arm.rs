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

use anyhow::{Context, Result, bail};
use limbeck_tensor::Tensor;
use limbeck_tensor::io::{read_safetensors, write_npy};

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

/// Builds `package` for the device, starts it, and exercises it on `bundle`.
pub(crate) fn run(toolchain: &Toolchain, package: &str, bundle: Option<&Path>) -> Result<()> {
    let binary = toolchain.build(package)?;
    let kib = fs::metadata(&binary)?.len().div_ceil(1024);
    eprintln!("{}: {kib} KiB", binary.display());
    process::run(toolchain.command(&binary).arg("--help"))?;
    match bundle {
        Some(bundle) => exercise(toolchain, &binary, bundle),
        None => Ok(()),
    }
}

/// What a device does with a bundle, step by step; each must succeed.
fn exercise(toolchain: &Toolchain, binary: &Path, bundle: &Path) -> Result<()> {
    let on = |command: &str| {
        let mut on = toolchain.command(binary);
        on.arg(command).arg(bundle);
        on
    };
    process::run(&mut on("self-test"))?;
    process::run(&mut on("info"))?;
    let Some((x, y)) = rows(bundle)? else {
        eprintln!("{}: no replay rows, so nothing to predict and learn from", bundle.display());
        return Ok(());
    };
    let folder = env::current_dir()?.join(FOLDER);
    let (inputs, labels) = (folder.join("inputs.npy"), folder.join("labels.npy"));
    fs::create_dir_all(&folder)?;
    write_npy(&inputs, &x)?;
    write_npy(&labels, &y)?;
    process::run(on("predict").arg("--inputs").arg(&inputs).arg("--out").arg(folder.join("outputs.npy")))?;
    // The bundle stays as it is, and whether the candidate is any good is not the question here.
    let quick = ["--steps", "1", "--max-drop", "1", "--inputs"];
    process::run(on("learn").args(quick).arg(&inputs).arg("--labels").arg(&labels))?;
    process::run(on("learn").args(quick).arg(&inputs))
}

/// The first rows of a bundle's replay and their labels.
fn rows(bundle: &Path) -> Result<Option<(Tensor, Tensor)>> {
    const ROWS: usize = 24;
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(bundle.join("bundle.json"))?)?;
    let Some(file) = manifest["replay"]["file"].as_str() else { return Ok(None) };
    let all = read_safetensors(&bundle.join(file))?;
    let first = |name: &str| -> Result<Tensor> {
        let tensor = all.get(name).with_context(|| format!("{file} lacks `{name}`"))?;
        let rows = tensor.shape().first().map_or(0, |n| ROWS.min(*n));
        Ok(tensor.rows(0..rows)?.aligned())
    };
    Ok(Some((first("x")?, first("y")?)))
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
        process::run(apt().args(["--quiet", "--quiet", "update"]))?;
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
