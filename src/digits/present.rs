//! What the demo prints, and its report.

use super::compress::Measured;
use super::field::{Arm, Moment};
use super::stats::{deviation, half_interval, mean};
use super::{Results, SEEDS, data};
use crate::report::format::{bytes, count, mean_sd, ms, percent, percent_mean_sd};
use crate::report::{
    Bubble, Report, Sample, Section, Series, Table, bubble_chart, confusion_matrix, image_grid, line_chart,
};
use anyhow::Result;
use serde_json::{Value, json};
use std::path::Path;

/// The tables of the demo, a stage each.
pub(super) fn tables(r: &Results) -> Vec<Table> {
    let mut all = vec![teachers(r), students(r), compression(r)];
    all.push(field(r, true));
    all.push(field(r, false));
    all.push(times(r));
    all
}

fn teachers(r: &Results) -> Table {
    Table::new(
        ["network", "parameters", "accuracy, mean ± sd", "lowest"],
        format!("Teacher on the test digits of {} splits", r.teachers.len()),
    )
    .row([
        "teacher".to_owned(),
        count(r.parameters[0] as u64),
        percent_mean_sd(&r.teachers),
        percent(r.teachers.iter().copied().fold(1.0, f64::min)),
    ])
}

fn students(r: &Results) -> Table {
    let row = |name: &str, runs: &[f64]| {
        [
            name.to_owned(),
            count(r.parameters[1] as u64),
            percent_mean_sd(runs),
            runs.iter().map(|&a| percent(a)).collect::<Vec<_>>().join(", "),
        ]
    };
    Table::new(
        ["student", "parameters", "accuracy, mean ± sd", "each seed"],
        format!("Student on the test digits of split 0, {SEEDS} seeds"),
    )
    .row(row("labels alone", &r.untaught))
    .row(row("distilled (KD + hint)", &r.taught))
}

/// Mean over the splits of one number of a stage.
fn over(r: &Results, stage: usize, get: impl Fn(&Measured) -> f64) -> Vec<f64> {
    r.compression.iter().filter_map(|s| s.get(stage)).map(get).collect()
}

fn compression(r: &Results) -> Table {
    let headers = ["after", "accuracy", "against distilled", "parameters", "file", "latency", "integer / float nodes"];
    let mut table = Table::new(
        headers,
        format!(
            "Compression, mean over {} splits; differences in points, paired, ± 95 % interval; latency of one image on \
             one thread of {}",
            r.compression.len(),
            r.engine
        ),
    );
    let base = over(r, 0, |m| m.accuracy);
    for (i, m) in r.compression.first().into_iter().flatten().enumerate() {
        let now = over(r, i, |m| m.accuracy);
        let change: Vec<f64> = now.iter().zip(&base).map(|(a, b)| (a - b) * 100.0).collect();
        let shown = match i {
            0 => crate::report::format::MISSING.to_owned(),
            // One split has no spread.
            _ if change.len() < 2 => format!("{:+.2}", mean(&change)),
            _ => format!("{:+.2} ± {:.2}", mean(&change), half_interval(&change)),
        };
        table.push([
            m.stage.to_owned(),
            percent(mean(&now)),
            shown,
            count(m.parameters as u64),
            bytes(mean(&over(r, i, |m| m.bytes as f64)) as u64),
            ms(mean(&over(r, i, |m| m.latency_ms))),
            format!("{} / {}", m.nodes.0, m.nodes.1),
        ]);
    }
    table
}

/// What must not go unsaid: a last step that is slower than the one before it.
pub(super) fn slower(r: &Results) -> Option<String> {
    let stages = r.compression.first()?;
    let [.., before, last] = &stages[..] else { return None };
    let time = |stage: usize| mean(&over(r, stage, |m| m.latency_ms));
    let (was, is) = (time(stages.len() - 2), time(stages.len() - 1));
    let size = |stage: usize| mean(&over(r, stage, |m| m.bytes as f64)) as u64;
    let sizes = (size(stages.len() - 2), size(stages.len() - 1));
    (is > was).then(|| {
        format!(
            "On {} the student after '{}' is {:.1} times slower than after '{}' ({} for {}); its file has {} for {}.",
            r.engine,
            last.stage,
            is / was,
            before.stage,
            ms(is),
            ms(was),
            bytes(sizes.1),
            bytes(sizes.0)
        )
    })
}

fn runs(r: &Results, arm: Arm, labelled: bool) -> &[Vec<Moment>] {
    // The frozen student does not learn, so that it was run once for both tables.
    let wanted = |f: &&(Arm, bool, Vec<Vec<Moment>>)| f.0 == arm && (f.1 == labelled || arm == Arm::Frozen);
    r.field.iter().find(wanted).map_or(&[], |f| &f.2)
}

