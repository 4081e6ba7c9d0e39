//! Operators that hold graphs: If, Loop, Scan. Their bodies are typed from what is known outside; the types that a file
//! declares inside are not believed.

use super::support::{extents, int_attr, ints_attr, one_int};
use super::util::{Types, Values};
use super::{EvalCx, InferCx, OpSpec, normalize_axis, op};
use crate::bodies::trip_count;
use crate::infer::SMALL;
use crate::types::{Dim, TensorType};
use crate::{Array, ArrayData, Attr, Graph, Node, OpError, op_bail};
use limbeck_tensor::DType;
use ndarray::{ArrayD, ArrayViewD, Axis};

pub(super) const OPS: &[OpSpec] =
    &[op("If", infer_if, eval_if), op("Loop", infer_looped, eval_loop), op("Scan", infer_looped, eval_scan)];

/// Iterations after which the reference evaluator gives a Loop up.
const MOST_ITERATIONS: i64 = 100_000;

fn body<'a>(node: &'a Node, name: &str) -> Result<&'a Graph, OpError> {
    match node.attrs.get(name) {
        Some(Attr::Graph(graph)) => Ok(graph),
        _ => op_bail!("attribute '{name}' must be a graph"),
    }
}

/// Bodies within bodies that inference looks into: it takes several turns for each.
const DEEPEST: usize = 8;

/// How many levels of bodies a graph has, itself included.
fn levels(graph: &Graph) -> usize {
    1 + graph.nodes().flat_map(|(_, n)| n.subgraphs()).map(levels).max().unwrap_or(0)
}

/// Types of values; `None` where one is not a tensor or depends on an unknown operator.
type Partial = Vec<Option<TensorType>>;

/// Types of a body's outputs from those of its inputs.
fn body_types(cx: &InferCx, body: &Graph, inputs: Partial) -> Result<Partial, OpError> {
    if levels(body) > DEEPEST {
        return Ok(vec![None; body.outputs.len()]);
    }
    let body = typed(cx, body, inputs)?;
    Ok(body.outputs.iter().map(|&id| body.ty(id).cloned()).collect())
}

/// A body with the types of its values, from those of its inputs and of what it captures. Captured constants are with it.
fn typed(cx: &InferCx, body: &Graph, inputs: Partial) -> Result<Graph, OpError> {
    if inputs.len() != body.inputs.len() {
        op_bail!("graph '{}' has {} inputs, {} are given", body.name, body.inputs.len(), inputs.len());
    }
    let mut body = body.clone();
    for id in body.value_ids() {
        if body.initializer(id).is_none()
            && let Some(TensorType { dtype, .. }) = body.ty(id).cloned()
        {
            body.set_ty(id, Some(TensorType { dtype, dims: None }));
        }
    }
    for (id, ty) in body.inputs.clone().into_iter().zip(inputs) {
        body.set_ty(id, ty);
    }
    for capture in body.captures.clone() {
        body.set_ty(capture.inner, cx.outer.ty(capture.outer).cloned());
        if let Some(constant) = cx.outer.settled(capture.outer).filter(|t| t.len() <= SMALL) {
            body.set_initializer(capture.inner, constant);
            if cx.outer.is_literal(capture.outer) {
                body.mark_literal(capture.inner);
            }
        }
    }
    body.infer_types()?;
    Ok(body)
}

/// The body of a Loop or Scan with the types that its values have in every iteration, what is computed of shapes folded.
/// A captured constant is stored with the capture.
pub(crate) fn typed_body(cx: &InferCx) -> Result<Graph, OpError> {
    let form = Looped::of(cx.node)?;
    let body = body(cx.node, "body")?;
    if levels(body) > DEEPEST {
        op_bail!("bodies lie in bodies, more than {DEEPEST} deep");
    }
    let mut body = typed(cx, body, iterated(cx, &form)?.inputs)?;
    body.fold_shapes()?;
    Ok(body)
}

/// The types up to the first that is not known.
fn known_types(types: Partial) -> Vec<TensorType> {
    types.into_iter().map_while(|ty| ty).collect()
}

/// What two values of one dtype have in common; `None` when one is not known.
fn common(a: Option<&TensorType>, b: Option<&TensorType>) -> Result<Option<TensorType>, OpError> {
    let (Some(a), Some(b)) = (a, b) else { return Ok(None) };
    if a.dtype != b.dtype {
        op_bail!("a result is {a} or {b}; one dtype is needed");
    }
    let dims = match (&a.dims, &b.dims) {
        (Some(x), Some(y)) if x.len() == y.len() => {
            let same = |(x, y): (&Dim, &Dim)| if x == y { x.clone() } else { Dim::Unknown };
            Some(x.iter().zip(y).map(same).collect())
        }
        _ => None,
    };
    Ok(Some(TensorType { dtype: a.dtype, dims }))
}

