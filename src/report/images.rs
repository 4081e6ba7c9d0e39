//! Grids of sample images, each marked as right or wrong.

use super::svg::{TOP, WIDTH, clean, document, empty, px, shorten};
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use maud::{Markup, html};

const IMAGE: f64 = 64.0;
const COLUMN: f64 = 86.0;
const ROW: f64 = 104.0;

/// One image of a grid.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// Brightness from 0 (black) to 1 (white), `[height, width]` for grey or `[3, height, width]` for colour; values
    /// outside are clamped.
    pub pixels: &'a [f32],
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// What stands below, such as `4 not 7`; more than ten characters are cut, and shown whole under the pointer.
    pub caption: &'a str,
    /// Whether the answer was right: a tick and a green frame, or else a cross and a red, thicker one.
    pub good: bool,
}

/// Images in rows, each enlarged to one size without smoothing. An image whose pixels do not match its size is shown
/// as an empty frame.
pub fn image_grid(title: &str, images: &[Sample]) -> String {
    let columns = ((WIDTH - 24.0) / COLUMN) as usize;
    if images.is_empty() {
        return empty(title);
    }
    let body = html! {
        @for (index, sample) in images.iter().enumerate() {
            @let (column, row) = ((index % columns) as f64, (index / columns) as f64);
            (one(sample, 18.0 + column * COLUMN, TOP + 6.0 + row * ROW))
        }
    };
    document(title, WIDTH, TOP + 10.0 + images.len().div_ceil(columns) as f64 * ROW, body)
}

fn one(sample: &Sample, x: f64, y: f64) -> Markup {
    let class = if sample.good { "good" } else { "bad" };
    let (sign, word) = if sample.good { ("l3 3l6 -7", "right") } else { ("l7 7m0 -7l-7 7", "wrong") };
    let start = (x + 1.0, y + IMAGE + if sample.good { 15.0 } else { 12.0 });
    let caption = shorten(sample.caption, 10);
    html! {
        g {
            title { (clean(sample.caption)) " (" (word) ")" }
            @if let Some(uri) = png(sample) {
                image x=(px(x)) y=(px(y)) width=(px(IMAGE)) height=(px(IMAGE)) href=(uri) {}
            }
            rect.frame.(class) x=(px(x - 2.0)) y=(px(y - 2.0)) width=(px(IMAGE + 4.0)) height=(px(IMAGE + 4.0))
                rx="3" {}
            path.sign.(class) d={ "M" (px(start.0)) " " (px(start.1)) (sign) } {}
            text.strong x=(px(x + 15.0)) y=(px(y + IMAGE + 20.0)) { (caption) }
        }
    }
}

/// The image as a PNG in a data URI, or None where the pixels do not match the size.
fn png(sample: &Sample) -> Option<String> {
    let (width, height) = (usize::try_from(sample.width).ok()?, usize::try_from(sample.height).ok()?);
    let area = width.checked_mul(height).filter(|area| *area > 0)?;
    let level = |value: f32| (value.clamp(0.0, 1.0) * 255.0).round() as u8;
    let (bytes, colour) = match sample.pixels.len() {
        n if n == area => (sample.pixels.iter().map(|v| level(*v)).collect::<Vec<u8>>(), ExtendedColorType::L8),
        n if Some(n) == area.checked_mul(3) => {
            let interleaved = (0..area).flat_map(|i| [0, 1, 2].map(|plane| level(sample.pixels[plane * area + i])));
            (interleaved.collect(), ExtendedColorType::Rgb8)
        }
        _ => return None,
    };
    let mut file = Vec::new();
    PngEncoder::new(&mut file).write_image(&bytes, sample.width, sample.height, colour).ok()?;
    Some(format!("data:image/png;base64,{}", base64(&file)))
}

/// Base 64 with padding, RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| usize::from(chunk.get(i).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for (place, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            text.push(if place <= chunk.len() { char::from(ALPHABET[group >> shift & 63]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        // RFC 4648, section 10.
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn images_need_pixels_that_match() {
        let pixels = [0.0, 0.5, f32::NAN, 7.0, 0.1, 0.2];
        let sample = |n: usize, width, height| Sample { pixels: &pixels[..n], width, height, caption: "", good: true };
        assert!(png(&sample(4, 2, 2)).is_some());
        assert!(png(&sample(6, 2, 1)).is_some(), "three planes");
        for (n, width, height) in [(4, 3, 2), (0, 0, 0), (4, u32::MAX, u32::MAX)] {
            assert_eq!(png(&sample(n, width, height)), None);
        }
    }
}
