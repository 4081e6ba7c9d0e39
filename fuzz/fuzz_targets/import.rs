//! An imported model from any bytes: dims bound, inputs fixed, shapes folded, branches resolved, constants folded.
#![no_main]

#[path = "../../graph/tests/any_bytes/mod.rs"]
mod any_bytes;

libfuzzer_sys::fuzz_target!(|data: &[u8]| any_bytes::import(data));
