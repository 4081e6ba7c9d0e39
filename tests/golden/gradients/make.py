"""Gradients by torch in float64, for autodiff/tests.

Reads cases.json (one case a line: op, attributes, operands) and writes
  gradients.json  for each case its operands, a cotangent for each float output, the results' product with these (the
                  loss), and the gradients;
  networks.json   first and second derivatives, Jacobian- and Hessian-vector products of small networks;
  operators.json  the names of all operators of ai.onnx at opset 24, from the onnx package.

An operand of a case is a shape (floats in -2..2), or an object:
  {"shape": S, "range": [a, b]}     floats in a..b      {"values": V, "shape": S}  these floats
  {"const": V, "shape": S}          constant floats     {"int": V, "shape": S, "dtype": D}  constant integers
or null (absent). A shape left out is [len]. Floats are multiples of 1/1024, exact in float32. A case with "numeric"
or "second" holds there why differences do not check its first or second derivatives.
A reference below is a function of the attributes and the operands. Run: python make.py

The last digits of torch's results depend on the number of threads and on the processor's instructions: one thread and
the plainest kernels give the same bytes everywhere.
"""

import itertools
import json
import os
import pathlib

os.environ.update(MKL_CBWR="COMPATIBLE", ATEN_CPU_CAPABILITY="default")

import numpy as np
import onnx
import torch
import torch.nn.functional as F

HERE = pathlib.Path(__file__).parent
DTYPES = {"bool": torch.bool, "int8": torch.int8, "uint8": torch.uint8, "int64": torch.int64}
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
torch.backends.mkldnn.enabled = False


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


REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(a, x, index, updates):
    kind = a.get("reduction", "none")
    if kind == "none":
        return x.scatter(a.get("axis", 0), index, updates)
    return x.scatter_reduce(a.get("axis", 0), index, updates, REDUCTIONS[kind])


def scatter_nd(a, x, index, updates):
    kind = a.get("reduction", "none")
    if kind in ("none", "add"):
        return x.index_put(tuple(index.unbind(-1)), updates, accumulate=kind == "add")
    # Rows of the axes that the tuples count, one flat index each.
    depth = index.shape[-1]
    flat = sum(i * int(np.prod(x.shape[k + 1 : depth])) for k, i in enumerate(index.unbind(-1))).flatten()
    rows = x.flatten(0, depth - 1)
    rows, u = rows.reshape(rows.shape[0], -1), updates.reshape(len(flat), -1)
    return rows.scatter_reduce(0, flat[:, None].expand_as(u), u, REDUCTIONS[kind]).reshape(x.shape)


def max_unpool(a, x, index, shape=None):
    """torch's indices count within a plane."""
    inner = [
        (n - 1) * s - p - q + k
        for n, k, s, p, q in zip(x.shape[2:], a["kernel_shape"], a["strides"], a.get("pads", [0, 0]), a.get("pads", [0, 0])[2:] or [0, 0])
    ]
    area = int(np.prod(inner))
    y = F.max_unpool2d(x, index % area, a["kernel_shape"], a["strides"], output_size=inner)
    return y if shape is None else padded(y, [0, 0], [want - have for want, have in zip(shape.tolist()[2:], inner)])


