//! Replacing a file so that power loss at any moment leaves the old or the new content, never a mix.

use crate::TensorError;
#[cfg(unix)]
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Replaces `path` with `content`: temporary file in the same folder, fsync, rename, fsync of the folder.
pub fn replace_file(path: &Path, content: &[u8]) -> Result<(), TensorError> {
    replace_file_with(path, |w| w.write_all(content))
}

/// As [`replace_file`], with the content streamed by `write`. When `write` fails nothing is left behind.
pub fn replace_file_with(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<(), TensorError> {
    let io = |source| TensorError::Io { path: path.to_owned(), source };
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut temporary = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        temporary.permissions(std::fs::Permissions::from_mode(0o644));
    }
    let temporary = temporary.prefix(".limbeck-").tempfile_in(folder).map_err(io)?;
    let mut writer = BufWriter::with_capacity(1 << 20, temporary);
    write(&mut writer).map_err(io)?;
    let temporary = writer.into_inner().map_err(|e| io(e.into_error()))?;
    temporary.as_file().sync_all().map_err(io)?;
    temporary.persist(path).map_err(|e| io(e.error))?;
    sync_folder(folder)
}

/// Makes what was created, renamed or removed in a folder survive power loss. Does nothing where folders cannot be
/// synchronised (Windows).
pub fn sync_folder(path: &Path) -> Result<(), TensorError> {
    #[cfg(unix)]
    File::open(path).and_then(|f| f.sync_all()).map_err(|source| TensorError::Io { path: path.to_owned(), source })?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// Creates a folder and those above it that are missing, so that they survive power loss.
pub fn create_folder(path: &Path) -> Result<(), TensorError> {
    let io = |source| TensorError::Io { path: path.to_owned(), source };
    let missing: Vec<&Path> = path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists()).collect();
    std::fs::create_dir_all(path).map_err(io)?;
    for folder in missing.into_iter().rev() {
        sync_folder(match folder.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_created_with_those_above() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c");
        create_folder(&path).unwrap();
        create_folder(&path).unwrap();
        assert!(path.is_dir());
        std::fs::write(dir.path().join("file"), b"").unwrap();
        assert!(create_folder(&dir.path().join("file/d")).is_err());
    }

    #[test]
    fn replaces_and_leaves_nothing_on_failure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        replace_file(&path, b"one").unwrap();
        replace_file(&path, b"two").unwrap();
        let failed = replace_file_with(&path, |w| {
            w.write_all(b"thr")?;
            Err(std::io::Error::other("power loss"))
        });
        assert!(failed.unwrap_err().to_string().contains("power loss"));
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
