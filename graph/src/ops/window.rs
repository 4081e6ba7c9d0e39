//! Sliding windows: the geometry that Conv, ConvTranspose and the pools share.

use super::support::{int_attr, ints_attr, str_attr};
use super::util::check_size;
use crate::types::Dim;
use crate::{Node, OpError, op_bail};
use ndarray::{Dimension, IxDyn, indices};

/// Geometry of a convolution over given spatial extents, padding resolved. One entry a spatial dim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvAttrs {
    /// Extents of the kernel.
    pub kernel: Vec<usize>,
    /// Steps between windows.
    pub strides: Vec<usize>,
    /// Zeros before the data.
    pub pads_begin: Vec<usize>,
    /// Zeros after the data.
    pub pads_end: Vec<usize>,
    /// Steps between the taps of a window.
    pub dilations: Vec<usize>,
    /// Groups of channels.
    pub group: usize,
}

impl ConvAttrs {
    /// The geometry that the attributes of a Conv-like node state for a data tensor and a weight of these
    /// spatial extents (`auto_pad` resolved). Errors name the attribute or the extents that do not fit.
    pub fn of(node: &Node, x_spatial: &[usize], kernel_spatial: &[usize]) -> Result<ConvAttrs, OpError> {
        Ok(Window::read(node, kernel_spatial)?.resolve(x_spatial)?.0)
    }

    /// As [`ConvAttrs::of`] with the result's spatial extents; without `kernel`, of a node whose kernel is
    /// `kernel_shape`.
    pub(crate) fn with_output(
        node: &Node,
        x_spatial: &[usize],
        kernel: Option<&[usize]>,
    ) -> Result<(ConvAttrs, Vec<usize>), OpError> {
        match kernel {
            Some(kernel) => Window::read(node, kernel)?.resolve(x_spatial),
            None => Window::read_pool(node)?.resolve(x_spatial),
        }
    }

    /// The same for a ConvTranspose node (`output_padding` and `output_shape` resolved too): the geometry of the
    /// convolution that it transposes, whose result has the spatial extents `x_spatial`.
    pub fn of_transposed(node: &Node, x_spatial: &[usize], kernel_spatial: &[usize]) -> Result<ConvAttrs, OpError> {
        Ok(Window::read(node, kernel_spatial)?.resolve_transposed(node, x_spatial)?.0)
    }

    /// Calls `f(o, k, i)` for every tap that falls on data: flat offsets in the spatial dims of the output, the
    /// kernel and the input. Windows come in row-major order, and so do the taps of each.
    pub(super) fn taps(
        &self,
        x: &[usize],
        out: &[usize],
        mut f: impl FnMut(usize, usize, usize),
    ) -> Result<(), OpError> {
        check_size(&[out, &self.kernel].concat())?;
        for (o, at) in indices(IxDyn(out)).into_iter().enumerate() {
            for (k, tap) in indices(IxDyn(&self.kernel)).into_iter().enumerate() {
                let position = (0..x.len()).try_fold(0, |flat, d| {
                    let ahead = at.slice()[d] * self.strides[d] + tap.slice()[d] * self.dilations[d];
                    let p = ahead.checked_sub(self.pads_begin[d])?;
                    (p < x[d]).then_some(flat * x[d] + p)
                });
                if let Some(i) = position {
                    f(o, k, i);
                }
            }
        }
        Ok(())
    }

