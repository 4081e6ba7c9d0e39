"""Writes cases_c.json: what ONNX Runtime, or else the ONNX reference evaluator, computes for single nodes.

Usage: python make_c.py (needs numpy, onnx, onnxruntime and, where neither has an operator right, torch; CI does not).
Covers the op families recurrent, resize, attention, loss, bits, spectral, sample, boxes, select, unpool, random and the
later members of others; `graph/tests/op_cases.rs` reads the result.
"""

import numpy as np
import torch
import torch.nn.functional as F

from cases import case, const, f, f32, i, model_of, by_reference, record, scalar, write


def recurrent():
    # The reference evaluator knows one direction and the default activations only.
    run = lambda op, *inputs, **attrs: case(op, *inputs, only="runtime", **attrs)
    sizes = dict(LSTM=4, GRU=3, RNN=1)

    def layer(op, steps=3, batch=2, size=2, hidden=3, two=False, bias=True, lens=None, state=False, peephole=False, **attrs):
        gates, n, outputs = sizes[op], 2 if two else 1, 3 if op == "LSTM" else 2
        near = dict(low=-0.6, high=0.6)
        inputs = [f(steps, batch, size), f(n, gates * hidden, size, **near), f(n, gates * hidden, hidden, **near)]
        inputs.append(f(n, 2 * gates * hidden, **near) if bias else None)
        inputs.append(None if lens is None else np.array(lens, dtype=np.int32))
        inputs.append(f(n, batch, hidden) if state else None)
        if op == "LSTM":
            inputs.append(f(n, batch, hidden) if state else None)
            inputs.append(f(n, 3 * hidden, **near) if peephole else None)
        while inputs[-1] is None:
            inputs.pop()
        if two:
            attrs["direction"] = "bidirectional"
        run(op, *inputs, outputs=outputs, hidden_size=hidden, **attrs)

    for op in sizes:
        layer(op)
        layer(op, bias=False, direction="reverse")
        layer(op, two=True, state=True)
        layer(op, two=True, lens=[1, 3], state=True)
        layer(op, lens=[2, 3], direction="reverse", state=True)
        layer(op, batch=1, steps=1, hidden=1)
    layer("LSTM", peephole=True, state=True)
    layer("LSTM", peephole=True, two=True, lens=[2, 1])
    layer("LSTM", input_forget=1, state=True)
    layer("LSTM", activations=["HardSigmoid", "Relu", "Softsign"], activation_alpha=[0.25], activation_beta=[0.4])
    layer("GRU", linear_before_reset=1, state=True)
    layer("GRU", linear_before_reset=1, two=True, lens=[3, 2])
    layer("GRU", activations=["Sigmoid", "ScaledTanh"], activation_alpha=[1.5], activation_beta=[0.5])
    layer("GRU", clip=0.3)
    layer("LSTM", clip=0.2, state=True)
    layer("RNN", clip=0.5, state=True)
    for name, alpha, beta in [
        ("Affine", [0.5], [0.1]),
        ("LeakyRelu", [0.2], []),
        ("ThresholdedRelu", [0.3], []),
        ("Elu", [0.7], []),
        ("Softplus", [], []),
        ("Relu", [], []),
        ("Sigmoid", [], []),
    ]:
        more = {k: v for k, v in [("activation_alpha", alpha), ("activation_beta", beta)] if v}
        layer("RNN", activations=[name], **more)


