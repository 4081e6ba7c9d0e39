"""Gradients by torch in float64, for autodiff/tests.

Reads cases.json (one case a line: op, attributes, operands) and writes
  gradients.json  for each case its operands, a cotangent for each float output, the results' product with these (the
                  loss), and the gradients;
  networks.json   first and second derivatives and Jacobian-vector products of two small networks.

An operand of a case is a shape (floats in -2..2), or an object:
  {"shape": S, "range": [a, b]}     floats in a..b      {"values": V, "shape": S}  these floats
  {"const": V, "shape": S}          constant floats     {"int": V, "shape": S, "dtype": D}  constant integers
or null (absent). A shape left out is [len]. Floats are multiples of 1/1024, exact in float32. A case with "numeric"
or "second" holds there why differences do not check its first or second derivatives.
A reference below is a function of the attributes and the operands. Run: python make.py
"""

import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F

HERE = pathlib.Path(__file__).parent
DTYPES = {"bool": torch.bool, "int8": torch.int8, "uint8": torch.uint8, "int64": torch.int64}
torch.set_default_dtype(torch.float64)


def grid(rng, shape, low=-2.0, high=2.0):
    return torch.tensor(rng.integers(int(low * 1024) + 1, int(high * 1024), shape) / 1024.0)


def operand(spec, rng):
    """(tensor or None, constant)"""
    if spec is None:
        return None, True
    if isinstance(spec, list):
        return grid(rng, spec), False
    if "range" in spec:
        return grid(rng, spec["shape"], *spec["range"]), False
    for key, constant in (("values", False), ("const", True), ("int", True)):
        if key in spec:
            dtype = DTYPES[spec.get("dtype", "int64")] if key == "int" else torch.float64
            values = torch.tensor(spec[key]) if key == "int" else torch.tensor(spec[key], dtype=torch.float32)
            return values.to(dtype).reshape(spec.get("shape", [len(spec[key])])), constant
    raise ValueError(spec)


def clip(a, x, low=None, high=None):
    # Constant bounds are numbers: torch treats bounds that are tensors as operands, which share the gradient where they
    # are met.
    low, high = (b.item() if b is not None and not b.requires_grad else b for b in (low, high))
    return x.clone() if low is None and high is None else x.clamp(low, high)


def prelu(a, x, s):
    return F.prelu(x, s) if s.numel() == 1 else torch.where(x > 0, x, x * s)


def hard_sigmoid(a, x):
    if a.get("alpha") == F32(0.16666667):
        return F.hardsigmoid(x)
    # The specification's default is float32.
    return (a.get("alpha", F32(0.2)) * x + a.get("beta", 0.5)).clamp(0, 1)


def one_hot(a, index, depth, values):
    """Indices out of range are nowhere hot."""
    classes = torch.arange(depth.item())
    wrapped = torch.where(index < 0, index + depth, index)
    hot = (wrapped[..., None] == classes).movedim(-1, a.get("axis", -1))
    return torch.where(hot, values[1], values[0])


# Windows


