//! `limbeck distill` on files of every kind, killed and resumed, and with what is wrong named.
#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use limbeck::distill::models::{ResNet, Stage};
use limbeck::runtime::noise;
use limbeck::tensor::{Tensor, TensorMap, io};

const SIDE: usize = 6;
const SAMPLES: usize = 40;
const CLASSES: usize = 3;

fn limbeck(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_limbeck"));
    command.args(args).stdin(Stdio::null());
    command
}

fn distill(recipe: &Path, out: &Path, more: &[&str]) -> Output {
    limbeck(&["--json", "distill", text(recipe), "--out", text(out)]).args(more).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// Noise with a bright row, column or corner, by class; pixels 0..=255.
fn images() -> (Vec<u8>, Vec<u8>) {
    let mut stream = noise::stream(1, 0, "images");
    let labels: Vec<u8> = (0..SAMPLES).map(|i| (i % CLASSES) as u8).collect();
    let bright = |class: u8, i: usize| match class {
        0 => i / SIDE == 2,
        1 => i % SIDE == 2,
        _ => i / SIDE < 2 && i % SIDE < 2,
    };
    let pixels = labels.iter().flat_map(|&c| (0..SIDE * SIDE).map(move |i| (c, i)));
    let pixels = pixels.map(|(c, i)| (stream.uniform() * 90.0) as u8 + if bright(c, i) { 150 } else { 0 }).collect();
    (pixels, labels)
}

fn idx(shape: &[usize], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, shape.len() as u8];
    shape.iter().for_each(|&n| file.extend((n as u32).to_be_bytes()));
    file.extend(bytes);
    file
}

/// A folder with data of every kind, a student, a teacher and a recipe.
fn prepare(folder: &Path, train: &str, more: &str) -> PathBuf {
    let (pixels, labels) = images();
    let shape = [SAMPLES, 1, SIDE, SIDE];
    fs::write(folder.join("x.idx"), idx(&shape, &pixels)).unwrap();
    fs::write(folder.join("y.idx"), idx(&[SAMPLES], &labels)).unwrap();
    let x = Tensor::new(shape, pixels.clone()).unwrap();
    io::write_npy(&folder.join("x.npy"), &x).unwrap();
    let mut fields = TensorMap::new();
    fields.insert("x".into(), x);
    fields
        .insert("y".into(), Tensor::new([SAMPLES], labels.iter().map(|&l| i64::from(l)).collect::<Vec<_>>()).unwrap());
    io::write_safetensors(&folder.join("all.safetensors"), &fields).unwrap();
    for (i, (image, label)) in pixels.chunks(SIDE * SIDE).zip(&labels).enumerate() {
        let class = folder.join(format!("images/{label}"));
        fs::create_dir_all(&class).unwrap();
        let side = SIDE as u32;
        image::GrayImage::from_raw(side, side, image.to_vec())
            .unwrap()
            .save(class.join(format!("{i:03}.png")))
            .unwrap();
    }
    let net = |channels, stem, seed| {
        let stages = vec![Stage { channels, stride: 2, blocks: vec![channels] }];
        ResNet { input: [1, SIDE, SIDE], stem, stages, classes: CLASSES }.build(seed).unwrap()
    };
    net(6, 4, 1).graph().write(folder.join("student.onnx")).unwrap();
    net(8, 6, 2).graph().write(folder.join("teacher.onnx")).unwrap();
    let recipe = folder.join("recipe.toml");
    let written = format!(
        "name = \"shapes\"\n{more}\n\
         [data]\n\
         train = {train}\n\
         validation = {{ safetensors = \"all.safetensors\" }}\n\
         preprocess = {{ x = {{ scale = 0.00392156862745098, mean = [0.2], std = [0.3] }} }}\n\
         [student]\nmodel = \"student.onnx\"\ninputs = {{ x = \"data:x\" }}\n\
         [[loss]]\nobjective = \"ce\"\ntaps = {{ student_logits = \"student:logits\", labels = \"data:y\" }}\n"
    );
    fs::write(&recipe, written).unwrap();
    recipe
}

