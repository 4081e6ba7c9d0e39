//! Horizontal bars: bytes by stage, time by operator.

use super::svg::{TOP, WIDTH, clean, document, drawable, empty, px, shorten, text_width};
use maud::html;

const ROW: f64 = 28.0;

/// One bar of a list.
#[derive(Clone, Debug)]
pub struct Bar {
    /// The name before the bar.
    pub name: String,
    /// The length; below zero the bar goes to the left. One that is not finite has no bar.
    pub value: f64,
    /// The value as the reader sees it, such as `48.1 kB`.
    pub label: String,
}

impl Bar {
    /// A bar and its label.
    pub fn new(name: impl Into<String>, value: f64, label: impl Into<String>) -> Bar {
        Bar { name: name.into(), value, label: label.into() }
    }
}

/// Bars on a common scale that contains zero, in the order given.
pub fn bar_list(title: &str, bars: &[Bar]) -> String {
    if bars.is_empty() {
        return empty(title);
    }
    let names: Vec<String> = bars.iter().map(|bar| shorten(&bar.name, 32)).collect();
    let labels: Vec<String> = bars.iter().map(|bar| shorten(&bar.label, 24)).collect();
    let widest = |texts: &[String]| texts.iter().map(|text| text_width(text)).fold(0.0, f64::max);
    let (left, right) = (28.0 + widest(&names), WIDTH - 28.0 - widest(&labels));
    let values: Vec<f64> = bars.iter().map(|bar| if drawable(bar.value) { bar.value } else { 0.0 }).collect();
    let low = values.iter().copied().fold(0.0, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    let scale = if high > low { (right - left) / (high - low) } else { 0.0 };
    let zero = left - low * scale;
    let body = html! {
        @for (index, value) in values.iter().enumerate() {
            @let top = TOP + 6.0 + index as f64 * ROW;
            @let tip = zero + value * scale;
            text.strong.end x=(px(left - 12.0)) y=(px(top + 14.0)) { (names[index]) }
            rect.bar.s0 x=(px(zero.min(tip))) y=(px(top)) width=(px((tip - zero).abs())) height="20" rx="2" {
                title { (clean(&bars[index].name)) ": " (clean(&bars[index].label)) }
            }
            text.strong x=(px(zero.max(tip) + 8.0)) y=(px(top + 14.0)) { (labels[index]) }
        }
        line.base x1=(px(zero)) x2=(px(zero)) y1=(px(TOP)) y2=(px(TOP + 4.0 + bars.len() as f64 * ROW)) {}
    };
    document(title, WIDTH, TOP + 20.0 + bars.len() as f64 * ROW, body)
}
