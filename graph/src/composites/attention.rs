//! Attention and RotaryEmbedding.

use super::{Composite, constant, extent};
use crate::Var;
use limbeck_tensor::DType;

/// `v` `[batch, steps, heads * n]` as `[batch, heads, steps, n]`; data of rank 4 are so already.
fn heads<'c>(op: &Composite<'_, 'c>, v: Var<'c>, attribute: &str) -> Result<Var<'c>, String> {
    match v.shape()[..] {
        [_, _, _, _] => Ok(v),
        [batch, steps, wide] => {
            let given = op.node.int(attribute).ok_or_else(|| format!("attribute {attribute} is missing"))?;
            let heads = extent(given, wide, attribute)?;
            if heads == 0 || !wide.is_multiple_of(heads) {
                return Err(format!("{wide} features are not {heads} heads"));
            }
            Ok(v.reshape(&[batch, steps, heads, wide / heads]).transpose(&[0, 2, 1, 3]))
        }
        _ => Err(format!("{v:?} must have rank 3 or 4")),
    }
}

/// The inverse of [`heads`].
fn joined(v: Var<'_>) -> Var<'_> {
    let shape = v.shape();
    v.transpose(&[0, 2, 1, 3]).reshape(&[shape[0], shape[2], shape[1] * shape[3]])
}

/// Attention: `softmax(cap(scale * q k') + bias) v`, with the keys and values of the past in front. Groups of query
/// heads share a head of keys. Results: y, present keys, present values, and the scores at the stage that
/// `qk_matmul_output_mode` names: products, capped, biased, probabilities. A row that may attend to nothing gives 0.
pub(super) fn attention<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let cx = op.cx;
    let flat = op.x(0)?.rank() == 3;
    let q = heads(op, op.x(0)?, "q_num_heads")?;
    let after_past = |v: Var<'c>, past: usize| op.opt(past).map_or(v, |p| p.concat(&[v], 2));
    let keys = after_past(heads(op, op.x(1)?, "kv_num_heads")?, 4);
    let values = after_past(heads(op, op.x(2)?, "kv_num_heads")?, 5);
    let (own, other) = (q.shape(), keys.shape());
    let (&[batch, query_heads, steps, size], &[_, shared, total, _]) = (&own[..], &other[..]) else {
        return Err(format!("queries {own:?} and keys {other:?} must have rank 4"));
    };
    if shared == 0 || !query_heads.is_multiple_of(shared) || values.dim(1) != shared {
        return Err(format!("{query_heads} heads of queries cannot share {shared} of keys"));
    }
    // The heads of a group stand one after the other: their steps in one axis need no copies of keys and values.
    let group = [batch, shared, query_heads / shared * steps];
    let grouped = |v: Var<'c>, n: usize| v.reshape(&[&group[..], &[n]].concat());
    let scale = op.node.float("scale").map_or(1.0 / (size as f64).sqrt(), f64::from);
    let scores = grouped(q * scale, size).matmul(keys.t()).reshape(&[batch, query_heads, steps, total]);
    let capped = match op.float("softcap", 0.0) {
        cap if cap > 0.0 => (scores / cap).tanh() * cap,
        _ => scores,
    };
    let bias = bias(op, scores, (batch, steps, total))?;
    let biased = bias.map_or(capped, |b| capped + b);
    let precise = match op.node.int("softmax_precision") {
        Some(code) => {
            let code = i32::try_from(code).ok().and_then(DType::from_onnx);
            code.filter(|d| d.is_float()).ok_or("softmax_precision is no float type")?
        }
        None => scores.dtype(),
    };
    let mut shares = biased.cast(precise).softmax(-1).cast(scores.dtype());
    if let Some(bias) = bias {
        let zero = cx.scalar_of(0.0, scores.dtype());
        let open = bias.max_keep(&[-1]).greater(cx.scalar_of(f64::NEG_INFINITY, scores.dtype()));
        shares = open.select(shares, zero);
    }
    let y = grouped(shares, total).matmul(values).reshape(&[batch, query_heads, steps, values.dim(-1)]);
    let shown = match op.int("qk_matmul_output_mode", 0) {
        0 => scores,
        1 => capped,
        2 => biased,
        3 => shares,
        other => return Err(format!("qk_matmul_output_mode {other} is none of 0 to 3")),
    };
    Ok(vec![if flat { joined(y) } else { y }, keys, values, shown])
}

