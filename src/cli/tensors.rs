//! Tensors in and out of the command: safetensors for several, npy for one.

use anyhow::{Context, Result, anyhow, bail};
use limbeck_graph::{Graph, TensorType};
use limbeck_tensor::{Tensor, TensorMap, io};
use std::path::{Path, PathBuf};

/// Reads `--feeds FILE.safetensors` or `--feeds NAME=FILE.npy` (repeatable).
pub(super) fn read_feeds(feeds: &[String]) -> Result<TensorMap> {
    let mut all = TensorMap::new();
    for feed in feeds {
        if let Some((name, file)) = feed.split_once('=') {
            let tensor = io::read_npy(Path::new(file)).with_context(|| format!("reading the feed '{name}'"))?;
            all.insert(name.into(), tensor.aligned());
        } else {
            for (name, tensor) in io::read_safetensors(Path::new(feed))? {
                all.insert(name, tensor.aligned());
            }
        }
    }
    Ok(all)
}

/// Writes tensors as safetensors, or as npy when there is one and the file ends in `.npy`.
pub(super) fn write(path: &Path, tensors: &TensorMap) -> Result<()> {
    if path.extension().is_some_and(|e| e == "npy") {
        let mut values = tensors.values();
        let (Some(tensor), None) = (values.next(), values.next()) else {
            bail!("{}: npy holds one tensor, there are {}; write .safetensors", path.display(), tensors.len());
        };
        return Ok(io::write_npy(path, tensor)?);
    }
    Ok(io::write_safetensors(path, tensors)?)
}

/// Reads a model at the builder's opset, with its inputs shaped as the feeds are.
pub(super) fn read_shaped(model: &PathBuf, feeds: &TensorMap) -> Result<Graph> {
    let mut graph = Graph::read(model)?;
    graph.canonicalise()?;
    shape_inputs(&mut graph, feeds)?;
    graph.fold_shapes()?;
    Ok(graph)
}

/// Gives the inputs the shapes of the feeds and infers all other types.
pub(super) fn shape_inputs(graph: &mut Graph, feeds: &TensorMap) -> Result<()> {
    set_inputs(graph, feeds)?;
    graph.infer_types()?;
    Ok(())
}

/// Gives the inputs the shapes of the feeds. Missing and unknown feeds, wrong dtypes, ranks and extents, and numbers that
/// are not finite are errors by name.
pub(super) fn set_inputs(graph: &mut Graph, feeds: &TensorMap) -> Result<()> {
    let needed: Vec<_> = graph.inputs.iter().copied().filter(|&i| graph.initializer(i).is_none()).collect();
    for name in feeds.keys() {
        if !needed.iter().any(|&i| graph.name_of(i) == name) {
            let names: Vec<&str> = needed.iter().map(|&i| graph.name_of(i)).collect();
            bail!("the model has no input '{name}'; its inputs are {names:?}");
        }
    }
    for id in needed {
        let name = graph.name_of(id).to_owned();
        let declared = graph.ty(id).cloned();
        let shown = declared.as_ref().map_or("an untyped value".into(), ToString::to_string);
        let Some(tensor) = feeds.get(&name) else { bail!("input '{name}' is missing; it takes {shown}") };
        if let Some(ty) = declared {
            let fits = ty.dtype == tensor.dtype()
                && ty.dims.as_ref().is_none_or(|d| {
                    d.len() == tensor.shape().len()
                        && d.iter().zip(tensor.shape()).all(|(d, n)| d.known().is_none_or(|k| k == *n))
                });
            if !fits {
                bail!("input '{name}' takes {shown}, but {}{:?} was given", tensor.dtype(), tensor.shape());
            }
        }
        if !tensor.all_finite() {
            bail!("input '{name}' holds NaN or infinity");
        }
        graph.set_ty(id, Some(TensorType::of(tensor)));
    }
    Ok(())
}

/// Drops what is declared of values that nodes produce; of outputs their shapes alone.
pub(super) fn forget_inner_types(graph: &mut Graph) {
    for id in graph.value_ids() {
        if graph.producer(id).is_none() {
            continue;
        }
        let output = graph.ty(id).filter(|_| graph.outputs.contains(&id));
        let ty = output.map(|t| TensorType { dims: None, ..t.clone() });
        graph.set_ty(id, ty);
    }
}

/// Feeds as an engine takes them.
pub(super) fn as_feeds(feeds: &TensorMap) -> Vec<(&str, &Tensor)> {
    feeds.iter().map(|(n, t)| (n.as_str(), t)).collect()
}

/// Reads `--dim NAME=N` (repeatable).
pub(super) fn parse_dims(dims: &[String]) -> Result<Vec<(String, usize)>> {
    dims.iter()
        .map(|d| {
            let (name, value) = d.split_once('=').ok_or_else(|| anyhow!("--dim {d}: write NAME=NUMBER"))?;
            Ok((name.to_owned(), value.parse().map_err(|_| anyhow!("--dim {d}: '{value}' is not a number"))?))
        })
        .collect()
}
