//! tract's optimiser with one pass replaced.
//!
//! `PushSplitDown` merges equal nodes, all pairs in one patch. In tract 0.23.9 it also merges a node into one that the
//! same patch removes: of three equal nodes whose first and last are outputs of the graph, the second is merged into the
//! first and the third into the second, so that a removed node stands for an output and the run fails. The pass here
//! leaves such a pair to the next patch.

use super::failed;
use crate::RuntimeError;
use std::collections::HashSet;
use tract_onnx::{
    prelude::{TractResult, TypedModel},
    tract_core::{
        model::{OutletId, TypedModelPatch},
        ops::dummy::Dummy,
        optim::{Optimizer, OptimizerSession, TypedPass},
    },
};

/// Name of the pass that is replaced, as tract's optimisers show it.
const REPLACED: &str = "PushSplitDown";

/// Optimises a model as `into_optimized` does.
pub(super) fn optimised(mut model: TypedModel) -> Result<TypedModel, RuntimeError> {
    let mut run = || {
        with_own_pass(Optimizer::declutter()).session().optimize(&mut model)?;
        model.optimize_with_session(&mut with_own_pass(Optimizer::codegen()).session())
    };
    run().map_err(|e| failed("optimise the model", e))?;
    match removed(&model).map_err(|e| failed("order the model's nodes", e))? {
        Some(name) => {
            let reason = format!("its optimiser removed the node `{name}`, which is still used; use another engine");
            Err(RuntimeError::Engine { engine: super::NAME, what: "optimise the model".into(), reason })
        }
        None => Ok(model),
    }
}

fn with_own_pass(mut optimizer: Optimizer) -> Optimizer {
    for pass in optimizer.passes.iter_mut().filter(|pass| format!("{pass:?}") == REPLACED) {
        *pass = Box::new(MergeEqualNodes);
    }
    optimizer
}

/// Name of a node that was removed but is needed for an output.
fn removed(model: &TypedModel) -> TractResult<Option<String>> {
    let order = model.eval_order()?;
    Ok(order.into_iter().map(|id| model.node(id)).find(|node| node.op_is::<Dummy>()).map(|node| node.name.clone()))
}

/// Merges nodes of one operator and the same inputs, except two outputs of the graph.
#[derive(Debug, Clone)]
struct MergeEqualNodes;

impl TypedPass for MergeEqualNodes {
    fn reset(&mut self) -> TractResult<()> {
        Ok(())
    }

    fn next(&mut self, _: &mut OptimizerSession, model: &TypedModel) -> TractResult<Option<TypedModelPatch>> {
        let mut patch = TypedModelPatch::default();
        let mut outputs: HashSet<usize> = model.outputs.iter().map(|outlet| outlet.node).collect();
        let mut removed = HashSet::new();
        for node in model.eval_order()? {
            for outlet in &model.node(node).outputs {
                for (i, kept) in outlet.successors.iter().enumerate() {
                    for other in &outlet.successors[i + 1..] {
                        let (kept, other) = (model.node(kept.node), model.node(other.node));
                        let both = |set: &HashSet<usize>| set.contains(&kept.id) && set.contains(&other.id);
                        let gone = removed.contains(&kept.id) || removed.contains(&other.id);
                        if kept.id == other.id || gone || both(&outputs) || !kept.same_as(other) {
                            continue;
                        }
                        for slot in 0..other.outputs.len() {
                            let tap = patch.tap_model(model, OutletId::new(kept.id, slot))?;
                            patch.shunt_outside(model, OutletId::new(other.id, slot), tap)?;
                        }
                        patch.obliterate(other.id)?;
                        removed.insert(other.id);
                        if outputs.contains(&other.id) {
                            outputs.insert(kept.id);
                        }
                    }
                }
            }
        }
        Ok(Some(patch).filter(|patch| !patch.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_onnx::tract_core::{internal::*, ops::math};

    /// `x * y` three times; the first and the last are outputs, the second is used once more.
    fn thrice() -> TypedModel {
        let mut model = TypedModel::default();
        let [x, y] = ["x", "y"].map(|name| model.add_source(name, f32::fact([4])).unwrap());
        let [a, b, c] = ["a", "b", "c"].map(|name| model.wire_node(name, math::mul(), &[x, y]).unwrap()[0]);
        let s = model.wire_node("s", math::add(), &[b, x]).unwrap()[0];
        model.select_output_outlets(&[a, s, c]).unwrap();
        model
    }

    #[test]
    fn every_optimiser_has_the_pass_once() {
        for optimizer in [Optimizer::declutter(), Optimizer::codegen()] {
            let shown: Vec<String> = with_own_pass(optimizer).passes.iter().map(|pass| format!("{pass:?}")).collect();
            assert_eq!(shown.iter().filter(|name| *name == "MergeEqualNodes").count(), 1, "{shown:?}");
            assert!(!shown.iter().any(|name| name == REPLACED));
        }
    }

    #[test]
    fn equal_nodes_are_merged_but_for_outputs() {
        // When tract's own pass leaves no removed node behind, this file has no more to do.
        assert!(removed(&thrice().into_optimized().unwrap()).unwrap().is_some());
        let model = optimised(thrice()).unwrap();
        let products = model.nodes.iter().filter(|node| node.inputs.len() == 2).count();
        assert_eq!(products, 3, "two products that are outputs and a sum: {model}");
    }
}
