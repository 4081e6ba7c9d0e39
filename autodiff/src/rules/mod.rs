//! The table of gradient rules, one per primitive op.

mod activation;
mod control;
mod conv;
mod elementwise;
mod index;
mod matmul;
mod norm;
mod pool;
mod quant;
mod reduce;
mod shape;
mod without;

pub use without::{NON_DIFFERENTIABLE, Without};

use crate::extents::zeros;
use crate::{COMPOSITES, GradError};
use limbeck_graph::{Cx, Node, NodeId, ValueSet, Var};

/// Gradients of the inputs of a node, in input order, then of the values that its subgraphs capture, in the order of
/// [`Node::reads`]; `None` where there is none, and at the end they may be left out.
pub(crate) type Grads<'c> = Vec<Option<Var<'c>>>;

/// A rule: from a node and the gradients of its outputs to the gradients of its inputs. Broadcasts are undone by
/// the walk. Errors are kept by the context; a rule that cannot handle the node returns the reason.
pub(crate) type RuleFn = for<'r, 'c> fn(&'r Rule<'r, 'c>) -> Result<Grads<'c>, String>;

/// What a rule sees.
pub(crate) struct Rule<'r, 'c> {
    /// The construction.
    pub(crate) cx: &'c Cx,
    /// The forward node: which it is, and a copy.
    pub(crate) id: NodeId,
    pub(crate) node: &'r Node,
    label: &'r str,
    carrying: &'r ValueSet,
    grads: Vec<Option<Var<'c>>>,
}

impl<'r, 'c> Rule<'r, 'c> {
    pub(crate) fn new(
        cx: &'c Cx,
        id: NodeId,
        node: &'r Node,
        label: &'r str,
        carrying: &'r ValueSet,
        grads: Vec<Option<Var<'c>>>,
    ) -> Rule<'r, 'c> {
        Rule { cx, id, node, label, carrying, grads }
    }

    /// Input `i`, which the operator requires.
    pub(crate) fn x(&self, i: usize) -> Var<'c> {
        self.opt(i).unwrap_or_else(|| self.cx.fail_with(format!("input {i} of '{}' is missing", self.label)))
    }

    /// Input `i` when present.
    pub(crate) fn opt(&self, i: usize) -> Option<Var<'c>> {
        self.node.input(i).map(|id| self.cx.var(id))
    }

    /// Output `i`.
    pub(crate) fn y(&self, i: usize) -> Var<'c> {
        match self.node.output(i) {
            Some(id) => self.cx.var(id),
            None => self.cx.fail_with(format!("output {i} of '{}' is missing", self.label)),
        }
    }

    /// Gradient of output 0; zeros when only another output carries one.
    pub(crate) fn g(&self) -> Var<'c> {
        self.grads.first().copied().flatten().unwrap_or_else(|| zeros(self.y(0)))
    }

    /// Gradient of output `i`, when it has one.
    pub(crate) fn grad_of(&self, i: usize) -> Option<Var<'c>> {
        self.grads.get(i).copied().flatten()
    }

    /// True when the gradient of input `i` is wanted; rules may skip costly ones that are not.
    pub(crate) fn wants(&self, i: usize) -> bool {
        self.node.input(i).is_some_and(|id| self.carrying.contains(id))
    }

    /// Integers of input `i`, which must be constant; `None` when it is absent.
    pub(crate) fn ints_of(&self, i: usize) -> Result<Option<Vec<i64>>, String> {
        let Some(id) = self.node.input(i) else { return Ok(None) };
        let constant = self.cx.graph().constant(id).ok_or_else(|| {
            let name = self.cx.graph().name_of(id).to_owned();
            format!("its input '{name}' must be constant; fix shapes and fold constants first")
        })?;
        constant.to_i64_vec().map(Some).map_err(|e| e.to_string())
    }

    /// Integer attribute, or its default.
    pub(crate) fn int(&self, name: &str, default: i64) -> i64 {
        self.node.int(name).unwrap_or(default)
    }

    /// Float attribute, or its default.
    pub(crate) fn float(&self, name: &str, default: f64) -> f64 {
        self.node.float(name).map_or(default, f64::from)
    }
}

/// `v` in another shape of as many elements; itself when it has that shape.
fn reshaped<'c>(v: Var<'c>, shape: &[usize]) -> Var<'c> {
    if v.shape() == shape { v } else { v.reshape(shape) }
}

/// Families of the table, in one explicit list: (op, rule). Limbeck's own ops carry their domain as prefix.
const FAMILIES: &[&[(&str, RuleFn)]] = &[
    elementwise::RULES,
    activation::RULES,
    reduce::RULES,
    matmul::RULES,
    conv::RULES,
    pool::RULES,
    norm::RULES,
    shape::RULES,
    index::RULES,
    quant::RULES,
    control::RULES,
];

fn find(node: &Node) -> Option<RuleFn> {
    let key = match node.domain_or_default() {
        "" => node.op.clone(),
        domain => format!("{domain}::{}", node.op),
    };
    FAMILIES.iter().flat_map(|f| f.iter()).find(|(name, _)| *name == key).map(|(_, f)| *f)
}

/// Names of the ops that have a gradient rule, those outside ai.onnx with their domain (`ai.limbeck::GatherGrad`).
pub fn differentiable() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|f| f.iter()).map(|(name, _)| *name)
}

/// True when gradient can flow through this node, by its rule or once [`crate::compose`] replaced it.
pub fn has_gradient(node: &Node) -> bool {
    has_rule(node) || is_composite(node)
}

/// True when this node has a rule.
pub(crate) fn has_rule(node: &Node) -> bool {
    find(node).is_some()
}

/// True for the ops of [`COMPOSITES`].
pub(crate) fn is_composite(node: &Node) -> bool {
    node.domain_or_default().is_empty() && COMPOSITES.contains(&node.op.as_str())
}

/// Why the node has no gradient, when it is listed as having none.
pub(crate) fn without(node: &Node) -> Option<Without> {
    NON_DIFFERENTIABLE.iter().find(|(name, _)| node.is("", name)).map(|&(_, why)| why)
}

/// Applies the rule of the node.
pub(crate) fn apply<'c>(rule: &Rule<'_, 'c>) -> Result<Grads<'c>, GradError> {
    let error = |reason: String| GradError::NoRule { node: rule.label.to_owned(), op: rule.node.full_op(), reason };
    find(rule.node).ok_or_else(|| error("no rule is known".into()))?(rule).map_err(error)
}