def resize():
    # The reference evaluator takes a fractional length where ONNX Runtime, as the specification's text, takes that of
    # the result; they agree where these are one.
    run = lambda x, *inputs, only=None, **attrs: case("Resize", x, *inputs, only=only, **attrs)
    scales = lambda *v: const(*v, dtype=np.float32)
    modes = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
    for coordinates in modes + ["half_pixel_symmetric"]:
        attrs = dict(coordinate_transformation_mode=coordinates)
        for mode in ["nearest", "linear", "cubic"]:
            only = "runtime" if mode == "nearest" else None
            run(f(1, 1, 4, 5), None, None, const(1, 1, 7, 3), mode=mode, only=only, **attrs)
        run(f(1, 1, 4, 4), None, scales(1, 1, 0.5, 2.0), mode="linear", **attrs)
    for rounding in ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]:
        for coordinates in ["half_pixel", "asymmetric"]:
            attrs = dict(nearest_mode=rounding, coordinate_transformation_mode=coordinates)
            run(f(1, 1, 4, 6), None, scales(1, 1, 1.75, 0.6), only="runtime", **attrs)
    run(f(1, 1, 3, 3), None, scales(1, 1, 2.0, 3.0))
    run(f(1, 1, 10), None, scales(1, 1, 0.7), only="runtime")
    run(f(2, 3), None, scales(1.5, 2.0), mode="linear")
    run(i(1, 1, 3, 3, low=0, high=256, dtype=np.uint8), None, scales(1, 1, 2, 2))
    run(f(1, 1, 5, 5), None, scales(1, 1, 0.8, 1.6), mode="cubic", cubic_coeff_a=-0.5)
    run(f(1, 1, 5, 5), None, scales(1, 1, 0.8, 1.6), mode="cubic", exclude_outside=1)
    run(f(1, 1, 6, 5), None, None, const(1, 1, 3, 7), mode="linear", antialias=1, exclude_outside=1)
    run(f(1, 1, 6, 7), None, None, const(1, 1, 3, 3), mode="linear", antialias=1, only="reference")
    run(f(1, 1, 6, 7), None, None, const(1, 1, 3, 3), mode="cubic", antialias=1, only="reference")
    run(f(1, 1, 5, 6), None, None, const(7, 3), mode="linear", axes=[2, 3])
    run(f(1, 1, 5, 6), None, None, const(7, 3), mode="linear", axes=[3, 2], only="reference")
    run(f(1, 1, 5, 6), None, scales(1.5, 0.5), mode="linear", axes=[-2, -1])
    for policy in ["not_larger", "not_smaller"]:
        attrs = dict(axes=[2, 3], keep_aspect_ratio_policy=policy)
        run(f(1, 1, 3, 5), None, None, const(7, 8), mode="linear", **attrs)
        run(f(1, 1, 3, 5), None, None, const(7, 8), **attrs)
    crop = dict(coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=9.5)
    roi = scales(0, 0, 0.2, -0.2, 1, 1, 0.7, 0.8)
    run(f(1, 1, 5, 6), roi, None, const(1, 1, 3, 4), mode="linear", **crop)
    run(f(1, 1, 5, 6), roi, None, const(1, 1, 3, 1), only="runtime", **crop)
    run(f(1, 1, 5, 6), scales(0.25, 0.5, 0.75, 0.875), None, const(3, 3), mode="cubic", axes=[2, 3], **crop, only="reference")


def attention():
    new = dict(opset=24)
    qkv = lambda b=2, h=2, g=2, s=3, t=4, d=4, v=3: (f(b, h, s, d), f(b, g, t, d), f(b, g, t, v))
    run = lambda *inputs, **attrs: case("Attention", *inputs, **new, **attrs)
    run(*qkv())
    run(*qkv(h=4, g=2), outputs=4, qk_matmul_output_mode=3)
    run(*qkv(), is_causal=1, scale=0.3)
    run(*qkv(), f(3, 4), softcap=1.5, qk_matmul_output_mode=2, outputs=4)
    run(*qkv(), f(2, 1, 3, 4), qk_matmul_output_mode=1, outputs=4)
    run(*qkv(), np.array([[True, False, True, True]] * 3))
    run(*qkv(), f(3, 2), only="reference")
    # The reference evaluator caps this output too.
    run(*qkv(), f(3, 4), softcap=0.5, outputs=4, only="runtime")
    run(*qkv(), f(3, 4), softcap=0.5, qk_matmul_output_mode=1, outputs=4)
    nothing = np.array([[True, False, True, False], [False] * 4, [True] * 4])
    run(*qkv(), nothing, qk_matmul_output_mode=3, outputs=4)
    cache = (f(2, 2, 2, 4), f(2, 2, 2, 3))
    run(*qkv(), None, *cache, outputs=3, is_causal=1)
    run(*qkv(), f(3, 6), *cache, outputs=4)
    run(*qkv(), None, None, None, np.array([2, 4]))
    run(*qkv(), None, None, None, np.array([3, 4]), is_causal=1)
    flat = (f(1, 3, 8), f(1, 4, 4), f(1, 4, 6))
    run(*flat, q_num_heads=4, kv_num_heads=2, outputs=1)
    run(*flat, np.array([[True] * 4, [True, False, False, True], [True, True, False, False]]), q_num_heads=4, kv_num_heads=2)

    turn = lambda *inputs, **attrs: case("RotaryEmbedding", *inputs, only="reference", opset=23, **attrs)
    for interleaved in [0, 1]:
        turn(f(2, 2, 3, 4), f(2, 3, 2), f(2, 3, 2), interleaved=interleaved)
        turn(f(1, 3, 8), f(5, 2), f(5, 2), np.array([[4, 0, 2]]), interleaved=interleaved, num_heads=2)
        turn(f(1, 2, 2, 6), f(5, 2), f(5, 2), np.array([[1, 3]]), interleaved=interleaved, rotary_embedding_dim=4)

    scatter = lambda *inputs, **attrs: case("TensorScatter", *inputs, only="reference", **new, **attrs)
    scatter(f(2, 2, 4, 3), f(2, 2, 2, 3))
    scatter(f(2, 2, 4, 3), f(2, 2, 2, 3), np.array([1, 2]))
    scatter(f(2, 4, 2), f(2, 3, 2), np.array([3, 0]), mode="circular")
    scatter(i(2, 2, 3, 4), i(2, 2, 3, 1), np.array([0, 3]), axis=-1)


