//! Lowering: from a differentiated graph to the form that an engine runs. The portable form has standard ONNX ops
//! only. The fused form keeps Limbeck's own ops for engines that have kernels for them.

mod conv;
mod expand;
mod frozen;
mod functions;
mod fuse;
mod gather;
mod merge;
mod norm;
mod pauses;
pub(crate) mod plain;
mod pool;
mod primitive;
mod product;
mod recompute;
mod scan;
mod slices;
mod softmax;
mod sums;
#[cfg(test)]
mod tests;
mod transposed;
mod window;

use crate::ops::map::body;
use crate::{Cx, Graph, GraphError, LIMBECK, Node, OpError, TensorType, Var};
use frozen::Frozen;
use limbeck_tensor::element_count;
use std::collections::{HashMap, HashSet};

/// What an engine is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Standard ONNX ops alone.
    Portable,
    /// Convolutions and their gradients, and chains of element-wise operators, as ops of [`LIMBECK`], for engines that
    /// register them. Functions of the model define them for all others.
    Fused,
}

/// How a graph is lowered: a form alone stands for the form with recomputation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lowering {
    /// The form.
    pub form: Form,
    /// Whether, in the fused form, activations that follow value by value from others that are kept are computed again in
    /// the backward pass in place of being kept: less memory, for a little time.
    pub recompute: bool,
    /// The form of nets with constant weights that nothing updated leads to (see [`Graph::lowered_around`]).
    pub frozen: Form,
}

impl From<Form> for Lowering {
    fn from(form: Form) -> Lowering {
        Lowering { form, recompute: true, frozen: form }
    }
}

/// Largest operand, in elements, of an op that is lowered: what follows computes with shapes without overflow.
const MAX_ELEMENTS: usize = 1 << 40;

/// Own ops that stay in the fused form.
pub const FUSED_OPS: &[&str] = &["FusedConv", "ConvGradInput", "ConvGradWeight", "FusedMatMul", "Map"];

impl Graph {
    /// The graph in an engine's form. Shapes must be concrete. Names of inputs, outputs and initializers stay, and so
    /// do the defaults of inputs. The result declares the newest opset that its operators need.
    pub fn lowered(&self, how: impl Into<Lowering>) -> Result<Graph, GraphError> {
        let all: Vec<&str> = self.inputs.iter().map(|&v| self.name_of(v)).collect();
        self.lowered_around(how, &all)
    }

    /// As [`Graph::lowered`], with layers with constant weights that none of the inputs `updated` leads to, and what follows from
    /// them alone, in the form [`Lowering::frozen`].
    pub fn lowered_around(&self, how: impl Into<Lowering>, updated: &[&str]) -> Result<Graph, GraphError> {
        let Lowering { form, recompute, frozen } = how.into();
        let updated: HashSet<&str> = updated.iter().copied().collect();
        let inference = (frozen != form).then(|| Frozen::of(self, &updated));
        let form_of = |node: &Node| match &inference {
            Some(inference) if inference.holds(node) => frozen,
            _ => form,
        };
        let cx = Cx::new(&self.name, self.float());
        let mut bind = HashMap::new();
        for &input in &self.inputs {
            let name = self.name_of(input);
            let ty = self
                .ty(input)
                .ok_or_else(|| GraphError::Value { name: name.into(), reason: "input has no tensor type".into() })?;
            let id = cx.edit(|g| {
                let id = g.add_input(name, ty.clone());
                g.copy_constant(id, self, input);
                id
            });
            bind.insert(input, cx.var(id));
        }
        let map =
            cx.inline_with(self, &bind, &mut |cx, node, operands| lower_node(cx, node, operands, form_of(node)))?;
        for output in &self.outputs {
            let name = self.name_of(*output);
            let var = map
                .get(output)
                .copied()
                .ok_or_else(|| GraphError::Value { name: name.into(), reason: "output is never computed".into() })?;
            // A value that passes through keeps its own name; the output gets a copy under its name.
            let mut var = var;
            if cx.graph().name_of(var.id()) != name {
                cx.edit(|g| match g.find(name) {
                    Some(taken) => g.rename(taken, &g.free_name(&format!("{name}.inner"))),
                    None => Ok(()),
                })?;
                var = var.identity();
            }
            cx.output(name, var);
        }
        let mut graph = cx.finish()?;
        graph.meta.metadata = self.meta.metadata.clone();
        graph.tidy();
        graph.derive_sums();
        graph.remove_dead();
        if form == Form::Fused {
            transposed::absorb(&mut graph);
            graph.derive_softmax();
            graph.remove_dead();
            if recompute {
                graph.recompute();
            }
            let apart = (frozen != form).then(|| Frozen::of(&graph, &updated));
            graph.fuse_maps(apart.as_ref())?;
        }
        graph.part_slices();
        graph.order_for_memory(&HashMap::new());
        if form == Form::Fused {
            graph.meta.opsets.push((LIMBECK.into(), 1));
            functions::define(&mut graph)?;
        }
        Ok(graph)
    }

    /// Computes equal values once, bodies included, without values that only broadcast.
    fn tidy(&mut self) {
        for id in self.node_ids() {
            if self.node(id).subgraphs().next().is_some() {
                self.node_mut(id).subgraphs_mut().for_each(Graph::tidy);
            }
        }
        self.look_through_expansions();
        self.merge_equal_nodes();
        self.remove_dead();
    }
}

