//! Where a node or a weight comes from in the model that was exported, as far as names and notes in the file tell.

use limbeck_graph::Node;

/// The Python classes of the modules that a node comes from, as torch's dynamo exporter notes them.
pub(super) fn classes(node: &Node) -> Option<String> {
    node.metadata("pkg.torch.onnx.class_hierarchy")
}

/// The module that a node comes from, by the note of torch's dynamo exporter: `layer.linear1`, the same at every call.
pub(super) fn noted_module(node: &Node) -> Option<String> {
    // "['', 'layer', 'layer.linear1', 'linear_2']": the last is the operation itself.
    let scopes = node.metadata("pkg.torch.onnx.name_scopes")?;
    let names: Vec<&str> = scopes.split('\'').skip(1).step_by(2).collect();
    let module = names.len().checked_sub(2).and_then(|i| names.get(i))?;
    (!module.is_empty()).then(|| (*module).to_owned())
}

/// The module that a node comes from: by the exporter's note, or by a node name such as `/layer/linear1/MatMul`, in which
/// TorchScript numbers the calls (`linear1_1`).
pub(super) fn module(node: &Node) -> Option<String> {
    if let Some(noted) = noted_module(node) {
        return Some(noted);
    }
    let (path, _) = node.name.strip_prefix('/')?.rsplit_once('/')?;
    Some(path.replace('/', "."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_read_from_paths() {
        let named = |name: &str| {
            let mut node = Node::new("MatMul", &[], &[]);
            node.name = name.into();
            node
        };
        assert_eq!(module(&named("/layer/linear1/MatMul")).as_deref(), Some("layer.linear1"));
        assert_eq!(module(&named("/Add")), None);
        assert_eq!(module(&named("node_linear")), None);
    }
}
