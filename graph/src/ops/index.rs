//! Selecting and placing elements by index: gathers, scatters, slices, padding, one-hot.

use super::support::{
    build, check_rank, const_number, extent, extents, filled, int_attr, ints, ints_attr, known, one_f64, remap, show,
    str_attr, typed_as, unify,
};
use super::util::{Types, Values, max, min};
use super::{EvalCx, InferCx, OpSpec, normalize_axis, op, own};
use crate::types::Dim;
use crate::{Array, ArrayData, Node, OpError, op_bail};
use limbeck_tensor::DType;
use ndarray::{ArrayD, Dimension};

pub(super) const OPS: &[OpSpec] = &[
    op("Gather", infer_gather, eval_gather),
    op("GatherElements", infer_gather_elements, eval_gather_elements),
    op("GatherND", infer_gather_nd, eval_gather_nd),
    op("ScatterElements", infer_scatter_elements, eval_scatter_elements),
    op("ScatterND", infer_scatter_nd, eval_scatter_nd),
    op("OneHot", infer_one_hot, eval_one_hot),
    op("NonZero", infer_nonzero, eval_nonzero),
    op("ReverseSequence", infer_reverse_sequence, eval_reverse_sequence),
    own("GatherGrad", infer_gather_grad, eval_gather_grad),
];

/// `index` counted from the front of `n` elements.
fn place(index: i64, n: usize) -> Result<usize, OpError> {
    let at = if index < 0 { index.checked_add(n as i64) } else { Some(index) };
    match at.and_then(|i| usize::try_from(i).ok()) {
        Some(i) if i < n => Ok(i),
        _ => op_bail!("index {index} is outside {n} elements"),
    }
}

/// The integer at an index that may lie outside.
fn at(a: &ArrayD<i64>, index: &[usize]) -> Result<i64, OpError> {
    a.get(index).copied().ok_or_else(|| OpError(format!("index {index:?} is outside the shape {:?}", a.shape())))
}

/// An error unless input `i` holds 32- or 64-bit integers.
fn check_index(cx: &InferCx, i: usize) -> Result<(), OpError> {
    match cx.dtype(i)? {
        DType::I32 | DType::I64 => Ok(()),
        other => op_bail!("indices (input {i}) must be int32 or int64, they are {other}"),
    }
}

fn infer_gather(cx: &InferCx) -> Types {
    check_index(cx, 1)?;
    let dims = match (cx.dims(0)?, cx.dims(1)?) {
        (Some(x), Some(index)) => {
            let axis = normalize_axis(int_attr(cx.node, "axis", 0)?, x.len())?;
            Some([&x[..axis], index, &x[axis + 1..]].concat())
        }
        _ => None,
    };
    Ok(typed_as(cx.dtype(0)?, dims))
}

fn eval_gather(cx: &EvalCx) -> Values {
    let (x, index) = (cx.array(0)?, cx.array(1)?.i()?);
    let axis = normalize_axis(int_attr(cx.node, "axis", 0)?, x.shape().len())?;
    let (rank, n) = (index.ndim(), x.shape()[axis]);
    let shape = [&x.shape()[..axis], index.shape(), &x.shape()[axis + 1..]].concat();
    let source = |ix: &[usize]| {
        let (before, rest) = ix.split_at(axis);
        let (chosen, after) = rest.split_at(rank);
        Ok(Some([before, &[place(at(index, chosen)?, n)?], after].concat()))
    };
    Ok(vec![remap(x, &shape, None, source)?])
}

fn infer_gather_grad(cx: &InferCx) -> Types {
    check_index(cx, 0)?;
    Ok(typed_as(cx.dtype(1)?, Some(known(&input_shape(cx.node)?))))
}

fn input_shape(node: &Node) -> Result<Vec<usize>, OpError> {
    let Some(shape) = ints_attr(node, "input_shape")? else { op_bail!("attribute 'input_shape' is missing") };
    extents(shape, "input_shape")
}

fn eval_gather_grad(cx: &EvalCx) -> Values {
    let (index, gy, shape) = (cx.array(0)?.i()?, cx.array(1)?, input_shape(cx.node)?);
    let axis = normalize_axis(int_attr(cx.node, "axis", 0)?, shape.len())?;
    let expected = [&shape[..axis], index.shape(), &shape[axis + 1..]].concat();
    if gy.shape() != expected {
        op_bail!("gradient {:?} is not of the output's shape {expected:?}", gy.shape());
    }
    let mut gx = filled(&shape, 0.0)?;
    for (ix, g) in gy.f()?.indexed_iter() {
        let (before, rest) = ix.slice().split_at(axis);
        let (chosen, after) = rest.split_at(index.ndim());
        gx[&[before, &[place(at(index, chosen)?, shape[axis])?], after].concat()[..]] += g;
    }
    Ok(vec![Array::float(gy.dtype, gx)])
}

