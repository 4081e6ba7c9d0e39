//! Einsum: the sum of products that an equation such as `bij,bjk->bik` writes down.

use super::support::{known, str_attr};
use super::util::{Num, Types, Values, check_size, number_ty, same_dtype};
use super::{EvalCx, InferCx, OpSpec, broadcast_dims, op};
use crate::types::{Dim, TensorType};
use crate::{Array, ArrayData, Node, OpError, op_bail};
use ndarray::{ArrayD, Dimension, IxDyn};
use std::collections::BTreeMap;

pub(super) const OPS: &[OpSpec] = &[op("Einsum", infer, eval)];

/// One subscript: a letter, or an axis under the ellipsis counted from its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Letter(char),
    Ellipsis(usize),
}

/// Letters of one term, with the place of its ellipsis.
struct Term {
    before: Vec<char>,
    /// Letters after the ellipsis; `None` without one.
    after: Option<Vec<char>>,
}

impl Term {
    fn parse(text: &str) -> Result<Term, OpError> {
        let letters = |part: &str| match part.chars().find(|c| !c.is_ascii_alphabetic()) {
            Some(c) => Err(OpError(format!("the term '{text}' of the equation has '{c}', which is no letter"))),
            None => Ok(part.chars().collect::<Vec<_>>()),
        };
        Ok(match text.split_once("...") {
            Some((before, after)) => Term { before: letters(before)?, after: Some(letters(after)?) },
            None => Term { before: letters(text)?, after: None },
        })
    }

    fn letters(&self) -> impl Iterator<Item = char> {
        self.before.iter().chain(self.after.iter().flatten()).copied()
    }

    /// Labels of all axes, the ellipsis standing for `hidden` of them.
    fn labels(&self, hidden: usize) -> Vec<Label> {
        let hidden = if self.after.is_some() { hidden } else { 0 };
        let middle = (0..hidden).rev().map(Label::Ellipsis);
        let after = self.after.iter().flatten().map(|&c| Label::Letter(c));
        self.before.iter().map(|&c| Label::Letter(c)).chain(middle).chain(after).collect()
    }
}

/// The equation of a node applied to operands of known rank.
struct Equation {
    /// Labels of the axes of each operand.
    inputs: Vec<Vec<Label>>,
    /// Labels of the axes of the result.
    output: Vec<Label>,
    /// Extent of every label.
    extents: BTreeMap<Label, Dim>,
}

impl Equation {
    fn new(node: &Node, shapes: &[&[Dim]]) -> Result<Equation, OpError> {
        let text = str_attr(node, "equation", "")?;
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (left, right) = match text.split_once("->") {
            Some((left, right)) => (left, Some(Term::parse(right)?)),
            None => (text.as_str(), None),
        };
        let terms = left.split(',').map(Term::parse).collect::<Result<Vec<_>, _>>()?;
        if terms.len() != shapes.len() {
            op_bail!("the equation '{text}' has {} terms for {} operands", terms.len(), shapes.len());
        }
        let (mut inputs, mut hidden) = (vec![], 0);
        let mut extents: BTreeMap<Label, Dim> = BTreeMap::new();
        for (term, dims) in terms.iter().zip(shapes) {
            let named = term.letters().count();
            if named > dims.len() || (term.after.is_none() && named != dims.len()) {
                op_bail!("the equation '{text}' names {named} axes of an operand of rank {}", dims.len());
            }
            hidden = hidden.max(dims.len() - named);
            let labels = term.labels(dims.len() - named);
            for (&label, dim) in labels.iter().zip(*dims) {
                let known = extents.entry(label).or_insert(Dim::Known(1));
                let merged = broadcast_dims(std::slice::from_ref(known), std::slice::from_ref(dim));
                let merged = merged.map_err(|e| OpError(format!("{} in the equation '{text}'", e.0)))?;
                *known = merged.into_iter().next().unwrap_or(Dim::Unknown);
            }
            inputs.push(labels);
        }
        let output = right.unwrap_or_else(|| implicit(&terms)).labels(hidden);
        let repeated = output.iter().enumerate().any(|(i, l)| output[..i].contains(l));
        if repeated || output.iter().any(|l| !extents.contains_key(l)) {
            op_bail!("the result of the equation '{text}' repeats an axis, or has one that no operand has");
        }
        Ok(Equation { inputs, output, extents })
    }

    fn output_dims(&self) -> Vec<Dim> {
        self.output.iter().map(|l| self.extents[l].clone()).collect()
    }
}

