//! Helpers shared by the op families: dtype checks, broadcasting, mapping over lanes of axes.

use super::{EvalCx, InferCx, broadcast_dims, broadcast_shapes, normalize_axis};
use crate::types::{Dim, TensorType};
use crate::{Array, ArrayData, OpError, op_bail};
use limbeck_tensor::DType;
use ndarray::{ArrayD, IxDyn};

/// What `infer` returns.
pub(super) type Types = Result<Vec<TensorType>, OpError>;
/// What `eval` returns.
pub(super) type Values = Result<Vec<Array>, OpError>;

/// Elements beyond which the reference evaluator refuses to allocate a result.
const MAX_ELEMENTS: usize = 1 << 28;

/// Floats and integers of at least 8 bits.
pub(super) fn is_number(dtype: DType) -> bool {
    dtype.is_float() || dtype.is_int()
}

/// Numbers that can be negative.
pub(super) fn is_signed(dtype: DType) -> bool {
    dtype.is_float() || matches!(dtype, DType::I8 | DType::I16 | DType::I32 | DType::I64)
}

/// Type of input `i`, refused unless `accept` takes its dtype; `what` says which are taken.
pub(super) fn typed<'a>(
    cx: &InferCx<'a>,
    i: usize,
    what: &str,
    accept: impl Fn(DType) -> bool,
) -> Result<&'a TensorType, OpError> {
    let ty = cx.ty(i)?;
    if !accept(ty.dtype) {
        op_bail!("input {i} is {ty}; {what} is needed (insert a Cast)");
    }
    Ok(ty)
}

/// Type of the float input `i`.
pub(super) fn float_ty<'a>(cx: &InferCx<'a>, i: usize) -> Result<&'a TensorType, OpError> {
    typed(cx, i, "a float tensor", DType::is_float)
}

/// Type of the numeric input `i`.
pub(super) fn number_ty<'a>(cx: &InferCx<'a>, i: usize) -> Result<&'a TensorType, OpError> {
    typed(cx, i, "a float or integer tensor", is_number)
}

/// Type of the bool input `i`.
pub(super) fn bool_ty<'a>(cx: &InferCx<'a>, i: usize) -> Result<&'a TensorType, OpError> {
    typed(cx, i, "a bool tensor", |d| d == DType::Bool)
}

/// One output of the type of the float input 0.
pub(super) fn like_float(cx: &InferCx) -> Types {
    Ok(vec![float_ty(cx, 0)?.clone()])
}

/// One output of the type of the numeric input 0.
pub(super) fn like_number(cx: &InferCx) -> Types {
    Ok(vec![number_ty(cx, 0)?.clone()])
}

/// One output of the type of input 0, which must be able to be negative.
pub(super) fn like_signed(cx: &InferCx) -> Types {
    Ok(vec![typed(cx, 0, "a float or signed integer tensor", is_signed)?.clone()])
}

/// An error unless both tensors have one dtype.
pub(super) fn same_dtype(a: &TensorType, b: &TensorType) -> Result<(), OpError> {
    if a.dtype != b.dtype {
        op_bail!("the operands {a} and {b} differ in dtype (insert a Cast)");
    }
    Ok(())
}

/// Dims of all tensors broadcast together; `None` when a rank is unknown.
pub(super) fn broadcast_types(types: &[&TensorType]) -> Result<Option<Vec<Dim>>, OpError> {
    types.iter().try_fold(Some(vec![]), |all: Option<Vec<Dim>>, ty| match (all, &ty.dims) {
        (Some(all), Some(dims)) => broadcast_dims(&all, dims).map(Some),
        _ => Ok(None),
    })
}

/// Inputs 0 and 1, both of one dtype that `check` takes, broadcast to an output of that dtype.
pub(super) fn binary<'a>(
    cx: &InferCx<'a>,
    check: impl Fn(&InferCx<'a>, usize) -> Result<&'a TensorType, OpError>,
) -> Result<TensorType, OpError> {
    let (a, b) = (check(cx, 0)?, check(cx, 1)?);
    same_dtype(a, b)?;
    Ok(TensorType { dtype: a.dtype, dims: broadcast_types(&[a, b])? })
}

