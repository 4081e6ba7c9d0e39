//! What several op families share: guarded allocation, moving elements by index, arithmetic of dims, attributes.

use super::util::{Types, check_size};
use super::{EvalCx, InferCx};
use crate::types::{Dim, MAX_RANK, TensorType};
use crate::{Array, ArrayData, Attr, Node, OpError, op_bail};
use limbeck_tensor::{DType, Tensor};
use ndarray::{ArrayD, Dimension, IxDyn, indices};

/// An array of one value.
pub(super) fn filled<T: Clone>(shape: &[usize], value: T) -> Result<ArrayD<T>, OpError> {
    check_size(shape)?;
    Ok(ArrayD::from_elem(IxDyn(shape), value))
}

/// An array whose elements are computed from their index.
pub(super) fn build<T>(
    shape: &[usize],
    mut f: impl FnMut(&[usize]) -> Result<T, OpError>,
) -> Result<ArrayD<T>, OpError> {
    check_size(shape)?;
    let data = indices(IxDyn(shape)).into_iter().map(|ix| f(ix.slice())).collect::<Result<Vec<_>, _>>()?;
    Ok(ArrayD::from_shape_vec(IxDyn(shape), data)?)
}

/// An array of `x`'s dtype whose element at each index is `x` at the index that `source` names, or `fill`
/// (a scalar of `x`'s dtype; zero when absent) where it names none.
pub(super) fn remap(
    x: &Array,
    shape: &[usize],
    fill: Option<&Array>,
    source: impl Fn(&[usize]) -> Result<Option<Vec<usize>>, OpError>,
) -> Result<Array, OpError> {
    fn of<T: Copy + Default>(
        x: &ArrayD<T>,
        shape: &[usize],
        fill: Option<&ArrayD<T>>,
        source: impl Fn(&[usize]) -> Result<Option<Vec<usize>>, OpError>,
    ) -> Result<ArrayD<T>, OpError> {
        let fill = fill.and_then(|f| f.iter().next().copied()).unwrap_or_default();
        build(shape, |ix| match source(ix)? {
            None => Ok(fill),
            Some(at) => match x.get(&at[..]) {
                Some(v) => Ok(*v),
                None => op_bail!("index {at:?} is outside the shape {:?}", x.shape()),
            },
        })
    }
    Ok(match &x.data {
        ArrayData::Float(a) => Array::float(x.dtype, of(a, shape, fill.map(Array::f).transpose()?, source)?),
        ArrayData::Int(a) => Array::int(x.dtype, of(a, shape, fill.map(Array::i).transpose()?, source)?),
    })
}

/// The elements of `x` in row-major order under another shape of as many elements.
pub(super) fn reshaped(x: &Array, shape: &[usize]) -> Result<Array, OpError> {
    check_size(shape)?;
    let (from, to) = (x.shape().iter().product::<usize>(), shape.iter().product::<usize>());
    if from != to {
        op_bail!("shape {:?} ({from} elements) does not reshape to {shape:?} ({to})", x.shape());
    }
    Ok(match &x.data {
        ArrayData::Float(a) => Array::float(x.dtype, ArrayD::from_shape_vec(IxDyn(shape), flat(a))?),
        ArrayData::Int(a) => Array::int(x.dtype, ArrayD::from_shape_vec(IxDyn(shape), flat(a))?),
    })
}

/// Numbers rounded to a float type of 8 bits or fewer. Those beyond its largest become that, or with `saturate` off what
/// the type has for them: infinity or NaN.
pub(super) fn narrow_float(dtype: DType, x: &ArrayD<f64>, saturate: bool) -> Result<Array, OpError> {
    let Some(largest) = dtype.largest_narrow() else { op_bail!("{dtype} is no float of 8 bits or fewer") };
    let values: Vec<f64> = x.iter().map(|v| if saturate { v.clamp(-largest, largest) } else { *v }).collect();
    Array::from_tensor(&Tensor::from_f64(dtype, x.shape(), &values)?)
}

/// The elements in row-major order.
pub(super) fn flat<T: Copy>(a: &ArrayD<T>) -> Vec<T> {
    a.iter().copied().collect()
}

/// The only element of a scalar or one-element integer array.
pub(super) fn one_int(a: &Array, what: &str) -> Result<i64, OpError> {
    match flat(a.i()?)[..] {
        [v] => Ok(v),
        _ => op_bail!("{what} must be one number, its shape is {:?}", a.shape()),
    }
}

/// The only element of a scalar or one-element array of any dtype.
pub(super) fn one_f64(a: &Array, what: &str) -> Result<f64, OpError> {
    match flat(&a.to_f64())[..] {
        [v] => Ok(v),
        _ => op_bail!("{what} must be one number, its shape is {:?}", a.shape()),
    }
}

/// A number that must be an extent.
pub(super) fn extent(n: i64, what: &str) -> Result<usize, OpError> {
    usize::try_from(n).map_err(|_| OpError(format!("{what} {n} is negative")))
}

/// Numbers that must be extents.
pub(crate) fn extents(list: &[i64], what: &str) -> Result<Vec<usize>, OpError> {
    list.iter().map(|&n| extent(n, what)).collect()
}

