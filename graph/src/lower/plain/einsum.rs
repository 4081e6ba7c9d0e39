//! Einsum with what the engines lack: a letter twice in one operand, and ellipses over different numbers of axes.

use crate::ops::einsum_letters;
use crate::{Cx, Node, OpError, Var};
use limbeck_tensor::{DType, Tensor};
use std::collections::BTreeMap;

/// The equation with every axis named once an operand and equally wide in all; `None` when it is so already.
pub(super) fn einsum<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>]) -> Result<Option<Var<'c>>, OpError> {
    let mut operands: Vec<Var<'c>> = operands.iter().flatten().copied().collect();
    let shapes: Vec<Vec<usize>> = operands.iter().map(|v| v.shape()).collect();
    let (mut terms, result) = einsum_letters(node, &shapes)?;
    let mut extents: BTreeMap<char, usize> = BTreeMap::new();
    for (term, shape) in terms.iter().zip(&shapes) {
        for (&letter, &n) in term.iter().zip(shape) {
            let known = extents.entry(letter).or_insert(1);
            *known = (*known).max(n);
        }
    }
    let repeats = |term: &[char]| term.iter().enumerate().any(|(i, c)| term[..i].contains(c));
    let narrow = |term: &[char], shape: &[usize]| term.iter().zip(shape).any(|(c, &n)| n != extents[c]);
    let ellipsis = node.str("equation").is_some_and(|e| e.contains('.'));
    let odd = terms.iter().zip(&shapes).any(|(t, s)| repeats(t) || narrow(t, s));
    if !odd && !ellipsis {
        return Ok(None);
    }
    for (operand, term) in operands.iter_mut().zip(&mut terms) {
        let wide: Vec<usize> = term.iter().map(|c| extents[c]).collect();
        if operand.shape() != wide {
            *operand = operand.expand(&wide);
        }
        while let Some((first, again)) = twice(term) {
            *operand = diagonal(cx, *operand, first, again)?;
            term.remove(again);
        }
    }
    let written: Vec<String> = terms.iter().map(|t| t.iter().collect()).collect();
    let equation = format!("{}->{}", written.join(","), result.iter().collect::<String>());
    Ok(Some(cx.op("Einsum", &operands, &[("equation", equation.as_str().into())])))
}

/// The two places of a letter that occurs twice.
fn twice(term: &[char]) -> Option<(usize, usize)> {
    let again = (0..term.len()).rev().find(|&i| term[..i].contains(&term[i]))?;
    Some((term.iter().position(|c| *c == term[again])?, again))
}

/// Drops axis `again`, keeping the elements whose places on both axes are equal: all others are multiplied by 0.
fn diagonal<'c>(cx: &'c Cx, x: Var<'c>, first: usize, again: usize) -> Result<Var<'c>, OpError> {
    let (shape, n) = (x.shape(), x.shape()[first]);
    let mut wide = vec![1; shape.len()];
    (wide[first], wide[again]) = (n, n);
    let on: Vec<f64> = (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect();
    let mask = cx.constant(Tensor::from_f64(DType::F32, wide, &on)?).cast(DType::Bool);
    // Chosen, not multiplied: what is not kept may be infinite.
    Ok(mask.select(x, cx.scalar_of(0.0, x.dtype())).sum(&[again as i64]))
}
