//! What holds for any bytes that someone gives as a file of tensors. Shared by the fuzz target and by the test that
//! replays what it found.

use limbeck_tensor::io::{read_npy, read_safetensors, write_npy, write_safetensors};
use limbeck_tensor::{DType, Tensor};
use std::path::Path;

/// A first byte chooses the format, the rest is the file: reading is an error, or gives tensors that come back equal.
pub(crate) fn tensors(data: &[u8]) {
    let Some((&format, content)) = data.split_first() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (given, written) = (folder.path().join("given"), folder.path().join("written"));
    std::fs::write(&given, content).unwrap();
    if format % 2 == 0 {
        safetensors(&given, &written);
    } else {
        npy(&given, &written);
    }
}

fn safetensors(given: &Path, written: &Path) {
    let Ok(map) = read_safetensors(given) else { return };
    map.values().for_each(look);
    write_safetensors(written, &map).expect("what was read can be written");
    assert_eq!(read_safetensors(written).expect("what was written can be read"), map);
}

fn npy(given: &Path, written: &Path) {
    let Ok(tensor) = read_npy(given) else { return };
    look(&tensor);
    if tensor.dtype() == DType::F16 {
        return; // Is read alone.
    }
    write_npy(written, &tensor).expect("what was read can be written");
    assert_eq!(read_npy(written).expect("what was written can be read"), tensor);
}

/// Everything that a tensor of real numbers can be asked.
fn look(tensor: &Tensor) {
    assert_eq!(tensor.to_f64_vec().unwrap().len(), tensor.len());
    let _ = tensor.to_i64_vec();
    let _ = tensor.all_finite();
    if let Some(&rows) = tensor.shape().first() {
        let _ = tensor.rows(0..rows);
        let _ = tensor.rows(rows..rows + 1);
    }
    assert_eq!(tensor.reshape([tensor.len()]).unwrap().reshape(tensor.shape()).unwrap(), *tensor);
}