def window(a, spatial, kernel, transposed=False):
    """strides, pads before, pads after, dilations"""
    d = len(kernel)
    strides, dilations = a.get("strides", [1] * d), a.get("dilations", [1] * d)
    pads = a.get("pads", [0] * (2 * d))
    begin, end = pads[:d], pads[d:]
    auto = a.get("auto_pad", "NOTSET")
    reach = [(k - 1) * t + 1 for k, t in zip(kernel, dilations)]
    if auto.startswith("SAME") or "output_shape" in a:
        if transposed:
            want = a.get("output_shape") or [n * s for n, s in zip(spatial, strides)]
            total = [s * (n - 1) + r - w for s, n, r, w in zip(strides, spatial, reach, want)]
        else:
            total = [max(0, ((n - 1) // s) * s + r - n) for n, s, r in zip(spatial, strides, reach)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        begin, end = (small, large) if auto == "SAME_UPPER" else (large, small)
    return strides, begin, end, dilations


def padded(x, begin, end, value=0.0):
    return F.pad(x, [p for pair in reversed(list(zip(begin, end))) for p in pair], value=value)


def conv(a, x, w, b=None):
    strides, begin, end, dilations = window(a, x.shape[2:], w.shape[2:])
    f = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.dim()]
    return f(padded(x, begin, end), w, b, stride=strides, dilation=dilations, groups=a.get("group", 1))


def conv_transpose(a, x, w, b=None):
    strides, begin, end, dilations = window(a, x.shape[2:], w.shape[2:], transposed=True)
    f = {3: F.conv_transpose1d, 4: F.conv_transpose2d}[x.dim()]
    extra = a.get("output_padding", 0)
    y = f(x, w, b, stride=strides, dilation=dilations, groups=a.get("group", 1), output_padding=extra)
    for i, (p, q) in enumerate(zip(begin, end)):
        y = y.narrow(i + 2, p, y.shape[i + 2] - p - q)
    return y


def max_pool(a, x):
    strides, begin, end, dilations = window(a, x.shape[2:], a["kernel_shape"])
    f = {3: F.max_pool1d, 4: F.max_pool2d}[x.dim()]
    x = padded(x, begin, end, float("-inf"))
    return f(x, a["kernel_shape"], strides, dilation=dilations, ceil_mode=bool(a.get("ceil_mode", 0)))


def average_pool(a, x):
    strides, begin, end, _ = window(a, x.shape[2:], a["kernel_shape"])
    f = {3: F.avg_pool1d, 4: F.avg_pool2d}[x.dim()]
    mean = lambda v: f(v, a["kernel_shape"], strides, ceil_mode=bool(a.get("ceil_mode", 0)))
    counted = padded(torch.ones_like(x), begin, end, float(a.get("count_include_pad", 0)))
    return mean(padded(x, begin, end)) / mean(counted)


def gradient(f, x, gy):
    """The gradient of f at x, itself differentiable."""
    x = x if x.requires_grad else x.clone().requires_grad_()
    return torch.autograd.grad(f(x), x, gy, create_graph=True)[0]


def conv_grad_input(a, w, gy):
    x = torch.zeros(gy.shape[0], w.shape[1] * a.get("group", 1), *a["input_shape"])
    return gradient(lambda x: conv(a, x, w), x, gy)


def conv_grad_weight(a, x, gy):
    w = torch.zeros(gy.shape[1], x.shape[1] // a.get("group", 1), *a["kernel_shape"])
    return gradient(lambda w: conv(a, x, w), w, gy)


# Elements


def along(x, axis, index):
    return x.index_select(axis, torch.tensor(list(index), dtype=torch.int64))


def slice_(a, x, starts, ends, axes=None, steps=None):
    n = len(starts)
    axes = range(n) if axes is None else axes.tolist()
    steps = [1] * n if steps is None else steps.tolist()
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes, steps):
        x = along(x, axis % x.dim(), range(x.shape[axis])[slice(start, end, step)])
    return x


def pad(a, x, pads, value=None, axes=None):
    axes = list(range(x.dim())) if axes is None else [i % x.dim() for i in axes.tolist()]
    mode = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}.get(a.get("mode"))
    for i, axis in enumerate(axes):
        before, after = pads[i].item(), pads[len(axes) + i].item()
        if mode:
            # Negative amounts cut first.
            kept = np.arange(x.shape[axis])[max(-before, 0) : x.shape[axis] - max(-after, 0)]
            x = along(x, axis, np.pad(kept, (max(before, 0), max(after, 0)), mode))
            continue
        x = x.narrow(axis, max(-before, 0), x.shape[axis] - max(-before, 0) - max(-after, 0))
        fill = torch.zeros(()) if value is None else value
        shape = lambda n: [n if j == axis else d for j, d in enumerate(x.shape)]
        x = torch.cat([fill.expand(shape(max(before, 0))), x, fill.expand(shape(max(after, 0)))], axis)
    return x


def gather(a, x, index):
    axis = a.get("axis", 0)
    taken = along(x, axis, index.flatten() % x.shape[axis])
    return taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def gather_grad(a, index, gy):
    return gradient(lambda x: gather(a, x, index), torch.zeros(a["input_shape"]), gy)


def gather_nd(a, x, index):
    if a.get("batch_dims", 0) == 0:
        return x[tuple(index.unbind(-1))]
    inner = {"batch_dims": a["batch_dims"] - 1}
    return torch.stack([gather_nd(inner, *pair) for pair in zip(x, index)])


def scatter_elements(a, x, index, updates):
    f = x.scatter_add if a.get("reduction") == "add" else x.scatter
    return f(a.get("axis", 0), index, updates)


def scatter_nd(a, x, index, updates):
    return x.index_put(tuple(index.unbind(-1)), updates, accumulate=a.get("reduction") == "add")


def depth_to_space(a, x):
    n, c, h, w = x.shape
    b = a["blocksize"]
    if a.get("mode") == "CRD":
        return F.pixel_shuffle(x, b)
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def space_to_depth(a, x):
    n, c, h, w = x.shape
    b = a["blocksize"]
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


# Reductions and norms


def reduce(f):
    def reference(a, x, axes=None):
        noop = a.get("noop_with_empty_axes", 0) and axes is None
        dims = [] if noop else (range(x.dim()) if axes is None else axes.tolist())
        keep = bool(a.get("keepdims", 1))
        return x if noop else f(x, tuple(i % x.dim() for i in dims), keep)

    return reference


def prod(x, dims, keep):
    rest = [i for i in range(x.dim()) if i not in dims]
    y = x.permute(*rest, *dims).flatten(len(rest)).prod(-1)
    return y.reshape([1 if i in dims else n for i, n in enumerate(x.shape)]) if keep else y


def cumsum(a, x, axis):
    axis = axis.item() % x.dim()
    turn = (lambda v: v.flip(axis)) if a.get("reverse") else (lambda v: v)
    y = turn(x).cumsum(axis)
    return turn(y - turn(x) if a.get("exclusive") else y)


def layer_norm(a, x, scale, bias=None):
    dims = tuple(range(a.get("axis", -1) % x.dim(), x.dim()))
    y = F.layer_norm(x, [x.shape[i] for i in dims], None, None, a.get("epsilon", 1e-5)) * scale
    return y if bias is None else y + bias


def rms_norm(a, x, scale):
    dims = tuple(range(a.get("axis", -1) % x.dim(), x.dim()))
    return F.rms_norm(x, [x.shape[i] for i in dims], None, a.get("epsilon", 1e-5)) * scale


def batch_norm(a, x, *channels):
    scale, bias, mean, variance = (broadcast(v, x, 1) for v in channels)
    return (x - mean) / (variance + a.get("epsilon", 1e-5)).sqrt() * scale + bias


def group_norm(a, x, scale, bias):
    return F.group_norm(x, a["num_groups"], scale, bias, a.get("epsilon", 1e-5))


def mean_variance(a, x):
    axes = a.get("axes", [0, 2, 3])
    return (x - x.mean(axes, keepdim=True)) / (x.std(axes, correction=0, keepdim=True) + 1e-9)


def lp_pool(a, x):
    strides, begin, end, _ = window(a, x.shape[2:], a["kernel_shape"])
    p = a.get("p", 2)
    f = {3: F.lp_pool1d, 4: F.lp_pool2d}[x.dim()]
    kernel = a["kernel_shape"] if x.dim() > 3 else a["kernel_shape"][0]
    return f(padded(x.abs(), begin, end), p, kernel, strides if x.dim() > 3 else strides[0])


def reverse_sequence(a, x, lengths):
    batch, time = a.get("batch_axis", 1), a.get("time_axis", 0)
    turn = lambda v, n: torch.cat([v[:n].flip(0), v[n:]])
    rows = [turn(v, n) for v, n in zip(x.movedim((batch, time), (0, 1)), lengths.tolist())]
    return torch.stack(rows).movedim((0, 1), (batch, time))


def resize(a, x, roi=None, scales=None, sizes=None):
    """torch's interpolate: its `nearest-exact` takes the pixel whose area holds the place."""
    sizes = [int(n * s) for n, s in zip(x.shape, scales.tolist())] if sizes is None else sizes.tolist()
    sizes = sizes[-(x.dim() - 2) :]
    if a.get("mode", "nearest") == "nearest":
        asymmetric = a.get("coordinate_transformation_mode") == "asymmetric"
        return F.interpolate(x, sizes, mode="nearest" if asymmetric else "nearest-exact")
    corners = a.get("coordinate_transformation_mode") == "align_corners"
    return F.interpolate(x, sizes, mode="linear" if x.dim() == 3 else "bilinear", align_corners=corners)


def recurrent(kind):
    """torch's own layers; their gates stand in another order, and they know no peepholes and other resets."""
    order = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}[kind]

    def torch_gates(v):
        parts = v.chunk(len(order))
        return torch.cat([parts[i] for i in order])

    def by_steps(a, x, w, r, b, h, c=None, p=None):
        """What torch's layers lack, step by step for one forward direction."""
        gates = lambda v: v.chunk(len(order), -1)
        wb, rb = b.chunk(2)
        ys = []
        for xt in x:
            u = gates(xt @ w.T + wb)
            v = gates(h @ r.T + rb)
            if kind == "GRU":
                z, reset = (u[0] + v[0]).sigmoid(), (u[1] + v[1]).sigmoid()
                h = (1 - z) * (u[2] + (reset * h) @ gates(r.T)[2] + gates(rb)[2]).tanh() + z * h
            else:
                pi, po, _ = p.chunk(3)
                i = (u[0] + v[0] + pi * c).sigmoid()
                c = (1 - i) * c + i * (u[3] + v[3]).tanh()
                h = (u[1] + v[1] + po * c).sigmoid() * c.tanh()
            ys.append(h)
        return torch.stack(ys)[:, None], h[None], *([] if c is None else [c[None]])

    def reference(a, x, w, r, b=None, lengths=None, h=None, c=None, p=None):
        first = lambda v: v.transpose(0, 1) if a.get("layout") else v
        hidden, directions = a["hidden_size"], w.shape[0]
        x, batch = first(x), first(x).shape[1]
        h = torch.zeros(directions, batch, hidden) if h is None else first(h)
        c = torch.zeros(directions, batch, hidden) if c is None else first(c)
        b = torch.zeros(directions, 2 * w.shape[1]) if b is None else b
        if p is not None or (kind == "GRU" and not a.get("linear_before_reset")):
            return by_steps(a, x, w[0], r[0], b[0], h[0], *([c[0], p[0]] if kind == "LSTM" else []))
        reverse = a.get("direction") == "reverse"
        x = x.flip(0) if reverse else x
        layer = getattr(torch.nn, kind)(x.shape[2], hidden, bidirectional=directions == 2)
        weights = {}
        for d, suffix in zip(range(directions), ["", "_reverse"]):
            wb, rb = b[d].chunk(2)
            named = {"weight_ih": w[d], "weight_hh": r[d], "bias_ih": wb, "bias_hh": rb}
            weights.update({f"{name}_l0{suffix}": torch_gates(v) for name, v in named.items()})
        given = x
        if lengths is not None:
            given = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        state = (h, c) if kind == "LSTM" else h
        y, last = torch.func.functional_call(layer, weights, (given, state))
        if lengths is not None:
            y = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=x.shape[0])[0]
        y = y.reshape(x.shape[0], batch, directions, hidden).transpose(1, 2)
        y = y.flip(0) if reverse else y
        y = y.permute(2, 0, 1, 3) if a.get("layout") else y
        return y, *map(first, last if kind == "LSTM" else [last])

    return reference


