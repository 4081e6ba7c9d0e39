//! The fused convolutions of domain `ai.limbeck` as tract operators, computed by `limbeck-kernels`.
//!
//! | op | inputs | output |
//! |---|---|---|
//! | `FusedConv` | `x [n, c, s..]`, `w [m, c/group, k..]`, optional `b [m]` | `[n, m, o..]`, ONNX `Conv` |
//! | `ConvGradInput` | `w`, `gy [n, m, o..]` | gradient for `x`, whose extents are the attribute `input_shape` |
//! | `ConvGradWeight` | `x`, `gy` | gradient for `w`, whose extents are the attribute `kernel_shape` |
//!
//! Attributes are those of ONNX `Conv`: `strides`, `pads`, `dilations`, `group`, `kernel_shape`. All tensors are float32;
//! one or two spatial axes; only the batch may be symbolic.

use limbeck_kernels::{ConvGeometry, ConvParams, Parallelism, conv_forward, conv_grad_input, conv_grad_weight};
use tract_linalg::multithread::{Executor, current_tract_executor};
use tract_onnx::{
    model::{OnnxOpRegister, ParsingContext},
    pb::NodeProto,
    tract_hir::internal::*,
};

/// Domain of the fused operators.
pub(super) const DOMAIN: &str = "ai.limbeck";

/// Adds the fused operators to tract's table.
pub(super) fn register(table: &mut OnnxOpRegister) {
    table.insert("FusedConv", parse);
    table.insert("ConvGradInput", parse);
    table.insert("ConvGradWeight", parse);
}

/// Whether the type is one of this domain's.
pub(super) fn is_ours(op_type: &str) -> bool {
    Pass::of(op_type).is_some()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Pass {
    Forward,
    GradInput,
    GradWeight,
}

impl Pass {
    fn of(op_type: &str) -> Option<Pass> {
        match op_type {
            "FusedConv" => Some(Pass::Forward),
            "ConvGradInput" => Some(Pass::GradInput),
            "ConvGradWeight" => Some(Pass::GradWeight),
            _ => None,
        }
    }
}

/// One of the three passes with its attributes; an empty list means ONNX's default.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct FusedConv {
    pass: Pass,
    inputs: usize,
    group: usize,
    strides: Vec<usize>,
    pads: Vec<usize>,
    dilations: Vec<usize>,
    kernel_shape: Vec<usize>,
    input_shape: Vec<usize>,
}

fn parse(_: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let pass = Pass::of(&node.op_type).context("not a fused convolution")?;
    ensure!(node.domain == DOMAIN, "{} exists in domain {DOMAIN} only", node.op_type);
    let auto_pad = node.get_attr_opt::<String>("auto_pad")?;
    ensure!(auto_pad.is_none_or(|p| p == "NOTSET"), "auto_pad is not supported; write the pads out");
    let list = |name: &str| -> TractResult<Vec<usize>> { Ok(node.get_attr_opt_vec(name)?.unwrap_or_default()) };
    let op = FusedConv {
        pass,
        inputs: node.input.iter().filter(|name| !name.is_empty()).count(),
        group: node.get_attr_opt("group")?.unwrap_or(1),
        strides: list("strides")?,
        pads: list("pads")?,
        dilations: list("dilations")?,
        kernel_shape: list("kernel_shape")?,
        input_shape: list("input_shape")?,
    };
    let arities = if pass == Pass::Forward { 2..=3 } else { 2..=2 };
    ensure!(arities.contains(&op.inputs), "{} takes {arities:?} inputs, got {}", node.op_type, op.inputs);
    Ok((expand(op), vec![]))
}

/// The sizes of one call, as far as the shapes tell them; the batch may still be symbolic.
struct Sizes {
    batch: TDim,
    in_channels: usize,
    out_channels: usize,
    /// Spatial extents as the file has them, one or two.
    input: Vec<usize>,
    kernel: Vec<usize>,
    output: Vec<usize>,
}

fn fixed(dims: &[TDim]) -> TractResult<Vec<usize>> {
    dims.iter().map(|d| Ok(d.to_usize()?)).collect()
}

