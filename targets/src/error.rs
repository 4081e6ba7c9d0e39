//! What can be wrong with a board, or with the name of one.

/// An error about a board: which one, which key, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The text is not TOML, or a key is unknown, missing or of the wrong type.
    #[error("board file {file}: {message}")]
    Parse {
        /// The file's name or path.
        file: String,
        /// What the TOML reader says: the line, the key and what was expected.
        message: String,
    },
    /// A key holds a value that no board can have.
    #[error("board file {file}: {key}: {message}")]
    Value {
        /// The file's name or path.
        file: String,
        /// The key, with its table (`cpu.cores`).
        key: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
    /// The file cannot be read.
    #[error("board file {file} cannot be read: {message}")]
    Read {
        /// The file's path.
        file: String,
        /// The system's reason.
        message: String,
    },
    /// No board has this name.
    #[error("unknown board {name:?}{}; known: {}", suggestion(.close), .known.join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
        /// Known names that resemble it, the closest first.
        close: Vec<&'static str>,
        /// All known names.
        known: Vec<&'static str>,
    },
}

fn suggestion(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        names => format!(", did you mean {}?", names.join(" or ")),
    }
}
