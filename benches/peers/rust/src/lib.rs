//! What the Rust sides of `benches/peers/run.py` share: the command line, the file of weights and batch, the nets, the clock.

pub mod nets;

use anyhow::{Context, Result, bail, ensure};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// Steps before the clock starts.
const WARM_UP: usize = 5;
/// Learning rate.
pub const RATE: f64 = 0.001;
/// Momentum of SGD.
pub const MOMENTUM: f64 = 0.9;
/// Temperature of distillation.
pub const TEMPERATURE: f64 = 4.0;
/// Share of distillation in the loss; the rest is cross-entropy.
pub const KD_SHARE: f64 = 0.9;

/// Shape and values of a tensor.
pub struct Array {
    /// Extents.
    pub shape: Vec<usize>,
    /// Values in row-major order.
    pub values: Vec<f32>,
}

/// What a step starts from.
pub struct Job {
    /// Name of the net.
    pub net: String,
    /// Trained weights by Limbeck's names.
    pub weights: BTreeMap<String, Array>,
    /// Batch.
    pub x: Array,
    /// Class of each sample.
    pub labels: Vec<i64>,
    /// Logits of the teacher.
    pub teacher: Array,
    steps: usize,
}

impl Job {
    /// Reads the command line `SIDE NET FOLDER THREADS STEPS`. Threads are set by `RAYON_NUM_THREADS`, which must agree.
    pub fn from_args() -> Result<Job> {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let [net, folder, threads, steps] = &args[..] else { bail!("usage: SIDE NET FOLDER THREADS STEPS") };
        let rayon = std::env::var("RAYON_NUM_THREADS").unwrap_or_default();
        ensure!(rayon == *threads, "RAYON_NUM_THREADS is '{rayon}' where {threads} threads are asked for");
        let bytes = std::fs::read(Path::new(folder).join(format!("{net}.safetensors")))?;
        let (mut weights, mut labels) = (BTreeMap::new(), None);
        for (name, view) in SafeTensors::deserialize(&bytes)?.iter() {
            match view.dtype() {
                Dtype::F32 => {
                    let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                    weights.insert(name.to_owned(), Array { shape: view.shape().to_vec(), values: values.collect() });
                }
                Dtype::I64 if name == "y" => {
                    let (values, _) = view.data().as_chunks::<8>();
                    labels = Some(values.iter().map(|b| i64::from_le_bytes(*b)).collect());
                }
                other => bail!("tensor '{name}' has type {other:?}"),
            }
        }
        weights.retain(|name, _| !name.contains(".running_"));
        let mut take = |name: &str| weights.remove(name).with_context(|| format!("the file lacks '{name}'"));
        let (x, teacher) = (take("x")?, take("teacher_logits")?);
        let labels = labels.context("the file lacks 'y'")?;
        Ok(Job { net: net.clone(), weights, x, labels, teacher, steps: steps.parse()? })
    }

    /// Runs `step`, which returns the loss, and prints what came of it as a line of JSON.
    pub fn time(&self, mut step: impl FnMut() -> Result<f64>) -> Result<()> {
        let (mut times, mut losses) = (vec![], vec![]);
        for _ in 0..WARM_UP + self.steps {
            let start = Instant::now();
            losses.push(step()?);
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        let timed = &mut times[WARM_UP..];
        timed.sort_by(f64::total_cmp);
        let parameters: usize = self.weights.values().map(|w| w.values.len()).sum();
        println!(
            "{}",
            serde_json::json!({
                "ms": timed[timed.len() / 2], "peak_mb": peak_mb(), "losses": losses, "parameters": parameters,
            })
        );
        Ok(())
    }
}

/// Peak resident memory of this process in MB.
fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}