fn infer_gather_elements(cx: &InferCx) -> Types {
    check_index(cx, 1)?;
    if let (Some(x), Some(index)) = (cx.dims(0)?, cx.dims(1)?) {
        normalize_axis(int_attr(cx.node, "axis", 0)?, x.len())?;
        check_rank(index, x.len(), "the index tensor")?;
    }
    Ok(typed_as(cx.dtype(0)?, cx.dims(1)?.map(<[Dim]>::to_vec)))
}

fn eval_gather_elements(cx: &EvalCx) -> Values {
    let (x, index) = (cx.array(0)?, cx.array(1)?.i()?);
    let axis = normalize_axis(int_attr(cx.node, "axis", 0)?, x.shape().len())?;
    check_rank(&known(index.shape()), x.shape().len(), "the index tensor")?;
    let source = |ix: &[usize]| {
        let mut from = ix.to_vec();
        from[axis] = place(at(index, ix)?, x.shape()[axis])?;
        Ok(Some(from))
    };
    Ok(vec![remap(x, index.shape(), None, source)?])
}

/// Dims of GatherND of `x` at `index`, whose last extent is `depth`.
fn gather_nd_dims(node: &Node, x: &[Dim], index: &[Dim], depth: usize) -> Result<(usize, Vec<Dim>), OpError> {
    let batch = extent(int_attr(node, "batch_dims", 0)?, "batch_dims")?;
    if batch >= index.len() || depth == 0 || batch.saturating_add(depth) > x.len() {
        op_bail!("data {}, indices {} and batch_dims {batch} do not fit", show(x), show(index));
    }
    let mut dims = index[..index.len() - 1].to_vec();
    for d in 0..batch {
        dims[d] = unify(&x[d], &index[d], "batch dims of data and indices")?;
    }
    dims.extend_from_slice(&x[batch + depth..]);
    Ok((batch, dims))
}

fn infer_gather_nd(cx: &InferCx) -> Types {
    check_index(cx, 1)?;
    let dims = match (cx.dims(0)?, cx.dims(1)?) {
        (Some(x), Some(index)) => match index.last() {
            None => op_bail!("indices must have at least 1 dim"),
            Some(depth) => depth.known().map(|d| gather_nd_dims(cx.node, x, index, d)).transpose()?.map(|(_, d)| d),
        },
        _ => None,
    };
    Ok(typed_as(cx.dtype(0)?, dims))
}

fn eval_gather_nd(cx: &EvalCx) -> Values {
    let (x, index) = (cx.array(0)?, cx.array(1)?.i()?);
    let Some(&depth) = index.shape().last() else { op_bail!("indices must have at least 1 dim") };
    let (batch, dims) = gather_nd_dims(cx.node, &known(x.shape()), &known(index.shape()), depth)?;
    let shape: Vec<usize> = dims.iter().filter_map(Dim::known).collect();
    let lead = index.ndim() - 1;
    let source = |ix: &[usize]| {
        let mut from = ix[..batch].to_vec();
        from.extend(tuple(index, &ix[..lead], &x.shape()[batch..])?);
        from.extend_from_slice(&ix[lead..]);
        Ok(Some(from))
    };
    Ok(vec![remap(x, &shape, None, source)?])
}

/// The index tuple stored at `lead`, each entry counted from the front of an extent of `shape`.
fn tuple(index: &ArrayD<i64>, lead: &[usize], shape: &[usize]) -> Result<Vec<usize>, OpError> {
    let depth = index.shape().last().copied().unwrap_or(0);
    (0..depth).map(|k| place(at(index, &[lead, &[k]].concat())?, shape[k])).collect()
}

fn same_type(cx: &InferCx, data: usize, other: usize) -> Result<(), OpError> {
    if cx.dtype(data)? != cx.dtype(other)? {
        op_bail!("inputs {data} and {other} must have one dtype: {} and {}", cx.ty(data)?, cx.ty(other)?);
    }
    Ok(())
}