/// An error unless `small` can be broadcast to exactly the shape of `big` (ONNX unidirectional broadcasting).
pub(super) fn check_expands(small: &TensorType, big: &TensorType) -> Result<(), OpError> {
    let (Some(s), Some(b)) = (&small.dims, &big.dims) else { return Ok(()) };
    let clash = |(x, y): (&Dim, &Dim)| matches!((x, y), (Dim::Known(x), Dim::Known(y)) if x != y && *x != 1);
    if s.len() > b.len() || s.iter().rev().zip(b.iter().rev()).any(clash) {
        op_bail!("{small} cannot be broadcast to {big}");
    }
    Ok(())
}

/// An error unless both shapes can be the same.
pub(super) fn check_same_shape(a: &TensorType, b: &TensorType) -> Result<(), OpError> {
    let (Some(x), Some(y)) = (&a.dims, &b.dims) else { return Ok(()) };
    let clash = |(x, y): (&Dim, &Dim)| matches!((x, y), (Dim::Known(x), Dim::Known(y)) if x != y);
    if x.len() != y.len() || x.iter().zip(y).any(clash) {
        op_bail!("{a} and {b} differ in shape");
    }
    Ok(())
}

/// An error when a result of this shape cannot be held.
pub(super) fn check_size(shape: &[usize]) -> Result<(), OpError> {
    // Extents of 0 count as 1: ndarray panics when the others overflow.
    match shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1))) {
        Some(n) if n <= MAX_ELEMENTS => Ok(()),
        _ => op_bail!("a result of shape {shape:?} is too large for the reference evaluator"),
    }
}

/// `a` broadcast to `shape`.
pub(super) fn expand<T: Clone>(a: &ArrayD<T>, shape: &[usize]) -> Result<ArrayD<T>, OpError> {
    check_size(shape)?;
    let view = a.broadcast(IxDyn(shape));
    let view = view.ok_or_else(|| OpError(format!("shape {:?} cannot be broadcast to {shape:?}", a.shape())))?;
    Ok(view.to_owned())
}

/// `f` of two arrays broadcast together.
pub(super) fn broadcast2<A: Clone, B: Clone, U>(
    a: &ArrayD<A>,
    b: &ArrayD<B>,
    f: impl Fn(A, B) -> Result<U, OpError>,
) -> Result<ArrayD<U>, OpError> {
    let shape = broadcast_shapes(a.shape(), b.shape())?;
    let (a, b) = (expand(a, &shape)?, expand(b, &shape)?);
    let values = a.into_iter().zip(b).map(|(x, y)| f(x, y)).collect::<Result<Vec<U>, _>>()?;
    Ok(ArrayD::from_shape_vec(IxDyn(&shape), values)?)
}

/// `on_float` or `on_int` of two arrays of one dtype, broadcast together.
pub(super) fn number2(
    a: &Array,
    b: &Array,
    on_float: impl Fn(f64, f64) -> f64,
    on_int: impl Fn(i64, i64) -> Result<i64, OpError>,
) -> Result<Array, OpError> {
    match (&a.data, &b.data) {
        (ArrayData::Float(x), ArrayData::Float(y)) => {
            Ok(Array::float(a.dtype, broadcast2(x, y, |x, y| Ok(on_float(x, y)))?))
        }
        (ArrayData::Int(x), ArrayData::Int(y)) => Ok(Array::int(a.dtype, broadcast2(x, y, on_int)?)),
        _ => op_bail!("the operands are {} and {}; one dtype is needed", a.dtype, b.dtype),
    }
}

/// `f` of every element of the float input 0.
pub(super) fn map_float(cx: &EvalCx, f: impl FnMut(f64) -> f64) -> Values {
    let x = cx.array(0)?;
    Ok(vec![Array::float(x.dtype, x.f()?.mapv(f))])
}

/// `on_float` or `on_int` of every element of input 0.
pub(super) fn map_number(cx: &EvalCx, on_float: impl FnMut(f64) -> f64, on_int: impl FnMut(i64) -> i64) -> Values {
    let x = cx.array(0)?;
    Ok(vec![match &x.data {
        ArrayData::Float(a) => Array::float(x.dtype, a.mapv(on_float)),
        ArrayData::Int(a) => Array::int(x.dtype, a.mapv(on_int)),
    }])
}

/// `axes` counted from the front, in ascending order; one named twice is an error.
pub(super) fn normalize_axes(axes: &[i64], rank: usize) -> Result<Vec<usize>, OpError> {
    let mut out = axes.iter().map(|&a| normalize_axis(a, rank)).collect::<Result<Vec<_>, _>>()?;
    out.sort_unstable();
    if out.windows(2).any(|w| w[0] == w[1]) {
        op_bail!("axes {axes:?} name one axis of a tensor of rank {rank} twice");
    }
    Ok(out)
}

