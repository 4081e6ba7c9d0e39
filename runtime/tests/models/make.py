"""Writes the models and expected values that runtime/tests/engines.rs uses.

Needs torch and onnx; run it in this folder: `python make.py`. The expected values are float64 torch results.
"""

import numpy as np
import onnx
import torch
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh
from safetensors.numpy import save_file

OPSET = [h.make_opsetid("", 18)]
DOMAIN = "ai.limbeck"
rng = np.random.default_rng(7)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def value(name, *dims, dtype=T.FLOAT):
    return h.make_tensor_value_info(name, dtype, dims)


def write(name, nodes, inputs, outputs, constants=(), functions=(), opset=OPSET):
    inits = [nh.from_array(v, k) for k, v in dict(constants).items()]
    graph = h.make_graph(nodes, name, inputs, outputs, inits)
    model = h.make_model(graph, opset_imports=opset, ir_version=9, functions=list(functions))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, f"{name}.onnx")


def mlp():
    """relu(x w1 + b1) w2 + b2, static batch."""
    w1, b1, w2, b2, x = normal(6, 8), normal(8), normal(8, 3), normal(3), normal(5, 6)
    write(
        "mlp",
        [
            h.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
            h.make_node("Relu", ["h"], ["r"]),
            h.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
        ],
        [value("x", 5, 6)],
        [value("y", 5, 3)],
        {"w1": w1, "b1": b1, "w2": w2, "b2": b2},
    )
    d = lambda a: torch.tensor(a, dtype=torch.float64)
    y = torch.relu(d(x) @ d(w1) + d(b1)) @ d(w2) + d(b2)
    return {"mlp.x": x, "mlp.y": y.numpy()}


