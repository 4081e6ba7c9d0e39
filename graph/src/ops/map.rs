//! Maps: chains of element-wise operators and reductions that a kernel computes in one pass over memory.
//!
//! `ai.limbeck.Map` takes any number of tensors and gives the results that its attributes name:
//!
//! | attribute | what |
//! |---|---|
//! | `ops` | the operators of ai.onnx, in order, between spaces |
//! | `args` | three operands an operator: an input's number, or the number of inputs plus that of an earlier operator; -1 for none |
//! | `results` | the values that are outputs, numbered alike |
//! | `axes` | what `ReduceSum`, `ReduceMean`, `ReduceMax` and `ReduceVariance` reduce over, keeping extents of 1 |
//! | `times` | how often the chain runs, each time with operands and results of its own; 1 if left out |
//! | `shared` | how many operands, the first ones, all times have in common; 0 if left out |
//! | `operand_shapes`, `result_shapes` | for each operand (result) -1, or a rank and so many extents: the shape in which the chain reads it (in which it is given), another one of as many values |
//!
//! Numbers of `args` and `results` are those within one time. A `Cast` gives float32. `ReduceVariance`, which ai.onnx lacks, is
//! the mean of the squared distances from the mean.

use super::{EvalCx, InferCx, OpSpec, own};
use crate::types::TensorType;
use crate::{Array, Attr, Graph, Node, OpError, ValueId, op_bail};
use limbeck_tensor::{DType, Tensor};
use std::collections::HashMap;
use std::ops::Range;

pub(super) const OPS: &[OpSpec] = &[own("Map", infer, eval)];

/// The most operators of a map.
const MOST_OPS: usize = 1024;

/// Operators of maps that work value by value, with their numbers of operands.
pub(crate) const ELEMENT_WISE: &[(&str, usize)] = &[
    ("Abs", 1),
    ("Add", 2),
    ("And", 2),
    ("Cast", 1),
    ("Div", 2),
    ("Equal", 2),
    ("Erf", 1),
    ("Exp", 1),
    ("Greater", 2),
    ("GreaterOrEqual", 2),
    ("Less", 2),
    ("LessOrEqual", 2),
    ("Log", 1),
    ("Max", 2),
    ("Min", 2),
    ("Mul", 2),
    ("Neg", 1),
    ("Not", 1),
    ("Or", 2),
    ("Reciprocal", 1),
    ("Relu", 1),
    ("Sigmoid", 1),
    ("Sign", 1),
    ("Sqrt", 1),
    ("Sub", 2),
    ("Tanh", 1),
    ("Where", 3),
];

/// Whether this operator of ai.onnx is one of them.
pub(crate) fn is_element_wise(op: &str) -> bool {
    ELEMENT_WISE.iter().any(|(name, _)| *name == op)
}

/// Operators of maps that reduce.
pub(crate) const REDUCTIONS: &[&str] = &["ReduceMax", "ReduceMean", "ReduceSum", VARIANCE];

/// The one reduction that is no operator of ai.onnx: the mean of the squared distances from the mean.
pub(crate) const VARIANCE: &str = "ReduceVariance";

/// How a map's operands and results belong to the times that its chain runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) count: usize,
    /// Operands, the first ones, that every time reads.
    shared: usize,
    /// Operands and results of each time alone.
    own: [usize; 2],
}

impl Times {
    /// Those of a node.
    pub(crate) fn of(node: &Node) -> Result<Times, OpError> {
        let number = |name: &str, default: i64| usize::try_from(node.int(name).unwrap_or(default)).ok();
        let (count, shared) = (number("times", 1), number("shared", 0));
        let (operands, results) = (node.inputs.len(), node.outputs.len());
        match (count, shared) {
            (Some(count @ 1..), Some(shared))
                if shared <= operands && (operands - shared).is_multiple_of(count) && results.is_multiple_of(count) =>
            {
                Ok(Times { count, shared, own: [(operands - shared) / count, results / count] })
            }
            _ => op_bail!(
                "{operands} operands, {shared:?} of them shared, and {results} results are not those of a chain that runs \
                 {count:?} times"
            ),
        }
    }

