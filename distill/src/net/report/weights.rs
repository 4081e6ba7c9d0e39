//! What an exporter made of the weights: normalisation folded in, weights transposed, rearranged, computed or renamed,
//! quantised; and tables of which the file does not say whether they are learned.

use super::super::classify::{is_made_up, is_weight_place};
use super::super::origin;
use super::{Facts, Finding, Meeting, Remark, Severity, remark};
use limbeck_graph::{NodeId, ValueId};

/// How torch exports without changing the weights.
const FAITHFUL: &str = "export anew with torch.onnx.export(..., optimize=False) (dynamo), or with \
                        do_constant_folding=False and training=TrainingMode.PRESERVE (TorchScript)";

/// Layers that BatchNormalization is folded into.
const LAYERS: &[&str] = &["Conv", "ConvTranspose", "Gemm", "MatMul"];

/// Recurrent layers, whose gates ONNX keeps in an order of its own.
const RECURRENT: &[&str] = &["LSTM", "GRU", "RNN"];

/// Elementwise operators by which tables are applied.
const APPLYING: &[&str] = &["Add", "Sub", "Mul", "Div"];

pub(super) fn remarks(facts: &Facts<'_>, to: &mut Vec<Remark>) {
    folded_normalisation(facts, to);
    renamed(facts, to);
    expressions(facts, to);
    tables(facts, to);
    quantised(facts, to);
}

/// Layers that bear the traces of a BatchNormalization that is gone.
fn folded_normalisation(facts: &Facts<'_>, to: &mut Vec<Remark>) {
    let graph = facts.graph;
    let folded = |id: &NodeId| {
        let node = graph.node(*id);
        let [weight, bias] = [1, 2].map(|i| node.input(i).map_or("", |v| graph.name_of(v)));
        // TorchScript makes up names for nothing else of a convolution, dynamo names the new bias after the weight.
        let by_name = node.op.starts_with("Conv") && weight.starts_with("onnx::Conv_") && is_made_up(weight);
        let by_bias = bias.strip_suffix("_bias") == Some(weight);
        by_name || by_bias || origin::classes(node).is_some_and(|c| c.contains("BatchNorm"))
    };
    let layers = graph.nodes().filter(|(_, n)| n.domain_or_default().is_empty() && LAYERS.contains(&n.op.as_str()));
    let names = layers.map(|(id, _)| id).filter(folded).map(|id| facts.node(id)).collect();
    let message = "BatchNormalization is folded into these layers: their weights and biases hold its scale and \
                   statistics, nothing normalises in training, and steps that suit the model may be too large here";
    remark(to, Severity::Warning, Finding::FoldedNormalisation, names, message, FAITHFUL);
}

/// Whether names are paths (`layer.weight`) by and large, so that one that is none sticks out.
fn names_are_paths(facts: &Facts<'_>) -> bool {
    let names = &facts.net.parameters;
    let paths = names.iter().filter(|n| n.contains('.')).count();
    2 * paths > names.len()
}

fn renamed(facts: &Facts<'_>, to: &mut Vec<Remark>) {
    let paths = names_are_paths(facts);
    let (mut kept, mut computed) = ((vec![], vec![]), (vec![], vec![]));
    for &id in &facts.parameters {
        let name = facts.graph.name_of(id);
        let made_up = is_made_up(name);
        let Some(meeting) = facts.meetings(id).first() else { continue };
        let node = facts.graph.node(meeting.node);
        let sticks_out = paths && !name.contains('.') && is_weight_place(node, meeting.place);
        if facts.graph.is_literal(id) || !(made_up || sticks_out) {
            continue;
        }
        let parametrised = origin::classes(node).is_some_and(|c| c.contains("parametrize"));
        // dynamo keeps the name of the operation whose result it computed.
        let (names, details) = if parametrised || !made_up { &mut computed } else { &mut kept };
        names.push(name.to_owned());
        details.push(described(facts, name, meeting));
    }
    let message = format!(
        "weights under names that the exporter made up; they train as they are, but do not lead back to the model's \
         own by name: {}",
        list(&kept.1)
    );
    let remedy = format!("to get them back by name, {FAITHFUL}");
    remark(to, Severity::Note, Finding::Renamed, kept.0, message, remedy);
    let message = format!(
        "weights under names unlike those of the others: most likely results of expressions of parameters (weight \
         normalisation, say) that were computed at export, if they are not parameters of the outermost module; they \
         train as plain weights: {}",
        list(&computed.1)
    );
    remark(to, Severity::Warning, Finding::FoldedExpression, computed.0, message, FAITHFUL);
}

