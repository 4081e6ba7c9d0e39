//! What fuzzing found stays found: inputs that once broke a rule, replayed without the fuzzer.

mod any_bytes;

#[test]
fn files_of_tensors() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/regressions/safetensors");
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    for file in files {
        let data = std::fs::read(&file).unwrap();
        let caught = std::panic::catch_unwind(|| any_bytes::tensors(&data));
        assert!(caught.is_ok(), "{}", file.display());
    }
}
