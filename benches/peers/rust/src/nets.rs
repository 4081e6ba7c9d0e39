//! The nets of `benches/common`, once for all frameworks. Layers are called as Limbeck's weights are.

use anyhow::{Result, bail};

/// Sizes of a convolution that the weight does not tell.
#[derive(Clone, Copy)]
pub struct Conv {
    /// Step between output positions.
    pub stride: usize,
    /// Zeros on either side of an axis.
    pub pad: [usize; 2],
    /// Channel groups.
    pub group: usize,
}

impl Conv {
    fn square(kernel: usize, stride: usize) -> Conv {
        Conv { stride, pad: [kernel / 2; 2], group: 1 }
    }

    fn depthwise(channels: usize, stride: usize) -> Conv {
        Conv { group: channels, ..Conv::square(3, stride) }
    }
}

/// What the nets need of a framework that holds the weights.
pub trait Framework {
    /// `[batch, channels, height, width]`.
    type Image: Clone;
    /// `[batch, length, width]`.
    type Tokens: Clone;
    /// `[batch, width]`.
    type Rows: Clone;

    /// The batch.
    fn images(&self) -> Result<Self::Image>;
    /// The batch.
    fn tokens(&self) -> Result<Self::Tokens>;
    /// The batch.
    fn rows(&self) -> Result<Self::Rows>;
    /// Convolution with `{name}.weight` and, where there is one, `{name}.bias`.
    fn conv(&self, name: &str, x: Self::Image, sizes: Conv) -> Result<Self::Image>;
    /// Normalisation by the batch's statistics, which move the running ones; epsilon 1e-5.
    fn batch_norm(&self, name: &str, x: Self::Image) -> Result<Self::Image>;
    /// `a + b`.
    fn add(&self, a: Self::Image, b: Self::Image) -> Result<Self::Image>;
    /// `max(x, 0)`.
    fn relu(&self, x: Self::Image) -> Result<Self::Image>;
    /// `min(max(x, 0), 6)`.
    fn relu6(&self, x: Self::Image) -> Result<Self::Image>;
    /// Mean over height and width.
    fn pool(&self, x: Self::Image) -> Result<Self::Rows>;
    /// `max(x, 0)`.
    fn relu_rows(&self, x: Self::Rows) -> Result<Self::Rows>;
    /// `x W' + b`, weight `[outputs, inputs]`.
    fn linear(&self, name: &str, x: Self::Rows) -> Result<Self::Rows>;
    /// `x W + b` on the last axis, weight `[inputs, outputs]`.
    fn dense(&self, name: &str, x: Self::Tokens) -> Result<Self::Tokens>;
    /// Normalisation over the last axis, epsilon 1e-5.
    fn layer_norm(&self, name: &str, x: Self::Tokens) -> Result<Self::Tokens>;
    /// Scaled dot-product attention of `heads` heads side by side on the last axis.
    fn attention(&self, heads: usize, q: Self::Tokens, k: Self::Tokens, v: Self::Tokens) -> Result<Self::Tokens>;
    /// GELU with the error function.
    fn gelu(&self, x: Self::Tokens) -> Result<Self::Tokens>;
    /// `a + b`.
    fn add_tokens(&self, a: Self::Tokens, b: Self::Tokens) -> Result<Self::Tokens>;
    /// Mean over the length.
    fn mean_tokens(&self, x: Self::Tokens) -> Result<Self::Rows>;
}

/// The logits of a net on the batch.
pub fn logits<F: Framework>(f: &F, net: &str) -> Result<F::Rows> {
    match net {
        "resnet8" => resnet8(f, true),
        "resnet8-plain" => resnet8(f, false),
        "ds-cnn" => ds_cnn(f),
        "mobilenet-v2-0.35" => mobilenet_v2(f),
        "transformer" => transformer(f),
        "autoencoder" => autoencoder(f),
        _ => bail!("not written: {net}"),
    }
}

