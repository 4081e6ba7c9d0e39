//! Finds the ONNX Runtime library and checks its version before `ort` sees it, since `ort` panics or hangs on one that
//! is missing or too old.
//!
//! Order: `ORT_DYLIB_PATH` alone if it is set; the folder of the executable and `onnxruntime/` beside it; the
//! `onnxruntime` wheel in the active or a system Python; the system's library path. Loading a library runs code of it, so
//! no folder is searched that a stranger may write to while the executable's own is safe.

use super::ffi;
use crate::RuntimeError;
use std::{
    env,
    path::{Path, PathBuf},
};

/// Path and version of the first usable library.
pub(super) fn find() -> Result<(PathBuf, String), RuntimeError> {
    let mut tried = Vec::new();
    let candidates = match env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()) {
        Some(path) => {
            let path = PathBuf::from(path);
            if !path.is_file() {
                tried.push(format!("ORT_DYLIB_PATH names {}, which is not a file", path.display()));
                return Err(RuntimeError::Library { oldest: ort::MINOR_VERSION, tried });
            }
            vec![path]
        }
        None => candidates(),
    };
    for path in candidates {
        match ffi::library_version(&path) {
            Ok(version) if minor(&version).is_some_and(|m| m >= ort::MINOR_VERSION) => {
                tracing::debug!(library = %path.display(), version, "found ONNX Runtime");
                return Ok((path, version));
            }
            Ok(version) => tried.push(format!("{} has version {version}", path.display())),
            Err(reason) => tried.push(format!("{}: {reason}", path.display())),
        }
    }
    Err(RuntimeError::Library { oldest: ort::MINOR_VERSION, tried })
}

/// The minor version of `1.minor.patch`.
fn minor(version: &str) -> Option<u32> {
    let mut parts = version.split('.');
    (parts.next()? == "1").then(|| parts.next()?.parse().ok())?
}

fn candidates() -> Vec<PathBuf> {
    let mut folders = env::current_exe().ok().as_deref().map(beside).unwrap_or_default();
    let home = env::var_os("HOME").map(|h| Path::new(&h).join(".local"));
    let prefixes = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(PathBuf::from).chain(home);
    for prefix in prefixes.chain(["/usr/local", "/usr"].map(PathBuf::from)) {
        for packages in ["site-packages", "dist-packages"] {
            // Windows, Debian, and everything else.
            folders.push(prefix.join("Lib").join(packages).join("onnxruntime/capi"));
            for python in entries(&prefix.join("lib"), "python3") {
                folders.push(python.join(packages).join("onnxruntime/capi"));
            }
        }
    }
    let (prefix, suffix) = (env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    let stem = format!("{prefix}onnxruntime");
    let is_library = |path: &PathBuf| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let rest = name.strip_prefix(&stem).unwrap_or_default();
        // `.so`, `.so.1.32.0`, `.1.32.0.dylib`, `.dll`; not `libonnxruntime_providers_*`.
        path.is_file() && rest.starts_with('.') && rest.contains(suffix)
    };
    let mut found: Vec<PathBuf> = folders.iter().flat_map(|f| entries(f, &stem)).filter(is_library).collect();
    found.extend([format!("{stem}{suffix}"), format!("{stem}{suffix}.1")].map(PathBuf::from));
    found
}

/// The folder of the executable, and `onnxruntime/` in it.
fn beside(executable: &Path) -> Vec<PathBuf> {
    let own = executable.parent();
    own.map(|own| vec![own.to_owned(), own.join("onnxruntime")]).unwrap_or_default()
}

/// The entries of a folder whose names start with `prefix`, sorted; none when it cannot be read.
fn entries(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(list) = folder.read_dir() else { return vec![] };
    let mut found: Vec<PathBuf> =
        list.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(prefix)).map(|e| e.path()).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(minor("1.32.0"), Some(32));
        assert_eq!(minor("1.9.1-dev"), Some(9));
        assert_eq!(minor("2.1.0"), None);
        assert_eq!(minor(""), None);
    }

    #[test]
    fn folders_above_the_executables_own_are_not_searched() {
        let [bin, wheel] = ["/opt/app/bin", "/opt/app/bin/onnxruntime"].map(PathBuf::from);
        assert_eq!(beside(Path::new("/opt/app/bin/limbeck")), [bin, wheel]);
    }

    #[test]
    fn what_is_no_library_is_refused_with_a_reason() {
        let folder = std::env::temp_dir().join(format!("limbeck-probe-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("libonnxruntime.so");
        std::fs::write(&file, b"not a library").unwrap();
        let reason = ffi::library_version(&file).unwrap_err();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(!reason.is_empty());
    }
}
