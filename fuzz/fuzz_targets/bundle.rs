//! A bundle from any bytes: opened, asked everything, committed to.
#![no_main]

#[path = "../../runtime/tests/any_bytes/mod.rs"]
mod any_bytes;

libfuzzer_sys::fuzz_target!(|data: &[u8]| any_bytes::bundle(data));
