//! The operators of a map, each as a loop over one block of values.

use super::math;
use super::reduce::{max, min};

/// An operator of ai.onnx that works value by value, or reduces; `ReduceVariance` is none of theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Op {
    Identity,
    Neg,
    Abs,
    Exp,
    Log,
    Sqrt,
    Reciprocal,
    Sigmoid,
    Tanh,
    Erf,
    Relu,
    Sign,
    Not,
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    And,
    Or,
    Where,
    ReduceSum,
    ReduceMean,
    ReduceVariance,
    ReduceMax,
    /// Whether `a` lies between `b` and `c`, two numbers: two comparisons and their conjunction.
    Between,
}

/// Name in ai.onnx, operator, operands. Truth is 1, untruth 0. A Cast from bool to float is the identity.
const TABLE: &[(&str, Op, usize)] = &[
    ("Identity", Op::Identity, 1),
    ("Cast", Op::Identity, 1),
    ("Neg", Op::Neg, 1),
    ("Abs", Op::Abs, 1),
    ("Exp", Op::Exp, 1),
    ("Log", Op::Log, 1),
    ("Sqrt", Op::Sqrt, 1),
    ("Reciprocal", Op::Reciprocal, 1),
    ("Sigmoid", Op::Sigmoid, 1),
    ("Tanh", Op::Tanh, 1),
    ("Erf", Op::Erf, 1),
    ("Relu", Op::Relu, 1),
    ("Sign", Op::Sign, 1),
    ("Not", Op::Not, 1),
    ("Add", Op::Add, 2),
    ("Sub", Op::Sub, 2),
    ("Mul", Op::Mul, 2),
    ("Div", Op::Div, 2),
    ("Min", Op::Min, 2),
    ("Max", Op::Max, 2),
    ("Equal", Op::Equal, 2),
    ("Less", Op::Less, 2),
    ("LessOrEqual", Op::LessOrEqual, 2),
    ("Greater", Op::Greater, 2),
    ("GreaterOrEqual", Op::GreaterOrEqual, 2),
    ("And", Op::And, 2),
    ("Or", Op::Or, 2),
    ("Where", Op::Where, 3),
    ("ReduceSum", Op::ReduceSum, 1),
    ("ReduceMean", Op::ReduceMean, 1),
    ("ReduceVariance", Op::ReduceVariance, 1),
    ("ReduceMax", Op::ReduceMax, 1),
];

impl Op {
    /// The operator of this name, and how many operands it has.
    pub(super) fn of(name: &str) -> Option<(Op, usize)> {
        TABLE.iter().find(|(n, ..)| *n == name).map(|&(_, op, operands)| (op, operands))
    }

    pub(super) fn reduces(self) -> bool {
        matches!(self, Op::ReduceSum | Op::ReduceMean | Op::ReduceVariance | Op::ReduceMax)
    }

    /// Whether operands may change places.
    pub(super) fn commutes(self) -> bool {
        matches!(self, Op::Add | Op::Mul)
    }

    /// Whether [`apply_two`] has it as the first operator, before this second one.
    pub(super) fn comes_before(self, second: Op) -> bool {
        match self {
            Op::Add | Op::Sub | Op::Mul | Op::Max | Op::Min | Op::Less | Op::Greater => {
                matches!(second, Op::Add | Op::Sub | Op::Mul | Op::Max | Op::Min | Op::Relu)
            }
            Op::Between => second == Op::Mul,
            _ => false,
        }
    }
}

/// An operand within a block: values as long as the result, or one for all.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Values(&'a [f32]),
    One(f32),
}
use Source::{One, Values};

/// `out = op(a, b, c)`, value by value; operands that the operator lacks are not read.
#[inline(always)]
pub(super) fn apply(op: Op, out: &mut [f32], [a, b, c, _]: [Source; 4]) {
    match op {
        Op::Identity => unary(out, a, |x| x),
        Op::Neg => unary(out, a, |x| -x),
        Op::Abs => unary(out, a, f32::abs),
        Op::Exp => unary(out, a, math::exp),
        Op::Log => unary(out, a, math::log),
        Op::Sqrt => unary(out, a, f32::sqrt),
        Op::Reciprocal => unary(out, a, |x| 1.0 / x),
        Op::Sigmoid => unary(out, a, math::sigmoid),
        Op::Tanh => unary(out, a, math::tanh),
        Op::Erf => unary(out, a, math::erf),
        Op::Relu => unary(out, a, relu),
        Op::Sign => unary(out, a, |x| {
            let sign = if x < 0.0 { -1.0 } else { x };
            if x > 0.0 { 1.0 } else { sign }
        }),
        Op::Not => unary(out, a, |x| 1.0 - x),
        Op::Add => binary(out, a, b, |x, y| x + y),
        Op::Sub => binary(out, a, b, |x, y| x - y),
        Op::Mul => binary(out, a, b, |x, y| x * y),
        Op::Div => binary(out, a, b, |x, y| x / y),
        Op::Min => binary(out, a, b, min),
        Op::Max => binary(out, a, b, max),
        Op::Equal => binary(out, a, b, |x, y| truth(x == y)),
        Op::Less => binary(out, a, b, |x, y| truth(x < y)),
        Op::LessOrEqual => binary(out, a, b, |x, y| truth(x <= y)),
        Op::Greater => binary(out, a, b, |x, y| truth(x > y)),
        Op::GreaterOrEqual => binary(out, a, b, |x, y| truth(x >= y)),
        Op::And => binary(out, a, b, |x, y| x * y),
        Op::Or => binary(out, a, b, max),
        Op::Where => match a {
            One(condition) => unary(out, if condition != 0.0 { b } else { c }, |x| x),
            Values(condition) => select(out, condition, b, c),
        },
        Op::Between => ternary(out, [a, b, c], between),
        Op::ReduceSum | Op::ReduceMean | Op::ReduceVariance | Op::ReduceMax => {}
    }
}

