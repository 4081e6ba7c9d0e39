//! The graph: values, nodes, op specs with shape inference and a reference evaluator, a builder, a verifier,
//! and the ONNX codec. The only representation of a model in Limbeck.
#![forbid(unsafe_code)]

mod array;
mod bodies;
mod builder;
mod canonical;
mod composites;
mod constants;
mod edit;
mod error;
mod evaluate;
mod fold;
mod import;
mod infer;
mod ir;
mod lower;
mod memory;
mod names;
mod node;
mod onnx;
pub mod ops;
mod types;
mod value_set;
mod verify;

pub use array::{Array, ArrayData};
pub use builder::{Cx, Rewrite, Var};
pub use composites::{COMPOSITES, batch_norm, compose, dropout, momentum};
pub use constants::Initializer;
pub use error::{GraphError, OpError};
pub use import::{ImportOptions, ImportReport};
pub use infer::{infer_node, typed_body};
pub use ir::{Capture, Graph, IR_VERSION, LIMBECK, Meta, NodeId, OPSET, Value, ValueId};
pub use lower::{FUSED_OPS, Form, Lowering};
pub use memory::MemoryPlan;
pub use node::{Attr, Node};
pub use onnx::read_tensor_proto;
pub use types::{Dim, TensorType};
pub use value_set::ValueSet;
