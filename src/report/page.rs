//! The HTML of a report.

use super::svg::clean;
use super::table::{Table, cell};
use super::{Block, Report, Section, theme};
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// What the page may load: its own style and its own images, nothing from anywhere.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// The next numbers of tables and figures, which run through the whole report.
struct Numbers {
    table: usize,
    figure: usize,
}

pub(super) fn render(report: &Report) -> String {
    let mut numbers = Numbers { table: 1, figure: 1 };
    let title = clean(&report.title);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="color-scheme" content="light dark";
                meta name="generator" content={ "limbeck " (env!("CARGO_PKG_VERSION")) };
                title { (title) }
                style { (PreEscaped(theme::style_sheet())) }
            }
            body {
                main {
                    header {
                        h1 { (title) }
                        @if !report.subtitle.is_empty() { p.subtitle { (clean(&report.subtitle)) } }
                        @if !report.headlines.is_empty() { (headlines(&report.headlines)) }
                    }
                    @if report.sections.len() > 1 { (contents(&report.sections)) }
                    @for (index, part) in report.sections.iter().enumerate() {
                        (section(index + 1, part, &mut numbers))
                    }
                    footer { "Written by limbeck " (env!("CARGO_PKG_VERSION")) "." }
                }
            }
        }
    }
    .into_string()
}

fn headlines(headlines: &[(String, String)]) -> Markup {
    html! {
        dl.headlines {
            @for (value, label) in headlines {
                div { dt { (clean(label)) } dd { (clean(value)) } }
            }
        }
    }
}

fn contents(sections: &[Section]) -> Markup {
    html! {
        nav aria-labelledby="contents" {
            h2 id="contents" { "Contents" }
            ol {
                @for (index, section) in sections.iter().enumerate() {
                    li { a href={ "#section-" (index + 1) } { (clean(&section.title)) } }
                }
            }
        }
    }
}

fn section(number: usize, section: &Section, numbers: &mut Numbers) -> Markup {
    html! {
        section id={ "section-" (number) } {
            h2 { span.number { (number) } (clean(&section.title)) }
            @for block in &section.blocks {
                @match block {
                    Block::Text(text) => (paragraphs(text)),
                    Block::Table(one) => (table(one, numbers)),
                    Block::Figure { caption, svgs } => (figure(caption, svgs, numbers)),
                }
            }
        }
    }
}

fn paragraphs(text: &str) -> Markup {
    html! {
        @for paragraph in text.replace("\r\n", "\n").split("\n\n").filter(|p| !p.trim().is_empty()) {
            p { (clean(paragraph.trim())) }
        }
    }
}

fn table(table: &Table, numbers: &mut Numbers) -> Markup {
    let number = numbers.table;
    numbers.table += 1;
    let columns = table.columns();
    let is_number: Vec<bool> = (0..columns).map(|column| table.is_number(column)).collect();
    html! {
        div.scroll {
            table {
                caption { b { "Table " (number) "." } " " (clean(&table.caption)) }
                thead {
                    tr {
                        @for (column, &right) in is_number.iter().enumerate() {
                            th.number[right] scope="col" { (clean(cell(&table.headers, column))) }
                        }
                    }
                }
                tbody {
                    @for row in &table.rows {
                        tr {
                            @for (column, &right) in is_number.iter().enumerate() {
                                @let text = clean(cell(row, column));
                                @if column == 0 && !right {
                                    th scope="row" { (text) }
                                } @else {
                                    td.number[right] { (text) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn figure(caption: &str, svgs: &[String], numbers: &mut Numbers) -> Markup {
    let number = numbers.figure;
    numbers.figure += 1;
    html! {
        figure {
            div.drawings { @for svg in svgs { (PreEscaped(svg)) } }
            figcaption { b { "Figure " (number) "." } " " (clean(caption)) }
        }
    }
}
