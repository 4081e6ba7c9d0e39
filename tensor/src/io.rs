//! Tensors in files: named sets as safetensors (mapped when read), single ones as npy.

use crate::{DType, Tensor, TensorError, map_file, replace_file_with};
use safetensors::{Dtype as StDtype, SafeTensors, View};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

pub use crate::npy::{read_npy, write_npy};

/// Named tensors, in name order.
pub type TensorMap = BTreeMap<String, Tensor>;

const SAFETENSORS: [(DType, StDtype); 13] = [
    (DType::F32, StDtype::F32),
    (DType::F64, StDtype::F64),
    (DType::F16, StDtype::F16),
    (DType::BF16, StDtype::BF16),
    (DType::I8, StDtype::I8),
    (DType::I16, StDtype::I16),
    (DType::I32, StDtype::I32),
    (DType::I64, StDtype::I64),
    (DType::U8, StDtype::U8),
    (DType::U16, StDtype::U16),
    (DType::U32, StDtype::U32),
    (DType::U64, StDtype::U64),
    (DType::Bool, StDtype::BOOL),
];

fn format(path: &Path, reason: impl ToString) -> TensorError {
    TensorError::Format { path: path.to_owned(), reason: reason.to_string() }
}

/// Reads all tensors of a safetensors file without copying: they stay mapped.
pub fn read_safetensors(path: &Path) -> Result<TensorMap, TensorError> {
    let bytes = map_file(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| format(path, format!("not a safetensors file: {e}")))?;
    let mut out = TensorMap::new();
    for (name, view) in file.tensors() {
        let dtype = SAFETENSORS
            .iter()
            .find(|(_, s)| *s == view.dtype())
            .ok_or_else(|| format(path, format!("tensor '{name}' has the unsupported dtype {:?}", view.dtype())))?
            .0;
        let tensor = Tensor::from_bytes(dtype, view.shape(), bytes.slice_ref(view.data()))
            .map_err(|e| format(path, format!("tensor '{name}': {e}")))?;
        out.insert(name.to_owned(), tensor);
    }
    Ok(out)
}

struct StView<'a>(&'a Tensor, StDtype);

impl View for StView<'_> {
    fn dtype(&self) -> StDtype {
        self.1
    }
    fn shape(&self) -> &[usize] {
        self.0.shape()
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.0.bytes().to_vec())
    }
    fn data_len(&self) -> usize {
        self.0.byte_len()
    }
}

/// Writes named tensors as a safetensors file, replacing it atomically.
pub fn write_safetensors(path: &Path, tensors: &TensorMap) -> Result<(), TensorError> {
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let dtype = SAFETENSORS
            .iter()
            .find(|(d, _)| *d == tensor.dtype())
            .ok_or_else(|| format(path, format!("tensor '{name}': safetensors has no {}", tensor.dtype())))?
            .1;
        views.push((name, StView(tensor, dtype)));
    }
    let bytes = safetensors::serialize(views, None::<HashMap<String, String>>).map_err(|e| format(path, e))?;
    replace_file_with(path, |w| w.write_all(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safetensors_round_trip_stays_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let mut map = TensorMap::new();
        map.insert("a".into(), Tensor::new([2, 2], vec![1f32, 2.0, 3.0, 4.0]).unwrap());
        map.insert("b".into(), Tensor::bools([2], &[true, false]).unwrap());
        write_safetensors(&path, &map).unwrap();
        assert_eq!(read_safetensors(&path).unwrap(), map);
        std::fs::write(&path, b"\xff\xff\xff\xff\xff\xff\xff\xff{}").unwrap();
        assert!(read_safetensors(&path).unwrap_err().to_string().contains("t.safetensors"));
    }
}
