"""Writes cases_b.json: what ONNX Runtime, or else the ONNX reference evaluator, computes for single nodes.

Usage: python make_b.py (needs numpy, onnx, onnxruntime and, for Limbeck's gradient ops, torch; CI does not). Covers the
op families conv, pool, shape, arrange, fill, index, slice and quant; `graph/tests/op_cases.rs` reads the result.
"""

import numpy as np
import torch
import torch.nn.functional as F

from cases import CASES, OWN, by_reference, case, const, f, f32, i, i8, model_of, record, scalar, u8, write


def conv():
    # The reference evaluator pads wrongly for SAME with strides and lacks 3-D dilations.
    def both(x, w, bias, **attrs):
        inputs = (f(*x), f(*w)) + ((f(w[0]),) if bias else ())
        case("Conv", *inputs, only="runtime", **attrs)
        CASES.append({**CASES[-1], "op": "FusedConv", "domain": OWN}) if bias else None

    both((2, 3, 7), (4, 3, 3), True, strides=[2], pads=[1, 2])
    both((1, 4, 6), (6, 2, 2), False, group=2, dilations=[2])
    both((2, 2, 5, 6), (3, 2, 3, 2), True)
    both((1, 4, 5, 5), (4, 1, 3, 3), True, group=4, pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    both((1, 2, 8, 7), (2, 2, 3, 3), False, strides=[3, 2], pads=[0, 1, 2, 3], dilations=[1, 2])
    for same in ["SAME_UPPER", "SAME_LOWER", "VALID"]:
        both((1, 2, 5, 6), (2, 2, 2, 3), False, auto_pad=same)
        both((1, 1, 5, 8), (2, 1, 4, 3), True, auto_pad=same, strides=[2, 3])
    both((1, 2, 4, 3, 4), (2, 1, 2, 3, 2), True, group=2, pads=[1, 1, 0, 0, 1, 1], strides=[1, 2, 1])
    case("Conv", f(0, 2, 4), f(3, 2, 2), only="runtime")
    case("Conv", f(1, 2, 4, dtype=np.float64), f(3, 2, 2, dtype=np.float64), only="reference")

    def transposed(x, w, bias, only="runtime", **attrs):
        inputs = (f(*x), f(*w)) + ((f(w[1] * attrs.get("group", 1)),) if bias else ())
        case("ConvTranspose", *inputs, only=only, **attrs)

    transposed((2, 3, 5), (3, 2, 3), True)
    transposed((1, 4, 3), (4, 3, 3), True, group=2, strides=[2], pads=[1, 0], output_padding=[1])
    transposed((1, 2, 3, 4), (2, 3, 3, 3), True, strides=[2, 3], output_padding=[1, 1], dilations=[2, 1])
    transposed((1, 2, 3, 3), (2, 1, 3, 2), False, strides=[2, 2], pads=[1, 0, 1, 1])
    for shape in [[6, 7], [7, 6], [5, 8]]:
        transposed((1, 1, 3, 3), (1, 2, 3, 4), False, strides=[2, 2], output_shape=shape)
        transposed((1, 1, 3, 3), (1, 2, 3, 4), False, strides=[2, 2], output_shape=shape, auto_pad="SAME_UPPER")
        transposed((1, 1, 3, 3), (1, 2, 3, 4), False, strides=[2, 2], output_shape=shape, auto_pad="SAME_LOWER")
    for same in ["SAME_UPPER", "SAME_LOWER", "VALID"]:
        transposed((1, 2, 3, 4), (2, 1, 3, 4), True, strides=[2, 1], auto_pad=same)
    transposed((1, 2, 2, 3, 2), (2, 2, 2, 1, 2), False, strides=[2, 1, 2], pads=[0, 0, 1, 0, 0, 0])

    gradients = [
        ((2, 3, 7), (4, 3, 3), dict(strides=[2], padding=[1])),
        ((2, 4, 6), (6, 2, 2), dict(groups=2, dilation=[2])),
        ((1, 2, 6, 5), (3, 2, 3, 2), dict(strides=[2, 3], padding=[1, 0])),
        ((2, 4, 5, 5), (4, 1, 3, 3), dict(groups=4, padding=[1, 1])),
        ((1, 2, 4, 3, 4), (2, 2, 2, 2, 3), dict(padding=[1, 0, 1], strides=[2, 1, 1])),
    ]
    for xs, ws, spec in gradients:
        rank = len(xs) - 2
        padding = spec.get("padding", [0] * rank)
        strides, dilation = spec.get("strides", [1] * rank), spec.get("dilation", [1] * rank)
        attrs = dict(pads=padding * 2, strides=strides, dilations=dilation, group=spec.get("groups", 1))
        x, w = f(*xs), f(*ws)
        tx, tw = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (x, w))
        y = [F.conv1d, F.conv2d, F.conv3d][rank - 1](tx, tw, None, strides, padding, dilation, attrs["group"])
        gy = f(*y.shape)
        gx, gw = torch.autograd.grad(y, (tx, tw), torch.tensor(gy, dtype=torch.float64))
        record("ConvGradInput", OWN, {**attrs, "input_shape": list(xs[2:])}, [w, gy], [gx.numpy().astype(np.float32)])
        record("ConvGradWeight", OWN, {**attrs, "kernel_shape": list(ws[2:])}, [x, gy], [gw.numpy().astype(np.float32)])


