//! Channel pruning by dependency group: what must go together is found by following every operator, the weakest channels
//! of each group go, and weights, attributes and shapes follow.

mod links;
mod reshape;
mod rules;
mod slice;

use crate::ExportError;
use crate::edit::{before, fail, split_at};
use limbeck_graph::{Graph, Node, ValueId};
use limbeck_tensor::{DType, Tensor, TensorMap};
use links::{Axis, Links};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// How much to remove.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PruneTarget {
    /// Keep this share of the channels of every group: of `C` channels, `C - int(C * keep)` go.
    Channels(f64),
    /// Keep at most this share of the model's parameters: the largest share of channels that reaches it.
    Parameters(f64),
}

/// How to prune.
#[derive(Debug, Clone, PartialEq)]
pub struct PruneOptions {
    /// How much to remove, between 0 and 1.
    pub target: PruneTarget,
    /// Kept channels are rounded up to a multiple of this.
    pub round_to: usize,
    /// Share of the parameters that one call removes at most; distil between calls.
    pub max_per_round: f64,
    /// Scores of single weights (such as `|w g|` of a train step) by name, to be used instead of `w²`; weights without
    /// scores do not count. Empty: `w²`.
    pub scores: TensorMap,
}

impl Default for PruneOptions {
    fn default() -> PruneOptions {
        PruneOptions {
            target: PruneTarget::Channels(0.75),
            round_to: 8,
            max_per_round: 1.0 / 3.0,
            scores: TensorMap::new(),
        }
    }
}

/// Channels that can be removed, each with everything that depends on it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Group {
    /// The first weight of the group.
    pub name: String,
    /// Stored tensors that lose positions, as `name axis k`.
    pub tensors: Vec<String>,
    /// How many channels there are to choose from.
    pub channels: usize,
    #[serde(skip)]
    classes: Vec<u32>,
    #[serde(skip)]
    axes: Vec<Axis>,
}

/// What can be pruned in a graph, and what cannot.
#[derive(Debug, Clone)]
pub struct Groups {
    /// The groups, in the order of the graph's values.
    pub groups: Vec<Group>,
    /// Weights that must keep their channels, and operators that could not be followed, with reasons.
    pub frozen: Vec<String>,
    links: Links,
}

/// What pruning did to one group.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PrunedGroup {
    /// The first weight of the group.
    pub name: String,
    /// Stored tensors that lost positions, as `name axis k`.
    pub tensors: Vec<String>,
    /// Channels before and after.
    pub channels: (usize, usize),
    /// Elements of the group's tensors before and after; a tensor between two groups counts in both.
    pub parameters: (u64, u64),
}

/// What pruning did.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct PruneReport {
    /// Every group, untouched ones included.
    pub groups: Vec<PrunedGroup>,
    /// What had to stay, with reasons.
    pub frozen: Vec<String>,
    /// Parameters of the model before and after.
    pub parameters: (u64, u64),
    /// The share of channels that was kept before rounding.
    pub keep: f64,
    /// True when `max_per_round` stopped short of the target: distil and prune again.
    pub capped: bool,
}

/// Finds which channels of which tensors depend on each other. Types must have been inferred, constant shape arithmetic
/// folded. An operator that is not known freezes all it touches and is reported; nothing is guessed.
///
/// # Errors
/// None for a graph that verifies.
pub fn prune_groups(graph: &Graph) -> Result<Groups, ExportError> {
    graph.verify()?;
    let links = rules::link(graph);
    let mut signature: BTreeMap<u32, BTreeSet<Axis>> = BTreeMap::new();
    for (axis, roots) in links.axes() {
        for root in roots {
            signature.entry(root).or_default().insert(axis);
        }
    }
    let mut groups: BTreeMap<Vec<Axis>, Vec<u32>> = BTreeMap::new();
    let mut frozen = links.unknown.clone();
    for (root, axes) in signature {
        let Some(reason) = links.frozen(root) else {
            groups.entry(axes.into_iter().collect()).or_default().push(root);
            continue;
        };
        for (value, axis) in axes.into_iter().filter(|(v, _)| !reason.is_empty() && is_weight(graph, *v)) {
            let line = format!("{} axis {axis}: {reason}", graph.name_of(value));
            if !frozen.contains(&line) {
                frozen.push(line);
            }
        }
    }
    let mut found: Vec<Group> = vec![];
    for (axes, classes) in groups {
        let stored: Vec<&Axis> = axes.iter().filter(|(v, _)| graph.initializer(*v).is_some()).collect();
        let Some((first, _)) = stored.iter().find(|(v, _)| is_weight(graph, *v)).filter(|_| classes.len() > 1) else {
            continue;
        };
        let name = graph.name_of(*first).to_owned();
        let tensors = stored.iter().map(|(v, a)| format!("{} axis {a}", graph.name_of(*v))).collect();
        found.push(Group { name, tensors, channels: classes.len(), classes, axes });
    }
    Ok(Groups { groups: found, frozen, links })
}

fn is_stored(graph: &Graph, value: ValueId) -> bool {
    graph.initializer(value).is_some()
}

