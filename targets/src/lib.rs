//! Boards as data: what a device has, and whether a model fits it.
//!
//! A board is a TOML file of some twenty lines under `boards/`; [`boards`] lists those that ship,
//! [`find`] names one, [`Board::read`] takes a file of your own, and [`fits`] judges a model's
//! [`ModelCost`] against it. Nothing here measures: times are arithmetic lower bounds from the
//! data sheet's clock and lanes.
//!
//! ```
//! let board = limbeck_targets::find("raspberry-pi-4")?;
//! let cost = limbeck_targets::ModelCost {
//!     params: 20_000,
//!     weight_bytes: 80_000,
//!     peak_activation_bytes: 65_536,
//!     macs: 1_500_000,
//!     ops: vec!["Conv".into(), "Relu".into(), "Gemm".into()],
//!     float_nodes: 9,
//!     int_nodes: 0,
//!     dynamic: false,
//! };
//! let fit = limbeck_targets::fits(board, &cost);
//! assert!(fit.ok, "{:?}", fit.reasons);
//! # Ok::<(), limbeck_targets::TargetError>(())
//! ```
#![forbid(unsafe_code)]

mod board;
mod error;
mod fit;
mod tract_ops;

use std::sync::LazyLock;

pub use board::{Activations, Board, Cpu, Engine, EngineChoice, Feature, Gpu, Precision, PrecisionChoice, Provider};
pub use error::TargetError;
pub use fit::{Fit, ModelCost, fits};
pub use tract_ops::TRACT_OPS;

/// Every board that ships, smallest first. To add one, write its file and its row.
const FILES: &[(&str, &str)] = &[
    ("raspberry-pi-zero-2w", include_str!("../boards/raspberry-pi-zero-2w.toml")),
    ("raspberry-pi-2", include_str!("../boards/raspberry-pi-2.toml")),
    ("raspberry-pi-3", include_str!("../boards/raspberry-pi-3.toml")),
    ("raspberry-pi-4", include_str!("../boards/raspberry-pi-4.toml")),
    ("raspberry-pi-5", include_str!("../boards/raspberry-pi-5.toml")),
    ("jetson-orin-nano", include_str!("../boards/jetson-orin-nano.toml")),
    ("x86-server", include_str!("../boards/x86-server.toml")),
    ("x86-vnni-server", include_str!("../boards/x86-vnni-server.toml")),
    ("x86-cuda-server", include_str!("../boards/x86-cuda-server.toml")),
];

static BOARDS: LazyLock<Vec<Board>> = LazyLock::new(|| {
    let read = |(name, text): &(&str, &str)| Board::parse(&format!("{name}.toml"), text);
    FILES.iter().map(read).collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{error}"))
});

/// The boards that ship with Limbeck, smallest first.
///
/// The files are part of this crate and a test reads every one, so this cannot fail.
pub fn boards() -> &'static [Board] {
    &BOARDS
}

/// The shipped board of that name.
///
/// # Errors
/// [`TargetError::Unknown`] with the names that resemble it.
pub fn find(name: &str) -> Result<&'static Board, TargetError> {
    boards().iter().find(|board| board.name == name).ok_or_else(|| {
        let known: Vec<&'static str> = FILES.iter().map(|(name, _)| *name).collect();
        TargetError::Unknown { name: name.to_owned(), close: close_names(name, &known), known }
    })
}

/// At most three of `known` that contain `name` or differ from it in at most a third of its letters.
fn close_names(name: &str, known: &[&'static str]) -> Vec<&'static str> {
    let name = name.to_lowercase().replace(['_', ' '], "-");
    let mut close: Vec<(usize, &'static str)> = known
        .iter()
        .filter_map(|&other| {
            let distance = edit_distance(&name, other);
            let contained = name.len() >= 3 && other.contains(&name);
            (contained || distance * 3 <= name.chars().count()).then_some((distance, other))
        })
        .collect();
    close.sort();
    close.into_iter().take(3).map(|(_, other)| other).collect()
}

/// Levenshtein distance: the fewest letters inserted, deleted or replaced.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[row.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_board_reads_and_is_found_by_its_file_name() {
        for (name, _) in FILES {
            assert_eq!(find(name).map(|board| board.name.as_str()), Ok(*name));
        }
        let in_folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/boards")).unwrap().count();
        assert_eq!(in_folder, FILES.len(), "a file of boards/ has no row in FILES");
    }

    #[test]
    fn every_board_follows_the_exporters_rules() {
        for board in boards() {
            let name = &board.name;
            let x86 = board.arch() == "x86_64";
            // Quantised activations: u8 on x86 CPUs, s8 on ARM and TensorRT; reduced weights where maddubs saturates.
            let expected = if x86 && board.gpu.is_none() { Activations::U8 } else { Activations::S8 };
            assert_eq!(board.precision.activations, expected, "{name}");
            assert_eq!(board.precision.reduce_range, x86 && !board.cpu.features.contains(&Feature::Vnni), "{name}");
            assert!(board.budget_bytes * 8 >= board.memory_bytes, "{name}: the budget is below an eighth");
        }
    }

    #[test]
    fn unknown_names_come_with_close_ones() {
        let close = |name| match find(name) {
            Err(TargetError::Unknown { close, .. }) => close,
            other => panic!("{other:?}"),
        };
        assert_eq!(close("raspbery-pi-4")[0], "raspberry-pi-4");
        assert_eq!(close("jetson"), ["jetson-orin-nano"]);
        assert_eq!(close("Raspberry_Pi 5")[0], "raspberry-pi-5");
        assert!(close("toaster").is_empty());
        let message = find("x86-sever").unwrap_err().to_string();
        assert!(message.starts_with("unknown board \"x86-sever\", did you mean x86-server"), "{message}");
    }

    #[test]
    fn edit_distances_of_textbook_pairs() {
        for (a, b, distance) in [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2), ("same", "same", 0)] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
            assert_eq!(edit_distance(b, a), distance, "{b} {a}");
        }
    }
}