def pool():
    # The reference evaluator disagrees with the specification on ceil_mode, dilations and SAME.
    run = lambda op, *inputs, **attrs: case(op, *inputs, only="runtime", **attrs)
    windows = [
        ((2, 2, 7), dict(kernel_shape=[3], strides=[2])),
        ((1, 2, 6), dict(kernel_shape=[3], strides=[2], ceil_mode=1, pads=[1, 1])),
        ((1, 2, 5, 6), dict(kernel_shape=[2, 3], pads=[1, 1, 0, 1])),
        ((1, 1, 5, 6), dict(kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1)),
        ((1, 1, 6, 5), dict(kernel_shape=[3, 2], dilations=[2, 1], strides=[1, 2], pads=[2, 0, 2, 1])),
        ((1, 1, 7, 7), dict(kernel_shape=[2, 2], dilations=[2, 3], ceil_mode=1, strides=[2, 2])),
        ((1, 2, 3, 4, 4), dict(kernel_shape=[2, 2, 3], strides=[1, 2, 1], pads=[0, 1, 1, 0, 0, 1])),
        ((1, 1, 5, 7), dict(kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER")),
        ((1, 1, 5, 7), dict(kernel_shape=[2, 4], strides=[1, 2], auto_pad="SAME_LOWER")),
        ((1, 1, 5, 7), dict(kernel_shape=[2, 4], strides=[2, 2], auto_pad="VALID")),
        ((1, 1, 4, 4), dict(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1)),
        ((1, 1, 2, 2), dict(kernel_shape=[1, 1], strides=[2, 2], ceil_mode=1)),
    ]
    for shape, attrs in windows:
        run("MaxPool", f(*shape), outputs=2, **attrs)
        for include in [0, 1]:
            run("AveragePool", f(*shape), count_include_pad=include, **attrs)
        if "ceil_mode" not in attrs:
            run("LpPool", f(*shape), p=3, **attrs)
    run("MaxPool", i(1, 1, 4, 4, low=0, high=3).astype(np.float32), outputs=2, kernel_shape=[2, 2])
    run("MaxPool", u8(1, 2, 4, 4), kernel_shape=[2, 2], strides=[2, 2])
    run("MaxPool", i8(1, 2, 5), kernel_shape=[2], pads=[1, 1])
    for shape in [(2, 3, 4), (1, 2, 3, 4), (1, 2, 2, 3, 2)]:
        run("GlobalAveragePool", f(*shape))
        run("GlobalMaxPool", f(*shape))

    gradients = [
        ((2, 2, 7), dict(kernel=[3], stride=[2], padding=[1])),
        ((1, 2, 6, 5), dict(kernel=[2, 2], stride=[2, 2], padding=[0, 0], ceil_mode=True)),
        ((1, 2, 5, 5), dict(kernel=[3, 3], stride=[1, 2], padding=[1, 1])),
        ((1, 1, 4, 4, 3), dict(kernel=[2, 2, 2], stride=[2, 1, 1], padding=[1, 0, 1])),
    ]
    for shape, spec in gradients:
        rank, ceil = len(shape) - 2, spec.get("ceil_mode", False)
        kernel, stride, padding = spec["kernel"], spec["stride"], spec["padding"]
        attrs = dict(kernel_shape=kernel, strides=stride, pads=padding * 2, ceil_mode=int(ceil))
        for x, dilation in [(f(*shape), 1), (i(*shape, low=0, high=3).astype(np.float32), 1), (f(*shape), 2)]:
            tx = torch.tensor(x, dtype=torch.float64, requires_grad=True)
            y = [F.max_pool1d, F.max_pool2d, F.max_pool3d][rank - 1](tx, kernel, stride, padding, dilation, ceil)
            gy = f(*y.shape)
            (gx,) = torch.autograd.grad(y, tx, torch.tensor(gy, dtype=torch.float64))
            dilations = dict(dilations=[dilation] * rank)
            record("MaxPoolGrad", OWN, {**attrs, **dilations}, [x, gy], [gx.numpy().astype(np.float32)])
        for include in [False, True]:
            tx = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
            y = [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d][rank - 1](tx, kernel, stride, padding, ceil, include)
            gy = f(*y.shape)
            (gx,) = torch.autograd.grad(y, tx, torch.tensor(gy, dtype=torch.float64))
            more = dict(count_include_pad=int(include), input_shape=list(shape))
            record("AveragePoolGrad", OWN, {**attrs, **more}, [gy], [gx.numpy().astype(np.float32)])


def shape():
    for attrs in [{}, {"start": 1}, {"start": -2, "end": -1}, {"end": 9}, {"start": 2, "end": 1}]:
        case("Shape", f(2, 3, 4), **attrs)
    case("Size", f(2, 3, 4))
    case("Size", f())
    for new in [(4, -1), (0, 0, 2, 2), (-1,), (0, -1)]:
        case("Reshape", f(2, 3, 4), const(*new))
    case("Reshape", f(0, 4), const(4, -1))
    case("Reshape", f(1), const())
    case("Reshape", f(0, 3), const(3, 0), allowzero=1)
    case("Reshape", i(4, 3), const(2, 6))
    for axis in [None, 0, 2, 3, -1, -3]:
        case("Flatten", f(2, 3, 2), **({} if axis is None else {"axis": axis}))
    case("Transpose", f(2, 3, 4))
    case("Transpose", i(2, 3, 4), perm=[1, 2, 0])
    case("Transpose", f(2, 1, 2, 3), perm=[0, 3, 1, 2])
    case("Squeeze", f(1, 3, 1, 2))
    case("Squeeze", f(1, 3, 1, 2), const(-2))
    case("Squeeze", i(1, 3, 1), const(0, 2))
    case("Unsqueeze", f(3, 2), const(0, -1))
    case("Unsqueeze", i(3), const(1, 0))
    case("Unsqueeze", f(), const(0))
    for old, new in [((3, 1), (2, 1, 4)), ((3, 1), (1, 2)), ((), (2, 2)), ((2, 3), (1, 1)), ((1, 2), (0, 2))]:
        case("Expand", f(*old), const(*new))
    case("Expand", i(2, 1), const(1, 3))


def arrange():
    case("Concat", f(2, 3), f(2, 1), f(2, 2), axis=1)
    case("Concat", i(1, 3), i(2, 3), axis=-2)
    case("Concat", f(2), axis=0)
    case("Concat", f(0, 2), f(3, 2), axis=0)
    case("Split", f(7, 2), outputs=3, num_outputs=3)
    case("Split", f(2, 6), outputs=2, num_outputs=2, axis=-1)
    case("Split", i(6, 2), const(1, 0, 5), outputs=3)
    case("Split", f(2, 5), const(2, 3), outputs=2, axis=1)
    case("Tile", f(2, 3), const(2, 2))
    case("Tile", i(2, 1, 2), const(1, 3, 0))
    for mode in ["DCR", "CRD"]:
        case("DepthToSpace", f(2, 8, 2, 3), blocksize=2, mode=mode)
    case("DepthToSpace", f(1, 9, 1, 2), blocksize=3)
    case("SpaceToDepth", f(2, 3, 4, 6), blocksize=2)
    case("SpaceToDepth", f(1, 2, 3, 3), blocksize=3)
    for k in [None, 0, 1, -1, 5, -5]:
        for upper in [0, 1]:
            case("Trilu", f(2, 3, 4), *([] if k is None else [scalar(k)]), upper=upper)
    case("Trilu", i(3, 3))


def fill():
    case("Constant", value=f(2, 2), only="reference")
    case("Constant", value=i(3, dtype=np.int8), only="reference")
    case("Constant", value_int=7, only="reference")
    case("Constant", value_float=1.5, only="reference")
    case("Constant", value_ints=[1, -2, 3], only="reference")
    case("Constant", value_floats=[0.5, -1.5], only="reference")
    case("ConstantOfShape", const(2, 3))
    case("ConstantOfShape", const(2, 0), value=np.array([5], dtype=np.int64))
    case("ConstantOfShape", const(), value=np.array([-1.5], dtype=np.float32))
    for triple in [(1, 8, 3), (5, -4, -2), (3, 3, 1), (4, 1, 1)]:
        case("Range", *(scalar(v) for v in triple))
    for triple in [(0, 1, 0.25), (1.5, -1, -0.75)]:
        case("Range", *(scalar(v, np.float32) for v in triple))
    case("EyeLike", f(3, 4))
    case("EyeLike", i(3, 3, dtype=np.int32), k=1)
    case("EyeLike", f(4, 3), k=-2, dtype=7)


def index():
    case("Gather", f(4, 3), const([0, -1], [2, 2]))
    case("Gather", f(2, 3, 4), const(1, -3), axis=1)
    case("Gather", i(2, 3), scalar(-1, np.int32), axis=-1)
    case("GatherElements", f(3, 4), i(2, 4, low=-3, high=3))
    case("GatherElements", f(3, 4), i(3, 2, low=-4, high=4, dtype=np.int32), axis=-1)
    case("GatherND", f(2, 3, 4), const([0, 1], [-1, -1]))
    case("GatherND", f(2, 3, 4), const([[2], [0]], [[1], [1]]), batch_dims=1)
    case("GatherND", f(2, 2), const([0, 0], [1, 1]))
    case("GatherND", i(2, 3, 2), const([1], [0]), batch_dims=1)
    for reduction in ["none", "add", "mul", "max", "min"]:
        spread = dict(reduction=reduction)
        indices = const([1, 0, 2], [0, -1, 1]) if reduction == "none" else const([1, 1, 2], [0, 1, 2])
        case("ScatterElements", f(3, 3), indices, f(2, 3), **spread)
        case("ScatterElements", i(2, 5), const([1, 3], [0, -1]), i(2, 2), axis=1, **spread)
        rows = const([2], [0]) if reduction == "none" else const([2], [2])
        case("ScatterND", f(4, 2), rows, f(2, 2), **spread)
        case("ScatterND", i(3, 2, 2), const([0, 1], [-1, 0], [0, 0]), i(3, 2), **spread)
    values = f32(0.25, 3)
    case("OneHot", i(2, 3, low=-5, high=5), scalar(4), values)
    case("OneHot", np.array([0, 7, -1, 2]), scalar(3), np.array([5, -2]), axis=0)
    case("OneHot", i(2, 2, low=0, high=3), const(3), values, axis=1)
    case("OneHot", f32(1, 2, -1), scalar(3.0, np.float32), values)
    case("NonZero", i(3, 4, low=-1, high=2))
    case("NonZero", f32([[0, 1.5], [0, -1]]))
    case("NonZero", np.array([True, False, True]))
    case("ReverseSequence", f(4, 3, 2), const(1, 4, 2))
    case("ReverseSequence", f(3, 4), const(0, 3, 2), batch_axis=0, time_axis=1)
    for xs, chosen, axis in [((4, 3), [[0, -1], [2, 2]], 0), ((2, 3, 4), [1, -3, 1], 1), ((2, 3), 2, -1)]:
        x = torch.zeros(xs, dtype=torch.float64, requires_grad=True)
        indices = np.array(chosen, dtype=np.int64)
        whole = axis % len(xs)
        flat = torch.tensor(indices.ravel() % xs[whole])
        y = x.index_select(whole, flat).reshape(xs[:whole] + indices.shape + xs[whole + 1 :])
        gy = f(*y.shape)
        (gx,) = torch.autograd.grad(y, x, torch.tensor(gy, dtype=torch.float64))
        record("GatherGrad", OWN, {"axis": axis, "input_shape": list(xs)}, [indices, gy], [gx.numpy().astype(np.float32)])


def slices():
    far, near = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    case("Slice", f(4, 5), const(1, 0), const(3, far))
    case("Slice", f(4, 5), const(-3), const(-1), const(1))
    case("Slice", f(4, 5), const(-1, 4), const(near, 0), const(0, 1), const(-1, -2))
    case("Slice", i(20), const(17), const(-100), const(0), const(-5))
    case("Slice", f(3, 4), const(5), const(9), const(-1))
    case("Slice", f(3, 4), const(-100), const(100), const(-1), const(3))
    case("Slice", f(3, 4), const(2, 1), const(1, 3), const(-1, 0), const(1, 2))
    for mode in ["constant", "reflect", "edge", "wrap"]:
        case("Pad", f(2, 3), const(0, 2, 1, 1), mode=mode)
        case("Pad", i(2, 3, 3), const(1, 2), None, const(-1), mode=mode)
    case("Pad", f(2, 3), const(1, 0, 0, 2), scalar(1.5, np.float32))
    case("Pad", i(2, 2), const(1, 2, 0, 0), scalar(-3), const(1, 0))
    # The reference evaluator has no negative pads.
    case("Pad", f(3, 4), const(-1, 1, 1, -2), only="runtime")
    case("Pad", f(3, 4), const(-1, 0, 1, -1), mode="edge", only="runtime")
    case("Pad", f(4, 5), const(-1, 2, 1, -1), mode="reflect", only="runtime")


def quant():
    ties = f32([0.5, 1.5, 2.5, -0.5, -1.5, 300, -300, 0.26])
    for dtype, zero in [(np.uint8, 128), (np.int8, -3)]:
        case("QuantizeLinear", ties, f32(1.0), np.array(zero, dtype=dtype))
        case("QuantizeLinear", f(2, 3, 2, low=-9, high=9), f32(0.1, 0.25, 0.031), np.array([zero, 1, 0], dtype=dtype))
        case("QuantizeLinear", f(2, 3, low=-9, high=9), f32(0.1, 0.2), np.array([zero, 2], dtype=dtype), axis=-2)
    case("QuantizeLinear", f(5, low=-1, high=9), f32(0.05))
    case("QuantizeLinear", f(5, low=-1, high=9, dtype=np.float16), np.array(0.05, dtype=np.float16), only="runtime")
    for dtype in [np.uint8, np.int8]:
        x = (u8 if dtype == np.uint8 else i8)(2, 3, 2)
        case("DequantizeLinear", x, f32(0.1), np.array(7, dtype=dtype))
        case("DequantizeLinear", x, f32(0.1, 0.25, 0.031), np.array([7, 1, 0], dtype=dtype))
        case("DequantizeLinear", x, f32(0.1, 0.25), axis=-1)
    case("DequantizeLinear", i(4, low=-10**6, high=10**6, dtype=np.int32), f32(1e-3))
    case("DequantizeLinear", u8(4), np.array(0.1, dtype=np.float16), np.array(7, dtype=np.uint8))
    for low, high in [(-2, 2), (1, 5), (-5, -1)]:
        case("DynamicQuantizeLinear", f(2, 5, low=low, high=high), outputs=3)
    case("DynamicQuantizeLinear", f32([0, 0, 0]), outputs=3, only="runtime")

    zero8 = lambda value, dtype: np.array(value, dtype=dtype)
    # ONNX Runtime takes one zero point for the whole first factor.
    case("MatMulInteger", u8(2, 3), i8(3, 2))
    case("MatMulInteger", u8(2, 3), i8(3, 2), zero8(12, np.uint8), zero8(-3, np.int8))
    case("MatMulInteger", u8(2, 2, 3), u8(3, 2), zero8(12, np.uint8), zero8([1, 200], np.uint8))
    # One zero point a row: the reference evaluator takes it as a column, the specification as a list as well.
    rows, zero = [i8(2, 3), i8(3, 4)], zero8([[12], [-1]], np.int8)
    case("MatMulInteger", *rows, zero, zero8(0, np.int8), only="reference")
    model = model_of("MatMulInteger", {}, [*rows, zero, zero8(0, np.int8)], 1)
    record("MatMulInteger", "", {}, [*rows, zero.ravel()], by_reference(*model))
    for a, b, at, bt in [((2, 3), (3, 4), u8, u8), ((2, 2, 3), (2, 3, 2), i8, i8), ((3, 4), (4, 2), u8, i8)]:
        left, right = at(*a), bt(*b)
        out = zero8(100 if at is u8 else 3, left.dtype)
        factors = (left, f32(0.02), zero8(9, left.dtype), right, f32(0.03), zero8(5, right.dtype))
        case("QLinearMatMul", *factors, f32(0.9), out, only="runtime")
    columns = (f32(0.02, 0.05), zero8([0, 0], np.int8))
    factors = (u8(3, 4), f32(0.02), zero8(90, np.uint8), i8(4, 2), *columns)
    case("QLinearMatMul", *factors, f32(0.8), zero8(100, np.uint8), only="runtime")
    zeros = (zero8(7, np.uint8), zero8(90, np.uint8))
    case("ConvInteger", u8(1, 2, 4, 5), u8(3, 2, 2, 2), *zeros, pads=[1, 0, 1, 1], only="runtime")
    case("ConvInteger", u8(1, 2, 5), u8(2, 1, 3), group=2, strides=[2], only="runtime")
    kinds = [(u8, u8, dict(pads=[1, 1, 1, 1])), (u8, i8, dict(strides=[2, 2])), (i8, i8, dict(group=2, dilations=[1, 2]))]
    for xt, wt, attrs in kinds:
        x, w = xt(1, 4, 5, 5), wt(4, 4 // attrs.get("group", 1), 3, 2)
        zero = zero8(0, np.int8) if wt is i8 else zero8(120, np.uint8)
        tail = (f32(1.3), zero8(40, x.dtype))
        case("QLinearConv", x, f32(0.02), zero8(30, x.dtype), w, f32(0.03), zero, *tail, only="runtime", **attrs)
        bias = i(4, low=-5000, high=5000, dtype=np.int32)
        scales = (f32(0.03, 0.01, 0.05, 0.02), zero8([zero] * 4, w.dtype))
        case("QLinearConv", x, f32(0.02), zero8(30, x.dtype), w, *scales, *tail, bias, only="runtime", **attrs)


for family in [conv, pool, shape, arrange, fill, index, slices, quant]:
    family()
write("cases_b.json")
