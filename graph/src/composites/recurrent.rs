//! LSTM, GRU and RNN as the primitives of their steps, unrolled: both directions, initial states, sequence lengths,
//! peepholes, clipping. Formulas: the ONNX operator specification.

use super::Composite;
use super::place::turned;
use crate::{Attr, Node, Var};
use limbeck_tensor::DType;

/// Most steps that are unrolled.
const LONGEST: usize = 1024;

/// Hidden state and, for LSTM, cell state, `[batch, hidden]` each.
type State<'c> = (Var<'c>, Var<'c>);

/// A function of a gate.
type Activation = for<'c> fn(Var<'c>) -> Var<'c>;

/// Activations without parameters, by their lower-case names.
const ACTIVATIONS: &[(&str, Activation)] = &[
    ("sigmoid", |x| x.sigmoid()),
    ("tanh", |x| x.tanh()),
    ("relu", |x| x.relu()),
    ("softplus", |x| x.softplus()),
    ("softsign", |x| x / (x.abs() + 1.0)),
];

/// One direction of a layer: weights `w` `[gates * hidden, input]` and `r` `[gates * hidden, hidden]`, biases of both.
struct Cell<'r, 'c> {
    node: &'r Node,
    hidden: usize,
    w: Var<'c>,
    r: Var<'c>,
    bias: Option<(Var<'c>, Var<'c>)>,
    peepholes: Option<Var<'c>>,
    activations: Vec<Activation>,
}

/// The outputs of the layer: all hidden states `[steps, directions, batch, hidden]`, the last ones
/// `[directions, batch, hidden]`, and for LSTM the last cell states.
pub(super) fn unroll<'c>(op: &Composite<'_, 'c>) -> Result<Vec<Var<'c>>, String> {
    let node = op.node;
    let input = |i: usize| op.opt(i);
    let (x, w, r) = (op.x(0)?, op.x(1)?, op.x(2)?);
    let batch_first = node.int("layout").unwrap_or(0) != 0;
    let steps_first = |v: Var<'c>| if batch_first { v.transpose(&[1, 0, 2]) } else { v };
    let (&[directions, _, hidden], 3) = (&r.shape()[..], x.rank()) else {
        return Err(format!("data {:?} and recurrent weights {:?} must have rank 3", x.shape(), r.shape()));
    };
    let x = steps_first(x);
    let (steps, batch) = (x.dim(0), x.dim(1));
    let directions_reversed: &[bool] = match (node.str("direction").unwrap_or("forward"), directions) {
        ("forward", 1) => &[false],
        ("reverse", 1) => &[true],
        ("bidirectional", 2) => &[false, true],
        (other, _) => return Err(format!("direction '{other}' does not fit weights of {directions} directions")),
    };
    if steps == 0 || steps > LONGEST {
        return Err(format!("{steps} steps cannot be unrolled; 1 to {LONGEST} can"));
    }
    let lengths = input(4).map(|n| n.cast(DType::I64));
    let zero = x.cx().full(0.0, x.dtype(), &[batch, hidden]);
    let turn = |v: Var<'c>| reversed(v, lengths);
    let (mut all, mut last_h, mut last_c) = (vec![], vec![], vec![]);
    for (d, &reverse) in directions_reversed.iter().enumerate() {
        let own = |v: Var<'c>| v.slice(0, d, d + 1).squeeze(&[0]);
        let state = |i: usize| input(i).map_or(zero, |v| own(steps_first(v)));
        let cell = Cell {
            node,
            hidden,
            w: own(w),
            r: own(r),
            bias: input(3).map(|b| halves(own(b))),
            peepholes: input(7).map(own),
            activations: activations(node, d)?,
        };
        let (hs, (h, c)) = cell.run(if reverse { turn(x) } else { x }, (state(5), state(6)), lengths);
        all.push(if reverse { turn(hs) } else { hs }.unsqueeze(&[1]));
        last_h.push(h.unsqueeze(&[0]));
        last_c.push(c.unsqueeze(&[0]));
    }
    let y = all[0].concat(&all[1..], 1);
    let [h, c] = [&last_h, &last_c].map(|v| steps_first(v[0].concat(&v[1..], 0)));
    let y = if batch_first { y.transpose(&[2, 0, 1, 3]) } else { y };
    Ok(vec![y, h, c])
}

/// `v` `[steps, batch, n]` with its steps in reverse order, each row up to its length.
fn reversed<'c>(v: Var<'c>, lengths: Option<Var<'c>>) -> Var<'c> {
    let backwards = || v.gather(v.cx().ints(&(0..v.dim(0) as i64).rev().collect::<Vec<_>>()), 0);
    lengths.map_or_else(backwards, |lengths| turned(v, lengths, 0))
}

