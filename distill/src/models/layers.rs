//! Layers with seeded weights, from which the nets of this module are built.

use limbeck_graph::{Cx, Dim, TensorType, Var};
use limbeck_runtime::noise;
use limbeck_tensor::{DType, Tensor};

/// Sizes of a 2-D convolution; pairs are `[height, width]`.
#[derive(Debug, Clone, Copy)]
pub struct Conv {
    /// Input and output channels.
    pub channels: (usize, usize),
    /// Taps an axis.
    pub kernel: [usize; 2],
    /// Step between output positions, on both axes.
    pub stride: usize,
    /// Zeros on either side of an axis.
    pub pad: [usize; 2],
    /// Channel groups; as many as channels: depthwise.
    pub group: usize,
    /// Whether it has a bias.
    pub bias: bool,
}

impl Conv {
    /// `kernel`x`kernel` in one group, without bias, padded to keep the size at stride 1.
    pub fn square(channels: (usize, usize), kernel: usize, stride: usize) -> Conv {
        Conv { channels, kernel: [kernel; 2], stride, pad: [kernel / 2; 2], group: 1, bias: false }
    }

    /// 3x3 on each channel by itself, without bias, padded to keep the size at stride 1.
    pub fn depthwise(channels: usize, stride: usize) -> Conv {
        Conv { group: channels, ..Conv::square((channels, channels), 3, stride) }
    }
}

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

    /// Convolution with He-normal weights; a bias starts at 0.
    pub fn conv2d(&self, name: &str, x: Var<'c>, sizes: &Conv) -> Var<'c> {
        let Conv { channels: (input, output), kernel, stride, pad, group, bias } = *sizes;
        let shape = [output, input / group.max(1), kernel[0], kernel[1]];
        let deviation = (2.0 / shape[1..].iter().product::<usize>() as f64).sqrt();
        let mut operands = vec![x, self.normal(&format!("{name}.weight"), &shape, deviation)];
        if bias {
            operands.push(self.constant(&format!("{name}.bias"), &[output], 0.0));
        }
        self.cx.op(
            "Conv",
            &operands,
            &[
                ("kernel_shape", kernel.to_vec().into()),
                ("strides", vec![stride; 2].into()),
                ("pads", [pad, pad].concat().into()),
                ("group", (group as i64).into()),
            ],
        )
    }

    /// Convolution `kernel`x`kernel` without bias, padded to keep the size at stride 1; He-normal weights.
    pub fn conv(&self, name: &str, x: Var<'c>, io: (usize, usize), kernel: usize, stride: usize) -> Var<'c> {
        self.conv2d(name, x, &Conv::square(io, kernel, stride))
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

    /// `min(max(x, 0), 6)`.
    pub fn relu6(&self, x: Var<'c>) -> Var<'c> {
        self.cx.op("Clip", &[x, self.cx.scalar(0.0), self.cx.scalar(6.0)], &[])
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