def sgd():
    """One momentum step on mean squared error of x w: v' = 0.9 v + g, w' = w - lr v'. `scale` is only read."""
    w, x, t = normal(6, 3), normal(8, 6), normal(8, 3)
    n = np.float32(t.size)
    write(
        "sgd",
        [
            h.make_node("MatMul", ["x", "w"], ["p0"]),
            h.make_node("Mul", ["p0", "scale"], ["p"]),
            h.make_node("Sub", ["p", "t"], ["e"]),
            h.make_node("Mul", ["e", "e"], ["sq"]),
            h.make_node("ReduceMean", ["sq"], ["loss"], keepdims=0),
            h.make_node("Mul", ["e", "two_over_n"], ["gp"]),
            h.make_node("Mul", ["gp", "scale"], ["gp0"]),
            h.make_node("Gemm", ["x", "gp0"], ["g"], transA=1),
            h.make_node("Mul", ["v", "mu"], ["vm"]),
            h.make_node("Add", ["vm", "g"], ["v1"]),
            h.make_node("Mul", ["v1", "lr"], ["step"]),
            h.make_node("Sub", ["w", "step"], ["w1"]),
        ],
        [value("w", 6, 3), value("v", 6, 3), value("scale", 3), value("x", 8, 6), value("t", 8, 3), value("lr")],
        [value("loss"), value("w1", 6, 3), value("v1", 6, 3)],
        {"two_over_n": np.float32(2 / n), "mu": np.float32(0.9)},
    )
    scale, lr, steps = np.array([1.0, 0.5, 2.0], np.float32), 0.1, 5
    p = torch.nn.Parameter(torch.tensor(w, dtype=torch.float64))
    optimiser = torch.optim.SGD([p], lr=lr, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        out = torch.tensor(x, dtype=torch.float64) @ p * torch.tensor(scale, dtype=torch.float64)
        loss = torch.nn.functional.mse_loss(out, torch.tensor(t, dtype=torch.float64))
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    momentum = optimiser.state[p]["momentum_buffer"].numpy()
    return {
        "sgd.w": w,
        "sgd.x": x,
        "sgd.t": t,
        "sgd.scale": scale,
        "sgd.lr": np.array(lr, np.float32),
        "sgd.losses": np.array(losses),
        "sgd.w_after": p.detach().numpy(),
        "sgd.v_after": momentum,
    }


def dynamic():
    """Any batch: softmax(x w) and the batch size from Shape."""
    w, x = normal(4, 3), normal(7, 4)
    write(
        "dynamic",
        [
            h.make_node("MatMul", ["x", "w"], ["z"]),
            h.make_node("Softmax", ["z"], ["y"], axis=-1),
            h.make_node("Shape", ["x"], ["rows"], start=0, end=1),
        ],
        [value("x", "batch", 4)],
        [value("y", "batch", 3), value("rows", 1, dtype=T.INT64)],
        {"w": w},
    )
    y = torch.softmax(torch.tensor(x, dtype=torch.float64) @ torch.tensor(w, dtype=torch.float64), -1)
    return {"dynamic.x": x, "dynamic.y": y.numpy()}


def types():
    """An input passed through untouched, a bool result and an int64 result."""
    write(
        "types",
        [
            h.make_node("Identity", ["x"], ["same"]),
            h.make_node("Greater", ["x", "zero"], ["positive"]),
            h.make_node("Cast", ["mask"], ["count"], to=T.INT64),
        ],
        [value("x", 3), value("mask", 3, dtype=T.BOOL)],
        [value("same", 3), value("positive", 3, dtype=T.BOOL), value("count", 3, dtype=T.INT64)],
        {"zero": np.float32(0)},
    )
    return {}


def attribute(name, kind):
    a = onnx.AttributeProto()
    a.name, a.ref_attr_name, a.type = name, name, kind
    return a


def call(op_type, inputs, outputs, **attributes):
    """A node whose attributes refer to those of the enclosing function."""
    node = h.make_node(op_type, inputs, outputs, **{k: v for k, v in attributes.items() if v != "ref"})
    for k in [k for k, v in attributes.items() if v == "ref"]:
        node.attribute.append(attribute(k, onnx.AttributeProto.INT if k == "group" else onnx.AttributeProto.INTS))
    return node


def conv():
    """A strided, padded, grouped convolution, forward and both gradients, as fused ops that carry a definition.

    The gradient bodies are written for this geometry alone (2 groups, stride 2, pad 1, 3x3, 7x6 -> 4x3), which is all
    that a stock runtime needs in order to run this file.
    """
    n, c, m, g, hh, ww, k = 3, 4, 6, 2, 7, 6, 3
    attrs = dict(strides=[2, 2], pads=[1, 1, 1, 1], dilations=[1, 1], group=g, kernel_shape=[k, k])
    x, w, b = normal(n, c, hh, ww), normal(m, c // g, k, k), normal(m)
    tx, tw = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, w))
    y = torch.nn.functional.conv2d(tx, tw, torch.tensor(b, dtype=torch.float64), 2, 1, 1, g)
    gy = normal(*y.shape)
    y.backward(torch.tensor(gy, dtype=torch.float64))
    names = list(attrs)

    forward = h.make_function(
        DOMAIN,
        "FusedConv",
        ["x", "w", "b"],
        ["y"],
        [call("Conv", ["x", "w", "b"], ["y"], **{a: "ref" for a in names})],
        OPSET,
        names,
    )
    # ConvTranspose reaches rows 0..6 of 7 and columns 0..4 of 6; one column of output padding adds the last.
    grad_input = h.make_function(
        DOMAIN,
        "ConvGradInput",
        ["w", "gy"],
        ["gx"],
        [call("ConvTranspose", ["gy", "w"], ["gx"], output_padding=[0, 1], **{a: "ref" for a in names})],
        OPSET,
        names + ["input_shape"],
    )
    oh, ow = y.shape[2:]
    nodes = [
        h.make_node("Constant", [], ["pads"], value_ints=[0, 0, 1, 1, 0, 0, 1, 1]),
        h.make_node("Pad", ["x", "pads"], ["xp"]),
        h.make_node("Constant", [], ["axes"], value_ints=[2, 3]),
        h.make_node("Constant", [], ["steps"], value_ints=[2, 2]),
        h.make_node("Constant", [], ["per_group"], value_ints=[n, g, (c // g), k * k, oh * ow]),
        h.make_node("Constant", [], ["gy_shape"], value_ints=[n, g, m // g, oh * ow]),
        h.make_node("Constant", [], ["cols_shape"], value_ints=[n, g, (c // g) * k * k, oh * ow]),
        h.make_node("Constant", [], ["w_shape"], value_ints=[m, c // g, k, k]),
        h.make_node("Constant", [], ["batch_axis"], value_ints=[0]),
        h.make_node("Constant", [], ["flat"], value_ints=[n, c, 1, oh * ow]),
    ]
    taps = []
    for i in range(k):
        for j in range(k):
            tap = f"t{i}{j}"
            nodes += [
                h.make_node("Constant", [], [tap + "s"], value_ints=[i, j]),
                h.make_node("Constant", [], [tap + "e"], value_ints=[i + 2 * (oh - 1) + 1, j + 2 * (ow - 1) + 1]),
                h.make_node("Slice", ["xp", tap + "s", tap + "e", "axes", "steps"], [tap + "c"]),
                h.make_node("Reshape", [tap + "c", "flat"], [tap]),
            ]
            taps.append(tap)
    nodes += [
        h.make_node("Concat", taps, ["stacked"], axis=2),
        h.make_node("Reshape", ["stacked", "cols_shape"], ["cols"]),
        h.make_node("Transpose", ["cols"], ["cols_t"], perm=[0, 1, 3, 2]),
        h.make_node("Reshape", ["gy", "gy_shape"], ["gy_g"]),
        h.make_node("MatMul", ["gy_g", "cols_t"], ["per_image"]),
        h.make_node("ReduceSum", ["per_image", "batch_axis"], ["summed"], keepdims=0),
        h.make_node("Reshape", ["summed", "w_shape"], ["gw"]),
    ]
    grad_weight = h.make_function(DOMAIN, "ConvGradWeight", ["x", "gy"], ["gw"], nodes, OPSET, names)
    write(
        "conv",
        [
            h.make_node("FusedConv", ["x", "w", "b"], ["y"], domain=DOMAIN, **attrs),
            h.make_node("ConvGradInput", ["w", "gy"], ["gx"], domain=DOMAIN, input_shape=[hh, ww], **attrs),
            h.make_node("ConvGradWeight", ["x", "gy"], ["gw"], domain=DOMAIN, **attrs),
        ],
        [value("x", n, c, hh, ww), value("w", m, c // g, k, k), value("b", m), value("gy", *gy.shape)],
        [value("y", *gy.shape), value("gx", *x.shape), value("gw", *w.shape)],
        functions=[forward, grad_input, grad_weight],
        opset=OPSET + [h.make_opsetid(DOMAIN, 1)],
    )
    return {
        "conv.x": x,
        "conv.w": w,
        "conv.b": b,
        "conv.gy": gy,
        "conv.y": y.detach().numpy(),
        "conv.gx": tx.grad.numpy(),
        "conv.gw": tw.grad.numpy(),
    }


def conv_batch():
    """A 1-D fused convolution for any batch."""
    x, w = normal(5, 2, 9), normal(3, 2, 4)
    attrs = dict(strides=[2], pads=[1, 2], dilations=[1], group=1, kernel_shape=[4])
    body = h.make_function(
        DOMAIN,
        "FusedConv",
        ["x", "w"],
        ["y"],
        [call("Conv", ["x", "w"], ["y"], **{a: "ref" for a in attrs})],
        OPSET,
        list(attrs),
    )
    write(
        "conv_batch",
        [h.make_node("FusedConv", ["x", "w"], ["y"], domain=DOMAIN, **attrs)],
        [value("x", "batch", 2, 9)],
        [value("y", "batch", 3, 5)],
        {"w": w},
        functions=[body],
        opset=OPSET + [h.make_opsetid(DOMAIN, 1)],
    )
    padded = torch.nn.functional.pad(torch.tensor(x, dtype=torch.float64), (1, 2))
    y = torch.nn.functional.conv1d(padded, torch.tensor(w, dtype=torch.float64), stride=2)
    return {"conv_batch.x": x, "conv_batch.y": y.numpy()}


def external():
    """A model whose weight lies in external.data, and one whose weight would lie outside of its folder."""
    w = normal(4, 2)
    for name, location in [("external", "external.data"), ("escaping", "../escaping.data")]:
        graph = h.make_graph(
            [h.make_node("MatMul", ["x", "w"], ["y"])],
            name,
            [value("x", 3, 4)],
            [value("y", 3, 2)],
            [nh.from_array(w, "w")],
        )
        tensor = graph.initializer[0]
        raw = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = T.EXTERNAL
        for key, val in [("location", location), ("offset", "0"), ("length", str(len(raw)))]:
            entry = tensor.external_data.add()
            entry.key, entry.value = key, val
        onnx.save(h.make_model(graph, opset_imports=OPSET, ir_version=9), f"{name}.onnx")
        if name == "external":
            open("external.data", "wb").write(raw)
    x = normal(3, 4)
    return {"external.x": x, "external.y": x.astype(np.float64) @ w.astype(np.float64)}


def gather():
    """State w' = w + 1 beside a lookup that fails when the index is out of range."""
    write(
        "gather",
        [
            h.make_node("Add", ["w", "one"], ["w1"]),
            h.make_node("Gather", ["w1", "index"], ["y"]),
        ],
        [value("w", 4), value("index", 2, dtype=T.INT64)],
        [value("w1", 4), value("y", 2)],
        {"one": np.float32(1)},
    )
    return {}


def foreign():
    """A node of a domain that no engine knows."""
    graph = h.make_graph(
        [h.make_node("Relu", ["x"], ["y"], domain="example.org", name="stranger")], "foreign", [value("x", 2)], [value("y", 2)]
    )
    model = h.make_model(graph, opset_imports=OPSET + [h.make_opsetid("example.org", 1)], ir_version=9)
    onnx.save(model, "foreign.onnx")
    return {}


def thrice():
    """x y three times: two are outputs, the one between them goes into a sum."""
    write(
        "thrice",
        [
            h.make_node("Mul", ["x", "y"], ["first"]),
            h.make_node("Mul", ["x", "y"], ["inner"]),
            h.make_node("Mul", ["x", "y"], ["last"]),
            h.make_node("Add", ["inner", "x"], ["sum"]),
        ],
        [value("x", 4), value("y", 4)],
        [value("first", 4), value("sum", 4), value("last", 4)],
    )
    return {}


def huge():
    """An input that declares more rows than any memory holds."""
    write("huge", [h.make_node("Relu", ["x"], ["y"])], [value("x", 1 << 40, 2)], [value("y", 1 << 40, 2)])
    return {}


if __name__ == "__main__":
    expected = {}
    for make in [mlp, sgd, dynamic, types, conv, conv_batch, external, gather, foreign, thrice, huge]:
        expected |= make()
    save_file({k: np.array(v, order="C") for k, v in expected.items()}, "expected.safetensors")
