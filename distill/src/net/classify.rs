//! What each stored float constant is to training (parameter, buffer or constant), and why: by its place in the graph,
//! by whether the file stores it as a weight or as a literal, and by what it holds.

use super::literals::{self, Arrival};
use limbeck_graph::{Graph, Node, NodeId, ValueId};
use limbeck_tensor::Tensor;
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};

/// What a stored constant is to training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A trained weight.
    Parameter,
    /// A running statistic: moved by training, not by gradients.
    Buffer,
    /// Stays as it is.
    Constant,
}

/// A stored float constant of a net: scalars that are literals are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stored {
    /// ONNX name.
    pub name: String,
    /// Extents.
    pub shape: Vec<usize>,
    /// What it is to training.
    pub role: Role,
    /// What decided.
    pub why: String,
}

/// Places of operators: (operator, operands).
type Places = &'static [(&'static str, &'static [usize])];

/// Operands that are weights wherever they are stored.
const WEIGHTS: Places = &[
    ("Conv", &[1, 2]),
    ("ConvTranspose", &[1, 2]),
    ("Gemm", &[1, 2]),
    ("MatMul", &[0, 1]),
    ("PRelu", &[1]),
    ("BatchNormalization", &[1, 2]),
    ("InstanceNormalization", &[1, 2]),
    ("GroupNormalization", &[1, 2]),
    ("LayerNormalization", &[1, 2]),
    ("RMSNormalization", &[1]),
    ("LSTM", &[1, 2, 3, 7]),
    ("GRU", &[1, 2, 3]),
    ("RNN", &[1, 2, 3]),
];

/// Operands that are running statistics.
const STATISTICS: Places = &[("BatchNormalization", &[3, 4])];

/// Operands that set an operator up: what is stored for them stays constant, floats too.
const SETTINGS: Places = &[
    ("QuantizeLinear", &[1, 2]),
    ("DequantizeLinear", &[1, 2]),
    ("Dropout", &[1]),
    ("OneHot", &[2]),
    ("Resize", &[1, 2]),
];

/// First states of recurrent layers: weights, unless they are zero.
const STATES: Places = &[("LSTM", &[5, 6]), ("GRU", &[5]), ("RNN", &[5])];

/// Scales and shifts of normalisations: an exporter fills them in with ones and zeros where the model has none.
const SCALES: Places = &[
    ("InstanceNormalization", &[1]),
    ("GroupNormalization", &[1]),
    ("LayerNormalization", &[1]),
    ("RMSNormalization", &[1]),
];
const SHIFTS: Places = &[("InstanceNormalization", &[2]), ("GroupNormalization", &[2]), ("LayerNormalization", &[2])];

/// Readers of each value, with the operand's place.
pub(super) type Uses = HashMap<ValueId, Vec<(NodeId, usize)>>;

/// The stored float constants of a canonical graph, in file order.
pub(super) fn classify(graph: &Graph) -> Vec<Stored> {
    let mut uses = Uses::new();
    for (id, node) in graph.nodes() {
        for (place, value) in node.inputs.iter().enumerate() {
            if let Some(value) = value {
                uses.entry(*value).or_default().push((id, place));
            }
        }
    }
    let listed = |id: ValueId, t: &Tensor| t.dtype().is_float() && !(t.shape().is_empty() && graph.is_literal(id));
    let stored = graph.initializers().filter(|(id, t)| listed(*id, t));
    let classified = stored.map(|(id, tensor)| {
        let (role, why) = role(graph, &uses, id, tensor);
        Stored { name: graph.name_of(id).into(), shape: tensor.shape().into(), role, why }
    });
    classified.collect()
}

