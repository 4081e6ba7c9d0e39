//! Tables, for the page and for the terminal.

use super::svg::clean;
use comfy_table::{CellAlignment, LineStyle, TableStyle};

/// A rule above and below the table and one below its header, nothing between columns.
const RULES: TableStyle = TableStyle::new().top_border(RULE).header_separator(RULE).bottom_border(RULE);
const RULE: LineStyle = LineStyle::none().fill('─').junction('─');

/// A table of text cells. Columns of numbers are found by their content and set to the right.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// One header per column.
    pub headers: Vec<String>,
    /// The rows; short ones are filled with empty cells, and the widest row decides the number of columns.
    pub rows: Vec<Vec<String>>,
    /// What the table shows, in a sentence.
    pub caption: String,
}

impl Table {
    /// A table without rows.
    pub fn new<T: Into<String>>(headers: impl IntoIterator<Item = T>, caption: impl Into<String>) -> Table {
        Table { headers: headers.into_iter().map(Into::into).collect(), rows: Vec::new(), caption: caption.into() }
    }

    /// The table with one more row.
    pub fn row<T: Into<String>>(mut self, cells: impl IntoIterator<Item = T>) -> Table {
        self.push(cells);
        self
    }

    /// Adds a row, where rows come from a loop.
    pub fn push<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The table as lines for a terminal, without the caption. Control characters are shown as U+FFFD.
    pub fn to_text(&self) -> String {
        let columns = self.columns();
        let line = |cells: &[String]| (0..columns).map(|i| clean(cell(cells, i))).collect::<Vec<_>>();
        let mut table = comfy_table::Table::new();
        table.load_style(RULES).set_header(line(&self.headers));
        for row in &self.rows {
            table.add_row(line(row));
        }
        for index in 0..columns {
            if let Some(column) = table.column_mut(index).filter(|_| self.is_number(index)) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.to_string()
    }

    /// The number of columns.
    pub(super) fn columns(&self) -> usize {
        self.rows.iter().map(Vec::len).chain([self.headers.len()]).max().unwrap_or(0)
    }

    /// Whether every cell of a column that says something is a number, alone or with a unit.
    pub(super) fn is_number(&self, column: usize) -> bool {
        let cells =
            || self.rows.iter().map(|row| cell(row, column).trim()).filter(|c| !matches!(*c, "" | "-" | "–" | "—"));
        cells().next().is_some() && cells().all(looks_numeric)
    }
}

/// The cell at an index, or an empty one.
pub(super) fn cell(cells: &[String], index: usize) -> &str {
    cells.get(index).map_or("", String::as_str)
}

/// `98.1 %`, `−1.2 pt`, `0.52 ± 0.03`, `12,345`, `3.4x`, `12/15`: a number, then nothing, a unit after a space, or a sign.
/// Not `3x3 conv` or `8x8`.
fn looks_numeric(text: &str) -> bool {
    let unsigned = text.trim_start_matches(['+', '-', '−', '±', '<', '>', '~', '≤', '≥', '≈', ' ']);
    let rest = unsigned.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | ','));
    let starts = unsigned.starts_with(|c: char| c.is_ascii_digit());
    starts && (rest.is_empty() || rest == "x" || rest.starts_with([' ', '%', '±', '×', '/', 'e', '\u{a0}']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_from_names() {
        for text in ["98.1 %", "−1.2 pt", "0.52 ± 0.03", "12,345", "3.4x", "12/15", "<0.1", "1e-5", "7"] {
            assert!(looks_numeric(text), "{text}");
        }
        for text in ["3x3 conv", "int8", "student", "8x8", "-", "±"] {
            assert!(!looks_numeric(text), "{text}");
        }
    }

    #[test]
    fn terminal_table_aligns_and_fills() {
        let table =
            Table::new(["net", "size"], "").row(["teacher", "412.3 kB"]).row(["s", "9 B"]).row(["\u{1b}[31mred"]);
        let text = table.to_text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().any(|line| line.trim_end().ends_with("     9 B")), "right-aligned:\n{text}");
        assert!(lines.iter().any(|line| line.contains("\u{FFFD}[31mred")), "no escape sequences:\n{text}");
        assert_eq!(Table::default().columns(), 0);
        Table::default().to_text();
    }
}
