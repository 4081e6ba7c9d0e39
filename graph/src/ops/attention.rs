//! Attention over heads (as the specification of ONNX 1.23 corrects it), rotary position embedding, and writing into a
//! cache of keys and values.

use super::index::scatter;
use super::support::{
    build, check_rank, extent, flag_attr, float_attr, int_attr, ints, known, product, reshaped, show, str_attr, unify,
};
use super::util::{Types, Values, check_same_shape, check_size, expand, float_ty, fold_axes, map_lanes, same_dtype};
use super::{EvalCx, InferCx, OpSpec, normalize_axis, op};
use crate::types::{Dim, TensorType};
use crate::{Array, ArrayData, Node, OpError, op_bail};
use limbeck_tensor::DType;
use ndarray::{ArrayD, Dimension, IxDyn};

pub(super) const OPS: &[OpSpec] = &[
    op("Attention", infer_attention, eval_attention),
    op("RotaryEmbedding", infer_rotary, eval_rotary),
    op("TensorScatter", infer_tensor_scatter, eval_tensor_scatter),
];

/// The number of heads that an attribute states.
fn heads_attr(node: &Node, name: &str) -> Result<usize, OpError> {
    match int_attr(node, name, 0)? {
        n if n > 0 => extent(n, name),
        n => op_bail!("attribute '{name}' must be positive for tensors of rank 3, it is {n}"),
    }
}

/// Dims `[batch, heads, steps, size]` of a tensor of that rank or `[batch, steps, heads * size]`.
fn by_head(node: &Node, dims: &[Dim], attr: &str) -> Result<[Dim; 4], OpError> {
    match dims {
        [b, h, s, d] => Ok([b.clone(), h.clone(), s.clone(), d.clone()]),
        [b, s, hidden] => {
            let heads = heads_attr(node, attr)?;
            let size = match hidden.known() {
                Some(n) if n % heads != 0 => op_bail!("{n} features cannot be split among {heads} heads ({attr})"),
                size => size.map_or(Dim::Unknown, |n| Dim::Known(n / heads)),
            };
            Ok([b.clone(), Dim::Known(heads), s.clone(), size])
        }
        _ => op_bail!("rank 3 or 4 is needed, the shape is {}", show(dims)),
    }
}

/// Extents of an attention.
struct Extents {
    batch: Dim,
    /// Heads of the queries, and of keys and values.
    heads: [Dim; 2],
    steps: Dim,
    /// Keys, those of the cache included.
    total: Dim,
    /// Sizes of a key and of a value.
    sizes: [Dim; 2],
    /// True when the queries came with rank 3.
    flat: bool,
}

impl Extents {
    /// Reads them off the dims of queries, keys, values, and of the cached keys and values.
    fn of(node: &Node, dims: [&[Dim]; 3], past: [Option<&[Dim]>; 2]) -> Result<Extents, OpError> {
        let [q, k, v] = dims;
        if q.len() != k.len() || q.len() != v.len() {
            op_bail!("queries {}, keys {} and values {} must have one rank", show(q), show(k), show(v));
        }
        let [batch, q_heads, steps, q_size] = by_head(node, q, "q_num_heads")?;
        let [k_batch, k_heads, k_steps, k_size] = by_head(node, k, "kv_num_heads")?;
        let [v_batch, v_heads, v_steps, v_size] = by_head(node, v, "kv_num_heads")?;
        let mut batch = unify(&unify(&batch, &k_batch, "batch")?, &v_batch, "batch")?;
        let mut kv_heads = unify(&k_heads, &v_heads, "heads of keys and values")?;
        let mut sizes = [unify(&q_size, &k_size, "sizes of queries and keys")?, v_size];
        let mut total = unify(&k_steps, &v_steps, "steps of keys and values")?;
        if past.iter().any(Option::is_some) {
            let mut cached = Dim::Unknown;
            for (past, size) in past.iter().zip(&mut sizes) {
                let Some(past) = past else { continue };
                check_rank(past, 4, "a cache")?;
                batch = unify(&batch, &past[0], "batch")?;
                kv_heads = unify(&kv_heads, &past[1], "heads of a cache")?;
                cached = unify(&cached, &past[2], "steps of the caches")?;
                *size = unify(size, &past[3], "sizes of a cache")?;
            }
            total = match (total.known(), cached.known()) {
                (Some(a), Some(b)) => Dim::Known(a.checked_add(b).ok_or("the number of keys overflows")?),
                (_, Some(0)) => total,
                _ => Dim::Unknown,
            };
        }
        if let (Some(q), Some(k)) = (q_heads.known(), kv_heads.known())
            && (k == 0 || q % k != 0)
        {
            op_bail!("{q} heads of queries cannot share {k} heads of keys");
        }
        Ok(Extents { batch, heads: [q_heads, kv_heads], steps, total, sizes, flat: q.len() == 3 })
    }
}