fn role(graph: &Graph, uses: &Uses, id: ValueId, tensor: &Tensor) -> (Role, String) {
    let arrivals = literals::arrivals(graph, uses, id);
    let at = |places: Places| place(graph, &arrivals, places);
    let all = |number: f64| values_within(tensor, &[number]);
    let unnamed = graph.is_literal(id) || is_made_up(graph.name_of(id));
    let constant = |why: &str| (Role::Constant, why.to_owned());
    // Running statistics move under the name that the operator reads.
    if let Some(node) = at(STATISTICS).filter(|n| graph.node(*n).inputs.contains(&Some(id))) {
        return (Role::Buffer, format!("running statistics of {}", described(graph, node)));
    }
    if let Some(node) = at(SETTINGS) {
        return (Role::Constant, format!("sets {} up", described(graph, node)));
    }
    if tensor.shape().is_empty() {
        return constant("a single number");
    }
    if at(STATES).is_some() && all(0.0) {
        return constant("the first state of a recurrent layer, all zero");
    }
    if unnamed && (at(SCALES).is_some() && all(1.0) || at(SHIFTS).is_some() && all(0.0)) {
        return constant("a normalisation's scale or shift that does nothing and has no name of its own");
    }
    if let Some(node) = at(WEIGHTS) {
        return (Role::Parameter, format!("weight of {}", described(graph, node)));
    }
    if graph.is_literal(id) {
        return match literals::weight(graph, &arrivals) {
            Some(why) => (Role::Parameter, why),
            None => constant("a literal of the graph's own arithmetic (a Constant node), in no place of a weight"),
        };
    }
    if unnamed && tensor.len() == 1 {
        return constant("one number under a made-up name");
    }
    if is_mask(tensor) {
        return constant("a mask: it holds nothing but 0 and one other number");
    }
    if is_sinusoidal(tensor) {
        return constant("a table of sines and cosines: the squares of each row add up to half its width");
    }
    (Role::Parameter, "stored as an initializer".into())
}

/// A node that reads the value in one of these places.
fn place(graph: &Graph, arrivals: &[Arrival], places: Places) -> Option<NodeId> {
    arrivals.iter().find(|a| stands(graph.node(a.node), a.at, places)).map(|a| a.node)
}

fn stands(node: &Node, at: usize, places: Places) -> bool {
    places.iter().any(|(op, of)| node.is("", op) && of.contains(&at))
}

/// Whether a node's operand is where weights stand.
pub(super) fn is_weight_place(node: &Node, at: usize) -> bool {
    stands(node, at, WEIGHTS)
}

/// Whether a node's operand is a running statistic.
pub(super) fn is_statistic(node: &Node, at: usize) -> bool {
    stands(node, at, STATISTICS)
}

/// `Conv '/stem/Conv'`.
pub(super) fn described(graph: &Graph, node: NodeId) -> String {
    format!("{} '{}'", graph.node(node).full_op(), graph.label(node))
}

/// Names that exporters give to what has none in the model: `val_12` (torch's dynamo), `onnx::MatMul_12` (TorchScript),
/// `12` (older ones).
pub(super) fn is_made_up(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let numbered = name.rsplit_once('_').is_some_and(|(head, tail)| {
        number(tail) && (head == "val" || head.strip_prefix("onnx::").is_some_and(|op| !op.contains(['.', '/'])))
    });
    numbered || number(name)
}

/// Whether the tensor holds these numbers alone; every number looked at costs one conversion, a row at a time.
fn values_within(tensor: &Tensor, numbers: &[f64]) -> bool {
    let within = |t: &Tensor| t.to_f64_vec().is_ok_and(|values| values.iter().all(|v| numbers.contains(v)));
    match tensor.shape() {
        [] => within(tensor),
        [rows, ..] => (0..*rows).all(|row| tensor.rows(row..row + 1).is_ok_and(|t| within(&t))),
    }
}

/// Least size of the negative number with which masks are added to attention scores.
const MASKING: f64 = 1e3;