fn add(recipe: &Path, text: &str) {
    let whole = fs::read_to_string(recipe).unwrap() + text;
    fs::write(recipe, whole).unwrap();
}

const TRAIN: &str = "[train]\nepochs = 6\nbatch = 16\nlr = 0.02\n";

fn facts(out: &Output) -> serde_json::Value {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn data_of_every_kind_gives_the_same_student() {
    let kinds = [
        "{ safetensors = \"all.safetensors\" }",
        "{ fields = { x = \"x.idx\", y = \"y.idx\" } }",
        "{ fields = { x = \"x.npy\", y = \"y.idx\" } }",
    ];
    let mut students = vec![];
    for kind in kinds {
        let folder = tempfile::tempdir().unwrap();
        let recipe = prepare(folder.path(), kind, "");
        add(&recipe, TRAIN);
        let out = folder.path().join("out");
        let facts = facts(&distill(&recipe, &out, &[]));
        assert!(facts["validation"]["accuracy"].as_f64().unwrap() > 0.9, "{facts:#}");
        students.push(fs::read(out.join("student.safetensors")).unwrap());
    }
    assert!(students.iter().all(|s| *s == students[0]));
    // A folder of images is read in the order of its classes, and is scaled already.
    let folder = tempfile::tempdir().unwrap();
    let images = "{ images = { folder = \"images\", channels = 1, height = 6, width = 6 } }";
    let recipe = prepare(folder.path(), images, "");
    let whole = fs::read_to_string(&recipe).unwrap();
    let whole = whole.replace("safetensors = \"all.safetensors\"", &images[2..images.len() - 2]);
    fs::write(&recipe, whole.replace("scale = 0.00392156862745098, ", "") + TRAIN).unwrap();
    let facts = facts(&distill(&recipe, &folder.path().join("out"), &[]));
    assert!(facts["validation"]["accuracy"].as_f64().unwrap() > 0.9, "{facts:#}");
}

/// Every section of a recipe at once.
const EVERYTHING: &str = "\
    [teacher]\nmodel = \"teacher.onnx\"\n\
    [projector.hint]\ninput = \"student:stage0.block0.out\"\nchannels = 8\n\
    [apply.second]\ninputs = { x = \"data:x\" }\n\
    [[loss]]\nobjective = \"kd\"\nweight = 0.5\n\
    taps = { student_logits = \"second:logits\", teacher_logits = \"teacher:logits\" }\n\
    [[loss]]\nobjective = \"hint\"\nweight = 0.1\n\
    taps = { student_feature = \"projector:hint\", teacher_feature = \"teacher:stage0.block0.out\" }\n\
    [[group]]\nparameters = [\"fc.*\"]\nlr_scale = 0.1\nweight_decay = 0.0\n\
    [train]\nepochs = 4\nbatch = 16\nlr = 0.01\nfreeze = [\"stem.*\"]\nclip_norm = 1.0\naccumulate = 2\n\
    weight_decay = 0.01\npatience = 3\n";

#[test]
fn frozen_parameters_stay_and_heads_are_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = prepare(folder.path(), "{ safetensors = \"all.safetensors\" }", "");
    add(&recipe, EVERYTHING);
    let out = folder.path().join("out");
    facts(&distill(&recipe, &out, &[]));
    let before = limbeck::graph::Graph::read(folder.path().join("student.onnx")).unwrap();
    let after = io::read_safetensors(&out.join("student.safetensors")).unwrap();
    let changed =
        |name: &str| before.initializer(before.require(name).unwrap()).unwrap().bytes() != after[name].bytes();
    for name in after.keys() {
        assert_eq!(changed(name), !name.starts_with("stem."), "{name}");
    }
    assert!(!after.keys().any(|name| name.contains("projector")));
    let log = fs::read_to_string(out.join("log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 4, "{log}");
}

#[test]
fn a_student_can_follow_its_own_average() {
    for (follow, moves) in [("ema", true), ("snapshot", false)] {
        let folder = tempfile::tempdir().unwrap();
        let recipe = prepare(folder.path(), "{ safetensors = \"all.safetensors\" }", "");
        add(&recipe, &format!("[teacher]\nfollow = \"{follow}\"\ndecay = 0.5\n"));
        add(
            &recipe,
            "[[loss]]\nobjective = \"self_distill\"\n\
             taps = { student_logits = \"student:logits\", teacher_logits = \"teacher:logits\" }\n",
        );
        add(&recipe, TRAIN);
        let out = folder.path().join("out");
        facts(&distill(&recipe, &out, &[]));
        let state = io::read_safetensors(&out.join("checkpoint.safetensors")).unwrap();
        assert_eq!(state.keys().any(|k| k.starts_with("state/teacher/")), moves);
    }
}

#[test]
fn a_killed_run_resumes_to_the_very_same_student() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = prepare(folder.path(), "{ safetensors = \"all.safetensors\" }", "seed = 3");
    add(&recipe, &TRAIN.replace("epochs = 6", "epochs = 60"));
    let whole = folder.path().join("whole");
    facts(&distill(&recipe, &whole, &[]));

    let out = folder.path().join("killed");
    let mut child = limbeck(&["distill", text(&recipe), "--out", text(&out)]).stderr(Stdio::null()).spawn().unwrap();
    let checkpoint = out.join("checkpoint.safetensors");
    let patience = Instant::now();
    while !checkpoint.exists() && patience.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(checkpoint.exists() && !out.join("student.onnx").exists(), "the run was over before it could be killed");
    let refused = distill(&recipe, &out, &[]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--resume"));
    facts(&distill(&recipe, &out, &["--resume"]));
    for file in ["student.safetensors", "student.onnx"] {
        assert!(fs::read(whole.join(file)).unwrap() == fs::read(out.join(file)).unwrap(), "{file} differs");
    }
    let lines = |folder: &Path| fs::read_to_string(folder.join("log.jsonl")).unwrap().lines().count();
    assert_eq!((lines(&whole), lines(&out)), (60, 60));
}

#[test]
fn what_is_wrong_is_named_and_nothing_is_written() {
    let wrong: &[(&str, &str, &[&str])] = &[
        ("train", "[train]\nepochs = 2\nbatch = 16\nlr = nan\n", &["train.lr"]),
        ("train", "[train]\nepochs = 0\nbatch = 16\nlr = 0.1\n", &["train.epochs"]),
        ("train", "[train]\nepochs = 2\nbatch = 16\nlr = 0.1\nclip_norm = -1.0\n", &["train.clip_norm"]),
        ("train", "[train]\nepochs = 2\nbatch = 16\nlr = 0.1\noptimizer = \"sgd\"\n", &["optimizer"]),
        ("train", "[train]\nepochs = 2\nbatch = 16\nlr = 0.1\nfreeze = [\"stemm.*\"]\n", &["stemm.*", "freeze"]),
        ("loss", "[[loss]]\nobjective = \"kdd\"\ntaps = {}\n", &["kdd", "kd"]),
        ("loss", "[[loss]]\nobjective = \"kd\"\ntaps = { student_logits = \"student:logits\" }\n", &["teacher_logits"]),
        (
            "loss",
            "[[loss]]\nobjective = \"kd\"\n\
             taps = { student_logits = \"student:logits\", teacher_logits = \"teacher:logits\" }\n",
            &["teacher:logits", "[teacher]"],
        ),
        (
            "loss",
            "[[loss]]\nobjective = \"ce\"\ntaps = { student_logits = \"student:logit\", labels = \"data:y\" }\n",
            &["logit"],
        ),
        (
            "loss",
            "[[loss]]\nobjective = \"ce\"\ntaps = { student_logits = \"student:logits\", labels = \"data:z\" }\n",
            &["data:z", "\"y\""],
        ),
        ("teacher", "[teacher]\ndecay = 0.5\n", &["teacher", "follow"]),
    ];
    for (section, text, names) in wrong {
        let folder = tempfile::tempdir().unwrap();
        let recipe = prepare(folder.path(), "{ safetensors = \"all.safetensors\" }", "");
        add(&recipe, text);
        if *section != "train" {
            add(&recipe, TRAIN);
        }
        let out = folder.path().join("out");
        let run = distill(&recipe, &out, &[]);
        let error = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(1), "{text}: {error}");
        assert!(names.iter().all(|n| error.contains(n)), "{text}: {error} should name {names:?}");
        assert!(!out.exists(), "{text}: something was written");
    }
}

#[test]
fn labels_out_of_range_and_numbers_that_are_not_finite_are_found_in_the_data() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = prepare(folder.path(), "{ safetensors = \"bad.safetensors\" }", "");
    add(&recipe, TRAIN);
    let mut fields = io::read_safetensors(&folder.path().join("all.safetensors")).unwrap();
    let mut labels = fields["y"].to_vec::<i64>().unwrap();
    labels[7] = 9;
    fields.insert("y".into(), Tensor::new([SAMPLES], labels).unwrap());
    io::write_safetensors(&folder.path().join("bad.safetensors"), &fields).unwrap();
    let error = distill(&recipe, &folder.path().join("out"), &[]);
    let error = String::from_utf8_lossy(&error.stderr).into_owned();
    assert!(error.contains("data y") && error.contains("sample 7") && error.contains('9'), "{error}");

    let pixels = fields["x"].to_f64_vec().unwrap();
    let mut pixels: Vec<f32> = pixels.iter().map(|&v| v as f32).collect();
    pixels[3 * SIDE * SIDE] = f32::NAN;
    fields.insert("x".into(), Tensor::new([SAMPLES, 1, SIDE, SIDE], pixels).unwrap());
    io::write_safetensors(&folder.path().join("bad.safetensors"), &fields).unwrap();
    let error = distill(&recipe, &folder.path().join("out"), &[]);
    let error = String::from_utf8_lossy(&error.stderr).into_owned();
    assert!(error.contains('x') && error.contains("sample 3"), "{error}");
}