impl FusedConv {
    /// Derives all sizes from the shapes of the first two inputs and checks that they fit together.
    fn sizes(&self, first: &[TDim], second: &[TDim]) -> TractResult<Sizes> {
        let rank = first.len();
        ensure!(rank == second.len() && (3..=4).contains(&rank), "shapes {first:?} and {second:?} do not fit");
        let listed = |name: &str, list: &[usize]| {
            ensure!(list.len() == rank - 2, "the attribute {name} needs {} entries, got {list:?}", rank - 2);
            Ok(list.to_vec())
        };
        let (a, b) = (fixed(&first[1..])?, fixed(&second[1..])?);
        let sizes = match self.pass {
            Pass::Forward | Pass::GradInput => {
                let (weight, w) = if self.pass == Pass::Forward { (second, &b) } else { (first, &a) };
                let out_channels = weight[0].to_usize()?;
                let in_channels = w[0].checked_mul(self.group).context("channels overflow")?;
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
                ensure!(first[0] == second[0], "x has batch {}, gy {}", first[0], second[0]);
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
    fn geometry(&self, sizes: &Sizes, batch: usize) -> TractResult<ConvGeometry> {
        let rank = sizes.input.len();
        let plane = |name: &str, list: &[usize], default: usize| match (list.len(), rank) {
            (0, _) => Ok([default; 2]),
            (1, 1) => Ok([default, list[0]]),
            (2, 2) => Ok([list[0], list[1]]),
            _ => bail!("the attribute {name} needs {rank} entries, got {list:?}"),
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

    fn output_shape(&self, first: &[TDim], second: &[TDim]) -> TractResult<TVec<TDim>> {
        let s = self.sizes(first, second)?;
        let (head, tail) = match self.pass {
            Pass::Forward => ([s.batch, s.out_channels.to_dim()], s.output),
            Pass::GradInput => ([s.batch, s.in_channels.to_dim()], s.input),
            Pass::GradWeight => ([s.out_channels.to_dim(), (s.in_channels / self.group).to_dim()], s.kernel),
        };
        Ok(head.into_iter().chain(tail.iter().map(|n| n.to_dim())).collect())
    }
}

impl Expansion for FusedConv {
    fn name(&self) -> StaticName {
        format!("{:?}Conv", self.pass).into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, self.inputs)?;
        check_output_arity(outputs, 1)?;
        for value in inputs.iter().chain(outputs) {
            s.equals(&value.datum_type, f32::datum_type())?;
        }
        s.given_2(&inputs[0].shape, &inputs[1].shape, move |s, first, second| {
            s.equals(&outputs[0].shape, self.output_shape(&first, &second)?)
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for FusedConv {
    fn name(&self) -> StaticName {
        format!("{:?}Conv", self.pass).into()
    }

    op_as_typed_op!();
}

impl EvalOp for FusedConv {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let dims = |t: &TValue| t.shape().iter().map(|d| d.to_dim()).collect::<TVec<TDim>>();
        let (first, second) = (dims(&inputs[0]), dims(&inputs[1]));
        let sizes = self.sizes(&first, &second)?;
        let geometry = self.geometry(&sizes, sizes.batch.to_usize()?)?;
        let shape = fixed(&self.output_shape(&first, &second)?)?;
        let views = inputs.iter().map(|t| t.try_as_plain_ram()).collect::<TractResult<TVec<_>>>()?;
        let slices = views.iter().map(|v| v.as_slice::<f32>()).collect::<TractResult<TVec<_>>>()?;
        let mut result = Tensor::zero::<f32>(&shape)?;
        let mut target = result.try_as_plain_ram_mut()?;
        let target = target.as_slice_mut::<f32>()?;
        let mut compute = |parallel: Parallelism| match self.pass {
            Pass::Forward => conv_forward(&geometry, slices[0], slices[1], slices.get(2).copied(), target, parallel),
            Pass::GradInput => conv_grad_input(&geometry, slices[0], slices[1], target, parallel),
            Pass::GradWeight => conv_grad_weight(&geometry, slices[0], slices[1], target, parallel),
        };
        match current_tract_executor() {
            Executor::MultiThread(pool) => {
                let parallel = Parallelism::new(pool.current_num_threads());
                pool.install(|| compute(parallel))
            }
            _ => compute(Parallelism::Serial),
        }?;
        Ok(tvec!(result.into_tvalue()))
    }
}

impl TypedOp for FusedConv {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.iter().all(|fact| fact.datum_type == f32::datum_type()), "all tensors must be float32");
        let shape = self.output_shape(&inputs[0].shape.to_tvec(), &inputs[1].shape.to_tvec())?;
        Ok(tvec!(f32::fact(shape)))
    }

    as_op!();
}
