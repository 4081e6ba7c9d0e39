//! The fused convolutions.
//!
//! | op | inputs | output |
//! |---|---|---|
//! | `FusedConv` | `x [n, c, s..]`, `w [m, c/group, k..]`, optional `b [m]` | `[n, m, o..]`, ONNX `Conv` |
//! | `ConvGradInput` | `w`, `gy [n, m, o..]` | gradient for `x`, whose extents are the attribute `input_shape` |
//! | `ConvGradWeight` | `x`, `gy` | gradient for `w`, whose extents are the attribute `kernel_shape` |
//!
//! Attributes are those of ONNX `Conv`: `strides`, `pads`, `dilations`, `group`, `kernel_shape`. All tensors are float32;
//! one or two spatial axes; only the batch may be unknown before a call.

use super::plan::{Kernel, Pass};
use super::{Attributes, Extent, FusedError, ensure, known};
use limbeck_kernels::{ConvGeometry, ConvParams};

/// One of the three passes with its attributes; an empty list means ONNX's default.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Conv {
    pass: Pass,
    operands: usize,
    group: usize,
    strides: Vec<usize>,
    pads: Vec<usize>,
    dilations: Vec<usize>,
    kernel_shape: Vec<usize>,
    input_shape: Vec<usize>,
}

/// The sizes of one call, as far as the shapes tell them; the batch may still be unknown.
struct Sizes<D> {
    batch: D,
    in_channels: usize,
    out_channels: usize,
    /// Spatial extents as the file has them, one or two.
    input: Vec<usize>,
    kernel: Vec<usize>,
    output: Vec<usize>,
}

impl Conv {
    pub(super) fn parse(
        op_type: &str,
        operands: usize,
        results: usize,
        attributes: &dyn Attributes,
    ) -> Result<Conv, FusedError> {
        let pass = match op_type {
            "FusedConv" => Pass::Forward,
            "ConvGradInput" => Pass::GradInput,
            "ConvGradWeight" => Pass::GradWeight,
            other => return Err(FusedError(format!("there is no operator {}.{other}", super::DOMAIN))),
        };
        let auto_pad = attributes.string("auto_pad")?;
        ensure!(auto_pad.is_none_or(|p| p == "NOTSET"), "{op_type}: auto_pad is not supported; write the pads out");
        let natural = |name: &str, n: i64| {
            usize::try_from(n).map_err(|_| FusedError(format!("{op_type}: the attribute {name} is negative: {n}")))
        };
        let list = |name: &str| -> Result<Vec<usize>, FusedError> {
            attributes.ints(name)?.unwrap_or_default().into_iter().map(|n| natural(name, n)).collect()
        };
        let most = if pass == Pass::Forward { 3 } else { 2 };
        ensure!((2..=most).contains(&operands), "{op_type} takes 2 to {most} inputs, got {operands}");
        ensure!(results == 1, "{op_type} has 1 output, not {results}");
        Ok(Conv {
            pass,
            operands,
            group: natural("group", attributes.int("group")?.unwrap_or(1))?,
            strides: list("strides")?,
            pads: list("pads")?,
            dilations: list("dilations")?,
            kernel_shape: list("kernel_shape")?,
            input_shape: list("input_shape")?,
        })
    }