fn resnet8<F: Framework>(f: &F, norm: bool) -> Result<F::Rows> {
    let layer = |name: &str, x, sizes| {
        let y = f.conv(&format!("{name}.conv"), x, sizes)?;
        if norm { f.batch_norm(&format!("{name}.bn"), y) } else { Ok(y) }
    };
    let mut h = f.relu(layer("stem", f.images()?, Conv::square(3, 1))?)?;
    for (i, stride) in [1, 2, 2].into_iter().enumerate() {
        let a = f.relu(layer(&format!("block{i}.a"), h.clone(), Conv::square(3, stride))?)?;
        let b = layer(&format!("block{i}.b"), a, Conv::square(3, 1))?;
        let short = if stride == 1 { h } else { f.conv(&format!("block{i}.short"), h, Conv::square(1, stride))? };
        h = f.relu(f.add(b, short)?)?;
    }
    f.linear("fc", f.pool(h)?)
}

fn ds_cnn<F: Framework>(f: &F) -> Result<F::Rows> {
    let layer =
        |name: &str, x, sizes| f.relu(f.batch_norm(&format!("{name}.bn"), f.conv(&format!("{name}.conv"), x, sizes)?)?);
    let mut h = layer("stem", f.images()?, Conv { stride: 2, pad: [5, 1], group: 1 })?;
    for i in 0..4 {
        h = layer(&format!("block{i}.depth"), h, Conv::depthwise(64, 1))?;
        h = layer(&format!("block{i}.point"), h, Conv::square(1, 1))?;
    }
    f.linear("fc", f.pool(h)?)
}

/// Expansion, output channels at width 0.35, repeats and first stride of the stages of MobileNetV2.
const STAGES: [(usize, usize, usize, usize); 7] =
    [(1, 8, 1, 1), (6, 8, 2, 2), (6, 16, 3, 2), (6, 24, 4, 2), (6, 32, 3, 1), (6, 56, 3, 2), (6, 112, 1, 1)];

fn mobilenet_v2<F: Framework>(f: &F) -> Result<F::Rows> {
    let norm = |name: &str, x, sizes| f.batch_norm(&format!("{name}.bn"), f.conv(&format!("{name}.conv"), x, sizes)?);
    let mut h = f.relu6(norm("stem", f.images()?, Conv::square(3, 2))?)?;
    let (mut channels, mut block) = (16, 0);
    for (expansion, outputs, repeats, first) in STAGES {
        for stride in std::iter::once(first).chain(std::iter::repeat_n(1, repeats - 1)) {
            let mut x = h.clone();
            if expansion > 1 {
                x = f.relu6(norm(&format!("block{block}.expand"), x, Conv::square(1, 1))?)?;
            }
            x = f.relu6(norm(&format!("block{block}.depth"), x, Conv::depthwise(channels * expansion, stride))?)?;
            x = norm(&format!("block{block}.project"), x, Conv::square(1, 1))?;
            h = if stride == 1 && channels == outputs { f.add(h, x)? } else { x };
            (channels, block) = (outputs, block + 1);
        }
    }
    h = f.relu6(norm("last", h, Conv::square(1, 1))?)?;
    f.linear("fc", f.pool(h)?)
}

fn transformer<F: Framework>(f: &F) -> Result<F::Rows> {
    let mut h = f.tokens()?;
    for i in 0..2 {
        let part = |name: &str| format!("layer{i}.{name}");
        let n = f.layer_norm(&part("norm1"), h.clone())?;
        let (q, k) = (f.dense(&part("q"), n.clone())?, f.dense(&part("k"), n.clone())?);
        let attended = f.attention(4, q, k, f.dense(&part("v"), n)?)?;
        h = f.add_tokens(h, f.dense(&part("o"), attended)?)?;
        let n = f.layer_norm(&part("norm2"), h.clone())?;
        let up = f.gelu(f.dense(&part("up"), n)?)?;
        h = f.add_tokens(h, f.dense(&part("down"), up)?)?;
    }
    f.linear("fc", f.mean_tokens(f.layer_norm("norm", h)?)?)
}

fn autoencoder<F: Framework>(f: &F) -> Result<F::Rows> {
    let mut h = f.rows()?;
    for i in 0..10 {
        h = f.linear(&format!("layer{i}"), h)?;
        if i < 9 {
            h = f.relu_rows(h)?;
        }
    }
    Ok(h)
}