/// `out = second(first(a, b), c)`, or `second(first(a, b, c), d)`, value by value, for operators of which the first
/// [`Op::comes_before`] the second; `a` are values. What a second operator lacks is not read.
#[inline(always)]
pub(super) fn apply_two(first: Op, second: Op, out: &mut [f32], operands: [Source; 4]) {
    let [a, b, c, d] = operands;
    let operands = [a, b, c];
    match first {
        Op::Add => then(second, out, operands, |x, y| x + y),
        Op::Sub => then(second, out, operands, |x, y| x - y),
        Op::Mul => then(second, out, operands, |x, y| x * y),
        Op::Max => then(second, out, operands, max),
        Op::Min => then(second, out, operands, min),
        Op::Less => then(second, out, operands, |x, y| truth(x < y)),
        Op::Greater => then(second, out, operands, |x, y| truth(x > y)),
        Op::Between => {
            if let (One(low), One(high)) = (b, c) {
                binary(out, a, d, |x, y| between(x, low, high) * y);
            }
        }
        _ => {}
    }
}

#[inline(always)]
fn then(second: Op, out: &mut [f32], operands: [Source; 3], first: impl Fn(f32, f32) -> f32) {
    match second {
        Op::Add => ternary(out, operands, |x, y, z| first(x, y) + z),
        Op::Sub => ternary(out, operands, |x, y, z| first(x, y) - z),
        Op::Mul => ternary(out, operands, |x, y, z| first(x, y) * z),
        Op::Max => ternary(out, operands, |x, y, z| max(first(x, y), z)),
        Op::Min => ternary(out, operands, |x, y, z| min(first(x, y), z)),
        Op::Relu => ternary(out, operands, |x, y, _| relu(first(x, y))),
        _ => {}
    }
}

#[inline(always)]
pub(super) fn truth(x: bool) -> f32 {
    if x { 1.0 } else { 0.0 }
}

#[inline(always)]
fn between(x: f32, low: f32, high: f32) -> f32 {
    truth((x > low) & (x < high))
}

/// A comparison that NaN fails keeps NaN.
#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

// Plain loops: `for_each` over zipped slices may stay a function of its own, compiled for the oldest processors.

#[inline(always)]
fn unary(out: &mut [f32], a: Source, f: impl Fn(f32) -> f32) {
    match a {
        Values(a) => {
            for (out, &a) in out.iter_mut().zip(a) {
                *out = f(a);
            }
        }
        One(a) => out.fill(f(a)),
    }
}

#[inline(always)]
fn binary(out: &mut [f32], a: Source, b: Source, f: impl Fn(f32, f32) -> f32) {
    match (a, b) {
        (Values(a), Values(b)) => {
            for (out, (&a, &b)) in out.iter_mut().zip(a.iter().zip(b)) {
                *out = f(a, b);
            }
        }
        (Values(a), One(b)) => unary(out, Values(a), |a| f(a, b)),
        (One(a), Values(b)) => unary(out, Values(b), |b| f(a, b)),
        (One(a), One(b)) => out.fill(f(a, b)),
    }
}

#[inline(always)]
fn ternary(out: &mut [f32], [a, b, c]: [Source; 3], f: impl Fn(f32, f32, f32) -> f32) {
    let Values(a) = a else { return };
    match (b, c) {
        (Values(b), Values(c)) => {
            for ((out, &a), (&b, &c)) in out.iter_mut().zip(a).zip(b.iter().zip(c)) {
                *out = f(a, b, c);
            }
        }
        (Values(b), One(c)) => binary(out, Values(a), Values(b), |a, b| f(a, b, c)),
        (One(b), Values(c)) => binary(out, Values(a), Values(c), |a, c| f(a, b, c)),
        (One(b), One(c)) => unary(out, Values(a), |a| f(a, b, c)),
    }
}

#[inline(always)]
fn select(out: &mut [f32], condition: &[f32], a: Source, b: Source) {
    #[inline(always)]
    fn each(out: &mut [f32], condition: &[f32], a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32) {
        for (i, (out, &c)) in out.iter_mut().zip(condition).enumerate() {
            let (a, b) = (a(i), b(i));
            *out = if c != 0.0 { a } else { b };
        }
    }
    let len = out.len();
    match (a, b) {
        (Values(a), Values(b)) => {
            let (a, b) = (&a[..len], &b[..len]);
            each(out, condition, |i| a[i], |i| b[i]);
        }
        (Values(a), One(b)) => {
            let a = &a[..len];
            each(out, condition, |i| a[i], |_| b);
        }
        (One(a), Values(b)) => {
            let b = &b[..len];
            each(out, condition, |_| a, |i| b[i]);
        }
        (One(a), One(b)) => each(out, condition, |_| a, |_| b),
    }
}