# Quantisation


def broadcast(v, x, axis):
    return v.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())]) if v.numel() > 1 else v


def fake_quantize(a, x, scale, zero_point=None):
    """Straight-through round and clamp: QuantizeLinear followed by DequantizeLinear."""
    dtype = torch.uint8 if zero_point is None else zero_point.dtype
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    axis = a.get("axis", 1)
    zero = torch.zeros(()) if zero_point is None else broadcast(zero_point.double(), x, axis)
    s = broadcast(scale, x, axis)
    grid = x / s + zero
    y = ((grid + (torch.round(x / s) + zero - grid).detach()).clamp(low, high) - zero) * s
    if scale.numel() == 1:
        check = torch.fake_quantize_per_tensor_affine(x.float(), scale.item(), int(zero), low, high)
    else:
        zeros = torch.zeros(scale.numel(), dtype=torch.int32)
        check = torch.fake_quantize_per_channel_affine(x.float(), scale.detach().float(), zeros, axis, low, high)
    torch.testing.assert_close(y.float(), check)
    return y


def dequantize(a, q, scale, zero_point=None):
    zero = 0 if zero_point is None else broadcast(zero_point.double(), q, a.get("axis", 1))
    return (q.double() - zero) * broadcast(scale, q, a.get("axis", 1))


