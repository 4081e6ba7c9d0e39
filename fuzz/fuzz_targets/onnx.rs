//! A model from any bytes: read, verified, written untouched and anew, read again, canonicalised, typed.
#![no_main]

#[path = "../../graph/tests/any_bytes/mod.rs"]
mod any_bytes;

libfuzzer_sys::fuzz_target!(|data: &[u8]| any_bytes::codec(data));
