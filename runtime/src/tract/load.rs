//! From model bytes to tract's optimised form. What tract would meet with a panic or a silent surprise is refused here.

use super::{NAME, failed, ops, optimise::optimised};
use crate::{
    RuntimeError,
    engine::{Model, ValueSpec},
    fused::{DOMAIN, OPS, op_of},
};
use limbeck_tensor::DType;
use prost::Message;
use std::collections::{HashMap, HashSet};
use tract_onnx::{
    pb,
    prelude::{InferenceModelExt, TypedModel},
    tract_hir::internal::DimLike,
};

/// An optimised model and the interface that its file declares.
pub(super) struct Loaded {
    pub(super) model: TypedModel,
    pub(super) inputs: Vec<ValueSpec>,
    pub(super) outputs: Vec<ValueSpec>,
    /// Where each node of the file stands, by the names that it may have here.
    pub(super) places: HashMap<String, usize>,
}

pub(super) fn load(model: &Model) -> Result<Loaded, RuntimeError> {
    let refuse = |reason: String| RuntimeError::Engine { engine: NAME, what: "read the model".into(), reason };
    let mut proto = pb::ModelProto::decode(&model.bytes[..])
        .map_err(|e| refuse(format!("not an ONNX file, or truncated or damaged: {e}")))?;
    if !proto.opset_import.iter().any(|o| matches!(o.domain.as_str(), "" | "ai.onnx")) {
        return Err(refuse("it declares no opset: not an ONNX file, or truncated or damaged".into()));
    }
    proto.graph.iter_mut().flat_map(|g| &mut g.input).for_each(name_dims);
    proto.graph.iter_mut().for_each(drop_numbers);
    let graph = proto.graph.as_ref().ok_or_else(|| refuse("it holds no graph".into()))?;

    let mut onnx = tract_onnx::onnx();
    ops::register(&mut onnx.op_register);
    let mut missing = Vec::new();
    unsupported(graph, &|node| onnx.op_register.0.contains_key(&node.op_type), &mut missing);
    if !missing.is_empty() {
        missing.sort();
        missing.dedup();
        return Err(RuntimeError::UnsupportedOps { engine: NAME, ops: missing });
    }

    let constants: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let inputs: Vec<ValueSpec> =
        (graph.input.iter().filter(|v| !constants.contains(v.name.as_str()))).map(spec).collect::<Result<_, _>>()?;
    let mut outputs: Vec<ValueSpec> = graph.output.iter().map(spec).collect::<Result<_, _>>()?;
    let computed = graph.node.iter().flat_map(|n| &n.output).map(String::as_str);
    let known: HashSet<&str> = computed.chain(constants).chain(inputs.iter().map(|v| v.name.as_str())).collect();
    if let Some(lost) = outputs.iter().find(|v| !known.contains(v.name.as_str())) {
        return Err(refuse(format!("nothing computes the output `{}`", lost.name)));
    }

    let named = |(place, node): (usize, &pb::NodeProto)| {
        let names: Vec<String> = node.output.iter().chain([&node.name]).filter(|n| !n.is_empty()).cloned().collect();
        names.into_iter().map(move |name| (name, place))
    };
    let places = graph.node.iter().enumerate().flat_map(named).collect();
    let folder = model.folder.as_ref().map(|f| f.to_str().ok_or_else(|| refuse(format!("{f:?} is not UTF-8"))));
    let parsed = onnx.parse(&proto, folder.transpose()?).map_err(|e| failed("read the model", e))?;
    if !parsed.unresolved_inputs.is_empty() {
        return Err(refuse(format!("nothing computes {:?}", parsed.unresolved_inputs)));
    }
    drop(proto);
    let typed = parsed.model.into_typed().map_err(|e| failed("infer the model's shapes", e))?;
    let model = optimised(typed)?;
    for (i, output) in outputs.iter_mut().enumerate() {
        let fact = model.output_fact(i).map_err(|e| failed("read an output's shape", e))?;
        output.dims = fact.shape.iter().map(|d| d.to_usize().ok()).collect();
    }
    Ok(Loaded { model, inputs, outputs, places })
}