/// What stands for a lowered node.
type Lowered<'c> = Result<Var<'c>, OpError>;

fn lower_node<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>], form: Form) -> Option<Vec<Var<'c>>> {
    let x = |i: usize| operands.get(i).copied().flatten();
    if node.subgraphs().next().is_some() {
        let guarded = scan::guarded(cx, node, operands);
        return guarded.or_else(|| cx.with_body(node, operands, false, &mut in_body));
    }
    if let Some(same) = neutral(cx, node, operands) {
        return Some(vec![same]);
    }
    if node.is("", "BatchNormalization") {
        return norm::batch_norm(cx, node, operands, form).map(|y| vec![y]);
    }
    if let Some(plain) = plain::plain(cx, node, operands) {
        return Some(plain);
    }
    if form == Form::Fused {
        let made = product::fused(cx, node, operands).or_else(|| primitive::primitive(cx, node, operands));
        if made.is_some() {
            return made;
        }
    }
    if form == Form::Fused && node.is("", "Conv") && conv::is_fusable(node, x(0)?) {
        let attrs: Vec<_> = node.attrs.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
        return Some(cx.op_n(LIMBECK, "FusedConv", operands, &attrs, 1));
    }
    let fused = |x: Var<'c>| {
        let any = ["Map", "FusedMatMul"].contains(&node.op.as_str());
        form == Form::Fused && FUSED_OPS.contains(&node.op.as_str()) && (any || conv::is_fusable(node, x))
    };
    if node.domain != LIMBECK || x(0).is_some_and(fused) {
        return None;
    }
    if node.op == "Map" {
        return Some(map(cx, node, operands));
    }
    let oversized = |v: &Var<'c>| element_count(&v.shape()).is_none_or(|n| n > MAX_ELEMENTS);
    if let Some(v) = operands.iter().flatten().find(|v| oversized(v)) {
        return Some(vec![cx.fail_with(format!("operand {v:?} is too large to lower"))]);
    }
    let lowered = match node.op.as_str() {
        // These exist for differentiation alone.
        "StopGradient" | "WithGrad" => Ok(x(0)?),
        "FusedConv" => {
            let attrs: Vec<_> = node.attrs.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
            return Some(cx.op_n("", "Conv", operands, &attrs, 1));
        }
        "ConvGradInput" => conv::grad_input(cx, node, x(0)?, x(1)?),
        "ConvGradWeight" => conv::grad_weight(cx, node, x(0)?, x(1)?),
        "MaxPoolGrad" => pool::max_pool_grad(cx, node, x(0)?, x(1)?),
        "AveragePoolGrad" => pool::average_pool_grad(cx, node, x(0)?),
        "FusedMatMul" => product::portable(node, x(0)?, x(1)?),
        "GatherGrad" => gather::gather_grad(cx, node, x(0)?, x(1)?),
        _ => return None,
    };
    Some(vec![lowered.unwrap_or_else(|e| cx.fail_with(e.0))])
}

/// Within a body, where all is portable; what has no static shapes there stays as it is.
fn in_body<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>]) -> Option<Vec<Var<'c>>> {
    let shaped = operands.iter().flatten().all(|v| cx.graph().shape(v.id()).is_ok());
    if shaped || node.domain == LIMBECK || node.subgraphs().next().is_some() {
        lower_node(cx, node, operands, Form::Portable)
    } else {
        None
    }
}

/// The operators that a map stands for.
fn map<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>]) -> Vec<Var<'c>> {
    let inputs: Vec<Var<'c>> = operands.iter().flatten().copied().collect();
    let types: Option<Vec<TensorType>> = inputs.iter().map(|v| cx.graph().ty(v.id()).cloned()).collect();
    let failed = |reason: String| vec![cx.fail_with(reason); node.outputs.len()];
    let body = match types {
        Some(types) if types.len() == operands.len() => body(node, &types.iter().collect::<Vec<_>>()),
        _ => return failed("an operand is missing or has no type".into()),
    };
    let made = body.map_err(|e| e.0).and_then(|body| {
        let bound = body.inputs.iter().copied().zip(inputs).collect();
        let values = cx.inline(&body, &bound).map_err(|e| e.to_string())?;
        Ok(body.outputs.iter().map(|output| values[output]).collect())
    });
    made.unwrap_or_else(failed)
}

/// The operand that `x * 1`, `x / 1`, `x + 0` and `x - 0` give back unchanged. Besides the work saved, tract's optimiser
/// may fail on such nodes.
fn neutral<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>]) -> Option<Var<'c>> {
    let (value, either) = match (node.domain_or_default(), node.op.as_str()) {
        ("", "Mul") => (1.0, true),
        ("", "Div") => (1.0, false),
        ("", "Add") => (0.0, true),
        ("", "Sub") => (0.0, false),
        _ => return None,
    };
    let [Some(a), Some(b)] = operands else { return None };
    let is_neutral = |v: &Var<'c>| {
        cx.graph().settled(v.id()).is_some_and(|t| t.len() == 1 && t.to_f64_vec().is_ok_and(|x| x == [value]))
    };
    let shape = |v: &Var<'c>| cx.graph().shape(v.id()).ok();
    let keeps =
        |x: &Var<'c>, one: &Var<'c>| matches!((shape(x), shape(one)), (Some(x), Some(one)) if x.len() >= one.len());
    if is_neutral(b) && keeps(a, b) {
        return Some(*a);
    }
    (either && is_neutral(a) && keeps(b, a)).then_some(*b)
}
