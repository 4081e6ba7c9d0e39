//! The operators that tract has. A test of the runtime, which links tract, compares the list with tract's own table.

/// Operators of ONNX's domains and of `com.microsoft` that tract 0.23.9 reads and runs, sorted. Left out of its table:
/// RandomNormalLike and RandomUniformLike, which it reads but refuses for want of a `shape`.
#[rustfmt::skip]
pub const TRACT_OPS: &[&str] = &[
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "ArrayFeatureExtractor", "Asin", "Asinh", "Atan",
    "Atanh", "Attention", "AveragePool", "BatchNormalization", "BiasGelu", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "BlackmanWindow", "Cast", "CastLike", "CategoryMapper", "Ceil", "Celu", "Clip",
    "Compress", "Concat", "Constant", "ConstantLike", "ConstantOfShape", "Conv", "ConvInteger", "ConvTranspose",
    "Cos", "Cosh", "CumSum", "DFT", "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "DynamicQuantizeLinear",
    "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "FastGelu", "Flatten", "Floor", "GRU", "Gather",
    "GatherBlockQuantized", "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalLpPool",
    "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample", "GroupNormalization", "GroupQueryAttention",
    "HammingWindow", "HannWindow", "HardSigmoid", "HardSwish", "Hardmax", "Identity", "If", "InstanceNormalization",
    "IsInf", "IsNaN", "LRN", "LSTM", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "LinearClassifier",
    "LinearRegressor", "Log", "LogSoftmax", "LpNormalization", "MatMul", "MatMulInteger", "MatMulNBits", "Max",
    "MaxPool", "Mean", "MeanVarianceNormalization", "MelWeightMatrix", "Min", "Mish", "Mod", "Mul",
    "MultiHeadAttention", "Multinomial", "Neg", "NonMaxSuppression", "NonZero", "Normalizer", "Not", "OneHot", "Or",
    "PRelu", "Pad", "ParametricSoftplus", "Pow", "QLinearConv", "QLinearMatMul", "QuantizeLinear", "QuickGelu",
    "RMSNormalization", "RNN", "RandomNormal", "RandomUniform", "Range", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Relu", "Reshape", "Resize", "RotaryEmbedding", "Round", "Rsqrt", "STFT", "ScaledTanh",
    "Scan", "Scatter", "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign",
    "SimplifiedLayerNormalization", "Sin", "Sinh", "Size", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt",
    "Squeeze", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose",
    "TreeEnsembleClassifier", "Trilu", "Unsqueeze", "Where", "Xor",
];