def losses():
    for rest in [(), (3,), (2, 2)]:
        for reduction in ["none", "sum", "mean"]:
            scores, target = f(3, 4, *rest), i(3, *rest, low=0, high=4)
            case("NegativeLogLikelihoodLoss", scores, target, reduction=reduction)
            case("SoftmaxCrossEntropyLoss", scores, target, outputs=2, reduction=reduction)
            weight = f(4, low=0.1)
            case("NegativeLogLikelihoodLoss", scores, target, weight, reduction=reduction, ignore_index=1)
            case("SoftmaxCrossEntropyLoss", scores, target, weight, reduction=reduction, ignore_index=2)
    for op in ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"]:
        # The reference evaluator counts ignored targets of the number -1.
        case(op, f(3, 2), np.array([1, -1, 0]), ignore_index=-1, reduction="mean", only="runtime")
        case(op, f(2, 2), np.array([1, 0], dtype=np.int32))


def bits():
    for op in ["BitwiseAnd", "BitwiseOr", "BitwiseXor"]:
        case(op, i(2, 3, dtype=np.int32), i(3, dtype=np.int32))
        case(op, i(4, low=0, high=256, dtype=np.uint8), i(1, low=0, high=256, dtype=np.uint8))
    for dtype in [np.int64, np.int8, np.uint16]:
        case("BitwiseNot", i(3, low=0, high=100, dtype=dtype))
    for direction in ["LEFT", "RIGHT"]:
        case("BitShift", np.array([1, 200, 255], dtype=np.uint8), np.array([1, 3, 7], dtype=np.uint8), direction=direction)
        case("BitShift", np.array([[7], [2**31]], dtype=np.uint32), np.array([0, 2], dtype=np.uint32), direction=direction)


def spectral():
    # Both oracles of this version have the real inverse wrong or not at all.
    for length in [None, 4, 7]:
        more = [] if length is None else [scalar(length)]
        case("DFT", f(2, 5, 2), *more, only="reference")
        case("DFT", f(2, 5, 1), *more, only="reference", onesided=1)
        case("DFT", f(2, 5, 2), *more, only="reference", inverse=1)
    case("DFT", f(3, 2, 4, 1), None, scalar(1), only="reference")
    case("DFT", f(3, 2, 2), scalar(4), scalar(-3), only="reference", inverse=1)
    for bins, length in [(3, None), (4, 7), (4, 5)]:
        x = f(2, bins, 2)
        n = length or 2 * (bins - 1)
        y = np.fft.irfft(x[..., 0] + 1j * x[..., 1], n=n, axis=1)[..., None].astype(np.float32)
        inputs = [x] + ([scalar(length)] if length else [])
        record("DFT", "", dict(inverse=1, onesided=1), inputs, [y])
    case("STFT", f(2, 9, 1), scalar(2), None, scalar(4))
    case("STFT", f(1, 10, 1), scalar(3), f(5), scalar(5), onesided=0, only="reference")
    case("STFT", f(1, 8, 1), scalar(3), f(4))
    case("STFT", f(1, 8, 2), scalar(2), f(4), scalar(4), onesided=0, only="reference")
    for op in ["HannWindow", "HammingWindow", "BlackmanWindow"]:
        for periodic in [0, 1]:
            case(op, scalar(6), periodic=periodic)
        # ONNX Runtime computes in float32.
        case(op, scalar(5), output_datatype=11, only="reference")
    case("MelWeightMatrix", scalar(4), scalar(16), scalar(8192), scalar(0.0, np.float32), scalar(4096.0, np.float32))
    case("MelWeightMatrix", scalar(3), scalar(32), scalar(16000), scalar(200.0, np.float32), scalar(6000.0, np.float32))


