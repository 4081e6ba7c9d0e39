//! The size / latency / accuracy chart: one bubble a net.

use super::axis::{self, Axis};
use super::format;
use super::svg::{TOP, WIDTH, clean, document, drawable, empty, px, series_class, shorten, text_width};
use maud::html;

/// Radius of the largest bubble.
const LARGEST: f64 = 30.0;

/// One net of a bubble chart.
#[derive(Clone, Debug)]
pub struct Bubble {
    /// The name beside the bubble.
    pub name: String,
    /// Place on the logarithmic axis, such as latency in ms or parameters. Must be above zero to be drawn.
    pub x: f64,
    /// Place on the linear axis, such as accuracy in percent.
    pub y: f64,
    /// Size of the file in bytes; the bubble's area is proportional to it.
    pub bytes: u64,
}

/// A chart of bubbles whose area is proportional to the bytes, over a logarithmic x axis, each labelled with its name
/// and size. Bubbles that cannot be drawn (not finite, x not above zero) are left out.
pub fn bubble_chart(title: &str, x_label: &str, y_label: &str, bubbles: &[Bubble]) -> String {
    let mut drawn: Vec<(usize, &Bubble)> =
        bubbles.iter().enumerate().filter(|(_, b)| b.x > 0.0 && drawable(b.x) && drawable(b.y)).collect();
    drawn.sort_by_key(|(_, bubble)| std::cmp::Reverse(bubble.bytes));
    let (top, bottom) = (TOP + 36.0, TOP + 330.0);
    let x = Axis::log(drawn.iter().map(|(_, b)| b.x), 64.0, WIDTH - 24.0);
    let low = drawn.iter().map(|(_, b)| b.y).fold(f64::INFINITY, f64::min);
    let high = drawn.iter().map(|(_, b)| b.y).fold(f64::NEG_INFINITY, f64::max);
    let heights = drawn.iter().map(|(_, b)| b.y).chain((high > low).then_some(low - 0.1 * (high - low)));
    let y = Axis::linear(heights, bottom - 36.0, top, true);
    let (Some(x), Some(y)) = (x, y) else {
        return empty(title);
    };
    let most = drawn.first().map_or(1, |(_, b)| b.bytes).max(1) as f64;
    let circles: Vec<Circle> = drawn
        .iter()
        .map(|(_, b)| Circle { x: x.at(b.x), y: y.at(b.y), r: (LARGEST * (b.bytes as f64 / most).sqrt()).max(3.5) })
        .collect();
    let mut labels: Vec<Label> = Vec::with_capacity(circles.len());
    for ((_, bubble), circle) in drawn.iter().zip(&circles) {
        let text = format!("{} · {}", shorten(&bubble.name, 40), format::bytes(bubble.bytes));
        let label = place(text, circle, &circles, &labels);
        labels.push(label);
    }
    let hint =
        |b: &Bubble| format!("{}: {} at {}, {}", clean(&b.name), y.label(b.y), x.label(b.x), format::bytes(b.bytes));
    let body = html! {
        (axis::draw(&x, &y, x_label, y_label))
        text.end x=(px(WIDTH - 24.0)) y="25" { "area: bytes" }
        @for ((index, bubble), circle) in drawn.iter().zip(&circles) {
            circle.bubble.(series_class(*index)) cx=(px(circle.x)) cy=(px(circle.y)) r=(px(circle.r)) {
                title { (hint(bubble)) }
            }
        }
        @for label in &labels {
            text.strong.halo x=(px(label.left)) y=(px(label.baseline)) { (label.text) }
        }
    };
    document(title, WIDTH, bottom + 18.0, body)
}

struct Circle {
    x: f64,
    y: f64,
    r: f64,
}

struct Label {
    text: String,
    left: f64,
    baseline: f64,
    width: f64,
}

impl Label {
    fn meets(&self, other: &Label) -> bool {
        self.left < other.left + other.width
            && other.left < self.left + self.width
            && (self.baseline - other.baseline).abs() < 14.0
    }

    fn covers(&self, circle: &Circle) -> bool {
        let nearest = circle.x.clamp(self.left, self.left + self.width);
        let height = circle.y.clamp(self.baseline - 10.0, self.baseline + 3.0);
        (nearest - circle.x).hypot(height - circle.y) < circle.r
    }

    fn inside(&self) -> bool {
        self.left >= 68.0 && self.left + self.width <= WIDTH - 8.0 && self.baseline >= TOP + 10.0
    }
}

/// A place for a label beside its circle: the first of right, left, above, below and farther away that is free, or the
/// one that meets least.
fn place(text: String, circle: &Circle, circles: &[Circle], placed: &[Label]) -> Label {
    let width = text_width(&text);
    let (side, centred) = (circle.r + 6.0, circle.x - width / 2.0);
    let mut spots = vec![(circle.x + side, circle.y + 4.0), (circle.x - side - width, circle.y + 4.0)];
    for far in [0.0, 15.0, 30.0, 45.0] {
        spots.extend([(centred, circle.y - side - far), (centred, circle.y + side + 10.0 + far)]);
    }
    let cost = |(left, baseline): &(f64, f64)| {
        let label = Label { text: String::new(), left: *left, baseline: *baseline, width };
        let met = placed.iter().filter(|other| label.meets(other)).count();
        let covered = circles.iter().filter(|other| label.covers(other)).count();
        met * 2 + covered + usize::from(!label.inside()) * 3
    };
    let (left, baseline) = spots.iter().copied().min_by_key(cost).unwrap_or((circle.x + side, circle.y));
    Label { text, left, baseline, width }
}
