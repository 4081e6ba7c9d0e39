//! The sizes of a 2-D convolution, checked once.

use crate::error::KernelError;

/// Attributes of a convolution, named as in ONNX `Conv`; pairs are `[height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvParams {
    /// Number of channel groups.
    pub group: usize,
    /// Step between output positions.
    pub stride: [usize; 2],
    /// Zeros before the first row and column.
    pub pad_begin: [usize; 2],
    /// Zeros after the last row and column.
    pub pad_end: [usize; 2],
    /// Step between kernel taps.
    pub dilation: [usize; 2],
}

impl Default for ConvParams {
    /// One group, stride 1, no padding, no dilation.
    fn default() -> Self {
        Self { group: 1, stride: [1; 2], pad_begin: [0; 2], pad_end: [0; 2], dilation: [1; 2] }
    }
}

/// The sizes of a convolution. A value exists only if they are consistent and every tensor is addressable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvGeometry {
    pub(crate) batch: usize,
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    pub(crate) group: usize,
    pub(crate) input: [usize; 2],
    pub(crate) output: [usize; 2],
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: [usize; 2],
    pub(crate) pad_begin: [usize; 2],
    pub(crate) pad_end: [usize; 2],
    pub(crate) dilation: [usize; 2],
}

impl ConvGeometry {
    /// Checks the sizes and computes the output's, `(input + pads - dilation * (kernel - 1) - 1) / stride + 1` an axis.
    ///
    /// # Errors
    /// A zero size, channels not divisible by the groups, a kernel larger than the padded input, or sizes whose product
    /// overflows.
    pub fn new(
        batch: usize,
        in_channels: usize,
        out_channels: usize,
        input: [usize; 2],
        kernel: [usize; 2],
        params: &ConvParams,
    ) -> Result<Self, KernelError> {
        let ConvParams { group, stride, pad_begin, pad_end, dilation } = *params;
        for (what, size) in [
            ("batch", batch),
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("group", group),
            ("input", input[0].min(input[1])),
            ("kernel", kernel[0].min(kernel[1])),
            ("stride", stride[0].min(stride[1])),
            ("dilation", dilation[0].min(dilation[1])),
        ] {
            if size == 0 {
                return Err(KernelError::Zero { what });
            }
        }
        if !in_channels.is_multiple_of(group) || !out_channels.is_multiple_of(group) {
            return Err(KernelError::Group { in_channels, out_channels, group });
        }
        let mut output = [0; 2];
        for axis in 0..2 {
            let padded = product_sum(&[], &[input[axis], pad_begin[axis], pad_end[axis]])
                .ok_or(KernelError::Overflow { what: "the padded input" })?;
            let covered = product_sum(&[dilation[axis], kernel[axis] - 1], &[1])
                .ok_or(KernelError::Overflow { what: "the dilated kernel" })?;
            if covered > padded {
                return Err(KernelError::KernelTooLarge { axis, kernel: covered, padded });
            }
            output[axis] = (padded - covered) / stride[axis] + 1;
        }
        let geometry = Self {
            batch,
            in_channels,
            out_channels,
            group,
            input,
            output,
            kernel,
            stride,
            pad_begin,
            pad_end,
            dilation,
        };
        let padded = |axis: usize| input[axis] + pad_begin[axis] + pad_end[axis];
        let largest_product = [
            ("the padded input", product_sum(&[batch, in_channels, padded(0), padded(1)], &[])),
            ("the output", product_sum(&[batch, out_channels, output[0], output[1]], &[])),
            ("the weight", product_sum(&[out_channels, in_channels, kernel[0], kernel[1]], &[])),
        ];
        match largest_product.iter().find(|(_, bytes)| bytes.is_none()) {
            Some((what, _)) => Err(KernelError::Overflow { what }),
            None => Ok(geometry),
        }
    }

    /// Output `[height, width]`.
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    /// Values in the input and its gradient, `[batch, in_channels, height, width]`.
    pub fn input_len(&self) -> usize {
        self.batch * self.in_channels * self.input_plane()
    }

    /// Values in the output and its gradient, `[batch, out_channels, height, width]`.
    pub fn output_len(&self) -> usize {
        self.batch * self.out_channels * self.output_plane()
    }

    /// Values in the weight and its gradient, `[out_channels, in_channels / group, height, width]`.
    pub fn weight_len(&self) -> usize {
        self.out_channels * self.patch_len()
    }

