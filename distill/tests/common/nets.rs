//! Nets and losses that several tests build.

use limbeck_distill::models::Layers;
use limbeck_distill::{DistillError, Mode, Net, ParamSet, StepBuilder, objective};
use limbeck_graph::Var;
use limbeck_tensor::{DType, TensorMap};
use serde_json::Value;

/// The tensors of a golden's object.
pub(crate) fn tensors(float: DType, v: &Value) -> TensorMap {
    v.as_object().unwrap().iter().map(|(k, v)| (k.clone(), super::tensor(float, v))).collect()
}

/// Two layers with tanh between, and the weights of a golden.
pub(crate) fn perceptron(widths: [usize; 3], weights: &Value) -> Net {
    let net = Net::build("perceptron", |cx| {
        let l = Layers::new(cx, 0);
        let h = l.linear("layer0", l.input("x", &[widths[0]]), (widths[0], widths[1]), 1.0).tanh();
        cx.output("y", l.linear("layer1", h, (widths[1], widths[2]), 1.0));
        Ok(())
    });
    net.unwrap().reweighted(&tensors(DType::F32, weights)).unwrap()
}

/// An objective at its defaults.
pub(crate) fn loss<'c>(s: &StepBuilder<'c>, name: &str, taps: &[(&str, Var<'c>)]) -> Result<Var<'c>, DistillError> {
    objective::find(name)?.loss(s.cx(), taps, &[], None)
}

/// The first output of a net in training.
pub(crate) fn apply<'c>(
    s: &StepBuilder<'c>,
    net: &Net,
    x: Var<'c>,
    params: &ParamSet<'c>,
) -> Result<Var<'c>, DistillError> {
    net.apply(s.cx(), &[x], params, Mode::Training)?.first()
}
