//! The UCI handwritten digits, their splits by contiguous blocks, and the warps that stand for handwriting and camera
//! variation.

use anyhow::Result;
use limbeck_distill::data::{Arrays, gather_rows};
use limbeck_runtime::noise::Stream;
use limbeck_tensor::{Tensor, TensorMap};

/// Side of an image in pixels.
pub const SIDE: usize = 8;
/// Pixels of an image.
pub const PIXELS: usize = SIDE * SIDE;
/// Number of classes.
pub const CLASSES: usize = 10;
/// Splits whose test parts together are the whole data set.
pub const SPLITS: usize = 5;
/// Blocks that the data set is cut into, in its own order.
const BLOCKS: usize = 20;

const IMAGES: &[u8] = include_bytes!("../../data/digits/images.npy");
const LABELS: &[u8] = include_bytes!("../../data/digits/labels.npy");

/// The parts of one split; all disjoint. Sample i of n lies in block `20 i / n`; the block's role depends on
/// `(block - split) mod 20`.
pub struct Split {
    /// Trains teacher and students: ten blocks.
    pub train: Arrays,
    /// Chooses nothing in the demo; kept apart for tuning: one block.
    pub validation: Arrays,
    /// Ranges for quantisation, scores of blocks: one block.
    pub calibration: Arrays,
    /// Final test, and the "original digits" of the field: four blocks.
    pub test: Arrays,
    /// What the device sees in the field: two blocks.
    pub stream: Arrays,
    /// New digits under the field's drift, never trained on: two blocks.
    pub field: Arrays,
}

/// All 1797 digits: `x` `[n, 1, 8, 8]` f32 in 0..=1, `y` `[n]` int64.
pub fn load() -> Result<Arrays> {
    let pixels: Vec<f32> = npy_payload(IMAGES)?.iter().map(|&v| f32::from(v) / 16.0).collect();
    let labels: Vec<i64> = npy_payload(LABELS)?.iter().map(|&v| i64::from(v)).collect();
    let n = labels.len();
    let mut tensors = TensorMap::new();
    tensors.insert("x".into(), Tensor::new([n, 1, SIDE, SIDE], pixels)?);
    tensors.insert("y".into(), Tensor::new([n], labels)?);
    Ok(Arrays::new(tensors)?)
}

/// Bytes behind an npy header (version 1; the files are u8 and part of this crate).
fn npy_payload(file: &[u8]) -> Result<&[u8]> {
    let header = file.get(8..10).map(|b| 10 + usize::from(u16::from_le_bytes([b[0], b[1]])));
    header.and_then(|h| file.get(h..)).ok_or_else(|| anyhow::anyhow!("the embedded digits are damaged"))
}

/// Split `k` of five; their test parts together are the whole data set.
pub fn split(all: &Arrays, k: usize) -> Result<Split> {
    let n = all.get("y")?.len();
    let part = |places: &[usize]| -> Result<Arrays> {
        let indices: Vec<usize> =
            (0..n).filter(|i| places.contains(&((i * BLOCKS / n + BLOCKS - k % BLOCKS) % BLOCKS))).collect();
        Ok(all.select(&indices)?)
    };
    Ok(Split {
        test: part(&[0, 5, 10, 15])?,
        stream: part(&[2, 12])?,
        field: part(&[7, 17])?,
        calibration: part(&[9])?,
        validation: part(&[19])?,
        train: part(&[1, 3, 4, 6, 8, 11, 13, 14, 16, 18])?,
    })
}

/// A rotation (degrees, clockwise on screen), shift (pixels) and scale about the image centre.
#[derive(Debug, Clone, Copy)]
pub struct Warp {
    /// Degrees.
    pub degrees: f64,
    /// Pixels, right and down.
    pub shift: [f64; 2],
    /// Factor.
    pub scale: f64,
}

impl Warp {
    /// A random warp within ± the given ranges.
    pub fn random(stream: &mut Stream, degrees: f64, shift: f64, scale: f64) -> Warp {
        let mut around = |range: f64| (stream.uniform() * 2.0 - 1.0) * range;
        Warp { degrees: around(degrees), shift: [around(shift), around(shift)], scale: 1.0 + around(scale) }
    }