fn infer_attention(cx: &InferCx) -> Types {
    let (q, k, v) = (float_ty(cx, 0)?, float_ty(cx, 1)?, float_ty(cx, 2)?);
    same_dtype(q, k)?;
    let mask = if cx.has(3) { Some(cx.ty(3)?) } else { None };
    if mask.is_some_and(|m| m.dtype != DType::Bool && m.dtype != q.dtype) {
        op_bail!("the mask must be bool or {}, it is {}", q.dtype, cx.ty(3)?);
    }
    if cx.has(4) != cx.has(5) {
        op_bail!("past_key and past_value must be given together");
    }
    let mut past = [None, None];
    for (i, of) in [(4, k), (5, v)].into_iter().filter(|(i, _)| cx.has(*i)) {
        same_dtype(of, cx.ty(i)?)?;
        past[i - 4] = cx.dims(i)?;
    }
    let kinds = [q.dtype, k.dtype, v.dtype, q.dtype];
    let (Some(qd), Some(kd), Some(vd)) = (&q.dims, &k.dims, &v.dims) else {
        return Ok(kinds.into_iter().map(|dtype| TensorType { dtype, dims: None }).collect());
    };
    let cached = cx.has(4) || cx.has(5);
    let mut e = Extents::of(cx.node, [qd, kd, vd], past)?;
    if cached && past.iter().all(Option::is_none) {
        e.total = Dim::Unknown;
    }
    let [heads, kv_heads] = e.heads;
    let [key, value] = e.sizes;
    let y = match e.flat {
        true => vec![e.batch.clone(), e.steps.clone(), product(&[heads.clone(), value.clone()])?],
        false => vec![e.batch.clone(), heads.clone(), e.steps.clone(), value.clone()],
    };
    let present = |size: Dim| vec![e.batch.clone(), kv_heads.clone(), e.total.clone(), size];
    let scores = vec![e.batch.clone(), heads, e.steps, e.total.clone()];
    let dims = [y, present(key), present(value), scores];
    Ok(kinds.into_iter().zip(dims).map(|(dtype, dims)| TensorType::with_dims(dtype, dims)).collect())
}

/// The array as `[batch, heads, steps, size]`, behind the steps of a cache when there is one.
fn present(node: &Node, a: &Array, attr: &str, past: Option<&Array>) -> Result<ArrayD<f64>, OpError> {
    let [b, h, s, d] = by_head(node, &known(a.shape()), attr)?.map(|d| d.known().unwrap_or(0));
    let own = match a.shape().len() {
        3 => {
            let split = reshaped(a, &[b, s, h, d])?.f()?.to_owned();
            split.permuted_axes(IxDyn(&[0, 2, 1, 3])).as_standard_layout().into_owned()
        }
        _ => a.f()?.to_owned(),
    };
    match past {
        Some(past) => Ok(ndarray::concatenate(ndarray::Axis(2), &[past.f()?.view(), own.view()])?),
        None => Ok(own),
    }
}

/// What the mask and the lengths add to the scores `[batch, heads, steps, total]`: 0 and negative infinity, or the
/// numbers of a float mask.
fn bias(cx: &EvalCx, shape: &[usize], cached: usize) -> Result<ArrayD<f64>, OpError> {
    let total = shape[3];
    let mut bias = match cx.opt(3) {
        None => ArrayD::zeros(IxDyn(shape)),
        Some(mask) => {
            let numbers = match &mask.data {
                ArrayData::Float(m) => m.clone(),
                ArrayData::Int(m) => m.mapv(|keep| if keep != 0 { 0.0 } else { f64::NEG_INFINITY }),
            };
            // Keys beyond the mask's end are not attended to.
            let Some((&given, lead)) = numbers.shape().split_last() else { op_bail!("a mask cannot be a scalar") };
            let padded = build(&[lead, &[total.max(given)]].concat(), |ix| {
                Ok(numbers.get(ix).copied().unwrap_or(f64::NEG_INFINITY))
            })?;
            expand(&padded, shape)?
        }
    };
    let causal = flag_attr(cx.node, "is_causal", false)?;
    let lens = cx.ints(6)?;
    if lens.as_ref().is_some_and(|lens| lens.len() != shape[0] || cx.opt(4).is_some()) {
        op_bail!("nonpad_kv_seqlen must have {} entries and excludes past_key and past_value", shape[0]);
    }
    for (ix, v) in bias.indexed_iter_mut() {
        let len = lens.as_ref().map(|lens| lens[ix[0]]);
        // The queries are the last of the tokens so far.
        let before = len.map_or(cached as i64, |len| len.saturating_sub(shape[2] as i64));
        let (query, key) = (before.saturating_add(ix[2] as i64), ix[3] as i64);
        if len.is_some_and(|len| key >= len) || (causal && key > query) {
            *v = f64::NEG_INFINITY;
        }
    }
    Ok(bias)
}