/// What is added to the scores, broadcastable to `[batch, heads, steps, total]`: the mask, -inf where later steps are
/// hidden and behind the length of each row's keys.
fn bias<'c>(
    op: &Composite<'_, 'c>,
    scores: Var<'c>,
    (batch, steps, total): (usize, usize, usize),
) -> Result<Option<Var<'c>>, String> {
    let cx = op.cx;
    let number = |v: f64| cx.scalar_of(v, scores.dtype());
    let hidden_unless = |seen: Var<'c>| seen.select(number(0.0), number(f64::NEG_INFINITY));
    let mut parts = vec![];
    if let Some(mask) = op.opt(3) {
        let mask = if mask.dtype() == DType::Bool { hidden_unless(mask) } else { mask };
        let missing = total.checked_sub(mask.dim(-1)).ok_or("the mask is longer than the keys")?;
        let shape = mask.shape();
        let lead = &shape[..shape.len().saturating_sub(1)];
        let rest = || number(f64::NEG_INFINITY).expand(&[lead, &[missing]].concat());
        parts.push(if missing == 0 { mask } else { mask.concat(&[rest()], -1) });
    }
    let column = |n: usize| constant(scores, &[n, 1], &(0..n).map(|i| i as f64).collect::<Vec<_>>());
    let keys = column(total).reshape(&[total]);
    let length = op.opt(6).map(|n| n.cast(scores.dtype()).reshape(&[batch, 1, 1, 1]));
    if op.int("is_causal", 0) != 0 {
        // A step sees the keys that precede its block, and those of the block up to itself.
        let before = match (op.opt(4), length) {
            (Some(past), _) => number(past.dim(2) as f64),
            (None, Some(length)) => length - steps as f64,
            (None, None) => number(0.0),
        };
        parts.push(hidden_unless((column(steps) + before).greater_or_equal(keys)));
    }
    if let Some(length) = length {
        parts.push(hidden_unless(length.greater(keys)));
    }
    Ok(parts.into_iter().reduce(|a, b| a + b))
}

/// RotaryEmbedding: pairs of features turned by the angles whose cosines and sines the caches hold; features behind
/// `rotary_embedding_dim` stay.
pub(super) fn rotary<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let given = op.x(0)?;
    let x = heads(op, given, "num_heads")?;
    let shape = x.shape();
    let size = shape[3];
    let turned = match extent(op.int("rotary_embedding_dim", 0), size, "rotary_embedding_dim")? {
        0 => size,
        n => n,
    };
    if !turned.is_multiple_of(2) {
        return Err(format!("{turned} features are not pairs"));
    }
    let half = turned / 2;
    let cache = |i: usize| {
        let table = op.x(i)?;
        let rows = op.opt(3).map_or(table, |positions| table.gather(positions, 0));
        if rows.rank() != 3 || rows.dim(-1) != half {
            return Err(format!("the cache {table:?} does not fit {half} pairs of features"));
        }
        Ok(rows.unsqueeze(&[1]))
    };
    let (cos, sin) = (cache(1)?, cache(2)?);
    let interleaved = op.int("interleaved", 0) != 0;
    let lead = &shape[..3];
    let part = x.slice(-1, 0, turned);
    // A pair is two neighbours, or an element of either half.
    let (pairs, axis) = if interleaved { ([half, 2], -1) } else { ([2, half], -2) };
    let pairs = part.reshape(&[lead, &pairs[..]].concat());
    let [a, b] = [0, 1].map(|i| pairs.slice(axis, i, i + 1).squeeze(&[axis]));
    let (real, imaginary) = (cos * a - sin * b, sin * a + cos * b);
    let part = real.unsqueeze(&[axis]).concat(&[imaginary.unsqueeze(&[axis])], axis);
    let part = part.reshape(&[lead, &[turned]].concat());
    let y = if turned == size { part } else { part.concat(&[x.slice(-1, turned, size)], -1) };
    Ok(vec![if given.rank() == 3 { joined(y) } else { y }])
}