/// Order of the axes that puts `axes` last.
fn axes_last(rank: usize, axes: &[usize]) -> Vec<usize> {
    (0..rank).filter(|a| !axes.contains(a)).chain(axes.iter().copied()).collect()
}

/// `f` of the elements along `axes` (row-major) for every position of the other axes. The folded axes stay as
/// extents of 1 with `keepdims` and go otherwise.
pub(super) fn fold_axes<T: Copy, U>(
    a: &ArrayD<T>,
    axes: &[usize],
    keepdims: bool,
    mut f: impl FnMut(&[T]) -> Result<U, OpError>,
) -> Result<ArrayD<U>, OpError> {
    let values: Vec<T> = a.view().permuted_axes(axes_last(a.ndim(), axes)).iter().copied().collect();
    let lane: usize = axes.iter().map(|&i| a.shape()[i]).product();
    let kept = |i: &usize| keepdims || !axes.contains(i);
    let extent = |i: usize| if axes.contains(&i) { 1 } else { a.shape()[i] };
    let shape: Vec<usize> = (0..a.ndim()).filter(kept).map(extent).collect();
    check_size(&shape)?;
    let out = (0..shape.iter().product()).map(|i| f(&values[i * lane..(i + 1) * lane]));
    Ok(ArrayD::from_shape_vec(IxDyn(&shape), out.collect::<Result<Vec<U>, _>>()?)?)
}

/// Replaces the elements along `axes` (row-major) by what `f` makes of them, for every position of the other axes.
pub(super) fn map_lanes<T: Copy>(a: &ArrayD<T>, axes: &[usize], f: impl Fn(&mut [T])) -> Result<ArrayD<T>, OpError> {
    let order = axes_last(a.ndim(), axes);
    let permuted = a.view().permuted_axes(order.clone());
    let mut values: Vec<T> = permuted.iter().copied().collect();
    let lane: usize = axes.iter().map(|&i| a.shape()[i]).product();
    if lane > 0 {
        values.chunks_mut(lane).for_each(f);
    }
    let mut inverse = vec![0; order.len()];
    order.iter().enumerate().for_each(|(to, &from)| inverse[from] = to);
    Ok(ArrayD::from_shape_vec(permuted.raw_dim(), values)?.permuted_axes(inverse).as_standard_layout().into_owned())
}