    /// The operands of a time, by their numbers among the node's.
    pub(crate) fn operands(&self, time: usize) -> impl Iterator<Item = usize> + use<> {
        let first = self.shared + time * self.own[0];
        (0..self.shared).chain(first..first + self.own[0])
    }

    /// The results of a time, by their numbers among the node's.
    pub(crate) fn results(&self, time: usize) -> Range<usize> {
        time * self.own[1]..(time + 1) * self.own[1]
    }
}

/// The shapes that an attribute names for so many values, `None` where they have their own.
pub(crate) fn shapes(node: &Node, name: &str, count: usize) -> Result<Vec<Option<Vec<i64>>>, OpError> {
    let mut rest = node.ints(name).unwrap_or_default();
    if rest.is_empty() {
        return Ok(vec![None; count]);
    }
    let mut all = vec![];
    while let Some((&rank, after)) = rest.split_first() {
        let (shape, after) = match usize::try_from(rank).ok() {
            None if rank == -1 => (None, after),
            Some(rank) if rank <= after.len() => (Some(after[..rank].to_vec()), &after[rank..]),
            _ => op_bail!("{name} has a rank of {rank} before {} numbers", after.len()),
        };
        all.push(shape);
        rest = after;
    }
    match all.len() == count {
        true => Ok(all),
        false => op_bail!("{name} has {} shapes, not {count}", all.len()),
    }
}

/// Those shapes as an attribute; nothing where all values have their own.
pub(crate) fn shapes_attr(shapes: &[Option<Vec<i64>>]) -> Option<Attr> {
    let printed = |shape: &Option<Vec<i64>>| match shape {
        None => vec![-1],
        Some(shape) => [&[shape.len() as i64], &shape[..]].concat(),
    };
    shapes.iter().any(Option::is_some).then(|| Attr::Ints(shapes.iter().flat_map(printed).collect()))
}

/// The chain as a graph of standard operators, for inputs of these types.
pub(crate) fn body(node: &Node, inputs: &[&TensorType]) -> Result<Graph, OpError> {
    let times = Times::of(node)?;
    let mut graph = Graph::new("Map");
    let operands: Vec<ValueId> =
        inputs.iter().enumerate().map(|(i, ty)| graph.add_input(format!("x{i}"), (*ty).clone())).collect();
    let seen = shapes(node, "operand_shapes", node.inputs.len())?;
    let given = shapes(node, "result_shapes", node.outputs.len())?;
    if operands.len() != node.inputs.len() {
        op_bail!("an operand is left out");
    }
    let mut chain = Chain { node, graph };
    let seen: Vec<ValueId> =
        operands.iter().zip(&seen).map(|(&v, s)| chain.reshaped(v, s)).collect::<Result<_, _>>()?;
    for time in 0..times.count {
        let own: Vec<ValueId> = times.operands(time).map(|i| seen[i]).collect();
        let made = chain.run(&own)?;
        if made.len() != times.results(time).len() {
            op_bail!("{} results are not those of a chain that gives {}", times.results(time).len(), made.len());
        }
        for (value, i) in made.into_iter().zip(times.results(time)) {
            let value = chain.reshaped(value, &given[i])?;
            chain.graph.outputs.push(value);
        }
    }
    let mut graph = chain.graph;
    graph.infer_types().map_err(|e| OpError(e.to_string()))?;
    Ok(graph)
}

/// A map's operators under construction.
struct Chain<'n> {
    node: &'n Node,
    graph: Graph,
}