fn eval_attention(cx: &EvalCx) -> Values {
    let (node, [q, k, v]) = (cx.node, [cx.array(0)?, cx.array(1)?, cx.array(2)?]);
    let dims = [q, k, v].map(|a| known(a.shape()));
    let past = [4, 5].map(|i| cx.opt(i).map(|a| known(a.shape())));
    let e = Extents::of(node, [&dims[0], &dims[1], &dims[2]], [past[0].as_deref(), past[1].as_deref()])?;
    if past[0].is_some() != past[1].is_some() {
        op_bail!("past_key and past_value must be given together");
    }
    let keys = present(node, k, "kv_num_heads", cx.opt(4))?;
    let values = present(node, v, "kv_num_heads", cx.opt(5))?;
    let queries = present(node, q, "q_num_heads", None)?;
    let (&[batch, heads, steps, size], total) = (queries.shape(), keys.shape()[2]) else {
        op_bail!("queries must have 4 dims");
    };
    let shape = [batch, heads, steps, total];
    check_size(&shape)?;
    let group = (heads / keys.shape()[1].max(1)).max(1);
    let value = values.shape()[3];
    let scale = match node.attrs.contains_key("scale") {
        true => float_attr(node, "scale", 0.0)?,
        false => 1.0 / (size as f64).sqrt(),
    };
    let cap = float_attr(node, "softcap", 0.0)?;
    let mode = int_attr(node, "qk_matmul_output_mode", 0)?;
    if !(0..=3).contains(&mode) {
        op_bail!("qk_matmul_output_mode {mode} is none of 0, 1, 2, 3");
    }
    let product = build(&shape, |ix| {
        let pair = |d: usize| queries[&[ix[0], ix[1], ix[2], d][..]] * keys[&[ix[0], ix[1] / group, ix[3], d][..]];
        Ok(scale * (0..size).map(pair).sum::<f64>())
    })?;
    let cached = past[0].as_ref().and_then(|p| p[2].known()).unwrap_or(0);
    let capped = product.mapv(|x| if cap > 0.0 { cap * (x / cap).tanh() } else { x });
    let bias = bias(cx, &shape, cached)?;
    let masked = &capped + &bias;
    let mut weights = map_lanes(&masked, &[3], |v| {
        let top = v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        v.iter_mut().for_each(|x| *x = (*x - top).exp());
        let sum: f64 = v.iter().sum();
        v.iter_mut().for_each(|x| *x /= sum);
    })?;
    // A query that may attend to no key at all attends to nothing.
    let open = fold_axes(&bias, &[3], false, |v| Ok(v.iter().any(|b| *b != f64::NEG_INFINITY)))?;
    weights.indexed_iter_mut().filter(|(ix, _)| !open[&ix.slice()[..3]]).for_each(|(_, w)| *w = 0.0);
    let y = build(&[batch, heads, steps, value], |ix| {
        let term = |j: usize| weights[&[ix[0], ix[1], ix[2], j][..]] * values[&[ix[0], ix[1] / group, j, ix[3]][..]];
        Ok((0..total).map(term).sum::<f64>())
    })?;
    let y = match e.flat {
        true => {
            let rows = y.permuted_axes(IxDyn(&[0, 2, 1, 3])).as_standard_layout().into_owned();
            reshaped(&Array::float(q.dtype, rows), &[batch, steps, heads * value])?
        }
        false => Array::float(q.dtype, y),
    };
    let scores = match mode {
        0 => product,
        1 => capped,
        2 => masked,
        _ => weights,
    };
    Ok(vec![y, Array::float(k.dtype, keys), Array::float(v.dtype, values), Array::float(q.dtype, scores)])
}

fn infer_rotary(cx: &InferCx) -> Types {
    let x = float_ty(cx, 0)?;
    for i in [1, 2] {
        same_dtype(x, cx.ty(i)?)?;
        let rank = if cx.has(3) { 2 } else { 3 };
        cx.dims(i)?.map(|dims| check_rank(dims, rank, "the cache of cosines or sines")).transpose()?;
    }
    check_same_shape(cx.ty(1)?, cx.ty(2)?)?;
    if let Some(dims) = &x.dims {
        by_head(cx.node, dims, "num_heads")?;
    }
    Ok(vec![x.clone()])
}