/// True for matrices and kernels.
fn is_weight(graph: &Graph, value: ValueId) -> bool {
    graph.initializer(value).is_some_and(|t| t.dtype().is_float() && t.shape().len() >= 2)
}

/// Removes the least important channels. Importance of a channel: the mean over the group's weights of `sum w²`,
/// divided by the group's mean.
///
/// # Errors
/// Options out of range; scores that name no weight, have another shape than theirs, or leave a group without any; a
/// target that cannot be reached, and a model of which nothing can be removed: the error then says what stands in the
/// way. The graph is unchanged after an error.
pub fn prune(graph: &mut Graph, options: &PruneOptions) -> Result<PruneReport, ExportError> {
    let groups = prune_groups(graph)?;
    let plan = Plan::new(graph, &groups, options)?;
    let mut pruned = graph.clone();
    slice::apply(&mut pruned, &groups.links, &plan.removed)?;
    let old = std::mem::replace(graph, pruned);
    let elements = |g: &Graph, axes: &[Axis]| {
        let values: BTreeSet<ValueId> = axes.iter().map(|(v, _)| *v).collect();
        values.into_iter().filter_map(|v| g.initializer(v)).map(|t| t.len() as u64).sum::<u64>()
    };
    let report = |group: &Group| PrunedGroup {
        name: group.name.clone(),
        tensors: group.tensors.clone(),
        channels: (group.channels, group.classes.iter().filter(|c| !plan.removed.contains(c)).count()),
        parameters: (elements(&old, &group.axes), elements(graph, &group.axes)),
    };
    Ok(PruneReport {
        groups: groups.groups.iter().map(report).collect(),
        frozen: groups.frozen.clone(),
        parameters: plan.parameters,
        keep: plan.keep,
        capped: plan.capped,
    })
}

/// The graph with the channels that [`prune`] would remove set to zero where they are read, instead of removed: it must
/// compute what the pruned graph computes.
///
/// # Errors
/// As [`prune`].
pub fn mask(graph: &Graph, options: &PruneOptions) -> Result<Graph, ExportError> {
    let groups = prune_groups(graph)?;
    let plan = Plan::new(graph, &groups, options)?;
    let mut masked = graph.clone();
    for &(node, operand, axis) in &groups.links.reduced {
        let Some(x) = graph.node(node).input(operand) else { continue };
        let (Some(kept), Some(ty)) = (groups.links.kept((x, axis), &plan.removed), graph.ty(x)) else { continue };
        let Some(dims) = &ty.dims else { continue };
        let mut shape = vec![1; dims.len()];
        shape[axis] = dims[axis].known().unwrap_or(1);
        let mut values = vec![0.0; shape[axis]];
        kept.into_iter().for_each(|i| values[i] = 1.0);
        let name = format!("{}.mask", graph.name_of(x));
        let factor = masked.add_initializer(name.clone(), Tensor::from_f64(ty.dtype, shape, &values)?);
        let product = before(&mut masked, node, Node::new("Mul", &[x, factor], &[]), &format!("{name}ed"));
        masked.node_mut(node).inputs[operand] = Some(product);
    }
    masked.verify()?;
    Ok(masked)
}

/// Which classes go.
struct Plan {
    removed: HashSet<u32>,
    parameters: (u64, u64),
    keep: f64,
    capped: bool,
}

impl Plan {
    fn new(graph: &Graph, groups: &Groups, options: &PruneOptions) -> Result<Plan, ExportError> {
        let (PruneTarget::Channels(share) | PruneTarget::Parameters(share)) = options.target;
        let max = options.max_per_round;
        let sound = share > 0.0 && share < 1.0 && max > 0.0 && max <= 1.0 && options.round_to > 0;
        if !sound {
            let got = format!("the target is {share}, max_per_round {max}, round_to {}", options.round_to);
            return fail("prune", format!("{got}; shares lie between 0 and 1, round_to is at least 1"));
        }
        if let Some(name) = options.scores.keys().find(|name| !graph.find(name).is_some_and(|v| is_stored(graph, v))) {
            return fail("prune", format!("scores are given for '{name}', which is no weight of the model"));
        }
        let ranked: Vec<Ranked> =
            groups.groups.iter().map(|g| rank(graph, groups, g, options)).collect::<Result<_, _>>()?;
        let removed = |keep: f64| -> HashSet<u32> { ranked.iter().flat_map(|r| r.weakest(keep)).collect() };
        let before = count(graph, groups, &HashSet::new());
        let after = |keep: f64| count(graph, groups, &removed(keep));

        let wanted = match options.target {
            PruneTarget::Channels(keep) => keep,
            PruneTarget::Parameters(share) if after(0.0) as f64 > share * before as f64 => {
                let least = after(0.0) as f64 / before.max(1) as f64;
                let frozen = groups.frozen.join("; ");
                return fail(
                    "prune",
                    format!("{share} of the parameters cannot be reached, {least:.4} is the least; frozen: {frozen}"),
                );
            }
            PruneTarget::Parameters(share) => last(|keep| after(keep) as f64 <= share * before as f64),
        };
        let least = before as f64 * (1.0 - max);
        // The share at which a round still removes no more than it may.
        let allowed =
            if after(wanted) as f64 >= least { wanted } else { 1.0 - last(|cut| after(1.0 - cut) as f64 >= least) };
        let removed = removed(allowed);
        let parameters = (before, count(graph, groups, &removed));
        if removed.is_empty() {
            let found =
                groups.groups.iter().map(|g| format!("{} ({} channels)", g.name, g.channels)).collect::<Vec<_>>();
            let found =
                if found.is_empty() { "no group is free".into() } else { format!("groups: {}", found.join(", ")) };
            let frozen = groups.frozen.join("; ");
            return fail(
                "prune",
                format!(
                    "nothing can be removed at {:?}, round_to {}, max_per_round {max:.2}; {found}; frozen: {frozen}",
                    options.target, options.round_to
                ),
            );
        }
        Ok(Plan { removed, parameters, keep: allowed, capped: allowed > wanted })
    }
}