def center_crop_pad(a, x, shape):
    for axis, want in zip(a.get("axes", range(x.dim())), shape.tolist()):
        have = x.shape[axis]
        if want <= have:
            x = x.narrow(axis, (have - want) // 2, want)
        else:
            before = (want - have) // 2
            fill = lambda n: x.new_zeros([n if i == axis % x.dim() else d for i, d in enumerate(x.shape)])
            x = torch.cat([fill(before), x, fill(want - have - before)], axis)
    return x


def col2im(a, x, image, block):
    fold = dict(zip(["dilation", "stride"], [a.get("dilations", 1), a.get("strides", 1)]))
    if len(image) == 1:
        widen = {k: v if v == 1 else [1, *v] for k, v in fold.items()}
        pads = a.get("pads", [0, 0])
        assert pads[0] == pads[1]
        return F.fold(x, [1, *image.tolist()], [1, *block.tolist()], padding=[0, pads[0]], **widen)[:, :, 0]
    return F.fold(x, image.tolist(), block.tolist(), padding=a.get("pads", [0, 0])[:2], **fold)


def compress(a, x, condition):
    kept = condition.nonzero().flatten()
    return x.flatten()[kept] if "axis" not in a else x.index_select(a["axis"], kept)


def unique(a, x):
    """The distinct values, put back where they came from: all take the first of their equals."""
    x, axis = (x, a["axis"]) if "axis" in a else (x.flatten(), 0)
    slices = x.movedim(axis, 0).flatten(1) if x.dim() > 1 else x[:, None]
    kind = torch.unique(slices, dim=0, return_inverse=True)[1]
    return x.index_select(axis, torch.stack([(kind == k).nonzero()[0, 0] for k in kind]))


def tensor_scatter(a, cache, update, start=None):
    axis = a.get("axis", -2)
    cache, update = cache.movedim(axis, 1), update.movedim(axis, 1)
    start = torch.zeros(cache.shape[0], dtype=torch.int64) if start is None else start
    at = start[:, None] + torch.arange(update.shape[1])
    at = at % cache.shape[1] if a.get("mode") == "circular" else at
    return cache.index_put((torch.arange(cache.shape[0])[:, None], at), update).movedim(1, axis)


# Sampling


def grid_sample(a, x, places):
    mode = {"linear": "bilinear", "cubic": "bicubic", "nearest": "nearest"}[a.get("mode", "linear")]
    options = {"mode": mode, "padding_mode": a.get("padding_mode", "zeros"), "align_corners": bool(a.get("align_corners"))}
    if x.dim() == 3:
        places = torch.cat([places, torch.zeros_like(places)], -1)[:, None]
        return F.grid_sample(x[:, :, None], places, **options)[:, :, 0]
    return F.grid_sample(x, places, **options)


def at_pixels(x, y_at, x_at, padding):
    """Bilinear samples of `[N, C, H, W]` at pixel coordinates `[N, P, Q]`."""
    h, w = x.shape[2:]
    places = torch.stack([2 * x_at / (w - 1) - 1, 2 * y_at / (h - 1) - 1], -1)
    return F.grid_sample(x, places, padding_mode=padding, align_corners=True)


def roi_align(a, x, rois, image):
    n, half = a["sampling_ratio"], a.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    found = []
    for (x1, y1, x2, y2), i in zip(rois * a.get("spatial_scale", 1.0) - (0.5 if half else 0.0), image.tolist()):
        along = []
        for low, high, bins in [(y1, y2, a["output_height"]), (x1, x2, a["output_width"])]:
            size = high - low if half else (high - low).clamp(min=1.0)
            along.append(low + size * (torch.arange(bins * n) + 0.5) / (bins * n))
        ys, xs = (v.contiguous() for v in torch.meshgrid(*along, indexing="ij"))
        seen = at_pixels(x[i : i + 1], ys[None], xs[None], "border")
        seen = seen * ((ys >= -1) & (ys <= x.shape[2]) & (xs >= -1) & (xs <= x.shape[3]))
        found.append(F.avg_pool2d(seen, n))
    return torch.cat(found)


def max_roi_pool(a, x, rois):
    """The first of the greatest elements of each bin; bins are cut in float32, as ONNX Runtime cuts them."""
    f32, scale = np.float32, np.float32(a.get("spatial_scale", 1.0))
    away = lambda v: int(np.sign(v) * np.floor(np.abs(v) + f32(0.5)))
    y = torch.zeros(len(rois), x.shape[1], *a["pooled_shape"])
    for r, (image, *corners) in enumerate(rois.tolist()):
        left, top, right, bottom = (away(f32(v) * scale) for v in corners)
        axes = []
        for low, high, bins, size in [(top, bottom, y.shape[2], x.shape[2]), (left, right, y.shape[3], x.shape[3])]:
            step = f32(max(high - low + 1, 1)) / f32(bins)
            edge = lambda i, to_integer: min(max(int(to_integer(f32(i) * step)) + low, 0), size)
            axes.append([(edge(i, np.floor), edge(i + 1, np.ceil)) for i in range(bins)])
        for i, j, c in itertools.product(range(y.shape[2]), range(y.shape[3]), range(x.shape[1])):
            bin = x[int(image), c, slice(*axes[0][i]), slice(*axes[1][j])].flatten()
            if len(bin):
                y[r, c, i, j] = bin[int(np.argmax(bin.detach().numpy()))]
    return y


def deform_conv(a, x, w, offset, b=None, mask=None):
    groups, looks = a.get("group", 1), a.get("offset_group", 1)
    kh, kw = w.shape[2:]
    (sh, sw), (dh, dw) = a.get("strides", [1, 1]), a.get("dilations", [1, 1])
    top, left = a.get("pads", [0] * 4)[:2]
    n, rows, columns = x.shape[0], *offset.shape[2:]
    offset = offset.reshape(n, looks, kh, kw, 2, rows, columns)
    mask = torch.ones(n, looks, kh, kw, rows, columns) if mask is None else mask.reshape(n, looks, kh, kw, rows, columns)
    seen = torch.zeros(n, x.shape[1], kh, kw, rows, columns)
    parts = []
    for part, look in zip(x.chunk(looks, 1), range(looks)):
        taps = []
        for i in range(kh):
            for j in range(kw):
                ys = (torch.arange(rows) * sh - top + i * dh)[:, None] + offset[:, look, i, j, 0]
                xs = torch.arange(columns) * sw - left + j * dw + offset[:, look, i, j, 1]
                taps.append(at_pixels(part, ys, xs, "zeros") * mask[:, look, None, i, j])
        parts.append(torch.stack(taps, 2))
    seen = torch.cat(parts, 1)
    y = [torch.einsum("nctpq,oct->nopq", s, k.flatten(2)) for s, k in zip(seen.chunk(groups, 1), w.chunk(groups))]
    y = torch.cat(y, 1)
    return y if b is None else y + b[:, None, None]


# Attention and transforms


def attention(a, q, k, v, mask=None, past_k=None, past_v=None, lengths=None):
    flat = q.dim() == 3
    split = lambda t, n: t.unflatten(-1, (n, -1)).transpose(1, 2) if flat else t
    q, k, v = (split(t, a.get(n)) for t, n in zip((q, k, v), ["q_num_heads", "kv_num_heads", "kv_num_heads"]))
    past = 0 if past_k is None else past_k.shape[2]
    k, v = (t if p is None else torch.cat([p, t], 2) for t, p in ((k, past_k), (v, past_v)))
    steps, total = q.shape[2], k.shape[2]
    open_ = torch.ones(q.shape[0], 1, steps, total, dtype=torch.bool)
    if a.get("is_causal"):
        before = past if lengths is None else (lengths - steps)[:, None, None, None]
        open_ = open_ & (torch.arange(total) <= torch.arange(steps)[:, None] + before)
    if lengths is not None:
        open_ = open_ & (torch.arange(total) < lengths[:, None, None, None])
    bias = torch.zeros(open_.shape).masked_fill(~open_, -torch.inf)
    if mask is not None:
        mask = mask if mask.is_floating_point() else torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        bias = bias + F.pad(mask, (0, total - mask.shape[-1]), value=-torch.inf)
    scale = a.get("scale", q.shape[-1] ** -0.5)
    repeat = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(repeat, 1).mT * scale
    cap = a.get("softcap", 0.0)
    capped = torch.tanh(scores / cap) * cap if cap else scores
    shares = (capped + bias).softmax(-1)
    if cap:
        y = shares @ v.repeat_interleave(repeat, 1)
    else:
        y = F.scaled_dot_product_attention(q, k, v, bias, scale=scale, enable_gqa=True)
    y = y.transpose(1, 2).flatten(2) if flat else y
    return y, k, v, [scores, capped, capped + bias, shares][a.get("qk_matmul_output_mode", 0)]


def rotary(a, x, cos, sin, positions=None):
    flat = x.dim() == 3
    x = x.unflatten(-1, (a["num_heads"], -1)).transpose(1, 2) if flat else x
    n = a.get("rotary_embedding_dim") or x.shape[-1]
    cos, sin = ((t if positions is None else t[positions])[:, None] for t in (cos, sin))
    part, rest = x[..., :n], x[..., n:]
    pairs = part.unflatten(-1, (-1, 2)) if a.get("interleaved") else part.unflatten(-1, (2, -1)).mT
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin))
    y = torch.cat([(turned if a.get("interleaved") else turned.mT).flatten(-2), rest], -1)
    return y.transpose(1, 2).flatten(2) if flat else y


