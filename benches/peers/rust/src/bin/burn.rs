//! burn's train step on its CPU backend Flex, with burn's own SGD.
//! Usage: `burn NET FOLDER THREADS STEPS`, with `RAYON_NUM_THREADS`.

use anyhow::{Context, Result};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{Optimizer, Sgd, SgdConfig};
use burn::tensor::activation::{gelu, log_softmax, relu, relu6, softmax};
use burn::tensor::module::{attention, batch_norm_train, conv2d, layer_norm, linear};
use burn::tensor::ops::{AttentionModuleOptions, ConvOptions};
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use limbeck_peers::nets::{Conv, Framework, logits};
use limbeck_peers::{Array, Job, KD_SHARE, MOMENTUM, RATE, TEMPERATURE};
use std::cell::RefCell;
use std::collections::BTreeMap;

type State<const R: usize> = <Sgd as Optimizer>::State<R>;

/// Weights of one rank with what the optimiser keeps of each.
struct Weights<const R: usize>(BTreeMap<String, (Tensor<R>, Option<State<R>>)>);

struct Burn {
    net: String,
    /// The batch, flat, and its shape.
    x: (Tensor<1>, Vec<usize>),
    vectors: Weights<1>,
    matrices: Weights<2>,
    kernels: Weights<4>,
    /// Running mean and variance by layer.
    running: RefCell<BTreeMap<String, [Tensor<1>; 2]>>,
}

fn tensor<const R: usize>(array: &Array, device: &Device) -> Tensor<R> {
    Tensor::from_data(TensorData::new(array.values.clone(), array.shape.clone()), device)
}

impl<const R: usize> Weights<R> {
    fn new(job: &Job, device: &Device) -> Weights<R> {
        let of_rank = job.weights.iter().filter(|(_, a)| a.shape.len() == R);
        Weights(of_rank.map(|(n, a)| (n.clone(), (tensor::<R>(a, device).require_grad(), None))).collect())
    }

    fn get(&self, layer: &str, part: &str) -> Result<Tensor<R>> {
        let name = format!("{layer}.{part}");
        Ok(self.0.get(&name).with_context(|| format!("no weight '{name}'"))?.0.clone())
    }

    fn update(&mut self, optimiser: &Sgd, gradients: &mut Gradients) -> Result<()> {
        for (name, (weight, state)) in &mut self.0 {
            let gradient = weight.grad_remove(gradients).with_context(|| format!("'{name}' has no gradient"))?;
            let (updated, kept) = optimiser.step(RATE, weight.clone().inner(), gradient, state.take());
            (*weight, *state) = (Tensor::from_inner(updated).require_grad(), kept);
        }
        Ok(())
    }
}

impl Framework for Burn {
    type Image = Tensor<4>;
    type Tokens = Tensor<3>;
    type Rows = Tensor<2>;

    fn images(&self) -> Result<Tensor<4>> {
        self.batch()
    }

    fn tokens(&self) -> Result<Tensor<3>> {
        self.batch()
    }

    fn rows(&self) -> Result<Tensor<2>> {
        self.batch()
    }

    fn conv(&self, name: &str, x: Tensor<4>, sizes: Conv) -> Result<Tensor<4>> {
        let options = ConvOptions::new([sizes.stride; 2], sizes.pad, [1, 1], sizes.group);
        Ok(conv2d(x, self.kernels.get(name, "weight")?, self.vectors.get(name, "bias").ok(), options))
    }

    fn batch_norm(&self, name: &str, x: Tensor<4>) -> Result<Tensor<4>> {
        let result = batch_norm_train(x, self.vectors.get(name, "weight")?, self.vectors.get(name, "bias")?, 1e-5);
        let mut running = self.running.borrow_mut();
        let now = [result.mean.inner(), result.variance.inner()];
        let moved = match running.remove(name) {
            Some([mean, var]) => {
                let [now_mean, now_var] = now;
                [mean * 0.9 + now_mean * 0.1, var * 0.9 + now_var * 0.1]
            }
            None => now,
        };
        running.insert(name.into(), moved);
        Ok(result.output)
    }

    fn add(&self, a: Tensor<4>, b: Tensor<4>) -> Result<Tensor<4>> {
        Ok(a + b)
    }

    fn relu(&self, x: Tensor<4>) -> Result<Tensor<4>> {
        Ok(relu(x))
    }

