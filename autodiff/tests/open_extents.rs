//! Gradients through values whose number depends on data, as those of Unique does.

use limbeck_autodiff::{Differentiate, compose};
use limbeck_graph::{Cx, Node, Var};
use limbeck_tensor::{DType, Tensor};
use std::collections::BTreeMap;

/// The distinct values of `x` in ascending order and how often each occurs, as floats.
fn unique<'c>(x: Var<'c>, axis: Option<i64>) -> [Var<'c>; 2] {
    let mut node = Node::new("Unique", &[], &[]);
    node.outputs = vec![None; 4];
    node.attrs.extend(axis.map(|axis| ("axis".to_owned(), axis.into())));
    let results = compose(x.cx(), &node, &[Some(x)]).unwrap();
    [results[0], results[3].cast(x.dtype())]
}

/// The gradient of `loss` in `x`, whose shape and values are given.
fn gradient(shape: &[usize], values: &[f64], loss: impl for<'c> Fn(&'c Cx, Var<'c>) -> Var<'c>) -> Vec<f64> {
    let cx = Cx::new("open", DType::F64);
    let x = cx.input("x", DType::F64, shape);
    cx.output("g", cx.grad(loss(&cx, x), &[x]).unwrap()[0]);
    let feeds = BTreeMap::from([("x".to_owned(), Tensor::new(shape, values.to_vec()).unwrap())]);
    cx.finish().unwrap().evaluate(&feeds).unwrap()["g"].to_f64_vec().unwrap()
}

#[test]
fn the_first_of_equal_values_has_their_gradient() {
    let g = gradient(&[5], &[3.0, 1.0, 3.0, 2.0, 1.0], |_, x| {
        let [y, counts] = unique(x, None);
        (y.square() * counts).sum(&[])
    });
    assert_eq!(g, [12.0, 4.0, 0.0, 4.0, 0.0]);
}

#[test]
fn means_count_what_there_is() {
    let g = gradient(&[4], &[5.0, 7.0, 5.0, 9.0], |_, x| (unique(x, None)[0] * 6.0).mean(&[]));
    assert_eq!(g, [2.0, 2.0, 0.0, 2.0]);
    let rows = [1.0, 2.0, 1.0, 2.0, 3.0, 4.0];
    let g = gradient(&[3, 2], &rows, |_, x| unique(x, Some(0))[0].mean(&[0]).square().sum(&[]));
    assert_eq!(g, [2.0, 3.0, 0.0, 0.0, 2.0, 3.0]);
}

/// One value is broadcast to three weights, three values are not: which it is the data say.
#[test]
fn what_is_broadcast_is_summed() {
    let at = |values: &[f64]| {
        gradient(&[4], values, |cx, x| {
            (unique(x, None)[0] * cx.floats(&[2, 3], &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0])).sum(&[])
        })
    };
    assert_eq!(at(&[0.5; 4]), [63.0, 0.0, 0.0, 0.0]);
    assert_eq!(at(&[3.0, 1.0, 2.0, 1.0]), [36.0, 9.0, 18.0, 0.0]);
}

/// Columns of `[2, n]`, gathered again with indices of two axes.
#[test]
fn a_gather_from_them_adds_up() {
    let g = gradient(&[2, 3], &[4.0, 1.0, 4.0, 0.0, 2.0, 0.0], |cx, x| {
        let weights = cx.floats(&[2, 2, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let index = cx.ints(&[0, 1, 1, -1]).reshape(&[2, 2]);
        (unique(x, Some(1))[0].gather(index, 1) * weights).sum(&[])
    });
    assert_eq!(g, [9.0, 1.0, 0.0, 21.0, 5.0, 0.0]);
}
