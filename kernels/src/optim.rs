//! Fused optimiser updates: one pass over parameters, gradients and state.

use crate::error::{KernelError, check_len};
use crate::parallel::{Parallelism, piece};

/// Values of one update below which threads cost more than they save.
const SERIAL_BELOW: usize = 1 << 16;

/// Settings of SGD with momentum, as in `torch.optim.SGD` without dampening and Nesterov.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdMomentum {
    /// Learning rate.
    pub lr: f32,
    /// Share of the velocity that is kept.
    pub momentum: f32,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f32,
}

/// `velocity = momentum * velocity + grads + weight_decay * params; params -= lr * velocity`, value by value.
///
/// The result does not depend on the thread count.
///
/// # Errors
/// Slices of different lengths.
pub fn sgd_momentum_update(
    params: &mut [f32],
    grads: &[f32],
    velocity: &mut [f32],
    settings: &SgdMomentum,
    parallelism: Parallelism,
) -> Result<(), KernelError> {
    check_len("grads", grads, params.len())?;
    check_len("velocity", velocity, params.len())?;
    let pieces = if params.len() < SERIAL_BELOW { 1 } else { parallelism.threads() };
    let longest = piece(params.len(), pieces, 0).len().max(1);
    let chunks = params.chunks_mut(longest).zip(grads.chunks(longest)).zip(velocity.chunks_mut(longest)).collect();
    parallelism.for_each(chunks, |((params, grads), velocity)| {
        let arch = pulp::Arch::new();
        arch.dispatch(
            #[inline(always)]
            || update(params, grads, velocity, settings),
        );
    });
    Ok(())
}

#[inline(always)]
fn update(params: &mut [f32], grads: &[f32], velocity: &mut [f32], settings: &SgdMomentum) {
    let SgdMomentum { lr, momentum, weight_decay } = *settings;
    for ((p, g), v) in params.iter_mut().zip(grads).zip(velocity) {
        *v = momentum * *v + (*g + weight_decay * *p);
        *p -= lr * *v;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three steps of `torch.optim.SGD(lr=0.1, momentum=0.9, weight_decay=0.01)` in float64 from [1, -2, 0.5] with
    /// gradients [0.5, 0.25, -1] x (1, 2, 3): `tests/golden/sgd.py` of this crate prints them.
    #[test]
    fn agrees_with_torch() {
        let expected = [0.5191847489999999, -2.2263946230000005, 1.4476174995000002];
        for threads in [1, 2] {
            let (mut params, mut velocity) = (vec![1.0f32, -2.0, 0.5], vec![0.0f32; 3]);
            let settings = SgdMomentum { lr: 0.1, momentum: 0.9, weight_decay: 0.01 };
            for step in [1.0, 2.0, 3.0] {
                let grads: Vec<f32> = [0.5, 0.25, -1.0].iter().map(|g| g * step).collect();
                sgd_momentum_update(&mut params, &grads, &mut velocity, &settings, Parallelism::new(threads)).unwrap();
            }
            for (got, want) in params.iter().zip(expected) {
                assert!((f64::from(*got) - want).abs() < 1e-6, "{got} {want}");
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let n = SERIAL_BELOW + 13;
        let grads: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
        let run = |threads| {
            let (mut params, mut velocity) = (grads.clone(), vec![0.25; n]);
            let settings = SgdMomentum { lr: 0.05, momentum: 0.9, weight_decay: 1e-3 };
            sgd_momentum_update(&mut params, &grads, &mut velocity, &settings, Parallelism::new(threads)).unwrap();
            (params, velocity)
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn lengths_are_checked() {
        let settings = SgdMomentum { lr: 0.1, momentum: 0.9, weight_decay: 0.0 };
        let error = sgd_momentum_update(&mut [0.0; 3], &[0.0; 2], &mut [0.0; 3], &settings, Parallelism::Serial);
        assert_eq!(error, Err(KernelError::Length { what: "grads", got: 2, expected: 3 }));
    }
}
