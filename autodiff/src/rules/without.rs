//! The ops of ai.onnx that have neither a rule nor a composition, each with the reason.

/// Why an operator has no gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// Its results are integers, bools, indices or text, do not depend on the values of its operands, or stay the same
    /// almost everywhere: its gradient is zero, and differentiation ends there.
    Discrete,
    /// Its results are drawn at random: differentiation ends there.
    Random,
    /// It computes with quantised integers: differentiation refuses it; dequantise first.
    Quantised,
    /// It works on sequences or optional values: differentiation refuses it.
    Container,
    /// It chooses or runs other graphs in a way that has no rule: differentiation refuses it. (Loop and Scan have one.)
    /// [`limbeck_graph::Graph::import`] resolves an If whose condition is settled, and on request computes both branches of
    /// others.
    ControlFlow,
    /// Its derivative is well defined, but not written: differentiation refuses it.
    NotYet,
}

use Without::{Container, ControlFlow, Discrete, NotYet, Quantised, Random};

impl Without {
    /// True when the gradient is zero there; the others are errors.
    pub fn ends(self) -> bool {
        matches!(self, Discrete | Random)
    }

    /// What to tell whoever differentiates through it.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Discrete | Random => "its gradient is zero",
            Quantised => "it computes with quantised integers; put DequantizeLinear before it",
            Container => "sequences and optional values carry no gradient; import resolves those it can",
            ControlFlow => {
                "gradients do not enter its graphs; import with its condition settled or both branches computed (If), \
                 or write it as a Scan (SequenceMap)"
            }
            NotYet => {
                "no rule is known; freeze what lies before it, stop the gradient there, or remove it from the path"
            }
        }
    }
}

/// The ops of ai.onnx without gradient, and why.
pub const NON_DIFFERENTIABLE: &[(&str, Without)] = &[
    ("ArgMax", Discrete),
    ("ArgMin", Discrete),
    ("And", Discrete),
    ("Or", Discrete),
    ("Xor", Discrete),
    ("Not", Discrete),
    ("BitShift", Discrete),
    ("BitwiseAnd", Discrete),
    ("BitwiseNot", Discrete),
    ("BitwiseOr", Discrete),
    ("BitwiseXor", Discrete),
    ("Equal", Discrete),
    ("Less", Discrete),
    ("LessOrEqual", Discrete),
    ("Greater", Discrete),
    ("GreaterOrEqual", Discrete),
    ("IsNaN", Discrete),
    ("IsInf", Discrete),
    ("Shape", Discrete),
    ("Size", Discrete),
    ("NonZero", Discrete),
    ("NonMaxSuppression", Discrete),
    ("Hardmax", Discrete),
    ("Sign", Discrete),
    ("Floor", Discrete),
    ("Ceil", Discrete),
    ("Round", Discrete),
    ("Constant", Discrete),
    ("ConstantOfShape", Discrete),
    ("EyeLike", Discrete),
    ("BlackmanWindow", Discrete),
    ("HammingWindow", Discrete),
    ("HannWindow", Discrete),
    ("MelWeightMatrix", Discrete),
    ("ImageDecoder", Discrete),
    ("OptionalHasElement", Discrete),
    ("SequenceLength", Discrete),
    ("RegexFullMatch", Discrete),
    ("StringConcat", Discrete),
    ("StringNormalizer", Discrete),
    ("StringSplit", Discrete),
    ("TfIdfVectorizer", Discrete),
    ("Bernoulli", Random),
    ("Multinomial", Random),
    ("RandomNormal", Random),
    ("RandomNormalLike", Random),
    ("RandomUniform", Random),
    ("RandomUniformLike", Random),
    ("DynamicQuantizeLinear", Quantised),
    ("MatMulInteger", Quantised),
    ("ConvInteger", Quantised),
    ("QLinearMatMul", Quantised),
    ("QLinearConv", Quantised),
    ("ConcatFromSequence", Container),
    ("SplitToSequence", Container),
    ("SequenceAt", Container),
    ("SequenceConstruct", Container),
    ("SequenceEmpty", Container),
    ("SequenceErase", Container),
    ("SequenceInsert", Container),
    ("Optional", Container),
    ("OptionalGetElement", Container),
    ("If", ControlFlow),
    ("SequenceMap", ControlFlow),
];