/// Pairs of features `(a, b)` become `(a cos - b sin, a sin + b cos)`; features behind `rotary_embedding_dim` stay.
fn eval_rotary(cx: &EvalCx) -> Values {
    let (node, x, cos, sin) = (cx.node, cx.array(0)?, cx.array(1)?.f()?, cx.array(2)?.f()?);
    let data = present(node, x, "num_heads", None)?;
    let (shape, size) = (data.shape().to_vec(), data.shape()[3]);
    let rotated = match extent(int_attr(node, "rotary_embedding_dim", 0)?, "rotary_embedding_dim")? {
        0 => size,
        n => n,
    };
    let half = rotated / 2;
    let positions = cx.opt(3).map(|p| p.i()).transpose()?;
    let wanted = match positions {
        Some(_) => vec![cos.shape().first().copied().unwrap_or(0), half],
        None => vec![shape[0], shape[2], half],
    };
    if rotated % 2 != 0 || rotated > size || cos.shape() != wanted || sin.shape() != wanted {
        op_bail!("caches {:?} and {:?} must be {wanted:?} for {size} features", cos.shape(), sin.shape());
    }
    if positions.is_some_and(|p| p.shape() != [shape[0], shape[2]]) {
        op_bail!("position_ids must have the shape {:?}", [shape[0], shape[2]]);
    }
    let interleaved = flag_attr(node, "interleaved", false)?;
    let angle = |ix: &[usize], i: usize| -> Result<(f64, f64), OpError> {
        let at = match positions {
            None => vec![ix[0], ix[2], i],
            Some(p) => match usize::try_from(p[&[ix[0], ix[2]][..]]) {
                Ok(row) if row < wanted[0] => vec![row, i],
                _ => op_bail!("position {} is outside {} positions", p[&[ix[0], ix[2]][..]], wanted[0]),
            },
        };
        Ok((cos[&at[..]], sin[&at[..]]))
    };
    let y = build(&shape, |ix| {
        let d = ix[3];
        if d >= rotated {
            return Ok(data[ix]);
        }
        let (pair, second) = if interleaved { (d / 2, d % 2 == 1) } else { (d % half, d >= half) };
        let (a, b) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + half) };
        let [a, b] = [a, b].map(|d| data[&[ix[0], ix[1], ix[2], d][..]]);
        let (cos, sin) = angle(ix, pair)?;
        Ok(if second { a * sin + b * cos } else { a * cos - b * sin })
    })?;
    let y = if x.shape().len() == 3 { y.permuted_axes(IxDyn(&[0, 2, 1, 3])) } else { y };
    Ok(vec![reshaped(&Array::float(x.dtype, y.as_standard_layout().into_owned()), x.shape())?])
}

fn infer_tensor_scatter(cx: &InferCx) -> Types {
    let (cache, update) = (cx.ty(0)?, cx.ty(1)?);
    same_dtype(cache, update)?;
    if let (Some(c), Some(u)) = (&cache.dims, &update.dims) {
        check_rank(u, c.len(), "the update")?;
        let axis = cache_axis(cx.node, c.len())?;
        for (d, (a, b)) in c.iter().zip(u).enumerate().filter(|(d, _)| *d != axis) {
            unify(a, b, &format!("axis {d} of cache and update"))?;
        }
    }
    Ok(vec![cache.clone()])
}

/// The axis of the steps, which is not the batch's.
fn cache_axis(node: &Node, rank: usize) -> Result<usize, OpError> {
    match normalize_axis(int_attr(node, "axis", -2)?, rank)? {
        0 => op_bail!("axis 0 is the batch's"),
        axis => Ok(axis),
    }
}

fn eval_tensor_scatter(cx: &EvalCx) -> Values {
    let (cache, update) = (cx.array(0)?, cx.array(1)?);
    let shape = cache.shape();
    let axis = cache_axis(cx.node, shape.len())?;
    let fits = |(d, (&a, &b)): (usize, (&usize, &usize))| if d == axis { b <= a } else { a == b };
    if update.shape().len() != shape.len() || !shape.iter().zip(update.shape()).enumerate().all(fits) {
        op_bail!("an update of shape {:?} does not fit a cache of shape {shape:?}", update.shape());
    }
    let starts = if cx.opt(2).is_some() { ints(cx, 2, "write_indices")? } else { vec![0; shape[0]] };
    if starts.len() != shape[0] {
        op_bail!("{} write_indices are given for a batch of {}", starts.len(), shape[0]);
    }
    let circular = match str_attr(cx.node, "mode", "linear")? {
        "linear" => false,
        "circular" => true,
        other => op_bail!("mode '{other}' is neither linear nor circular"),
    };
    let target = |ix: &[usize]| {
        let mut to = ix.to_vec();
        let at = usize::try_from(starts[ix[0]]).ok().and_then(|s| s.checked_add(ix[axis]));
        let at = at.ok_or_else(|| OpError(format!("write index {} is out of range", starts[ix[0]])))?;
        to[axis] = if circular { at % shape[axis] } else { at };
        Ok(to)
    };
    Ok(vec![scatter(cx.node, cache, update, target)?])
}
