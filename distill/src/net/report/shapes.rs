//! What stands in the way before gradients are asked for: dims without numbers, branches, loops, functions, sequences;
//! and layers that behave otherwise in training.

use super::{Facts, Finding, Remark, Severity, remark};
use limbeck_graph::{Dim, Node};

/// Operators on sequences and optionals, which have no place in a static graph.
const SEQUENCES: &[&str] = &[
    "SplitToSequence",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SequenceMap",
    "ConcatFromSequence",
    "Optional",
    "OptionalGetElement",
    "OptionalHasElement",
];

pub(super) fn remarks(facts: &Facts<'_>, to: &mut Vec<Remark>) {
    unresolved(facts, to);
    dims(facts, to);
    dropout(facts, to);
    let message = "BatchNormalization: trained with the statistics of the batch, which move the running ones, whatever \
                   mode the file says";
    let remedy = "freeze scale and bias to keep the running statistics";
    let norms = facts.nodes(|n| n.is("", "BatchNormalization"));
    remark(to, Severity::Note, Finding::Normalisation, norms, message, remedy);
}

fn dropout(facts: &Facts<'_>, to: &mut Vec<Remark>) {
    let nodes = facts.nodes(|n| n.is("", "Dropout"));
    if nodes.is_empty() && facts.graph.meta.producer == "pytorch" {
        let message = "the file has no Dropout; torch's exporters leave it out of models in inference mode, and training \
                       goes without it";
        let remedy = "if the model has Dropout and needs it, export with training=TrainingMode.TRAINING (TorchScript)";
        remark(to, Severity::Note, Finding::Dropout, vec![facts.graph.name.clone()], message, remedy);
    }
    let message = "Dropout: in training it drops by noise that each run is fed, whatever mode the file says";
    remark(to, Severity::Note, Finding::Dropout, nodes, message, "");
}

fn unresolved(facts: &Facts<'_>, to: &mut Vec<Remark>) {
    let (blocker, finding) = (Severity::Blocker, Finding::Unresolved);
    let branches = facts.nodes(|n| n.is("", "If"));
    let remedy = "run `limbeck import` first: with --dim NAME=N and --fix INPUT=VALUE for what the conditions depend on, \
                  or with --both-branches";
    remark(to, blocker, finding, branches, "branches are not resolved", remedy);
    let resolved = |n: &Node| ["If", "Loop", "Scan"].iter().any(|op| n.is("", op));
    let loops = facts.nodes(|n| n.subgraphs().next().is_some() && !resolved(n));
    let remedy = "run `limbeck import` first; what it leaves, export unrolled";
    remark(to, blocker, finding, loops, "loops are not resolved", remedy);
    let sequences = facts.nodes(|n| n.domain_or_default().is_empty() && SEQUENCES.contains(&n.op.as_str()));
    let remedy = "run `limbeck import` first; what it leaves, export with split and concatenation on tensors";
    remark(to, blocker, finding, sequences, "sequences have no gradient", remedy);
    let foreign = |n: &Node| !["", "ai.limbeck"].contains(&n.domain_or_default());
    if !facts.graph.meta.functions.is_empty() {
        let calls = facts.nodes(foreign);
        let remedy = "run `limbeck import` first, which inlines them";
        remark(to, blocker, finding, calls, "calls of model-local functions are not inlined", remedy);
    }
}

fn dims(facts: &Facts<'_>, to: &mut Vec<Remark>) {
    let fed = |id: &&limbeck_graph::ValueId| facts.graph.initializer(**id).is_none();
    let (mut open, mut names, mut unknown) = (vec![], vec![], false);
    for &input in facts.graph.inputs.iter().filter(fed) {
        let ty = facts.graph.ty(input);
        if ty.is_some_and(|t| t.concrete().is_some()) {
            continue;
        }
        let dims = ty.and_then(|t| t.dims.as_ref());
        unknown |= dims.is_none_or(|dims| dims.contains(&Dim::Unknown));
        for dim in dims.into_iter().flatten() {
            if let Dim::Named(name) = dim
                && !names.iter().any(|n| n == &**name)
            {
                names.push(name.to_string());
            }
        }
        open.push(format!("{}: {}", facts.name(input), ty.map_or("?".into(), ToString::to_string)));
    }
    let mut ways: Vec<String> = names.iter().map(|name| format!("--dim {name}=N")).collect();
    if unknown {
        ways.push("dims without a name get theirs from the batch".into());
    }
    let message = "these inputs have dims without a number; a train step has the shapes of its batches";
    let remedy = format!("fix them where shapes are computed from them: {}", ways.join(", "));
    remark(to, Severity::Note, Finding::Dims, open, message, remedy);
}