def sample():
    torch_mode = dict(linear="bilinear", nearest="nearest", cubic="bicubic")
    for mode in ["linear", "nearest", "cubic"]:
        for padding in ["zeros", "border", "reflection"]:
            for align in [0, 1]:
                x, grid = f(2, 1, 3, 4), f(2, 2, 3, 2, low=-1.8, high=1.8)
                attrs = dict(mode=mode, padding_mode=padding, align_corners=align)
                tx, tg = (torch.tensor(v, dtype=torch.float64) for v in (x, grid))
                y = F.grid_sample(tx, tg, torch_mode[mode], padding, bool(align))
                record("GridSample", "", attrs, [x, grid], [y.numpy().astype(np.float32)])
    for align in [0, 1]:
        x, grid = f(1, 2, 2, 3, 2), f(1, 2, 1, 2, 3, low=-1.4, high=1.4)
        tx, tg = (torch.tensor(v, dtype=torch.float64) for v in (x, grid))
        y = F.grid_sample(tx, tg, "bilinear", "border", bool(align))
        record("GridSample", "", dict(padding_mode="border", align_corners=align), [x, grid], [y.numpy().astype(np.float32)])
        for size in [(2, 3, 2, 3), (1, 1, 2, 3, 2)]:
            theta = f(size[0], len(size) - 2, len(size) - 1)
            case("AffineGrid", theta, const(*size), align_corners=align)
    # The reference evaluator reads the offsets of several channels wrongly.
    deform = lambda *inputs, **attrs: case("DeformConv", *inputs, only="runtime", opset=22, **attrs)
    deform(f(1, 1, 4, 4), f(1, 1, 2, 2), f(1, 8, 3, 3), kernel_shape=[2, 2])
    deform(f(2, 2, 4, 5), f(4, 1, 2, 3), f(2, 24, 2, 4), f(4), f(2, 12, 2, 4), group=2, offset_group=2, strides=[2, 1], pads=[0, 1, 0, 0])
    deform(f(1, 2, 5, 5), f(2, 2, 2, 2), f(1, 8, 4, 4), pads=[1, 1, 0, 0], dilations=[2, 2])


def boxes():
    rois = f32([[0.0, 0.5, 3.0, 3.5], [1.0, 1.0, 2.0, 4.0], [-1.0, -1.0, 6.0, 5.0]])
    images = np.array([0, 1, 0])
    for mode in ["avg", "max"]:
        for coordinates in ["half_pixel", "output_half_pixel"]:
            attrs = dict(mode=mode, coordinate_transformation_mode=coordinates, output_height=2, output_width=3)
            case("RoiAlign", f(2, 2, 4, 5), rois, images, sampling_ratio=2, **attrs)
            case("RoiAlign", f(2, 1, 4, 5), rois, images, spatial_scale=0.5, **attrs)
    rois = f32([[0, 0, 0, 3, 3], [1, 1, 2, 4, 2], [0, 2.4, 1.6, 2.6, 9]])
    case("MaxRoiPool", f(2, 2, 4, 5), rois, pooled_shape=[2, 2])
    case("MaxRoiPool", f(2, 1, 4, 5), rois, pooled_shape=[3, 1], spatial_scale=0.5)
    corner = f(2, 6, 2, low=0, high=3)
    square = np.concatenate([corner, corner + f(2, 6, 2, low=0.5, high=2)], axis=2)
    scores = f(2, 2, 6, low=0, high=1)
    case("NonMaxSuppression", square, scores, scalar(3), scalar(0.3, np.float32), scalar(0.2, np.float32))
    case("NonMaxSuppression", square, scores, scalar(9), scalar(0.1, np.float32))
    case("NonMaxSuppression", square[..., [2, 3, 0, 1]], scores, scalar(9), scalar(0.5, np.float32))
    case("NonMaxSuppression", square, scores, scalar(2), scalar(0.2, np.float32), center_point_box=1)
    case("NonMaxSuppression", square, scores)


