//! Gradients of Loop and Scan that stay loops: the reverse of either is a Scan that runs through the iterations from the
//! last to the first. It is given the carried values as each iteration found them, which the forward node is made to
//! record, computes the iteration again and holds the gradient of its body.

use super::{Grads, Rule, RuleFn, Without, without};
use crate::Differentiate;
use crate::extents::zeros;
use crate::walk::{is_quantised, reached};
use limbeck_graph::ops::{Looped, Slices};
use limbeck_graph::{Attr, Cx, Graph, Node, TensorType, ValueId, ValueSet, Var, typed_body};
use limbeck_tensor::{DType, Tensor};
use std::collections::{HashMap, HashSet};

pub(super) const RULES: &[(&str, RuleFn)] = &[("Loop", reverse), ("Scan", reverse)];

/// A Loop or Scan as its reverse sees it.
struct Forward<'r, 'c> {
    rule: &'r Rule<'r, 'c>,
    form: Looped,
    body: Graph,
    /// Carried values (by number) that the body passes on as they are: to it they are captured.
    constant: HashSet<usize>,
    /// Carried values whose gradient is carried back.
    carried: Vec<usize>,
    /// Values of the graph around, captured or carried unchanged, whose gradient adds up over the iterations.
    shared: Vec<ValueId>,
    /// Operands read in slices (by number) with gradient.
    read: Vec<usize>,
    /// Results written in slices (by number) with a gradient that leads somewhere, and that gradient.
    written: Vec<(usize, Var<'c>)>,
}

/// Where the reverse reads slices.
enum Source<'c> {
    /// In this value of the body, as each iteration had it.
    Recorded(ValueId),
    /// In a tensor that is there.
    Given(Var<'c>, Slices),
}

fn reverse<'c>(r: &Rule<'_, 'c>) -> Result<Grads<'c>, String> {
    let forward = Forward::of(r)?;
    let (body, sources) = forward.reverse_body()?;
    forward.scan(body, sources)
}

impl<'r, 'c> Forward<'r, 'c> {
    fn of(rule: &'r Rule<'r, 'c>) -> Result<Forward<'r, 'c>, String> {
        let form = Looped::of(rule.node).map_err(|e| e.0)?;
        let body = typed_body(&rule.cx.graph(), rule.node, rule.label).map_err(|e| e.to_string())?;
        let constant = (0..form.carried)
            .filter(|j| body.origin(body.outputs[form.given() + j]) == body.inputs[form.first() + j])
            .collect();
        let mut forward =
            Forward { rule, form, body, constant, carried: vec![], shared: vec![], read: vec![], written: vec![] };
        forward.find_gradients()?;
        Ok(forward)
    }

    /// Input of the body for the carried value `j`.
    fn state(&self, j: usize) -> ValueId {
        self.body.inputs[self.form.first() + j]
    }

    /// Input of the body for slices of the operand read as number `i`.
    fn slice(&self, i: usize) -> ValueId {
        self.state(self.form.carried + i)
    }

    /// Output of the body for the carried value `j`, or with `j` counted on for the slices it writes.
    fn result(&self, j: usize) -> ValueId {
        self.body.outputs[self.form.given() + j]
    }

    /// Operand of the node for the carried value `j`, or with `j` counted on for what it reads in slices.
    fn operand(&self, j: usize) -> Var<'c> {
        self.rule.x(self.form.first() + j)
    }

    fn wants(&self, j: usize) -> bool {
        self.rule.wants(self.form.first() + j)
    }

    fn is_float(&self, inner: ValueId) -> bool {
        self.body.ty(inner).is_some_and(|t| t.dtype.is_float())
    }

    /// The type of a carried value, which must have one shape in all iterations; `what` is to happen to it.
    fn settled(&self, inner: ValueId, what: &str) -> Result<TensorType, String> {
        let (name, ty) = (self.body.name_of(inner), self.body.ty(inner));
        if let Some(ty) = ty.filter(|t| t.concrete().is_some()) {
            return Ok(ty.clone());
        }
        let ty = ty.map_or_else(|| "of unknown type".into(), ToString::to_string);
        Err(format!(
            "its carried value '{name}' is {ty}: its shape is not known, or another in each iteration, so that it cannot be \
             {what}; give it one known shape (fix the dims, or fill a tensor of full size), or unroll the loop at import"
        ))
    }

