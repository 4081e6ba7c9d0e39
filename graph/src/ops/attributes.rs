//! The attributes of the operators of ai.onnx, of opsets 7 to 24 together: one that is not listed would change what a node
//! means in a way that nobody here knows, so that such a node is carried but neither typed nor evaluated. Limbeck's own
//! operators are not listed: their nodes are made here.

use crate::Node;

/// Operators with attributes; others have none. Sorted by name.
#[rustfmt::skip] // one row an operator
const ATTRIBUTES: &[(&str, &[&str])] = &[
    ("AffineGrid", &["align_corners"]),
    ("ArgMax", &["axis", "keepdims", "select_last_index"]),
    ("ArgMin", &["axis", "keepdims", "select_last_index"]),
    ("Attention", &["is_causal", "kv_num_heads", "left_window_size", "q_num_heads", "qk_matmul_output_mode", "right_window_size", "scale", "softcap", "softmax_precision"]),
    ("AveragePool", &["auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"]),
    ("BatchNormalization", &["epsilon", "momentum", "spatial", "training_mode"]),
    ("Bernoulli", &["dtype", "seed"]),
    ("BitShift", &["direction"]),
    ("BlackmanWindow", &["output_datatype", "periodic"]),
    ("Cast", &["round_mode", "saturate", "to"]),
    ("CastLike", &["round_mode", "saturate"]),
    ("Celu", &["alpha"]),
    ("CenterCropPad", &["axes"]),
    ("Clip", &["max", "min"]),
    ("Col2Im", &["dilations", "pads", "strides"]),
    ("Compress", &["axis"]),
    ("Concat", &["axis"]),
    ("Constant", &["sparse_value", "value", "value_float", "value_floats", "value_int", "value_ints", "value_string", "value_strings"]),
    ("ConstantOfShape", &["value"]),
    ("Conv", &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"]),
    ("ConvInteger", &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"]),
    ("ConvTranspose", &["auto_pad", "dilations", "group", "kernel_shape", "output_padding", "output_shape", "pads", "strides"]),
    ("CumSum", &["exclusive", "reverse"]),
    ("DFT", &["axis", "inverse", "onesided"]),
    ("DeformConv", &["dilations", "group", "kernel_shape", "offset_group", "pads", "strides"]),
    ("DepthToSpace", &["blocksize", "mode"]),
    ("DequantizeLinear", &["axis", "block_size", "output_dtype"]),
    ("Dropout", &["ratio", "seed"]),
    ("Einsum", &["equation"]),
    ("Elu", &["alpha"]),
    ("EyeLike", &["dtype", "k"]),
    ("Flatten", &["axis"]),
    ("GRU", &["activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "layout", "linear_before_reset"]),
    ("Gather", &["axis"]),
    ("GatherElements", &["axis"]),
    ("GatherND", &["batch_dims"]),
    ("Gelu", &["approximate"]),
    ("Gemm", &["alpha", "beta", "transA", "transB"]),
    ("GlobalLpPool", &["p"]),
    ("GridSample", &["align_corners", "mode", "padding_mode"]),
    ("GroupNormalization", &["epsilon", "num_groups", "stash_type"]),
    ("HammingWindow", &["output_datatype", "periodic"]),
    ("HannWindow", &["output_datatype", "periodic"]),
    ("HardSigmoid", &["alpha", "beta"]),
    ("Hardmax", &["axis"]),
    ("If", &["else_branch", "then_branch"]),
    ("InstanceNormalization", &["epsilon"]),
    ("IsInf", &["detect_negative", "detect_positive"]),
    ("LRN", &["alpha", "beta", "bias", "size"]),
    ("LSTM", &["activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget", "layout"]),
    ("LayerNormalization", &["axis", "epsilon", "stash_type"]),
    ("LeakyRelu", &["alpha"]),
    ("LogSoftmax", &["axis"]),
    ("Loop", &["body"]),
    ("LpNormalization", &["axis", "p"]),
    ("LpPool", &["auto_pad", "ceil_mode", "dilations", "kernel_shape", "p", "pads", "strides"]),
    ("MaxPool", &["auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "storage_order", "strides"]),
    ("MaxRoiPool", &["pooled_shape", "spatial_scale"]),
    ("MaxUnpool", &["kernel_shape", "pads", "strides"]),
    ("MeanVarianceNormalization", &["axes"]),
    ("MelWeightMatrix", &["output_datatype"]),
    ("Mod", &["fmod"]),
    ("Multinomial", &["dtype", "sample_size", "seed"]),
    ("NegativeLogLikelihoodLoss", &["ignore_index", "reduction"]),
    ("NonMaxSuppression", &["center_point_box"]),
    ("OneHot", &["axis"]),
    ("Pad", &["mode", "pads", "value"]),
    ("QLinearConv", &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"]),
    ("QuantizeLinear", &["axis", "block_size", "output_dtype", "precision", "saturate"]),
    ("RMSNormalization", &["axis", "epsilon", "stash_type"]),
    ("RNN", &["activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "layout"]),
    ("RandomNormal", &["dtype", "mean", "scale", "seed", "shape"]),
    ("RandomNormalLike", &["dtype", "mean", "scale", "seed"]),
    ("RandomUniform", &["dtype", "high", "low", "seed", "shape"]),
    ("RandomUniformLike", &["dtype", "high", "low", "seed"]),
    ("Range", &["stash_type"]),
    ("ReduceL1", &["axes", "keepdims", "noop_with_empty_axes"]),
    ("ReduceL2", &["axes", "keepdims", "noop_with_empty_axes"]),
    ("ReduceLogSum", &["axes", "keepdims", "noop_with_empty_axes"]),
    ("ReduceLogSumExp", &["axes", "keepdims", "noop_with_empty_axes"]),
    ("ReduceMax", &["axes", "keepdims", "noop_with_empty_axes"]),
    ("ReduceMean", &["axes", "keepdims", "noop_with_empty_axes"]),
    ("ReduceMin", &["axes", "keepdims", "noop_with_empty_axes"]),
    ("ReduceProd", &["axes", "keepdims", "noop_with_empty_axes"]),
    ("ReduceSum", &["axes", "keepdims", "noop_with_empty_axes"]),
    ("ReduceSumSquare", &["axes", "keepdims", "noop_with_empty_axes"]),
    ("Reshape", &["allowzero"]),
    ("Resize", &["antialias", "axes", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "extrapolation_value", "keep_aspect_ratio_policy", "mode", "nearest_mode"]),
    ("ReverseSequence", &["batch_axis", "time_axis"]),
    ("RoiAlign", &["coordinate_transformation_mode", "mode", "output_height", "output_width", "sampling_ratio", "spatial_scale"]),
    ("RotaryEmbedding", &["interleaved", "num_heads", "rotary_embedding_dim"]),
    ("STFT", &["onesided"]),
    ("Scan", &["body", "directions", "num_scan_inputs", "scan_input_axes", "scan_input_directions", "scan_output_axes", "scan_output_directions"]),
    ("ScatterElements", &["axis", "reduction"]),
    ("ScatterND", &["reduction"]),
    ("Selu", &["alpha", "gamma"]),
    ("Shape", &["end", "start"]),
    ("Shrink", &["bias", "lambd"]),
    ("Slice", &["axes", "ends", "starts"]),
    ("Softmax", &["axis"]),
    ("SoftmaxCrossEntropyLoss", &["ignore_index", "reduction"]),
    ("SpaceToDepth", &["blocksize", "mode"]),
    ("Split", &["axis", "num_outputs", "split"]),
    ("Squeeze", &["axes"]),
    ("Swish", &["alpha"]),
    ("TensorScatter", &["axis", "mode"]),
    ("ThresholdedRelu", &["alpha"]),
    ("TopK", &["axis", "k", "largest", "sorted"]),
    ("Transpose", &["perm"]),
    ("Trilu", &["upper"]),
    ("Unique", &["axis", "sorted"]),
    ("Unsqueeze", &["axes"]),
];

/// Why a node's attributes are not understood, if so.
pub(super) fn unknown(node: &Node) -> Option<String> {
    if !node.domain_or_default().is_empty() {
        return None;
    }
    let row = ATTRIBUTES.binary_search_by(|(op, _)| (*op).cmp(&node.op));
    let known = row.map_or(&[][..], |at| ATTRIBUTES[at].1);
    let name = node.attrs.keys().find(|name| !known.contains(&name.as_str()))?;
    Some(match known {
        [] => format!("attribute '{name}' is unknown: the operator has none"),
        known => format!("attribute '{name}' is unknown: the operator has {}", known.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Graph, TensorType};
    use limbeck_tensor::DType;

    #[test]
    fn rows_are_sorted() {
        assert!(ATTRIBUTES.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn an_unknown_attribute_is_carried_but_not_guessed_at() {
        let mut g = Graph::new("g");
        let x = g.add_input("x", TensorType::new(DType::F32, &[1, 1, 4]));
        let w = g.add_input("w", TensorType::new(DType::F32, &[1, 1, 2]));
        let y = g.add_value("y", None);
        let node = Node::new("Conv", &[x, w], &[y]).with("pads", vec![0i64, 0]).with("padding_style", "wrap");
        g.add_node(Node { name: "c1".into(), ..node });
        g.outputs.push(y);
        let back = Graph::from_bytes(g.to_bytes().unwrap(), None).unwrap();
        assert_eq!(back.nodes().next().unwrap().1.str("padding_style"), Some("wrap"));
        let fed = ["x", "w"].map(|name| {
            let shape = back.shape(back.find(name).unwrap()).unwrap();
            (name.to_owned(), limbeck_tensor::Tensor::zeros(DType::F32, shape).unwrap())
        });
        for error in [back.clone().infer_types().unwrap_err(), back.evaluate(&fed.into()).unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains("'c1' (Conv)") && error.contains("'padding_style'"), "{error}");
        }
    }
}
