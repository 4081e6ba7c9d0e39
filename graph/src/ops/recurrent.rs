//! Recurrent layers: LSTM, GRU, RNN. Formulas and gate orders: the ONNX operator specification.

use super::support::{check_rank, flag_attr, float_attr, int_attr, known, show, str_attr, unify};
use super::util::{Types, Values, check_size, float_ty, same_dtype};
use super::{EvalCx, InferCx, OpSpec, op};
use crate::types::{Dim, TensorType};
use crate::{Array, Attr, Node, OpError, op_bail};
use ndarray::{Array1, Array3, Array4, ArrayD, ArrayView1, ArrayView2, Axis, Ix2, Ix3, Slice};

pub(super) const OPS: &[OpSpec] =
    &[op("LSTM", |cx| infer(cx, 4), eval), op("GRU", |cx| infer(cx, 3), eval), op("RNN", |cx| infer(cx, 1), eval)];

/// For each direction whether it runs backwards.
fn directions(node: &Node) -> Result<&'static [bool], OpError> {
    match str_attr(node, "direction", "forward")? {
        "forward" => Ok(&[false]),
        "reverse" => Ok(&[true]),
        "bidirectional" => Ok(&[false, true]),
        other => op_bail!("direction '{other}' is none of forward, reverse, bidirectional"),
    }
}

/// True when the batch is the first axis of data and states.
fn batch_first(node: &Node) -> Result<bool, OpError> {
    flag_attr(node, "layout", false)
}

/// Extents of a layer.
struct Extents {
    steps: Dim,
    batch: Dim,
    hidden: Dim,
}

impl Extents {
    /// Reads them off the operands' dims (`None`: not known) and checks that all of these agree.
    fn of(node: &Node, gates: usize, dims: &[Option<&[Dim]>]) -> Result<Extents, OpError> {
        let directions = Dim::Known(directions(node)?.len());
        let at = |i: usize| dims.get(i).copied().flatten();
        let mut hidden = match int_attr(node, "hidden_size", 0)? {
            0 => Dim::Unknown,
            n => Dim::Known(usize::try_from(n).map_err(|_| format!("hidden_size {n} is negative"))?),
        };
        let (mut steps, mut batch, mut features) = (Dim::Unknown, Dim::Unknown, Dim::Unknown);
        let first = batch_first(node)?;
        if let Some(x) = at(0) {
            check_rank(x, 3, "the data")?;
            let (t, b) = if first { (1, 0) } else { (0, 1) };
            (steps, batch, features) = (x[t].clone(), x[b].clone(), x[2].clone());
        }
        if let Some(r) = at(2) {
            check_rank(r, 3, "the recurrent weight")?;
            hidden = unify(&hidden, &r[2], "hidden_size and the recurrent weight")?;
        }
        if let Some([_, rows, ..]) = at(1)
            && let (Dim::Unknown, Some(n)) = (&hidden, rows.known())
        {
            hidden = Dim::Known(n / gates);
        }
        let times = |n: usize| hidden.known().map_or(Dim::Unknown, |h| Dim::Known(h.saturating_mul(n)));
        let state = |b: &Dim| match first {
            true => vec![b.clone(), directions.clone(), hidden.clone()],
            false => vec![directions.clone(), b.clone(), hidden.clone()],
        };
        let check = |i: usize, name: &str, want: Vec<Dim>| match at(i) {
            None => Ok(want),
            Some(dims) => {
                let fits = dims.len() == want.len();
                let united = dims.iter().zip(&want).map(|(a, b)| b.unify(a)).collect::<Option<Vec<_>>>();
                united.filter(|_| fits).ok_or_else(|| format!("{name} {} must be {}", show(dims), show(&want)))
            }
        };
        check(1, "the weight", vec![directions.clone(), times(gates), features])?;
        check(2, "the recurrent weight", vec![directions.clone(), times(gates), hidden.clone()])?;
        check(3, "the bias", vec![directions.clone(), times(2 * gates)])?;
        batch = check(4, "the list of sequence lengths", vec![batch])?.swap_remove(0);
        for (i, name) in [(5, "initial_h"), (6, "initial_c")] {
            batch = check(i, name, state(&batch))?.swap_remove(usize::from(!first));
        }
        check(7, "the peephole weight", vec![directions.clone(), times(3)])?;
        Ok(Extents { steps, batch, hidden })
    }