/// Larger of two numbers; NaN when either is.
pub(super) fn max(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// Smaller of two numbers; NaN when either is.
pub(super) fn min(a: f64, b: f64) -> f64 {
    if a.is_nan() || a < b { a } else { b }
}

/// Arithmetic of matrix products; integers wrap.
pub(super) trait Num: Copy {
    /// 0.
    const ZERO: Self;
    /// `self + a * b`.
    fn add_product(self, a: Self, b: Self) -> Self;
}

impl Num for f64 {
    const ZERO: f64 = 0.0;
    fn add_product(self, a: f64, b: f64) -> f64 {
        self + a * b
    }
}

impl Num for i64 {
    const ZERO: i64 = 0;
    fn add_product(self, a: i64, b: i64) -> i64 {
        self.wrapping_add(a.wrapping_mul(b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attr, Node};
    use limbeck_tensor::Tensor;

    fn ty(dims: &[&str]) -> TensorType {
        let dim = |d: &&str| match (*d, d.parse()) {
            ("?", _) => Dim::Unknown,
            (_, Ok(n)) => Dim::Known(n),
            _ => Dim::from(*d),
        };
        TensorType::with_dims(DType::F32, dims.iter().map(dim).collect())
    }

    /// Types that `node` infers for inputs of these types, its last input being `constant` when given.
    fn infer(mut node: Node, types: &[TensorType], constant: Option<Tensor>) -> Result<Vec<String>, String> {
        let mut graph = crate::Graph::new("test");
        node.inputs = types.iter().map(|ty| Some(graph.add_input("x", ty.clone()))).collect();
        node.inputs.extend(constant.map(|t| Some(graph.add_initializer("c", t))));
        node.outputs = vec![Some(graph.add_value("y", None)); 3];
        let types = crate::infer_node(&graph, &node, "n").map_err(|e| e.to_string())?;
        Ok(types.iter().map(ToString::to_string).collect())
    }

    fn node(op: &str, attrs: &[(&str, i64)]) -> Node {
        attrs.iter().fold(Node::new(op, &[], &[]), |node, &(name, value)| node.with(name, Attr::Int(value)))
    }

    #[test]
    fn inference_keeps_names() {
        let axis = |a: i64| Some(Tensor::new([1], vec![a]).expect("tensor"));
        let cases = [
            (node("Add", &[]), vec![ty(&["batch", "3"]), ty(&["3"])], None, "float32[batch, 3]"),
            (node("Mul", &[]), vec![ty(&["batch", "1"]), ty(&["batch", "time"])], None, "float32[batch, time]"),
            (node("Sub", &[]), vec![ty(&["batch"]), ty(&["time"])], None, "float32[?]"),
            (node("Less", &[]), vec![ty(&["batch", "?"]), ty(&["4"])], None, "bool[batch, 4]"),
            (node("MatMul", &[]), vec![ty(&["batch", "time", "8"]), ty(&["8", "5"])], None, "float32[batch, time, 5]"),
            (node("MatMul", &[]), vec![ty(&["8"]), ty(&["batch", "8", "n"])], None, "float32[batch, n]"),
            (node("Gemm", &[("transA", 1)]), vec![ty(&["8", "batch"]), ty(&["8", "5"])], None, "float32[batch, 5]"),
            (node("ReduceMean", &[]), vec![ty(&["batch", "time", "8"])], axis(-2), "float32[batch, 1, 8]"),
            (node("ReduceMax", &[("keepdims", 0)]), vec![ty(&["batch", "time", "8"])], axis(1), "float32[batch, 8]"),
            (node("ArgMax", &[("axis", 1)]), vec![ty(&["batch", "8"])], None, "int64[batch, 1]"),
            (node("TopK", &[]), vec![ty(&["batch", "8"])], axis(3), "float32[batch, 3]"),
            (
                node("Einsum", &[]).with("equation", "bhid,bhjd->bhij"),
                vec![ty(&["batch", "2", "i", "8"]), ty(&["batch", "2", "j", "8"])],
                None,
                "float32[batch, 2, i, j]",
            ),
        ];
        for (node, types, constant, want) in cases {
            let op = node.op.clone();
            assert_eq!(infer(node, &types, constant).map(|t| t[0].clone()), Ok(want.to_owned()), "{op}");
        }
        let layer = infer(node("LayerNormalization", &[]), &[ty(&["batch", "8"]), ty(&["8"])], None);
        assert_eq!(layer.map(|t| t[1].clone()), Ok("float32[batch, 1]".to_owned()));
    }

    #[test]
    fn errors_show_both_shapes() {
        let ints = TensorType::new(DType::I64, &[2]);
        for (op, a, b, parts) in [
            ("Add", ty(&["batch", "3"]), ty(&["4"]), ["[batch, 3]", "[4]"]),
            ("MatMul", ty(&["batch", "3"]), ty(&["4", "5"]), ["[batch, 3]", "[4, 5]"]),
            ("Gemm", ty(&["batch", "3"]), ty(&["4", "5"]), ["[batch, 3]", "[4, 5]"]),
            ("PRelu", ty(&["batch", "3"]), ty(&["2"]), ["float32[batch, 3]", "float32[2]"]),
            ("Equal", ty(&["2"]), ints, ["float32[2]", "int64[2]"]),
        ] {
            let error = infer(node(op, &[]), &[a, b], None).expect_err(op);
            let reason = error.split(" (operands").next().unwrap_or_default();
            assert!(parts.iter().all(|p| reason.contains(p)), "{op}: {error}");
        }
    }

    #[test]
    fn lanes_return_to_their_axes() -> Result<(), OpError> {
        let a = ArrayD::from_shape_fn(IxDyn(&[2, 3, 4]), |at| (at[0] * 100 + at[1] * 10 + at[2]) as f64);
        let same = map_lanes(&a, &[0, 2], |_| ())?;
        assert_eq!(same, a);
        let sums = fold_axes(&a, &[0, 2], false, |v| Ok(v.iter().sum::<f64>()))?;
        assert_eq!(sums, a.sum_axis(ndarray::Axis(2)).sum_axis(ndarray::Axis(0)));
        Ok(())
    }
}