    /// For each spatial position of a pool's output how many elements it averages over, at least 1.
    pub(crate) fn counts(&self, x: &[usize], out: &[usize], include_pad: bool) -> Result<Vec<f64>, OpError> {
        check_size(&[out, &self.kernel].concat())?;
        let along = |d: usize, o: usize| {
            let (first, last) = if include_pad { (0, self.pads_end[d]) } else { (self.pads_begin[d], 0) };
            let inside = first..x[d] + self.pads_begin[d] + last;
            let taps = (0..self.kernel[d]).map(|k| o * self.strides[d] + k * self.dilations[d]);
            taps.filter(|p| inside.contains(p)).count() as f64
        };
        let mut counts = vec![1.0];
        for (d, &n) in out.iter().enumerate() {
            let axis: Vec<f64> = (0..n).map(|o| along(d, o)).collect();
            counts = counts.iter().flat_map(|c| axis.iter().map(move |a| c * a)).collect();
        }
        counts.iter_mut().for_each(|c: &mut f64| *c = c.max(1.0));
        Ok(counts)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Padding {
    Explicit(Vec<usize>, Vec<usize>),
    SameUpper,
    SameLower,
}

/// Attributes of a windowed op before the extents of its data are known.
pub(super) struct Window {
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    padding: Padding,
    ceil: bool,
    group: usize,
}

impl Window {
    /// Reads `auto_pad`, `pads`, `strides`, `dilations`, `group`, `ceil_mode` and checks `kernel_shape`.
    pub(super) fn read(node: &Node, kernel: &[usize]) -> Result<Window, OpError> {
        let rank = kernel.len();
        if kernel.contains(&0) {
            op_bail!("the kernel {kernel:?} has an extent of 0");
        }
        if let Some(stated) = list(node, "kernel_shape", rank, 1)?
            && stated != kernel
        {
            op_bail!("kernel_shape {stated:?} is not the weight's {kernel:?}");
        }
        let padding = match str_attr(node, "auto_pad", "NOTSET")? {
            "NOTSET" => {
                let mut begin = list(node, "pads", 2 * rank, 0)?.unwrap_or(vec![0; 2 * rank]);
                let end = begin.split_off(rank);
                Padding::Explicit(begin, end)
            }
            "VALID" => Padding::Explicit(vec![0; rank], vec![0; rank]),
            "SAME_UPPER" => Padding::SameUpper,
            "SAME_LOWER" => Padding::SameLower,
            other => op_bail!("auto_pad '{other}' is none of NOTSET, VALID, SAME_UPPER, SAME_LOWER"),
        };
        let explicit = str_attr(node, "auto_pad", "NOTSET")? == "NOTSET";
        Ok(Window {
            kernel: kernel.to_vec(),
            strides: list(node, "strides", rank, 1)?.unwrap_or(vec![1; rank]),
            dilations: list(node, "dilations", rank, 1)?.unwrap_or(vec![1; rank]),
            padding,
            ceil: explicit && int_attr(node, "ceil_mode", 0)? != 0,
            group: group(node)?,
        })
    }

    /// Attributes of a pool, whose kernel is `kernel_shape`.
    pub(super) fn read_pool(node: &Node) -> Result<Window, OpError> {
        let Some(kernel) = ints_attr(node, "kernel_shape")? else { op_bail!("attribute 'kernel_shape' is missing") };
        let kernel = list(node, "kernel_shape", kernel.len(), 1)?.unwrap_or_default();
        Window::read(node, &kernel)
    }

    /// Elements that a window spans on axis `d`.
    fn reach(&self, d: usize) -> i128 {
        (self.kernel[d] as i128 - 1) * self.dilations[d] as i128 + 1
    }

    /// Padding before and after, and the output extent, of axis `d` over `n` elements.
    fn axis(&self, d: usize, n: usize) -> Result<[usize; 3], OpError> {
        let (x, reach, stride) = (n as i128, self.reach(d), self.strides[d] as i128);
        let (begin, end, out) = match &self.padding {
            Padding::Explicit(begin, end) => {
                let (b, e) = (begin[d] as i128, end[d] as i128);
                let room = x + b + e - reach;
                if room < 0 {
                    op_bail!("a window of {reach} does not fit {n} elements padded by {b} and {e} (spatial dim {d})");
                }
                let mut out = room / stride + 1;
                // A last window that would start in the padding after the data is dropped.
                if self.ceil && room % stride != 0 && out * stride < x + b {
                    out += 1;
                }
                (b, e, out)
            }
            same => {
                let out = (x + stride - 1) / stride;
                let (b, e) = halves(((out - 1) * stride + reach - x).max(0), *same == Padding::SameUpper);
                (b, e, out)
            }
        };
        Ok([to_usize(begin)?, to_usize(end)?, to_usize(out)?])
    }

    /// The same for a transposed convolution, with `output_padding` and, when stated, the output extent.
    fn transposed_axis(&self, d: usize, n: usize, extra: usize, target: Option<usize>) -> Result<[usize; 3], OpError> {
        let stride = self.strides[d] as i128;
        let natural = stride * (n as i128 - 1) + extra as i128 + self.reach(d);
        let target = target.map(|t| t as i128);
        let (begin, end, out) = match (&self.padding, target) {
            (Padding::Explicit(begin, end), None) => {
                let (b, e) = (begin[d] as i128, end[d] as i128);
                if natural < b + e {
                    op_bail!("pads {b} and {e} leave nothing of {natural} output elements (spatial dim {d})");
                }
                (b, e, natural - b - e)
            }
            (padding, target) => {
                let out = target.unwrap_or(n as i128 * stride);
                let (b, e) = halves((natural - out).max(0), *padding == Padding::SameUpper);
                (b, e, out)
            }
        };
        Ok([to_usize(begin)?, to_usize(end)?, to_usize(out)?])
    }

    fn with(&self, axes: Vec<[usize; 3]>) -> (ConvAttrs, Vec<usize>) {
        let column = |i: usize| axes.iter().map(|a| a[i]).collect::<Vec<_>>();
        let attrs = ConvAttrs {
            kernel: self.kernel.clone(),
            strides: self.strides.clone(),
            pads_begin: column(0),
            pads_end: column(1),
            dilations: self.dilations.clone(),
            group: self.group,
        };
        (attrs, column(2))
    }

    fn check_rank(&self, rank: usize) -> Result<(), OpError> {
        if rank != self.kernel.len() {
            op_bail!("the kernel {:?} does not fit data of {rank} spatial dims", self.kernel);
        }
        Ok(())
    }

    /// Resolved geometry and output extents over data of these spatial extents.
    pub(super) fn resolve(&self, x: &[usize]) -> Result<(ConvAttrs, Vec<usize>), OpError> {
        self.check_rank(x.len())?;
        Ok(self.with(x.iter().enumerate().map(|(d, &n)| self.axis(d, n)).collect::<Result<_, _>>()?))
    }

    /// Geometry of ConvTranspose over data of these spatial extents, and its output extents.
    pub(super) fn resolve_transposed(&self, node: &Node, x: &[usize]) -> Result<(ConvAttrs, Vec<usize>), OpError> {
        let (extra, target) = self.transposed_attrs(node, x.len())?;
        let axis = |(d, &n): (usize, &usize)| self.transposed_axis(d, n, extra[d], target.as_ref().map(|t| t[d]));
        Ok(self.with(x.iter().enumerate().map(axis).collect::<Result<_, _>>()?))
    }

    /// Output dims of ConvTranspose over data of these spatial dims.
    pub(super) fn transposed_dims(&self, node: &Node, x: &[Dim]) -> Result<Vec<Dim>, OpError> {
        let (extra, target) = self.transposed_attrs(node, x.len())?;
        x.iter()
            .enumerate()
            .map(|(d, dim)| match (dim.known(), &target) {
                (_, Some(target)) => Ok(Dim::Known(target[d])),
                (Some(n), None) => Ok(Dim::Known(self.transposed_axis(d, n, extra[d], None)?[2])),
                (None, None) => Ok(Dim::Unknown),
            })
            .collect()
    }

    /// `output_padding`, and `output_shape` when stated.
    fn transposed_attrs(&self, node: &Node, rank: usize) -> Result<(Vec<usize>, Option<Vec<usize>>), OpError> {
        self.check_rank(rank)?;
        let extra = list(node, "output_padding", rank, 0)?.unwrap_or(vec![0; rank]);
        Ok((extra, list(node, "output_shape", rank, 1)?))
    }

    /// Output dims over data of these spatial dims. A symbol survives where the op keeps the extent.
    pub(super) fn out_dims(&self, x: &[Dim]) -> Result<Vec<Dim>, OpError> {
        self.check_rank(x.len())?;
        let keeps = |d: usize| match &self.padding {
            Padding::Explicit(b, e) => b[d] as i128 + e[d] as i128 + 1 == self.reach(d),
            _ => true,
        };
        x.iter()
            .enumerate()
            .map(|(d, dim)| match dim {
                Dim::Known(n) => Ok(Dim::Known(self.axis(d, *n)?[2])),
                symbol if self.strides[d] == 1 && keeps(d) => Ok(symbol.clone()),
                _ => Ok(Dim::Unknown),
            })
            .collect()
    }
}

/// Splits padding in two; the odd element goes last when `upper`, else first.
fn halves(total: i128, upper: bool) -> (i128, i128) {
    if upper { (total / 2, total - total / 2) } else { (total - total / 2, total / 2) }
}

fn to_usize(n: i128) -> Result<usize, OpError> {
    usize::try_from(n).map_err(|_| OpError(format!("extent {n} is out of range")))
}

/// The `group` attribute.
pub(super) fn group(node: &Node) -> Result<usize, OpError> {
    match int_attr(node, "group", 1)? {
        g if (1..=i64::from(i32::MAX)).contains(&g) => Ok(g as usize),
        g => op_bail!("group {g} must be positive"),
    }
}

/// A list attribute of `len` numbers of at least `min` (and below 2^31, so that products fit).
fn list(node: &Node, name: &str, len: usize, min: i64) -> Result<Option<Vec<usize>>, OpError> {
    let Some(values) = ints_attr(node, name)? else { return Ok(None) };
    if values.len() != len || values.iter().any(|v| !(min..=i64::from(i32::MAX)).contains(v)) {
        op_bail!("{name} {values:?} must be {len} numbers of at least {min}");
    }
    Ok(Some(values.iter().map(|&v| v as usize).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_extent_survives_where_the_window_keeps_it() {
        let x: [Dim; 2] = ["height".into(), "width".into()];
        let node = Node::new("Conv", &[], &[]).with("pads", vec![1i64, 1, 1, 0]);
        let dims = Window::read(&node, &[3, 3]).and_then(|w| w.out_dims(&x)).unwrap();
        assert_eq!(dims, ["height".into(), Dim::Unknown]);
        let node = Node::new("Conv", &[], &[]).with("auto_pad", "SAME_UPPER").with("strides", vec![2i64, 1]);
        let dims = Window::read(&node, &[3, 3]).and_then(|w| w.out_dims(&x)).unwrap();
        assert_eq!(dims, [Dim::Unknown, "width".into()]);
    }

    #[test]
    fn attributes_that_cannot_be_are_refused_by_name() {
        let refused = |name: &str, value: Vec<i64>| {
            let node = Node::new("Conv", &[], &[]).with(name, value);
            let error = ConvAttrs::of(&node, &[5, 5], &[3, 3]).unwrap_err();
            assert!(error.0.contains(name), "{}", error.0);
        };
        refused("pads", vec![-1, 0, 0, 0]);
        refused("pads", vec![1, 1]);
        refused("strides", vec![0, 1]);
        refused("dilations", vec![1, i64::MAX]);
        refused("kernel_shape", vec![3, 2]);
        let error = ConvAttrs::of(&Node::new("Conv", &[], &[]), &[2, 5], &[3, 3]).unwrap_err();
        assert!(error.0.contains("window of 3 does not fit 2 elements"), "{}", error.0);
    }
}
