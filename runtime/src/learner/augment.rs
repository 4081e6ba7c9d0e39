//! Small random turns, shifts and zooms of image rows, so that few rows teach more than themselves.

use crate::{RuntimeError, noise::Stream};
use limbeck_tensor::{DType, Tensor};

/// Ranges of the random warp; every row draws its own, uniformly within plus and minus each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Augment {
    /// Turn, in degrees.
    pub degrees: f64,
    /// Shift along each axis, in pixels.
    pub shift: f64,
    /// Zoom, as a share: 0.05 means a factor between 0.95 and 1.05. Below 1.
    pub zoom: f64,
}

impl Augment {
    /// Warps f32 rows `[n, channels, height, width]`. What comes from outside the image is its background: the least
    /// of the four corner pixels, by channel.
    pub(super) fn apply(&self, x: &Tensor, stream: &mut Stream) -> Result<Tensor, RuntimeError> {
        let &[n, channels, height, width] = x.shape() else { return Err(refuse(x)) };
        if x.dtype() != DType::F32 || height == 0 || width == 0 {
            return Err(refuse(x));
        }
        let mut out = x.to_vec::<f32>()?;
        let mut within = |range: f64| range * (2.0 * stream.uniform() - 1.0);
        for image in out.chunks_mut(channels * height * width).take(n) {
            let warp = Warp {
                degrees: within(self.degrees),
                shift: [within(self.shift), within(self.shift)],
                scale: 1.0 + within(self.zoom),
            };
            for plane in image.chunks_mut(height * width) {
                warp.apply(plane, height, width);
            }
        }
        Ok(Tensor::new(x.shape(), out)?)
    }
}

fn refuse(x: &Tensor) -> RuntimeError {
    let reason =
        format!("images, float32 [n, channels, height, width], can be augmented, not {} {:?}", x.dtype(), x.shape());
    RuntimeError::Data { what: "augment".into(), reason }
}

struct Warp {
    degrees: f64,
    shift: [f64; 2],
    scale: f64,
}

impl Warp {
    /// Bilinear; pixel (x, y), counted from the centre, comes from R(x, y) / scale - shift.
    fn apply(&self, plane: &mut [f32], height: usize, width: usize) {
        let old = plane.to_vec();
        let (last_y, last_x) = (height - 1, width - 1);
        let corners = [old[0], old[last_x], old[last_y * width], old[last_y * width + last_x]];
        let ground = corners.into_iter().fold(f32::INFINITY, f32::min);
        let at = |y: f64, x: f64| match y >= 0.0 && x >= 0.0 && y <= last_y as f64 && x <= last_x as f64 {
            true => f64::from(old[y as usize * width + x as usize] - ground),
            false => 0.0,
        };
        let (sin, cos) = self.degrees.to_radians().sin_cos();
        let (cy, cx) = (last_y as f64 / 2.0, last_x as f64 / 2.0);
        for (i, pixel) in plane.iter_mut().enumerate() {
            let (y, x) = ((i / width) as f64 - cy, (i % width) as f64 - cx);
            let sx = (cos * x + sin * y) / self.scale - self.shift[0] + cx;
            let sy = (cos * y - sin * x) / self.scale - self.shift[1] + cy;
            let (x0, y0) = (sx.floor(), sy.floor());
            let (fx, fy) = (sx - x0, sy - y0);
            let top = at(y0, x0) * (1.0 - fx) + at(y0, x0 + 1.0) * fx;
            let bottom = at(y0 + 1.0, x0) * (1.0 - fx) + at(y0 + 1.0, x0 + 1.0) * fx;
            *pixel = ground + (top * (1.0 - fy) + bottom * fy) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise;

    #[test]
    fn a_quarter_turn_and_a_shift_move_pixels() {
        let image = [1f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
        let mut plane = image;
        Warp { degrees: 90.0, shift: [0.0; 2], scale: 1.0 }.apply(&mut plane, 3, 3);
        // Pixel (x, y), counted from the centre, comes from (y, -x): the first row is the first column read upwards.
        let want = [7.0, 4.0, 1.0, 8.0, 5.0, 2.0, 9.0, 6.0, 3.0];
        let turned: Vec<f32> = plane.iter().map(|v| (v * 1e4).round() / 1e4).collect();
        assert_eq!(turned, want);
        let mut plane = image;
        Warp { degrees: 0.0, shift: [1.0, 0.0], scale: 1.0 }.apply(&mut plane, 3, 3);
        assert_eq!(plane, [1.0, 1.0, 2.0, 1.0, 4.0, 5.0, 1.0, 7.0, 8.0]);
    }

    #[test]
    fn no_range_changes_nothing_and_the_seed_decides() {
        let x = Tensor::new([2, 1, 4, 4], (0..32).map(|v| v as f32).collect::<Vec<_>>()).unwrap();
        let with = |a: Augment, seed| a.apply(&x, &mut noise::stream(seed, 0, "augment")).unwrap();
        assert_eq!(with(Augment { degrees: 0.0, shift: 0.0, zoom: 0.0 }, 1), x);
        let some = Augment { degrees: 8.0, shift: 0.5, zoom: 0.05 };
        assert_eq!(with(some, 1), with(some, 1));
        assert_ne!(with(some, 1), with(some, 2));
        assert!(some.apply(&Tensor::scalar(1f32), &mut noise::stream(0, 0, "")).is_err());
    }
}
