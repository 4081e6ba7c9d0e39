//! `limbeck import`: a model that someone else exported, made static and brought to one opset.

use super::{output, tensors};
use anyhow::{Context, Result, bail};
use limbeck_graph::{Graph, ImportOptions};
use limbeck_tensor::{DType, Tensor, io};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// ONNX model.
    model: PathBuf,
    /// Where to write the result.
    #[arg(long)]
    out: PathBuf,
    /// Values of named dims, NAME=N; repeatable.
    #[arg(long = "dim")]
    dims: Vec<String>,
    /// Shapes of inputs, NAME=1,3,224,224; repeatable.
    #[arg(long = "shape")]
    shapes: Vec<String>,
    /// Inputs that always get one value, NAME=NUMBER or NAME=FILE.npy; repeatable.
    #[arg(long)]
    fix: Vec<String>,
    /// Replace loops (Scan, Loop) of at most this many steps by their steps: faster to train where they are few, and the only
    /// form in which tract runs a Loop. Loops that stay can be trained, too.
    #[arg(long, default_value_t = 0)]
    unroll: usize,
    /// Replace an If whose condition stays open by both its branches and a selection of their results, so that it can be
    /// trained.
    #[arg(long)]
    both_branches: bool,
}

pub(super) fn run(args: &Args, json: bool) -> Result<bool> {
    let mut graph = Graph::read(&args.model)?;
    let before = graph.node_count();
    let dims = tensors::parse_dims(&args.dims)?;
    let (unroll, both_branches) = (args.unroll, args.both_branches);
    let mut options = ImportOptions { dims, unroll, both_branches, ..ImportOptions::default() };
    for shape in &args.shapes {
        let (name, extents) =
            shape.split_once('=').with_context(|| format!("--shape {shape}: write NAME=1,3,224,224"))?;
        let extents = extents.split(',').map(|n| n.trim().parse()).collect::<Result<Vec<usize>, _>>();
        options.shapes.insert(name.to_owned(), extents.with_context(|| format!("--shape {shape}: not extents"))?);
    }
    for fix in &args.fix {
        let (name, value) = fix.split_once('=').with_context(|| format!("--fix {fix}: write NAME=VALUE"))?;
        options.fixed.insert(name.to_owned(), fixed(&graph, name, value)?);
    }
    let report = graph.import(&options)?;
    graph.write(&args.out)?;
    let open: Vec<String> = graph
        .nodes()
        .filter(|(_, n)| n.subgraphs().next().is_some())
        .map(|(id, n)| format!("{} ({})", graph.label(id), n.full_op()))
        .collect();
    output::print(
        &json!({
            "written": args.out.display().to_string(), "nodes_before": before, "nodes_after": graph.node_count(),
            "inputs_fixed": report.fixed, "functions_inlined": report.functions, "nodes_folded": report.folded,
            "branches_resolved": report.branches, "branches_selected": report.selected, "sequences_resolved": report.sequences, "loops_unrolled": report.loops, "nodes_removed": report.removed, "nodes_reworded": report.reworded, "nodes_with_subgraphs_left": open,
        }),
        json,
    );
    Ok(true)
}

/// A number of the input's dtype and rank, or the tensor of a file.
fn fixed(graph: &Graph, name: &str, value: &str) -> Result<Tensor> {
    if value.ends_with(".npy") {
        return Ok(io::read_npy(Path::new(value)).with_context(|| format!("--fix {name}"))?.aligned());
    }
    let number: f64 =
        value.parse().with_context(|| format!("--fix {name}={value}: neither a number nor a .npy file"))?;
    let ty = graph.find(name).and_then(|id| graph.ty(id));
    let dtype = ty.map_or(DType::F32, |t| t.dtype);
    let rank = ty.and_then(|t| t.dims.as_ref()).map_or(0, Vec::len);
    let tensor = Tensor::from_f64(dtype, vec![1; rank], &[number])?;
    if tensor.to_f64_vec()? != [number] {
        bail!("--fix {name}={value}: the input holds {dtype}, which has no such number");
    }
    Ok(tensor)
}
