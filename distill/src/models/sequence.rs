//! Nets over sequences: a transformer encoder, a GRU.

use super::Layers;
use crate::{DistillError, Net};
use limbeck_graph::{Dim, TensorType, Var};
use limbeck_tensor::DType;

/// A pre-norm transformer encoder over embedded tokens `x` `[batch, length, width]`: `layers` blocks with `heads`
/// heads and a GELU MLP of 4x width, mean pooling, a classifier.
pub fn transformer(
    layers: usize,
    width: usize,
    heads: usize,
    length: usize,
    classes: usize,
    seed: u64,
) -> Result<Net, DistillError> {
    let dev = (1.0 / width as f64).sqrt();
    Net::build("transformer", |cx| {
        let l = Layers::new(cx, seed);
        let mut h = l.input("x", &[length, width]);
        let norm = |name: &str, v: Var<'_>| {
            let (s, b) = (
                l.constant(&format!("{name}.weight"), &[width], 1.0),
                l.constant(&format!("{name}.bias"), &[width], 0.0),
            );
            cx.op("LayerNormalization", &[cx.var(v.id()), s, b], &[("axis", (-1i64).into())])
        };
        // 0 keeps the batch; heads are split by reshaping.
        let head_shape = [0, length as i64, heads as i64, (width / heads.max(1)) as i64];
        for i in 0..layers {
            let name = format!("layer{i}");
            let n = norm(&format!("{name}.norm1"), h);
            let split = |part: &str| {
                let p = l.dense(&format!("{name}.{part}"), n, (width, width), dev);
                cx.op("Reshape", &[p, cx.ints(&head_shape)], &[])
            };
            let q = split("q").transpose(&[0, 2, 1, 3]);
            let k = split("k").transpose(&[0, 2, 3, 1]);
            let v = split("v").transpose(&[0, 2, 1, 3]);
            let attention = (q.matmul(k) / ((width / heads.max(1)) as f64).sqrt()).softmax(-1);
            let merged = attention.matmul(v).transpose(&[0, 2, 1, 3]);
            let merged = cx.op("Reshape", &[merged, cx.ints(&[0, length as i64, width as i64])], &[]);
            h = h + l.dense(&format!("{name}.o"), merged, (width, width), dev);
            let n = norm(&format!("{name}.norm2"), h);
            let up = cx.op("Gelu", &[l.dense(&format!("{name}.up"), n, (width, 4 * width), dev)], &[]);
            h = h + l.dense(&format!("{name}.down"), up, (4 * width, width), dev / 2.0);
            h = l.tap(&format!("{name}.out"), h);
        }
        let pooled = norm("norm", h).mean(&[1]);
        cx.output("logits", l.linear("fc", pooled, (width, classes), dev));
        Ok(())
    })
}

/// A language model of one GRU, unrolled over `length` tokens: `tokens` `[batch, length]` int64 and `hidden`
/// `[batch, hidden]` to `logits` `[batch, length, vocab]` and `hidden_next` `[batch, hidden]`. Weights are laid out as
/// in torch.nn.GRU (reset, update and new gate); they do not depend on `length`, so that a net of length 1 decodes
/// with the weights of a longer one.
pub fn gru(vocab: usize, width: usize, hidden: usize, length: usize, seed: u64) -> Result<Net, DistillError> {
    Net::build("gru", |cx| {
        if length == 0 {
            return Err(DistillError::Net { reason: "a GRU needs a length of at least 1".into() });
        }
        let l = Layers::new(cx, seed);
        let dims = vec![Dim::from("batch"), Dim::Known(length)];
        let tokens = cx.var(cx.edit(|g| g.add_input("tokens", TensorType::with_dims(DType::I64, dims))));
        let mut h = l.input("hidden", &[hidden]);
        let deviation = (1.0 / hidden as f64).sqrt();
        let table = l.normal("embedding.weight", &[vocab, width], 1.0);
        let weight = |name: &str, columns| {
            let w = l.normal(&format!("gru.weight_{name}"), &[3 * hidden, columns], deviation);
            (w, l.constant(&format!("gru.bias_{name}"), &[3 * hidden], 0.0))
        };
        let (ih, hh) = (weight("ih", width), weight("hh", hidden));
        let head = (l.normal("fc.weight", &[vocab, hidden], deviation), l.constant("fc.bias", &[vocab], 0.0));
        let embedded = table.gather(tokens, 0);
        let mut logits = vec![];
        for t in 0..length {
            let (x, s) = (linear(embedded.slice(1, t, t + 1).squeeze(&[1]), ih), linear(h, hh));
            let reset = (gate(x, 0, hidden) + gate(s, 0, hidden)).sigmoid();
            let update = (gate(x, 1, hidden) + gate(s, 1, hidden)).sigmoid();
            let new = (gate(x, 2, hidden) + reset * gate(s, 2, hidden)).tanh();
            h = new + update * (h - new);
            logits.push(linear(h, head).unsqueeze(&[1]));
        }
        cx.output("logits", logits[0].concat(&logits[1..], 1));
        cx.output("hidden_next", h);
        Ok(())
    })
}

/// `x W' + b` of weights that are already declared.
fn linear<'c>(x: Var<'c>, (w, b): (Var<'c>, Var<'c>)) -> Var<'c> {
    x.gemm(w, Some(b), false, true)
}

/// Columns of gate `i` of a GRU.
fn gate(x: Var<'_>, i: usize, hidden: usize) -> Var<'_> {
    x.slice(-1, i * hidden, (i + 1) * hidden)
}
