//! Single tensors as npy files. Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use crate::{Bytes, DType, Tensor, TensorError, element_count, map_file, replace_file_with};
use std::path::Path;

/// numpy's name of a type, little-endian or of one byte.
const TYPES: [(&str, DType); 12] = [
    ("<f4", DType::F32),
    ("<f8", DType::F64),
    ("<f2", DType::F16),
    ("|i1", DType::I8),
    ("<i2", DType::I16),
    ("<i4", DType::I32),
    ("<i8", DType::I64),
    ("|u1", DType::U8),
    ("<u2", DType::U16),
    ("<u4", DType::U32),
    ("<u8", DType::U64),
    ("|b1", DType::Bool),
];

/// Reads an npy file (f16, f32, f64, i8..i64, u8..u64, bool; little-endian). Data in C order stays mapped.
///
/// # Errors
/// A file that is no such npy file; data of another length than its header says. Nothing is allocated before both are
/// known to agree.
pub fn read_npy(path: &Path) -> Result<Tensor, TensorError> {
    let bytes = map_file(path)?;
    parse(&bytes).map_err(|reason| TensorError::Format { path: path.to_owned(), reason })
}

fn parse(bytes: &Bytes) -> Result<Tensor, String> {
    let (text, start) = header(bytes).ok_or("not an npy file, or cut off in its header")?;
    let entry = |key: &str| value(text, key).ok_or_else(|| format!("the npy header has no '{key}'"));
    let quoted = entry("descr")?;
    let descr = quoted.strip_prefix(['\'', '"']).and_then(|rest| rest.split(['\'', '"']).next());
    let dtype = TYPES.iter().find(|(name, _)| Some(*name) == descr).map(|(_, dtype)| *dtype).ok_or_else(|| {
        let known = TYPES.map(|(name, _)| name).join(", ");
        format!("holds the type {}, which is not read; save it as one of {known}", descr.unwrap_or("of several fields"))
    })?;
    let columns_first = entry("fortran_order")?.starts_with("True");
    let shape = extents(entry("shape")?).ok_or("the npy header's shape is not a tuple of extents")?;
    let needed = element_count(&shape).and_then(|n| dtype.byte_len(n));
    let data = bytes.slice(start..);
    if needed != Some(data.len()) {
        let needed = needed.map_or("more bytes than there can be".into(), |n| format!("{n} bytes"));
        return Err(format!("{dtype} {shape:?} needs {needed}, but {} follow the header", data.len()));
    }
    let data = if columns_first && shape.len() > 1 { rows_first(dtype, &shape, &data) } else { data };
    Ok(Tensor::from_bytes(dtype, shape, data).map_err(|e| e.to_string())?.aligned())
}

/// The header's text and where the data begins.
fn header(bytes: &[u8]) -> Option<(&str, usize)> {
    let rest = bytes.strip_prefix(b"\x93NUMPY")?;
    let (length, start): (usize, usize) = match rest.first()? {
        1 => (usize::from(u16::from_le_bytes(rest.get(2..4)?.try_into().ok()?)), 10),
        2 | 3 => (usize::try_from(u32::from_le_bytes(rest.get(2..6)?.try_into().ok()?)).ok()?, 12),
        _ => return None,
    };
    let end = start.checked_add(length)?;
    Some((std::str::from_utf8(bytes.get(start..end)?).ok()?, end))
}

/// What follows a key of the header's dictionary.
fn value<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let quoted = [format!("'{key}'"), format!("\"{key}\"")];
    let rest = quoted.iter().find_map(|key| header.split_once(key.as_str())).map(|(_, rest)| rest)?;
    Some(rest.trim_start().strip_prefix(':')?.trim_start())
}

fn extents(text: &str) -> Option<Vec<usize>> {
    let inside = text.strip_prefix('(')?.split_once(')')?.0;
    let listed = inside.split(',').map(str::trim).filter(|extent| !extent.is_empty());
    listed.map(|extent| extent.parse().ok()).collect()
}

/// Elements that were stored with the first axis running fastest, with the last running fastest.
fn rows_first(dtype: DType, shape: &[usize], data: &[u8]) -> Bytes {
    let width = dtype.bits() / 8;
    let mut out = Vec::with_capacity(data.len());
    let mut index = vec![0; shape.len()];
    for _ in 0..data.len() / width {
        let at = index.iter().zip(shape).rev().fold(0, |at, (i, extent)| at * extent + i) * width;
        out.extend_from_slice(&data[at..at + width]);
        for (i, extent) in index.iter_mut().zip(shape).rev() {
            *i = (*i + 1) % extent;
            if *i > 0 {
                break;
            }
        }
    }
    out.into()
}

