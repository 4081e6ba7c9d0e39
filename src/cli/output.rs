//! Printing facts: as aligned text or as JSON.

use serde_json::Value;
use std::fmt::Display;
use std::io::{ErrorKind, Write};

/// Prints a line. A reader that has seen enough (`| head`) ends the command.
pub(crate) fn say(line: impl Display) {
    match writeln!(std::io::stdout(), "{line}") {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => {
            eprintln!("error: standard output cannot be written: {e}");
            std::process::exit(1);
        }
    }
}

/// Prints an object: JSON when asked, else one `key: value` a line, lists indented.
pub(super) fn print(value: &Value, json: bool) {
    if json {
        say(format_args!("{value:#}"));
        return;
    }
    print_text(value, 0);
}

fn print_text(value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::Object(_) | Value::Array(_) if !is_empty(value) && !is_flat(value) => {
                        say(format_args!("{indent}{key}:"));
                        print_text(value, depth + 1);
                    }
                    _ => say(format_args!("{indent}{key}: {}", inline(value))),
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                match item {
                    Value::Object(map) => {
                        let line: Vec<String> = map.iter().map(|(k, v)| format!("{k} {}", inline(v))).collect();
                        say(format_args!("{indent}{}", line.join(", ")));
                    }
                    _ => say(format_args!("{indent}{}", inline(item))),
                }
            }
        }
        _ => say(format_args!("{indent}{}", inline(value))),
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
}

fn is_flat(value: &Value) -> bool {
    value.as_array().is_some_and(|a| a.len() <= 6 && a.iter().all(|v| !v.is_object() && !v.is_array()))
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Array(items) if items.is_empty() => "none".into(),
        Value::Array(items) => items.iter().map(inline).collect::<Vec<_>>().join(", "),
        Value::Object(map) if map.is_empty() => "none".into(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}