    /// Dims of all hidden states, and of the last ones.
    fn outputs(self, node: &Node) -> Result<[Vec<Dim>; 2], OpError> {
        let Extents { steps, batch, hidden } = self;
        let directions = Dim::Known(directions(node)?.len());
        Ok(match batch_first(node)? {
            true => [vec![batch.clone(), steps, directions.clone(), hidden.clone()], vec![batch, directions, hidden]],
            false => [vec![steps, directions.clone(), batch.clone(), hidden.clone()], vec![directions, batch, hidden]],
        })
    }
}

fn infer(cx: &InferCx, gates: usize) -> Types {
    let x = float_ty(cx, 0)?;
    let dims = (0..8).map(|i| if cx.has(i) { cx.dims(i) } else { Ok(None) }).collect::<Result<Vec<_>, _>>()?;
    for i in [1, 2, 3, 5, 6, 7].into_iter().filter(|&i| i < 3 || cx.has(i)) {
        same_dtype(x, cx.ty(i)?)?;
    }
    functions(cx.node)?;
    let [all, last] = Extents::of(cx.node, gates, &dims)?.outputs(cx.node)?;
    let last = TensorType::with_dims(x.dtype, last);
    Ok(vec![TensorType::with_dims(x.dtype, all), last.clone(), last])
}

/// A function of a gate, its `alpha` and `beta` set.
type Function = Box<dyn Fn(f64) -> f64>;

/// Name, default `alpha` and `beta` (`None` where the function has none), and the function of a number and these two.
type Family = (&'static str, Option<f64>, Option<f64>, fn(f64, f64, f64) -> f64);

const FUNCTIONS: &[Family] = &[
    ("sigmoid", None, None, |x, _, _| 1.0 / (1.0 + (-x).exp())),
    ("tanh", None, None, |x, _, _| x.tanh()),
    ("relu", None, None, |x, _, _| x.max(0.0)),
    ("softplus", None, None, |x, _, _| x.max(0.0) + (-x.abs()).exp().ln_1p()),
    ("softsign", None, None, |x, _, _| x / (1.0 + x.abs())),
    ("affine", Some(1.0), Some(0.0), |x, a, b| a * x + b),
    ("leakyrelu", Some(0.01), None, |x, a, _| if x < 0.0 { a * x } else { x }),
    ("thresholdedrelu", Some(1.0), None, |x, a, _| if x > a { x } else { 0.0 }),
    ("scaledtanh", Some(1.0), Some(1.0), |x, a, b| a * (b * x).tanh()),
    ("hardsigmoid", Some(0.2), Some(0.5), |x, a, b| (a * x + b).clamp(0.0, 1.0)),
    ("elu", Some(1.0), None, |x, a, _| if x < 0.0 { a * x.exp_m1() } else { x }),
];

/// The functions of each direction. `activation_alpha` and `activation_beta` are consumed in order by those that have
/// such a parameter.
fn functions(node: &Node) -> Result<Vec<Vec<Function>>, OpError> {
    let default: &[&str] = match node.op.as_str() {
        "LSTM" => &["sigmoid", "tanh", "tanh"],
        "GRU" => &["sigmoid", "tanh"],
        _ => &["tanh"],
    };
    let (directions, each) = (directions(node)?.len(), default.len());
    let names: Vec<String> = match node.attrs.get("activations") {
        None => default.iter().cycle().take(directions * each).map(|&n| n.to_owned()).collect(),
        Some(Attr::Strs(names)) => names.iter().map(|n| String::from_utf8_lossy(n).to_lowercase()).collect(),
        Some(_) => op_bail!("attribute 'activations' must be a list of names"),
    };
    if names.len() != directions * each {
        op_bail!("{} activations are named; {directions} directions of {each} are needed", names.len());
    }
    let mut alphas = node.floats("activation_alpha").unwrap_or(&[]).iter();
    let mut betas = node.floats("activation_beta").unwrap_or(&[]).iter();
    let mut all = vec![];
    for name in names {
        let known = FUNCTIONS.iter().find(|(n, ..)| *n == name);
        let &(_, alpha, beta, f) = known.ok_or_else(|| format!("activation '{name}' is unknown"))?;
        let alpha = alpha.map_or(0.0, |default| alphas.next().map_or(default, |&a| f64::from(a)));
        let beta = beta.map_or(0.0, |default| betas.next().map_or(default, |&b| f64::from(b)));
        all.push(Box::new(move |x| f(x, alpha, beta)) as Function);
    }
    let mut all = all.into_iter();
    Ok((0..directions).map(|_| all.by_ref().take(each).collect()).collect())
}

/// One direction of a layer.
struct Cell<'a> {
    op: &'a str,
    hidden: usize,
    w: ArrayView2<'a, f64>,
    r: ArrayView2<'a, f64>,
    /// Biases of `w` and of `r`.
    bias: [Array1<f64>; 2],
    /// Weights from the cell state to the input, output and forget gates.
    peephole: Array1<f64>,
    functions: Vec<Function>,
    clip: Option<f64>,
    /// `input_forget` of LSTM, `linear_before_reset` of GRU.
    flag: bool,
}