impl Chain<'_> {
    fn literal(&mut self, name: &str, values: &[i64]) -> Result<ValueId, OpError> {
        let tensor = Tensor::new([values.len()], values.to_vec()).map_err(|e| OpError(e.to_string()))?;
        Ok(self.graph.add_literal(name, tensor))
    }

    fn value(&mut self, name: &str) -> ValueId {
        let name = self.graph.free_name(name);
        self.graph.add_value(name, None)
    }

    /// A value in another shape, if one is named.
    fn reshaped(&mut self, value: ValueId, shape: &Option<Vec<i64>>) -> Result<ValueId, OpError> {
        let Some(shape) = shape else { return Ok(value) };
        if let Some(extent) = shape.iter().find(|&&n| n < 1) {
            op_bail!("a shape has the extent {extent}");
        }
        let (shape, result) = (self.literal("shape", shape)?, self.value("reshaped"));
        self.graph.add_node(Node::new("Reshape", &[value, shape], &[result]));
        Ok(result)
    }

    /// A variance over the axes.
    fn variance(&mut self, x: ValueId, axes: ValueId) -> ValueId {
        let [mean, centred, square, variance] = ["mean", "centred", "square", "v"].map(|name| self.value(name));
        self.graph.add_node(Node::new("ReduceMean", &[x, axes], &[mean]));
        self.graph.add_node(Node::new("Sub", &[x, mean], &[centred]));
        self.graph.add_node(Node::new("Mul", &[centred, centred], &[square]));
        self.graph.add_node(Node::new("ReduceMean", &[square, axes], &[variance]));
        variance
    }

    /// Adds the operators once, for these operands; returns what they give.
    fn run(&mut self, operands: &[ValueId]) -> Result<Vec<ValueId>, OpError> {
        let node = self.node;
        let ops: Vec<&str> = node.str("ops").unwrap_or_default().split_whitespace().collect();
        let ints = |name: &str| node.ints(name).unwrap_or_default();
        let (args, results) = (ints("args"), ints("results"));
        if ops.is_empty() || ops.len() > MOST_OPS || args.len() != 3 * ops.len() || results.is_empty() {
            op_bail!(
                "{} operators (1 to {MOST_OPS}) need three args each and a result, not {args:?}, {results:?}",
                ops.len()
            );
        }
        let axes = self.literal("axes", ints("axes"))?;
        let mut values = operands.to_vec();
        let at = |values: &[ValueId], i: i64| usize::try_from(i).ok().and_then(|i| values.get(i).copied());
        for (i, (op, args)) in ops.iter().zip(args.chunks(3)).enumerate() {
            let reduces = REDUCTIONS.contains(op);
            let arity = ELEMENT_WISE.iter().find(|(name, _)| name == op).map(|&(_, arity)| arity);
            let Some(arity) = arity.or(reduces.then_some(1)) else {
                op_bail!("operator {i} is '{op}', which no map has")
            };
            let used: Option<Vec<ValueId>> = args[..arity].iter().map(|&arg| at(&values, arg)).collect();
            let Some(mut used) = used else { op_bail!("operator {i}, {op}, has the operands {args:?}") };
            if reduces {
                used.push(axes);
            }
            if *op == VARIANCE {
                values.push(self.variance(used[0], axes));
                continue;
            }
            let value = self.value("v");
            let cast = (*op == "Cast").then_some(("to", Attr::Int(i64::from(DType::F32.to_onnx()))));
            let mut made = Node::new(op, &used, &[value]);
            made.attrs.extend(cast.map(|(name, value)| (name.to_owned(), value)));
            self.graph.add_node(made);
            values.push(value);
        }
        let made = |&result: &i64| {
            at(&values, result)
                .filter(|_| result >= operands.len() as i64)
                .ok_or_else(|| OpError(format!("the result {result} is no operator of the map")))
        };
        results.iter().map(made).collect()
    }
}

fn infer(cx: &InferCx) -> Result<Vec<TensorType>, OpError> {
    let inputs = (0..cx.inputs.len()).map(|i| cx.ty(i)).collect::<Result<Vec<_>, _>>()?;
    let body = body(cx.node, &inputs)?;
    let typed = |&id: &ValueId| body.ty(id).cloned().ok_or_else(|| OpError("a result has no type".into()));
    body.outputs.iter().map(typed).collect()
}

fn eval(cx: &EvalCx) -> Result<Vec<Array>, OpError> {
    let inputs: Vec<Array> = (0..cx.inputs.len()).map(|i| cx.array(i).cloned()).collect::<Result<_, _>>()?;
    let types: Vec<TensorType> = inputs.iter().map(|a| TensorType::new(a.dtype, a.shape())).collect();
    let body = body(cx.node, &types.iter().collect::<Vec<_>>())?;
    body.call(inputs, &HashMap::new()).map_err(|e| OpError(e.to_string()))
}