fn infer_if(cx: &InferCx) -> Types {
    if cx.dtype(0)? != DType::Bool {
        op_bail!("the condition must be bool, it is {}", cx.ty(0)?);
    }
    let branch = |name: &str| body_types(cx, body(cx.node, name)?, vec![]);
    let taken = cx.constants.first().cloned().flatten().and_then(|t| t.to_f64_vec().ok());
    let types = match taken.as_deref() {
        Some([0.0]) => branch("else_branch")?,
        Some([_]) => branch("then_branch")?,
        // A branch with contradictory types is one that is never taken, such as the Squeeze of an axis of 5.
        _ => match (branch("then_branch"), branch("else_branch")) {
            (Ok(a), Ok(b)) if a.len() == b.len() => {
                a.iter().zip(&b).map(|(a, b)| common(a.as_ref(), b.as_ref())).collect::<Result<_, _>>()?
            }
            (Ok(a), Ok(b)) => op_bail!("one branch has {} results, the other {}", a.len(), b.len()),
            (Ok(types), Err(_)) | (Err(_), Ok(types)) => types,
            (Err(e), Err(_)) => return Err(e),
        },
    };
    Ok(known_types(types))
}

fn eval_if(cx: &EvalCx) -> Values {
    let taken = if one_int(cx.array(0)?, "the condition")? != 0 { "then_branch" } else { "else_branch" };
    Ok(body(cx.node, taken)?.call(vec![], cx.outer)?)
}

/// Types of carried values that hold for every iteration, and those of the body's other outputs. `run` gives the types
/// of both after an iteration from those of the carried values before it.
fn settled(
    mut carried: Partial,
    run: impl Fn(&[Option<TensorType>]) -> Result<Partial, OpError>,
) -> Result<(Partial, Partial), OpError> {
    for turn in 0..5 {
        let mut next = run(&carried)?;
        if next.len() < carried.len() {
            op_bail!("the body has {} results for {} carried values", next.len(), carried.len());
        }
        let others = next.split_off(carried.len());
        let both = carried.iter().zip(&next).map(|(a, b)| common(a.as_ref(), b.as_ref()));
        let both = both.collect::<Result<Vec<_>, _>>()?;
        if both == carried {
            return Ok((carried, others));
        }
        // Each turn knows less than the one before, the fourth no shapes at all.
        let vague = |ty: TensorType| TensorType { dims: ty.dims.filter(|_| turn < 2), ..ty };
        carried = both.into_iter().map(|ty| ty.map(vague)).collect();
    }
    op_bail!("the types of the carried values do not settle")
}

/// The type of values of this type stacked along a new axis.
fn stacked(ty: TensorType, axis: i64, length: Dim) -> Result<TensorType, OpError> {
    let TensorType { dtype, dims: Some(mut dims) } = ty else { return Ok(ty) };
    dims.insert(normalize_axis(axis, dims.len() + 1)?, length);
    Ok(TensorType::with_dims(dtype, dims))
}

/// Where the slices of a tensor lie that a Loop or Scan reads or writes one of in each iteration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slices {
    /// The axis; negative from the end.
    pub axis: i64,
    /// Whether the first iteration has the last slice.
    pub backwards: bool,
}

/// How a Loop or Scan runs its body: what is carried from iteration to iteration, what is read and written in slices.
///
/// The body takes, and so does the node, [`Looped::first`] values of other kinds, the carried ones, and (the node: the
/// tensors of) the slices that it reads. The body gives a condition (Loop), the carried values and the slices that it writes,
/// the node the carried values and the tensors that these slices make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looped {
    /// True for Loop: its body also takes the iteration's number and a condition, and gives a condition.
    pub counts: bool,
    /// How many values are carried.
    pub carried: usize,
    /// What is read in slices.
    pub read: Vec<Slices>,
    /// What is written in slices.
    pub written: Vec<Slices>,
}

