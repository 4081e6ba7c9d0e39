//! candle's train step on the CPU. candle has no SGD with momentum of its own: the update is written here with tensors.
//! Usage: `candle NET FOLDER THREADS STEPS`, with `RAYON_NUM_THREADS`.

use anyhow::{Context, Result};
use candle_core::{D, Device, Tensor, Var};
use candle_nn::{BatchNorm, ops};
use limbeck_peers::nets::{Conv, Framework, logits};
use limbeck_peers::{Array, Job, KD_SHARE, MOMENTUM, RATE, TEMPERATURE};
use std::collections::BTreeMap;

struct Candle {
    x: Tensor,
    weights: BTreeMap<String, Var>,
    norms: BTreeMap<String, BatchNorm>,
}

fn tensor(array: &Array) -> Result<Tensor> {
    Ok(Tensor::from_slice(&array.values, array.shape.as_slice(), &Device::Cpu)?)
}

impl Candle {
    fn new(job: &Job) -> Result<Candle> {
        let weights: BTreeMap<String, Var> = job
            .weights
            .iter()
            .map(|(name, array)| Ok((name.clone(), Var::from_tensor(&tensor(array)?)?)))
            .collect::<Result<_>>()?;
        let mut norms = BTreeMap::new();
        for (name, scale) in &weights {
            let Some(norm) = name.strip_suffix(".weight").filter(|n| n.ends_with(".bn")) else { continue };
            let bias = weights[&format!("{norm}.bias")].as_tensor().clone();
            let (mean, var) = (bias.zeros_like()?, bias.ones_like()?);
            let channels = bias.elem_count();
            norms.insert(norm.into(), BatchNorm::new(channels, mean, var, scale.as_tensor().clone(), bias, 1e-5)?);
        }
        Ok(Candle { x: tensor(&job.x)?, weights, norms })
    }

    fn weight(&self, layer: &str, part: &str) -> Result<&Tensor> {
        let name = format!("{layer}.{part}");
        Ok(self.weights.get(&name).with_context(|| format!("no weight '{name}'"))?.as_tensor())
    }
}

impl Framework for Candle {
    type Image = Tensor;
    type Tokens = Tensor;
    type Rows = Tensor;

    fn images(&self) -> Result<Tensor> {
        Ok(self.x.clone())
    }

    fn tokens(&self) -> Result<Tensor> {
        Ok(self.x.clone())
    }

    fn rows(&self) -> Result<Tensor> {
        Ok(self.x.clone())
    }

    fn conv(&self, name: &str, x: Tensor, sizes: Conv) -> Result<Tensor> {
        let (w, Conv { stride, pad, group }) = (self.weight(name, "weight")?, sizes);
        // candle pads both axes alike: other padding is done before, and only as far as it is read, since the gradient
        // of its convolution has no room for more.
        let y = if pad[0] == pad[1] {
            x.conv2d(w, pad[0], stride, 1, group)?
        } else {
            let mut x = x;
            for (axis, pad) in [(2, pad[0]), (3, pad[1])] {
                let (size, kernel) = (x.dim(axis)?, w.dim(axis)?);
                let read = (size + 2 * pad - kernel) / stride * stride + kernel;
                x = x.pad_with_zeros(axis, pad, read - size - pad)?;
            }
            x.conv2d(w, 0, stride, 1, group)?
        };
        match self.weight(name, "bias") {
            Ok(bias) => Ok(y.broadcast_add(&bias.reshape((1, (), 1, 1))?)?),
            Err(_) => Ok(y),
        }
    }

    fn batch_norm(&self, name: &str, x: Tensor) -> Result<Tensor> {
        let norm = self.norms.get(name).with_context(|| format!("no normalisation '{name}'"))?;
        Ok(norm.forward_train(&x)?)
    }

    fn add(&self, a: Tensor, b: Tensor) -> Result<Tensor> {
        Ok((a + b)?)
    }