/// What a renamed weight is: `val_0 [5, 6] of MatMul 'node_MatMul_1', transposed, module first`.
fn described(facts: &Facts<'_>, name: &str, meeting: &Meeting) -> String {
    let node = facts.graph.node(meeting.node);
    let shape = facts.graph.find(name).and_then(|id| facts.graph.initializer(id)).map(|t| t.shape().to_vec());
    let kind = match node.op.as_str() {
        "MatMul" => ", a linear layer's weight, transposed",
        op if RECURRENT.contains(&op) && meeting.place == 3 => {
            ", both biases one after the other, in ONNX's gate order"
        }
        op if RECURRENT.contains(&op) => ", gates in ONNX's order",
        _ => "",
    };
    let module = origin::module(node).map_or(String::new(), |m| format!(", module '{m}'"));
    format!("'{name}' {:?} of {}{kind}{module}", shape.unwrap_or_default(), facts.node(meeting.node))
}

/// The first of many.
pub(super) fn list(details: &[String]) -> String {
    const SHOWN: usize = 12;
    let more = details.len().saturating_sub(SHOWN);
    let shown = details[..details.len() - more].join("; ");
    if more == 0 { shown } else { format!("{shown}; and {more} more") }
}

/// Parameters that reach data through arithmetic among themselves.
fn expressions(facts: &Facts<'_>, to: &mut Vec<Remark>) {
    let arithmetic = |m: &Meeting| m.through.iter().any(|op| !op.ends_with("QuantizeLinear"));
    let of: Vec<(ValueId, &Meeting)> = facts
        .parameters
        .iter()
        .filter_map(|&id| Some((id, facts.meetings(id).iter().find(|m| arithmetic(m))?)))
        .collect();
    let mut nodes: Vec<String> = of.iter().map(|(_, m)| facts.node(m.node)).collect();
    nodes.dedup();
    let message = format!(
        "operands of {} are computed from these parameters in every run; the gradient goes through the expression",
        list(&nodes)
    );
    let names = of.iter().map(|(id, _)| facts.name(*id)).collect();
    let remedy = "after training, `limbeck export fold` computes it once";
    remark(to, Severity::Note, Finding::Expression, names, message, remedy);
}

/// Parameters of rank 2 or more that stand in no operator's place of weights.
fn tables(facts: &Facts<'_>, to: &mut Vec<Remark>) {
    let is_table = |id: ValueId| {
        let wide = facts.graph.initializer(id).is_some_and(|t| t.shape().iter().filter(|&&n| n > 1).count() >= 2);
        let applied = |m: &Meeting| {
            let node = facts.graph.node(m.node);
            let alike = node.domain_or_default().is_empty() && APPLYING.contains(&node.op.as_str());
            alike && !is_weight_place(node, m.place) && m.through.is_empty()
        };
        let meetings = facts.meetings(id);
        wide && !meetings.is_empty() && meetings.iter().all(applied)
    };
    let names = facts.parameters(is_table);
    let message = "tables that are added to or multiplied with activations: the file does not say whether they are \
                   learned (positions) or fixed (a buffer of the model); they count as parameters";
    let remedy = "leave fixed ones out of training: freeze them in the recipe, or Net::with_constants";
    remark(to, Severity::Warning, Finding::Table, names, message, remedy);
}

fn quantised(facts: &Facts<'_>, to: &mut Vec<Remark>) {
    let through = |op: &'static str| move |m: &Meeting| m.through.contains(op);
    let straight = facts.parameters(|id| facts.meetings(id).iter().any(through("QuantizeLinear")));
    let message = "quantised in the graph (QuantizeLinear, DequantizeLinear): the gradient passes straight through the \
                   rounding, scales and zero points stay";
    remark(to, Severity::Note, Finding::Quantised, straight, message, "");
    let stored = facts.graph.initializers().filter(|(_, t)| !t.dtype().is_float() && t.len() > 1);
    let integers = stored.map(|(id, _)| id).filter(|&id| {
        let behind = facts.meetings(id).iter().any(through("DequantizeLinear"));
        let first =
            |(_, node): (NodeId, &limbeck_graph::Node)| node.is("", "DequantizeLinear") && node.input(0) == Some(id);
        behind && facts.graph.nodes().any(first)
    });
    let names = integers.map(|id| facts.name(id)).collect();
    let message = "weights that are stored as integers, behind DequantizeLinear: they are not trained";
    let remedy = "train the float model and quantise it afterwards (`limbeck export quantise`), or export it with \
                  QuantizeLinear on float weights";
    remark(to, Severity::Warning, Finding::Quantised, names, message, remedy);
}
