//! Operators without a rule of their own, as the primitives that they stand for: one table, a family a file.

mod attention;
mod compose;
mod fourier;
mod loss;
mod norm;
mod place;
mod recurrent;
mod region;
mod resize;
mod sample;

pub use compose::{batch_norm, compose, dropout, momentum};

use crate::{Cx, Node, Var};
use limbeck_tensor::Tensor;

/// From a node and its operands to its results; a formula that cannot handle the node gives the reason. It may make
/// more results than the node has.
type ComposeFn = for<'r, 'c> fn(&Composite<'r, 'c>) -> Result<Vec<Var<'c>>, String>;

/// The composites of ai.onnx: (operator, formula).
const TABLE: &[(&str, ComposeFn)] = &[
    ("MeanVarianceNormalization", norm::mean_variance),
    ("LpPool", norm::lp_pool),
    ("GlobalLpPool", norm::global_lp_pool),
    ("LRN", norm::local_response),
    ("Det", norm::determinant),
    ("LSTM", recurrent::unroll),
    ("GRU", recurrent::unroll),
    ("RNN", recurrent::unroll),
    ("Resize", resize::resize),
    ("GridSample", sample::grid_sample),
    ("AffineGrid", sample::affine_grid),
    ("RoiAlign", region::roi_align),
    ("MaxRoiPool", region::max_roi_pool),
    ("DeformConv", region::deform_conv),
    ("Attention", attention::attention),
    ("RotaryEmbedding", attention::rotary),
    ("DFT", fourier::dft),
    ("STFT", fourier::stft),
    ("NegativeLogLikelihoodLoss", loss::negative_log_likelihood),
    ("SoftmaxCrossEntropyLoss", loss::softmax_cross_entropy),
    ("MaxUnpool", place::max_unpool),
    ("CenterCropPad", place::center_crop_pad),
    ("ReverseSequence", place::reverse_sequence),
    ("Col2Im", place::col2im),
    ("Compress", place::compress),
    ("Unique", place::unique),
    ("TensorScatter", place::tensor_scatter),
];

const NAMES: [&str; TABLE.len()] = {
    let mut names = [""; TABLE.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = TABLE[i].0;
        i += 1;
    }
    names
};

/// Ops of ai.onnx that [`crate::compose`] always replaces: they have no rule of their own.
pub const COMPOSITES: &[&str] = &NAMES;

/// What a formula sees.
struct Composite<'r, 'c> {
    /// The construction.
    pub(crate) cx: &'c Cx,
    /// The node.
    pub(crate) node: &'r Node,
    /// Its operands.
    pub(crate) inputs: &'r [Option<Var<'c>>],
}

impl<'c> Composite<'_, 'c> {
    /// Operand `i` when present.
    fn opt(&self, i: usize) -> Option<Var<'c>> {
        self.inputs.get(i).copied().flatten()
    }

    /// Operand `i`, which the operator requires.
    fn x(&self, i: usize) -> Result<Var<'c>, String> {
        self.opt(i).ok_or_else(|| format!("input {i} is missing"))
    }

    /// Numbers of operand `i`, which must be constant; `None` when it is absent or empty.
    fn numbers(&self, i: usize) -> Result<Option<Vec<f64>>, String> {
        let Some(v) = self.opt(i) else { return Ok(None) };
        let constant = self.cx.graph().constant(v.id()).and_then(|t| t.to_f64_vec().ok());
        let values =
            constant.ok_or_else(|| format!("its input {i} must be constant; fix shapes and fold constants"))?;
        Ok(Some(values).filter(|v| !v.is_empty()))
    }

    /// Integers of operand `i`, which must be constant; `None` when it is absent or empty.
    fn ints_of(&self, i: usize) -> Result<Option<Vec<i64>>, String> {
        Ok(self.numbers(i)?.map(|values| values.into_iter().map(|v| v as i64).collect()))
    }

    /// Integer attribute, or its default.
    fn int(&self, name: &str, default: i64) -> i64 {
        self.node.int(name).unwrap_or(default)
    }

    /// Float attribute, or its default.
    fn float(&self, name: &str, default: f64) -> f64 {
        self.node.float(name).map_or(default, f64::from)
    }

    /// Text attribute, or its default.
    fn text<'s>(&'s self, name: &str, default: &'s str) -> &'s str {
        self.node.str(name).unwrap_or(default)
    }

    /// Attribute of `n` integers, `default` each when absent.
    fn list(&self, name: &str, n: usize, default: i64) -> Result<Vec<i64>, String> {
        let list = self.node.ints(name).map_or_else(|| vec![default; n], <[i64]>::to_vec);
        if list.len() != n {
            return Err(format!("attribute {name} {list:?} must have {n} entries"));
        }
        Ok(list)
    }
}

/// Constant floats of the dtype of `like`.
fn constant<'c>(like: Var<'c>, shape: &[usize], values: &[f64]) -> Var<'c> {
    match Tensor::from_f64(like.dtype(), shape, values) {
        Ok(t) => like.cx().constant(t),
        Err(e) => like.cx().fail(e.into()),
    }
}

/// `value` as an extent, at most `most`.
fn extent(value: i64, most: usize, what: &str) -> Result<usize, String> {
    usize::try_from(value).ok().filter(|&n| n <= most).ok_or_else(|| format!("{what} {value} is outside 0..={most}"))
}