/// Gives nodes of Limbeck's own operators the types that are in tract's table.
fn drop_numbers(graph: &mut pb::GraphProto) {
    for node in &mut graph.node {
        if let Some(op) = op_of(&node.op_type).filter(|_| node.domain == DOMAIN) {
            node.op_type = op.into();
        }
        node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)).for_each(drop_numbers);
    }
}

/// Gives unknown extents of an input a name of their own, since tract wants every extent known or named.
fn name_dims(input: &mut pb::ValueInfoProto) {
    use pb::{tensor_shape_proto::dimension::Value::DimParam, type_proto::Value::TensorType};
    let name = input.name.clone();
    let Some(TensorType(tensor)) = input.r#type.as_mut().and_then(|t| t.value.as_mut()) else { return };
    for (axis, dim) in tensor.shape.iter_mut().flat_map(|s| &mut s.dim).enumerate() {
        let known = match &dim.value {
            Some(DimParam(param)) => !param.is_empty() && param != "?",
            value => value.is_some(),
        };
        if !known {
            let letters: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            dim.value = Some(DimParam(format!("unknown_{letters}_{axis}")));
        }
    }
}

/// Name, type and extents that the file declares; named and unknown extents are free.
fn spec(value: &pb::ValueInfoProto) -> Result<ValueSpec, RuntimeError> {
    use pb::{tensor_shape_proto::dimension::Value::DimValue, type_proto::Value::TensorType};
    let name = value.name.clone();
    let refuse = |reason: &str| RuntimeError::Engine {
        engine: NAME,
        what: "read the model".into(),
        reason: format!("`{}` {reason}", value.name),
    };
    let Some(TensorType(tensor)) = value.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
        return Err(refuse("is not a tensor, or its type is not declared"));
    };
    let dtype = DType::from_onnx(tensor.elem_type).ok_or_else(|| refuse("has an element type that ONNX lacks"))?;
    let dims = tensor.shape.iter().flat_map(|s| &s.dim).map(|d| match d.value {
        Some(DimValue(n)) => usize::try_from(n).ok(),
        _ => None,
    });
    Ok(ValueSpec { name, dtype, dims: dims.collect() })
}

/// Adds the nodes of `graph` and its subgraphs that tract has no operator for. It looks operators up by their type
/// alone, so the domain is checked here.
fn unsupported(graph: &pb::GraphProto, has: &dyn Fn(&pb::NodeProto) -> bool, missing: &mut Vec<String>) {
    for node in &graph.node {
        let ours = OPS.contains(&node.op_type.as_str());
        let domain_fits = match node.domain.as_str() {
            DOMAIN => ours,
            "" | "ai.onnx" | "ai.onnx.ml" | "com.microsoft" => !ours,
            _ => false,
        };
        if !domain_fits || !has(node) {
            let domain = if node.domain.is_empty() { "ai.onnx" } else { &node.domain };
            let name = node.output.iter().chain([&node.name]).find(|n| !n.is_empty()).map_or("", |n| n.as_str());
            missing.push(format!("{domain}.{} ({name})", node.op_type));
        }
        for attribute in &node.attribute {
            for subgraph in attribute.g.iter().chain(&attribute.graphs) {
                unsupported(subgraph, has, missing);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    /// Operators of tract's table that refuse what ONNX allows.
    const REFUSED: [&str; 2] = ["RandomNormalLike", "RandomUniformLike"];

    #[test]
    fn boards_are_judged_by_the_operators_that_there_are() {
        let table = tract_onnx::onnx().op_register.0;
        let mut names: Vec<&str> = table.keys().map(String::as_str).filter(|name| !REFUSED.contains(name)).collect();
        names.sort_unstable();
        assert_eq!(names, limbeck_targets::TRACT_OPS, "write the left list into targets/src/tract_ops.rs");
    }
}
