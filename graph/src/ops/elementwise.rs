//! Element by element: arithmetic, mathematical functions, casts, choice, and the two gradient markers of
//! Limbeck's own domain.

use super::support::{flag_attr, int_attr, narrow_float, str_attr};
use super::util::{
    Types, Values, binary, bool_ty, broadcast_types, broadcast2, check_same_shape, expand, float_ty, is_number,
    like_float, like_number, like_signed, map_float, map_number, max, min, number_ty, number2, same_dtype,
};
use super::{EvalCx, InferCx, OpSpec, broadcast_shapes, op, own};
use crate::types::TensorType;
use crate::{Array, ArrayData, Node, OpError, op_bail};
use limbeck_tensor::DType;
use ndarray::ArrayD;

pub(super) const OPS: &[OpSpec] = &[
    op("Add", numbers2, |cx| arith(cx, |a, b| a + b, |a, b| Ok(a.wrapping_add(b)))),
    op("Sub", numbers2, |cx| arith(cx, |a, b| a - b, |a, b| Ok(a.wrapping_sub(b)))),
    op("Mul", numbers2, |cx| arith(cx, |a, b| a * b, |a, b| Ok(a.wrapping_mul(b)))),
    op("Div", numbers2, |cx| arith(cx, |a, b| a / b, |a, b| nonzero(b).map(|b| a.wrapping_div(b)))),
    op("Mod", infer_mod, eval_mod),
    op("Pow", infer_pow, eval_pow),
    op("Neg", like_signed, |cx| map_number(cx, |x| -x, i64::wrapping_neg)),
    op("Abs", like_number, |cx| map_number(cx, f64::abs, i64::wrapping_abs)),
    op("Sign", like_number, |cx| map_number(cx, sign, i64::signum)),
    op("Reciprocal", like_float, |cx| map_float(cx, f64::recip)),
    op("Sqrt", like_float, |cx| map_float(cx, f64::sqrt)),
    op("Exp", like_float, |cx| map_float(cx, f64::exp)),
    op("Log", like_float, |cx| map_float(cx, f64::ln)),
    op("Floor", like_float, |cx| map_float(cx, f64::floor)),
    op("Ceil", like_float, |cx| map_float(cx, f64::ceil)),
    op("Round", like_float, |cx| map_float(cx, f64::round_ties_even)),
    op("Sin", like_float, |cx| map_float(cx, f64::sin)),
    op("Cos", like_float, |cx| map_float(cx, f64::cos)),
    op("Tan", like_float, |cx| map_float(cx, f64::tan)),
    op("Asin", like_float, |cx| map_float(cx, f64::asin)),
    op("Acos", like_float, |cx| map_float(cx, f64::acos)),
    op("Atan", like_float, |cx| map_float(cx, f64::atan)),
    op("Sinh", like_float, |cx| map_float(cx, f64::sinh)),
    op("Cosh", like_float, |cx| map_float(cx, f64::cosh)),
    op("Asinh", like_float, |cx| map_float(cx, f64::asinh)),
    op("Acosh", like_float, |cx| map_float(cx, f64::acosh)),
    op("Atanh", like_float, |cx| map_float(cx, f64::atanh)),
    op("Erf", like_number, |cx| map_number(cx, libm::erf, |x| libm::erf(x as f64) as i64)),
    op("Max", |cx| variadic(cx, number_ty), |cx| fold(cx, max, |a, b| Ok(a.max(b)))),
    op("Min", |cx| variadic(cx, number_ty), |cx| fold(cx, min, |a, b| Ok(a.min(b)))),
    op("Sum", |cx| variadic(cx, float_ty), |cx| fold(cx, |a, b| a + b, no_integers)),
    op("Mean", |cx| variadic(cx, float_ty), eval_mean),
    op("Clip", infer_clip, eval_clip),
    op("Cast", infer_cast, eval_cast),
    op("CastLike", infer_cast_like, eval_cast_like),
    op("Identity", |cx| Ok(vec![cx.ty(0)?.clone()]), |cx| Ok(vec![cx.array(0)?.clone()])),
    op("Where", infer_where, eval_where),
    op("Dropout", infer_dropout, eval_dropout),
    own("StopGradient", |cx| Ok(vec![cx.ty(0)?.clone()]), |cx| Ok(vec![cx.array(0)?.clone()])),
    own("WithGrad", infer_with_grad, eval_with_grad),
];