#[test]
fn a_step_is_written_and_its_memory_planned() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = prepare(folder.path(), "{ safetensors = \"all.safetensors\" }", "");
    add(&recipe, TRAIN);
    let out = folder.path().join("step");
    let planned = limbeck(&["--json", "step", text(&recipe), "--plan", "--fused"]).output().unwrap();
    let planned = facts(&planned);
    assert_eq!(planned["folder"], serde_json::Value::Null);
    let state = planned["parameter_bytes"].as_u64().unwrap() + planned["optimiser_bytes"].as_u64().unwrap();
    let kept = facts(&limbeck(&["--json", "step", text(&recipe), "--plan", "--fused", "--keep"]).output().unwrap());
    for engine in ["tract", "ort"] {
        let memory = &planned["memory"][engine];
        let number = |key: &str| memory[key].as_u64().unwrap();
        assert!(number("state_and_constant_bytes") >= state, "{planned:#}");
        let listed: u64 = memory["largest"].as_array().unwrap().iter().map(|v| v["bytes"].as_u64().unwrap()).sum();
        assert!(number("state_and_constant_bytes") + listed <= number("peak_bytes"), "{planned:#}");
        assert!(kept["memory"][engine]["peak_bytes"].as_u64().unwrap() >= number("peak_bytes"), "{kept:#} {planned:#}");
    }
    assert!(!out.exists());
    let standard = limbeck(&["step", text(&recipe), "--plan", "--keep"]).output().unwrap();
    assert!(!standard.status.success() && String::from_utf8_lossy(&standard.stderr).contains("--fused"));

    let written = facts(&limbeck(&["--json", "step", text(&recipe), "--out", text(&out), "--fused"]).output().unwrap());
    assert_eq!(written["nodes"], planned["nodes"]);
    assert!(["step.onnx", "step.json", "state.safetensors"].iter().all(|name| out.join(name).is_file()));
    let neither = limbeck(&["step", text(&recipe)]).output().unwrap();
    assert!(!neither.status.success() && String::from_utf8_lossy(&neither.stderr).contains("--out"));
}
