//! Whether and how a net can be trained: what its exporter made of the weights, where gradients end, what is missing,
//! each with names and a remedy.

mod flow;
mod shapes;
mod ties;
mod weights;

use super::{Net, Stored};
use limbeck_graph::{Graph, Node, NodeId, ValueId};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

/// How much a remark matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Note,
    /// The net trains, but perhaps otherwise than the model it was exported from.
    Warning,
    /// The net cannot be trained before this is mended.
    Blocker,
}

/// What a remark is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// One weight used at several places.
    Tied,
    /// A weight that is a copy of another: equal, transposed, reshaped or a slice.
    Copied,
    /// BatchNormalization merged into a layer.
    FoldedNormalisation,
    /// An expression of parameters (weight normalisation, say) that was computed at export.
    FoldedExpression,
    /// Weights that the file stores once for several layers, and that are told apart again.
    Separated,
    /// A weight that was transposed, rearranged or renamed at export.
    Renamed,
    /// A weight that is computed from parameters in every run.
    Expression,
    /// A table that may be learned or fixed: the file does not say.
    Table,
    /// Weights behind quantisation, or stored as integers.
    Quantised,
    /// An operator without gradient between a parameter and an output.
    NoGradient,
    /// A place where the gradient ends: integers, or steps of derivative zero.
    GradientEnds,
    /// Parameters that no gradient reaches.
    Unreached,
    /// Nothing to train, or nothing to derive a loss from.
    Nothing,
    /// Dims without a number.
    Dims,
    /// Branches, loops, functions or sequences.
    Unresolved,
    /// Dropout in the graph.
    Dropout,
    /// BatchNormalization, and how it is trained.
    Normalisation,
    /// The gradient could not be built.
    Trial,
}

/// One thing to know before training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// How much it matters.
    pub severity: Severity,
    /// What it is about.
    pub finding: Finding,
    /// Nodes or tensors, by name.
    pub names: Vec<String>,
    /// What is the case and what that means for training.
    pub message: String,
    /// What to do; empty when nothing needs to be done.
    pub remedy: String,
}

/// The conclusion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it is.
    Trainable,
    /// It trains, but there are warnings.
    TrainableWithRemarks,
    /// Something must be mended first.
    NotTrainable,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Trainable => "trainable",
            Verdict::TrainableWithRemarks => "trainable with remarks",
            Verdict::NotTrainable => "not trainable",
        })
    }
}

/// What [`Net::report`] finds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trainability {
    /// The conclusion.
    pub verdict: Verdict,
    /// Number of trained numbers.
    pub numbers: usize,
    /// All stored float constants, told apart.
    pub stored: Vec<Stored>,
    /// What to know, the most important first.
    pub remarks: Vec<Remark>,
}

impl Net {
    /// Looks at everything that decides about training. The gradient of all parameters is built once, at the shapes of
    /// the graph's inputs (a first dim without number counts as 2), to find what rules refuse; where other dims have no
    /// number, that is left out and said.
    pub fn report(&self) -> Trainability {
        let facts = Facts::of(self);
        let mut remarks = vec![];
        shapes::remarks(&facts, &mut remarks);
        flow::remarks(&facts, &mut remarks);
        weights::remarks(&facts, &mut remarks);
        ties::remarks(&facts, &mut remarks);
        if !remarks.iter().any(|r| r.severity == Severity::Blocker) {
            flow::trial(self, &mut remarks);
        }
        remarks.sort_by_key(|r| std::cmp::Reverse(r.severity));
        let verdict = match remarks.first().map(|r| r.severity) {
            Some(Severity::Blocker) => Verdict::NotTrainable,
            Some(Severity::Warning) => Verdict::TrainableWithRemarks,
            _ => Verdict::Trainable,
        };
        Trainability { verdict, numbers: self.parameter_count(), stored: self.stored.clone(), remarks }
    }
}