/// Writes one tensor as npy (f32, f64, i8..i64, u8..u64, bool), replacing the file atomically.
///
/// # Errors
/// A type that npy lacks; a file that cannot be written.
pub fn write_npy(path: &Path, tensor: &Tensor) -> Result<(), TensorError> {
    use ndarray_npy::WriteNpyExt;
    let tensor = tensor.aligned();
    macro_rules! write {
        ($t:ty) => {{
            let view = tensor.view::<$t>()?;
            replace_file_with(path, |w| view.write_npy(w).map_err(std::io::Error::other))
        }};
    }
    match tensor.dtype() {
        DType::F32 => write!(f32),
        DType::F64 => write!(f64),
        DType::I8 => write!(i8),
        DType::I16 => write!(i16),
        DType::I32 => write!(i32),
        DType::I64 => write!(i64),
        DType::U8 => write!(u8),
        DType::U16 => write!(u16),
        DType::U32 => write!(u32),
        DType::U64 => write!(u64),
        DType::Bool => {
            let bools = tensor.view::<u8>()?.mapv(|x| x != 0);
            replace_file_with(path, |w| bools.write_npy(w).map_err(std::io::Error::other))
        }
        other => Err(TensorError::Format { path: path.to_owned(), reason: format!("npy has no {other}") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of this header and data.
    fn file(version: u8, header: &str, data: &[u8]) -> Bytes {
        let mut bytes = b"\x93NUMPY".to_vec();
        bytes.extend([version, 0]);
        match version {
            1 => bytes.extend((header.len() as u16).to_le_bytes()),
            _ => bytes.extend((header.len() as u32).to_le_bytes()),
        }
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes.into()
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.npy");
        for t in [
            Tensor::new([2, 1], vec![1i64, -2]).unwrap(),
            Tensor::bools([3], &[true, false, true]).unwrap(),
            Tensor::scalar(0.5f32),
            Tensor::new([0, 4], Vec::<u16>::new()).unwrap(),
        ] {
            write_npy(&path, &t).unwrap();
            assert_eq!(read_npy(&path).unwrap(), t);
        }
        std::fs::write(&path, b"not npy").unwrap();
        assert!(read_npy(&path).unwrap_err().to_string().contains("t.npy"));
    }

    #[test]
    fn numpys_own_files_are_read() {
        // What numpy 2 writes for arange(6, dtype=int16).reshape(2, 3), in C order and in Fortran's.
        let text = |order: &str| format!("{{'descr': '<i2', 'fortran_order': {order}, 'shape': (2, 3), }}\n");
        let bytes = |v: [i16; 6]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        for version in [1, 2, 3] {
            let rows = parse(&file(version, &text("False"), &bytes([0, 1, 2, 3, 4, 5]))).unwrap();
            let columns = parse(&file(version, &text("True"), &bytes([0, 3, 1, 4, 2, 5]))).unwrap();
            assert_eq!(rows.to_vec::<i16>().unwrap(), [0, 1, 2, 3, 4, 5]);
            assert_eq!((rows.shape(), columns), (&[2, 3][..], rows.clone()));
        }
    }

    #[test]
    fn hostile_headers_are_refused_before_anything_is_allocated() {
        let header =
            |descr: &str, shape: &str| format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}");
        for (descr, shape, says) in [
            ("'<f4'", "(1099511627776,)", "4398046511104 bytes, but 4 follow"),
            ("'<f4'", "(18446744073709551615, 16)", "more bytes than there can be"),
            ("'<f4'", "(2,)", "float32 [2] needs 8 bytes, but 4 follow"),
            ("'<f4'", "(-1,)", "tuple of extents"),
            ("'>f4'", "(1,)", "the type >f4"),
            ("'<c8'", "(1,)", "the type <c8"),
            ("[('a', '<f4')]", "(1,)", "several fields"),
        ] {
            let error = parse(&file(1, &header(descr, shape), &[0; 4])).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        let whole = file(2, &header("'<f4'", "(1,)"), &[0; 4]);
        assert!((0..whole.len()).all(|n| parse(&whole.slice(..n)).is_err()));
        let mut long = whole.to_vec();
        long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(parse(&long.into()).is_err());
        assert!(parse(&file(1, &header("'|b1'", "(4,)"), &[0, 1, 2, 1])).unwrap_err().contains("bool"));
    }
}
