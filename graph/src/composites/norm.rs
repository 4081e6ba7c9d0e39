//! Norms, pools of powers, and the determinant.

use super::{Composite, constant, extent};
use crate::{Attr, Var};

/// Largest matrix whose determinant is composed; rounding grows with it, and so does the graph.
const WIDEST_DETERMINANT: usize = 16;

/// Most channels of LRN, whose window is a constant matrix of channels by channels.
const MOST_CHANNELS: usize = 4096;

/// The data less their mean, over their standard deviation plus 1e-9.
pub(super) fn mean_variance<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let x = op.x(0)?;
    let axes = op.node.ints("axes").unwrap_or(&[0, 2, 3]);
    let centred = x - x.mean_keep(axes);
    Ok(vec![centred / (centred.square().mean_keep(axes).sqrt() + 1e-9)])
}

/// The p-th root of the sum of the p-th powers, a sum being the mean times the window's size. Windows that reach
/// beyond the padding (`ceil_mode`) have other means, so these nodes stay as they are.
pub(super) fn lp_pool<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let x = op.x(0)?;
    let attrs = op.node.attrs.iter().map(|(name, v)| (name.as_str(), v.clone()));
    if op.int("ceil_mode", 0) != 0 {
        return Ok(op.cx.op_n("", "LpPool", &[Some(x)], &attrs.collect::<Vec<_>>(), 1));
    }
    let window = op.node.ints("kernel_shape").ok_or("attribute kernel_shape is missing")?;
    let size: f64 = window.iter().map(|&n| n as f64).product();
    let p = op.int("p", 2) as f64;
    let mut pool: Vec<(&str, Attr)> = vec![("count_include_pad", 1i64.into())];
    pool.extend(attrs.filter(|(name, _)| *name != "p"));
    Ok(vec![(op.cx.op("AveragePool", &[x.abs().powf(p)], &pool) * size).powf(1.0 / p)])
}

/// The p-norm over all spatial axes, kept as 1.
pub(super) fn global_lp_pool<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let x = op.x(0)?;
    let axes: Vec<i64> = (2..x.rank() as i64).collect();
    let norm = |name: &str| op.cx.op(name, &[x, op.cx.ints(&axes)], &[]);
    Ok(vec![match op.int("p", 2) {
        _ if axes.is_empty() => x.abs(),
        1 => norm("ReduceL1"),
        2 => norm("ReduceL2"),
        p if p > 2 => x.abs().powf(p as f64).sum_keep(&axes).powf(1.0 / p as f64),
        p => return Err(format!("p = {p} must be at least 1")),
    }])
}

/// LRN: `x / (bias + alpha / size * sum)^beta`, where `sum` adds the squares of the channels in the window. The window
/// is a product with a constant matrix of ones around the diagonal.
pub(super) fn local_response<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let x = op.x(0)?;
    let shape = x.shape();
    let [rows, channels, spatial @ ..] = &shape[..] else { return Err(format!("{shape:?} has no channels")) };
    let size = op.node.int("size").filter(|&n| n > 0).ok_or("attribute size must be at least 1")?;
    if *channels > MOST_CHANNELS {
        return Err(format!("{channels} channels are too many, {MOST_CHANNELS} are the most"));
    }
    let (before, after) = ((size - 1) / 2, size / 2);
    let inside = |i: usize| f64::from((-before..=after).contains(&((i % channels) as i64 - (i / channels) as i64)));
    let window: Vec<f64> = (0..channels * channels).map(inside).collect();
    let squares = x.square().reshape(&[*rows, *channels, spatial.iter().product()]);
    let sum = constant(x, &[*channels, *channels], &window).matmul(squares).reshape(&shape);
    let base = sum * (op.float("alpha", f64::from(1e-4f32)) / size as f64) + op.float("bias", 1.0);
    Ok(vec![x / base.powf(op.float("beta", 0.75))])
}

/// Det of `[..., n, n]` without divisions or pivots, so that its derivatives hold for singular matrices too: `n - 1`
/// times `f = upper(f) a` from `f = a`, where `upper` keeps what lies above the diagonal and puts on it the negative
/// sums of what follows there; the first entry is the determinant but for its sign. R. S. Bird, A simple division-free
/// algorithm for computing determinants, 2011.
pub(super) fn determinant<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let a = op.x(0)?;
    let shape = a.shape();
    let [batch @ .., rows, columns] = &shape[..] else { return Err(format!("{shape:?} is no matrix")) };
    if rows != columns || *rows == 0 {
        return Err(format!("{shape:?} is not square"));
    }
    let n = extent(*rows as i64, WIDEST_DETERMINANT, "the number of rows")?;
    let square = |f: &dyn Fn(usize, usize) -> bool| {
        let values: Vec<f64> = (0..n * n).map(|i| f64::from(f(i / n, i % n))).collect();
        constant(a, &[n, n], &values)
    };
    let (above, diagonal) = (square(&|i, j| i < j), square(&|i, j| i == j));
    let mut f = a;
    for _ in 1..n {
        let entries = (f * diagonal).sum_keep(&[-1]);
        f = (f * above - diagonal * above.matmul(entries)).matmul(a);
    }
    let first = f.slice(-2, 0, 1).slice(-1, 0, 1).reshape(batch);
    Ok(vec![if n % 2 == 0 { -first } else { first }])
}