# The table


F32 = lambda v: float(np.float32(v))
unary = lambda f: lambda a, x: f(x)
fold = lambda f: lambda a, first, *rest: first if not rest else fold(f)(a, f(first, rest[0]), *rest[1:])
swap = lambda v, on: v.mT if on else v

REFERENCES = {
    "Add": lambda a, x, y: x + y,
    "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y,
    "Div": lambda a, x, y: x / y,
    "Pow": lambda a, x, y: x**y,
    "Mod": lambda a, x, y: torch.fmod(x, y),
    "Neg": unary(torch.neg),
    "Abs": unary(torch.abs),
    "Reciprocal": unary(torch.reciprocal),
    "Log": unary(torch.log),
    **{
        name: unary(getattr(torch, name.lower()))
        for name in "Sqrt Exp Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh Erf Sigmoid Tanh".split()
    },
    "Max": fold(torch.maximum),
    "Min": fold(torch.minimum),
    "Sum": lambda a, *x: sum(x),
    "Mean": lambda a, *x: sum(x) / len(x),
    "Identity": lambda a, x: x.clone(),
    "Cast": lambda a, x: x.clone(),
    "CastLike": lambda a, x, _: x.clone(),
    "Where": lambda a, c, x, y: torch.where(c, x, y),
    "Clip": clip,
    "Dropout": lambda a, x, *_: F.dropout(x, training=False),
    "Relu": unary(F.relu),
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "PRelu": prelu,
    "ThresholdedRelu": lambda a, x: F.threshold(x, a.get("alpha", 1.0), 0.0),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": unary(F.hardswish),
    "Swish": lambda a, x: x * torch.sigmoid(a.get("alpha", 1.0) * x),
    "Gelu": lambda a, x: F.gelu(x, approximate=a.get("approximate", "none")),
    "Softplus": unary(F.softplus),
    "Softsign": unary(F.softsign),
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    # The specification's constants are float32, torch's are not.
    "Selu": lambda a, x: F32(1.05070102214813) * F.elu(x, F32(1.67326319217681)),
    "Celu": lambda a, x: F.celu(x, a.get("alpha", 1.0)),
    "Mish": unary(F.mish),
    "Shrink": lambda a, x: F.hardshrink(x, a.get("lambd", 0.5))
    - a.get("bias", 0.0) * x.sign() * (x.abs() > a.get("lambd", 0.5)),
    "Softmax": lambda a, x: F.softmax(x, a.get("axis", -1)),
    "LogSoftmax": lambda a, x: F.log_softmax(x, a.get("axis", -1)),
    "ReduceSum": reduce(lambda x, d, k: x.sum(d, k)),
    "ReduceMean": reduce(lambda x, d, k: x.mean(d, k)),
    "ReduceMax": reduce(lambda x, d, k: x.amax(d, k)),
    "ReduceMin": reduce(lambda x, d, k: x.amin(d, k)),
    "ReduceL1": reduce(lambda x, d, k: torch.linalg.vector_norm(x, 1, d, k)),
    "ReduceL2": reduce(lambda x, d, k: torch.linalg.vector_norm(x, 2, d, k)),
    "ReduceSumSquare": reduce(lambda x, d, k: x.square().sum(d, k)),
    "ReduceLogSum": reduce(lambda x, d, k: x.sum(d, k).log()),
    "ReduceLogSumExp": reduce(lambda x, d, k: x.logsumexp(d, k)),
    "ReduceProd": reduce(prod),
    "CumSum": cumsum,
    "TopK": lambda a, x, k: x.topk(k.item(), a.get("axis", -1), bool(a.get("largest", 1)))[0],
    "MatMul": lambda a, x, y: x @ y,
    "Gemm": lambda a, x, y, c=torch.zeros(()): a.get("alpha", 1.0)
    * (swap(x, a.get("transA")) @ swap(y, a.get("transB")))
    + a.get("beta", 1.0) * c,
    "Einsum": lambda a, *x: torch.einsum(a["equation"], *x),
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "ai.limbeck::ConvGradInput": conv_grad_input,
    "ai.limbeck::ConvGradWeight": conv_grad_weight,
    "MaxPool": max_pool,
    "ai.limbeck::MaxPoolGrad": lambda a, x, gy: gradient(lambda v: max_pool(a, v), x, gy),
    "GlobalMaxPool": unary(lambda x: F.adaptive_max_pool2d(x, 1)),
    "AveragePool": average_pool,
    "ai.limbeck::AveragePoolGrad": lambda a, gy: gradient(
        lambda v: average_pool(a, v), torch.zeros(a["input_shape"]), gy
    ),
    "GlobalAveragePool": unary(lambda x: F.adaptive_avg_pool2d(x, 1)),
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "InstanceNormalization": lambda a, x, s, b: F.instance_norm(x, None, None, s, b, eps=a.get("epsilon", 1e-5)),
    "GroupNormalization": group_norm,
    "LpNormalization": lambda a, x: F.normalize(x, a.get("p", 2), a.get("axis", -1)),
    "MeanVarianceNormalization": mean_variance,
    "LpPool": lp_pool,
    "ReverseSequence": reverse_sequence,
    "Resize": resize,
    **{kind: recurrent(kind) for kind in ["LSTM", "GRU", "RNN"]},
    "Reshape": lambda a, x, shape: x.reshape(shape.tolist()),
    "Flatten": lambda a, x: x.reshape(int(np.prod(x.shape[: a["axis"]])), -1),
    "Squeeze": lambda a, x, axes=None: x.squeeze() if axes is None else x.squeeze(axes.tolist()),
    "Unsqueeze": lambda a, x, axes: x[None, ..., None],
    "Expand": lambda a, x, shape: x.expand(torch.broadcast_shapes(x.shape, shape.tolist())),
    "Transpose": lambda a, x: x.permute(a.get("perm", list(range(x.dim()))[::-1])),
    "Concat": lambda a, *x: torch.cat(x, a["axis"]),
    "Split": lambda a, x, sizes=None: x.split(
        x.shape[0] // a["num_outputs"] if sizes is None else sizes.tolist(), a.get("axis", 0)
    ),
    "Tile": lambda a, x, n: x.tile(n.tolist()),
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Trilu": lambda a, x, k=torch.tensor(0): (torch.triu if a.get("upper", 1) else torch.tril)(x, k.item()),
    "Gather": gather,
    "ai.limbeck::GatherGrad": gather_grad,
    "GatherElements": lambda a, x, index: x.gather(a.get("axis", 0), index),
    "ScatterElements": scatter_elements,
    "GatherND": gather_nd,
    "ScatterND": scatter_nd,
    "OneHot": one_hot,
    "Slice": slice_,
    "Pad": pad,
    "QuantizeLinear": fake_quantize,
    "DequantizeLinear": dequantize,
}


