//! The description of a board, as its TOML file gives it, and what makes one valid.

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};

use crate::TargetError;

/// A device that a model is made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Board {
    /// Lower-case letters, digits and dashes; the name of its file.
    pub name: String,
    /// One line for people: model, memory variant, system, power mode.
    pub title: String,
    /// The Rust target triple of its system.
    pub triple: String,
    /// Installed memory.
    pub memory_bytes: u64,
    /// How much of it a model and its learner may take, other processes considered.
    pub budget_bytes: u64,
    /// Threads for inference when nothing else is said.
    pub threads: usize,
    /// Where the numbers come from: addresses of data sheets and manuals.
    pub sources: Vec<String>,
    /// Its main processor.
    pub cpu: Cpu,
    /// An accelerator usable through ONNX Runtime.
    pub gpu: Option<Gpu>,
    /// Which numbers help on it.
    pub precision: PrecisionChoice,
    /// Engines in order of preference.
    #[serde(rename = "engine")]
    pub engines: Vec<EngineChoice>,
}

/// The main processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Cpu {
    /// The core's name.
    pub name: String,
    /// Physical cores.
    pub cores: usize,
    /// Sustained clock, MHz.
    pub clock_mhz: u32,
    /// f32 operations a core can do in one cycle at most: pipes x lanes x 2 for multiply-and-add.
    pub flops_per_cycle: u32,
    /// Instruction-set extensions that the engines make use of.
    pub features: Vec<Feature>,
}

/// An accelerator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// Its own memory; absent if it shares the CPU's.
    pub memory_bytes: Option<u64>,
    /// Streaming multiprocessors.
    pub units: usize,
    /// Clock, MHz.
    pub clock_mhz: u32,
    /// f32 (or TF32) operations a unit can do in one cycle at most.
    pub flops_per_cycle: u32,
}

/// Which numbers help on a board.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PrecisionChoice {
    /// Precisions worth shipping, the best first; always with `f32`.
    pub preferred: Vec<Precision>,
    /// The integer type of quantised activations.
    pub activations: Activations,
    /// Whether int8 weights must stay within [-64, 64], since the CPU's 16-bit sums saturate.
    pub reduce_range: bool,
}

/// An engine on a board.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct EngineChoice {
    /// Which engine.
    pub name: Engine,
    /// Why it cannot be used here; absent if it can.
    pub unavailable: Option<String>,
    /// ONNX Runtime's execution providers, the preferred first; empty for the engine's only one.
    #[serde(default)]
    pub providers: Vec<Provider>,
}

macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// The name used in board files, on the command line and in reports.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

names! {
    /// An inference engine.
    Engine {
        /// Pure Rust, linked in.
        Tract = "tract",
        /// ONNX Runtime, a shared library loaded at run time.
        Ort = "ort",
    }
}

names! {
    /// An execution provider of ONNX Runtime.
    Provider {
        /// The default provider.
        Cpu = "cpu",
        /// NVIDIA CUDA.
        Cuda = "cuda",
        /// NVIDIA TensorRT.
        TensorRt = "tensorrt",
    }
}

names! {
    /// The numbers that a model computes with.
    Precision {
        /// 8-bit integers for the quantised nodes.
        Int8 = "int8",
        /// IEEE half precision.
        F16 = "f16",
        /// IEEE single precision.
        F32 = "f32",
    }
}

names! {
    /// The integer type of quantised activations.
    Activations {
        /// Unsigned bytes.
        U8 = "u8",
        /// Signed bytes.
        S8 = "s8",
    }
}

names! {
    /// An instruction-set extension.
    Feature {
        /// ARM Advanced SIMD.
        Neon = "neon",
        /// ARM int8 dot products (`sdot`, `udot`).
        Dotprod = "dotprod",
        /// ARM half-precision arithmetic.
        Fp16 = "fp16",
        /// 256-bit integers and floats on x86.
        Avx2 = "avx2",
        /// Fused multiply-and-add on x86.
        Fma = "fma",
        /// 512-bit vectors on x86.
        Avx512f = "avx512f",
        /// x86 int8 dot products (`vpdpbusd`).
        Vnni = "vnni",
    }
}

impl Feature {
    fn is_arm(self) -> bool {
        matches!(self, Feature::Neon | Feature::Dotprod | Feature::Fp16)
    }
}

