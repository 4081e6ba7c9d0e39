//! Convolutional nets: residual, depthwise separable, inverted residuals.

use super::{Conv, Layers};
use crate::{DistillError, Net};

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
    resnet8_of("resnet8", true, seed)
}

/// [`resnet8`] without batch normalisation; its convolutions have biases.
pub fn resnet8_plain(seed: u64) -> Result<Net, DistillError> {
    resnet8_of("resnet8-plain", false, seed)
}

fn resnet8_of(name: &str, norm: bool, seed: u64) -> Result<Net, DistillError> {
    Net::build(name, |cx| {
        let l = Layers::new(cx, seed);
        let conv = |name: &str, x, io, kernel, stride| {
            l.conv2d(name, x, &Conv { bias: !norm, ..Conv::square(io, kernel, stride) })
        };
        let layer = |name: &str, x, io: (usize, usize), stride| {
            let y = conv(&format!("{name}.conv"), x, io, 3, stride);
            if norm { l.batch_norm(&format!("{name}.bn"), y, io.1, 1.0) } else { y }
        };
        let mut h = layer("stem", l.input("x", &[3, 32, 32]), (3, 16), 1).relu();
        let mut channels = 16;
        for (i, (width, stride)) in [(16, 1), (32, 2), (64, 2)].into_iter().enumerate() {
            let a = layer(&format!("block{i}.a"), h, (channels, width), stride).relu();
            let b = layer(&format!("block{i}.b"), a, (width, width), 1);
            let short = if stride == 1 && channels == width {
                h
            } else {
                conv(&format!("block{i}.short"), h, (channels, width), 1, stride)
            };
            h = l.tap(&format!("block{i}.out"), (b + short).relu());
            channels = width;
        }
        cx.output("logits", l.linear("fc", l.pool(h), (64, 10), 0.1));
        Ok(())
    })
}

/// DS-CNN of MLPerf Tiny's keyword task: 1x49x10 features, 64 channels, four depthwise separable blocks, 12 classes.
/// The first convolution is padded alike on both sides of an axis.
pub fn ds_cnn(seed: u64) -> Result<Net, DistillError> {
    Net::build("ds-cnn", |cx| {
        const CHANNELS: usize = 64;
        let l = Layers::new(cx, seed);
        let layer = |name: &str, x, sizes: &Conv| {
            let y = l.conv2d(&format!("{name}.conv"), x, sizes);
            l.batch_norm(&format!("{name}.bn"), y, CHANNELS, 1.0).relu()
        };
        let stem = Conv { channels: (1, CHANNELS), kernel: [10, 4], stride: 2, pad: [5, 1], group: 1, bias: false };
        let mut h = layer("stem", l.input("x", &[1, 49, 10]), &stem);
        for i in 0..4 {
            h = layer(&format!("block{i}.depth"), h, &Conv::depthwise(CHANNELS, 1));
            h = layer(&format!("block{i}.point"), h, &Conv::square((CHANNELS, CHANNELS), 1, 1));
        }
        cx.output("logits", l.linear("fc", l.pool(h), (CHANNELS, 12), 0.1));
        Ok(())
    })
}

/// Expansion, output channels, repeats and first stride of the stages of MobileNetV2.
const INVERTED: [(usize, usize, usize, usize); 7] =
    [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)];

/// MobileNetV2 of a width (1.0 for the published channels, each rounded to a multiple of 8) on square images `side`x`side`.
pub fn mobilenet_v2(width: f64, side: usize, classes: usize, seed: u64) -> Result<Net, DistillError> {
    let scaled = |channels: usize| multiple_of_8(channels as f64 * width);
    Net::build("mobilenet-v2", |cx| {
        let l = Layers::new(cx, seed);
        let norm = |name: &str, x, sizes: &Conv| {
            let y = l.conv2d(&format!("{name}.conv"), x, sizes);
            l.batch_norm(&format!("{name}.bn"), y, sizes.channels.1, 1.0)
        };
        let layer = |name: &str, x, sizes: &Conv| l.relu6(norm(name, x, sizes));
        let mut channels = scaled(32);
        let mut h = layer("stem", l.input("x", &[3, side, side]), &Conv::square((3, channels), 3, 2));
        let mut block = 0;
        for (expansion, output, repeats, first) in INVERTED {
            for stride in std::iter::once(first).chain(std::iter::repeat_n(1, repeats - 1)) {
                let (name, inner, output) = (format!("block{block}"), channels * expansion, scaled(output));
                let mut x = h;
                if expansion > 1 {
                    x = layer(&format!("{name}.expand"), x, &Conv::square((channels, inner), 1, 1));
                }
                x = layer(&format!("{name}.depth"), x, &Conv::depthwise(inner, stride));
                x = norm(&format!("{name}.project"), x, &Conv::square((inner, output), 1, 1));
                h = l.tap(&format!("{name}.out"), if stride == 1 && channels == output { h + x } else { x });
                (channels, block) = (output, block + 1);
            }
        }
        let last = multiple_of_8(1280.0 * width.max(1.0));
        h = layer("last", h, &Conv::square((channels, last), 1, 1));
        cx.output("logits", l.linear("fc", l.pool(h), (last, classes), 0.1));
        Ok(())
    })
}

/// The nearest multiple of 8, at least 8 and not more than a tenth below `channels`.
fn multiple_of_8(channels: f64) -> usize {
    let nearest = ((channels + 4.0) as usize / 8 * 8).max(8);
    if (nearest as f64) < 0.9 * channels { nearest + 8 } else { nearest }
}