/// First and second half of a vector.
fn halves(v: Var<'_>) -> (Var<'_>, Var<'_>) {
    let n = v.len();
    (v.slice(0, 0, n / 2), v.slice(0, n / 2, n))
}

/// The functions of direction `d`: three for LSTM, two for GRU, one for RNN.
fn activations(node: &Node, d: usize) -> Result<Vec<Activation>, String> {
    let default: &[&str] = match node.op.as_str() {
        "LSTM" => &["Sigmoid", "Tanh", "Tanh"],
        "GRU" => &["Sigmoid", "Tanh"],
        _ => &["Tanh"],
    };
    let n = default.len();
    let names: Vec<String> = match node.attrs.get("activations") {
        Some(Attr::Strs(given)) => {
            let own = given.iter().skip(d * n).take(n);
            own.map(|name| String::from_utf8_lossy(name.as_ref()).to_lowercase()).collect()
        }
        _ => default.iter().map(|name| name.to_lowercase()).collect(),
    };
    if names.len() != n {
        return Err(format!("direction {d} needs {n} activations, not {}", names.len()));
    }
    let find = |name: &String| ACTIVATIONS.iter().find(|(known, _)| known == name).map(|(_, f)| *f);
    names.iter().map(|name| find(name).ok_or_else(|| format!("activation '{name}' has no composition"))).collect()
}

impl<'c> Cell<'_, 'c> {
    /// Hidden states of all steps `[steps, batch, hidden]` and the last state. Behind its length a row keeps its
    /// state and has zeros.
    fn run(&self, x: Var<'c>, start: State<'c>, lengths: Option<Var<'c>>) -> (Var<'c>, State<'c>) {
        let cx = x.cx();
        let projected = x.matmul(self.w.t());
        let projected = self.bias.map_or(projected, |(b, _)| projected + b);
        let (mut state, mut hs) = (start, vec![]);
        for t in 0..x.dim(0) {
            let mut next = self.step(projected.slice(0, t, t + 1).squeeze(&[0]), state);
            let mut shown = next.0;
            if let Some(lengths) = lengths {
                let within = lengths.greater(cx.scalar_of(t as f64, DType::I64)).unsqueeze(&[1]);
                shown = within.select(shown, cx.scalar_of(0.0, x.dtype()));
                next = (within.select(next.0, state.0), within.select(next.1, state.1));
            }
            hs.push(shown.unsqueeze(&[0]));
            state = next;
        }
        (hs[0].concat(&hs[1..], 0), state)
    }

    /// One step from the projected data `[batch, gates * hidden]` and the state before it.
    fn step(&self, x: Var<'c>, (h, c): State<'c>) -> State<'c> {
        let gate = |v: Var<'c>, i: usize| v.slice(-1, i * self.hidden, (i + 1) * self.hidden);
        let from_h = h.matmul(self.r.t());
        let from_h = self.bias.map_or(from_h, |(_, b)| from_h + b);
        match self.node.op.as_str() {
            "LSTM" => {
                let sum = x + from_h;
                let seen = |v: Var<'c>, i: usize, c: Var<'c>| self.peepholes.map_or(v, |p| v + gate(p, i) * c);
                let input = self.act(0, seen(gate(sum, 0), 0, c));
                let forget = match self.node.int("input_forget").unwrap_or(0) {
                    0 => self.act(0, seen(gate(sum, 2), 2, c)),
                    _ => 1.0 - input,
                };
                let cell = forget * c + input * self.act(1, gate(sum, 3));
                let output = self.act(0, seen(gate(sum, 1), 1, cell));
                (output * self.activations[2](cell), cell)
            }
            "GRU" => {
                let update = self.act(0, gate(x, 0) + gate(from_h, 0));
                let reset = self.act(0, gate(x, 1) + gate(from_h, 1));
                let recalled = match self.node.int("linear_before_reset").unwrap_or(0) {
                    0 => {
                        let r = self.r.slice(0, 2 * self.hidden, 3 * self.hidden);
                        let recalled = (reset * h).matmul(r.t());
                        self.bias.map_or(recalled, |(_, b)| recalled + gate(b, 2))
                    }
                    _ => reset * gate(from_h, 2),
                };
                let candidate = self.act(1, gate(x, 2) + recalled);
                ((1.0 - update) * candidate + update * h, c)
            }
            _ => (self.act(0, x + from_h), c),
        }
    }

    /// Function `i` of a gate, clipped before when the node says so.
    fn act(&self, i: usize, v: Var<'c>) -> Var<'c> {
        let clipped = match self.node.float("clip").map(f64::from) {
            Some(bound) if bound > 0.0 => v.at_least(-bound).at_most(bound),
            _ => v,
        };
        self.activations[i](clipped)
    }
}