fn field(r: &Results, labelled: bool) -> Table {
    let title = if labelled { "with labels" } else { "label-free" };
    // Every device starts as the shipped student.
    let start = |get: fn(&Moment) -> f64| percent_mean_sd(&at(runs(r, Arm::Frozen, labelled), |_| 0, get));
    let caption = format!(
        "Field stream, {title}: accuracy (%) on what arrives, before it is learned from; on new digits under the present \
         drift ({} at the start); on the original, old digits ({}). {} runs, each of its own split and seed",
        start(|m| m.new),
        start(|m| m.old),
        runs(r, Arm::Frozen, labelled).len(),
    );
    let mut table = Table::new(["device", "arrivals", "new, middle", "new, end", "old, middle", "old, end"], caption);
    for arm in [Arm::Frozen, Arm::Naive, Arm::SelfDistilled] {
        let runs = runs(r, arm, labelled);
        let shown = |shares: Vec<f64>| mean_sd(&shares.iter().map(|v| v * 100.0).collect::<Vec<_>>(), 1);
        let (middle, end) = (|last| last / 2, |last| last);
        table.push([
            arm.name().to_owned(),
            shown(runs.iter().map(|v| arrivals(v)).collect()),
            shown(at(runs, middle, |m| m.new)),
            shown(at(runs, end, |m| m.new)),
            shown(at(runs, middle, |m| m.old)),
            shown(at(runs, end, |m| m.old)),
        ]);
    }
    table
}

/// One number of each run at a place that is chosen by the last one.
fn at(runs: &[Vec<Moment>], place: fn(usize) -> usize, get: fn(&Moment) -> f64) -> Vec<f64> {
    runs.iter().filter_map(|v| v.get(place(v.len().saturating_sub(1)))).map(get).collect()
}

/// Accuracy over all arrivals of a run. All moments but the first cover equally many.
fn arrivals(run: &[Moment]) -> f64 {
    mean(&run.iter().skip(1).map(|m| m.prequential).collect::<Vec<_>>())
}

fn times(r: &Results) -> Table {
    let mut table = Table::new(["stage", "seconds"], format!("Wall time, {} tasks at once", r.threads));
    for (name, time) in &r.times {
        table.push([(*name).to_owned(), format!("{:.1}", time.as_secs_f64())]);
    }
    let total: f64 = r.times.iter().map(|t| t.1.as_secs_f64()).sum();
    table.push(["all".to_owned(), format!("{total:.1}")]);
    table
}

fn curve(r: &Results, labelled: bool, what: &str, get: fn(&Moment) -> f64) -> String {
    let series: Vec<Series> = [Arm::Frozen, Arm::Naive, Arm::SelfDistilled]
        .into_iter()
        .map(|arm| {
            let runs = runs(r, arm, labelled);
            let x: Vec<f64> = runs.first().map(|m| m.iter().map(|m| m.seen * 100.0).collect()).unwrap_or_default();
            let y: Vec<Vec<f64>> = runs.iter().map(|m| m.iter().map(|m| get(m) * 100.0).collect()).collect();
            Series::of_runs(arm.name(), &x, &y)
        })
        .collect();
    line_chart(what, "stream seen (%)", "accuracy (%)", &series)
}

/// The numbers of the demo, for other programs. Accuracies are shares, one entry a split or seed.
pub(super) fn facts(r: &Results, report: &Path, bundle: &Path) -> Value {
    let stages = r.compression.first().into_iter().flatten().enumerate().map(|(i, m)| {
        json!({
            "after": m.stage, "accuracy": over(r, i, |m| m.accuracy), "bytes": over(r, i, |m| m.bytes as f64),
            "parameters": over(r, i, |m| m.parameters as f64), "latency_ms": over(r, i, |m| m.latency_ms),
            "int_nodes": m.nodes.0, "float_nodes": m.nodes.1,
        })
    });
    let field = r.field.iter().map(|(arm, labelled, runs)| {
        let moments = |get: fn(&Moment) -> f64| -> Vec<Vec<f64>> {
            runs.iter().map(|run| run.iter().map(get).collect()).collect()
        };
        json!({
            "device": arm.name(), "labels": labelled, "arrivals": runs.iter().map(|v| arrivals(v)).collect::<Vec<_>>(),
            "seen": moments(|m| m.seen), "new": moments(|m| m.new), "old": moments(|m| m.old),
        })
    });
    json!({
        "engine": r.engine, "seed": r.seed,
        "teacher": {"parameters": r.parameters[0], "accuracy": r.teachers},
        "student": {"parameters": r.parameters[1], "labels_alone": r.untaught, "distilled": r.taught},
        "compression": stages.collect::<Vec<_>>(),
        "field": field.collect::<Vec<_>>(),
        "seconds": r.times.iter().map(|(name, t)| (name.to_string(), json!(t.as_secs_f64()))).collect::<serde_json::Map<_, _>>(),
        "report": report.display().to_string(), "bundle": bundle.display().to_string(),
    })
}

