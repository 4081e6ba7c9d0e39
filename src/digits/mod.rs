//! The whole job on the UCI handwritten digits: teacher, student, compression, bundle, field. What it prints and the
//! report are made in `present.rs`.

pub mod bundle;
pub mod compress;
pub mod data;
pub mod distil;
pub mod engine;
pub mod field;
pub mod nets;
mod parallel;
mod present;
pub mod stats;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use limbeck_distill::Net;
use limbeck_distill::data::Arrays;
use limbeck_runtime::Engine;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use compress::{Compressed, Measured};
use data::Split;
use distil::{Teaching, Trained};
use field::{Arm, Field, Moment};

use crate::cli::output::say;
use crate::report::Table;

/// Seeds of the comparison between taught and untaught students, on split 0.
pub const SEEDS: u64 = 3;

/// Options of `limbeck demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// tract (built in) or ort (ONNX Runtime, when its library is found).
    #[arg(long, default_value = "tract")]
    pub engine: String,
    /// Folder for the bundle and the report.
    #[arg(long, default_value = "limbeck-demo")]
    pub out: PathBuf,
    /// Seed of everything.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Tasks at once; 0 for all cores.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Splits that compression and the field are paired over, 1 to 5; fewer are quicker and say less.
    #[arg(long, default_value_t = data::SPLITS, value_parser = splits)]
    pub splits: usize,
}

fn splits(text: &str) -> Result<usize, String> {
    let n = text.parse().ok().filter(|n| (1..=data::SPLITS).contains(n));
    n.ok_or_else(|| format!("there are 1 to {} splits", data::SPLITS))
}

/// A test digit and what the shipped student said.
pub struct Answer {
    /// 64 pixels in 0..=1.
    pub pixels: Vec<f32>,
    /// What to write below it.
    pub caption: String,
    /// Whether the answer is right.
    pub good: bool,
}