impl Board {
    /// Reads and checks a board file of one's own.
    ///
    /// # Errors
    /// [`TargetError::Read`], and those of [`Board::parse`].
    pub fn read(path: &Path) -> Result<Board, TargetError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| TargetError::Read { file: file.clone(), message: error.to_string() })?;
        Board::parse(&file, &text)
    }

    /// Reads and checks a board from TOML text; `file` names it in errors.
    ///
    /// # Errors
    /// [`TargetError::Parse`] for an unknown, missing or mistyped key; [`TargetError::Value`] for a value that no
    /// board can have.
    pub fn parse(file: &str, text: &str) -> Result<Board, TargetError> {
        let board: Board = toml::from_str(text)
            .map_err(|error| TargetError::Parse { file: file.to_owned(), message: error.to_string() })?;
        match board.complaint(file) {
            None => Ok(board),
            Some((key, message)) => Err(TargetError::Value { file: file.to_owned(), key, message }),
        }
    }

    /// The architecture, the triple's first part: `aarch64`, `armv7` or `x86_64`.
    pub fn arch(&self) -> &str {
        self.triple.split('-').next().unwrap_or_default()
    }

    /// f32 operations a second that `threads` cores can do at most: cores x clock x operations a cycle. Theoretical.
    pub fn cpu_peak_flops(&self, threads: usize) -> f64 {
        threads.min(self.cpu.cores) as f64 * f64::from(self.cpu.clock_mhz) * 1e6 * f64::from(self.cpu.flops_per_cycle)
    }

    /// f32 (or TF32) operations a second that the accelerator can do at most: units x clock x operations a cycle.
    /// Theoretical.
    pub fn gpu_peak_flops(&self) -> Option<f64> {
        let gpu = self.gpu.as_ref()?;
        Some(gpu.units as f64 * f64::from(gpu.clock_mhz) * 1e6 * f64::from(gpu.flops_per_cycle))
    }

    /// The first key with a wrong value, and what is wrong with it.
    fn complaint(&self, file: &str) -> Option<(&'static str, String)> {
        let stem = Path::new(file).file_stem().unwrap_or_default();
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let arm = match self.arch() {
            "aarch64" | "armv7" => true,
            "x86_64" => false,
            other => return Some(("triple", format!("architecture {other:?} is not aarch64, armv7 or x86_64"))),
        };
        let foreign = self.cpu.features.iter().find(|feature| feature.is_arm() != arm);
        let usable = self.engines.iter().filter(|engine| engine.unavailable.is_none());
        let provider_elsewhere =
            self.engines.iter().find(|engine| engine.name != Engine::Ort && !engine.providers.is_empty());
        let uses_gpu = self.engines.iter().flat_map(|engine| &engine.providers).any(|&p| p != Provider::Cpu);
        let zero = [
            ("memory_bytes", self.memory_bytes == 0),
            ("budget_bytes", self.budget_bytes == 0),
            ("threads", self.threads == 0),
            ("cpu.cores", self.cpu.cores == 0),
            ("cpu.clock_mhz", self.cpu.clock_mhz == 0),
            ("cpu.flops_per_cycle", self.cpu.flops_per_cycle == 0),
            ("gpu.memory_bytes", self.gpu.as_ref().is_some_and(|gpu| gpu.memory_bytes == Some(0))),
            ("gpu.units", self.gpu.as_ref().is_some_and(|gpu| gpu.units == 0)),
            ("gpu.clock_mhz", self.gpu.as_ref().is_some_and(|gpu| gpu.clock_mhz == 0)),
            ("gpu.flops_per_cycle", self.gpu.as_ref().is_some_and(|gpu| gpu.flops_per_cycle == 0)),
        ];
        if let Some((key, _)) = zero.iter().find(|(_, zero)| *zero) {
            return Some((key, "must be above 0".to_owned()));
        }
        if self.name.is_empty() || !self.name.chars().all(plain) {
            Some(("name", format!("{:?} must be lower-case letters, digits and dashes", self.name)))
        } else if stem != self.name.as_str() {
            Some(("name", format!("{:?} must equal the file's name", self.name)))
        } else if self.title.trim().is_empty() {
            Some(("title", "must not be empty".to_owned()))
        } else if self.budget_bytes > self.memory_bytes {
            Some(("budget_bytes", format!("{} exceeds memory_bytes {}", self.budget_bytes, self.memory_bytes)))
        } else if self.threads > self.cpu.cores {
            Some(("threads", format!("{} exceeds cpu.cores {}", self.threads, self.cpu.cores)))
        } else if self.sources.is_empty() {
            Some(("sources", "must name at least one data sheet or manual".to_owned()))
        } else if let Some(feature) = foreign {
            Some(("cpu.features", format!("{feature} does not exist on {}", self.arch())))
        } else if let Some(twice) = repeated(&self.cpu.features) {
            Some(("cpu.features", format!("{twice} is given twice")))
        } else if !self.precision.preferred.contains(&Precision::F32) {
            Some(("precision.preferred", "must contain f32, which every engine runs".to_owned()))
        } else if let Some(twice) = repeated(&self.precision.preferred) {
            Some(("precision.preferred", format!("{twice} is given twice")))
        } else if usable.count() == 0 {
            Some(("engine", "none is usable: at least one must lack `unavailable`".to_owned()))
        } else if let Some(twice) = repeated(&self.engines.iter().map(|engine| engine.name).collect::<Vec<_>>()) {
            Some(("engine.name", format!("{twice} is given twice")))
        } else if let Some(engine) = provider_elsewhere {
            Some(("engine.providers", format!("{} has none, only ort has", engine.name)))
        } else if uses_gpu && self.gpu.is_none() {
            Some(("gpu", "is missing, though a provider needs one".to_owned()))
        } else {
            None
        }
    }
}

