"""Writes dims.json: the types that ONNX's shape inference gives the results of single nodes whose operands have named
dims.

Usage: python make_dims.py (needs numpy and onnx; CI does not). `graph/tests/op_dims.rs` reads the result. A dim is a
number, a name, or null where ONNX does not know it.
"""

import json
import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cases import const, encode, scalar

CASES = []


def floats(*values):
    return const(*values, dtype=np.float32)


def of(dtype, *dims):
    return (getattr(TensorProto, dtype.upper()), dims)


def name_of(dtype):
    name = helper.tensor_dtype_to_string(dtype).split(".")[1].lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def dims_of(value):
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    read = lambda d: d.dim_value if d.HasField("dim_value") else d.dim_param or None
    # ONNX invents names for extents that it does not know.
    return [None if str(d).startswith("unk__") else d for d in map(read, tensor.shape.dim)]


def case(op, *inputs, outputs=1, opset=20, **attrs):
    typed, stored, names, described = [], [], [], []
    for n, x in enumerate(inputs):
        names.append("" if x is None else f"x{n}")
        if isinstance(x, const):
            stored.append(numpy_helper.from_array(x.array, names[-1]))
            described.append(encode(x))
        elif x is None:
            described.append(None)
        else:
            dtype, dims = x if isinstance(x[0], int) and isinstance(x[-1], tuple) else (TensorProto.FLOAT, x)
            typed.append(helper.make_tensor_value_info(names[-1], dtype, list(dims)))
            described.append({"type": name_of(dtype), "dims": list(dims)})
    results = [f"y{n}" for n in range(outputs)]
    node = helper.make_node(op, names, results, **attrs)
    graph = helper.make_graph([node], op, typed, [onnx.ValueInfoProto(name=name) for name in results], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.output
    types = []
    for value in inferred:
        dtype = value.type.tensor_type.elem_type
        types.append({"type": name_of(dtype), "dims": dims_of(value)} if dtype else None)
    CASES.append({"op": op, "attrs": attrs, "inputs": described, "outputs": types})


def older():
    case("Add", ("n", "t", 4), (4,))
    case("Add", ("n", 1), (1, "t"))
    case("MatMul", ("n", "t", 8), (8, 5))
    case("Gemm", ("n", 8), (5, 8), (5,), transB=1)
    case("Conv", ("n", 3, "h", "w"), (6, 3, 3, 3), pads=[1, 1, 1, 1])
    case("Conv", ("n", 3, 8, 9), (6, 3, 3, 3), strides=[2, 2])
    case("ConvTranspose", ("n", 3, 4, 5), (3, 2, 2, 2), strides=[2, 2])
    case("MaxPool", ("n", "c", 8, 8), outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    case("AveragePool", ("n", 4, "h", 8), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    case("GlobalAveragePool", ("n", "c", "h", "w"))
    case("BatchNormalization", ("n", 4, "h", "w"), (4,), (4,), (4,), (4,))
    case("LayerNormalization", ("n", "t", 8), (8,), (8,), outputs=3)
    case("Softmax", ("n", "t"))
    case("ReduceMean", ("n", "t", 8), const(-1), keepdims=0)
    case("ReduceMean", ("n", "t", 8), const(1))
    case("ArgMax", ("n", "t", 8), axis=-1, keepdims=0)
    case("TopK", ("n", 8), const(3), outputs=2)
    case("Transpose", ("n", "t", 8), perm=[1, 0, 2])
    case("Reshape", ("n", "t", 8), const(0, 0, 2, 4))
    case("Reshape", ("n", 4, 2), const(0, -1))
    case("Flatten", ("n", 3, 4, 5))
    case("Squeeze", ("n", 1, "t"), const(1))
    case("Unsqueeze", ("n", "t"), const(0, 3))
    case("Expand", ("n", 1), const(1, 4))
    case("Concat", ("n", 3), ("n", 4), axis=1)
    case("Concat", ("n", "t"), ("n", "t"), axis=0)
    case("Split", ("n", 6), outputs=2, num_outputs=2, axis=1)
    case("Slice", ("n", 9), const(2), const(7), const(1))
    case("Pad", ("n", 3), const(0, 1, 0, 2))
    case("Gather", ("v", 16), of("int64", "n", "t"))
    case("Where", of("bool", "n", 1), ("n", "t"), (1,))
    case("OneHot", of("int64", "n"), scalar(5), floats(0, 1))
    case("Einsum", ("n", "i", 8), ("n", "j", 8), equation="bid,bjd->bij")
    case("Shape", ("n", "t"))
    case("DepthToSpace", ("n", 8, "h", "w"), blocksize=2)


def newer():
    for op, gates, outputs in [("LSTM", 4, 3), ("GRU", 3, 2), ("RNN", 1, 2)]:
        weights = ((1, gates * 5, 3), (1, gates * 5, 5))
        case(op, ("t", "n", 3), *weights, outputs=outputs, hidden_size=5)
        both = ((2, gates * 5, 3), (2, gates * 5, 5))
        case(op, ("t", "n", 3), *both, outputs=outputs, hidden_size=5, direction="bidirectional")
        case(op, ("n", "t", 3), *weights, outputs=outputs, hidden_size=5, layout=1)
    case("Resize", ("n", 3, 8, 9), None, floats(1, 1, 2, 0.5))
    case("Resize", ("n", "c", "h", "w"), None, floats(1, 1, 2, 2))
    case("Resize", ("n", 3, "h", "w"), None, None, const(1, 3, 7, 8))
    case("Resize", ("n", 3, "h", "w"), None, None, const(7, 8), axes=[2, 3])
    case("Resize", ("n", 3, 8, 9), None, None, const(4, 6), axes=[2, 3], keep_aspect_ratio_policy="not_larger")
    new = dict(opset=24, outputs=4)
    case("Attention", ("n", 2, "s", 4), ("n", 2, "t", 4), ("n", 2, "t", 6), **new)
    case("Attention", ("n", "s", 8), ("n", "t", 8), ("n", "t", 6), q_num_heads=2, kv_num_heads=2, **new)
    cached = (None, ("n", 2, "p", 4), ("n", 2, "p", 6))
    case("Attention", ("n", 2, 3, 4), ("n", 2, 3, 4), ("n", 2, 3, 6), *cached, **new)
    case("RotaryEmbedding", ("n", 2, "t", 8), ("p", 4), ("p", 4), of("int64", "n", "t"), opset=23)
    case("TensorScatter", ("n", 2, "p", 4), ("n", 2, 1, 4), opset=24)
    case("NegativeLogLikelihoodLoss", ("n", 5, "t"), of("int64", "n", "t"), reduction="none")
    case("SoftmaxCrossEntropyLoss", ("n", 5), of("int64", "n"), outputs=2)
    case("BitwiseAnd", of("int32", "n", "t"), of("int32", "t"))
    case("BitShift", of("uint8", "n"), of("uint8", "n"), direction="LEFT")
    case("DFT", ("n", "t", 1))
    case("DFT", ("n", 9, 1), onesided=1)
    case("STFT", ("n", 16, 1), scalar(4), None, scalar(8))
    case("HannWindow", scalar(6))
    case("MelWeightMatrix", scalar(8), scalar(16), scalar(8000), scalar(0, np.float32), scalar(4000, np.float32))
    case("GridSample", ("n", "c", "h", "w"), ("n", "y", "x", 2))
    case("AffineGrid", ("n", 2, 3), const(2, 1, 4, 5))
    case("DeformConv", ("n", 4, 6, 7), (8, 4, 3, 3), ("n", 18, 4, 5), opset=22)
    case("RoiAlign", ("n", "c", "h", "w"), ("r", 4), of("int64", "r"), output_height=2, output_width=3)
    case("MaxRoiPool", ("n", "c", "h", "w"), ("r", 5), pooled_shape=[2, 3])
    case("NonMaxSuppression", ("n", "b", 4), ("n", "c", "b"), scalar(3))
    case("Compress", ("n", "t"), of("bool", "k"), axis=1)
    case("Unique", ("n", "t"), outputs=4, axis=1)
    case("Unique", ("n", "t"), outputs=4)
    case("CenterCropPad", ("n", "h", "w"), const(4, 5), axes=[1, 2])
    case("MaxUnpool", ("n", "c", 3, 3), of("int64", "n", "c", 3, 3), kernel_shape=[2, 2], strides=[2, 2])
    case("Col2Im", ("n", 8, "l"), const(4, 4), const(2, 2))
    case("Col2Im", ("n", "k", 9), const(4, 4), const(2, 2))
    case("LRN", ("n", "c", "h", "w"), size=3)
    case("Det", ("n", "m", "m"))
    case("GlobalLpPool", ("n", "c", "h", "w"))
    case("Bernoulli", ("n", "t"), dtype=9)
    case("Multinomial", ("n", 5), sample_size=3)
    case("RandomNormalLike", ("n", "t"))


older()
newer()
lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in CASES)
pathlib.Path(__file__).with_name("dims.json").write_text(f"[\n{lines}\n]\n")
