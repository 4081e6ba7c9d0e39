//! Straight-through gradients of quantisation. The gradient on the integer edge from QuantizeLinear to
//! DequantizeLinear is a float: that of the position on the integer grid, before rounding.
//!
//! Together the two give the clipped identity for the data, and for the scale the gradient of learned step sizes
//! (Esser et al., "Learned Step Size Quantization", 2020).

use super::{Grads, Rule, RuleFn, reshaped};
use limbeck_graph::Var;
use limbeck_graph::ops::normalize_axis;
use limbeck_tensor::DType;

pub(super) const RULES: &[(&str, RuleFn)] = &[("QuantizeLinear", quantize), ("DequantizeLinear", dequantize)];

/// The blocks along an axis that share a scale.
struct Blocks {
    axis: usize,
    /// How many there are, and positions in each; the last may be cut short.
    count: usize,
    size: usize,
}

impl Blocks {
    /// Those of the node's scales over a tensor like `x`; `None` where a scale is for all of it or a position of an axis.
    fn of<'c>(r: &Rule<'_, 'c>, x: Var<'c>) -> Result<Option<Blocks>, String> {
        let size = usize::try_from(r.int("block_size", 0)).map_err(|_| "its block_size is negative")?;
        if size == 0 || r.x(1).len() == 1 {
            return Ok(None);
        }
        let axis = axis(r, x)?;
        Ok(Some(Blocks { axis, count: x.shape()[axis].div_ceil(size), size }))
    }

    /// A shape with the axis as these extents.
    fn shape(&self, like: &[usize], extents: &[usize]) -> Vec<usize> {
        [&like[..self.axis], extents, &like[self.axis + 1..]].concat()
    }

    /// What is given for each block, for each position of `like`.
    fn spread<'c>(&self, v: Var<'c>, like: Var<'c>) -> Var<'c> {
        let (shape, whole) = (like.shape(), self.count * self.size);
        let apart =
            v.reshape(&self.shape(&shape, &[self.count, 1])).expand(&self.shape(&shape, &[self.count, self.size]));
        let spread = apart.reshape(&self.shape(&shape, &[whole]));
        if whole == shape[self.axis] { spread } else { spread.slice(self.axis as i64, 0, shape[self.axis]) }
    }

    /// The sum of what is given for each position, for each block.
    fn sum<'c>(&self, v: Var<'c>) -> Var<'c> {
        let shape = v.shape();
        let missing = self.count * self.size - shape[self.axis];
        let whole = match missing {
            0 => v,
            _ => v.concat(&[v.cx().full(0.0, v.dtype(), &self.shape(&shape, &[missing]))], self.axis as i64),
        };
        whole.reshape(&self.shape(&shape, &[self.count, self.size])).sum(&[self.axis as i64 + 1])
    }
}

/// The axis along which scales differ.
fn axis<'c>(r: &Rule<'_, 'c>, x: Var<'c>) -> Result<usize, String> {
    normalize_axis(r.int("axis", 1), x.rank()).map_err(|e| e.0)
}

/// Scale or zero point as floats of `like`'s dtype, shaped to broadcast against it.
fn wide<'c>(r: &Rule<'_, 'c>, v: Var<'c>, like: Var<'c>) -> Result<Var<'c>, String> {
    let floats = v.cast(like.dtype());
    if v.len() == 1 {
        return Ok(reshaped(floats, &[]));
    }
    if let Some(blocks) = Blocks::of(r, like)? {
        return Ok(blocks.spread(floats, like));
    }
    let mut broadcast = vec![1; like.rank()];
    broadcast[axis(r, like)?] = v.len();
    Ok(reshaped(floats, &broadcast))
}

/// Gradient of a scale from the gradients of its uses.
fn of_scale<'c>(r: &Rule<'_, 'c>, uses: Var<'c>) -> Result<Var<'c>, String> {
    let scale = r.x(1);
    if let Some(blocks) = Blocks::of(r, uses)? {
        return Ok(blocks.sum(uses).cast(scale.dtype()));
    }
    let axis = if scale.len() == 1 { None } else { Some(axis(r, uses)?) };
    let others: Vec<i64> = (0..uses.rank()).filter(|&i| Some(i) != axis).map(|i| i as i64).collect();
    let sum = if others.is_empty() { uses } else { uses.sum(&others) };
    Ok(reshaped(sum.cast(scale.dtype()), &scale.shape()))
}

fn quantize<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    let (x, g) = (r.x(0), r.g());
    let (low, high) = match r.y(0).dtype() {
        DType::I4 => (-8.0, 7.0),
        DType::U4 => (0.0, 15.0),
        DType::I8 => (-128.0, 127.0),
        DType::U8 => (0.0, 255.0),
        DType::I16 => (-32768.0, 32767.0),
        DType::U16 => (0.0, 65535.0),
        other => return Err(format!("quantisation to {other} has no gradient; 4, 8 and 16 bit integers have")),
    };
    let scale = wide(r, r.x(1), x)?;
    let steps = x / scale;
    let grid = match r.opt(2) {
        Some(zero_point) => r.cx.op("Round", &[steps], &[]) + wide(r, zero_point, x)?,
        None => r.cx.op("Round", &[steps], &[]),
    };
    let number = |n| r.cx.scalar_of(n, x.dtype());
    let inside = grid.greater_or_equal(number(low)).and(number(high).greater_or_equal(grid)).cast(x.dtype());
    let gx = g / scale * inside;
    let gs = r.wants(1).then(|| of_scale(r, -(gx * steps))).transpose()?;
    Ok(vec![Some(gx), gs])
}

fn dequantize<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    let (q, g) = (r.x(0), r.g());
    let gq = r.wants(0).then(|| Ok::<_, String>(g * wide(r, r.x(1), g)?)).transpose()?;
    let gs = r.wants(1).then(|| {
        let grid = q.cast(g.dtype());
        let steps = match r.opt(2) {
            Some(zero_point) => grid - wide(r, zero_point, g)?,
            None => grid,
        };
        of_scale(r, g * steps)
    });
    Ok(vec![gq, gs.transpose()?])
}