def plain(t):
    numbers = t.detach().reshape(-1).tolist()
    return {"shape": list(t.shape), "data": [float(v) if t.is_floating_point() else int(v) for v in numbers]}


def made(index, case):
    """A case with operands, cotangents and gradients."""
    rng = np.random.default_rng([2024, index])
    attrs = {k: F32(v) if isinstance(v, float) else v for k, v in case.get("attrs", {}).items()}
    operands = [operand(spec, rng) for spec in case["in"]]
    leaves = [t if constant else t.clone().requires_grad_() for t, constant in operands]
    given = [t for t in leaves]
    while given and given[-1] is None:
        given.pop()
    # A reference with a default takes None for an absent operand.
    result = REFERENCES[case["op"]](attrs, *given)
    outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    cotangents = [grid(rng, list(y.shape)) for y in outputs]
    wanted = [t for t, (_, constant) in zip(leaves, operands) if not constant]
    grads = torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True)
    found = iter(torch.zeros_like(t) if g is None else g for t, g in zip(wanted, grads))
    name = lambda t: "float" if t.is_floating_point() else str(t.dtype).removeprefix("torch.")
    return {
        "op": case["op"],
        "attrs": case.get("attrs", {}),
        "outputs": case.get("outputs", 1),
        "inputs": [t if t is None else {"dtype": name(t), "const": c, **plain(t)} for t, c in operands],
        "cotangents": [plain(c) for c in cotangents],
        "loss": sum((y * c).sum() for y, c in zip(outputs, cotangents)).item(),
        "grads": [None if constant else plain(next(found)) for _, constant in operands],
    }