def dft(a, x, length=None, axis=torch.tensor(-2)):
    axis = axis.item() % x.dim()
    values = x[..., 0] if x.shape[-1] == 1 else torch.view_as_complex(x)
    f = torch.fft.ifft if a.get("inverse") else torch.fft.rfft if a.get("onesided") else torch.fft.fft
    return torch.view_as_real(f(values, None if length is None else length.item(), axis))


def stft(a, x, step, window=None, length=None):
    values = x[..., 0] if x.shape[-1] == 1 else torch.view_as_complex(x)
    n = len(window) if length is None else length.item()
    window = torch.ones(n) if window is None else window
    y = torch.stft(
        values, n, step.item(), window=window, center=False, onesided=bool(a.get("onesided", 1)), return_complex=True
    )
    return torch.view_as_real(y.transpose(1, 2))


# Losses


def nll_loss(a, log_prob, labels, weight=None):
    """torch's loss has no gradient for the weights: its formula has, and is checked against it."""
    reduction, ignored = a.get("reduction", "mean"), a.get("ignore_index", -100)
    counts = labels != ignored
    at = labels.where(counts, torch.zeros_like(labels))
    w = (torch.ones(log_prob.shape[1]) if weight is None else weight)[at] * counts
    loss = -log_prob.gather(1, at[:, None])[:, 0] * w
    loss = {"none": loss, "sum": loss.sum(), "mean": loss.sum() / w.sum()}[reduction]
    fixed = None if weight is None else weight.detach()
    torch.testing.assert_close(loss, F.nll_loss(log_prob, labels, fixed, ignore_index=ignored, reduction=reduction))
    return loss