    /// Applies it to one image in place, bilinear, zero outside.
    pub fn apply(&self, image: &mut [f32]) {
        let angle = self.degrees.to_radians();
        let (c, q) = (angle.cos() / self.scale, angle.sin() / self.scale);
        let centre = (SIDE as f64 - 1.0) / 2.0;
        let source = image.to_vec();
        let at = |x: i64, y: i64| {
            let side = SIDE as i64;
            if (0..side).contains(&x) && (0..side).contains(&y) {
                f64::from(source[(y * side + x) as usize])
            } else {
                0.0
            }
        };
        for (i, pixel) in image.iter_mut().enumerate() {
            let (x, y) = ((i % SIDE) as f64 - centre, (i / SIDE) as f64 - centre);
            let sx = c * x + q * y - self.shift[0] + centre;
            let sy = -q * x + c * y - self.shift[1] + centre;
            let (fx, fy) = (sx.floor(), sy.floor());
            let (wx, wy) = (sx - fx, sy - fy);
            let (x0, y0) = (fx as i64, fy as i64);
            let top = at(x0, y0) * (1.0 - wx) + at(x0 + 1, y0) * wx;
            let bottom = at(x0, y0 + 1) * (1.0 - wx) + at(x0 + 1, y0 + 1) * wx;
            *pixel = (top * (1.0 - wy) + bottom * wy) as f32;
        }
    }
}

/// Warps every image of `x` `[n, 1, 8, 8]` by what `make` says.
pub fn warped(x: &Tensor, mut make: impl FnMut(usize) -> Warp) -> Result<Tensor, limbeck_distill::DistillError> {
    let mut pixels = x.to_vec::<f32>()?;
    for (i, image) in pixels.chunks_exact_mut(PIXELS).enumerate() {
        make(i).apply(image);
    }
    Ok(Tensor::new(x.shape().to_vec(), pixels)?)
}

/// The training augmentation: ±8°, ±0.6 pixels, ±8 %.
pub fn training_warp(stream: &mut Stream) -> Warp {
    Warp::random(stream, 8.0, 0.6, 0.08)
}

/// The field's drift at progress 0..=1: rotation up to 30°, contrast down to 0.7 about mid grey.
pub fn drift(x: &Tensor, progress: impl Fn(usize) -> f64) -> Result<Tensor, limbeck_distill::DistillError> {
    let turned = warped(x, |i| Warp { degrees: 30.0 * progress(i), shift: [0.0; 2], scale: 1.0 })?;
    let mut pixels = turned.to_vec::<f32>()?;
    for (i, image) in pixels.chunks_exact_mut(PIXELS).enumerate() {
        let c = (1.0 - 0.3 * progress(i)) as f32;
        image.iter_mut().for_each(|p| *p = c * *p + (1.0 - c) * 0.5);
    }
    Ok(Tensor::new(x.shape().to_vec(), pixels)?)
}

/// `per_class` samples of each class, drawn by the stream.
pub fn class_balanced(data: &Arrays, per_class: usize, stream: &mut Stream) -> Result<Vec<usize>> {
    let labels = data.get("y")?.to_vec::<i64>()?;
    let mut chosen = vec![];
    for class in 0..CLASSES as i64 {
        let members: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] == class).collect();
        let order = stream.permutation(members.len());
        chosen.extend(order.into_iter().take(per_class).map(|i| members[i]));
    }
    Ok(chosen)
}

/// Rows of a field.
pub fn rows(data: &Arrays, field: &str, indices: &[usize]) -> Result<Tensor> {
    Ok(gather_rows(data.get(field)?, indices)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn splits_are_disjoint_and_tests_cover_everything() {
        let all = load().unwrap();
        let n = all.get("y").unwrap().len();
        assert_eq!(n, 1797);
        // Samples told apart by their place.
        let places = Tensor::new([n], (0..n as i64).collect()).unwrap();
        let all = all.with("place", places).unwrap();
        let places_of = |part: &Arrays| part.get("place").unwrap().to_vec::<i64>().unwrap();
        let mut tested: BTreeSet<i64> = BTreeSet::new();
        for k in 0..SPLITS {
            let s = split(&all, k).unwrap();
            let parts = [&s.train, &s.validation, &s.calibration, &s.test, &s.stream, &s.field].map(places_of);
            let distinct: BTreeSet<i64> = parts.iter().flatten().copied().collect();
            assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), n);
            assert_eq!(distinct.len(), n);
            tested.extend(&parts[3]);
        }
        assert_eq!(tested.len(), n);
    }

    #[test]
    fn a_quarter_turn_moves_pixels_exactly() {
        let mut image = vec![0f32; PIXELS];
        image[1] = 1.0;
        Warp { degrees: 90.0, shift: [0.0; 2], scale: 1.0 }.apply(&mut image);
        // Clockwise, the top edge becomes the right one: column 1 becomes row 1.
        let bright: Vec<usize> = (0..PIXELS).filter(|&i| image[i] > 0.99).collect();
        assert_eq!(bright, [SIDE + SIDE - 1]);
        assert!((image.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
}
