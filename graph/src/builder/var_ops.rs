//! The operations of [`Var`], named as in the field. Axes may be negative; scalars broadcast.

use super::Var;
use crate::{Attr, LIMBECK};
use limbeck_tensor::DType;

macro_rules! unary {
    ($($(#[$doc:meta])* $method:ident => $op:literal;)*) => {
        impl<'c> Var<'c> {$(
            $(#[$doc])*
            #[track_caller]
            pub fn $method(self) -> Var<'c> {
                self.cx().op($op, &[self], &[])
            }
        )*}
    };
}
unary! {
    /// Square root.
    sqrt => "Sqrt";
    /// Natural exponential.
    exp => "Exp";
    /// Natural logarithm.
    ln => "Log";
    /// Absolute value.
    abs => "Abs";
    /// -1, 0 or 1.
    sign => "Sign";
    /// 1/x.
    reciprocal => "Reciprocal";
    /// Sine of radians.
    sin => "Sin";
    /// Cosine of radians.
    cos => "Cos";
    /// max(x, 0).
    relu => "Relu";
    /// 1/(1+exp(-x)).
    sigmoid => "Sigmoid";
    /// Hyperbolic tangent.
    tanh => "Tanh";
    /// Error function.
    erf => "Erf";
    /// ln(1+exp(x)).
    softplus => "Softplus";
    /// The same value under a new name.
    identity => "Identity";
    /// Mean over all spatial dims of `[N, C, ...]`, kept as 1.
    global_average_pool => "GlobalAveragePool";
}

macro_rules! binary {
    ($($(#[$doc:meta])* $method:ident => $op:literal;)*) => {
        impl<'c> Var<'c> {$(
            $(#[$doc])*
            #[track_caller]
            pub fn $method(self, other: Var<'c>) -> Var<'c> {
                self.cx().op($op, &[self, other], &[])
            }
        )*}
    };
}
binary! {
    /// Matrix product with numpy's batching rules.
    matmul => "MatMul";
    /// Elementwise power.
    pow => "Pow";
    /// Elementwise larger value.
    max => "Max";
    /// Elementwise smaller value.
    min => "Min";
    /// Elementwise a > b, bool.
    greater => "Greater";
    /// Elementwise a < b, bool.
    less => "Less";
    /// Elementwise a >= b, bool.
    greater_or_equal => "GreaterOrEqual";
    /// Elementwise a == b, bool.
    equals => "Equal";
    /// Logical and of bools.
    and => "And";
    /// Logical or of bools.
    or => "Or";
}

impl<'c> Var<'c> {
    /// x².
    #[track_caller]
    pub fn square(self) -> Var<'c> {
        self * self
    }

    /// Elementwise power with a constant exponent.
    #[track_caller]
    pub fn powf(self, exponent: f64) -> Var<'c> {
        self.pow(self.cx().scalar_of(exponent, self.dtype()))
    }

    /// Elementwise larger of the value and a number.
    #[track_caller]
    pub fn at_least(self, low: f64) -> Var<'c> {
        self.max(self.cx().scalar_of(low, self.dtype()))
    }

    /// Elementwise smaller of the value and a number.
    #[track_caller]
    pub fn at_most(self, high: f64) -> Var<'c> {
        self.min(self.cx().scalar_of(high, self.dtype()))
    }

    /// Converts to another dtype (nothing happens when it is the same).
    #[track_caller]
    pub fn cast(self, dtype: DType) -> Var<'c> {
        if self.dtype() == dtype {
            return self;
        }
        self.cx().op("Cast", &[self], &[("to", i64::from(dtype.to_onnx()).into())])
    }

    /// Where this bool is true `a`, else `b`.
    #[track_caller]
    pub fn select(self, a: Var<'c>, b: Var<'c>) -> Var<'c> {
        self.cx().op("Where", &[self, a, b], &[])
    }

    /// The value without gradient.
    #[track_caller]
    pub fn stop_gradient(self) -> Var<'c> {
        self.cx().op_n(LIMBECK, "StopGradient", &[Some(self)], &[], 1)[0]
    }

    /// This value, whose gradient is `g` times the incoming one; `g` has the same shape and is itself constant.
    /// The surrogate `½‖x − sg[x−g]‖²` has exactly this gradient.
    #[track_caller]
    pub fn with_grad(self, g: Var<'c>) -> Var<'c> {
        self.cx().op_n(LIMBECK, "WithGrad", &[Some(self), Some(g)], &[], 1)[0]
    }

    #[track_caller]
    fn reduce(self, op: &str, axes: &[i64], keep: bool) -> Var<'c> {
        let keepdims = [("keepdims", Attr::Int(i64::from(keep)))];
        if axes.is_empty() {
            return self.cx().op(op, &[self], &keepdims);
        }
        self.cx().op(op, &[self, self.cx().ints(axes)], &keepdims)
    }

    /// Sum over axes, kept as 1. No axes: over all.
    #[track_caller]
    pub fn sum_keep(self, axes: &[i64]) -> Var<'c> {
        self.reduce("ReduceSum", axes, true)
    }

    /// Sum over axes, dropped. No axes: over all, giving a scalar.
    #[track_caller]
    pub fn sum(self, axes: &[i64]) -> Var<'c> {
        self.reduce("ReduceSum", axes, false)
    }

    /// Mean over axes, dropped. No axes: over all, giving a scalar.
    #[track_caller]
    pub fn mean(self, axes: &[i64]) -> Var<'c> {
        self.reduce("ReduceMean", axes, false)
    }

    /// Mean over axes, kept as 1.
    #[track_caller]
    pub fn mean_keep(self, axes: &[i64]) -> Var<'c> {
        self.reduce("ReduceMean", axes, true)
    }

    /// Maximum over axes, kept as 1; gradients split evenly over ties.
    #[track_caller]
    pub fn max_keep(self, axes: &[i64]) -> Var<'c> {
        self.reduce("ReduceMax", axes, true)
    }

    /// Euclidean norm over axes, kept as 1, with `eps` added under the root.
    #[track_caller]
    pub fn norm_keep(self, axes: &[i64], eps: f64) -> Var<'c> {
        (self.square().sum_keep(axes) + eps).sqrt()
    }

    /// Softmax along an axis.
    #[track_caller]
    pub fn softmax(self, axis: i64) -> Var<'c> {
        self.cx().op("Softmax", &[self], &[("axis", axis.into())])
    }

    /// Log-softmax along an axis.
    #[track_caller]
    pub fn log_softmax(self, axis: i64) -> Var<'c> {
        self.cx().op("LogSoftmax", &[self], &[("axis", axis.into())])
    }

    /// Index of the largest element along an axis (the first of equals), int64, axis dropped.
    #[track_caller]
    pub fn argmax(self, axis: i64) -> Var<'c> {
        self.cx().op("ArgMax", &[self], &[("axis", axis.into()), ("keepdims", 0i64.into())])
    }

    /// General matrix product `a' b' + c` with transposed operands on request.
    #[track_caller]
    pub fn gemm(self, other: Var<'c>, bias: Option<Var<'c>>, trans_a: bool, trans_b: bool) -> Var<'c> {
        let attrs = [("transA", Attr::Int(i64::from(trans_a))), ("transB", Attr::Int(i64::from(trans_b)))];
        let mut inputs = vec![self, other];
        inputs.extend(bias);
        self.cx().op("Gemm", &inputs, &attrs)
    }

    /// The same elements in another shape.
    #[track_caller]
    pub fn reshape(self, shape: &[usize]) -> Var<'c> {
        let dims: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        self.cx().op("Reshape", &[self, self.cx().ints(&dims)], &[("allowzero", 1i64.into())])
    }

    /// Everything behind the first axis in one: `[N, ...]` to `[N, rest]`.
    #[track_caller]
    pub fn flatten(self) -> Var<'c> {
        let shape = self.shape();
        let rows = shape.first().copied().unwrap_or(1);
        self.reshape(&[rows, shape.iter().skip(1).product()])
    }

    /// Axes in another order.
    #[track_caller]
    pub fn transpose(self, perm: &[usize]) -> Var<'c> {
        self.cx().op("Transpose", &[self], &[("perm", perm.to_vec().into())])
    }

    /// The last two axes swapped.
    #[track_caller]
    pub fn t(self) -> Var<'c> {
        let rank = self.rank();
        if rank < 2 {
            return self.cx().fail_with(format!("a transpose needs rank 2 or more, got {self:?}"));
        }
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 1, rank - 2);
        self.transpose(&perm)
    }

    /// New axes of extent 1 at these places of the result.
    #[track_caller]
    pub fn unsqueeze(self, axes: &[i64]) -> Var<'c> {
        self.cx().op("Unsqueeze", &[self, self.cx().ints(axes)], &[])
    }

    /// Axes of extent 1 removed.
    #[track_caller]
    pub fn squeeze(self, axes: &[i64]) -> Var<'c> {
        self.cx().op("Squeeze", &[self, self.cx().ints(axes)], &[])
    }

    /// Broadcast to a shape.
    #[track_caller]
    pub fn expand(self, shape: &[usize]) -> Var<'c> {
        let dims: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        self.cx().op("Expand", &[self, self.cx().ints(&dims)], &[])
    }

    /// Elements `start..end` along an axis.
    #[track_caller]
    pub fn slice(self, axis: i64, start: usize, end: usize) -> Var<'c> {
        let cx = self.cx();
        cx.op("Slice", &[self, cx.ints(&[start as i64]), cx.ints(&[end as i64]), cx.ints(&[axis])], &[])
    }

    /// Joined with others along an axis.
    #[track_caller]
    pub fn concat(self, others: &[Var<'c>], axis: i64) -> Var<'c> {
        let mut all = vec![self];
        all.extend_from_slice(others);
        self.cx().op("Concat", &all, &[("axis", axis.into())])
    }

    /// Rows picked along an axis by integer indices.
    #[track_caller]
    pub fn gather(self, indices: Var<'c>, axis: i64) -> Var<'c> {
        self.cx().op("Gather", &[self, indices], &[("axis", axis.into())])
    }

    /// Integer labels `[...]` to one-hot `[..., classes]` of the context's float type.
    #[track_caller]
    pub fn one_hot(self, classes: usize) -> Var<'c> {
        let cx = self.cx();
        let range: Vec<i64> = (0..classes as i64).collect();
        self.cast(DType::I64).unsqueeze(&[-1]).equals(cx.ints(&range)).cast(cx.float())
    }
}
