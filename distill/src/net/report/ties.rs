//! Weights that belong together: one used at several places, which stays one, and copies that an export made of another
//! (equal, transposed, reshaped, a slice), which training drives apart.

use super::weights::list;
use super::{Facts, Finding, Remark, Severity, remark};
use limbeck_graph::ValueId;
use limbeck_tensor::{Bytes, DType, Tensor};
use std::collections::BTreeMap;

/// Least number of elements that are told apart by what they are.
const LEAST: usize = 4;
/// Largest rank of which all orders of axes are tried.
const AXES: usize = 4;

pub(super) fn remarks(facts: &Facts<'_>, to: &mut Vec<Remark>) {
    let message = "the file stores one tensor of equal numbers for several layers (a fresh model's ones and zeros); here \
                   each layer has its own again, so that training does not tie them";
    remark(to, Severity::Note, Finding::Separated, facts.net.separated.clone(), message, "");
    shared(facts, to);
    copied(facts, to);
}

fn shared(facts: &Facts<'_>, to: &mut Vec<Remark>) {
    for &id in &facts.parameters {
        let mut nodes: Vec<_> = facts.meetings(id).iter().map(|m| m.node).collect();
        nodes.dedup();
        if nodes.len() > 1 {
            let uses: Vec<String> = nodes.into_iter().map(|n| facts.node(n)).collect();
            let message = format!(
                "one weight at {} places ({}): their gradients are added, it stays one",
                uses.len(),
                list(&uses)
            );
            remark(to, Severity::Note, Finding::Tied, vec![facts.name(id)], message, "");
        }
    }
}

fn copied(facts: &Facts<'_>, to: &mut Vec<Remark>) {
    let constants: Vec<(ValueId, &Tensor)> = facts
        .graph
        .initializers()
        .filter(|(id, t)| t.dtype().is_float() && !facts.meetings(*id).is_empty() && is_telling(t))
        .collect();
    let (mut names, mut pairs) = (vec![], vec![]);
    for (copy, original, relation) in relations(&constants) {
        if facts.parameters.contains(&copy) || facts.parameters.contains(&original) {
            let at = |id| facts.meetings(id).first().map_or(String::new(), |m| format!(" of {}", facts.node(m.node)));
            let [a, b] = [copy, original].map(|id| format!("'{}'{}", facts.graph.name_of(id), at(id)));
            pairs.push(format!("{a} is {b}{relation}"));
            names.extend([facts.name(copy), facts.name(original)]);
        }
    }
    let message = format!(
        "weights that hold the same numbers: tied in the model, the export made copies of them, and in training each \
         goes its own way: {}",
        list(&pairs)
    );
    let remedy = "export so that the tie stays (optimize=False with dynamo, do_constant_folding=False with TorchScript), \
                  or accept that they are trained apart";
    remark(to, Severity::Warning, Finding::Copied, names, message, remedy);
}

/// Whether a tensor holds enough different numbers to be known by them.
fn is_telling(t: &Tensor) -> bool {
    let width = t.dtype().bits() / 8;
    let bytes = t.bytes();
    t.len() >= LEAST && width > 0 && bytes.chunks(width).any(|c| c != &bytes[..width])
}

/// Copies among tensors: the copy, what it is a copy of, and how.
fn relations(constants: &[(ValueId, &Tensor)]) -> Vec<(ValueId, ValueId, &'static str)> {
    let mut found = vec![];
    let mut alike: BTreeMap<(DType, usize, u64), Vec<usize>> = BTreeMap::new();
    let mut sliceable: BTreeMap<(DType, &[usize]), Vec<usize>> = BTreeMap::new();
    for (i, (_, t)) in constants.iter().enumerate() {
        alike.entry((t.dtype(), t.len(), fingerprint(t))).or_default().push(i);
        if let [_, rest @ ..] = t.shape()
            && !rest.is_empty()
        {
            sliceable.entry((t.dtype(), rest)).or_default().push(i);
        }
    }
    for group in alike.values() {
        // The first of the file is the original, and what is under a name of the model's own before what is not.
        for (n, &i) in group.iter().enumerate().skip(1) {
            let original = group[..n].iter().find_map(|&j| Some((j, same(constants[i].1, constants[j].1)?)));
            found.extend(original.map(|(j, how)| (constants[i].0, constants[j].0, how)));
        }
    }
    for group in sliceable.values() {
        for &i in group {
            let part = constants[i].1;
            let of = group.iter().find(|&&j| is_slice(part, constants[j].1));
            found.extend(of.map(|&j| (constants[i].0, constants[j].0, ", a slice of it")));
        }
    }
    found
}