impl Cell<'_> {
    /// Function `i` of a gate's sum.
    fn act(&self, i: usize, sum: Array1<f64>) -> Array1<f64> {
        sum.mapv_into(|v| (self.functions[i])(self.clip.map_or(v, |c| v.clamp(-c, c))))
    }

    /// Hidden and cell state after one step.
    fn step(&self, x: ArrayView1<f64>, h: &Array1<f64>, c: &Array1<f64>) -> (Array1<f64>, Array1<f64>) {
        let part = |v: &Array1<f64>, i: usize| range(v, i * self.hidden, self.hidden);
        let (from_x, from_h) = (self.w.dot(&x) + &self.bias[0], self.r.dot(h) + &self.bias[1]);
        let sum = |i: usize| part(&from_x, i) + part(&from_h, i);
        match self.op {
            "LSTM" => {
                let seen = |i: usize, c: &Array1<f64>| part(&self.peephole, i) * c;
                let input = self.act(0, sum(0) + seen(0, c));
                let forget = if self.flag { 1.0 - &input } else { self.act(0, sum(2) + seen(2, c)) };
                let cell = forget * c + input * self.act(1, sum(3));
                let output = self.act(0, sum(1) + seen(1, &cell));
                (output * cell.mapv(&self.functions[2]), cell)
            }
            "GRU" => {
                let (update, reset) = (self.act(0, sum(0)), self.act(0, sum(1)));
                let recalled = if self.flag {
                    reset * part(&from_h, 2)
                } else {
                    self.r.slice_axis(Axis(0), Slice::from(2 * self.hidden..)).dot(&(reset * h))
                        + part(&self.bias[1], 2)
                };
                let candidate = self.act(1, part(&from_x, 2) + recalled);
                ((1.0 - &update) * candidate + update * h, c.clone())
            }
            _ => (self.act(0, sum(0)), c.clone()),
        }
    }
}

/// `n` entries from `start` on.
fn range(v: &Array1<f64>, start: usize, n: usize) -> Array1<f64> {
    v.slice_axis(Axis(0), Slice::from(start..start + n)).to_owned()
}

/// The vector at `[i, j]`.
fn at(a: &Array3<f64>, i: usize, j: usize) -> ArrayView1<'_, f64> {
    a.index_axis(Axis(0), i).index_axis_move(Axis(0), j)
}

/// Replaces the vector at `[i, j]`.
fn set(a: &mut Array3<f64>, i: usize, j: usize, v: &Array1<f64>) {
    a.index_axis_mut(Axis(0), i).index_axis_move(Axis(0), j).assign(v);
}

