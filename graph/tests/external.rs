//! Weights in files of their own, beside the model: read from its folder alone, embedded in bytes, written along.

use bytes::Bytes;
use limbeck_graph::Graph;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models")
}

fn path(name: &str) -> PathBuf {
    folder().join(format!("{name}.onnx"))
}

#[test]
fn external_data_is_embedded_in_bytes_and_kept_in_its_folder() {
    let source = folder();
    let raw = Bytes::from(std::fs::read(path("external")).unwrap());
    let without = Graph::from_bytes(raw.clone(), None).unwrap_err().to_string();
    assert!(without.contains("'w'") && without.contains("data/external.bin"), "{without}");
    let g = Graph::from_bytes(raw, Some(&source)).unwrap();
    let embedded = Graph::from_bytes(g.to_bytes().unwrap(), None).unwrap();
    let w = |g: &Graph| g.initializer(g.find("w").unwrap()).unwrap().clone();
    assert_eq!(w(&g), w(&embedded));
    // Other content under the same name is never overwritten.
    let out = tempfile::tempdir().unwrap();
    std::fs::create_dir(out.path().join("data")).unwrap();
    std::fs::write(out.path().join("data/external.bin"), b"precious").unwrap();
    let refused = g.write(out.path().join("m.onnx")).unwrap_err().to_string();
    assert!(refused.contains("external.bin"), "{refused}");
    assert!(!out.path().join("m.onnx").exists());
    assert_eq!(std::fs::read(out.path().join("data/external.bin")).unwrap(), b"precious");
}

#[test]
fn external_data_of_carried_parts_goes_along() {
    let source = folder();
    let raw = Bytes::from(std::fs::read(path("carried")).unwrap());
    assert!(Graph::from_bytes(raw, None).unwrap_err().to_string().contains("data/external.bin"));
    let g = Graph::read(path("carried")).unwrap();
    let refused = g.to_bytes().unwrap_err().to_string();
    assert!(refused.contains("data/external.bin"), "{refused}");
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("m.onnx");
    g.write(&target).unwrap();
    assert_eq!(std::fs::read(path("carried")).unwrap(), std::fs::read(&target).unwrap());
    for file in ["data/external.bin", "data/more.bin"] {
        assert_eq!(std::fs::read(source.join(file)).unwrap(), std::fs::read(out.path().join(file)).unwrap());
    }
    // Where one file cannot be put, none is.
    let out = tempfile::tempdir().unwrap();
    std::fs::create_dir(out.path().join("data")).unwrap();
    std::fs::write(out.path().join("data/more.bin"), b"precious").unwrap();
    assert!(g.write(out.path().join("m.onnx")).unwrap_err().to_string().contains("more.bin"));
    assert!(!out.path().join("data/external.bin").exists() && !out.path().join("m.onnx").exists());
}

/// `external.onnx` with its location replaced by another of the same length.
fn relocated(location: &str) -> Bytes {
    let mut raw = std::fs::read(path("external")).unwrap();
    let old = b"data/external.bin";
    assert_eq!(location.len(), old.len());
    while let Some(at) = raw.windows(old.len()).position(|w| w == old) {
        raw[at..at + old.len()].copy_from_slice(location.as_bytes());
    }
    Bytes::from(raw)
}

#[test]
fn external_data_cannot_leave_the_folder() {
    let out = tempfile::tempdir().unwrap();
    let inside = out.path().join("model");
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(out.path().join("secret.bin"), vec![0u8; 4096]).unwrap();
    std::fs::write(inside.join("short.binxxxxxxxx"), vec![0u8; 100]).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(out.path().join("secret.bin"), inside.join("link.binxxxxxxxxx")).unwrap();
    for (location, why) in [
        (".././/.secret.bin", "leaves"),
        ("..///./secret.bin", "leaves"),
        ("/etc/../etc/hosts", "leaves"),
        ("missing.binxxxxxx", "missing.bin"),
        ("short.binxxxxxxxx", "lies outside"),
        #[cfg(unix)]
        ("link.binxxxxxxxxx", "link out of"),
    ] {
        let error = Graph::from_bytes(relocated(location), Some(&inside)).unwrap_err().to_string();
        assert!(error.contains(why), "{location}: {error}");
    }
}
