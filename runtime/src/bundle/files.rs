//! Files in a bundle's folder, which may come from anywhere: nothing is followed out of the folder, nothing that is not a
//! plain file is opened, and no more of a file is read than there should be.

use super::{BundleManifest, MANIFEST};
use crate::RuntimeError;
use limbeck_tensor::TensorError;
use std::collections::BTreeSet;
use std::fs::{File, FileType};
use std::io::{ErrorKind, Read};
use std::path::Path;

pub(super) fn io(path: &Path) -> impl Fn(std::io::Error) -> RuntimeError + '_ {
    |source| TensorError::Io { path: path.to_owned(), source }.into()
}

fn tampered(path: &Path, reason: impl Into<String>) -> RuntimeError {
    RuntimeError::Tampered { file: path.to_owned(), reason: reason.into() }
}

/// Whether there is something at `path`; an error when it is a link or of another kind.
fn there(path: &Path, kind: &str, fits: fn(&FileType) -> bool) -> Result<bool, RuntimeError> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if fits(&found.file_type()) => Ok(true),
        Ok(found) if found.is_symlink() => Err(tampered(path, format!("is a link, where a {kind} belongs"))),
        Ok(_) => Err(tampered(path, format!("is no {kind}"))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io(path)(e)),
    }
}

/// Whether there is a file; a link, a folder, a pipe or a device in its place is an error.
pub(super) fn is_file(path: &Path) -> Result<bool, RuntimeError> {
    there(path, "plain file", FileType::is_file)
}

/// Whether there is a folder; anything else in its place is an error.
pub(super) fn is_folder(path: &Path) -> Result<bool, RuntimeError> {
    there(path, "folder", FileType::is_dir)
}

/// The content of a plain file of at most `most` bytes; `None` when there is no file.
pub(super) fn read_plain(path: &Path, most: u64) -> Result<Option<Vec<u8>>, RuntimeError> {
    if !is_file(path)? {
        return Ok(None);
    }
    let mut content = vec![];
    File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut content)).map_err(io(path))?;
    match content.len() as u64 > most {
        true => Err(tampered(path, format!("has more than the {most} bytes that it may have"))),
        false => Ok(Some(content)),
    }
}

/// Everything in the folder is named by the manifest.
pub(super) fn only_listed(root: &Path, manifest: &BundleManifest) -> Result<(), RuntimeError> {
    let listed: BTreeSet<_> = manifest.files().map(|entry| root.join(&entry.file)).collect();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for found in std::fs::read_dir(&folder).map_err(io(&folder))? {
            let path = found.map_err(io(&folder))?.path();
            let kind = std::fs::symlink_metadata(&path).map_err(io(&path))?.file_type();
            if kind.is_dir() && listed.iter().any(|file| file.starts_with(&path)) {
                folders.push(path);
            } else if !kind.is_file() || (path != root.join(MANIFEST) && !listed.contains(&path)) {
                return Err(tampered(&path, "came with the bundle, but its manifest does not list it"));
            }
        }
    }
    Ok(())
}