/// Dims as `[a, b, c]`.
pub(super) fn show(dims: &[Dim]) -> String {
    format!("[{}]", dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

/// Known dims of these extents.
pub(super) fn known(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|&n| Dim::Known(n)).collect()
}

/// The known part of the element count over these dims, and the dims that are not known.
pub(super) fn factors(dims: &[Dim]) -> Result<(usize, Vec<&Dim>), OpError> {
    match dims.iter().filter_map(Dim::known).try_fold(1usize, |n, d| n.checked_mul(d)) {
        Some(known) => Ok((known, dims.iter().filter(|d| d.known().is_none()).collect())),
        None => op_bail!("the element count of {} overflows", show(dims)),
    }
}

/// Number of elements over these dims. A single symbol among ones keeps its name.
pub(super) fn product(dims: &[Dim]) -> Result<Dim, OpError> {
    let (known, symbols) = factors(dims)?;
    Ok(match symbols[..] {
        [] => Dim::Known(known),
        _ if known == 0 => Dim::Known(0),
        [symbol] if known == 1 => symbol.clone(),
        _ => Dim::Unknown,
    })
}

/// The dim that two equal extents have; known beats named beats unknown. `what` names the place in errors.
pub(super) fn unify(a: &Dim, b: &Dim, what: &str) -> Result<Dim, OpError> {
    a.unify(b).ok_or_else(|| OpError(format!("{what}: extents {a} and {b} differ")))
}

/// The dtype that all connected inputs among `which` share.
pub(super) fn same_dtype(cx: &InferCx, which: &[usize]) -> Result<DType, OpError> {
    let Some(&first) = which.first() else { op_bail!("no inputs") };
    let dtype = cx.dtype(first)?;
    for &i in which.iter().filter(|&&i| cx.has(i)) {
        if cx.dtype(i)? != dtype {
            op_bail!("inputs {first} and {i} must have one dtype, they are {dtype} and {}", cx.dtype(i)?);
        }
    }
    Ok(dtype)
}

/// A type, whose rank may be unknown.
pub(super) fn typed_as(dtype: DType, dims: Option<Vec<Dim>>) -> Vec<TensorType> {
    vec![TensorType { dtype, dims }]
}

/// Rank `want`, or an error.
pub(super) fn check_rank(dims: &[Dim], want: usize, what: &str) -> Result<(), OpError> {
    if dims.len() != want {
        op_bail!("{what} must have rank {want}, its shape is {}", show(dims));
    }
    Ok(())
}

/// The integer list of input `i`, which must be present.
pub(super) fn ints(cx: &EvalCx, i: usize, what: &str) -> Result<Vec<i64>, OpError> {
    cx.ints(i)?.ok_or_else(|| OpError(format!("input {i} ({what}) is missing")))
}

/// The number that the constant input `i` is; `None` when it is absent, not constant or not one number.
pub(super) fn const_number(cx: &InferCx, i: usize) -> Option<f64> {
    match cx.constants.get(i)?.as_ref()?.to_f64_vec().ok()?[..] {
        [v] => Some(v),
        _ => None,
    }
}

/// Number of entries of the integer list at input `i` (one a dim, so [`MAX_RANK`] at most), when known.
pub(super) fn list_len(cx: &InferCx, i: usize) -> Result<Option<usize>, OpError> {
    let Some(dims) = cx.dims(i)? else { return Ok(None) };
    check_rank(dims, 1, "the list of integers")?;
    match dims[0].known() {
        Some(n) if n > MAX_RANK => op_bail!("input {i} lists {n} numbers for dims; shapes have at most {MAX_RANK}"),
        len => Ok(len),
    }
}

/// Dims of input 0 put through `f`; its dtype kept.
pub(super) fn reshape_type(cx: &InferCx, f: impl FnOnce(&[Dim]) -> Result<Vec<Dim>, OpError>) -> Types {
    Ok(typed_as(cx.dtype(0)?, cx.dims(0)?.map(f).transpose()?))
}

fn typed<'a, T>(
    node: &'a Node,
    name: &str,
    kind: &str,
    get: impl Fn(&'a Attr) -> Option<T>,
) -> Result<Option<T>, OpError> {
    match node.attrs.get(name) {
        None => Ok(None),
        Some(attr) => get(attr).map(Some).ok_or_else(|| OpError(format!("attribute '{name}' must be {kind}"))),
    }
}

/// Integer attribute, or its default. An error when it is there and not an integer.
pub(super) fn int_attr(node: &Node, name: &str, default: i64) -> Result<i64, OpError> {
    let get = |a: &Attr| if let Attr::Int(i) = a { Some(*i) } else { None };
    Ok(typed(node, name, "an integer", get)?.unwrap_or(default))
}

/// Float attribute, or its default, as exact in f64 as the file's f32 is.
pub(super) fn float_attr(node: &Node, name: &str, default: f32) -> Result<f64, OpError> {
    let get = |a: &Attr| if let Attr::Float(f) = a { Some(*f) } else { None };
    Ok(f64::from(typed(node, name, "a float", get)?.unwrap_or(default)))
}

/// Boolean attribute: 0 or 1.
pub(super) fn flag_attr(node: &Node, name: &str, default: bool) -> Result<bool, OpError> {
    match int_attr(node, name, default.into())? {
        0 => Ok(false),
        1 => Ok(true),
        other => op_bail!("attribute '{name}' must be 0 or 1, it is {other}"),
    }
}

/// Integer-list attribute. An error when it is there and not a list of integers.
pub(super) fn ints_attr<'a>(node: &'a Node, name: &str) -> Result<Option<&'a [i64]>, OpError> {
    typed(node, name, "a list of integers", |a| if let Attr::Ints(v) = a { Some(&v[..]) } else { None })
}

/// Text attribute, or its default.
pub(super) fn str_attr<'a>(node: &'a Node, name: &str, default: &'a str) -> Result<&'a str, OpError> {
    let get = |a: &'a Attr| if let Attr::Str(s) = a { std::str::from_utf8(s).ok() } else { None };
    Ok(typed(node, name, "text", get)?.unwrap_or(default))
}
