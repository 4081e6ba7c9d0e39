//! The one place that maps files into memory.
#![allow(unsafe_code)]

use crate::TensorError;
use bytes::Bytes;
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

/// Mappings in use, so that their pages can be given back.
static MAPPINGS: Mutex<Vec<Weak<Mmap>>> = Mutex::new(Vec::new());

struct Mapping(Arc<Mmap>);

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Maps a whole file read-only; an empty file gives no bytes. The mapping lives as long as any slice
/// of the returned bytes.
pub fn map_file(path: &Path) -> Result<Bytes, TensorError> {
    let io = |source| TensorError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    if file.metadata().map_err(io)?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is private and read-only. Limbeck replaces files by rename and never
    // truncates or rewrites one in place, so its own files stay valid under a mapping; that
    // other programs do not truncate a model while it is in use is the documented contract of opening
    // it (the same contract every mapping reader has).
    let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(io)?);
    if let Ok(mut mappings) = MAPPINGS.lock() {
        mappings.retain(|m| m.strong_count() > 0);
        mappings.push(Arc::downgrade(&map));
    }
    Ok(Bytes::from_owner(Mapping(map)))
}

/// Tells the system that `bytes`, when they are part of a mapped file, will not be needed soon: their pages stop
/// counting as this process's memory and are read from the file again when touched. Other memory is left alone.
pub fn release_pages(bytes: &[u8]) {
    let live: Vec<Arc<Mmap>> =
        MAPPINGS.lock().map(|m| m.iter().filter_map(Weak::upgrade).collect()).unwrap_or_default();
    for map in live {
        let range = map.as_ptr_range();
        let part = bytes.as_ptr_range();
        if !bytes.is_empty() && range.start <= part.start && part.end <= range.end {
            #[cfg(unix)]
            {
                let offset = part.start as usize - range.start as usize;
                // SAFETY: the mapping is read-only and backed by the file, so dropped pages come back unchanged.
                // Failing costs memory only.
                let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, bytes.len()) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_keep_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let mapped = map_file(&path).unwrap();
        assert_eq!(mapped, content);
        release_pages(&mapped[5000..90_000]);
        assert_eq!(mapped, content);
        let owned = content.clone();
        release_pages(&owned);
        assert_eq!(owned, content);
    }
}
