//! `limbeck doctor`: what this machine offers.

use super::output;
use anyhow::Result;
use limbeck_runtime::{ENGINES, engine};
use serde_json::json;

pub(super) fn run(json: bool) -> Result<bool> {
    let engines: Vec<_> = ENGINES
        .iter()
        .map(|name| match engine(name) {
            Ok(e) => {
                let info = e.describe();
                json!({
                    "engine": name, "usable": true, "version": info.version,
                    "library": info.library.map_or("built in".into(), |l| l.display().to_string()),
                    "providers": info.providers,
                })
            }
            Err(e) => json!({"engine": name, "usable": false, "reason": e.to_string()}),
        })
        .collect();
    let usable = engines.iter().any(|e| e["usable"] == true);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    output::print(
        &json!({
            "limbeck": env!("CARGO_PKG_VERSION"),
            "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            "cores": cores,
            "memory_mib": memory_mib(),
            "engines": engines,
        }),
        json,
    );
    Ok(usable)
}

/// Memory of the machine, where the system tells.
fn memory_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib / 1024)
}
