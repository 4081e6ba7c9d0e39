//! What all figures share: the outer element, numbers and text in SVG, legends and markers.

use super::theme::SERIES;
use maud::{Markup, html};

/// Width of a figure that takes the whole column, in user units (about CSS pixels).
pub(super) const WIDTH: f64 = 720.0;

/// Where a figure's content starts below its title.
pub(super) const TOP: f64 = 40.0;

/// Average width of a character of the 12 px font; a little more than most fonts need.
const CHARACTER: f64 = 6.7;

/// A complete SVG document with a title line; the body is placed as it is. The page may enlarge it a little.
pub(super) fn document(title: &str, width: f64, height: f64, body: Markup) -> String {
    let title = clean(title);
    let room = ((width - 32.0) / (CHARACTER * 1.2)) as usize;
    html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (px(width)) " " (px(height)) } width=(px(width))
            height=(px(height)) style={ "max-width:min(100%," (px(width * 1.15)) "px)" } role="img" aria-label=(title) {
            text.heading x="16" y="25" { (shorten(&title, room)) }
            (body)
        }
    }
    .into_string()
}

/// A figure that says that there is nothing to draw.
pub(super) fn empty(title: &str) -> String {
    let body = html! { text.middle x=(px(WIDTH / 2.0)) y="68" { "no data" } };
    document(title, WIDTH, 96.0, body)
}

/// A coordinate with at most two decimals, the shortest way.
pub(super) fn px(value: f64) -> String {
    let rounded = (value * 100.0).round() / 100.0;
    format!("{}", if rounded == 0.0 { 0.0 } else { rounded })
}

/// Whether a value can be drawn: finite, and small enough that ranges and paddings stay finite.
pub(super) fn drawable(value: f64) -> bool {
    value.abs() < 1e100
}

/// Text without what XML forbids or what could reorder its neighbours: control characters and directional overrides
/// become U+FFFD. Escaping is left to the template.
pub(super) fn clean(text: &str) -> String {
    let harmless = |c: char| match c {
        '\n' | '\t' => ' ',
        '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FFFE}' | '\u{FFFF}' => '\u{FFFD}',
        c if c.is_control() => '\u{FFFD}',
        c => c,
    };
    text.chars().map(harmless).collect()
}

/// [`clean`] text of at most `most` characters, the last of them an ellipsis where something was cut.
pub(super) fn shorten(text: &str, most: usize) -> String {
    let text = clean(text);
    if text.chars().count() <= most {
        return text;
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// Estimated width of text in the figures' font.
pub(super) fn text_width(text: &str) -> f64 {
    text.chars().count() as f64 * CHARACTER
}

/// The class that gives the series its colour.
pub(super) fn series_class(index: usize) -> String {
    format!("s{}", index % SERIES)
}

/// The marker of a series, centred at a point: circle, square, triangle, diamond, then again. `hint` is shown by
/// browsers when the pointer rests on it.
pub(super) fn marker(index: usize, x: f64, y: f64, hint: &str) -> Markup {
    let path = match index % 4 {
        0 => None,
        1 => Some((3.6, "h7.2v7.2h-7.2z", 3.6)),
        2 => Some((0.0, "l4.6 8h-9.2z", 4.8)),
        _ => Some((0.0, "l4.8 4.8l-4.8 4.8l-4.8 -4.8z", 4.8)),
    };
    html! {
        @match path {
            None => circle.mark cx=(px(x)) cy=(px(y)) r="4" { @if !hint.is_empty() { title { (hint) } } },
            Some((left, rest, up)) => path.mark d={ "M" (px(x - left)) " " (px(y - up)) (rest) } {
                @if !hint.is_empty() { title { (hint) } }
            },
        }
    }
}

/// A legend of lines that wraps within the figure's width, and the height it takes.
pub(super) fn legend(items: &[(String, bool)], top: f64) -> (Markup, f64) {
    const SWATCH: f64 = 34.0;
    const ROW: f64 = 20.0;
    let (mut x, mut y) = (16.0, top + 8.0);
    let mut placed = Vec::with_capacity(items.len());
    for (index, (name, dashed)) in items.iter().enumerate() {
        let name = shorten(name, 60);
        let width = SWATCH + text_width(&name) + 18.0;
        if x > 16.0 && x + width > WIDTH {
            (x, y) = (16.0, y + ROW);
        }
        placed.push((index, name, *dashed, x, y));
        x += width;
    }
    let markup = html! {
        @for (index, name, dashed, x, y) in placed {
            g class=(series_class(index)) {
                path.line.dashed[dashed] d={ "M" (px(x)) " " (px(y)) "h26" } {}
                (marker(index, x + 13.0, y, ""))
                text.strong x=(px(x + SWATCH)) y=(px(y + 4.0)) { (name) }
            }
        }
    };
    (markup, y + ROW - top)
}
