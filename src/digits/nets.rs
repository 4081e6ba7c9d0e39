//! The networks of the digits demo and the steps that train them.

use anyhow::Result;
use limbeck_distill::models::{Layers, ResNet, Stage};
use limbeck_distill::optim::AdamW;
use limbeck_distill::{GradOptions, Group, Mode, Net, Step, build_step, objective};
use limbeck_graph::Lowering;
use limbeck_runtime::StateRole;
use limbeck_tensor::DType;

use super::data::{CLASSES, SIDE};

/// Images of a training batch.
pub const BATCH: usize = 32;
/// Tap of the teacher's hint: the output of its 4x4 residual block, 24 channels.
pub const TEACHER_HINT: &str = "stage0.block0.out";
/// Channels of the hint.
pub const HINT_CHANNELS: usize = 24;
/// Tap of the student's last residual block.
const STUDENT_HINT: &str = "stage0.block1.out";
/// Temperature of distillation.
const TEMPERATURE: f64 = 4.0;
const WEIGHT_DECAY: f64 = 0.05;

/// The teacher: 51,998 parameters.
pub fn teacher(seed: u64) -> Result<Net> {
    let stages =
        vec![Stage { channels: 24, stride: 2, blocks: vec![24] }, Stage { channels: 48, stride: 2, blocks: vec![32] }];
    Ok(ResNet { input: [1, SIDE, SIDE], stem: 12, stages, classes: CLASSES }.build(seed)?)
}

/// The student: 6,146 parameters, less than an eighth of the teacher's.
pub fn student(seed: u64) -> Result<Net> {
    let stages = vec![Stage { channels: 16, stride: 2, blocks: vec![8, 8] }];
    Ok(ResNet { input: [1, SIDE, SIDE], stem: 8, stages, classes: CLASSES }.build(seed)?)
}

/// The projector of the hint: a 1x1 convolution from the student's channels to the teacher's.
fn projector(channels: usize, seed: u64) -> Result<Net> {
    let net = Net::build("projector", |cx| {
        let l = Layers::new(cx, seed);
        let x = l.input("x", &[channels, SIDE / 2, SIDE / 2]);
        let bias = l.constant("bias", &[1, HINT_CHANNELS, 1, 1], 0.0);
        cx.output("hint", l.conv("proj", x, (channels, HINT_CHANNELS), 1, 1) + bias);
        Ok(())
    })?;
    Ok(net.training_only())
}

fn group_options() -> GradOptions {
    GradOptions { clip_norm: Some(5.0), accumulate: false }
}

/// Cross-entropy with labels, smoothed by `smoothing` (0 for the plain loss).
pub fn label_step(net: &Net, smoothing: f64, form: impl Into<Lowering>) -> Result<Step> {
    let step = build_step("labels", DType::F32, |s| {
        let x = s.batch("x", DType::F32, &[BATCH, 1, SIDE, SIDE])?;
        let y = s.class_labels("y", &[BATCH], CLASSES)?;
        let w = s.batch("row_weight", DType::F32, &[BATCH])?;
        let params = s.params("student", net, StateRole::Parameter)?;
        let out = s.apply(net, &[x], &params, &params)?;
        let logits = out.first()?;
        let params_of = [("label_smoothing", smoothing)];
        let taps = [("student_logits", logits), ("labels", y)];
        let loss = objective::find("ce")?.loss(s.cx(), &taps, &params_of, Some(w))?;
        s.loss("loss", loss);
        let group = Group { params: &params, lr_scale: 1.0, weight_decay: WEIGHT_DECAY };
        s.minimise("", loss, &[group], &AdamW::default(), group_options())
    })?;
    Ok(step.lowered(form)?)
}

/// `0.1 CE + 0.9 T² KL` on stored teacher logits, and with `hint` also 0.3 times the hint on stored features.
pub fn distil_step(net: &Net, hint: bool, seed: u64, form: impl Into<Lowering>) -> Result<Step> {
    let channels = net.weights().get("stage0.down.bn.bias").map_or(0, limbeck_tensor::Tensor::len);
    let projector = projector(channels, seed)?;
    let step = build_step("distil", DType::F32, |s| {
        let x = s.batch("x", DType::F32, &[BATCH, 1, SIDE, SIDE])?;
        let y = s.class_labels("y", &[BATCH], CLASSES)?;
        let zt = s.batch("teacher_logits", DType::F32, &[BATCH, CLASSES])?;
        let w = s.batch("row_weight", DType::F32, &[BATCH])?;
        let params = s.params("student", net, StateRole::Parameter)?;
        let out = s.apply(net, &[x], &params, &params)?;
        let zs = out.first()?;
        let ce = objective::find("ce")?.loss(s.cx(), &[("student_logits", zs), ("labels", y)], &[], Some(w))?;
        let kd = objective::find("kd")?.loss(
            s.cx(),
            &[("student_logits", zs), ("teacher_logits", zt)],
            &[("temperature", TEMPERATURE)],
            Some(w),
        )?;
        let mut loss = ce * 0.1 + kd * 0.9;
        let head = if hint { Some(s.params("projector", &projector, StateRole::Parameter)?) } else { None };
        if let Some(head) = &head {
            let features = s.batch("teacher_feature", DType::F32, &[BATCH, HINT_CHANNELS, SIDE / 2, SIDE / 2])?;
            let projected = projector.apply(s.cx(), &[out.get(STUDENT_HINT)?], head, Mode::Training)?.first()?;
            let taps = [("student_feature", projected), ("teacher_feature", features)];
            let fit = objective::find("hint")?.loss(s.cx(), &taps, &[], Some(w))?;
            s.loss("total", loss + fit * 0.3);
            s.metric("hint", fit);
            loss = loss + fit * 0.3;
        } else {
            s.loss("total", loss);
        }
        s.metric("ce", ce);
        s.metric("kd", kd);
        let mut groups = vec![Group { params: &params, lr_scale: 1.0, weight_decay: WEIGHT_DECAY }];
        groups.extend(head.as_ref().map(|h| Group { params: h, lr_scale: 1.0, weight_decay: WEIGHT_DECAY }));
        s.minimise("", loss, &groups, &AdamW::default(), group_options())
    })?;
    Ok(step.lowered(form)?)
}