/// The report as one HTML page.
pub(super) fn report(r: &Results) -> Result<String> {
    let all = tables(r);
    let [teacher, student, compression, with_labels, label_free, times] = &all[..] else {
        anyhow::bail!("the demo has six tables");
    };
    let last = r.compression.first().map_or(0, Vec::len).saturating_sub(1);
    let loss: Vec<f64> =
        over(r, last, |m| m.accuracy).iter().zip(over(r, 0, |m| m.accuracy)).map(|(a, b)| (b - a) * 100.0).collect();
    let free_end: Vec<f64> =
        runs(r, Arm::SelfDistilled, false).iter().filter_map(|v| v.last()).map(|m| m.new * 100.0).collect();
    let losses: Vec<(f64, f64)> = r.teacher_losses.iter().enumerate().map(|(i, l)| (i as f64 + 1.0, *l)).collect();
    let student_losses: Vec<Series> = r
        .student_losses
        .iter()
        .map(|(name, v)| Series::new(*name, v.iter().enumerate().map(|(i, l)| (i as f64 * 6.0 + 6.0, *l)).collect()))
        .collect();
    let bubbles: Vec<Bubble> = r
        .compression
        .first()
        .into_iter()
        .flatten()
        .enumerate()
        .filter(|(i, _)| [0, 2, 4, 5, 6].contains(i))
        .map(|(i, m)| Bubble {
            name: m.stage.to_owned(),
            x: mean(&over(r, i, |m| m.latency_ms)),
            y: mean(&over(r, i, |m| m.accuracy)) * 100.0,
            bytes: mean(&over(r, i, |m| m.bytes as f64)) as u64,
        })
        .collect();
    let digits: Vec<String> = (0..data::CLASSES).map(|c| c.to_string()).collect();
    let samples: Vec<Sample> = r
        .samples
        .iter()
        .map(|s| Sample { pixels: &s.pixels, width: 8, height: 8, caption: &s.caption, good: s.good })
        .collect();
    let page = Report::new(
        "Limbeck: from a teacher to a student that learns on the device",
        format!("UCI handwritten digits 8x8, engine {}, seed {}", r.engine, r.seed),
    )
    .headline(percent(mean(&r.teachers)), "teacher accuracy")
    .headline(percent(mean(&over(r, last, |m| m.accuracy))), "shipped int8 student")
    .headline(
        if loss.len() < 2 { format!("{:.2}", mean(&loss)) } else { format!("{:.2} ± {:.2}", mean(&loss), half_interval(&loss)) },
        "points lost by compression",
    )
    .headline(format!("{:.1} %", mean(&free_end)), format!("on drifted digits, label-free (± {:.1})", deviation(&free_end)))
    .section(
        Section::new("Data")
            .text(
                "1,797 digits in their published order, cut into 20 contiguous blocks, which stand in for writers (no \
                 writer ids exist). Each split gives its blocks a role: training, validation, calibration, final test, \
                 field stream, field evaluation; all are disjoint. Neighbouring blocks may share a writer, so these \
                 figures do not claim independence of writers.",
            )
            .figure("Test digits of split 0 with the int8 student's answer; mistakes first.", image_grid("", &samples)),
    )
    .section(
        Section::new("Teacher and student")
            .table(teacher)
            .table(student)
            .figure(
                "Training loss of split 0's teacher (cross-entropy with smoothed labels).",
                line_chart("Teacher", "epoch", "loss", &[Series::new("teacher", losses)]),
            )
            .figure(
                "Training loss of the students of split 0; the losses are not of one kind.",
                line_chart("Students", "passes over the training set", "loss", &student_losses),
            ),
    )
    .section(
        Section::new("Compression")
            .table(compression)
            .text(slower(r).unwrap_or_default())
            .figure(
                "Accuracy against latency; the area is the file's size.",
                bubble_chart(
                    "Size, latency, accuracy",
                    "latency (ms, one image, one thread)",
                    "accuracy (%)",
                    &bubbles,
                ),
            )
            .figure(
                "Answers of the int8 student on the test digits of all splits.",
                confusion_matrix("Confusion", &digits, &r.confusion),
            ),
    )
    .section(Section::new("Bundle").text(&r.bundle_note))
    .section(
        Section::new("In the field")
            .text(
                "A stream of field digits slowly turns by 30 degrees and loses contrast. The device answers for every \
                 arrival before it learns from it. New: field digits never trained on, under the present drift. Old: \
                 the original test digits. Bands are ± one standard deviation over the runs. Naive fine-tuning makes four \
                 steps of cross-entropy at a rate of 0.0005 on each arrival; Limbeck four steps at 0.003 on the latest and \
                 other remembered arrivals, slightly warped, and on replayed digits. Without labels each takes its own \
                 answers (Limbeck those of its average) for labels.",
            )
            .table(with_labels)
            .figures("With labels.", [curve(r, true, "New digits", |m| m.new), curve(r, true, "Old digits", |m| m.old)])
            .table(label_free)
            .figures(
                "Label-free.",
                [curve(r, false, "New digits", |m| m.new), curve(r, false, "Old digits", |m| m.old)],
            ),
    )
    .section(Section::new("Engines").table(&r.engines))
    .section(Section::new("Time").table(times));
    Ok(page.to_html())
}
