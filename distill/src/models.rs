//! Networks built in code, seeded: small residual CNNs, a transformer encoder, a GRU, an MLP. The batch is the named dim
//! `batch`. Weights come from the seeded streams of [`limbeck_runtime::noise`], one per weight name.

use crate::{DistillError, Net};
use limbeck_graph::{Attr, Cx, Dim, TensorType, Var};
use limbeck_runtime::noise;
use limbeck_tensor::{DType, Tensor};

/// Declares layers with seeded weights in one construction.
pub struct Layers<'c> {
    cx: &'c Cx,
    seed: u64,
}

impl<'c> Layers<'c> {
    /// Layers whose weights derive from `seed`.
    pub fn new(cx: &'c Cx, seed: u64) -> Layers<'c> {
        Layers { cx, seed }
    }

    /// The construction.
    pub fn cx(&self) -> &'c Cx {
        self.cx
    }

    /// The input `[batch, shape...]`, f32.
    pub fn input(&self, name: &str, shape: &[usize]) -> Var<'c> {
        let mut dims = vec![Dim::from("batch")];
        dims.extend(shape.iter().map(|&n| Dim::Known(n)));
        let id = self.cx.edit(|g| g.add_input(name, TensorType::with_dims(DType::F32, dims)));
        self.cx.var(id)
    }

    /// A weight drawn from a normal distribution with this standard deviation.
    pub fn normal(&self, name: &str, shape: &[usize], deviation: f64) -> Var<'c> {
        let mut stream = noise::stream(self.seed, 0, name);
        let values = (0..shape.iter().product()).map(|_| (stream.normal() * deviation) as f32).collect();
        self.tensor(name, shape, values)
    }

    /// A weight with one value everywhere.
    pub fn constant(&self, name: &str, shape: &[usize], value: f32) -> Var<'c> {
        self.tensor(name, shape, vec![value; shape.iter().product()])
    }

    fn tensor(&self, name: &str, shape: &[usize], values: Vec<f32>) -> Var<'c> {
        match Tensor::new(shape, values) {
            Ok(t) => self.cx.initializer(name, t),
            Err(e) => self.cx.fail(e.into()),
        }
    }

    /// Convolution `kernel`x`kernel` without bias, padded to keep the size at stride 1; He-normal weights.
    pub fn conv(&self, name: &str, x: Var<'c>, io: (usize, usize), kernel: usize, stride: usize) -> Var<'c> {
        let (input, output) = io;
        let deviation = (2.0 / (input * kernel * kernel) as f64).sqrt();
        let w = self.normal(&format!("{name}.weight"), &[output, input, kernel, kernel], deviation);
        let pad = (kernel / 2) as i64;
        self.cx.op(
            "Conv",
            &[x, w],
            &[
                ("kernel_shape", vec![kernel; 2].into()),
                ("strides", vec![stride; 2].into()),
                ("pads", Attr::Ints(vec![pad; 4])),
            ],
        )
    }

    /// Batch normalisation (epsilon 1e-5, running statistics moving by 0.1), scale starting at `gamma`.
    pub fn batch_norm(&self, name: &str, x: Var<'c>, channels: usize, gamma: f32) -> Var<'c> {
        let scale = self.constant(&format!("{name}.weight"), &[channels], gamma);
        let bias = self.constant(&format!("{name}.bias"), &[channels], 0.0);
        let mean = self.constant(&format!("{name}.running_mean"), &[channels], 0.0);
        let var = self.constant(&format!("{name}.running_var"), &[channels], 1.0);
        let attrs = [("epsilon", 1e-5f64.into()), ("momentum", 0.9f64.into())];
        self.cx.op("BatchNormalization", &[x, scale, bias, mean, var], &attrs)
    }

    /// Convolution 3x3, batch normalisation, ReLU.
    pub fn conv_bn_relu(&self, name: &str, x: Var<'c>, io: (usize, usize), stride: usize) -> Var<'c> {
        let y = self.conv(&format!("{name}.conv"), x, io, 3, stride);
        self.batch_norm(&format!("{name}.bn"), y, io.1, 1.0).relu()
    }

    /// Residual block `relu(x + bn(conv(conv_bn_relu(x))))` with `inner` channels inside; its last scale starts at
    /// 0.3, so that it begins near the identity.
    pub fn residual(&self, name: &str, x: Var<'c>, channels: usize, inner: usize) -> Var<'c> {
        let h = self.conv_bn_relu(&format!("{name}.a"), x, (channels, inner), 1);
        let h = self.conv(&format!("{name}.b.conv"), h, (inner, channels), 3, 1);
        let h = self.batch_norm(&format!("{name}.b.bn"), h, channels, 0.3);
        self.tap(&format!("{name}.out"), (x + h).relu())
    }

    /// Fully connected layer `x W' + b` with torch's layout `[output, input]` of the weight.
    pub fn linear(&self, name: &str, x: Var<'c>, io: (usize, usize), deviation: f64) -> Var<'c> {
        let w = self.normal(&format!("{name}.weight"), &[io.1, io.0], deviation);
        let b = self.constant(&format!("{name}.bias"), &[io.1], 0.0);
        x.gemm(w, Some(b), false, true)
    }

    /// Linear layer on the last axis of a tensor of any rank.
    pub fn dense(&self, name: &str, x: Var<'c>, io: (usize, usize), deviation: f64) -> Var<'c> {
        let w = self.normal(&format!("{name}.weight"), &[io.0, io.1], deviation);
        x.matmul(w) + self.constant(&format!("{name}.bias"), &[io.1], 0.0)
    }

    /// Global average pooling and flattening: `[N, C, ...]` to `[N, C]`.
    pub fn pool(&self, x: Var<'c>) -> Var<'c> {
        self.cx.op("Flatten", &[x.global_average_pool()], &[("axis", 1i64.into())])
    }

    /// Gives a value a name under which it can be tapped.
    pub fn tap(&self, name: &str, x: Var<'c>) -> Var<'c> {
        if let Err(e) = self.cx.edit(|g| g.rename(x.id(), name)) {
            self.cx.fail(e);
        }
        x
    }
}

/// A stage of a residual CNN.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Channels of the stage.
    pub channels: usize,
    /// Stride of the convolution that enters it.
    pub stride: usize,
    /// Inner channels of each residual block.
    pub blocks: Vec<usize>,
}

/// A residual CNN: a stem, stages entered by a 3x3 convolution, global pooling, a classifier.
#[derive(Debug, Clone)]
pub struct ResNet {
    /// Input channels, height, width.
    pub input: [usize; 3],
    /// Channels of the stem.
    pub stem: usize,
    /// Stages; blocks are called `stage{i}.block{j}` and tapped as `...out`.
    pub stages: Vec<Stage>,
    /// Classes.
    pub classes: usize,
}

impl ResNet {
    /// Builds it with weights from `seed`. Input `x`, output `logits`.
    pub fn build(&self, seed: u64) -> Result<Net, DistillError> {
        Net::build("resnet", |cx| {
            let l = Layers::new(cx, seed);
            let x = l.input("x", &self.input);
            let mut h = l.conv_bn_relu("stem", x, (self.input[0], self.stem), 1);
            let mut channels = self.stem;
            for (i, stage) in self.stages.iter().enumerate() {
                h = l.conv_bn_relu(&format!("stage{i}.down"), h, (channels, stage.channels), stage.stride);
                channels = stage.channels;
                for (j, &inner) in stage.blocks.iter().enumerate() {
                    h = l.residual(&format!("stage{i}.block{j}"), h, channels, inner);
                }
            }
            cx.output("logits", l.linear("fc", l.pool(h), (channels, self.classes), 0.1));
            Ok(())
        })
    }
}

/// ResNet-8 of MLPerf Tiny's image task: 3x32x32, 16-32-64 channels, one block a stage with projected shortcuts.
pub fn resnet8(seed: u64) -> Result<Net, DistillError> {
    Net::build("resnet8", |cx| {
        let l = Layers::new(cx, seed);
        let x = l.input("x", &[3, 32, 32]);
        let mut h = l.conv_bn_relu("stem", x, (3, 16), 1);
        let mut channels = 16;
        for (i, (width, stride)) in [(16, 1), (32, 2), (64, 2)].into_iter().enumerate() {
            let a = l.conv_bn_relu(&format!("block{i}.a"), h, (channels, width), stride);
            let b = l.conv(&format!("block{i}.b.conv"), a, (width, width), 3, 1);
            let b = l.batch_norm(&format!("block{i}.b.bn"), b, width, 1.0);
            let short = if stride == 1 && channels == width {
                h
            } else {
                l.conv(&format!("block{i}.short"), h, (channels, width), 1, stride)
            };
            h = l.tap(&format!("block{i}.out"), (b + short).relu());
            channels = width;
        }
        cx.output("logits", l.linear("fc", l.pool(h), (64, 10), 0.1));
        Ok(())
    })
}

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

/// A multi-layer perceptron with ReLU between its layers; `widths` from the input to the output.
pub fn mlp(widths: &[usize], seed: u64) -> Result<Net, DistillError> {
    Net::build("mlp", |cx| {
        let l = Layers::new(cx, seed);
        let [first, _, ..] = *widths else {
            return Err(DistillError::Net { reason: "an MLP needs at least two widths".into() });
        };
        let mut h = l.input("x", &[first]);
        for (i, pair) in widths.windows(2).enumerate() {
            if i > 0 {
                h = h.relu();
            }
            h = l.linear(&format!("layer{i}"), h, (pair[0], pair[1]), (2.0 / pair[0] as f64).sqrt());
        }
        cx.output("logits", h);
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