fn rank3(a: &ArrayD<f64>) -> Result<Array3<f64>, OpError> {
    Ok(a.to_owned().into_dimensionality::<Ix3>()?)
}

fn eval(cx: &EvalCx) -> Values {
    let (node, x) = (cx.node, cx.array(0)?);
    let gates = match node.op.as_str() {
        "LSTM" => 4,
        "GRU" => 3,
        _ => 1,
    };
    let shapes: Vec<Option<Vec<Dim>>> = (0..8).map(|i| cx.opt(i).map(|a| known(a.shape()))).collect();
    let dims: Vec<Option<&[Dim]>> = shapes.iter().map(Option::as_deref).collect();
    let extents = Extents::of(node, gates, &dims)?;
    let (Some(steps), Some(batch), Some(hidden)) =
        (extents.steps.known(), extents.batch.known(), extents.hidden.known())
    else {
        op_bail!("inputs 0, 1 and 2 are needed");
    };
    let (backwards, first) = (directions(node)?, batch_first(node)?);
    check_size(&[steps, backwards.len(), batch, hidden])?;
    // Data and states with the batch as axis 1.
    let steps_first = |a: Array3<f64>| if first { a.permuted_axes([1, 0, 2]) } else { a };
    let (data, w, r) = (steps_first(rank3(x.f()?)?), rank3(cx.array(1)?.f()?)?, rank3(cx.array(2)?.f()?)?);
    let state = |i: usize| match cx.opt(i) {
        Some(a) => Ok(steps_first(rank3(a.f()?)?)),
        None => Ok::<_, OpError>(Array3::zeros([backwards.len(), batch, hidden])),
    };
    let (mut last_h, mut last_c) = (state(5)?, state(6)?);
    let lens = cx.ints(4)?.unwrap_or_else(|| vec![steps as i64; batch]);
    if let Some(len) = lens.iter().find(|&&n| n < 0 || n > steps as i64) {
        op_bail!("sequence length {len} is outside {steps} steps");
    }
    let clip = node.attrs.contains_key("clip").then(|| float_attr(node, "clip", 0.0)).transpose()?;
    let flag = flag_attr(node, if gates == 4 { "input_forget" } else { "linear_before_reset" }, false)?;
    let row = |i: usize, d: usize, n: usize| match cx.opt(i) {
        Some(a) => Ok(a.f()?.view().into_dimensionality::<Ix2>()?.row(d).to_owned()),
        None => Ok::<_, OpError>(Array1::zeros(n)),
    };
    let mut all = Array4::zeros([steps, backwards.len(), batch, hidden]);
    for (d, functions) in functions(node)?.into_iter().enumerate() {
        let bias = row(3, d, 2 * gates * hidden)?;
        let cell = Cell {
            op: &node.op,
            hidden,
            w: w.index_axis(Axis(0), d),
            r: r.index_axis(Axis(0), d),
            bias: [range(&bias, 0, gates * hidden), range(&bias, gates * hidden, gates * hidden)],
            peephole: row(7, d, 3 * hidden)?,
            functions,
            clip: clip.filter(|c| *c > 0.0),
            flag,
        };
        for (b, &len) in lens.iter().enumerate() {
            let (mut h, mut c) = (at(&last_h, d, b).to_owned(), at(&last_c, d, b).to_owned());
            for t in 0..len as usize {
                let t = if backwards[d] { len as usize - 1 - t } else { t };
                (h, c) = cell.step(at(&data, t, b), &h, &c);
                all.index_axis_mut(Axis(1), d).index_axis_move(Axis(0), t).index_axis_move(Axis(0), b).assign(&h);
            }
            set(&mut last_h, d, b, &h);
            set(&mut last_c, d, b, &c);
        }
    }
    let all = if first { all.permuted_axes([2, 0, 1, 3]) } else { all };
    let float = |a: ArrayD<f64>| Array::float(x.dtype, a.as_standard_layout().into_owned());
    Ok(vec![float(all.into_dyn()), float(steps_first(last_h).into_dyn()), float(steps_first(last_c).into_dyn())])
}
