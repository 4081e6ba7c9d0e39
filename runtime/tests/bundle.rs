//! Bundles: what is refused, what survives power loss, what the self-test lets through.

mod common;

use common::{message, write};
use limbeck_runtime::{Bundle, CompileOptions, LedgerEntry, MANIFEST, RuntimeError, WeightsOrigin, engines};
use limbeck_tensor::{Tensor, TensorMap};
use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

fn entry() -> LedgerEntry {
    LedgerEntry {
        sequence: 0,
        weights: String::new(),
        step: "adapt (portable)".into(),
        runs: 4,
        data: vec!["00".into()],
        before: BTreeMap::new(),
        after: BTreeMap::from([("accuracy".into(), 0.5)]),
    }
}

/// Student weights that are all `value`.
fn all(value: f32) -> TensorMap {
    let of = |shape: &[usize]| Tensor::new(shape, vec![value; shape.iter().product()]).unwrap();
    TensorMap::from([("student/w".into(), of(&[2, 3])), ("student/b".into(), of(&[3]))])
}

/// The number that the opened student's weights are, and the sequence of their commit.
fn opened(root: &Path) -> (f32, u64, Vec<String>) {
    let bundle = Bundle::open(root).unwrap();
    let sequence = match bundle.report().origin {
        WeightsOrigin::Slot { sequence, .. } => sequence,
        WeightsOrigin::Shipped => 0,
    };
    let w = bundle.state()["student/w"].to_vec::<f32>().unwrap();
    let b = bundle.state()["student/b"].to_vec::<f32>().unwrap();
    if sequence > 0 {
        assert!(w.iter().chain(&b).all(|v| *v == w[0]), "mixed weights {w:?} {b:?}");
    }
    (b[0], sequence, bundle.report().problems.clone())
}

#[test]
fn tampering_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let bundle = write(root, true);
    for file in bundle.manifest().files() {
        let path = root.join(&file.file);
        let good = std::fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for bad in [&flipped[..], &good[..good.len() - 1], &[][..]] {
            std::fs::write(&path, bad).unwrap();
            let error = Bundle::open(root).unwrap_err();
            assert!(matches!(error, RuntimeError::Tampered { .. }), "{error}");
            assert!(error.to_string().contains(&file.file), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(message(Bundle::open(root)).contains(&file.file));
        std::fs::write(&path, good).unwrap();
    }
    Bundle::open(root).unwrap();
}

#[test]
fn a_manifest_that_is_not_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write(root, true);
    let good: serde_json::Value = serde_json::from_slice(&std::fs::read(root.join(MANIFEST)).unwrap()).unwrap();
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value = good.clone();
        change(&mut value);
        std::fs::write(root.join(MANIFEST), value.to_string()).unwrap();
        message(Bundle::open(root))
    };
    assert!(with(&|v| v["surprise"] = 1.into()).contains("surprise"));
    assert!(with(&|v| v["model"]["onnx"]["mode"] = 1.into()).contains("mode"));
    assert!(with(&|v| v["format"] = 99.into()).contains("99"));
    assert!(with(&|v| v["model"]["onnx"]["file"] = "model.json".into()).contains("two entries"));
    assert!(with(&|v| v["model"]["outputs"] = serde_json::json!([1])).contains(MANIFEST));
    for escape in ["../model.onnx", "/etc/hostname", "a/../../b", "", "c:\\x", "slots/a/weights.safetensors", MANIFEST]
    {
        let error = with(&|v| v["model"]["onnx"]["file"] = escape.into());
        assert!(error.contains(&format!("`{escape}`")), "{error}");
    }
    #[cfg(unix)]
    {
        let outside = tempfile::tempdir().unwrap();
        std::fs::rename(root.join("model.onnx"), outside.path().join("model.onnx")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("model.onnx"), root.join("model.onnx")).unwrap();
        assert!(with(&|_| ()).contains("leads out"));
    }
    std::fs::write(root.join(MANIFEST), "{").unwrap();
    assert!(message(Bundle::open(root)).contains(MANIFEST));
}