    /// Finds what has a gradient within the body.
    fn find_gradients(&mut self) -> Result<(), String> {
        let carrying = self.rule.carrying;
        let mut from = ValueSet::default();
        for capture in &self.body.captures {
            if carrying.contains(capture.outer) && self.is_float(capture.inner) {
                from.insert(capture.inner);
                if !self.shared.contains(&capture.outer) {
                    self.shared.push(capture.outer);
                }
            }
        }
        self.read = (0..self.form.read.len())
            .filter(|i| self.wants(self.form.carried + i) && self.is_float(self.slice(*i)))
            .collect();
        from.extend(self.read.iter().map(|&i| self.slice(i)));
        let floats = (0..self.form.carried).filter(|&j| self.is_float(self.state(j)));
        let floats: Vec<usize> = floats.collect();
        from.extend(floats.iter().filter(|j| self.wants(**j)).map(|&j| self.state(j)));
        // What depends on a carried value may be carried into another.
        let reached = loop {
            let reached = reached(&self.body, &from);
            let carried = floats.iter().filter(|j| reached.contains(self.result(**j))).map(|&j| self.state(j));
            let more: Vec<ValueId> = carried.filter(|&state| !from.contains(state)).collect();
            if more.is_empty() {
                break reached;
            }
            from.extend(more);
        };
        let results = &self.body.outputs[self.form.given()..];
        let quantised = |v: &&ValueId| reached.contains(**v) && is_quantised(&self.body, self.body.origin(**v));
        if let Some(lost) = results.iter().find(quantised) {
            let name = self.body.name_of(*lost);
            return Err(format!(
                "its body gives the quantised integers '{name}', at which a gradient is lost; let it give what \
                 DequantizeLinear makes of them"
            ));
        }
        for j in floats {
            if !from.contains(self.state(j)) {
                continue;
            }
            if !self.constant.contains(&j) {
                self.settled(self.state(j), "differentiated")?;
                self.carried.push(j);
            } else if self.wants(j) && !self.shared.contains(&self.operand(j).id()) {
                self.shared.push(self.operand(j).id());
            }
        }
        let written = (0..self.form.written.len()).filter(|o| reached.contains(self.result(self.form.carried + o)));
        self.written = written.filter_map(|o| Some((o, self.rule.grad_of(self.form.carried + o)?))).collect();
        Ok(())
    }

    /// The body of the reverse: from the gradients of the carried values after an iteration, the sums so far and what
    /// is read in slices, to the gradients before it, the sums with it and the gradients of the slices. And where the slices
    /// are read.
    fn reverse_body(&self) -> Result<(Graph, Vec<Source<'c>>), String> {
        let (around, form) = (self.rule.cx, &self.form);
        let cx = around.body(self.rule.label);
        let typed = |inner: ValueId| {
            let name = self.body.name_of(inner);
            self.body.ty(inner).cloned().ok_or_else(|| format!("the type of '{name}' in its body is not known"))
        };
        let mut outputs = vec![];
        for &j in &self.carried {
            outputs.push((self.result(j), cx.operand("gradient", typed(self.state(j))?)));
        }
        let mut sums = vec![];
        for &outer in &self.shared {
            let ty = around.graph().ty(outer).cloned();
            sums.push(cx.operand("sum", ty.ok_or("a captured value has no type")?));
        }
        let mut bind: HashMap<ValueId, Var<'_>> = HashMap::new();
        let mut sources = vec![];
        // The first of these tells how many iterations there are and is read even if nothing needs it.
        if form.counts {
            bind.insert(self.body.inputs[0], cx.operand("number", TensorType::new(DType::I64, &[])));
            sources.push(Source::Recorded(self.body.inputs[0]));
            let goes_on = Tensor::bools([], &[true]).map_err(|e| e.to_string())?;
            bind.insert(self.body.inputs[1], cx.constant(goes_on));
        }
        for (i, along) in form.read.iter().enumerate() {
            bind.insert(self.slice(i), cx.operand("slice", typed(self.slice(i))?));
            sources.push(Source::Given(self.operand(form.carried + i), against(along)));
        }
        for j in 0..form.carried {
            let value = if self.constant.contains(&j) {
                cx.capture(around, self.operand(j).id())
            } else {
                sources.push(Source::Recorded(self.state(j)));
                cx.operand("before", typed(self.state(j))?)
            };
            bind.insert(self.state(j), value);
        }
        for &(o, gradient) in &self.written {
            let output = self.result(form.carried + o);
            outputs.push((output, cx.operand("gradient", typed(output)?)));
            sources.push(Source::Given(gradient, against(&form.written[o])));
        }
        for capture in &self.body.captures {
            bind.insert(capture.inner, cx.capture(around, capture.outer));
        }
        self.differentiate(&cx, &bind, &outputs, &sums)?;
        let mut body = cx.finish_body().map_err(|e| e.to_string())?;
        if let Some(drawn) = drawn(&body) {
            return Err(format!(
                "its body draws random numbers ({drawn}), which would be others when it is computed again; draw them \
                 outside, and let the body read slices of them"
            ));
        }
        let leading = self.carried.len() + self.shared.len();
        let kept: HashSet<usize> = body.keep_read_inputs(leading, leading).into_iter().collect();
        let sources = sources.into_iter().enumerate().filter(|(i, _)| kept.contains(i)).map(|(_, s)| s).collect();
        Ok((body, sources))
    }