fn numbers2(cx: &InferCx) -> Types {
    Ok(vec![binary(cx, number_ty)?])
}

fn arith(cx: &EvalCx, on_float: fn(f64, f64) -> f64, on_int: fn(i64, i64) -> Result<i64, OpError>) -> Values {
    Ok(vec![number2(cx.array(0)?, cx.array(1)?, on_float, on_int)?])
}

/// `divisor`, or an error when it is 0.
fn nonzero(divisor: i64) -> Result<i64, OpError> {
    if divisor == 0 { Err(OpError("integer division by zero".into())) } else { Ok(divisor) }
}

fn no_integers(_: i64, _: i64) -> Result<i64, OpError> {
    Err(OpError("float tensors are needed".into()))
}

fn sign(x: f64) -> f64 {
    if x == 0.0 || x.is_nan() { x } else { x.signum() }
}

fn infer_mod(cx: &InferCx) -> Types {
    let ty = binary(cx, number_ty)?;
    if ty.dtype.is_float() && !flag_attr(cx.node, "fmod", false)? {
        op_bail!("the operands are {}; floats need the attribute fmod = 1", ty.dtype);
    }
    Ok(vec![ty])
}

/// `fmod` = 1 takes the sign of the dividend (C), 0 that of the divisor (Python).
fn eval_mod(cx: &EvalCx) -> Values {
    let c_sign = flag_attr(cx.node, "fmod", false)?;
    if !c_sign && cx.array(0)?.i().is_err() {
        op_bail!("floats need the attribute fmod = 1");
    }
    let on_int = |a: i64, b: i64| {
        let r = a.wrapping_rem(nonzero(b)?);
        Ok(if !c_sign && r != 0 && (r < 0) != (b < 0) { r + b } else { r })
    };
    Ok(vec![number2(cx.array(0)?, cx.array(1)?, |a, b| a % b, on_int)?])
}

fn infer_pow(cx: &InferCx) -> Types {
    let (a, b) = (number_ty(cx, 0)?, number_ty(cx, 1)?);
    Ok(vec![TensorType { dtype: a.dtype, dims: broadcast_types(&[a, b])? }])
}

fn eval_pow(cx: &EvalCx) -> Values {
    let (a, b) = (cx.array(0)?, cx.array(1)?);
    let data = match (&a.data, &b.data) {
        (ArrayData::Float(x), _) => ArrayData::Float(broadcast2(x, &b.to_f64(), |x, y| Ok(x.powf(y)))?),
        (ArrayData::Int(x), ArrayData::Int(y)) => ArrayData::Int(broadcast2(x, y, int_pow)?),
        (ArrayData::Int(x), ArrayData::Float(y)) => {
            ArrayData::Int(broadcast2(x, y, |x, y| Ok((x as f64).powf(y) as i64))?)
        }
    };
    Ok(vec![Array { dtype: a.dtype, data }])
}

/// `base` to the power of `exponent`, wrapping; fractions are truncated.
fn int_pow(base: i64, exponent: i64) -> Result<i64, OpError> {
    if exponent < 0 {
        return Ok(match nonzero(base)? {
            1 => 1,
            -1 => 1 - 2 * (exponent & 1),
            _ => 0,
        });
    }
    let (mut base, mut left, mut product) = (base, exponent, 1i64);
    while left > 0 {
        if left & 1 == 1 {
            product = product.wrapping_mul(base);
        }
        base = base.wrapping_mul(base);
        left >>= 1;
    }
    Ok(product)
}

fn variadic<'a>(cx: &InferCx<'a>, check: impl Fn(&InferCx<'a>, usize) -> Result<&'a TensorType, OpError>) -> Types {
    let types = (0..cx.inputs.len().max(1)).map(|i| check(cx, i)).collect::<Result<Vec<_>, _>>()?;
    types.iter().try_for_each(|ty| same_dtype(types[0], ty))?;
    Ok(vec![TensorType { dtype: types[0].dtype, dims: broadcast_types(&types)? }])
}

fn fold(cx: &EvalCx, on_float: fn(f64, f64) -> f64, on_int: fn(i64, i64) -> Result<i64, OpError>) -> Values {
    let mut total = cx.array(0)?.clone();
    for i in 1..cx.inputs.len() {
        total = number2(&total, cx.array(i)?, on_float, on_int)?;
    }
    Ok(vec![total])
}