impl Looped {
    /// What a Loop or Scan node states; an error says which attribute or number does not fit.
    pub fn of(node: &Node) -> Result<Looped, OpError> {
        let counts = node.is("", "Loop");
        if !counts && !node.is("", "Scan") {
            op_bail!("{} runs no body several times", node.full_op());
        }
        let body = body(node, "body")?;
        let scanned = if counts { 0 } else { extents(&[int_attr(node, "num_scan_inputs", 0)?], "num_scan_inputs")?[0] };
        let others = scanned + if counts { 2 } else { 0 };
        let carried = match node.inputs.len().checked_sub(others) {
            Some(carried) if counts || scanned > 0 => carried,
            None if counts => 0,
            _ => op_bail!("num_scan_inputs {scanned} of {} inputs", node.inputs.len()),
        };
        let Some(written) = body.outputs.len().checked_sub(usize::from(counts) + carried) else {
            op_bail!("the body has {} results for {carried} carried values", body.outputs.len());
        };
        let list = |name: String, n: usize| match ints_attr(node, &name)? {
            None => Ok(vec![0; n]),
            Some(list) if list.len() == n => Ok(list.to_vec()),
            Some(list) => op_bail!("attribute '{name}' {list:?} must have {n} entries"),
        };
        let slices = |kind: &str, n: usize| -> Result<Vec<Slices>, OpError> {
            let axes = list(format!("scan_{kind}_axes"), n)?;
            let directions = list(format!("scan_{kind}_directions"), n)?;
            let pair = |(axis, direction)| Slices { axis, backwards: direction != 0 };
            Ok(axes.into_iter().zip(directions).map(pair).collect())
        };
        Ok(Looped { counts, carried, read: slices("input", scanned)?, written: slices("output", written)? })
    }

    /// Place of the first carried value among the operands of the node and the inputs of the body.
    pub fn first(&self) -> usize {
        if self.counts { 2 } else { 0 }
    }

    /// Place of the first carried value among the outputs of the body.
    pub fn given(&self) -> usize {
        usize::from(self.counts)
    }
}

/// Types that hold for every iteration.
struct Iterated {
    /// Of the body's inputs.
    inputs: Partial,
    /// Of the carried values.
    carried: Partial,
    /// Of the slices that the body writes.
    written: Partial,
    /// How many there are.
    length: Dim,
}

fn iterated(cx: &InferCx, form: &Looped) -> Result<Iterated, OpError> {
    let body = body(cx.node, "body")?;
    let scalar = |dtype| Some(TensorType::new(dtype, &[]));
    let counters = if form.counts { vec![scalar(DType::I64), scalar(DType::Bool)] } else { vec![] };
    let mut length = trip_count(cx.outer, cx.node).map_or(Dim::Unknown, Dim::Known);
    let mut slices = vec![];
    for (i, read) in form.read.iter().enumerate() {
        let TensorType { dtype, dims } = cx.ty(form.first() + form.carried + i)?.clone();
        let dims = match dims {
            Some(mut dims) => {
                let along = dims.remove(normalize_axis(read.axis, dims.len())?);
                length = super::support::unify(&length, &along, "scanned axes")?;
                Some(dims)
            }
            None => None,
        };
        slices.push(Some(TensorType { dtype, dims }));
    }
    let inputs = |carried: &[Option<TensorType>]| [&counters[..], carried, &slices].concat();
    let carried = (0..form.carried).map(|i| cx.inputs[form.first() + i].cloned()).collect();
    let (carried, written) = settled(carried, |carried| {
        let mut types = body_types(cx, body, inputs(carried))?;
        if types.len() < form.given() {
            op_bail!("the body must say whether to go on");
        }
        Ok(types.split_off(form.given()))
    })?;
    Ok(Iterated { inputs: inputs(&carried), carried, written, length })
}

fn infer_looped(cx: &InferCx) -> Types {
    let form = Looped::of(cx.node)?;
    let Iterated { carried, written, length, .. } = iterated(cx, &form)?;
    let written = written.into_iter().zip(&form.written);
    let written = written.map(|(ty, s)| ty.map(|ty| stacked(ty, s.axis, length.clone())).transpose());
    Ok(known_types([carried, written.collect::<Result<Vec<_>, _>>()?].concat()))
}

