//! Reads a model, verifies it and writes it again, and says what that took: how the codec's claim that weights
//! are streamed is measured. With `--touch` every node is written anew instead of verbatim.
//!
//! Usage: `cargo run --release -p limbeck-graph --example roundtrip -- IN.onnx OUT.onnx [--touch]`

use limbeck_graph::Graph;
use std::time::Instant;

/// `VmHWM` and friends of this process, in MB, where the system tells.
fn memory(key: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    let kilobytes = line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
    kilobytes.map_or("?".into(), |kb| format!("{:.1} MB", kb / 1024.0))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [from, to, flags @ ..] = &args[..] else {
        return Err("usage: roundtrip IN.onnx OUT.onnx [--touch]".into());
    };
    let report = |step: &str, since: Instant| {
        let (peak, own, file) = (memory("VmHWM"), memory("RssAnon"), memory("RssFile"));
        println!("{step:<8} {:>8.1} ms   peak {peak}, own {own}, mapped {file}", since.elapsed().as_secs_f64() * 1e3);
    };
    report("start", Instant::now());
    let since = Instant::now();
    let mut graph = Graph::read(from)?;
    report("read", since);
    let since = Instant::now();
    graph.verify()?;
    report("verify", since);
    if flags.iter().any(|f| f == "--touch") {
        for id in graph.node_ids() {
            graph.node_mut(id);
        }
    }
    let since = Instant::now();
    graph.write(to)?;
    report("write", since);
    Ok(())
}