def cross_entropy(a, scores, labels, weight=None):
    log_prob = F.log_softmax(scores, 1)
    return nll_loss(a, log_prob, labels, weight), log_prob


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


def determinant(a, x):
    """The sum over permutations: torch's gradient is not defined for singular matrices."""
    y = 0.0
    for order in itertools.permutations(range(x.shape[-1])):
        odd = sum(i > j for i, j in itertools.combinations(order, 2)) % 2
        entries = torch.stack([x[..., row, column] for row, column in enumerate(order)])
        y = y + (-1) ** odd * entries.prod(0)
    torch.testing.assert_close(y, torch.linalg.det(x))
    return y


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
    """torch's interpolate (and, cropped, its grid_sample): its `nearest-exact` takes the pixel whose area holds the place."""
    sizes = [int(n * s) for n, s in zip(x.shape, scales.tolist())] if sizes is None else sizes.tolist()
    sizes = sizes[-(x.dim() - 2) :]
    if a.get("keep_aspect_ratio_policy") == "not_larger":
        ratio = min(to / have for to, have in zip(sizes, x.shape[2:]))
        sizes = [int(have * ratio + 0.5) for have in x.shape[2:]]
    if a.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        starts, ends = roi.chunk(2)
        along = [s + (e - s) * torch.linspace(0, 1, n) for s, e, n in zip(starts[2:], ends[2:], sizes)]
        y_at, x_at = torch.meshgrid(*along, indexing="ij")
        known = (y_at >= 0) & (y_at <= 1) & (x_at >= 0) & (x_at <= 1)
        places = (2 * torch.stack([x_at, y_at], -1) - 1).expand(x.shape[0], -1, -1, -1)
        seen = F.grid_sample(x, places, padding_mode="border", align_corners=True)
        return torch.where(known, seen, torch.tensor(a.get("extrapolation_value", 0.0)))
    if a.get("mode", "nearest") == "nearest":
        asymmetric = a.get("coordinate_transformation_mode") == "asymmetric"
        return F.interpolate(x, sizes, mode="nearest" if asymmetric else "nearest-exact")
    corners = a.get("coordinate_transformation_mode") == "align_corners"
    mode = "bicubic" if a["mode"] == "cubic" else "linear" if x.dim() == 3 else "bilinear"
    return F.interpolate(x, sizes, mode=mode, align_corners=corners, antialias=bool(a.get("antialias")))


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
    "GlobalLpPool": lambda a, x: torch.linalg.vector_norm(x, a.get("p", 2), tuple(range(2, x.dim())), True),
    # torch's window of an even size is the mirrored one.
    "LRN": lambda a, x: F.local_response_norm(
        x.flip(1), a["size"], a.get("alpha", F32(1e-4)), a.get("beta", 0.75), a.get("bias", 1.0)
    ).flip(1),
    "Det": determinant,
    "ReverseSequence": reverse_sequence,
    "Resize": resize,
    "GridSample": grid_sample,
    "AffineGrid": lambda a, theta, size: F.affine_grid(theta, size.tolist(), bool(a.get("align_corners"))),
    "RoiAlign": roi_align,
    "MaxRoiPool": max_roi_pool,
    "DeformConv": deform_conv,
    "Attention": attention,
    "RotaryEmbedding": rotary,
    "DFT": dft,
    "STFT": stft,
    "NegativeLogLikelihoodLoss": nll_loss,
    "SoftmaxCrossEntropyLoss": cross_entropy,
    "MaxUnpool": max_unpool,
    "CenterCropPad": center_crop_pad,
    "Col2Im": col2im,
    "Compress": compress,
    "Unique": unique,
    "TensorScatter": tensor_scatter,
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
    outputs = list(result)[: case.get("outputs", 1)] if isinstance(result, (tuple, list)) else [result]
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
    """Loss, its gradients, those of their squared norm, and the derivatives of output and gradients along tangents."""
    leaves = {k: v.clone().requires_grad_() for k, v in tensors.items()}
    output, loss = function(**leaves)
    first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), list(leaves.values()))
    tangents = {k: grid(rng, list(v.shape)) for k, v in tensors.items()}
    names = list(tensors)
    _, derivative = torch.func.jvp(
        lambda *v: function(**dict(zip(names, v)))[0], tuple(tensors.values()), tuple(tangents.values())
    )
    hessian_vector = torch.autograd.functional.hvp(
        lambda *v: function(**dict(zip(names, v)))[1], tuple(tensors.values()), tuple(tangents.values())
    )[1]
    named = lambda values: {k: plain(v) for k, v in zip(names, values)}
    return {
        "tensors": named(tensors.values()),
        "loss": plain(loss),
        "first": named(first),
        "second": named(second),
        "tangents": named(tangents.values()),
        "output": plain(output),
        "jvp": plain(derivative),
        "hvp": named(hessian_vector),
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


def transformer(x, scale1, bias1, qkv, out, scale2, bias2, w1, b1, w2, b2):
    """A block that normalises first: causal attention of two heads, then two layers."""
    split = lambda t: t.unflatten(-1, (2, -1)).transpose(1, 2)
    q, k, v = (split(t) for t in F.linear(F.layer_norm(x, [4], scale1, bias1), qkv).chunk(3, -1))
    bias = torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
    h = (q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1) @ v
    x = x + F.linear(h.transpose(1, 2).flatten(2), out)
    output = x + F.linear(F.gelu(F.linear(F.layer_norm(x, [4], scale2, bias2), w1, b1)), w2, b2)
    return output, output.square().mean()


def branching(sign):
    """A branch of the two that is taken as `sign * sum(x)` is positive or not; the other has no finite values there."""

    def function(x, w, b):
        h, total = x @ w, sign * x.sum()
        output = h.square() * total.sqrt() + b if total > 0 else h.tanh() * torch.log(-total) / (1 - b.square())
        return output, output.square().mean()

    return function


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
        "transformer": network(
            transformer,
            tensors(
                x=[2, 3, 4], scale1=[4], bias1=[4], qkv=[12, 4], out=[4, 4], scale2=[4], bias2=[4], w1=[6, 4], b1=[6],
                w2=[4, 6], b2=[4],
            ),
            rng,
        ),
        # x sums to more than 0.
        "then_branch": network(branching(1), {"x": grid(rng, [3, 2], 0.25, 1.0), **tensors(w=[2, 4], b=[4])}, rng),
        "else_branch": network(branching(-1), {"x": grid(rng, [3, 2], 0.25, 1.0), **tensors(w=[2, 4], b=[4])}, rng),
    }


def operators():
    """Names of the operators of ai.onnx at opset 24."""
    schemas = [s for s in onnx.defs.get_all_schemas_with_history() if s.domain == "" and s.since_version <= 24]
    newest = {s.name: s for s in sorted(schemas, key=lambda s: s.since_version)}
    return sorted(name for name, s in newest.items() if not s.deprecated)


def main():
    cases = json.loads((HERE / "cases.json").read_text())
    lines = [json.dumps(made(i, case), separators=(",", ":")) for i, case in enumerate(cases)]
    (HERE / "gradients.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    (HERE / "operators.json").write_text(json.dumps(operators(), indent=0) + "\n")
    (HERE / "networks.json").write_text(json.dumps(networks(), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
