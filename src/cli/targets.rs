//! `limbeck targets`: boards, and whether a model fits one.

use super::{output, tensors};
use anyhow::Result;
use limbeck_exporters::model_cost;
use limbeck_graph::Graph;
use limbeck_targets::{boards, find, fits};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// All boards.
    List,
    /// One board.
    Show {
        /// Its name.
        name: String,
    },
    /// Which boards a model fits, and how it would run there. Exit code 3 when it does not fit.
    Check {
        /// ONNX model.
        model: PathBuf,
        /// One board; all when not given.
        #[arg(long)]
        board: Option<String>,
        /// Values of named dims, NAME=N; repeatable.
        #[arg(long = "dim")]
        dims: Vec<String>,
    },
}

pub(super) fn run(command: &Command, json: bool) -> Result<bool> {
    match command {
        Command::List => {
            let rows: Vec<_> = boards().iter().map(|b| json!({"name": b.name, "title": b.title})).collect();
            output::print(&json!({"boards": rows}), json);
            Ok(true)
        }
        Command::Show { name } => {
            let board = find(name)?;
            output::print(&serde_json::to_value(board)?, json);
            Ok(true)
        }
        Command::Check { model, board, dims } => {
            let mut graph = Graph::read(model)?;
            graph.canonicalise()?;
            let dims = tensors::parse_dims(dims)?;
            graph.bind_dims(&dims.iter().map(|(n, v)| (n.as_str(), *v)).collect::<Vec<_>>())?;
            let cost = model_cost(&graph);
            let chosen: Vec<_> = match board {
                Some(name) => vec![find(name)?],
                None => boards().iter().collect(),
            };
            let mut all = true;
            let mut rows = vec![];
            for board in chosen {
                let fit = fits(board, &cost);
                all &= fit.ok;
                rows.push(json!({
                    "board": board.name, "fits": fit.ok,
                    "engine": fit.engine.map(|e| e.to_string()),
                    "precision": fit.precision.to_string(), "threads": fit.threads,
                    "needed_bytes": fit.needed_bytes,
                    "lower_bound_ms": fit.lower_bound_ms,
                    "reasons": fit.reasons, "warnings": fit.warnings,
                }));
            }
            output::print(&json!({"model": model.display().to_string(), "checks": rows}), json);
            Ok(all)
        }
    }
}