def network(function, tensors, rng):
    """Loss, its gradients, the gradients of their squared norm, and the derivative along tangents."""
    leaves = {k: v.clone().requires_grad_() for k, v in tensors.items()}
    output, loss = function(**leaves)
    first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), list(leaves.values()))
    tangents = {k: grid(rng, list(v.shape)) for k, v in tensors.items()}
    names = list(tensors)
    _, derivative = torch.func.jvp(
        lambda *v: function(**dict(zip(names, v)))[0], tuple(tensors.values()), tuple(tangents.values())
    )
    named = lambda values: {k: plain(v) for k, v in zip(names, values)}
    return {
        "tensors": named(tensors.values()),
        "loss": plain(loss),
        "first": named(first),
        "second": named(second),
        "tangents": named(tangents.values()),
        "output": plain(output),
        "jvp": plain(derivative),
    }


def cnn(x, w1, b1, w2, b2, w3, b3):
    h = torch.tanh(F.conv2d(x, w1, b1, padding=1))
    h = F.avg_pool2d(F.conv2d(h, w2, b2, stride=2), 2)
    output = F.linear(h.flatten(1), w3, b3)
    return output, output.square().mean()


def mlp(x, w1, b1, scale, bias, w2, b2):
    h = F.gelu(F.layer_norm(F.linear(x, w1, b1), [6], scale, bias))
    output = F.log_softmax(F.linear(h, w2, b2), -1)
    return output, -output[torch.arange(4), torch.tensor([0, 2, 1, 2])].mean()


def train_norm(x, scale, bias, w):
    h = F.relu(F.batch_norm(x, None, None, scale, bias, True, 0.0, 1e-5))
    output = F.conv2d(h, w)
    return output, output.square().mean()


def networks():
    rng = np.random.default_rng(7)
    tensors = lambda **shapes: {k: grid(rng, s, -1.0, 1.0) for k, s in shapes.items()}
    return {
        "cnn": network(
            cnn, tensors(x=[2, 2, 6, 6], w1=[3, 2, 3, 3], b1=[3], w2=[4, 3, 3, 3], b2=[4], w3=[3, 4], b3=[3]), rng
        ),
        "mlp": network(
            mlp, tensors(x=[4, 5], w1=[6, 5], b1=[6], scale=[6], bias=[6], w2=[3, 6], b2=[3]), rng
        ),
        "train_norm": network(train_norm, tensors(x=[3, 2, 3, 3], scale=[2], bias=[2], w=[2, 2, 2, 2]), rng),
    }


def main():
    cases = json.loads((HERE / "cases.json").read_text())
    lines = [json.dumps(made(i, case), separators=(",", ":")) for i, case in enumerate(cases)]
    (HERE / "gradients.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    (HERE / "networks.json").write_text(json.dumps(networks(), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