/// Result of an equation without an arrow: the ellipsis, then the letters that occur once, by alphabet.
fn implicit(terms: &[Term]) -> Term {
    let mut count: BTreeMap<char, usize> = BTreeMap::new();
    terms.iter().flat_map(Term::letters).for_each(|c| *count.entry(c).or_default() += 1);
    let once: Vec<char> = count.into_iter().filter(|&(_, n)| n == 1).map(|(c, _)| c).collect();
    if terms.iter().any(|t| t.after.is_some()) {
        Term { before: vec![], after: Some(once) }
    } else {
        Term { before: once, after: None }
    }
}

/// The equation of an Einsum node over operands of these shapes: a letter for every axis of each operand, axes under
/// an ellipsis included, and of the result. Axes of one letter belong together.
pub fn einsum_letters(node: &Node, shapes: &[Vec<usize>]) -> Result<(Vec<Vec<char>>, Vec<char>), OpError> {
    let dims: Vec<Vec<Dim>> = shapes.iter().map(|s| known(s)).collect();
    let equation = Equation::new(node, &dims.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    let mut free = ('A'..='Z').chain('a'..='z').filter(|&c| !equation.extents.contains_key(&Label::Letter(c)));
    let mut letters = BTreeMap::new();
    for &label in equation.extents.keys() {
        let letter = match label {
            Label::Letter(c) => Some(c),
            Label::Ellipsis(_) => free.next(),
        };
        letters.insert(label, letter.ok_or("the equation has more axes than there are letters")?);
    }
    let named = |labels: &[Label]| labels.iter().map(|l| letters[l]).collect::<Vec<char>>();
    Ok((equation.inputs.iter().map(|l| named(l)).collect(), named(&equation.output)))
}

fn infer(cx: &InferCx) -> Types {
    let types = (0..cx.inputs.len().max(1)).map(|i| number_ty(cx, i)).collect::<Result<Vec<_>, _>>()?;
    types.iter().try_for_each(|ty| same_dtype(types[0], ty))?;
    let shapes: Option<Vec<&[Dim]>> = types.iter().map(|ty| ty.dims.as_deref()).collect();
    let dims = shapes.map(|shapes| Ok::<_, OpError>(Equation::new(cx.node, &shapes)?.output_dims())).transpose();
    Ok(vec![TensorType { dtype: types[0].dtype, dims: dims? }])
}

/// Every element of the result, as the sum over all labels that the result lacks.
fn contract<T: Num>(node: &Node, operands: &[&ArrayD<T>], one: T) -> Result<ArrayD<T>, OpError> {
    let dims: Vec<Vec<Dim>> = operands.iter().map(|a| known(a.shape())).collect();
    let equation = Equation::new(node, &dims.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    let summed = equation.extents.keys().filter(|l| !equation.output.contains(l));
    let order: Vec<Label> = equation.output.iter().chain(summed).copied().collect();
    let extents: Vec<usize> = order.iter().filter_map(|l| equation.extents[l].known()).collect();
    let (kept, summed) = extents.split_at(equation.output.len());
    check_size(&extents)?;
    // Axes of each operand as places in `order`.
    let place = |label: &Label| order.iter().position(|l| l == label).unwrap_or_default();
    let places: Vec<Vec<usize>> = equation.inputs.iter().map(|ls| ls.iter().map(place).collect()).collect();
    let mut values = Vec::with_capacity(kept.iter().product());
    for position in ndarray::indices(IxDyn(kept)) {
        let mut total = T::ZERO;
        for inner in ndarray::indices(IxDyn(summed)) {
            let at = [position.slice(), inner.slice()].concat();
            let mut term = one;
            for (operand, places) in operands.iter().zip(&places) {
                let own = places.iter().zip(operand.shape()).map(|(&p, &n)| if n == 1 { 0 } else { at[p] });
                term = T::ZERO.add_product(term, operand[IxDyn(&own.collect::<Vec<_>>())]);
            }
            total = total.add_product(term, one);
        }
        values.push(total);
    }
    Ok(ArrayD::from_shape_vec(IxDyn(kept), values)?)
}

fn eval(cx: &EvalCx) -> Values {
    let arrays = (0..cx.inputs.len().max(1)).map(|i| cx.array(i)).collect::<Result<Vec<_>, _>>()?;
    let data = match &arrays[0].data {
        ArrayData::Float(_) => {
            let operands = arrays.iter().map(|a| a.f()).collect::<Result<Vec<_>, _>>()?;
            ArrayData::Float(contract(cx.node, &operands, 1.0)?)
        }
        ArrayData::Int(_) => {
            let operands = arrays.iter().map(|a| a.i()).collect::<Result<Vec<_>, _>>()?;
            ArrayData::Int(contract(cx.node, &operands, 1)?)
        }
    };
    Ok(vec![Array { dtype: arrays[0].dtype, data }])
}
