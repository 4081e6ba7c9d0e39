//! Confusion matrices.

use super::svg::{TOP, clean, document, empty, px, shorten, text_width};
use super::theme::TINT;
use maud::html;

/// A confusion matrix: `counts[truth][prediction]`, one label per class. Correct cells are tinted by their share of
/// the row, wrong ones, in another colour, by their share of the most frequent mistake, so that few mistakes can be
/// seen. Missing rows or cells count as zero, and what is beyond the labels is not drawn.
pub fn confusion_matrix(title: &str, labels: &[String], counts: &[Vec<u64>]) -> String {
    let classes = labels.len();
    if classes == 0 {
        return empty(title);
    }
    let at = |truth: usize, guess: usize| counts.get(truth).and_then(|row| row.get(guess)).copied().unwrap_or(0);
    let every = || (0..classes).flat_map(|truth| (0..classes).map(move |guess| (truth, guess)));
    let worst = every().filter(|(t, g)| t != g).map(|(t, g)| at(t, g)).max().unwrap_or(0).max(1) as f64;
    let most = every().map(|(t, g)| at(t, g)).max().unwrap_or(0);
    let names: Vec<String> = labels.iter().map(|label| shorten(label, 14)).collect();
    let widest = names.iter().map(|name| text_width(name)).fold(0.0, f64::max);
    let cell = (text_width(&most.to_string()) + 10.0).max(34.0);
    let tilted = widest > cell - 4.0;
    let left = 48.0 + widest;
    let top = TOP + if tilted { 34.0 + widest * 0.75 } else { 42.0 };
    let side = cell * classes as f64;
    let overhang = if tilted { widest * 0.75 } else { 0.0 };
    let width = (left + side + overhang + 16.0).max(text_width(title) * 1.25 + 32.0);
    let place = |index: usize, start: f64| start + index as f64 * cell;
    let body = html! {
        text.middle x=(px(left + side / 2.0)) y=(px(TOP + 14.0)) { "predicted" }
        text.middle transform={ "translate(26 " (px(top + side / 2.0)) ") rotate(-90)" } { "true" }
        @for (index, name) in names.iter().enumerate() {
            @let middle = place(index, cell / 2.0);
            @if tilted {
                text.strong transform={ "translate(" (px(left + middle)) " " (px(top - 8.0)) ") rotate(-45)" } { (name) }
            } @else {
                text.strong.middle x=(px(left + middle)) y=(px(top - 8.0)) { (name) }
            }
            text.strong.end x=(px(left - 8.0)) y=(px(top + middle + 4.0)) { (name) }
        }
        @for (truth, guess) in every() {
            @let count = at(truth, guess);
            @let (x, y) = (place(guess, left), place(truth, top));
            @let row = (0..classes).map(|g| at(truth, g) as f64).sum::<f64>().max(1.0);
            @let (class, tint) = match truth == guess {
                true => ("hit", TINT.0 * count as f64 / row),
                false => ("miss", TINT.1 * count as f64 / worst),
            };
            rect.cell x=(px(x + 1.0)) y=(px(y + 1.0)) width=(px(cell - 2.0)) height=(px(cell - 2.0)) rx="3" {}
            @if count > 0 {
                rect class=(class) fill-opacity=(px(tint)) x=(px(x + 1.0)) y=(px(y + 1.0)) width=(px(cell - 2.0))
                    height=(px(cell - 2.0)) rx="3" {
                    title { (clean(&labels[truth])) " taken for " (clean(&labels[guess])) ": " (count) }
                }
                text.strong.middle pointer-events="none" x=(px(x + cell / 2.0)) y=(px(y + cell / 2.0 + 4.0)) { (count) }
            }
        }
    };
    document(title, width, top + side + 16.0, body)
}
