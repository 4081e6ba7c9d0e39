//! A report of one run as a single HTML file: headline numbers, text, tables and figures, with the style and the
//! drawings inside the file. It needs no script and no network, follows the reader's light or dark theme, and prints.
//!
//! Figures are pure functions that return SVG text ([`line_chart`], [`bubble_chart`], [`bar_list`],
//! [`confusion_matrix`], [`image_grid`]); their colours come from the page's style sheet, so they belong in a
//! [`Report`]. All text is escaped, also where it comes from file names or class labels.
//!
//! ```
//! use limbeck::report::{Report, Section, Series, Table, format, line_chart};
//!
//! let table = Table::new(["net", "accuracy", "size"], "Accuracy on the test set.")
//!     .row(["teacher".into(), format::percent(0.9861), format::bytes(412_320)])
//!     .row(["student".into(), format::percent(0.9778), format::bytes(48_112)]);
//! println!("{}", table.to_text());
//! let loss = line_chart("Loss", "step", "nats", &[Series::new("student", vec![(0.0, 2.3), (100.0, 0.4)])]);
//! let page = Report::new("Digits", "seed 0")
//!     .headline("98.6 %", "teacher accuracy")
//!     .section(Section::new("Distillation").text("Two nets.").table(&table).figure("Training loss.", loss))
//!     .to_html();
//! assert!(page.contains("48.1 kB"));
//! ```

mod axis;
mod bars;
mod bubble;
pub mod format;
mod images;
mod line;
mod matrix;
mod page;
mod svg;
mod table;
mod theme;

pub use bars::{Bar, bar_list};
pub use bubble::{Bubble, bubble_chart};
pub use images::{Sample, image_grid};
pub use line::{Series, line_chart};
pub use matrix::confusion_matrix;
pub use table::Table;

/// A report under construction: a title, headline numbers and sections in reading order.
#[derive(Clone, Debug)]
pub struct Report {
    title: String,
    subtitle: String,
    headlines: Vec<(String, String)>,
    sections: Vec<Section>,
}

impl Report {
    /// An empty report; the subtitle (seed, engine, machine, date) may be empty.
    pub fn new(title: impl Into<String>, subtitle: impl Into<String>) -> Report {
        Report { title: title.into(), subtitle: subtitle.into(), headlines: Vec::new(), sections: Vec::new() }
    }

    /// Adds a number that the reader should see first, such as (`"98.1 %"`, `"student accuracy"`).
    pub fn headline(mut self, value: impl Into<String>, label: impl Into<String>) -> Report {
        self.headlines.push((value.into(), label.into()));
        self
    }

    /// Adds a section after those already there.
    pub fn section(mut self, section: Section) -> Report {
        self.sections.push(section);
        self
    }

    /// The whole page as HTML. The same report gives the same bytes.
    pub fn to_html(&self) -> String {
        page::render(self)
    }
}

/// A titled part of a report: text, tables and figures in the order they were added. Tables and figures are numbered
/// through the whole report.
#[derive(Clone, Debug)]
pub struct Section {
    title: String,
    blocks: Vec<Block>,
}

#[derive(Clone, Debug)]
enum Block {
    Text(String),
    Table(Table),
    Figure { caption: String, svgs: Vec<String> },
}

impl Section {
    /// An empty section.
    pub fn new(title: impl Into<String>) -> Section {
        Section { title: title.into(), blocks: Vec::new() }
    }

    /// Adds plain text; blank lines separate paragraphs.
    pub fn text(mut self, text: impl Into<String>) -> Section {
        self.blocks.push(Block::Text(text.into()));
        self
    }

    /// Adds a table under its caption.
    pub fn table(mut self, table: &Table) -> Section {
        self.blocks.push(Block::Table(table.clone()));
        self
    }

    /// Adds a figure above its caption. `svg` goes into the page as it is: pass what this module's figures return.
    pub fn figure(self, caption: impl Into<String>, svg: impl Into<String>) -> Section {
        self.figures(caption, [svg.into()])
    }

    /// Adds figures side by side (where the page is wide enough) under one caption; see [`Section::figure`].
    pub fn figures(mut self, caption: impl Into<String>, svgs: impl IntoIterator<Item = String>) -> Section {
        self.blocks.push(Block::Figure { caption: caption.into(), svgs: svgs.into_iter().collect() });
        self
    }
}

#[cfg(test)]
mod tests;