#[test]
fn commits_alternate_and_fill_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let bundle = write(root, true);
    assert_eq!(opened(root).1, 0);
    for i in 1..=3u64 {
        let line = bundle.commit(&all(i as f32), &entry()).unwrap();
        assert_eq!((line.sequence, line.weights.len()), (i, 64));
        assert_eq!(opened(root), (i as f32, i, vec![]));
    }
    let lines = bundle.ledger().unwrap();
    assert_eq!(lines.iter().map(|l| l.sequence).collect::<Vec<_>>(), [1, 2, 3]);
    let mut wrong = all(1.0);
    wrong.insert("student/w".into(), Tensor::new([2, 3], vec![f32::NAN; 6]).unwrap());
    assert!(message(bundle.commit(&wrong, &entry())).contains("finite"));
    wrong.remove("student/w");
    assert!(message(bundle.commit(&wrong, &entry())).contains("student/w"));
    wrong = all(1.0);
    wrong.insert("stranger".into(), Tensor::scalar(1f32));
    assert!(message(bundle.commit(&wrong, &entry())).contains("stranger"));
    assert_eq!(opened(root), (3.0, 3, vec![]));
}

#[test]
fn damaged_slots_are_passed_over_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let bundle = write(root, true);
    bundle.commit(&all(1.0), &entry()).unwrap(); // slot a
    bundle.commit(&all(2.0), &entry()).unwrap(); // slot b, current
    let b = root.join("slots/b/weights.safetensors");
    let good = std::fs::read(&b).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 64;
    for bad in [&flipped[..], &good[..good.len() / 2], &[][..]] {
        std::fs::write(&b, bad).unwrap();
        let (value, sequence, problems) = opened(root);
        assert_eq!((value, sequence), (1.0, 1));
        assert!(problems.iter().any(|p| p.contains("slot b")), "{problems:?}");
    }
    // A commit after that takes the damaged slot's place and goes on counting.
    assert_eq!(bundle.commit(&all(3.0), &entry()).unwrap().sequence, 3);
    assert_eq!(opened(root), (3.0, 3, vec![]));
    for name in ["a", "b"] {
        std::fs::write(root.join("slots").join(name).join("slot.json"), "{\"base\":").unwrap();
    }
    let (value, sequence, problems) = opened(root);
    assert_eq!((value, sequence), (0.0, 0), "the shipped bias");
    assert!(problems.iter().any(|p| p.contains("shipped weights")), "{problems:?}");
}

#[test]
fn power_loss_between_the_parts_of_a_commit() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let bundle = write(root, true);
    bundle.commit(&all(1.0), &entry()).unwrap();
    bundle.commit(&all(2.0), &entry()).unwrap();
    let read = |file: &str| std::fs::read(root.join(file)).unwrap();
    let (old_weights, old_record) = (read("slots/a/weights.safetensors"), read("slots/a/slot.json"));
    let (old_ledger, old_pointer) = (read("ledger.jsonl"), read("current"));
    bundle.commit(&all(3.0), &entry()).unwrap();
    let new_ledger = read("ledger.jsonl");
    let write = |file: &str, content: &[u8]| std::fs::write(root.join(file), content).unwrap();
    // Before the line of the ledger: the commit counts, a torn line is no line.
    write("ledger.jsonl", &new_ledger[..old_ledger.len() + 20]);
    assert_eq!(opened(root).1, 3);
    assert_eq!(bundle.ledger().unwrap().len(), 2);
    // Before the pointer: the old weights count.
    write("current", &old_pointer);
    assert_eq!(opened(root), (2.0, 2, vec![]));
    // Before the record: the slot is not whole, the old weights count.
    write("slots/a/slot.json", &old_record);
    assert_eq!(opened(root).1, 2);
    // In the middle of the first write: a temporary file lies about.
    write("slots/a/weights.safetensors", &old_weights);
    write("slots/a/.limbeck-torn", &old_weights[..10]);
    assert_eq!(opened(root), (2.0, 2, vec![]));
    // The next commit goes on, and the torn line is gone.
    bundle.commit(&all(4.0), &entry()).unwrap();
    assert_eq!(opened(root), (4.0, 3, vec![]));
    assert_eq!(bundle.ledger().unwrap().iter().map(|l| l.sequence).collect::<Vec<_>>(), [1, 2, 3]);
    // The pointer lost, or torn.
    std::fs::remove_file(root.join("current")).unwrap();
    let (value, _, problems) = opened(root);
    assert!(value == 4.0 && problems.len() == 1, "{problems:?}");
    write("current", b"x");
    assert_eq!(opened(root).0, 4.0);
}