/// A table of rank 2 or more of 0 and 1, or of 0 and a large negative number or minus infinity, both of which occur.
fn is_mask(tensor: &Tensor) -> bool {
    let ([rows, _, ..], false) = (tensor.shape(), tensor.is_empty()) else { return false };
    let mut other = BTreeSet::new();
    for row in 0..*rows {
        let Some(values) = tensor.rows(row..row + 1).ok().and_then(|t| t.to_f64_vec().ok()) else { return false };
        other.extend(values.iter().filter(|v| **v != 0.0).map(|v| v.to_bits()));
        if other.len() > 1 {
            return false;
        }
    }
    let number = other.first().map(|&bits| f64::from_bits(bits));
    number.is_some_and(|n| (n == 1.0 || n <= -MASKING) && !values_within(tensor, &[n]))
}

/// A table `[.., width]` of rank 2 or more whose rows differ and consist of pairs sin a, cos a: `Σ v² = width / 2`.
fn is_sinusoidal(tensor: &Tensor) -> bool {
    let shape = tensor.shape();
    let (Some(&width), Some(&rows)) = (shape.last(), shape.first()) else { return false };
    if shape.len() < 2 || width < 4 || width % 2 == 1 || tensor.len() < 3 * width {
        return false;
    }
    let half = width as f64 / 2.0;
    let (mut first, mut differ) = (None, false);
    for row in 0..rows {
        let Some(values) = tensor.rows(row..row + 1).ok().and_then(|t| t.to_f64_vec().ok()) else { return false };
        for angles in values.chunks(width) {
            if (angles.iter().map(|v| v * v).sum::<f64>() - half).abs() > 1e-3 * half {
                return false;
            }
            let first = first.get_or_insert_with(|| angles.to_vec());
            differ |= first != angles;
        }
    }
    differ
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_tensor::DType;

    fn table(shape: [usize; 2], f: impl Fn(usize, usize) -> f64) -> Tensor {
        let values: Vec<f64> = (0..shape[0] * shape[1]).map(|i| f(i / shape[1], i % shape[1])).collect();
        Tensor::from_f64(DType::F32, shape, &values).unwrap()
    }

    #[test]
    fn tables_of_sines_and_masks_are_told_from_weights() {
        // Vaswani et al. 2017, section 3.5: interleaved; and the halves one after the other.
        let angle = |row: usize, pair: usize| row as f64 / 10000f64.powf(2.0 * pair as f64 / 8.0);
        let of = |even: bool, angle: f64| if even { angle.sin() } else { angle.cos() };
        assert!(is_sinusoidal(&table([5, 8], |r, c| of(c % 2 == 0, angle(r, c / 2)))));
        assert!(is_sinusoidal(&table([5, 8], |r, c| of(c < 4, angle(r, c % 4)))));
        let drawn = |r: usize, c: usize| (((r * 8 + c) * 7919 % 101) as f64 - 50.0) / 40.0;
        assert!(!is_sinusoidal(&table([5, 8], drawn)) && !is_mask(&table([5, 8], drawn)));
        assert!(!is_sinusoidal(&table([5, 8], |_, c| of(c % 2 == 0, angle(1, c / 2)))), "one row, repeated");
        for masked in [f64::NEG_INFINITY, -1e9, 1.0] {
            assert!(is_mask(&table([4, 4], |r, c| if c > r { masked } else { 0.0 })), "{masked}");
        }
        for (name, same) in [("zeros", 0.0), ("ones", 1.0), ("minus", -1e9)] {
            assert!(!is_mask(&table([4, 4], |_, _| same)), "{name}");
        }
        assert!(!is_mask(&table([4, 4], |r, c| if c > r { -0.5 } else { 0.0 })));
    }

    #[test]
    fn made_up_names_are_known() {
        for name in ["val_12", "onnx::MatMul_170", "482"] {
            assert!(is_made_up(name), "{name}");
        }
        for name in ["stem.weight", "val_mean", "conv_1", "layer.0", "onnx::MatMul", "w", "", "val_", "interval_3"] {
            assert!(!is_made_up(name), "{name}");
        }
    }
}
