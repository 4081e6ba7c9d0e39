//! Stored constants: weights, buffers, and the literals that are part of the program.

use crate::types::TensorType;
use crate::{Graph, ValueId, onnx};
use bytes::Bytes;
use limbeck_tensor::Tensor;

/// A stored constant: weight, buffer or literal.
#[derive(Debug, Clone, PartialEq)]
pub struct Initializer {
    /// The data, mapped when it came from a file.
    pub tensor: Tensor,
    /// The TensorProto (or SparseTensorProto) as read, while the tensor is untouched.
    pub(crate) raw: Option<Bytes>,
    /// True when `raw` is a SparseTensorProto.
    pub(crate) sparse: bool,
    /// TensorProto fields that are not about the data (documentation, metadata), encoded; those of a tensor that was read
    /// and replaced.
    pub(crate) rest: Bytes,
    /// The file that holds the data, when it is not the model file.
    pub(crate) external: Option<External>,
    /// See [`Graph::is_literal`].
    pub(crate) literal: bool,
}

impl Initializer {
    pub(crate) fn new(tensor: Tensor) -> Initializer {
        Initializer { tensor, raw: None, sparse: false, rest: Bytes::new(), external: None, literal: false }
    }

    /// What the file says about the tensor besides its data.
    pub(crate) fn rest(&self) -> Bytes {
        match &self.raw {
            Some(raw) if !self.sparse => onnx::tensor_rest(raw),
            _ => self.rest.clone(),
        }
    }
}

/// A file of weights beside the model file.
#[derive(Debug, Clone)]
pub(crate) struct External {
    /// Path relative to the model's folder.
    pub(crate) location: String,
    /// The whole file, mapped.
    pub(crate) file: Bytes,
}

impl PartialEq for External {
    fn eq(&self, other: &External) -> bool {
        self.location == other.location && self.file.len() == other.file.len()
    }
}

impl Graph {
    /// Adds a stored constant, which counts as a weight (see [`Graph::is_literal`]).
    pub fn add_initializer(&mut self, name: impl Into<String>, tensor: Tensor) -> ValueId {
        let id = self.add_value(name, Some(TensorType::of(&tensor)));
        self.initializers.insert(id, Initializer::new(tensor));
        id
    }

    /// Adds a stored constant that is a literal.
    pub(crate) fn add_literal(&mut self, name: impl Into<String>, tensor: Tensor) -> ValueId {
        let id = self.add_initializer(name, tensor);
        self.mark_literal(id);
        id
    }

    /// Makes the stored constant `id` a literal.
    pub(crate) fn mark_literal(&mut self, id: ValueId) {
        if let Some(init) = self.initializers.get_mut(&id).filter(|init| !init.literal) {
            // The encoded form says that it is none.
            *init = Initializer { literal: true, rest: init.rest(), ..Initializer::new(init.tensor.clone()) };
        }
    }

    /// Gives the value `to` of this graph the constant that `id` is in `from`, literal or weight as it is there.
    pub(crate) fn copy_constant(&mut self, to: ValueId, from: &Graph, id: ValueId) {
        if let Some(Initializer { tensor, literal, .. }) = from.initializers.get(&id) {
            let copy = Initializer { literal: *literal, ..Initializer::new(tensor.clone()) };
            self.initializers.insert(to, copy);
        }
    }

    /// Stores `tensor` as the constant `id`, replacing the former one. From then on it counts as a weight, whatever
    /// it was (see [`Graph::is_literal`]).
    pub fn set_initializer(&mut self, id: ValueId, tensor: Tensor) {
        self.set_ty(id, Some(TensorType::of(&tensor)));
        let rest = self.initializers.get(&id).map(Initializer::rest).unwrap_or_default();
        self.initializers.insert(id, Initializer { rest, ..Initializer::new(tensor) });
    }

    /// The stored constant of a value.
    pub fn initializer(&self, id: ValueId) -> Option<&Tensor> {
        self.initializers.get(&id).map(|i| &i.tensor)
    }

    /// Stored constants in file order.
    pub fn initializers(&self) -> impl Iterator<Item = (ValueId, &Tensor)> {
        self.initializers.iter().map(|(id, i)| (*id, &i.tensor))
    }

    /// Forgets a stored constant (the value stays).
    pub fn remove_initializer(&mut self, id: ValueId) -> Option<Tensor> {
        self.initializers.shift_remove(&id).map(|i| i.tensor)
    }

    /// The constant behind a value that nothing can replace: an input's default is none.
    pub(crate) fn settled(&self, id: ValueId) -> Option<Tensor> {
        self.constant(id).filter(|_| !self.inputs.contains(&id))
    }

    /// The constant behind a value: an initializer, or the output of a Constant node holding a tensor.
    pub fn constant(&self, id: ValueId) -> Option<Tensor> {
        if let Some(t) = self.initializer(id) {
            return Some(t.clone());
        }
        let node = self.node(self.producer(id)?);
        (node.is("", "Constant")).then(|| node.constant_value()).flatten()
    }