#[test]
fn a_missing_ledger_line_is_written_by_the_next_commit() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = write(dir.path(), true);
    bundle.commit(&all(1.0), &entry()).unwrap();
    std::fs::write(dir.path().join("ledger.jsonl"), "").unwrap();
    bundle.commit(&all(2.0), &entry()).unwrap();
    assert_eq!(bundle.ledger().unwrap().iter().map(|l| l.sequence).collect::<Vec<_>>(), [1, 2]);
}

/// Not a test of its own: what the next one starts and kills.
#[test]
#[ignore = "is started and killed by a_killed_process_leaves_whole_weights"]
fn commits_without_end() {
    let root = std::env::var_os("LIMBECK_TEST_BUNDLE").unwrap();
    let bundle = Bundle::open(&root).unwrap();
    for i in opened(Path::new(&root)).1 + 1.. {
        bundle.commit(&all(i as f32), &entry()).unwrap();
    }
}

#[test]
fn a_killed_process_leaves_whole_weights() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write(root, true);
    let mut last = 0;
    for round in 0..6u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "commits_without_end", "--ignored", "--quiet"])
            .env("LIMBECK_TEST_BUNDLE", root)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // However slow the disk: killed at some moment after it committed at least once more.
        let patience = Instant::now() + Duration::from_secs(120);
        while opened(root).1 <= last {
            assert!(Instant::now() < patience && child.try_wait().unwrap().is_none(), "the child does not commit");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_micros(round * 3700 % 9000));
        child.kill().unwrap();
        child.wait().unwrap();
        let (value, sequence, problems) = opened(root);
        // A record may be missing its weights' checksum only in the slot that is not current.
        assert!(problems.iter().all(|p| p.contains("is not used") || p.contains("never made current")), "{problems:?}");
        assert!(sequence > last && value == sequence as f32, "{value} {sequence} {last}");
        last = sequence;
    }
    let lines = Bundle::open(root).unwrap().ledger().unwrap();
    assert!(lines.windows(2).all(|pair| pair[1].sequence == pair[0].sequence + 1));
}

/// Every place where a commit reads or writes.
const KEPT: [&str; 9] = [
    "slots",
    "slots/a",
    "slots/b",
    "slots/lock",
    "slots/a/weights.safetensors",
    "slots/a/slot.json",
    "slots/b/weights.safetensors",
    "current",
    "ledger.jsonl",
];

#[cfg(unix)]
#[test]
fn links_never_lead_out_of_the_bundle() {
    use std::os::unix::fs::symlink;
    for place in KEPT {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (root, target) = (dir.path(), outside.path().join("target"));
        let bundle = write(root, true);
        for i in 1..=2 {
            bundle.commit(&all(i as f32), &entry()).unwrap();
        }
        // What was there is moved outside, so that only the link itself can be objected to.
        std::fs::rename(root.join(place), &target).unwrap();
        symlink(&target, root.join(place)).unwrap();
        let before = std::fs::read(&target).ok();
        for error in [message(Bundle::open(root)), message(bundle.commit(&all(3.0), &entry()))] {
            assert!(error.contains(place) && error.contains("is a link"), "{place}: {error}");
        }
        assert_eq!(std::fs::read(&target).ok(), before, "{place} was written through");
        // A link to nothing would be created through.
        std::fs::remove_file(root.join(place)).unwrap();
        symlink(outside.path().join("new"), root.join(place)).unwrap();
        assert!(message(bundle.commit(&all(3.0), &entry())).contains("is a link"));
        assert!(!outside.path().join("new").exists());
    }
    let dir = tempfile::tempdir().unwrap();
    let bundle = write(dir.path(), true);
    std::fs::create_dir(dir.path().join("current")).unwrap();
    assert!(message(bundle.commit(&all(1.0), &entry())).contains("no plain file"));
    let outside = tempfile::tempdir().unwrap();
    std::fs::rename(dir.path().join(MANIFEST), outside.path().join(MANIFEST)).unwrap();
    symlink(outside.path().join(MANIFEST), dir.path().join(MANIFEST)).unwrap();
    assert!(message(Bundle::open(dir.path())).contains("is a link"));
}

