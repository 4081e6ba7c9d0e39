//! Networks built in code, seeded: CNNs, a transformer encoder, a GRU, an MLP. The batch is the named dim `batch`, images
//! are `[batch, channels, height, width]`. Weights come from the seeded streams of [`limbeck_runtime::noise`], one per
//! weight name.

mod cnn;
mod layers;
mod sequence;

pub use cnn::{ResNet, Stage, ds_cnn, mobilenet_v2, resnet8, resnet8_plain};
pub use layers::{Conv, Layers};
pub use sequence::{gru, transformer};

use crate::{DistillError, Net};

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