    /// Floating point operations of one pass (forward or either gradient), a multiply-add being two.
    pub fn flops(&self) -> f64 {
        2.0 * self.output_len() as f64 * self.patch_len() as f64
    }

    pub(crate) fn is_depthwise(&self) -> bool {
        self.group == self.in_channels
    }

    pub(crate) fn input_plane(&self) -> usize {
        self.input[0] * self.input[1]
    }

    pub(crate) fn output_plane(&self) -> usize {
        self.output[0] * self.output[1]
    }

    pub(crate) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Input channels of one group.
    pub(crate) fn group_in(&self) -> usize {
        self.in_channels / self.group
    }

    /// Output channels of one group.
    pub(crate) fn group_out(&self) -> usize {
        self.out_channels / self.group
    }

    /// Inputs to one output value: rows of the column matrix.
    pub(crate) fn patch_len(&self) -> usize {
        self.group_in() * self.taps()
    }

    /// A kernel of one tap that reads the input as it lies.
    pub(crate) fn is_pointwise(&self) -> bool {
        self.kernel == [1; 2] && self.stride == [1; 2] && self.pad_begin == [0; 2] && self.pad_end == [0; 2]
    }

    /// The stride-1 convolution that maps an output gradient to the input gradient with flipped weights, where padding
    /// allows it.
    pub(crate) fn transposed(&self) -> Option<Self> {
        if self.stride != [1; 2] {
            return None;
        }
        let reach = |axis: usize| self.dilation[axis] * (self.kernel[axis] - 1);
        let flip = |pad: [usize; 2]| Some([reach(0).checked_sub(pad[0])?, reach(1).checked_sub(pad[1])?]);
        Some(Self {
            in_channels: self.out_channels,
            out_channels: self.in_channels,
            input: self.output,
            output: self.input,
            pad_begin: flip(self.pad_begin)?,
            pad_end: flip(self.pad_end)?,
            ..*self
        })
    }
}

/// The product of `factors` (1 if none, 0 if no factors are given) plus `terms`, if its bytes as `f32` fit an `isize`.
fn product_sum(factors: &[usize], terms: &[usize]) -> Option<usize> {
    let product = match factors {
        [] => 0,
        _ => factors.iter().try_fold(1usize, |product, &f| product.checked_mul(f))?,
    };
    let sum = terms.iter().try_fold(product, |sum, &t| sum.checked_add(t))?;
    (sum <= isize::MAX as usize / size_of::<f32>()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_size_follows_onnx() {
        let params =
            ConvParams { stride: [2, 3], pad_begin: [1, 0], pad_end: [0, 2], dilation: [2, 1], ..Default::default() };
        let geometry = ConvGeometry::new(2, 4, 6, [9, 11], [3, 2], &params).unwrap();
        assert_eq!(geometry.output(), [(9 + 1 - 4 - 1) / 2 + 1, (11 + 2 - 1 - 1) / 3 + 1]);
        assert_eq!((geometry.input_len(), geometry.weight_len()), (2 * 4 * 99, 6 * 4 * 6));
    }

    #[test]
    fn inconsistent_sizes_are_refused() {
        let new = |channels, input, kernel, params: ConvParams| {
            ConvGeometry::new(1, channels, 4, input, kernel, &params).unwrap_err()
        };
        let default = ConvParams::default();
        assert_eq!(new(0, [4, 4], [1, 1], default), KernelError::Zero { what: "in_channels" });
        assert_eq!(new(2, [4, 4], [1, 0], default), KernelError::Zero { what: "kernel" });
        assert_eq!(
            new(3, [4, 4], [1, 1], ConvParams { group: 2, ..default }),
            KernelError::Group { in_channels: 3, out_channels: 4, group: 2 }
        );
        assert_eq!(new(2, [4, 4], [1, 5], default), KernelError::KernelTooLarge { axis: 1, kernel: 5, padded: 4 });
        let huge = usize::MAX / 2;
        assert!(matches!(new(2, [huge, huge], [1, 1], default), KernelError::Overflow { .. }));
        let dilated = ConvParams { dilation: [huge, 1], ..default };
        assert!(matches!(new(2, [4, 4], [4, 1], dilated), KernelError::Overflow { .. }));
    }
}