    /// Computes an iteration again and gives the results of the reverse.
    fn differentiate<'b>(
        &self,
        cx: &'b Cx,
        bind: &HashMap<ValueId, Var<'b>>,
        outputs: &[(ValueId, Var<'b>)],
        sums: &[Var<'b>],
    ) -> Result<(), String> {
        let within = |e: String| format!("in its body, {e}");
        let map = cx.inline(&self.body, bind).map_err(|e| within(e.to_string()))?;
        let value = |inner: ValueId| {
            let name = self.body.name_of(inner);
            map.get(&inner).copied().ok_or_else(|| format!("'{name}' in its body is never computed"))
        };
        let results = outputs.iter().map(|(inner, _)| value(*inner)).collect::<Result<Vec<_>, _>>()?;
        let gradients: Vec<Var<'b>> = outputs.iter().map(|(_, gradient)| *gradient).collect();
        let states = self.carried.iter().map(|&j| self.state(j));
        let slices = self.read.iter().map(|&i| self.slice(i));
        let mut wrt = states.chain(slices).map(value).collect::<Result<Vec<_>, _>>()?;
        wrt.extend(self.shared.iter().map(|&outer| cx.capture(self.rule.cx, outer)));
        let found = cx.vjp(&results, &gradients, &wrt).map_err(|e| within(e.to_string()))?;
        let (carried, rest) = found.split_at(self.carried.len());
        let (slices, shared) = rest.split_at(self.read.len());
        carried.iter().for_each(|gradient| cx.result(*gradient));
        shared.iter().zip(sums).for_each(|(gradient, sum)| cx.result(*sum + *gradient));
        slices.iter().for_each(|gradient| cx.result(*gradient));
        Ok(())
    }

    /// The reverse as a node, and its results as gradients of what the forward node reads.
    fn scan(&self, body: Graph, sources: Vec<Source<'c>>) -> Result<Grads<'c>, String> {
        let (r, form) = (self.rule, &self.form);
        let recorded: Vec<ValueId> = sources
            .iter()
            .filter_map(|source| if let Source::Recorded(inner) = source { Some(*inner) } else { None })
            .collect();
        recorded.iter().try_for_each(|&inner| self.settled(inner, "recorded").map(drop))?;
        let mut records = r.cx.edit(|g| g.record(r.id, &recorded)).map_err(|e| e.to_string())?.into_iter();
        let mut operands: Vec<Option<Var<'c>>> = vec![];
        for &j in &self.carried {
            operands.push(Some(r.grad_of(j).unwrap_or_else(|| zeros(self.operand(j)))));
        }
        operands.extend(self.shared.iter().map(|&outer| Some(zeros(r.cx.var(outer)))));
        let mut read = vec![];
        for source in sources {
            let (var, slices) = match source {
                Source::Recorded(_) => (records.next().map(|id| r.cx.var(id)), Slices { axis: 0, backwards: true }),
                Source::Given(var, slices) => (Some(var), slices),
            };
            operands.push(var);
            read.push(slices);
        }
        let written: Vec<Slices> = self.read.iter().map(|&i| against(&form.read[i])).collect();
        let axes = |slices: &[Slices]| Attr::Ints(slices.iter().map(|s| s.axis).collect());
        let directions = |slices: &[Slices]| Attr::Ints(slices.iter().map(|s| i64::from(s.backwards)).collect());
        let count = body.outputs.len();
        let mut attrs: Vec<(&str, Attr)> = vec![
            ("body", body.into()),
            ("num_scan_inputs", read.len().into()),
            ("scan_input_axes", axes(&read)),
            ("scan_input_directions", directions(&read)),
        ];
        if !written.is_empty() {
            attrs.extend([("scan_output_axes", axes(&written)), ("scan_output_directions", directions(&written))]);
        }
        let mut found = r.cx.op_n("", "Scan", &operands, &attrs, count).into_iter();
        let carried: HashMap<usize, Var<'c>> = self.carried.iter().copied().zip(found.by_ref()).collect();
        let mut shared: HashMap<ValueId, Var<'c>> = self.shared.iter().copied().zip(found.by_ref()).collect();
        let read: HashMap<usize, Var<'c>> = self.read.iter().copied().zip(found).collect();
        let operand = |at: usize| {
            let j = at.checked_sub(form.first())?;
            if self.constant.contains(&j) {
                // What the iterations contribute, once for an operand, and what the result that it is gets.
                let sum = shared.remove(&r.node.input(at)?);
                return [sum, r.grad_of(j)].into_iter().flatten().reduce(|a, b| a + b);
            }
            carried.get(&j).or_else(|| read.get(&j.checked_sub(form.carried)?)).copied()
        };
        let mut grads: Grads<'c> = (0..r.node.inputs.len()).map(operand).collect();
        let captured = r.node.subgraphs().flat_map(|g| &g.captures);
        grads.extend(captured.map(|capture| shared.remove(&capture.outer)));
        Ok(grads)
    }
}

/// The same slices from the other end.
fn against(slices: &Slices) -> Slices {
    Slices { backwards: !slices.backwards, ..*slices }
}

/// The first node of a graph, those of its subgraphs included, that draws random numbers.
fn drawn(graph: &Graph) -> Option<String> {
    let draws =
        |node: &Node| without(node) == Some(Without::Random) || (node.is("", "Dropout") && node.input(2).is_some());
    graph.nodes().find_map(|(id, node)| {
        let own = draws(node).then(|| format!("node '{}', {}", graph.label(id), node.full_op()));
        own.or_else(|| node.subgraphs().find_map(drawn))
    })
}