/// The largest number in 0..=1 (to 2⁻²⁰) for which a condition holds that holds from 0 up to there; 0 when never.
fn last(holds: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    if holds(high) {
        return high;
    }
    for _ in 0..20 {
        let middle = (low + high) / 2.0;
        if holds(middle) { low = middle } else { high = middle }
    }
    low
}

/// Parameters of the model without these classes.
fn count(graph: &Graph, groups: &Groups, removed: &HashSet<u32>) -> u64 {
    let left = |(value, tensor): (ValueId, &Tensor)| {
        let extent =
            |(axis, &n): (usize, &usize)| groups.links.kept((value, axis), removed).map_or(n, |k| k.len()) as u64;
        tensor.shape().iter().enumerate().map(extent).product::<u64>()
    };
    graph.initializers().filter(|(_, t)| t.dtype() != DType::I64).map(left).sum()
}

/// Classes of a group, the least important first.
struct Ranked {
    classes: Vec<u32>,
    step: usize,
}

impl Ranked {
    /// What goes when this share is kept.
    fn weakest(&self, keep: f64) -> impl Iterator<Item = u32> {
        let n = self.classes.len();
        let kept = ((n as f64 * keep + 1e-9) as usize).max(1).next_multiple_of(self.step).min(n);
        self.classes[..n - kept].iter().copied()
    }
}

fn rank(graph: &Graph, groups: &Groups, group: &Group, options: &PruneOptions) -> Result<Ranked, ExportError> {
    let members: HashSet<u32> = group.classes.iter().copied().collect();
    let scales: HashSet<ValueId> =
        graph.nodes().filter(|(_, n)| n.is("", "BatchNormalization")).filter_map(|(_, n)| n.input(1)).collect();
    let axes: HashMap<Axis, Vec<u32>> = groups.links.axes().filter(|(a, _)| group.axes.contains(a)).collect();
    let mut scores: HashMap<u32, f64> = HashMap::new();
    let mut scored = false;
    let mut unit = usize::MAX;
    for (value, axis) in &group.axes {
        let Some(tensor) = graph.initializer(*value) else { continue };
        let Some(classes) = axes.get(&(*value, *axis)) else { continue };
        let own = classes.iter().filter(|c| members.contains(c)).count();
        unit = unit.min(own / group.channels);
        if !is_weight(graph, *value) && !scales.contains(value) {
            continue;
        }
        let name = graph.name_of(*value);
        let values: Vec<f64> = match options.scores.get(name) {
            Some(s) if s.shape() == tensor.shape() => s.to_f64_vec()?.into_iter().map(f64::abs).collect(),
            Some(s) => {
                return fail(
                    "prune",
                    format!("scores of '{name}' are {:?}, the weight {:?}", s.shape(), tensor.shape()),
                );
            }
            None if options.scores.is_empty() => tensor.to_f64_vec()?.into_iter().map(|v| v * v).collect(),
            None => continue,
        };
        scored = true;
        let (_, extent, inner) = split_at(tensor.shape(), *axis);
        for (i, v) in values.into_iter().enumerate() {
            let class = classes[i / inner % extent];
            if members.contains(&class) {
                *scores.entry(class).or_default() += v;
            }
        }
    }
    if !scored {
        let tensors = group.tensors.join(", ");
        return fail(
            "prune",
            format!("no weight of the group '{}' has scores; give some for one of {tensors}", group.name),
        );
    }
    // Every channel of a group lies in the same tensors: dividing by their number and by the mean keeps the order.
    let mut classes = group.classes.clone();
    let score = |c: &u32| scores.get(c).copied().unwrap_or(0.0);
    classes.sort_by(|a, b| score(a).total_cmp(&score(b)).then(a.cmp(b)));
    Ok(Ranked { classes, step: (options.round_to / unit.max(1)).max(1) })
}

/// Where a Slice begins, counted from the front.
fn clamp_start(start: i64, extent: usize) -> usize {
    let n = extent as i64;
    usize::try_from(if start < 0 { start.saturating_add(n) } else { start }.clamp(0, n)).unwrap_or(0)
}
