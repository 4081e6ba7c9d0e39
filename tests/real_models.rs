//! Models that other people trained and exported: imported, they run on every engine and agree with ONNX Runtime on the file
//! as it is, which gives the same bits for the file as Limbeck writes it. `cargo xtask test --full` fetches them (`LIMBECK_REAL_MODELS`).
#![allow(missing_docs)]

#[path = "models/anew.rs"]
mod anew;

use limbeck::graph::{Graph, ImportOptions};
use limbeck::runtime::{CompileOptions, Engine, Model, engine, engines, noise};
use limbeck::tensor::{Bytes, DType, Tensor, TensorMap, map_file};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What goes into an input.
enum Feed {
    /// Normal noise of this spread.
    Noise(f64, &'static [usize]),
    /// Dark strokes in rows on white, as a page of text: on noise a detector's probabilities are all but 0, and ONNX
    /// Runtime's Sigmoid is right to 5e-7 there and not to any share of them.
    Strokes(&'static [usize]),
    /// Zeros.
    Zeros(&'static [usize]),
    /// Whole numbers below a bound.
    Below(u32, DType, &'static [usize]),
    /// A setting that never changes: stored in the imported file.
    Fixed(i64),
}

struct Case {
    /// Place in the folder of models.
    file: &'static str,
    feeds: &'static [(&'static str, Feed)],
}

use Feed::{Below, Fixed, Noise, Strokes, Zeros};

const RATE: (&str, Feed) = ("sr", Fixed(16000));
const FRAME: (&str, Feed) = ("input", Noise(0.1, &[1, 576]));
const STATE: (&str, Feed) = ("state", Zeros(&[2, 1, 128]));

const CASES: &[Case] = &[
    Case {
        file: "basic-pitch/basic_pitch/saved_models/icassp_2022/nmp.onnx",
        feeds: &[("serving_default_input_2:0", Noise(0.1, &[1, 43844, 1]))],
    },
    Case {
        file: "magika/magika/models/standard_v3_3/model.onnx",
        feeds: &[("bytes", Below(256, DType::I32, &[1, 2048]))],
    },
    Case {
        file: "rapidocr/rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        feeds: &[("x", Noise(1.0, &[1, 3, 48, 192]))],
    },
    Case { file: "rapidocr/rapidocr/models/PP-OCRv6_det_small.onnx", feeds: &[("x", Strokes(&[1, 3, 96, 96]))] },
    Case { file: "rapidocr/rapidocr/models/PP-OCRv6_rec_small.onnx", feeds: &[("x", Noise(1.0, &[1, 3, 48, 128]))] },
    Case { file: "silero-vad/silero_vad/data/silero_vad.onnx", feeds: &[FRAME, STATE, RATE] },
    Case { file: "silero-vad/silero_vad/data/silero_vad_16k_op15.onnx", feeds: &[FRAME, STATE, RATE] },
    Case {
        file: "silero-vad/silero_vad/data/silero_vad_16k_sequence.onnx",
        feeds: &[("input", Noise(0.1, &[3, 576])), ("h", Zeros(&[1, 1, 128])), ("c", Zeros(&[1, 1, 128]))],
    },
    Case { file: "silero-vad/silero_vad/data/silero_vad_half.onnx", feeds: &[FRAME, STATE] },
    Case { file: "silero-vad/silero_vad/data/silero_vad_op18_ifless.onnx", feeds: &[FRAME, STATE, RATE] },
    Case { file: "silero-vad/silero_vad/data/silero_vad_openvino_16k.onnx", feeds: &[FRAME, STATE] },
];

impl Case {
    fn feeds(&self) -> TensorMap {
        let tensor = |name: &str, feed: &Feed| {
            let drawn = |dtype, shape: &[usize], draw: fn(&mut noise::Stream, f64) -> f64, scale| {
                let mut stream = noise::stream(7, 0, name);
                let values: Vec<f64> = (0..shape.iter().product()).map(|_| draw(&mut stream, scale)).collect();
                Tensor::from_f64(dtype, shape, &values).unwrap()
            };
            match *feed {
                Noise(spread, shape) => drawn(DType::F32, shape, |s, spread| s.normal() * spread, spread),
                Strokes(shape) => {
                    let dark = |i: usize| (i / 96 / 12) % 2 == 1 && !(i % 96 / 4).is_multiple_of(3);
                    let pixels = (0..shape.iter().product()).map(|i| if dark(i) { -1.5f32 } else { 1.5 });
                    Tensor::new(shape, pixels.collect()).unwrap()
                }
                Zeros(shape) => Tensor::zeros(DType::F32, shape).unwrap(),
                Below(bound, dtype, shape) => {
                    drawn(dtype, shape, |s, bound| s.below(bound as usize) as f64, f64::from(bound))
                }
                Fixed(value) => Tensor::scalar(value),
            }
        };
        self.feeds.iter().map(|(name, feed)| ((*name).to_owned(), tensor(name, feed))).collect()
    }

    /// The file's bytes as `limbeck import` writes them, settings fixed and shapes those of the feeds.
    fn imported(&self, path: &Path, feeds: &TensorMap) -> Result<Graph, String> {
        let mut graph = Graph::read(path).map_err(|e| e.to_string())?;
        let mut options = ImportOptions::default();
        for (name, feed) in self.feeds {
            let tensor = feeds[*name].clone();
            match feed {
                Fixed(_) => _ = options.fixed.insert((*name).to_owned(), tensor),
                _ => _ = options.shapes.insert((*name).to_owned(), tensor.shape().to_vec()),
            }
        }
        graph.import(&options).map_err(|e| e.to_string())?;
        Ok(graph)
    }
}

fn run(engine: &dyn Engine, bytes: Bytes, feeds: &TensorMap) -> Result<TensorMap, String> {
    let options = CompileOptions { threads: 2, ..CompileOptions::default() };
    let program = engine.compile(&Model::new(bytes), &options).map_err(|e| e.to_string())?;
    let taken = program.inputs().iter().map(|spec| (spec.name.as_str(), &feeds[&spec.name]));
    program.infer(&taken.collect::<Vec<_>>()).map_err(|e| e.to_string())
}

/// The largest difference, relative to the largest number of each output.
fn difference(found: &TensorMap, expected: &TensorMap) -> Result<f64, String> {
    let mut worst = 0f64;
    for (name, wanted) in expected {
        let got = found.get(name).ok_or_else(|| format!("output {name} is missing"))?;
        if (got.dtype(), got.shape()) != (wanted.dtype(), wanted.shape()) {
            return Err(format!("output {name} is {} {:?}", got.dtype(), got.shape()));
        }
        let (got, wanted) = (got.to_f64_vec().unwrap(), wanted.to_f64_vec().unwrap());
        let largest = wanted.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
        let far = got.iter().zip(&wanted).map(|(a, b)| if a.is_nan() { f64::INFINITY } else { (a - b).abs() });
        worst = far.fold(worst, |m, d| m.max(d / largest));
    }
    Ok(worst)
}

#[test]
fn models_of_other_people_run_everywhere() {
    let Some(root) = std::env::var_os("LIMBECK_REAL_MODELS").map(PathBuf::from) else {
        writeln!(std::io::stderr(), "NOT TESTED: models of other people (`cargo xtask test --full` fetches them)")
            .unwrap();
        return;
    };
    let Ok(reference) = engine("ort") else {
        writeln!(std::io::stderr(), "NOT TESTED: models of other people (ONNX Runtime is the reference)").unwrap();
        return;
    };
    let mut failures = vec![];
    for case in CASES {
        let path = root.join(case.file);
        let feeds = case.feeds();
        let expected = run(reference, map_file(&path).unwrap(), &feeds).unwrap();
        anew::check(&path, &feeds);
        let imported = case.imported(&path, &feeds);
        for engine in engines() {
            let result = imported.as_ref().map_err(Clone::clone).and_then(|graph| {
                let found = run(engine, graph.to_bytes().map_err(|e| e.to_string())?, &feeds)?;
                difference(&found, &expected)
            });
            println!("{} {}: {result:?}", engine.name(), case.file);
            if !result.is_ok_and(|d| d <= 1e-4) {
                failures.push(format!("{} {}", engine.name(), case.file));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