    /// True for a constant that is part of the program instead of a weight to train: the result of a `Constant` node
    /// (or what [`Graph::canonicalise`] made of it), and what the builder ([`crate::Cx::constant`] and the like),
    /// folding of literals or another pass of this crate made up. False for what a file stores as an initializer and
    /// for what [`Graph::add_initializer`], [`Graph::set_initializer`] or [`crate::Cx::initializer`] stored.
    ///
    /// Clones, inlined copies, lowered graphs and files written by [`Graph::write`] keep the distinction: in a file the
    /// literal's TensorProto has the metadata key `ai.limbeck.literal`, which other programs pass over.
    pub fn is_literal(&self, id: ValueId) -> bool {
        match self.initializers.get(&id) {
            Some(init) => init.literal,
            None => self.producer(id).is_some_and(|node| self.node(node).is("", "Constant")),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Cx, Form, Graph, Node, TensorType};
    use limbeck_tensor::{DType, Tensor};
    use std::collections::HashMap;

    /// y = (x + weight) * three: an initializer and a Constant node of the same shape.
    fn graph() -> Graph {
        let mut g = Graph::new("g");
        let x = g.add_input("x", TensorType::new(DType::F32, &[2]));
        let weight = g.add_initializer("weight", Tensor::new([2], vec![1f32, 2.0]).unwrap());
        let [three, sum, y] = ["three", "sum", "y"].map(|name| g.add_value(name, None));
        g.add_node(Node::new("Constant", &[], &[three]).with("value", Tensor::new([2], vec![3f32; 2]).unwrap()));
        g.add_node(Node::new("Add", &[x, weight], &[sum]));
        g.add_node(Node::new("Mul", &[sum, three], &[y]));
        g.outputs.push(y);
        g
    }

    fn literal(g: &Graph, name: &str) -> bool {
        g.is_literal(g.require(name).unwrap())
    }

    #[test]
    fn literals_are_told_from_weights_through_every_pass() {
        let mut g = graph();
        assert!(literal(&g, "three"), "a Constant node is one already");
        g.canonicalise().unwrap();
        let renamed = g.find("three").unwrap();
        g.rename(renamed, "3").unwrap();
        g.infer_types().unwrap();
        let lowered = g.lowered(Form::Portable).unwrap();
        let cx = Cx::new("outer", DType::F32);
        let x = cx.input("x", DType::F32, &[2]);
        cx.inline(&g, &HashMap::from([(g.inputs[0], x)])).unwrap();
        let read = Graph::from_bytes(g.to_bytes().unwrap(), None).unwrap();
        let twice = Graph::from_bytes(read.to_bytes().unwrap(), None).unwrap();
        for g in [&g, &g.clone(), &lowered, &cx.graph(), &read, &twice] {
            assert!(literal(g, "3") && !literal(g, "weight") && !literal(g, "x"));
        }
        g.set_initializer(renamed, Tensor::new([2], vec![4f32; 2]).unwrap());
        assert!(!literal(&g, "3"), "what is stored by hand is a weight");
    }

    #[test]
    fn what_passes_and_the_builder_make_up_is_literal() {
        let cx = Cx::new("g", DType::F32);
        let weight = cx.initializer("weight", Tensor::new([2], vec![1f32, 2.0]).unwrap());
        let table = cx.floats(&[2], &[1.0, 2.0]);
        cx.output("scaled", weight * 2.0);
        cx.output("doubled", table * 2.0);
        assert!(cx.graph().is_literal(table.id()) && !cx.graph().is_literal(weight.id()));
        let mut g = Graph::new("old");
        let x = g.add_input("x", TensorType::new(DType::F32, &[2]));
        let y = g.add_value("y", None);
        g.add_node(Node::new("Clip", &[x], &[y]).with("min", 0.5f32).with("max", 1.5f32));
        g.outputs.push(y);
        g.meta.opsets = vec![(String::new(), 7)];
        g.canonicalise().unwrap();
        assert!(g.initializers().count() == 2 && g.initializers().all(|(id, _)| g.is_literal(id)));
    }

    #[test]
    fn folded_literals_are_literals_and_folded_weights_are_weights() {
        let cx = Cx::new("g", DType::F32);
        let x = cx.input("x", DType::F32, &[2]);
        let weight = cx.initializer("weight", Tensor::new([2], vec![1f32, 2.0]).unwrap());
        let (scaled, halves) = (weight * 2.0, cx.floats(&[2], &[1.0, 2.0]) * 0.5);
        cx.output("y", x * scaled + halves);
        let ids = [scaled.id(), halves.id()];
        let mut g = cx.finish().unwrap();
        g.fold_constants().unwrap();
        assert_eq!(ids.map(|id| g.initializer(id).map(|_| g.is_literal(id))), [Some(false), Some(true)]);
    }
}