/// A number that does not depend on the order of the elements.
fn fingerprint(t: &Tensor) -> u64 {
    let mixed = |element: &[u8]| {
        let bits = element.iter().fold(0u64, |bits, &byte| bits << 8 | u64::from(byte));
        let mixed = (bits ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ mixed >> 29
    };
    t.bytes().chunks(t.dtype().bits() / 8).map(mixed).fold(0, u64::wrapping_add)
}

/// How two tensors of as many elements are the same.
fn same(a: &Tensor, b: &Tensor) -> Option<&'static str> {
    if a.bytes() == b.bytes() {
        return Some(if a.shape() == b.shape() { " once more" } else { " in another shape" });
    }
    let rank = a.shape().len();
    let orders = if (2..=AXES).contains(&rank) && b.shape().len() == rank { permutations(rank) } else { vec![] };
    orders.iter().any(|perm| is_transposed(a, b, perm)).then_some(" transposed")
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for i in 0..n {
        all = all.iter().flat_map(|p| (0..=i).map(move |at| [&p[..at], &[i], &p[at..]].concat())).collect();
    }
    all
}

/// Whether `a` is `b` with the axes `perm`.
fn is_transposed(a: &Tensor, b: &Tensor, perm: &[usize]) -> bool {
    let (from, rank) = (b.shape(), perm.len());
    if perm.iter().zip(a.shape()).any(|(&axis, &n)| from[axis] != n) {
        return false;
    }
    let mut strides = vec![1; rank];
    for axis in (0..rank.saturating_sub(1)).rev() {
        strides[axis] = strides[axis + 1] * from[axis + 1];
    }
    let width = a.dtype().bits() / 8;
    let (x, y): (Bytes, Bytes) = (a.bytes(), b.bytes());
    let mut index = vec![0; rank];
    x.chunks(width).all(|element| {
        let at: usize = perm.iter().zip(&index).map(|(&axis, &i)| strides[axis] * i).sum();
        let equal = y.get(at * width..(at + 1) * width) == Some(element);
        for axis in (0..rank).rev() {
            index[axis] += 1;
            if index[axis] < a.shape()[axis] {
                break;
            }
            index[axis] = 0;
        }
        equal
    })
}

/// Whether `part` is some neighbouring rows of `whole`, but not all.
fn is_slice(part: &Tensor, whole: &Tensor) -> bool {
    let ([rows, ..], [of, ..]) = (part.shape(), whole.shape()) else { return false };
    if rows >= of || *rows == 0 {
        return false;
    }
    let (p, w) = (part.bytes(), whole.bytes());
    let row = p.len() / rows;
    (0..=of - rows).any(|start| w.get(start * row..start * row + p.len()) == Some(&p[..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_graph::Graph;

    fn tensor(shape: &[usize], from: f32) -> Tensor {
        Tensor::new(shape, (0..shape.iter().product()).map(|i: usize| from + i as f32).collect()).unwrap()
    }

    /// `t` with its axes in another order, by the definition.
    fn transposed(t: &Tensor, perm: [usize; 3]) -> Tensor {
        let view = t.view::<f32>().unwrap();
        let moved = view.permuted_axes(perm.to_vec());
        Tensor::new(moved.shape().to_vec(), moved.iter().copied().collect::<Vec<f32>>()).unwrap()
    }

    #[test]
    fn copies_are_found_and_named() {
        let base = tensor(&[2, 3, 4], 1.0);
        let others = [
            ("same", base.clone(), Some(" once more")),
            ("flat", base.reshape([6, 4]).unwrap(), Some(" in another shape")),
            ("turned", transposed(&base, [2, 0, 1]), Some(" transposed")),
            ("swapped", transposed(&base, [0, 2, 1]), Some(" transposed")),
            ("row", base.rows(1..2).unwrap(), Some(", a slice of it")),
            ("other", tensor(&[2, 3, 4], 2.0), None),
            ("mirrored", Tensor::new([2, 3, 4], (0..24).rev().map(|i| 1.0 + i as f32).collect()).unwrap(), None),
        ];
        for (name, other, how) in others {
            let mut graph = Graph::new("g");
            let ids = [graph.add_initializer("base", base.clone()), graph.add_initializer(name, other.clone())];
            let found = relations(&[(ids[0], &base), (ids[1], &other)]);
            assert_eq!(found, how.map(|how| (ids[1], ids[0], how)).into_iter().collect::<Vec<_>>(), "{name}");
        }
        assert!(!is_telling(&Tensor::new([8], vec![0f32; 8]).unwrap()));
        assert_eq!(permutations(3).len(), 6);
    }
}
