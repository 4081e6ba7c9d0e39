//! Dtypes, shapes and tensors (owned, shared, mapped), npy and safetensors files, atomic file
//! replacement. Everything else in Limbeck exchanges data as [`Tensor`].
#![deny(unsafe_code)]

mod atomic;
mod dtype;
mod error;
pub mod io;
mod map;
mod narrow;
mod npy;
mod tensor;

pub use atomic::{create_folder, replace_file, replace_file_with, sync_folder};
pub use bytes::Bytes;
pub use dtype::{DType, Element};
pub use error::TensorError;
pub use io::TensorMap;
pub use map::{map_file, release_pages};
pub use tensor::Tensor;

/// Number of elements of a shape, or `None` when its extents other than 0 multiply to more than `isize::MAX`.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    // Extents beside a 0 count too: views and rows multiply them.
    let most = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))?;
    isize::try_from(most).ok()?;
    Some(if shape.contains(&0) { 0 } else { most })
}