fn eval_mean(cx: &EvalCx) -> Values {
    let count = cx.inputs.len() as f64;
    let sum = fold(cx, |a, b| a + b, no_integers)?;
    sum.into_iter().map(|s| Ok(Array::float(s.dtype, s.f()? / count))).collect()
}

fn infer_clip(cx: &InferCx) -> Types {
    let x = number_ty(cx, 0)?;
    for i in (1..3).filter(|&i| cx.has(i)) {
        let bound = cx.ty(i)?;
        same_dtype(x, bound)?;
        if bound.rank().is_some_and(|r| r != 0) {
            op_bail!("the bound {bound} must be a scalar");
        }
    }
    Ok(vec![x.clone()])
}

fn eval_clip(cx: &EvalCx) -> Values {
    let mut x = cx.array(0)?.clone();
    if let Some(low) = cx.opt(1) {
        x = number2(&x, low, max, |a, b| Ok(a.max(b)))?;
    }
    if let Some(high) = cx.opt(2) {
        x = number2(&x, high, min, |a, b| Ok(a.min(b)))?;
    }
    if x.shape() != cx.array(0)?.shape() {
        op_bail!("the bounds must be scalars");
    }
    Ok(vec![x])
}

fn castable(dtype: DType) -> bool {
    is_number(dtype) || dtype.is_narrow_float() || matches!(dtype, DType::Bool | DType::I4 | DType::U4)
}

fn cast_type(from: &TensorType, to: DType) -> Types {
    if !castable(from.dtype) || !castable(to) {
        op_bail!("Limbeck casts between floats, integers and bools, not from {} to {to}", from.dtype);
    }
    Ok(vec![TensorType { dtype: to, dims: from.dims.clone() }])
}

/// Floats are truncated towards zero on their way to integers; what does not fit is undefined in ONNX.
fn cast(node: &Node, x: &Array, to: DType) -> Values {
    let saturate = flag_attr(node, "saturate", true)?;
    let data = match &x.data {
        _ if to == DType::F8E8M0 => {
            ArrayData::Float(powers(&x.to_f64(), str_attr(node, "round_mode", "up")?, saturate)?)
        }
        _ if to.is_narrow_float() => return Ok(vec![narrow_float(to, &x.to_f64(), saturate)?]),
        _ if !castable(to) => op_bail!("Limbeck does not cast to {to}"),
        ArrayData::Float(a) if to == DType::Bool => ArrayData::Int(a.mapv(|v| i64::from(v != 0.0))),
        ArrayData::Int(a) if to == DType::Bool => ArrayData::Int(a.mapv(|v| i64::from(v != 0))),
        _ if to.is_float() => ArrayData::Float(x.to_f64()),
        ArrayData::Float(a) => ArrayData::Int(a.mapv(|v| v as i64)),
        ArrayData::Int(a) => ArrayData::Int(a.clone()),
    };
    Ok(vec![Array { dtype: to, data }])
}

/// The power of two that float8e8m0 has for each number. Negative ones have none.
fn powers(x: &ArrayD<f64>, mode: &str, saturate: bool) -> Result<ArrayD<f64>, OpError> {
    let (least, most) = (2f64.powi(-127), 2f64.powi(127));
    let up: fn(f64) -> bool = match mode {
        "up" => |over| over > 1.0,
        "down" => |_| false,
        "nearest" => |over| over >= 1.5,
        other => op_bail!("round_mode is '{other}'; up, down and nearest are known"),
    };
    Ok(x.mapv(|x| {
        // Exact: the exponent of a number of the type, or beyond it.
        let below = if x < least || x > 2.0 * most { x } else { f64::from_bits(x.to_bits() >> 52 << 52) };
        let power = if x < least {
            least
        } else if up(x / below) {
            2.0 * below
        } else {
            below
        };
        match (saturate, power > most) {
            _ if x.is_nan() || x < 0.0 => f64::NAN,
            (true, true) => most,
            (false, true) => f64::NAN,
            _ => power,
        }
    }))
}

/// The dtype named by the attribute `to`.
fn cast_to(node: &Node) -> Result<DType, OpError> {
    let code = int_attr(node, "to", 0)?;
    i32::try_from(code)
        .ok()
        .and_then(DType::from_onnx)
        .ok_or_else(|| OpError(format!("attribute 'to' = {code} names no dtype")))
}