    fn relu(&self, x: Tensor) -> Result<Tensor> {
        Ok(x.relu()?)
    }

    fn relu6(&self, x: Tensor) -> Result<Tensor> {
        Ok(x.clamp(0f32, 6f32)?)
    }

    fn pool(&self, x: Tensor) -> Result<Tensor> {
        Ok(x.mean((2, 3))?)
    }

    fn relu_rows(&self, x: Tensor) -> Result<Tensor> {
        Ok(x.relu()?)
    }

    fn linear(&self, name: &str, x: Tensor) -> Result<Tensor> {
        Ok(x.matmul(&self.weight(name, "weight")?.t()?)?.broadcast_add(self.weight(name, "bias")?)?)
    }

    fn dense(&self, name: &str, x: Tensor) -> Result<Tensor> {
        let (n, length, width) = x.dims3()?;
        let y = x.reshape((n * length, width))?.matmul(self.weight(name, "weight")?)?;
        Ok(y.broadcast_add(self.weight(name, "bias")?)?.reshape((n, length, ()))?)
    }

    fn layer_norm(&self, name: &str, x: Tensor) -> Result<Tensor> {
        // The fast one has no gradient.
        Ok(ops::layer_norm_slow(&x, self.weight(name, "weight")?, self.weight(name, "bias")?, 1e-5)?)
    }

    fn attention(&self, heads: usize, q: Tensor, k: Tensor, v: Tensor) -> Result<Tensor> {
        let (n, length, width) = q.dims3()?;
        let split = |x: Tensor| x.reshape((n, length, heads, width / heads))?.transpose(1, 2)?.contiguous();
        let (q, k, v) = (split(q)?, split(k)?, split(v)?);
        let scores = (q.matmul(&k.t()?)? / ((width / heads) as f64).sqrt())?;
        let attended = ops::softmax(&scores, D::Minus1)?.matmul(&v)?;
        Ok(attended.transpose(1, 2)?.reshape((n, length, width))?)
    }

    fn gelu(&self, x: Tensor) -> Result<Tensor> {
        Ok(x.gelu_erf()?)
    }

    fn add_tokens(&self, a: Tensor, b: Tensor) -> Result<Tensor> {
        Ok((a + b)?)
    }

    fn mean_tokens(&self, x: Tensor) -> Result<Tensor> {
        Ok(x.mean(1)?)
    }
}

fn main() -> Result<()> {
    let job = Job::from_args()?;
    let candle = Candle::new(&job)?;
    let labels = Tensor::from_slice(&job.labels, job.labels.len(), &Device::Cpu)?;
    let teacher = (tensor(&job.teacher)? / TEMPERATURE)?;
    let (teacher, teacher_log) = (ops::softmax(&teacher, 1)?, ops::log_softmax(&teacher, 1)?);
    let mut velocities = BTreeMap::new();
    job.time(|| {
        let logits = logits(&candle, &job.net)?;
        let ce = candle_nn::loss::cross_entropy(&logits, &labels)?;
        let student_log = ops::log_softmax(&(logits / TEMPERATURE)?, 1)?;
        let kd = ((&teacher * (&teacher_log - student_log)?)?.sum_all()? / job.labels.len() as f64)?;
        let loss = ((ce * (1.0 - KD_SHARE))? + (kd * (KD_SHARE * TEMPERATURE * TEMPERATURE))?)?;
        let gradients = loss.backward()?;
        for (name, weight) in &candle.weights {
            let gradient = gradients.get(weight).with_context(|| format!("'{name}' has no gradient"))?;
            let velocity = match velocities.remove(name) {
                Some(velocity) => ((velocity * MOMENTUM)? + gradient)?,
                None => gradient.clone(),
            };
            weight.set(&(weight.as_tensor() - (&velocity * RATE)?)?)?;
            velocities.insert(name.clone(), velocity.detach());
        }
        Ok(f64::from(loss.to_scalar::<f32>()?))
    })
}
