//! The reverse walk: from a loss (or cotangents) back to the values asked for, summing the contributions of
//! every use and undoing broadcasts, so that rules need not.

use crate::GradError;
use crate::extents::unbroadcast;
use crate::rules::{self, Rule, Without};
use limbeck_graph::{Cx, Graph, LIMBECK, Node, NodeId, ValueId, ValueSet, Var};
use std::collections::HashMap;

/// Differentiation of the graph under construction.
pub trait Differentiate {
    /// Gradient of the scalar `loss` with respect to each value of `wrt`; zeros where the loss does not depend
    /// on it. Shapes and dtypes are those of `wrt`.
    fn grad<'c>(&'c self, loss: Var<'c>, wrt: &[Var<'c>]) -> Result<Vec<Var<'c>>, GradError>;

    /// Vector-Jacobian product: the gradient of `Σ <outputs_i, cotangents_i>` with respect to `wrt`. Each cotangent
    /// has its output's shape and dtype.
    fn vjp<'c>(
        &'c self,
        outputs: &[Var<'c>],
        cotangents: &[Var<'c>],
        wrt: &[Var<'c>],
    ) -> Result<Vec<Var<'c>>, GradError>;

    /// Jacobian-vector product: the derivative of `outputs` along `tangents` of `inputs`, by differentiating the
    /// vector-Jacobian product with respect to its cotangent. Each tangent has its input's shape and dtype.
    fn jvp<'c>(
        &'c self,
        outputs: &[Var<'c>],
        inputs: &[Var<'c>],
        tangents: &[Var<'c>],
    ) -> Result<Vec<Var<'c>>, GradError>;

    /// Hessian-vector product: the derivative of the gradient of the scalar `loss` in `wrt` along `tangents`, as the
    /// gradient of `Σ <gradient_i, tangents_i>`. Each tangent has its value's shape and dtype, and so has each result.
    fn hvp<'c>(&'c self, loss: Var<'c>, wrt: &[Var<'c>], tangents: &[Var<'c>]) -> Result<Vec<Var<'c>>, GradError>;
}

impl Differentiate for Cx {
    fn grad<'c>(&'c self, loss: Var<'c>, wrt: &[Var<'c>]) -> Result<Vec<Var<'c>>, GradError> {
        self.check()?;
        let shape = loss.shape();
        if !loss.dtype().is_float() || shape.iter().product::<usize>() != 1 {
            return Err(GradError::NotScalar {
                name: loss.name(),
                reason: format!("a float scalar is needed, this is {}{shape:?}; reduce it first", loss.dtype()),
            });
        }
        let one = self.full(1.0, loss.dtype(), &shape);
        self.vjp(&[loss], &[one], wrt)
    }

    fn vjp<'c>(
        &'c self,
        outputs: &[Var<'c>],
        cotangents: &[Var<'c>],
        wrt: &[Var<'c>],
    ) -> Result<Vec<Var<'c>>, GradError> {
        self.check()?;
        fitting("cotangent", outputs, cotangents)?;
        let mut grads: HashMap<ValueId, Var<'c>> = HashMap::new();
        for (output, cotangent) in outputs.iter().zip(cotangents) {
            accumulate(&mut grads, output.id(), *cotangent);
        }
        let Path { nodes, carrying } = Path::between(self, wrt, outputs)?;
        for id in nodes.into_iter().rev() {
            let node = self.graph().node(id).clone();
            let out_grads: Vec<Option<Var<'c>>> =
                node.outputs.iter().map(|o| o.and_then(|o| grads.get(&o).copied())).collect();
            if out_grads.iter().all(Option::is_none) {
                continue;
            }
            let label = self.graph().label(id);
            let contributions = rules::apply(&Rule::new(self, id, &node, &label, &carrying, out_grads));
            // An error inside a rule is reported with the forward node it belongs to.
            if let Err(e) = self.check() {
                return Err(GradError::NoRule { node: label, op: node.full_op(), reason: e.to_string() });
            }
            let captured = node.subgraphs().flat_map(|g| &g.captures).map(|c| Some(c.outer));
            for (read, grad) in node.inputs.iter().copied().chain(captured).zip(contributions?) {
                if let (Some(read), Some(grad)) = (read, grad)
                    && carrying.contains(read)
                {
                    // What a body reads is never broadcast.
                    let whole = node.subgraphs().next().is_some();
                    let grad = if whole { grad } else { unbroadcast(grad, self.var(read), &node) };
                    accumulate(&mut grads, read, grad);
                }
            }
        }
        self.check()?;
        let result = wrt
            .iter()
            .map(|v| grads.get(&v.id()).copied().unwrap_or_else(|| self.full(0.0, v.dtype(), &v.shape())))
            .collect();
        self.check()?;
        Ok(result)
    }

    fn jvp<'c>(
        &'c self,
        outputs: &[Var<'c>],
        inputs: &[Var<'c>],
        tangents: &[Var<'c>],
    ) -> Result<Vec<Var<'c>>, GradError> {
        self.check()?;
        fitting("tangent", inputs, tangents)?;
        // The product with the transposed Jacobian is linear in the cotangent u, so its derivative in u along
        // the tangents is the product with the Jacobian; the value of u does not matter and is dead code after.
        let u: Vec<Var<'c>> = outputs.iter().map(|o| self.full(0.0, o.dtype(), &o.shape()).identity()).collect();
        let transposed = self.vjp(outputs, &u, inputs)?;
        self.vjp(&transposed, tangents, &u)
    }

    fn hvp<'c>(&'c self, loss: Var<'c>, wrt: &[Var<'c>], tangents: &[Var<'c>]) -> Result<Vec<Var<'c>>, GradError> {
        fitting("tangent", wrt, tangents)?;
        let gradient = self.grad(loss, wrt)?;
        self.vjp(&gradient, tangents, wrt)
    }
}

/// That there is a companion for each value, of its shape and dtype.
fn fitting(what: &'static str, values: &[Var<'_>], companions: &[Var<'_>]) -> Result<(), GradError> {
    if values.len() != companions.len() {
        let reason = format!("{} given for {} values", companions.len(), values.len());
        return Err(GradError::Mismatch { what, reason });
    }
    for (v, c) in values.iter().zip(companions) {
        if v.shape() != c.shape() || v.dtype() != c.dtype() {
            let [own, other] = [v, c].map(|v| format!("{}{:?}", v.dtype(), v.shape()));
            return Err(GradError::Mismatch { what, reason: format!("'{}' is {own}, its {what} {other}", v.name()) });
        }
    }
    Ok(())
}

/// What lies between the wanted values and the outputs.
struct Path {
    /// Nodes in execution order.
    nodes: Vec<NodeId>,
    /// Values that depend on a wanted one and carry gradient, the wanted ones included.
    carrying: ValueSet,
}

impl Path {
    /// A node at which the gradient would be lost without being listed as having none is an error.
    fn between(cx: &Cx, wanted: &[Var<'_>], outputs: &[Var<'_>]) -> Result<Path, GradError> {
        let graph = cx.graph();
        let mut needed: ValueSet = outputs.iter().map(|v| v.id()).collect();
        let mut upstream = vec![];
        for id in graph.node_ids().into_iter().rev() {
            let node = graph.node(id);
            if node.outputs.iter().flatten().any(|&o| needed.contains(o)) && !ends(node) {
                needed.extend(node.reads());
                upstream.push(id);
            }
        }
        let wanted = wanted.iter().map(|v| v.id());
        let mut carrying: ValueSet = wanted.filter(|&v| carries_gradient(&graph, v)).collect();
        let mut nodes = vec![];
        for id in upstream.into_iter().rev() {
            let node = graph.node(id);
            let reads = node.reads();
            let mut through = reads.iter().filter(|&&v| carrying.contains(v)).peekable();
            if through.peek().is_none() {
                continue;
            }
            let refuse = |reason: &str| {
                Err(GradError::NoRule { node: graph.label(id), op: node.full_op(), reason: reason.into() })
            };
            if rules::is_composite(node) {
                return refuse("it has no rule of its own; instantiate the graph with autodiff's `compose`");
            }
            if !rules::has_rule(node) {
                return refuse(rules::without(node).unwrap_or(Without::NotYet).advice());
            }
            if !node.is("", "DequantizeLinear") && through.any(|&v| is_quantised(&graph, v)) {
                return refuse("it computes with quantised integers; put DequantizeLinear before it");
            }
            carrying.extend(node.outputs.iter().flatten().copied().filter(|&o| carries_gradient(&graph, o)));
            nodes.push(id);
        }
        Ok(Path { nodes, carrying })
    }
}

/// Whether gradient ends at the node without being lost.
fn ends(node: &Node) -> bool {
    node.is(LIMBECK, "StopGradient") || rules::without(node).is_some_and(Without::ends)
}

/// The values that depend on those of `from` in a way that may carry gradient, themselves included.
pub(crate) fn reached(graph: &Graph, from: &ValueSet) -> ValueSet {
    let mut active = from.clone();
    for (_, node) in graph.nodes().filter(|(_, node)| !ends(node)) {
        if node.reads().into_iter().any(|v| active.contains(v) && carries_gradient(graph, v)) {
            active.extend(node.outputs.iter().flatten().copied());
        }
    }
    active
}

/// Gradient flows along floats, along values whose type is not known, and from QuantizeLinear straight through to the
/// DequantizeLinear that undoes it.
fn carries_gradient(graph: &Graph, value: ValueId) -> bool {
    graph.ty(value).is_none_or(|t| t.dtype.is_float()) || is_quantised(graph, value)
}

/// An integer tensor that QuantizeLinear makes.
pub(crate) fn is_quantised(graph: &Graph, value: ValueId) -> bool {
    graph.producer(value).is_some_and(|id| graph.node(id).is("", "QuantizeLinear"))
}

fn accumulate<'c>(grads: &mut HashMap<ValueId, Var<'c>>, id: ValueId, grad: Var<'c>) {
    grads.entry(id).and_modify(|g| *g = *g + grad).or_insert(grad);
}