fn infer_cast(cx: &InferCx) -> Types {
    cast_type(cx.ty(0)?, cast_to(cx.node)?)
}

fn eval_cast(cx: &EvalCx) -> Values {
    cast(cx.node, cx.array(0)?, cast_to(cx.node)?)
}

fn infer_cast_like(cx: &InferCx) -> Types {
    cast_type(cx.ty(0)?, cx.dtype(1)?)
}

fn eval_cast_like(cx: &EvalCx) -> Values {
    cast(cx.node, cx.array(0)?, cx.array(1)?.dtype)
}

fn infer_where(cx: &InferCx) -> Types {
    let (condition, x, y) = (bool_ty(cx, 0)?, cx.ty(1)?, cx.ty(2)?);
    same_dtype(x, y)?;
    Ok(vec![TensorType { dtype: x.dtype, dims: broadcast_types(&[condition, x, y])? }])
}

fn eval_where(cx: &EvalCx) -> Values {
    fn choose<T: Copy>(condition: &ArrayD<i64>, x: &ArrayD<T>, y: &ArrayD<T>) -> Result<ArrayD<T>, OpError> {
        let shape = broadcast_shapes(&broadcast_shapes(x.shape(), y.shape())?, condition.shape())?;
        let (condition, y) = (expand(condition, &shape)?, expand(y, &shape)?);
        let mut out = expand(x, &shape)?;
        ndarray::Zip::from(&mut out).and(&condition).and(&y).for_each(|o, &c, &y| {
            if c == 0 {
                *o = y;
            }
        });
        Ok(out)
    }
    let (condition, x, y) = (cx.array(0)?.i()?, cx.array(1)?, cx.array(2)?);
    let data = match (&x.data, &y.data) {
        (ArrayData::Float(x), ArrayData::Float(y)) => ArrayData::Float(choose(condition, x, y)?),
        (ArrayData::Int(x), ArrayData::Int(y)) => ArrayData::Int(choose(condition, x, y)?),
        _ => op_bail!("the choices are {} and {}; one dtype is needed", x.dtype, y.dtype),
    };
    Ok(vec![Array { dtype: x.dtype, data }])
}

fn infer_dropout(cx: &InferCx) -> Types {
    let x = float_ty(cx, 0)?;
    let mask = TensorType { dtype: DType::Bool, dims: x.dims.clone() };
    Ok(vec![x.clone(), mask].into_iter().take(cx.node.outputs.len()).collect())
}

/// The identity of inference. Training draws random numbers, which a graph may only take as inputs.
fn eval_dropout(cx: &EvalCx) -> Values {
    if cx.ints(2)?.is_some_and(|v| v.iter().any(|&t| t != 0)) {
        op_bail!("training_mode is true; decompose first into a product with a mask that is an input");
    }
    let x = cx.array(0)?;
    let mask = Array::int(DType::Bool, x.f()?.mapv(|_| 1));
    Ok(vec![x.clone(), mask].into_iter().take(cx.node.outputs.len()).collect())
}

fn infer_with_grad(cx: &InferCx) -> Types {
    let (x, g) = (cx.ty(0)?, cx.ty(1)?);
    same_dtype(x, g)?;
    check_same_shape(x, g)?;
    Ok(vec![x.clone()])
}

fn eval_with_grad(cx: &EvalCx) -> Values {
    let (x, g) = (cx.array(0)?, cx.array(1)?);
    if x.shape() != g.shape() {
        op_bail!("the value of shape {:?} and the gradient of shape {:?} differ", x.shape(), g.shape());
    }
    Ok(vec![x.clone()])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Powers by the definition, fractions truncated.
    #[test]
    fn integer_powers() {
        for (base, exponent, want) in
            [(3, 4, 81), (-2, 5, -32), (0, 0, 1), (1, -3, 1), (-1, -3, -1), (-1, -4, 1), (5, -1, 0)]
        {
            assert_eq!(int_pow(base, exponent).ok(), Some(want), "{base} ^ {exponent}");
        }
        assert_eq!(int_pow(2, 63).ok(), Some(i64::MIN));
        assert!(int_pow(0, -1).is_err());
    }
}