/// `x` with `updates` put at the positions that `target` gives for their indices, in row-major order.
pub(super) fn scatter(
    node: &Node,
    x: &Array,
    updates: &Array,
    target: impl Fn(&[usize]) -> Result<Vec<usize>, OpError>,
) -> Result<Array, OpError> {
    fn put<T: Copy>(
        x: &ArrayD<T>,
        updates: &ArrayD<T>,
        merge: impl Fn(T, T) -> T,
        target: impl Fn(&[usize]) -> Result<Vec<usize>, OpError>,
    ) -> Result<ArrayD<T>, OpError> {
        let mut out = x.clone();
        for (ix, &u) in updates.indexed_iter() {
            let to = target(ix.slice())?;
            match out.get_mut(&to[..]) {
                Some(v) => *v = merge(*v, u),
                None => op_bail!("index {to:?} is outside the shape {:?}", x.shape()),
            }
        }
        Ok(out)
    }
    let reduction = str_attr(node, "reduction", "none")?;
    type Merge<T> = fn(T, T) -> T;
    let (float, int): (Merge<f64>, Merge<i64>) = match reduction {
        "none" => (|_, u| u, |_, u| u),
        "add" => (|v, u| v + u, i64::wrapping_add),
        "mul" => (|v, u| v * u, i64::wrapping_mul),
        "max" => (max, i64::max),
        "min" => (min, i64::min),
        other => op_bail!("reduction '{other}' is none of none, add, mul, max, min"),
    };
    Ok(match (&x.data, &updates.data) {
        (ArrayData::Float(a), ArrayData::Float(u)) => Array::float(x.dtype, put(a, u, float, target)?),
        (ArrayData::Int(a), ArrayData::Int(u)) => Array::int(x.dtype, put(a, u, int, target)?),
        _ => op_bail!("data is {} and updates are {}", x.dtype, updates.dtype),
    })
}

fn infer_scatter_elements(cx: &InferCx) -> Types {
    check_index(cx, 1)?;
    same_type(cx, 0, 2)?;
    if let (Some(x), Some(index)) = (cx.dims(0)?, cx.dims(1)?) {
        normalize_axis(int_attr(cx.node, "axis", 0)?, x.len())?;
        check_rank(index, x.len(), "the index tensor")?;
    }
    Ok(vec![cx.ty(0)?.clone()])
}

fn eval_scatter_elements(cx: &EvalCx) -> Values {
    let (x, index, updates) = (cx.array(0)?, cx.array(1)?.i()?, cx.array(2)?);
    let axis = normalize_axis(int_attr(cx.node, "axis", 0)?, x.shape().len())?;
    check_rank(&known(index.shape()), x.shape().len(), "the index tensor")?;
    if index.shape() != updates.shape() {
        op_bail!("indices {:?} and updates {:?} must have one shape", index.shape(), updates.shape());
    }
    let target = |ix: &[usize]| {
        let mut to = ix.to_vec();
        to[axis] = place(at(index, ix)?, x.shape()[axis])?;
        Ok(to)
    };
    Ok(vec![scatter(cx.node, x, updates, target)?])
}

fn infer_scatter_nd(cx: &InferCx) -> Types {
    check_index(cx, 1)?;
    same_type(cx, 0, 2)?;
    if let (Some(x), Some(index), Some(updates)) = (cx.dims(0)?, cx.dims(1)?, cx.dims(2)?) {
        let Some(depth) = index.last() else { op_bail!("indices must have at least 1 dim") };
        if let Some(depth) = depth.known() {
            if depth > x.len() {
                op_bail!("index tuples of {depth} do not fit data {}", show(x));
            }
            check_rank(updates, index.len() - 1 + x.len() - depth, "the update tensor")?;
        }
    }
    Ok(vec![cx.ty(0)?.clone()])
}

fn eval_scatter_nd(cx: &EvalCx) -> Values {
    let (x, index, updates) = (cx.array(0)?, cx.array(1)?.i()?, cx.array(2)?);
    let Some((&depth, lead)) = index.shape().split_last() else { op_bail!("indices must have at least 1 dim") };
    if depth > x.shape().len() || updates.shape() != [lead, &x.shape()[depth..]].concat() {
        op_bail!("data {:?}, indices {:?}, updates {:?} do not fit", x.shape(), index.shape(), updates.shape());
    }
    let rank = lead.len();
    let target = |ix: &[usize]| Ok([tuple(index, &ix[..rank], x.shape())?, ix[rank..].to_vec()].concat());
    Ok(vec![scatter(cx.node, x, updates, target)?])
}