def select():
    x, keep = f(3, 4), np.array([True, False, True])
    case("Compress", x, keep, axis=0)
    case("Compress", x, keep, axis=-1)
    case("Compress", i(2, 3), np.array([False, True, True, False, True]))
    x = i(3, 4, low=0, high=4)
    for attrs in [{}, dict(sorted=0), dict(axis=0), dict(axis=-1, sorted=0)]:
        case("Unique", x, outputs=4, **attrs)
    repeated = f32([[2, 1, 2], [0, 5, 0], [2, 1, 2]])
    case("Unique", repeated, outputs=4, axis=0)
    # The reference evaluator takes rows here.
    case("Unique", repeated, outputs=4, axis=1, sorted=0, only="runtime")
    case("Unique", repeated, outputs=1)
    case("CenterCropPad", f(5, 4), const(2, 7))
    case("CenterCropPad", f(5, 4, 2), const(2, 7), axes=[1, 0])
    case("CenterCropPad", i(4, 3), const(3, 3))
    case("CenterCropPad", f(2, 5, 3), const(4), axes=[-2])


def unpool():
    # Here both oracles place indices of the pooled tensor's own extents.
    x, at = f(1, 1, 2, 2), np.array([[[[1, 3], [9, 12]]]])
    case("MaxUnpool", x, at, kernel_shape=[2, 2], strides=[2, 2])
    case("MaxUnpool", f(1, 2, 2), np.array([[[0, 3], [5, 9]]]), kernel_shape=[3], strides=[2])
    # With a stated shape ONNX Runtime counts the elements of that one, which is the inverse of MaxPool.
    case("MaxUnpool", x, at, const(1, 1, 5, 5), kernel_shape=[2, 2], strides=[2, 2], only="runtime")
    case("Col2Im", f(1, 5, 5), const(5, 5), const(1, 5))
    case("Col2Im", f(2, 8, 9), const(4, 4), const(2, 2))
    case("Col2Im", f(1, 4, 4), const(6, 6), const(2, 2), strides=[3, 3])
    case("Col2Im", f(1, 6, 12), const(4, 5), const(2, 3), pads=[1, 0, 0, 1], dilations=[2, 1], only="reference")
    case("Col2Im", f(1, 8, 8), const(3, 3, 3), const(2, 2, 2))


def later():
    # ONNX Runtime knows odd sizes, the reference evaluator sums as many channels as there are images.
    for size in [1, 3, 5]:
        case("LRN", f(1, 4, 2, 2), size=size, alpha=0.5, beta=0.6, bias=1.5, only="runtime")
    for size in [2, 4]:
        case("LRN", f(3, 3, 2, 1), size=size, alpha=0.5, only="reference")
    case("Det", f(2, 2))
    case("Det", f(2, 3, 4, 4))
    case("Det", f32([[0, 1, 2], [1, 0, 3], [4, -3, 8]]))
    case("Det", f32([[1, 2], [2, 4]]))
    for p in [1, 2, 3]:
        case("GlobalLpPool", f(2, 2, 2, 3), p=p, only="runtime")
    case("MaxPool", f(1, 2, 4, 5), outputs=2, kernel_shape=[2, 2], storage_order=1, only="runtime")
    case("MaxPool", f(1, 1, 3, 4, 2), outputs=2, kernel_shape=[2, 2, 1], strides=[1, 2, 1], storage_order=1, only="runtime")


def draws():
    """Their types alone are compared."""
    case("Bernoulli", f(2, 3, low=0, high=1), only="runtime")
    case("Bernoulli", f(2, low=0, high=1), dtype=7, seed=1.0, only="runtime")
    for op in ["RandomNormal", "RandomUniform"]:
        case(op, shape=[2, 3], only="runtime")
        case(op, shape=[4], dtype=11, only="runtime")
        case(op + "Like", f(3, 1), only="runtime")
        case(op + "Like", i(2), dtype=1, only="runtime")
    case("Multinomial", f(2, 3), sample_size=4, only="runtime")
    case("Multinomial", f(1, 3), sample_size=2, dtype=7, only="runtime")


def rounded():
    """Regions whose corners are halves, and 29 rows in 11 bins, which are cut where float32 says."""
    case("MaxRoiPool", f(1, 1, 30, 2), f32([[0, 0, 0, 1, 28]]), pooled_shape=[11, 2])
    case("MaxRoiPool", f(1, 2, 4, 5), f32([[0, 1, 3, 7, 9], [0, -1, -3, 5, 1]]), pooled_shape=[2, 3], spatial_scale=0.5)
    case("MaxRoiPool", f(1, 1, 3, 3), f32([[0, 3, -2, 1, 7]]), pooled_shape=[4, 3])


for family in [recurrent, resize, attention, losses, bits, spectral, sample, boxes, select, unpool, later, draws, rounded]:
    family()
write("cases_c.json")