    pub(super) fn op_type(&self) -> &'static str {
        match self.pass {
            Pass::Forward => "FusedConv",
            Pass::GradInput => "ConvGradInput",
            Pass::GradWeight => "ConvGradWeight",
        }
    }

    /// Derives all sizes from the shapes of the first two operands and checks that they fit together.
    fn sizes<D: Extent>(&self, operands: &[&[D]]) -> Result<Sizes<D>, FusedError> {
        let (first, second) = match operands {
            [first, second, ..] if operands.len() == self.operands => (*first, *second),
            _ => return Err(FusedError(format!("got {} operands, not {}", operands.len(), self.operands))),
        };
        let rank = first.len();
        ensure!(rank == second.len() && (3..=4).contains(&rank), "shapes {first:?} and {second:?} do not fit");
        let listed = |name: &str, list: &[usize]| {
            ensure!(list.len() == rank - 2, "the attribute {name} needs {} entries, got {list:?}", rank - 2);
            Ok(list.to_vec())
        };
        let (a, b) = (known(&first[1..])?, known(&second[1..])?);
        let sizes = match self.pass {
            Pass::Forward | Pass::GradInput => {
                let (weight, w) = if self.pass == Pass::Forward { (second, &b) } else { (first, &a) };
                let out_channels = known(&weight[..1])?[0];
                let in_channels =
                    w[0].checked_mul(self.group).ok_or_else(|| FusedError::new("the number of channels overflows"))?;
                if self.pass == Pass::Forward {
                    ensure!(a[0] == in_channels, "x has {} channels, the weight needs {in_channels}", a[0]);
                } else {
                    ensure!(b[0] == out_channels, "gy has {} channels, the weight {out_channels}", b[0]);
                }
                let (batch, input, output) = match self.pass {
                    Pass::Forward => (first[0].clone(), a[1..].to_vec(), vec![]),
                    _ => (second[0].clone(), listed("input_shape", &self.input_shape)?, b[1..].to_vec()),
                };
                Sizes { batch, in_channels, out_channels, input, kernel: w[1..].to_vec(), output }
            }
            Pass::GradWeight => {
                ensure!(first[0] == second[0], "x has batch {:?}, gy {:?}", first[0], second[0]);
                Sizes {
                    batch: first[0].clone(),
                    in_channels: a[0],
                    out_channels: b[0],
                    input: a[1..].to_vec(),
                    kernel: listed("kernel_shape", &self.kernel_shape)?,
                    output: b[1..].to_vec(),
                }
            }
        };
        let output = self.geometry(&sizes, 1)?.output()[4 - rank..].to_vec();
        ensure!(
            sizes.output.is_empty() || sizes.output == output,
            "gy has extents {:?}, but the attributes give {output:?}",
            sizes.output
        );
        Ok(Sizes { output, ..sizes })
    }

    /// The kernel's geometry; one spatial axis becomes a plane of height 1.
    fn geometry<D>(&self, sizes: &Sizes<D>, batch: usize) -> Result<ConvGeometry, FusedError> {
        let rank = sizes.input.len();
        let plane = |name: &str, list: &[usize], default: usize| match (list.len(), rank) {
            (0, _) => Ok([default; 2]),
            (1, 1) => Ok([default, list[0]]),
            (2, 2) => Ok([list[0], list[1]]),
            _ => Err(FusedError(format!("the attribute {name} needs {rank} entries, got {list:?}"))),
        };
        ensure!(
            self.pads.is_empty() || self.pads.len() == 2 * rank,
            "pads needs {} entries: {:?}",
            2 * rank,
            self.pads
        );
        let (begin, end) = self.pads.split_at(self.pads.len() / 2);
        let params = ConvParams {
            group: self.group,
            stride: plane("strides", &self.strides, 1)?,
            pad_begin: plane("pads", begin, 0)?,
            pad_end: plane("pads", end, 0)?,
            dilation: plane("dilations", &self.dilations, 1)?,
        };
        let (input, kernel) = (plane("input_shape", &sizes.input, 1)?, plane("kernel_shape", &sizes.kernel, 1)?);
        Ok(ConvGeometry::new(batch, sizes.in_channels, sizes.out_channels, input, kernel, &params)?)
    }

    pub(super) fn output_shape<D: Extent>(&self, operands: &[&[D]]) -> Result<Vec<D>, FusedError> {
        let s = self.sizes(operands)?;
        let (head, tail) = match self.pass {
            Pass::Forward => ([s.batch, s.out_channels.into()], s.output),
            Pass::GradInput => ([s.batch, s.in_channels.into()], s.input),
            Pass::GradWeight => ([s.out_channels.into(), (s.in_channels / self.group).into()], s.kernel),
        };
        Ok(head.into_iter().chain(tail.into_iter().map(D::from)).collect())
    }

    pub(super) fn kernel(&self, operands: &[&[usize]]) -> Result<Kernel, FusedError> {
        let sizes = self.sizes(operands)?;
        Ok(Kernel::Conv(self.pass, self.geometry(&sizes, sizes.batch)?))
    }
}
