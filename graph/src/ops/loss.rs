//! Losses of class scores `[n, classes, d...]` against class numbers `[n, d...]`.

use super::support::{int_attr, show, str_attr, unify};
use super::util::{Types, Values, float_ty, map_lanes, same_dtype};
use super::{EvalCx, InferCx, OpSpec, op};
use crate::types::{Dim, TensorType};
use crate::{Array, OpError, op_bail};
use limbeck_tensor::DType;
use ndarray::{ArrayD, IxDyn};

pub(super) const OPS: &[OpSpec] = &[
    op("NegativeLogLikelihoodLoss", infer, |cx| Ok(vec![loss(cx, cx.array(0)?.f()?)?])),
    op("SoftmaxCrossEntropyLoss", infer_cross_entropy, eval_cross_entropy),
];

fn infer(cx: &InferCx) -> Types {
    let x = float_ty(cx, 0)?;
    let target = cx.ty(1)?;
    if !matches!(target.dtype, DType::I32 | DType::I64) {
        op_bail!("targets must be int32 or int64, they are {target}");
    }
    if cx.has(2) {
        same_dtype(x, cx.ty(2)?)?;
    }
    let mut dims = target.dims.clone();
    if let Some(scores) = &x.dims {
        let [n, classes, rest @ ..] = &scores[..] else { op_bail!("scores {} need at least 2 dims", show(scores)) };
        let each = [std::slice::from_ref(n), rest].concat();
        dims = Some(match &dims {
            Some(dims) if dims.len() != each.len() => op_bail!("scores {x} and targets {target} do not fit"),
            Some(dims) => {
                let pairs = dims.iter().zip(&each);
                pairs.map(|(a, b)| unify(b, a, "scores and targets")).collect::<Result<Vec<Dim>, _>>()?
            }
            None => each,
        });
        if cx.has(2)
            && let Some(weight) = cx.dims(2)?
        {
            match weight {
                [n] => unify(n, classes, "class weights and classes")?,
                _ => op_bail!("class weights {} must be a list", show(weight)),
            };
        }
    }
    let dims = if reduction(cx.node)? == "none" { dims } else { Some(vec![]) };
    Ok(vec![TensorType { dtype: x.dtype, dims }])
}

fn reduction(node: &crate::Node) -> Result<&str, OpError> {
    match str_attr(node, "reduction", "mean")? {
        known @ ("none" | "sum" | "mean") => Ok(known),
        other => op_bail!("reduction '{other}' is none of none, sum, mean"),
    }
}

/// The loss of logarithms of probabilities: their negative at the target, weighted by its class; the mean is over the
/// weights. Targets of `ignore_index` weigh nothing.
fn loss(cx: &EvalCx, x: &ArrayD<f64>) -> Result<Array, OpError> {
    let (dtype, target) = (cx.array(0)?.dtype, cx.array(1)?.i()?);
    let weight = cx.opt(2).map(Array::f).transpose()?;
    let (&[n, classes, ref rest @ ..], reduction) = (x.shape(), reduction(cx.node)?) else {
        op_bail!("scores {:?} need at least 2 dims", x.shape());
    };
    if target.shape() != [&[n], rest].concat() || weight.is_some_and(|w| w.shape() != [classes]) {
        op_bail!("scores {:?}, targets {:?} and class weights do not fit", x.shape(), target.shape());
    }
    let ignored =
        cx.node.attrs.contains_key("ignore_index").then(|| int_attr(cx.node, "ignore_index", 0)).transpose()?;
    let mut total = 0.0;
    let each = target.indexed_iter().map(|(ix, &class)| {
        if Some(class) == ignored {
            return Ok(0.0);
        }
        let Some(at) = usize::try_from(class).ok().filter(|c| *c < classes) else {
            op_bail!("target {class} is outside {classes} classes");
        };
        let ix = ndarray::Dimension::slice(&ix);
        let w = weight.map_or(1.0, |w| w[&[at][..]]);
        total += w;
        Ok(-w * x[&[&ix[..1], &[at], &ix[1..]].concat()[..]])
    });
    let each = ArrayD::from_shape_vec(IxDyn(target.shape()), each.collect::<Result<Vec<f64>, OpError>>()?)?;
    let scalar = |v: f64| Array::float(dtype, ArrayD::from_elem(IxDyn(&[]), v));
    Ok(match reduction {
        "none" => Array::float(dtype, each),
        "sum" => scalar(each.sum()),
        _ => scalar(each.sum() / total),
    })
}

fn infer_cross_entropy(cx: &InferCx) -> Types {
    let loss = infer(cx)?.swap_remove(0);
    Ok(vec![loss, cx.ty(0)?.clone()])
}

fn eval_cross_entropy(cx: &EvalCx) -> Values {
    let x = cx.array(0)?;
    if x.shape().len() < 2 {
        op_bail!("scores {:?} need at least 2 dims", x.shape());
    }
    let logs = map_lanes(x.f()?, &[1], |v| {
        let top = v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log = v.iter().map(|x| (x - top).exp()).sum::<f64>().ln() + top;
        v.iter_mut().for_each(|x| *x -= log);
    })?;
    let loss = loss(cx, &logs)?;
    Ok(vec![loss, Array::float(x.dtype, logs)])
}