/// The first item that occurs again later.
fn repeated<T: PartialEq + Copy>(items: &[T]) -> Option<T> {
    items.iter().enumerate().find(|(i, item)| items[i + 1..].contains(item)).map(|(_, item)| *item)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PI: &str = include_str!("../boards/raspberry-pi-4.toml");

    /// The message for the Pi 4's file with `from` replaced by `to`.
    fn refused(from: &str, to: &str) -> String {
        assert!(PI.contains(from), "{from}");
        Board::parse("raspberry-pi-4.toml", &PI.replacen(from, to, 1)).unwrap_err().to_string()
    }

    #[test]
    fn wrong_keys_are_named() {
        for (from, to, words) in [
            ("threads = 4", "threads = 4\ncolour = \"green\"", &["raspberry-pi-4.toml", "unknown field `colour`"][..]),
            ("clock_mhz = 1500", "clock_mhz = 1500\nturbo = 1", &["unknown field `turbo`"]),
            ("threads = 4", "", &["missing field `threads`"]),
            ("threads = 4", "threads = \"four\"", &["invalid type", "threads"]),
            ("\"neon\"", "\"noen\"", &["unknown variant `noen`", "`neon`"]),
            ("name = \"tract\"", "name = \"trakt\"", &["unknown variant `trakt`", "`tract`"]),
        ] {
            let message = refused(from, to);
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }

    #[test]
    fn wrong_values_are_named() {
        for (from, to, words) in [
            ("threads = 4", "threads = 5", "threads: 5 exceeds cpu.cores 4"),
            ("threads = 4", "threads = 0", "threads: must be above 0"),
            ("budget_bytes = 1_073_741_824", "budget_bytes = 5_000_000_000", "budget_bytes: 5000000000 exceeds"),
            ("aarch64-unknown", "riscv64gc-unknown", "triple: architecture \"riscv64gc\""),
            ("\"neon\"", "\"avx2\"", "cpu.features: avx2 does not exist on aarch64"),
            ("\"neon\"", "\"neon\", \"neon\"", "cpu.features: neon is given twice"),
            ("[\"int8\", \"f32\"]", "[\"int8\"]", "precision.preferred: must contain f32"),
            ("raspberry-pi-4\"", "raspberry-pi-5\"", "name: \"raspberry-pi-5\" must equal the file's name"),
            ("name = \"ort\"", "name = \"tract\"", "engine.name: tract is given twice"),
            ("name = \"ort\"", "name = \"ort\"\nproviders = [\"cuda\"]", "gpu: is missing"),
            ("name = \"tract\"", "name = \"tract\"\nproviders = [\"cpu\"]", "engine.providers: tract has none"),
        ] {
            let message = refused(from, to);
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn peak_is_cores_times_clock_times_lanes() {
        let board = Board::parse("raspberry-pi-4.toml", PI).unwrap();
        assert_eq!(board.cpu_peak_flops(4), 96e9);
        assert_eq!(board.cpu_peak_flops(1), 24e9);
        assert_eq!(board.cpu_peak_flops(64), 96e9, "threads beyond the cores add nothing");
        assert_eq!(board.gpu_peak_flops(), None);
    }

    #[test]
    fn a_missing_file_is_named() {
        let message = Board::read(Path::new("no/such/board.toml")).unwrap_err().to_string();
        assert!(message.starts_with("board file no/such/board.toml cannot be read"), "{message}");
    }
}
