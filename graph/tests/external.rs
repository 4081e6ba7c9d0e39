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

/// A protobuf field that holds fewer than 16 KiB.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length = [(content.len() & 127) as u8 | 128, (content.len() >> 7) as u8];
    [&[number << 3 | 2][..], &length, content].concat()
}

/// A model with one weight of two floats (or of these dims), which lies at this place.
fn outside(dims: &[u8], entries: &[(&str, &str)]) -> Bytes {
    let entry =
        |(key, value): &(&str, &str)| field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat());
    let data: Vec<u8> = entries.iter().flat_map(entry).collect();
    let tensor = [dims, &[0x10, 1], &field(8, b"w"), &data, &[0x70, 1]].concat();
    field(7, &field(5, &tensor)).into()
}

#[test]
fn places_that_are_no_plain_files_inside_the_folder_are_refused() {
    let out = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(out.path().join("model/sub")).unwrap();
    std::fs::write(out.path().join("secret"), [0; 8]).unwrap();
    std::fs::write(out.path().join("model/data"), [0; 8]).unwrap();
    let model = out.path().join("model");
    let error = |location: &str| {
        let bytes = outside(&[0x08, 2], &[("location", location)]);
        Graph::from_bytes(bytes, Some(&model)).map_err(|e| e.to_string())
    };
    assert!(error("data").is_ok() && error("sub/").is_err());
    let secret = out.path().join("secret");
    for location in
        ["../secret", "sub/../../secret", "..\\secret", "sub\\..\\..\\secret", "", ".", "sub", "data/x", "\0", "C:\\x"]
    {
        let error = error(location).unwrap_err();
        assert!(error.contains("'w'"), "{location}: {error}");
    }
    for location in [secret.to_str().unwrap(), "/dev/zero", "//dev/zero", "/proc/self/mem"] {
        assert!(error(location).unwrap_err().contains("leaves the model's folder"), "{location}");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink("/dev/zero", model.join("zeros")).unwrap();
        symlink(out.path(), model.join("up")).unwrap();
        symlink("loop", model.join("loop")).unwrap();
        symlink("data", model.join("alias")).unwrap();
        for location in ["zeros", "up/secret", "loop"] {
            assert!(error(location).unwrap_err().contains(location), "{location}");
        }
        assert!(error("alias").is_ok(), "a link inside the folder");
        assert!(std::process::Command::new("mkfifo").arg(model.join("pipe")).status().unwrap().success());
        assert!(error("pipe").unwrap_err().contains("is not a file"));
    }
}

#[test]
fn places_beyond_the_file_and_sizes_beyond_memory_are_refused() {
    let out = tempfile::tempdir().unwrap();
    std::fs::write(out.path().join("data"), [0; 8]).unwrap();
    let error = |dims: &[u8], more: &[(&str, &str)]| {
        let entries = [&[("location", "data")], more].concat();
        Graph::from_bytes(outside(dims, &entries), Some(out.path())).unwrap_err().to_string()
    };
    let two: &[u8] = &[0x08, 2];
    for (more, says) in [
        (&[("offset", "1")][..], "lies outside"),
        (&[("offset", "18446744073709551615")], "lies outside"),
        (&[("offset", "18446744073709551608"), ("length", "8")], "lies outside"),
        (&[("length", "18446744073709551615")], "lies outside"),
        (&[("length", "4")], "8 bytes"),
        (&[("offset", "-1")], "not a size"),
        (&[("length", "1e3")], "not a size"),
    ] {
        let error = error(two, more);
        assert!(error.contains("'w'") && error.contains(says), "{more:?}: {error}");
    }
    // Extents of 2^62 and 8: more elements than can be counted; of -1: none.
    let huge: Vec<u8> = [&[0x08][..], &[0x80; 8], &[0x40, 0x08, 8]].concat();
    assert!(error(&huge, &[]).contains("too large"));
    assert!(error(&[&[0x08][..], &[0xff; 9], &[1]].concat(), &[]).contains("not a size"));
}
