//! Files of tensors from any bytes, safetensors and npy.
#![no_main]

#[path = "../../tensor/tests/any_bytes/mod.rs"]
mod any_bytes;

libfuzzer_sys::fuzz_target!(|data: &[u8]| any_bytes::tensors(data));