#[test]
fn what_the_manifest_does_not_list_is_not_received() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let bundle = write(root, true);
    Bundle::open_received(root).unwrap();
    for stray in ["extra.bin", "slots", "a/b"] {
        match stray {
            "extra.bin" => std::fs::write(root.join(stray), b"x").unwrap(),
            _ => std::fs::create_dir_all(root.join(stray)).unwrap(),
        }
        let error = message(Bundle::open_received(root));
        assert!(error.contains(stray.split('/').next().unwrap()) && error.contains("does not list"), "{error}");
        let _ = std::fs::remove_file(root.join("extra.bin"));
        ["slots", "a"].iter().for_each(|folder| drop(std::fs::remove_dir_all(root.join(folder))));
    }
    bundle.commit(&all(1.0), &entry()).unwrap();
    assert!(message(Bundle::open_received(root)).contains("does not list"));
    assert_eq!(opened(root).1, 1, "a bundle in use opens all the same");
}

#[test]
fn a_ledger_torn_within_a_character_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = write(dir.path(), true);
    let line = LedgerEntry { step: "schritt-für-schritt".into(), ..entry() };
    bundle.commit(&all(1.0), &line).unwrap();
    let path = dir.path().join("ledger.jsonl");
    let whole = std::fs::read(&path).unwrap();
    let within = whole.windows(2).position(|pair| pair == "ü".as_bytes()).unwrap() + 1;
    std::fs::write(&path, [&whole[..], &whole[..within]].concat()).unwrap();
    assert_eq!(bundle.ledger().unwrap().len(), 1);
    assert_eq!(bundle.commit(&all(2.0), &line).unwrap().sequence, 2);
    assert_eq!(bundle.ledger().unwrap().len(), 2);
}

#[test]
fn an_endless_manifest_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), true);
    std::fs::File::create(dir.path().join(MANIFEST)).unwrap().set_len(1 << 40).unwrap();
    assert!(message(Bundle::open(dir.path())).contains("4194304 bytes"));
}

#[test]
fn learned_weights_of_another_bundle_are_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(one.path(), true).commit(&all(1.0), &entry()).unwrap();
    write(two.path(), true);
    // The same shipped state but for one weight.
    let path = one.path().join("state.safetensors");
    let mut map = limbeck_tensor::io::read_safetensors(&path).unwrap();
    map.insert("ema/b".into(), Tensor::new([3], vec![1f32, 0.0, 0.0]).unwrap());
    limbeck_tensor::io::write_safetensors(&path, &map).unwrap();
    let mut manifest = limbeck_runtime::BundleManifest::read(one.path()).unwrap();
    manifest.state = limbeck_runtime::FileEntry::of(one.path(), "state.safetensors").unwrap();
    std::fs::write(one.path().join(MANIFEST), manifest.to_json()).unwrap();
    let (_, sequence, problems) = opened(one.path());
    assert!(sequence == 0 && problems.iter().any(|p| p.contains("another shipped state")), "{problems:?}");
}

#[test]
fn the_self_test_passes_and_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = write(dir.path(), true);
    for engine in engines() {
        let report = bundle.self_test(engine, &CompileOptions { threads: 1, ..Default::default() }).unwrap();
        assert_eq!((report.engine.as_str(), report.outputs.len(), report.outputs[0].rows), (engine.name(), 1, 11));
    }
    // Vectors that no engine gives stand for an engine that computes wrongly.
    let path = dir.path().join("self-test.safetensors");
    let mut map = limbeck_tensor::io::read_safetensors(&path).unwrap();
    let mut z = map["output/logits"].to_vec::<f32>().unwrap();
    z[4] += 1e-3;
    map.insert("output/logits".into(), Tensor::new([11, 3], z).unwrap());
    limbeck_tensor::io::write_safetensors(&path, &map).unwrap();
    let mut manifest = bundle.manifest().clone();
    manifest.self_test.vectors = limbeck_runtime::FileEntry::of(dir.path(), "self-test.safetensors").unwrap();
    std::fs::write(dir.path().join(MANIFEST), manifest.to_json()).unwrap();
    let bundle = Bundle::open(dir.path()).unwrap();
    for engine in engines() {
        let error = bundle.session(engine, &CompileOptions::default()).err().unwrap();
        let RuntimeError::SelfTest { tensor, difference, tolerance, .. } = &error else { panic!("{error}") };
        assert!(tensor == "logits" && *difference > 1e-5 && *tolerance == 1e-6, "{error}");
    }
}
