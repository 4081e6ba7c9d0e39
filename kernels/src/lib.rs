//! CPU kernels for convolutions and their gradients, matrix products, and maps (chains of element-wise operators with
//! reductions), on plain `f32` slices.
//!
//! Tensors are dense and row-major: images `[batch, channels, height, width]`, weights
//! `[out_channels, in_channels / group, kernel_height, kernel_width]`. A 1-D convolution is one of height 1.
//!
//! A dense convolution is cut into tiles of output positions. Each tile is gathered into columns (im2col) that stay in
//! the second-level cache and multiplied with the `gemm` crate, which picks the instruction set at run time. One of 3x3
//! taps and stride 1 whose channels are multiples of 16 goes through transformed tiles instead, with fewer multiplications
//! (Winograd). A depthwise convolution is a sum of shifted planes, one a tap. See [`ConvGeometry::scratch_bytes`] for the
//! memory.
//!
//! Results are the same from run to run for one thread count on one CPU kind. Forward and input gradient split the
//! output among threads; the weight gradient of a dense convolution is summed per thread over a fixed, contiguous range
//! of tiles, and the partial sums are added in the order of the ranges.

#![deny(unsafe_code)]

mod conv;
mod dense;
mod depthwise;
mod error;
mod geometry;
mod map;
mod matmul;
mod parallel;
mod product;
mod rows;
mod scratch;
mod share;
mod tile;
mod transpose;
mod vector;
mod winograd;

pub use conv::{conv_forward, conv_grad_input, conv_grad_weight};
pub use error::KernelError;
pub use geometry::{ConvGeometry, ConvParams};
pub use map::{MapInput, MapKernel, MapProgram};
pub use parallel::{Parallelism, Team};
pub use product::Product;