/// Adds a remark, unless it names nothing.
fn remark(
    to: &mut Vec<Remark>,
    severity: Severity,
    finding: Finding,
    names: Vec<String>,
    message: impl Into<String>,
    remedy: impl Into<String>,
) {
    if !names.is_empty() {
        to.push(Remark { severity, finding, names, message: message.into(), remedy: remedy.into() });
    }
}

/// Operators that only rearrange what they are given.
const REARRANGING: &[&str] = &[
    "Identity",
    "Transpose",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Slice",
    "Split",
    "Concat",
    "Gather",
    "Expand",
    "Cast",
    "CastLike",
];

/// How a constant meets data.
struct Meeting {
    /// The node that combines it with what depends on inputs.
    node: NodeId,
    /// The node's operand.
    place: usize,
    /// The operators other than [`REARRANGING`] between the constant and the node, which see constants alone.
    through: BTreeSet<String>,
}

/// What all parts of a report look at.
struct Facts<'n> {
    net: &'n Net,
    graph: &'n Graph,
    parameters: BTreeSet<ValueId>,
    /// For every stored constant, where it meets data.
    meetings: BTreeMap<ValueId, Vec<Meeting>>,
}

impl<'n> Facts<'n> {
    fn of(net: &'n Net) -> Facts<'n> {
        let graph = &net.graph;
        let parameters = net.parameters.iter().filter_map(|name| graph.find(name)).collect();
        // Values that depend on constants alone: on which, and through what.
        let mut constant: HashMap<ValueId, BTreeMap<ValueId, BTreeSet<String>>> =
            graph.initializers().map(|(id, _)| (id, BTreeMap::from([(id, BTreeSet::new())]))).collect();
        graph.inputs.iter().for_each(|input| {
            constant.remove(input);
        });
        let mut meetings: BTreeMap<ValueId, Vec<Meeting>> = BTreeMap::new();
        for (id, node) in graph.nodes() {
            let reads = node.reads();
            let computed = reads.iter().all(|v| constant.contains_key(v)) && node.subgraphs().next().is_none();
            if computed {
                let mut roots: BTreeMap<ValueId, BTreeSet<String>> = BTreeMap::new();
                let sizes = node.is("", "Shape") || node.is("", "Size");
                for (root, through) in reads.iter().filter(|_| !sizes).filter_map(|v| constant.get(v)).flatten() {
                    let mut through = through.clone();
                    if !REARRANGING.iter().any(|op| node.is("", op)) {
                        through.insert(node.full_op());
                    }
                    roots.entry(*root).or_default().extend(through);
                }
                constant.extend(node.outputs.iter().flatten().map(|&o| (o, roots.clone())));
                continue;
            }
            for (place, value) in reads.iter().enumerate() {
                for (root, through) in constant.get(value).into_iter().flatten() {
                    let through = through.clone();
                    meetings.entry(*root).or_default().push(Meeting { node: id, place, through });
                }
            }
        }
        Facts { net, graph, parameters, meetings }
    }

    fn name(&self, id: ValueId) -> String {
        self.graph.name_of(id).to_owned()
    }

    /// Meetings of a constant.
    fn meetings(&self, id: ValueId) -> &[Meeting] {
        self.meetings.get(&id).map_or(&[], Vec::as_slice)
    }

    /// `Conv '/stem/Conv'`.
    fn node(&self, id: NodeId) -> String {
        super::classify::described(self.graph, id)
    }

    /// Labels of the nodes that a test accepts.
    fn nodes(&self, is: impl Fn(&Node) -> bool) -> Vec<String> {
        self.graph.nodes().filter(|(_, n)| is(n)).map(|(id, _)| self.node(id)).collect()
    }

    /// Parameters that a test accepts.
    fn parameters(&self, is: impl Fn(ValueId) -> bool) -> Vec<String> {
        self.net
            .parameters
            .iter()
            .filter_map(|n| self.graph.find(n))
            .filter(|&id| is(id))
            .map(|id| self.name(id))
            .collect()
    }
}
