//! Noise for steps: every random input is a counter-based function of (seed, step, name), so that a run can be
//! resumed, repeated and compared bit for bit.

use crate::{Distribution, NoiseEntry, RuntimeError, session::LARGEST_TENSOR};
use limbeck_tensor::{DType, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// A seeded stream for one purpose: the generator is keyed by SHA-256 of (seed, step, name).
pub fn stream(seed: u64, step: u64, name: &str) -> Stream {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(step.to_le_bytes());
    hash.update(name.as_bytes());
    Stream(ChaCha8Rng::from_seed(hash.finalize().into()))
}

/// Random numbers of one purpose.
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// Uniform in [0, 1), with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform integer in 0..n (n at least 1), without modulo bias beyond 2^-53.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.uniform() * n as f64) as usize).min(n.saturating_sub(1))
    }

    /// Standard normal, by Box and Muller's transform.
    pub fn normal(&mut self) -> f64 {
        let u = 1.0 - self.uniform();
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// A random order of 0..n (Fisher and Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// The noise of one input at one step, as f32.
///
/// # Errors
/// A shape of more than 1 GiB.
pub fn draw(seed: u64, step: u64, entry: &NoiseEntry) -> Result<Tensor, RuntimeError> {
    let mut stream = stream(seed, step, &entry.name);
    let n = limbeck_tensor::element_count(&entry.shape)
        .filter(|n| n.checked_mul(4).is_some_and(|bytes| bytes <= LARGEST_TENSOR))
        .ok_or(limbeck_tensor::TensorError::TooLarge { shape: entry.shape.clone(), dtype: DType::F32 })?;
    let values: Vec<f32> = (0..n)
        .map(|_| match entry.distribution {
            Distribution::Normal => stream.normal() as f32,
            Distribution::Uniform => stream.uniform() as f32,
            Distribution::Bernoulli(p) => f32::from(u8::from(stream.uniform() < p)),
        })
        .collect();
    Ok(Tensor::new(entry.shape.clone(), values)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ() {
        let take = |seed, step, name: &str| stream(seed, step, name).uniform();
        assert_eq!(take(1, 2, "a"), take(1, 2, "a"));
        assert_ne!(take(1, 2, "a"), take(1, 3, "a"));
        assert_ne!(take(1, 2, "a"), take(1, 2, "b"));
    }

    #[test]
    fn a_shape_from_a_file_does_not_exhaust_memory() {
        for shape in [vec![1 << 40], vec![usize::MAX, 2], vec![1 << 28, 2]] {
            let entry = NoiseEntry { name: "z".into(), shape, distribution: Distribution::Uniform };
            assert!(draw(0, 0, &entry).unwrap_err().to_string().contains("too large"));
        }
    }

    #[test]
    fn moments_are_those_of_the_distribution() {
        let mut s = stream(7, 0, "moments");
        let v: Vec<f64> = (0..20_000).map(|_| s.normal()).collect();
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        let var = v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / v.len() as f64;
        // Five standard errors: 5/sqrt(20000) and 5*sqrt(2/20000).
        assert!(mean.abs() < 0.036 && (var - 1.0).abs() < 0.05, "mean {mean}, variance {var}");
        let mut order = stream(7, 0, "order").permutation(100);
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
