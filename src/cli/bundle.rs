//! `limbeck bundle`: what a bundle holds, and whether an engine reproduces its self-test.

use super::output;
use anyhow::Result;
use limbeck_runtime::{Bundle, CompileOptions, engine};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// What a bundle holds. Opening checks every size and hash.
    Info {
        /// Folder of the bundle.
        bundle: PathBuf,
    },
    /// Runs the self-test vectors on an engine.
    SelfTest {
        /// Folder of the bundle.
        bundle: PathBuf,
        /// tract or ort.
        #[arg(long, default_value = "tract")]
        engine: String,
    },
}

pub(super) fn run(command: &Command, json: bool) -> Result<bool> {
    match command {
        Command::Info { bundle } => {
            let bundle = Bundle::open(bundle)?;
            let m = bundle.manifest();
            let steps: Vec<_> = m
                .steps
                .iter()
                .map(|s| json!({"form": s.form.to_string(), "predicted_bytes": s.predicted_bytes}))
                .collect();
            let files: Vec<_> =
                m.files().map(|f| json!({"file": f.file, "bytes": f.bytes, "sha256": f.sha256})).collect();
            output::print(
                &json!({
                    "name": m.name, "licence": m.licence, "provenance": m.provenance,
                    "preprocessing": m.preprocessing, "classes": m.classes,
                    "steps": steps, "files": files, "commits": bundle.ledger()?.len(),
                }),
                json,
            );
        }
        Command::SelfTest { bundle, engine: name } => {
            let bundle = Bundle::open(bundle)?;
            let report = bundle.self_test(engine(name)?, &CompileOptions::default())?;
            let outputs: Vec<_> = report
                .outputs
                .iter()
                .map(
                    |o| json!({"output": o.name, "rows": o.rows, "difference": o.difference, "tolerance": o.tolerance}),
                )
                .collect();
            output::print(&json!({"engine": report.engine, "provider": report.provider, "outputs": outputs}), json);
        }
    }
    Ok(true)
}
