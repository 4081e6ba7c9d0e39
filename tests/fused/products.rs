//! Matrix products whose operands and results are transposed, as between the heads of an attention.

use super::{assert_close, compile, feeds, infer, without_kernels};
use limbeck::graph::{Cx, Form, Graph};
use limbeck::runtime::{engines, noise};
use limbeck::tensor::DType;

/// All orders of the axes 0 to 3 but the first.
fn order(stream: &mut noise::Stream) -> Vec<usize> {
    let mut rest = vec![1, 2, 3];
    let drawn = (0..3).map(|_| rest.remove(stream.below(rest.len()))).collect::<Vec<_>>();
    [vec![0], drawn].concat()
}

/// A product `[n, h, r, d] x [n, h, d, c]` of transposed operands, transposed, beside values that read the transpositions too.
fn graph(number: u64) -> Graph {
    let stream = &mut noise::stream(7, number, "product");
    let mut extent = |options: &[usize]| options[stream.below(options.len())];
    let [n, h, r, c, d] =
        [extent(&[1, 2, 5]), extent(&[1, 3, 4]), extent(&[1, 6, 17]), extent(&[1, 8, 9]), extent(&[1, 5, 16])];
    let cx = Cx::new("case", DType::F32);
    let mut factor = |name: &str, extents: [usize; 4]| {
        let order = order(stream);
        let mut shape = vec![0; 4];
        order.iter().zip(extents).for_each(|(&axis, n)| shape[axis] = n);
        cx.input(name, DType::F32, &shape).transpose(&order)
    };
    let (a, b) = (factor("a", [n, h, r, d]), factor("b", [n, h, d, c]));
    let y = a.matmul(b).transpose(&order(stream));
    cx.output("y", y);
    cx.output("again", a.matmul(b * 0.5));
    if number.is_multiple_of(3) {
        cx.output("a_too", a.exp());
    }
    cx.finish().unwrap()
}

#[test]
fn transposed_products_agree_with_the_reference_with_and_without_kernels() {
    let mut taken_in = 0;
    for number in 0..40 {
        let graph = graph(number);
        let feeds = feeds(&graph);
        let expected = graph.evaluate(&feeds).unwrap();
        let fused = graph.lowered(Form::Fused).unwrap();
        taken_in += fused
            .nodes()
            .filter(|(_, n)| ["permA", "permB", "permY"].iter().any(|name| n.ints(name).is_some()))
            .count();
        assert_close(&format!("{number}, evaluated"), &fused.evaluate(&feeds).unwrap(), &expected);
        let bytes = fused.to_bytes().unwrap();
        for engine in engines() {
            for threads in [1, 3] {
                let what = format!("{number} on {} with {threads} threads", engine.name());
                assert_close(&what, &infer(&*compile(engine, bytes.clone(), threads), &feeds), &expected);
            }
            // tract does not run functions.
            if engine.name() == "ort" {
                let stock = infer(&*compile(engine, without_kernels(&bytes), 1), &feeds);
                assert_close(&format!("{number} by its functions"), &stock, &expected);
            }
        }
    }
    assert!(taken_in > 30, "only {taken_in} products have orders");
}
