//! The exported files and what must be said of each.

use limbeck::distill::Finding::{self, *};
use limbeck::distill::Severity::{self, Note, Warning};

/// Which of torch's losses, before and after a step of SGD, the file reproduces.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Same {
    Both,
    /// The export changed what is trained.
    Before,
    /// The export changed what is computed in training.
    Neither,
}

/// An exported file and what must be said of it.
pub(super) struct Case {
    pub(super) file: &'static str,
    /// Parameters of torch that the file does not have under their names.
    pub(super) lost: &'static [&'static str],
    /// Parameters of the file that torch does not have under these names, with their number of elements.
    pub(super) made: &'static [(&'static str, usize)],
    /// Remarks: severity, finding, parts of the names in their order.
    pub(super) remarks: &'static [(Severity, Finding, &'static [&'static str])],
    pub(super) same: Same,
}

const NORMS: &[&str] = &["BatchNormalization", "BatchNormalization"];
const FIRST: &[&str] = &["first.parametrizations.weight.original0", "first.parametrizations.weight.original1"];
pub(super) const POSITIONS: &[&str] = &["positions"];

pub(super) const CASES: &[Case] = &[
    Case {
        file: "cnn.dynamo",
        lost: &["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"],
        made: &[("stem.weight_bias", 4)],
        remarks: &[(Warning, FoldedNormalisation, &["node_Conv_27", "node_Conv_28"])],
        same: Same::Neither,
    },
    Case { file: "cnn.dynamo_raw", lost: &[], made: &[], remarks: &[(Note, Normalisation, NORMS)], same: Same::Both },
    Case { file: "cnn.script", lost: &[], made: &[], remarks: &[(Note, Normalisation, NORMS)], same: Same::Both },
    Case {
        file: "cnn.script_fold",
        lost: &["stem.weight", "norm1.weight", "norm1.bias", "conv.weight", "conv.bias", "norm2.weight", "norm2.bias"],
        made: &[("onnx::Conv_26", 72), ("onnx::Conv_27", 4), ("onnx::Conv_29", 144), ("onnx::Conv_30", 4)],
        remarks: &[
            (Warning, FoldedNormalisation, &["/stem/Conv", "/conv/Conv"]),
            (Note, Renamed, &["onnx::Conv_26", "onnx::Conv_27", "onnx::Conv_29", "onnx::Conv_30"]),
        ],
        same: Same::Neither,
    },
    Case {
        file: "cnn.script_train",
        lost: &[],
        made: &[],
        remarks: &[(Note, Dropout, &["/drop/Dropout"]), (Note, Normalisation, NORMS)],
        same: Same::Neither,
    },
    Case {
        file: "encoder.dynamo",
        // The bias of the projection is zero at first: the exporter's optimiser leaves it out.
        lost: &[
            "layer.self_attn.in_proj_weight",
            "layer.self_attn.out_proj.bias",
            "layer.linear1.weight",
            "layer.linear2.weight",
            "head.weight",
        ],
        made: &[("val_0", 192), ("val_86", 96), ("val_88", 96), ("val_92", 24)],
        remarks: &[(Note, Renamed, &["val_0", "val_86", "val_88", "val_92"])],
        same: Same::Before,
    },
    Case { file: "encoder.dynamo_raw", lost: &[], made: &[], remarks: &[], same: Same::Both },
    Case { file: "encoder.script", lost: &[], made: &[], remarks: &[], same: Same::Both },
    Case {
        file: "encoder.script_fold",
        lost: &["layer.self_attn.in_proj_weight", "layer.linear1.weight", "layer.linear2.weight", "head.weight"],
        made: &[
            ("onnx::MatMul_170", 192),
            ("onnx::MatMul_209", 96),
            ("onnx::MatMul_210", 96),
            ("onnx::MatMul_211", 24),
        ],
        remarks: &[(Note, Renamed, &["onnx::MatMul_170", "onnx::MatMul_209", "onnx::MatMul_210", "onnx::MatMul_211"])],
        same: Same::Both,
    },
    Case {
        file: "fresh.dynamo",
        lost: &["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"],
        made: &[],
        remarks: &[
            (Warning, FoldedNormalisation, &["node_Conv_36", "node_Conv_39"]),
            (Note, Separated, &["after.weight", "after.bias"]),
        ],
        same: Same::Neither,
    },
    Case { file: "fresh.dynamo_raw", lost: &[], made: &[], remarks: &[(Note, Normalisation, NORMS)], same: Same::Both },
    Case {
        file: "fresh.script",
        lost: &[],
        made: &[],
        remarks: &[
            (Note, Normalisation, NORMS),
            (
                Note,
                Separated,
                &[
                    "after.bias",
                    "after.weight",
                    "before.bias",
                    "before.weight",
                    "norm2.running_var",
                    "norm2.running_mean",
                    "norm2.bias",
                    "norm2.weight",
                    "norm1.running_var",
                    "norm1.running_mean",
                ],
            ),
        ],
        same: Same::Both,
    },
    Case {
        file: "fresh.script_fold",
        lost: &["stem.weight", "norm1.weight", "norm1.bias", "conv.weight", "norm2.weight", "norm2.bias"],
        made: &[("onnx::Conv_31", 72), ("onnx::Conv_32", 4), ("onnx::Conv_34", 144), ("onnx::Conv_35", 4)],
        remarks: &[
            (Warning, FoldedNormalisation, &["/stem/Conv", "/conv/Conv"]),
            (Note, Renamed, &["onnx::Conv_31", "onnx::Conv_34", "onnx::Conv_35", "onnx::Conv_32"]),
            (Note, Separated, &["onnx::Conv_35", "onnx::Conv_32", "after.bias", "after.weight"]),
        ],
        same: Same::Neither,
    },
    Case {
        file: "group.dynamo",
        lost: &["norm.weight", "norm.bias"],
        made: &[("val_21", 4), ("val_23", 4)],
        remarks: &[(Note, Renamed, &["val_21", "val_23"])],
        same: Same::Both,
    },
    Case { file: "group.dynamo_raw", lost: &[], made: &[], remarks: &[], same: Same::Both },
    Case { file: "group.script", lost: &[], made: &[], remarks: &[], same: Same::Both },
    Case {
        file: "group.script_fold",
        lost: &["norm.weight", "norm.bias"],
        made: &[("onnx::Mul_26", 4), ("onnx::Add_27", 4)],
        remarks: &[(Note, Renamed, &["onnx::Mul_26", "onnx::Add_27"])],
        same: Same::Both,
    },
    Case {
        file: "linear3d.dynamo",
        lost: &["first.weight", "second.weight"],
        made: &[("positions", 20), ("val_0", 30), ("val_2", 18)],
        remarks: &[(Warning, Table, POSITIONS), (Note, Renamed, &["val_0", "val_2"])],
        same: Same::Both,
    },
    Case {
        file: "linear3d.dynamo_raw",
        lost: &[],
        made: &[("positions", 20)],
        remarks: &[(Warning, Table, POSITIONS)],
        same: Same::Both,
    },
    Case {
        file: "linear3d.script",
        lost: &[],
        made: &[("positions", 20)],
        remarks: &[(Warning, Table, POSITIONS)],
        same: Same::Both,
    },
    Case {
        file: "linear3d.script_fold",
        lost: &["first.weight", "second.weight"],
        made: &[("positions", 20), ("onnx::MatMul_14", 30), ("onnx::MatMul_15", 18)],
        remarks: &[(Warning, Table, POSITIONS), (Note, Renamed, &["onnx::MatMul_14", "onnx::MatMul_15"])],
        same: Same::Both,
    },
    Case {
        file: "lstm.dynamo",
        lost: &["lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0", "head.weight"],
        made: &[("val_41", 48), ("val_42", 36), ("val_64", 24), ("val_80", 6)],
        remarks: &[(Note, Renamed, &["val_41", "val_42", "val_64", "val_80"])],
        same: Same::Both,
    },
    Case { file: "lstm.dynamo_raw", lost: &[], made: &[], remarks: &[], same: Same::Both },
    Case { file: "lstm.script", lost: &[], made: &[], remarks: &[], same: Same::Both },
    Case {
        file: "lstm.script_fold",
        lost: &["lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0", "head.weight"],
        made: &[("onnx::LSTM_117", 48), ("onnx::LSTM_118", 36), ("onnx::LSTM_119", 24), ("onnx::MatMul_122", 6)],
        remarks: &[(Note, Renamed, &["onnx::LSTM_117", "onnx::LSTM_118", "onnx::LSTM_119", "onnx::MatMul_122"])],
        same: Same::Both,
    },
    Case {
        file: "tied.dynamo",
        // The tied weight has two names, of which dynamo takes the other.
        lost: &["embedding.weight", "hidden.weight"],
        made: &[("out.weight", 42), ("val_0", 36), ("val_2", 42)],
        remarks: &[(Warning, Copied, &["val_2", "out.weight"]), (Note, Renamed, &["val_0", "val_2"])],
        same: Same::Before,
    },
    Case {
        file: "tied.dynamo_raw",
        lost: &["embedding.weight"],
        made: &[("out.weight", 42)],
        remarks: &[(Note, Tied, &["out.weight"])],
        same: Same::Both,
    },
    Case {
        file: "tied.script",
        lost: &[],
        made: &[],
        remarks: &[(Note, Tied, &["embedding.weight"])],
        same: Same::Both,
    },
    Case {
        file: "tied.script_fold",
        lost: &["hidden.weight"],
        made: &[("onnx::MatMul_11", 36), ("onnx::MatMul_12", 42)],
        remarks: &[
            (Warning, Copied, &["onnx::MatMul_12", "embedding.weight"]),
            (Note, Renamed, &["onnx::MatMul_11", "onnx::MatMul_12"]),
        ],
        same: Same::Before,
    },
    Case {
        file: "twice.dynamo",
        lost: &[],
        made: &[],
        remarks: &[(Note, Tied, &["norm.weight"]), (Note, Tied, &["norm.bias"])],
        same: Same::Both,
    },
    Case {
        file: "twice.dynamo_raw",
        lost: &[],
        made: &[],
        remarks: &[(Note, Tied, &["norm.weight"]), (Note, Tied, &["norm.bias"])],
        same: Same::Both,
    },
    Case {
        file: "twice.script",
        lost: &[],
        made: &[],
        remarks: &[(Note, Tied, &["norm.weight"]), (Note, Tied, &["norm.bias"])],
        same: Same::Both,
    },
    Case {
        file: "twice.script_fold",
        lost: &[],
        made: &[],
        remarks: &[(Note, Tied, &["norm.weight"]), (Note, Tied, &["norm.bias"])],
        same: Same::Both,
    },
    Case {
        file: "weight_norm.dynamo",
        lost: FIRST,
        made: &[("mul", 30)],
        remarks: &[(Warning, FoldedExpression, &["mul"])],
        same: Same::Before,
    },
    Case {
        file: "weight_norm.dynamo_raw",
        lost: &[],
        made: &[],
        remarks: &[(Note, Expression, FIRST)],
        same: Same::Both,
    },
    Case { file: "weight_norm.script", lost: &[], made: &[], remarks: &[(Note, Expression, FIRST)], same: Same::Both },
    Case {
        file: "weight_norm.script_fold",
        lost: &[],
        made: &[],
        remarks: &[(Note, Expression, FIRST)],
        same: Same::Both,
    },
];
