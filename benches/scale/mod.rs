//! Models by size: so many bytes of weights, so many nodes.

use anyhow::Result;
use limbeck::autodiff::Differentiate;
use limbeck::graph::{Cx, Graph};
use limbeck::tensor::{DType, Tensor};

/// A chain of dense layers whose weights take `bytes`, rounded up to layers of 4 MiB.
pub(crate) fn heavy(bytes: usize) -> Result<Graph> {
    let cx = Cx::new("heavy", DType::F32);
    let mut x = cx.input("x", DType::F32, &[1, 1024]);
    for i in 0..bytes.div_ceil(4 << 20) {
        let values = (0..1 << 20).map(|j| ((i * 7919 + j) % 1013) as f32 / 1013.0).collect();
        x = x.matmul(cx.initializer(&format!("w{i}"), Tensor::new([1024, 1024], values)?)).relu();
    }
    cx.output("y", x);
    Ok(cx.finish()?)
}

/// A residual net of `nodes` nodes of small layers.
pub(crate) fn long(nodes: usize) -> Result<Graph> {
    let cx = Cx::new("long", DType::F32);
    let mut x = cx.input("x", DType::F32, &[2, 4]);
    for i in 0..nodes / 5 {
        let w = cx.initializer(&format!("w{i}"), Tensor::new([4, 4], vec![0.1f32; 16])?);
        let b = cx.initializer(&format!("b{i}"), Tensor::new([4], vec![0.1f32; 4])?);
        x = (x.matmul(w) + b).relu() * 0.5 + x;
    }
    cx.output("y", x);
    Ok(cx.finish()?)
}

/// The graph with the gradients of the mean of its first output with respect to all weights.
pub(crate) fn with_gradients(graph: &Graph) -> Result<Graph> {
    let weights: Vec<_> = graph.initializers().map(|(id, _)| id).collect();
    let cx = Cx::over(graph.clone(), DType::F32);
    let wrt: Vec<_> = weights.iter().filter(|&&id| !graph.is_literal(id)).map(|&id| cx.var(id)).collect();
    let loss = cx.var(graph.outputs[0]).mean(&[]);
    for (i, gradient) in cx.grad(loss, &wrt)?.into_iter().enumerate() {
        cx.output(&format!("gradient {i}"), gradient);
    }
    Ok(cx.finish()?)
}
