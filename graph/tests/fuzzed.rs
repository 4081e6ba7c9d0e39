//! What fuzzing found stays found: inputs that once broke a rule, replayed without the fuzzer.

mod any_bytes;
#[path = "../../fuzz/replay.rs"]
mod replay;

#[test]
fn models() {
    replay::replay("onnx", any_bytes::codec);
}

#[test]
fn imports() {
    replay::replay("import", any_bytes::import);
}
