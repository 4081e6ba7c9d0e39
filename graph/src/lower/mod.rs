//! Lowering: from a differentiated graph to the form that an engine runs. The portable form has standard ONNX ops
//! only. The fused form keeps Limbeck's own ops for engines that have kernels for them.

mod conv;
mod gather;
mod pool;
#[cfg(test)]
mod tests;

use crate::{Cx, Graph, GraphError, LIMBECK, Node, Var};
use limbeck_tensor::DType;
use std::collections::HashMap;

/// What an engine is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Standard ONNX ops alone.
    Portable,
    /// Convolutions and their gradients as ops of [`LIMBECK`], for engines that register them.
    Fused,
}

/// Own ops that stay in the fused form.
pub const FUSED_OPS: &[&str] = &["FusedConv", "ConvGradInput", "ConvGradWeight"];

impl Graph {
    /// The graph in an engine's form. Shapes must be concrete. Names of inputs, outputs and initializers stay, and so
    /// do the defaults of inputs. The result declares the newest opset that its operators need.
    pub fn lowered(&self, form: Form) -> Result<Graph, GraphError> {
        let float = self.value_ids().filter_map(|v| self.ty(v)).find(|t| t.dtype.is_float()).map(|t| t.dtype);
        let cx = Cx::new(&self.name, float.unwrap_or(DType::F32));
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
        let map = cx.inline_with(self, &bind, &mut |cx, node, operands| lower_node(cx, node, operands, form))?;
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
        if form == Form::Fused {
            graph.meta.opsets.push((LIMBECK.into(), 1));
        }
        Ok(graph)
    }
}

fn lower_node<'c>(cx: &'c Cx, node: &Node, operands: &[Option<Var<'c>>], form: Form) -> Option<Vec<Var<'c>>> {
    let x = |i: usize| operands.get(i).copied().flatten();
    if let Some(same) = neutral(cx, node, operands) {
        return Some(vec![same]);
    }
    if form == Form::Fused && node.is("", "Conv") && conv::is_fusable(node, x(0)?) {
        let attrs: Vec<_> = node.attrs.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
        return Some(cx.op_n(LIMBECK, "FusedConv", operands, &attrs, 1));
    }
    if node.domain != LIMBECK || (form == Form::Fused && FUSED_OPS.contains(&node.op.as_str())) {
        return None;
    }
    let lowered = match node.op.as_str() {
        // These exist for differentiation alone.
        "StopGradient" | "WithGrad" => x(0)?,
        "FusedConv" => {
            let attrs: Vec<_> = node.attrs.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
            return Some(cx.op_n("", "Conv", operands, &attrs, 1));
        }
        "ConvGradInput" => conv::grad_input(cx, node, x(0)?, x(1)?),
        "ConvGradWeight" => conv::grad_weight(cx, node, x(0)?, x(1)?),
        "MaxPoolGrad" => pool::max_pool_grad(cx, node, x(0)?, x(1)?),
        "AveragePoolGrad" => pool::average_pool_grad(cx, node, x(0)?),
        "GatherGrad" => gather::gather_grad(cx, node, x(0)?, x(1)?),
        _ => return None,
    };
    Some(vec![lowered])
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
        let graph = cx.graph();
        let constant = graph.constant(v.id()).filter(|_| !graph.inputs.contains(&v.id()));
        constant.is_some_and(|t| t.len() == 1 && t.to_f64_vec().is_ok_and(|x| x == [value]))
    };
    let shape = |v: &Var<'c>| cx.graph().shape(v.id()).ok();
    let keeps =
        |x: &Var<'c>, one: &Var<'c>| matches!((shape(x), shape(one)), (Some(x), Some(one)) if x.len() >= one.len());
    if is_neutral(b) && keeps(a, b) {
        return Some(*a);
    }
    (either && is_neutral(a) && keeps(b, a)).then_some(*b)
}

/// Window attributes of a convolution or pooling node, per spatial axis.
struct Window {
    kernel: Vec<usize>,
    strides: Vec<usize>,
    begin: Vec<usize>,
    end: Vec<usize>,
    dilations: Vec<usize>,
}

impl Window {
    fn of(cx: &Cx, node: &Node, spatial: usize) -> Window {
        let list = |name: &str, default: usize, n: usize| -> Vec<usize> {
            let given: Vec<usize> =
                node.ints(name).map_or_else(Vec::new, |v| v.iter().map(|&i| usize::try_from(i).unwrap_or(0)).collect());
            if given.is_empty() { vec![default; n] } else { given }
        };
        let pads = list("pads", 0, 2 * spatial);
        let window = Window {
            kernel: list("kernel_shape", 1, spatial),
            strides: list("strides", 1, spatial),
            begin: pads.iter().take(spatial).copied().collect(),
            end: pads.iter().skip(spatial).copied().collect(),
            dilations: list("dilations", 1, spatial),
        };
        let lengths = [&window.kernel, &window.strides, &window.begin, &window.end, &window.dilations];
        if lengths.iter().any(|l| l.len() != spatial) {
            cx.fail_with(format!("{} needs {spatial} values in each window attribute", node.op));
        }
        window
    }

    /// Offsets of the kernel's taps in row-major order.
    fn taps(&self) -> Vec<Vec<usize>> {
        let mut taps = vec![vec![]];
        for (&k, &d) in self.kernel.iter().zip(&self.dilations) {
            taps = taps.into_iter().flat_map(|t| (0..k).map(move |i| [t.clone(), vec![i * d]].concat())).collect();
        }
        taps
    }
}

/// For each tap of the window, the elements of `x` `[N, C, spatial...]` that it meets: `[N, C, out...]`, `x` being
/// padded with `fill` first.
fn window_slices<'c>(cx: &'c Cx, x: Var<'c>, window: &Window, out: &[usize], fill: f64) -> Vec<Var<'c>> {
    let spatial = out.len();
    let padded = if window.begin.iter().chain(&window.end).any(|&p| p > 0) {
        let mut pads = vec![0i64; 2 * (spatial + 2)];
        for i in 0..spatial {
            pads[2 + i] = window.begin[i] as i64;
            pads[spatial + 4 + i] = window.end[i] as i64;
        }
        cx.op("Pad", &[x, cx.ints(&pads), cx.scalar_of(fill, x.dtype())], &[])
    } else {
        x
    };
    let axes: Vec<i64> = (2..spatial as i64 + 2).collect();
    let steps: Vec<i64> = window.strides.iter().map(|&s| s as i64).collect();
    window
        .taps()
        .into_iter()
        .map(|tap| {
            let starts: Vec<i64> = tap.iter().map(|&t| t as i64).collect();
            let ends: Vec<i64> = (0..spatial).map(|i| (tap[i] + (out[i] - 1) * window.strides[i] + 1) as i64).collect();
            cx.op("Slice", &[padded, cx.ints(&starts), cx.ints(&ends), cx.ints(&axes), cx.ints(&steps)], &[])
        })
        .collect()
}