fn eval_loop(cx: &EvalCx) -> Values {
    let body = body(cx.node, "body")?;
    let most = cx.opt(0).map(|m| one_int(m, "the trip count")).transpose()?;
    let mut go = cx.opt(1).map(|c| one_int(c, "the condition")).transpose()?.unwrap_or(1) != 0;
    let mut carried = (2..cx.node.inputs.len()).map(|i| cx.array(i).cloned()).collect::<Result<Vec<_>, _>>()?;
    let mut scanned: Vec<Vec<Array>> = vec![vec![]; body.outputs.len().saturating_sub(1 + carried.len())];
    let mut i = 0;
    while go && most.is_none_or(|most| i < most) {
        if i == MOST_ITERATIONS {
            op_bail!("the loop does not end within {MOST_ITERATIONS} iterations; that is all the evaluator does");
        }
        let scalar = |dtype, v| Array::int(dtype, ArrayD::from_elem(vec![], v));
        let inputs = [vec![scalar(DType::I64, i), scalar(DType::Bool, 1)], carried].concat();
        let mut results = body.call(inputs, cx.outer)?.into_iter();
        let Some(condition) = results.next() else { op_bail!("the body must say whether to go on") };
        go = one_int(&condition, "the body's condition")? != 0;
        carried = results.by_ref().take(cx.node.inputs.len().saturating_sub(2)).collect();
        scanned.iter_mut().zip(results).for_each(|(all, result)| all.push(result));
        i += 1;
    }
    let outputs = body.outputs.iter().skip(1 + carried.len());
    let scanned = scanned.into_iter().zip(outputs).map(|(all, &id)| stack(&all, 0, body.ty(id)));
    let scanned = scanned.collect::<Result<Vec<_>, _>>()?;
    Ok([carried, scanned].concat())
}

/// Arrays along a new axis; none at all have the shape that their type states.
fn stack(arrays: &[Array], axis: i64, ty: Option<&TensorType>) -> Result<Array, OpError> {
    fn of<T: Clone>(parts: Vec<ArrayViewD<T>>, axis: usize) -> Result<ArrayD<T>, OpError> {
        Ok(ndarray::stack(Axis(axis), &parts)?)
    }
    let Some(first) = arrays.first() else {
        let Some((ty, mut shape)) = ty.and_then(|ty| Some((ty, ty.concrete()?))) else {
            op_bail!("nothing was computed, and the body does not state of which type that is");
        };
        shape.insert(normalize_axis(axis, shape.len() + 1)?, 0);
        let none = ArrayD::zeros(shape);
        return Ok(match ty.dtype.is_float() {
            true => Array::float(ty.dtype, none),
            false => Array::int(ty.dtype, none.mapv(|_: f64| 0)),
        });
    };
    let axis = normalize_axis(axis, first.shape().len() + 1)?;
    Ok(match &first.data {
        ArrayData::Float(_) => {
            let parts = arrays.iter().map(|a| Ok(a.f()?.view())).collect::<Result<_, OpError>>()?;
            Array::float(first.dtype, of(parts, axis)?)
        }
        ArrayData::Int(_) => {
            let parts = arrays.iter().map(|a| Ok(a.i()?.view())).collect::<Result<_, OpError>>()?;
            Array::int(first.dtype, of(parts, axis)?)
        }
    })
}

/// Slice `i` along an axis that is counted from the front.
fn slice(a: &Array, axis: usize, i: usize) -> Array {
    match &a.data {
        ArrayData::Float(data) => Array::float(a.dtype, data.index_axis(Axis(axis), i).to_owned()),
        ArrayData::Int(data) => Array::int(a.dtype, data.index_axis(Axis(axis), i).to_owned()),
    }
}

fn eval_scan(cx: &EvalCx) -> Values {
    let (scan, body) = (Looped::of(cx.node)?, body(cx.node, "body")?);
    let mut carried = (0..scan.carried).map(|i| cx.array(i).cloned()).collect::<Result<Vec<_>, _>>()?;
    let mut sources = vec![];
    for (i, &Slices { axis, backwards }) in scan.read.iter().enumerate() {
        let a = cx.array(scan.carried + i)?;
        sources.push((a, normalize_axis(axis, a.shape().len())?, backwards));
    }
    let length = sources.first().map_or(0, |(a, axis, _)| a.shape()[*axis]);
    if sources.iter().any(|(a, axis, _)| a.shape()[*axis] != length) {
        op_bail!("the scanned axes differ in length");
    }
    let mut scanned: Vec<Vec<Array>> = vec![vec![]; scan.written.len()];
    for i in 0..length {
        let slices = sources.iter().map(|&(a, axis, back)| slice(a, axis, if back { length - 1 - i } else { i }));
        let mut results = body.call(carried.into_iter().chain(slices).collect(), cx.outer)?.into_iter();
        carried = results.by_ref().take(scan.carried).collect();
        scanned.iter_mut().zip(results).for_each(|(all, result)| all.push(result));
    }
    let mut outputs = carried;
    for ((k, mut all), &Slices { axis, backwards }) in scanned.into_iter().enumerate().zip(&scan.written) {
        if backwards {
            all.reverse();
        }
        outputs.push(stack(&all, axis, body.ty(body.outputs[scan.carried + k]))?);
    }
    Ok(outputs)
}
