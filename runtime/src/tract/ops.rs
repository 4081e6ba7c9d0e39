//! Limbeck's own operators as tract operators. Only their batch may be symbolic.

use super::pool;
use crate::fused::{Attributes, DOMAIN, Elements, Extent, FusedError, FusedOp, OPS, Plan};
use limbeck_kernels::Parallelism;
use tract_linalg::multithread::{Executor, current_tract_executor};
use tract_onnx::{
    model::{OnnxOpRegister, ParsingContext},
    pb::NodeProto,
    tract_hir::internal::*,
};

/// Adds the operators to tract's table.
pub(super) fn register(table: &mut OnnxOpRegister) {
    OPS.iter().for_each(|op_type| table.insert(op_type, parse));
}

/// An operator with its number of operands and results.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Fused {
    op: FusedOp,
    operands: usize,
    results: usize,
}

impl Attributes for NodeProto {
    fn int(&self, name: &str) -> Result<Option<i64>, FusedError> {
        self.get_attr_opt(name).map_err(FusedError::new)
    }

    fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, FusedError> {
        self.get_attr_opt_vec(name).map_err(FusedError::new)
    }

    fn string(&self, name: &str) -> Result<Option<String>, FusedError> {
        self.get_attr_opt(name).map_err(FusedError::new)
    }
}

impl Extent for TDim {
    fn known(&self) -> Option<usize> {
        self.to_usize().ok()
    }
}

fn parse(_: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    ensure!(node.domain == DOMAIN, "{} exists in domain {DOMAIN} only", node.op_type);
    let present = |names: &[String]| names.iter().filter(|name| !name.is_empty()).count();
    let (operands, results) = (present(&node.input), present(&node.output));
    let op = FusedOp::parse(&node.op_type, operands, results, node)?;
    Ok((expand(Fused { op, operands, results }), vec![]))
}

impl Fused {
    fn shapes(&self, operands: &[&[TDim]]) -> TractResult<Vec<Vec<TDim>>> {
        Ok(self.op.output_shapes(operands)?)
    }

    /// Pairs of an operand and a result that may lie in its memory, in the order in which [`EvalOp::eval`] takes them.
    pub(super) fn in_place(&self, operands: &[&TypedFact]) -> TractResult<Vec<(usize, usize)>> {
        let shapes: Option<Vec<&[usize]>> = operands.iter().map(|fact| fact.shape.as_concrete()).collect();
        let Some(shapes) = shapes else { return Ok(vec![]) };
        let plan = self.op.plan(&shapes)?;
        let floats = operands.iter().enumerate().filter(|(_, fact)| fact.datum_type == f32::datum_type());
        Ok(floats.flat_map(|(i, _)| plan.in_place(i).iter().map(move |&j| (i, j))).collect())
    }
}

/// Writes the results with the threads of tract's plan that runs.
fn compute(plan: &Plan, operands: &[Elements<'_>], results: &mut [Tensor]) -> TractResult<()> {
    let mut targets = results.iter_mut().map(|t| t.try_as_plain_ram_mut()).collect::<TractResult<TVec<_>>>()?;
    let mut slices = targets.iter_mut().map(|t| t.as_slice_mut::<f32>()).collect::<TractResult<TVec<_>>>()?;
    match current_tract_executor() {
        Executor::MultiThread(pool) => {
            let threads = plan.worth_threads(pool.current_num_threads());
            pool.install(|| plan.run(operands, &mut slices, Parallelism::new(threads)))
        }
        _ => plan.run(operands, &mut slices, Parallelism::Serial),
    }?;
    Ok(())
}

impl Expansion for Fused {
    fn name(&self) -> StaticName {
        self.op.op_type().into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.results)
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, self.operands)?;
        check_output_arity(outputs, self.results)?;
        for value in outputs {
            s.equals(&value.datum_type, f32::datum_type())?;
        }
        let shapes = inputs.iter().map(|input| &input.shape).collect::<Vec<_>>();
        s.given_all(shapes, move |s, shapes| {
            let operands: Vec<&[TDim]> = shapes.iter().map(|shape| &shape[..]).collect();
            for (value, shape) in outputs.iter().zip(self.shapes(&operands)?) {
                s.equals(&value.shape, shape.into_iter().collect::<TVec<TDim>>())?;
            }
            Ok(())
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Fused {
    fn name(&self) -> StaticName {
        self.op.op_type().into()
    }

    op_as_typed_op!();
}

impl EvalOp for Fused {
    op_out_of_plan!();

    fn eval(&self, cx: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let plan = self.op.plan(&inputs.iter().map(|t| t.shape()).collect::<TVec<_>>())?;
        let wanted = plan.output_shapes();
        // Operands that nothing else needs lend their memory to results.
        let mut results: Vec<Option<Tensor>> = vec![None; wanted.len()];
        let mut lent = vec![None; inputs.len()];
        for i in 0..inputs.len() {
            if inputs[i].datum_type() != f32::datum_type() || !inputs[i].is_exclusive() {
                continue;
            }
            if let Some(j) = plan.in_place(i).iter().copied().find(|&j| results[j].is_none()) {
                let tensor = std::mem::replace(&mut inputs[i], Tensor::default().into_tvalue()).into_tensor();
                results[j] = Some(tensor.into_shape(&wanted[j])?);
                lent[i] = Some(j);
            }
        }
        let filled = results.into_iter().zip(wanted).enumerate();
        let filled = filled.map(|(j, (r, shape))| r.map_or_else(|| pool::tensor(shape, cx.node_id, j), Ok));
        let mut results = filled.collect::<TractResult<Vec<_>>>()?;
        let operands = (inputs.iter().zip(lent))
            .map(|(value, lent)| lent.map_or_else(|| elements(value), |j| Ok(Elements::Result(j))))
            .collect::<TractResult<Vec<_>>>()?;
        compute(&plan, &operands, &mut results)?;
        drop(operands);
        pool::keep(inputs, cx.node_id);
        Ok(results.into_iter().map(|result| result.into_tvalue()).collect())
    }
}

fn elements(value: &TValue) -> TractResult<Elements<'_>> {
    Ok(if value.datum_type() == f32::datum_type() {
        Elements::F32(value.try_as_plain_ram()?.as_slice::<f32>()?)
    } else if value.datum_type() == bool::datum_type() {
        Elements::Bool(value.as_bytes())
    } else {
        bail!("takes float32 and bool tensors, got {:?}", value.datum_type())
    })
}

impl TypedOp for Fused {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let typed = |fact: &&TypedFact| [f32::datum_type(), bool::datum_type()].contains(&fact.datum_type);
        ensure!(inputs.iter().all(typed), "all tensors must be float32 or bool");
        let shapes: TVec<TVec<TDim>> = inputs.iter().map(|fact| fact.shape.to_tvec()).collect();
        let shapes: TVec<&[TDim]> = shapes.iter().map(|shape| &shape[..]).collect();
        Ok(self.shapes(&shapes)?.into_iter().map(f32::fact).collect())
    }

    as_op!();
}
