//! Distilled student to shipped ONNX: fold, prune, reduce, quantise, half, cost and parity, bundle writer.
#![forbid(unsafe_code)]

mod bundle;
mod cost;
mod edit;
mod error;
mod fold;
mod half;
mod parity;
mod prune;
mod quantise;
mod reduce;

pub use bundle::{BundleContents, ModelContents, SelfTestContents, StepContents, write_bundle};
pub use cost::model_cost;
pub use error::ExportError;
pub use fold::fold_batch_norm;
pub use half::{HalfOptions, HalfReport, to_half};
pub use parity::{Difference, compare, compare_outputs};
pub use prune::{Group, Groups, PruneOptions, PruneReport, PruneTarget, PrunedGroup, mask, prune, prune_groups};
pub use quantise::{
    AccuracyReport, Calibration, Grid, Method, NodePrecision, Profile, QuantOptions, QuantReport, Sensitivity,
    asymmetric_grid, node_precisions, observed_values, quantise, quantise_within, symmetric_grid, with_outputs,
};
pub use reduce::{
    Block, Order, block_values, choose_blocks, removable_blocks, remove_block, remove_blocks, score_blocks,
};
