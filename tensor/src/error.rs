//! What can go wrong with tensors and the files that hold them.

use crate::DType;
use std::path::PathBuf;

/// Error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// Data and shape disagree.
    #[error("shape {shape:?} of {dtype} needs {needed} bytes, but {got} were given")]
    Length {
        /// Shape asked for.
        shape: Vec<usize>,
        /// Element type.
        dtype: DType,
        /// Bytes that the shape needs.
        needed: usize,
        /// Bytes that were given.
        got: usize,
    },
    /// The shape's size does not fit the address space.
    #[error("shape {shape:?} of {dtype} is too large to address")]
    TooLarge {
        /// Shape asked for.
        shape: Vec<usize>,
        /// Element type.
        dtype: DType,
    },
    /// A byte of a bool tensor that stands for no truth value.
    #[error("element {index} of a bool tensor is {value}; only 0 and 1 are truth values")]
    NotBool {
        /// Place of the first such element, row-major.
        index: usize,
        /// The byte.
        value: u8,
    },
    /// Asked to read a tensor as another type than it has.
    #[error("tensor holds {have}, but {want} was asked for")]
    DType {
        /// Type of the tensor.
        have: DType,
        /// Type asked for.
        want: DType,
    },
    /// A conversion between types that has no meaning or is not supported.
    #[error("cannot convert {from} to {to}")]
    Convert {
        /// Type of the tensor.
        from: DType,
        /// Type asked for.
        to: DType,
    },
    /// Mapped bytes do not start on a multiple of the element's size.
    #[error("mapped {dtype} data is not aligned for direct access; copy it first")]
    Misaligned {
        /// Element type.
        dtype: DType,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's content is not what its format demands.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}