fn one_hot_axis(node: &Node, rank: usize) -> Result<usize, OpError> {
    normalize_axis(int_attr(node, "axis", -1)?, rank + 1)
}

/// The number of classes that `depth` (of any dtype) states.
fn depth_of(depth: f64) -> Result<usize, OpError> {
    if !(0.0..=f64::from(i32::MAX)).contains(&depth) {
        op_bail!("depth {depth} is out of range");
    }
    Ok(depth as usize)
}

fn infer_one_hot(cx: &InferCx) -> Types {
    let dtype = cx.dtype(2)?;
    let Some(index) = cx.dims(0)? else { return Ok(typed_as(dtype, None)) };
    let depth = const_number(cx, 1).map(depth_of).transpose()?.map_or(Dim::Unknown, Dim::Known);
    let mut dims = index.to_vec();
    dims.insert(one_hot_axis(cx.node, index.len())?, depth);
    Ok(typed_as(dtype, Some(dims)))
}

fn eval_one_hot(cx: &EvalCx) -> Values {
    let (index, values) = (cx.array(0)?.to_f64(), cx.array(2)?);
    if values.shape() != [2] {
        op_bail!("values must be [off, on], their shape is {:?}", values.shape());
    }
    let classes = depth_of(one_f64(cx.array(1)?, "depth")?)?;
    let axis = one_hot_axis(cx.node, index.ndim())?;
    let mut shape = index.shape().to_vec();
    shape.insert(axis, classes);
    let source = |ix: &[usize]| {
        let mut from = ix.to_vec();
        let class = from.remove(axis) as f64;
        let wanted = index.get(&from[..]).ok_or("an index is out of range")?.trunc();
        let on = class == if wanted < 0.0 { wanted + classes as f64 } else { wanted };
        Ok(Some(vec![usize::from(on)]))
    };
    Ok(vec![remap(values, &shape, None, source)?])
}

fn infer_nonzero(cx: &InferCx) -> Types {
    let rank = cx.dims(0)?.map_or(Dim::Unknown, |d| Dim::Known(d.len()));
    Ok(typed_as(DType::I64, Some(vec![rank, Dim::Unknown])))
}

fn eval_nonzero(cx: &EvalCx) -> Values {
    let x = cx.array(0)?.to_f64();
    let found: Vec<Vec<usize>> =
        x.indexed_iter().filter(|(_, v)| **v != 0.0).map(|(ix, _)| ix.slice().to_vec()).collect();
    Ok(vec![Array::int(DType::I64, build(&[x.ndim(), found.len()], |ix| Ok(found[ix[1]][ix[0]] as i64))?)])
}

fn sequence_axes(node: &Node) -> Result<(usize, usize), OpError> {
    match (int_attr(node, "batch_axis", 1)?, int_attr(node, "time_axis", 0)?) {
        (1, 0) => Ok((1, 0)),
        (0, 1) => Ok((0, 1)),
        (b, t) => op_bail!("batch_axis {b} and time_axis {t} must be 0 and 1 in either order"),
    }
}

fn infer_reverse_sequence(cx: &InferCx) -> Types {
    sequence_axes(cx.node)?;
    if cx.dims(0)?.is_some_and(|x| x.len() < 2) {
        op_bail!("the input {} must have at least 2 dims", cx.ty(0)?);
    }
    Ok(vec![cx.ty(0)?.clone()])
}

fn eval_reverse_sequence(cx: &EvalCx) -> Values {
    let (x, lens) = (cx.array(0)?, ints(cx, 1, "sequence_lens")?);
    let (batch, time) = sequence_axes(cx.node)?;
    if x.shape().len() < 2 || lens.len() != x.shape()[batch] {
        op_bail!("input {:?} and {} sequence_lens do not fit", x.shape(), lens.len());
    }
    if let Some(len) = lens.iter().find(|&&n| n < 0 || n > x.shape()[time] as i64) {
        op_bail!("sequence length {len} is outside {} steps", x.shape()[time]);
    }
    let source = |ix: &[usize]| {
        let (mut from, len) = (ix.to_vec(), lens[ix[batch]] as usize);
        if ix[time] < len {
            from[time] = len - 1 - ix[time];
        }
        Ok(Some(from))
    };
    Ok(vec![remap(x, x.shape(), None, source)?])
}