/// Everything that the demo found out.
pub struct Results {
    /// Engine that did the work.
    pub engine: String,
    /// Seed of everything.
    pub seed: u64,
    /// Tasks at once.
    pub threads: usize,
    /// Test digits of split 0, mistakes of the int8 student first.
    pub samples: Vec<Answer>,
    /// Of the int8 students on all test digits: counts by truth and answer.
    pub confusion: Vec<Vec<u64>>,
    /// What the bundle holds and how its self-test went.
    pub bundle_note: String,
    /// Agreement of the engines on the shipped students.
    pub engines: Table,
    /// Loss per epoch of split 0's students, by name.
    pub student_losses: Vec<(&'static str, Vec<f64>)>,
    /// Accuracy of each split's teacher on its test digits.
    pub teachers: Vec<f64>,
    /// Loss per epoch of split 0's teacher.
    pub teacher_losses: Vec<f64>,
    /// Parameters of teacher and student.
    pub parameters: [usize; 2],
    /// Split 0, one entry a seed: labels alone.
    pub untaught: Vec<f64>,
    /// Split 0, one entry a seed: with the teacher.
    pub taught: Vec<f64>,
    /// One entry a split: the student that is compressed.
    pub distilled: Vec<f64>,
    /// One entry a split: the student after each step of compression.
    pub compression: Vec<Vec<Measured>>,
    /// Runs of the field: (arm, labelled, one entry a split).
    pub field: Vec<(Arm, bool, Vec<Vec<Moment>>)>,
    /// Time of each stage.
    pub times: Vec<(&'static str, Duration)>,
}

/// A trained student with its test accuracy and its loss per epoch.
struct Student {
    net: Net,
    test: f64,
    losses: Vec<f64>,
}

/// What is kept of a split between stages.
pub struct Prepared {
    /// Its data.
    pub split: Split,
    /// Its teacher.
    pub teacher: Trained,
    /// Training set with teacher outputs.
    pub pool: Arrays,
    /// Accuracy of the teacher on the test digits.
    pub teacher_test: f64,
}

/// Runs the demo with the settings of the command line.
pub fn run(args: &DemoArgs, json: bool) -> Result<()> {
    let engine = limbeck_runtime::engine(&args.engine)?;
    let out = fresh_folder(&args.out)?;
    if !json {
        say(format_args!(
            "Limbeck demo on {} {}, results go to {}",
            engine.name(),
            engine.describe().version,
            out.display()
        ));
    }
    let results = study(&DemoArgs { out: out.clone(), ..args.clone() }, engine)?;
    let report = out.join("report.html");
    limbeck_tensor::replace_file(&report, present::report(&results)?.as_bytes())?;
    let bundle = out.join("bundle-0");
    if json {
        say(format_args!("{:#}", present::facts(&results, &report, &bundle)));
        return Ok(());
    }
    for table in present::tables(&results) {
        say(format_args!("\n{}\n{}", table.caption, table.to_text()));
    }
    if let Some(note) = present::slower(&results) {
        say(format_args!("\n{note}"));
    }
    say(format_args!("\n{}\n{}", results.engines.caption, results.engines.to_text()));
    say(format_args!("\n{}", results.bundle_note));
    say(format_args!(
        "Report: {}\nBundle: {}\nModels: {}",
        report.display(),
        bundle.display(),
        out.join("models").display()
    ));
    Ok(())
}

/// The folder asked for, or the first free one with a number behind it.
fn fresh_folder(wanted: &Path) -> Result<PathBuf> {
    let name = wanted.display().to_string();
    let numbered = (2..).map(|i| PathBuf::from(format!("{name}-{i}")));
    let folder =
        std::iter::once(wanted.to_path_buf()).chain(numbered).find(|p| !p.exists()).context("no free folder name")?;
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(folder)
}

fn study(args: &DemoArgs, engine: &dyn Engine) -> Result<Results> {
    let threads = match args.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let all = data::load()?;
    let mut times = vec![];
    let splits: Vec<usize> = (0..args.splits).collect();

    let (prepared, time) = stage("teacher", splits.len(), |bar| {
        parallel::map(&splits, threads, |&k| prepare(&all, k, engine, args.seed), || bar.inc(1))
    })?;
    times.push(time);

    // Split 0 with three seeds each way, and one taught student for every other split.
    let mut tasks: Vec<(usize, u64, Teaching)> = (1..args.splits).map(|k| (k, 0, Teaching::Hint)).collect();
    for seed in 0..SEEDS {
        tasks.push((0, seed, Teaching::Hint));
        tasks.push((0, seed, Teaching::Labels));
    }
    let (students, time) = stage("students", tasks.len(), |bar| {
        let train = |&(k, seed, teaching): &(usize, u64, Teaching)| -> Result<Student> {
            let p = &prepared[k];
            let seed = args.seed + 100 * seed + k as u64;
            let trained = distil::train_student(&nets::student(seed)?, &p.pool, engine, teaching, 30, seed)?;
            let test = engine::score(trained.net.graph(), engine, &p.split.test)?;
            Ok(Student { net: trained.net, test, losses: trained.losses })
        };
        parallel::map(&tasks, threads, train, || bar.inc(1))
    })?;
    times.push(time);
    let of = |wanted: &dyn Fn(&(usize, u64, Teaching)) -> bool| -> Vec<f64> {
        tasks.iter().zip(&students).filter(|(t, _)| wanted(t)).map(|(_, s)| s.test).collect()
    };
    let taught = of(&|t| t.0 == 0 && t.2 == Teaching::Hint);
    let untaught = of(&|t| t.2 == Teaching::Labels);
    let student_of = |k: usize| -> Result<&Student> {
        let place = tasks.iter().position(|t| *t == (k, 0, Teaching::Hint)).context("no student was trained")?;
        Ok(&students[place])
    };
    let distilled = splits.iter().map(|&k| Ok(student_of(k)?.test)).collect::<Result<Vec<f64>>>()?;

    let (mut compressed, time) = stage("compression", splits.len(), |bar| {
        let task = |&k: &usize| -> Result<Compressed> {
            compress::compress(&student_of(k)?.net, &prepared[k], engine, args.seed + k as u64)
        };
        parallel::map(&splits, threads, task, || bar.inc(1))
    })?;
    times.push(time);
    // One after the other, so that nothing else runs meanwhile.
    let ((), time) = stage("latency", splits.len(), |bar| {
        for c in &mut compressed {
            c.measure_latency(engine)?;
            bar.inc(1);
        }
        Ok(())
    })?;
    times.push(time);

    let folders: Vec<PathBuf> = splits.iter().map(|k| args.out.join(format!("bundle-{k}"))).collect();
    let ((), time) = stage("bundles", splits.len(), |bar| {
        for &k in &splits {
            bundle::write(&folders[k], &compressed[k], &prepared[k], engine, args.seed + k as u64)?;
            bar.inc(1);
        }
        bundle::write_models(&args.out, &compressed[0], &prepared[0], engine)
    })?;
    times.push(time);

    let mut runs = vec![];
    for labelled in [true, false] {
        for arm in [Arm::Frozen, Arm::Naive, Arm::SelfDistilled] {
            if arm != Arm::Frozen || labelled {
                runs.extend(splits.iter().map(|&k| (arm, labelled, k)));
            }
        }
    }
    let (moments, time) = stage("field", runs.len(), |bar| {
        let play = |&(arm, labelled, k): &(Arm, bool, usize)| -> Result<Vec<Moment>> {
            let split = &prepared[k].split;
            let data = Field { stream: &split.stream, field: &split.field, original: &split.test };
            let seed = args.seed + k as u64;
            field::play(&folders[k], &compressed[k].float, arm, labelled, &data, engine, seed)
        };
        parallel::map(&runs, threads, play, || bar.inc(1))
    })?;
    times.push(time);
    let mut field: Vec<(Arm, bool, Vec<Vec<Moment>>)> = vec![];
    for ((arm, labelled, _), run) in runs.iter().zip(moments) {
        match field.iter_mut().find(|f| (f.0, f.1) == (*arm, *labelled)) {
            Some(entry) => entry.2.push(run),
            None => field.push((*arm, *labelled, vec![run])),
        }
    }
    let losses_of = |teaching| {
        let place = tasks.iter().position(|t| *t == (0, 0, teaching));
        place.map(|i| students[i].losses.clone()).unwrap_or_default()
    };
    let (samples, confusion) = answers(&prepared, &compressed, engine)?;
    Ok(Results {
        engine: args.engine.clone(),
        seed: args.seed,
        threads,
        samples,
        confusion,
        bundle_note: open_as_device(&folders[0], engine)?,
        engines: engine_agreement(&prepared, &compressed)?,
        student_losses: vec![
            ("labels alone (cross-entropy)", losses_of(Teaching::Labels)),
            ("distilled (total loss)", losses_of(Teaching::Hint)),
        ],
        teachers: prepared.iter().map(|p| p.teacher_test).collect(),
        teacher_losses: prepared.first().map(|p| p.teacher.losses.clone()).unwrap_or_default(),
        parameters: [nets::teacher(0)?.parameter_count(), nets::student(0)?.parameter_count()],
        untaught,
        taught,
        distilled,
        compression: compressed.iter().map(|c| c.stages.clone()).collect(),
        field,
        times,
    })
}

fn prepare(all: &Arrays, k: usize, engine: &dyn Engine, seed: u64) -> Result<Prepared> {
    let split = data::split(all, k)?;
    let seed = seed + k as u64;
    let teacher = distil::train_teacher(&split, engine, seed, 16)?;
    let pool = distil::teacher_pool(&split, &teacher.net, engine, seed)?;
    let teacher_test = engine::score(teacher.net.graph(), engine, &split.test)?;
    Ok(Prepared { split, teacher, pool, teacher_test })
}

/// Answers of the int8 students: split 0's digits, mistakes first, and the counts over all splits.
fn answers(
    prepared: &[Prepared],
    compressed: &[Compressed],
    engine: &dyn Engine,
) -> Result<(Vec<Answer>, Vec<Vec<u64>>)> {
    let mut counts = vec![vec![0; data::CLASSES]; data::CLASSES];
    let mut samples = vec![];
    for (k, (p, c)) in prepared.iter().zip(compressed).enumerate() {
        let x = p.split.test.get("x")?;
        let logits = engine::outputs(&c.int8, engine, x)?;
        let logits = logits.get("logits").context("the int8 student has no output 'logits'")?.to_f64_vec()?;
        let labels = p.split.test.get("y")?.to_vec::<i64>()?;
        let pixels = x.to_vec::<f32>()?;
        for (i, (row, &label)) in logits.chunks(data::CLASSES).zip(&labels).enumerate() {
            let said = limbeck_distill::argmax(row);
            counts[label as usize][said] += 1;
            if k == 0 {
                let good = said as i64 == label;
                let caption = if good { said.to_string() } else { format!("{said} ({label})") };
                samples.push(Answer { pixels: pixels[i * data::PIXELS..][..data::PIXELS].to_vec(), caption, good });
            }
        }
    }
    samples.sort_by_key(|s| s.good);
    samples.truncate(24);
    Ok((samples, counts))
}

/// Opens the bundle as a device would, self-test included, and says what it holds.
fn open_as_device(folder: &Path, engine: &dyn Engine) -> Result<String> {
    let bundle = limbeck_runtime::Bundle::open(folder)?;
    let options = limbeck_runtime::CompileOptions { threads: 1, ..Default::default() };
    let test = bundle.self_test(engine, &options)?;
    let checks: Vec<String> = test
        .outputs
        .iter()
        .map(|o| {
            format!("{} over {} rows differs by {:.1e}, {:.0e} is allowed", o.name, o.rows, o.difference, o.tolerance)
        })
        .collect();
    let manifest = bundle.manifest();
    let bytes: u64 = manifest.files().map(|f| f.bytes).sum();
    Ok(format!(
        "The bundle '{}' holds {} files of {} with a SHA-256 each: the student with its weights as state, {} forms of its \
         train step, the teacher, calibration ranges, replay, a gate set and self-test vectors. It was opened again as a \
         device opens it, and {} reproduced the self-test: {}.",
        manifest.name,
        manifest.files().count(),
        crate::report::format::bytes(bytes),
        manifest.steps.len(),
        engine.name(),
        checks.join(", "),
    ))
}

/// How far the engines agree on the shipped float and int8 students of split 0.
fn engine_agreement(prepared: &[Prepared], compressed: &[Compressed]) -> Result<Table> {
    let mut table = Table::new(
        ["student", "engine", "provider", "accuracy", "largest difference"],
        "Engines on split 0's test digits; differences relative to the largest logit of the first engine",
    );
    let (Some(p), Some(c)) = (prepared.first(), compressed.first()) else { return Ok(table) };
    let x = p.split.test.get("x")?;
    for (name, graph) in [("float", c.float.graph()), ("int8", &c.int8)] {
        let mut base: Option<Vec<f64>> = None;
        for engine in limbeck_runtime::engines() {
            let program = engine::compile(graph, engine, engine::SCORE_BATCH)?;
            let out = limbeck_distill::predict(&*program, "x", x, engine::SCORE_BATCH)?;
            let logits = out.get("logits").context("no output 'logits'")?;
            let accuracy = limbeck_distill::accuracy(logits, p.split.test.get("y")?)?;
            let values = logits.to_f64_vec()?;
            let base = base.get_or_insert_with(|| values.clone());
            let scale = base.iter().fold(1e-12f64, |m, v| m.max(v.abs()));
            let worst = values.iter().zip(base.iter()).fold(0.0f64, |m, (a, b)| m.max((a - b).abs() / scale));
            table.push([
                name.to_owned(),
                engine.name().to_owned(),
                program.provider().to_owned(),
                crate::report::format::percent(accuracy),
                format!("{worst:.1e}"),
            ]);
        }
    }
    Ok(table)
}

/// Runs a stage under a progress bar and measures its wall time.
fn stage<R>(
    name: &'static str,
    tasks: usize,
    work: impl FnOnce(&ProgressBar) -> Result<R>,
) -> Result<(R, (&'static str, Duration))> {
    let bar = ProgressBar::new(tasks as u64)
        .with_style(ProgressStyle::with_template("{msg:12} {bar:30} {pos}/{len} {elapsed}")?)
        .with_message(name);
    bar.enable_steady_tick(Duration::from_millis(200));
    let start = Instant::now();
    let result = work(&bar).with_context(|| format!("stage '{name}'"));
    bar.finish_and_clear();
    Ok((result?, (name, start.elapsed())))
}
