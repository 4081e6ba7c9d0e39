//! External data: files of weights beside the model. They are mapped when read, found in parts of the model that are
//! carried without being decoded, and put in place when the model is written elsewhere.

use super::tensor::TensorProto;
use super::wire::{self, stream};
use crate::GraphError;
use bytes::Bytes;
use limbeck_tensor::TensorError;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// Deepest nesting of messages in a carried part.
const MAX_DEPTH: usize = 128;

/// The external files of a model being read.
pub(super) struct Files<'a> {
    folder: Option<&'a Path>,
    mapped: HashMap<String, Bytes>,
    /// Those that carried parts refer to.
    pub(super) carried: BTreeMap<String, Bytes>,
}

impl<'a> Files<'a> {
    /// No file yet; all must lie in `folder`.
    pub(super) fn new(folder: Option<&'a Path>) -> Files<'a> {
        Files { folder, mapped: HashMap::new(), carried: BTreeMap::new() }
    }

    /// The content of the file at this place in the folder.
    pub(super) fn map(&mut self, location: &str) -> Result<Bytes, String> {
        if let Some(file) = self.mapped.get(location) {
            return Ok(file.clone());
        }
        let folder = self.folder.ok_or_else(|| {
            format!("its data lies in the file '{location}', but the model was given as bytes without a folder")
        })?;
        let path = Path::new(location);
        let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
        if location.is_empty() || location.contains('\\') || !plain {
            return Err(format!("external data location '{location}' leaves the model's folder"));
        }
        let io = |e: std::io::Error| format!("external data '{location}': {e}");
        let path = folder.join(path).canonicalize().map_err(io)?;
        if !path.starts_with(folder.canonicalize().map_err(io)?) {
            return Err(format!("external data location '{location}' is a link out of the model's folder"));
        }
        if !path.metadata().map_err(io)?.is_file() {
            return Err(format!("external data '{location}' is not a file"));
        }
        let file = limbeck_tensor::map_file(&path).map_err(|e: TensorError| e.to_string())?;
        self.mapped.insert(location.to_owned(), file.clone());
        Ok(file)
    }

    /// Maps the files that a carried message refers to.
    pub(super) fn carry(&mut self, part: Part, encoded: &Bytes) -> Result<(), String> {
        let mut found = vec![];
        locations(part, encoded, 0, &mut found);
        for location in found {
            let file = self.map(&location)?;
            self.carried.insert(location, file);
        }
        Ok(())
    }
}

/// Messages that may hold tensors.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Function,
    Training,
    Attribute,
    Node,
    Graph,
    Sparse,
    Tensor,
}

/// Collects where the tensors inside a message keep their data, as far as the message can be read.
fn locations(part: Part, encoded: &Bytes, depth: usize, found: &mut Vec<String>) {
    if depth > MAX_DEPTH {
        return;
    }
    if let Part::Tensor = part {
        let external = TensorProto::decode(encoded).and_then(|t| t.external());
        found.extend(external.ok().flatten().map(|at| at.location));
        return;
    }
    for field in wire::fields(encoded).map_while(Result::ok) {
        let inner = match (part, field.number) {
            (Part::Function, 7) | (Part::Graph, 1) => Part::Node,
            (Part::Function, 11) => Part::Attribute,
            (Part::Training, 1 | 2) | (Part::Attribute, 6 | 11) => Part::Graph,
            (Part::Node, 5) => Part::Attribute,
            (Part::Attribute, 5 | 10) | (Part::Graph, 5) | (Part::Sparse, 1 | 2) => Part::Tensor,
            (Part::Attribute, 22 | 23) | (Part::Graph, 15) => Part::Sparse,
            _ => continue,
        };
        if let Ok(bytes) = field.bytes() {
            locations(inner, &bytes, depth + 1, found);
        }
    }
}

/// Puts external files in place beside `model`, those that are not there yet. All are checked before one is written.
pub(super) fn write_all(files: &BTreeMap<String, Bytes>, model: &Path) -> Result<(), GraphError> {
    let folder = model.parent().unwrap_or(Path::new(""));
    let mut missing = vec![];
    for (location, content) in files {
        let target = folder.join(location);
        if !is_in_place(&target, content, model)? {
            missing.push((target, content));
        }
    }
    missing.into_iter().try_for_each(|(target, content)| write(target, content))
}

/// True when the file is there already; an error when it cannot be written.
fn is_in_place(target: &Path, content: &Bytes, model: &Path) -> Result<bool, GraphError> {
    let refuse = |reason: &str| {
        let file = target.display().to_string();
        Err(GraphError::Format { file, reason: format!("{reason}; write the model into another folder") })
    };
    if target == model {
        return refuse("is both the model and its external data");
    }
    if !target.exists() {
        return Ok(false);
    }
    match same_content(target, content) {
        Ok(true) => Ok(true),
        Ok(false) => refuse("exists with other content than the model's external data"),
        Err(source) => Err(GraphError::Io { path: target.to_owned(), source }),
    }
}

fn write(target: PathBuf, content: &Bytes) -> Result<(), GraphError> {
    if let Some(folder) = target.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|source| GraphError::Io { path: folder.to_owned(), source })?;
    }
    limbeck_tensor::replace_file_with(&target, |w| stream(content, w))?;
    Ok(())
}

fn same_content(path: &Path, content: &[u8]) -> std::io::Result<bool> {
    let mut file = std::fs::File::open(path)?;
    if file.metadata()?.len() != content.len() as u64 {
        return Ok(false);
    }
    let mut buffer = vec![0u8; 1 << 16];
    for chunk in content.chunks(buffer.len()) {
        let part = &mut buffer[..chunk.len()];
        file.read_exact(part)?;
        if part != chunk {
            return Ok(false);
        }
    }
    Ok(true)
}
