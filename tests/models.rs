//! Whole networks from torch's exporters: each file is read, made a train step and run on every engine, and the gradient
//! of each of its weights agrees with torch in float64 (`tests/golden/models/make.py`).
#![allow(missing_docs)]

#[path = "models/generated.rs"]
mod generated;
#[path = "models/golden.rs"]
mod golden;

use golden::Golden;

/// Runs a golden network on every engine.
fn check(name: &str) {
    Golden::read(name).check();
}

macro_rules! networks {
    ($($name:ident)*) => { $(#[test] fn $name() { check(stringify!($name)); })* };
}

networks! {
    mobilenet_v3 mobilenet_v2 mobilenet_v2_fused shufflenet_v2 convnext convnext_dynamo unet unet_dynamo bert bert_dynamo
    vit vit_attention gru gru_dynamo tcn tcn_dynamo
}
