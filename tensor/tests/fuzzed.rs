//! What fuzzing found stays found: inputs that once broke a rule, replayed without the fuzzer.

mod any_bytes;
#[path = "../../fuzz/replay.rs"]
mod replay;

#[test]
fn files_of_tensors() {
    replay::replay("safetensors", any_bytes::tensors);
}