    fn relu6(&self, x: Tensor<4>) -> Result<Tensor<4>> {
        Ok(relu6(x))
    }

    fn pool(&self, x: Tensor<4>) -> Result<Tensor<2>> {
        let [batch, channels, height, width] = x.dims();
        Ok(x.reshape([batch, channels, height * width]).mean_dim(2).reshape([batch, channels]))
    }

    fn relu_rows(&self, x: Tensor<2>) -> Result<Tensor<2>> {
        Ok(relu(x))
    }

    fn linear(&self, name: &str, x: Tensor<2>) -> Result<Tensor<2>> {
        Ok(linear(x, self.matrices.get(name, "weight")?.transpose(), Some(self.vectors.get(name, "bias")?)))
    }

    fn dense(&self, name: &str, x: Tensor<3>) -> Result<Tensor<3>> {
        Ok(linear(x, self.matrices.get(name, "weight")?, Some(self.vectors.get(name, "bias")?)))
    }

    fn layer_norm(&self, name: &str, x: Tensor<3>) -> Result<Tensor<3>> {
        Ok(layer_norm(x, self.vectors.get(name, "weight")?, Some(self.vectors.get(name, "bias")?), 1e-5))
    }

    fn attention(&self, heads: usize, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Result<Tensor<3>> {
        let [batch, length, width] = q.dims();
        let split = |x: Tensor<3>| x.reshape([batch, length, heads, width / heads]).swap_dims(1, 2);
        let attended = attention(split(q), split(k), split(v), None, None, AttentionModuleOptions::default());
        Ok(attended.swap_dims(1, 2).reshape([batch, length, width]))
    }

    fn gelu(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        Ok(gelu(x))
    }

    fn add_tokens(&self, a: Tensor<3>, b: Tensor<3>) -> Result<Tensor<3>> {
        Ok(a + b)
    }

    fn mean_tokens(&self, x: Tensor<3>) -> Result<Tensor<2>> {
        let [batch, _, width] = x.dims();
        Ok(x.mean_dim(1).reshape([batch, width]))
    }
}

impl Burn {
    fn batch<const R: usize>(&self) -> Result<Tensor<R>> {
        let (x, shape) = &self.x;
        Ok(x.clone().reshape(<[usize; R]>::try_from(shape.as_slice())?))
    }

    /// The loss before the update that this does.
    fn step(&mut self, optimiser: &Sgd, labels: Tensor<2, Int>, teacher: Tensor<2>) -> Result<f64> {
        let logits = logits(self, &self.net)?;
        let batch = logits.dims()[0] as f64;
        let ce = log_softmax(logits.clone(), 1).gather(1, labels).sum() / -batch;
        let student_log = log_softmax(logits / TEMPERATURE, 1);
        let (teacher_p, teacher_log) = (softmax(teacher.clone(), 1), log_softmax(teacher, 1));
        let kd = (teacher_p * (teacher_log - student_log)).sum() / batch;
        let loss = ce * (1.0 - KD_SHARE) + kd * (KD_SHARE * TEMPERATURE * TEMPERATURE);
        let mut gradients = loss.backward();
        self.vectors.update(optimiser, &mut gradients)?;
        self.matrices.update(optimiser, &mut gradients)?;
        self.kernels.update(optimiser, &mut gradients)?;
        Ok(f64::from(loss.into_scalar::<f32>()))
    }
}

fn main() -> Result<()> {
    let job = Job::from_args()?;
    let device = Device::flex().autodiff();
    let labels = Tensor::<1, Int>::from_data(TensorData::new(job.labels.clone(), [job.labels.len()]), &device);
    let labels = labels.reshape([job.labels.len(), 1]);
    let teacher = tensor::<2>(&job.teacher, &device) / TEMPERATURE;
    let momentum = MomentumConfig::new().with_momentum(MOMENTUM).with_dampening(0.0);
    let optimiser = SgdConfig::new().with_momentum(Some(momentum)).build();
    let mut burn = Burn {
        net: job.net.clone(),
        x: (
            Tensor::from_data(TensorData::new(job.x.values.clone(), [job.x.values.len()]), &device),
            job.x.shape.clone(),
        ),
        vectors: Weights::new(&job, &device),
        matrices: Weights::new(&job, &device),
        kernels: Weights::new(&job, &device),
        running: RefCell::default(),
    };
    job.time(|| burn.step(&optimiser, labels.clone(), teacher.clone()))
}
