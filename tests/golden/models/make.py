"""Whole networks as torch exports them, and the gradients of a loss by torch in float64, for tests/models.rs.

For each case of CASES, NAME.onnx and NAME.json. The ONNX file names an external file for its weights, NAME.onnx.data,
which is not stored: the test writes it with the numbers of generator.py. The JSON holds
  mode, dims, inputs, loss   how to run it
  weights                    in the order of the external file: name, shape, scale and offset of the generated numbers,
                             and for a parameter what is known of the gradient (generator.summary)
  output                     what is known of the first output
  others                     float initializers that are no weights
The file's initializers are found among the module's parameters by their values, so that those with made-up names have
their torch oracle too. Where an exporter folds expressions of parameters ("prepare"), the oracle is the module with
the results as its parameters.

Run: python make.py [NAME ...]       (torch 2.15, onnx 1.23, onnxscript 0.7)
"""

import json
import logging
import math
import pathlib
import sys
import tempfile
import warnings

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, numpy_helper
from torch import nn

import generator
import nets

HERE = pathlib.Path(__file__).parent
# Inputs: what the numbers are ("floats", "mask" of padding, or classes below a number), and the shape.
IMAGE96 = {"x": ("floats", [2, 3, 96, 96])}
IMAGE32 = {"x": ("floats", [2, 3, 32, 32])}
IMAGE20 = {"x": ("floats", [2, 3, 20, 20])}
WORDS = {"ids": (50, [2, 9])}
TEXT = {"ids": (50, [2, 12]), "mask": ("mask", [2, 12])}
FRAMES = {"x": ("floats", [2, 16, 10])}
SPEECH = {"x": ("floats", [2, 10, 32])}
# Exporters: "torchscript" as one exports for training, "folding" as it is by default; "dynamo" as it is by default, "plain"
# without its optimiser.
# name: module, exporter, mode, inputs, loss, options:
#   batch    the file has a named batch dimension      dropout   the file is one for training, with Dropout
#   trains   exported in eval mode, run in train mode, in which Resize is composed; the module has no more to tell them apart
#   opset    of the file                               prepare   what makes the module that the file is one of
CASES = {
    "mobilenet_v3": (nets.MobileNetV3, "torchscript", "train", IMAGE96, "cross_entropy", {}),
    "mobilenet_v2": (nets.MobileNetV2, "plain", "eval", IMAGE96, "cross_entropy", {}),
    "mobilenet_v2_fused": (nets.MobileNetV2, "dynamo", "eval", IMAGE96, "cross_entropy", {"prepare": nets.fused}),
    "shufflenet_v2": (nets.ShuffleNetV2, "torchscript", "eval", IMAGE96, "cross_entropy", {"batch": True}),
    "convnext": (nets.ConvNext, "torchscript", "train", IMAGE32, "cross_entropy", {}),
    "convnext_dynamo": (nets.ConvNext, "dynamo", "train", IMAGE32, "cross_entropy", {"batch": True}),
    "unet": (nets.UNet, "torchscript", "train", IMAGE32, "squares", {"batch": True}),
    "unet_dynamo": (nets.UNet, "plain", "train", IMAGE32, "squares", {}),
    "bert": (nets.MaskedLanguage, "torchscript", "eval", TEXT, "cross_entropy", {"batch": True, "dropout": True}),
    "bert_dynamo": (nets.MaskedLanguage, "dynamo", "eval", TEXT, "cross_entropy", {"batch": True, "prepare": nets.folded_bert}),
    "vit": (nets.Vit, "dynamo", "train", IMAGE32, "cross_entropy", {"prepare": nets.folded_vit}),
    "vit_attention": (nets.Vit, "plain", "train", IMAGE32, "cross_entropy", {"opset": 23}),
    "gru": (nets.GruSpotter, "torchscript", "train", FRAMES, "cross_entropy", {"batch": True}),
    "gru_dynamo": (nets.GruSpotter, "dynamo", "train", FRAMES, "cross_entropy", {"prepare": nets.folded_gru}),
    "mobilenet_v2_script": (nets.MobileNetV2, "folding", "eval", IMAGE96, "cross_entropy", {"prepare": nets.fused}),
    "bert_script": (nets.MaskedLanguage, "folding", "eval", TEXT, "cross_entropy", {"prepare": nets.untied_bert}),
    "convnext_script": (nets.ConvNext, "folding", "train", IMAGE32, "cross_entropy", {}),
    "shufflenet_dynamo": (nets.ShuffleNetV2, "dynamo", "eval", IMAGE96, "cross_entropy", {"batch": True, "prepare": nets.fused}),
    "shufflenet_plain": (nets.ShuffleNetV2, "plain", "eval", IMAGE96, "cross_entropy", {"batch": True}),
    "mobilenet_v3_plain": (nets.MobileNetV3, "plain", "train", IMAGE96, "cross_entropy", {}),
    "unet_folded": (nets.UNet, "dynamo", "eval", IMAGE32, "squares", {"batch": True, "prepare": nets.fused, "trains": True}),
    "mixed_dynamo": (nets.Mixed, "dynamo", "train", IMAGE20, "cross_entropy", {}),
    "mixed_plain": (nets.Mixed, "plain", "train", IMAGE20, "cross_entropy", {"batch": True}),
    "transformer": (nets.TransformerNet, "torchscript", "train", WORDS, "cross_entropy", {"batch": True}),
    "transformer_plain": (nets.TransformerNet, "plain", "train", WORDS, "cross_entropy", {"batch": True}),
    "gru_plain": (nets.GruSpotter, "plain", "train", FRAMES, "cross_entropy", {"batch": True}),
    "tcn": (nets.Tcn, "torchscript", "train", SPEECH, "cross_entropy", {}),
    "tcn_dynamo": (nets.Tcn, "plain", "train", SPEECH, "cross_entropy", {"batch": True}),
}


# Numbers


def range_of(module, name):
    """Scale and offset of the numbers of a parameter or buffer."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    shape = module.state_dict()[name].shape
    normalises = isinstance(owner, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm))
    if leaf in ("running_var", "scale", "original0") or (normalises and leaf == "weight"):
        return 0.25, 1.0
    if isinstance(owner, nn.Embedding) or leaf in ("token", "positions"):
        return 0.5, 0.0
    if len(shape) < 2:
        return 0.25, 0.0
    return float(np.float32(math.sqrt(6.0 / (2 * math.prod(shape[1:]))))), 0.0


def tensors(module):
    """Float parameters and buffers by name, tied ones once."""
    named = dict(module.named_parameters()) | dict(module.named_buffers())
    return {k: v for k, v in named.items() if v.is_floating_point()}


def fill(module):
    """Sets all parameters and buffers to generated numbers."""
    with torch.no_grad():
        for name, tensor in tensors(module).items():
            tensor.copy_(torch.from_numpy(generator.floats(name, tensor.shape, *range_of(module, name))))


def feeds_of(inputs):
    feeds = {}
    for name, (kind, shape) in inputs.items():
        if kind == "mask":
            # The second row is a third padding.
            feeds[name] = np.ones(shape, dtype=np.int64)
            feeds[name][1, -(shape[1] // 3) :] = 0
        else:
            feeds[name] = generator.floats(name, shape) if kind == "floats" else generator.integers(name, shape, kind)
    return feeds


class GivenDropout(nn.Module):
    """Dropout with generated noise: the `count`-th of the network."""

    def __init__(self, ratio, count):
        super().__init__()
        self.ratio, self.count = ratio, count

    def forward(self, x):
        noise = (torch.from_numpy(generator.signs(f"noise {self.count}", x.shape)) + 1) / 2
        return x * (noise >= self.ratio) / (1 - self.ratio)


# Files


def export(module, exporter, mode, feeds, options, path):
    args = tuple(torch.from_numpy(v) for v in feeds.values())
    names = {"input_names": list(feeds), "output_names": ["y"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            training = torch.onnx.TrainingMode.PRESERVE
            module.train(mode == "train" or "dropout" in options)
            dynamic = {name: {0: "batch"} for name in feeds} if "batch" in options else None
            torch.onnx.export(
                module, args, path, dynamo=False, do_constant_folding=False, training=training, dynamic_axes=dynamic, **names
            )
        elif exporter == "folding":
            module.eval()
            dynamic = {name: {0: "batch"} for name in feeds}
            torch.onnx.export(module, args, path, dynamo=False, dynamic_axes=dynamic, **names)
        else:
            module.train(mode == "train")
            batch = torch.export.Dim("batch", min=1, max=64)
            dynamic = tuple({0: batch} for _ in args) if "batch" in options else None
            torch.onnx.export(
                module, args, path, dynamo=True, optimize=exporter == "dynamo", dynamic_shapes=dynamic, verbose=False,
                opset_version=options.get("opset"), **names
            )
    model = onnx.load(path)
    model.doc_string = ""
    del model.metadata_props[:], model.graph.metadata_props[:]
    for graph in [model.graph, *model.functions]:
        for item in [*graph.node, *graph.value_info, *(graph.input if graph is model.graph else [])]:
            if not isinstance(item, str):
                item.doc_string = ""
                del item.metadata_props[:]
        del graph.value_info[:]
    return model


def match(module, name, value, taken):
    """Name of the parameter or buffer that the file's tensor is, and whether it is stored transposed."""
    if name in dict(module.named_buffers()):
        # The export of a network that trains has moved its statistics.
        return name, False
    own = {n: t.detach().numpy() for n, t in tensors(module).items() if n not in taken}
    # Batch normalisation that an exporter has fused is rounded in another way than here.
    close = lambda a: np.allclose(a.reshape(value.shape), value, rtol=1e-4, atol=1e-6)
    same = lambda a: a.squeeze().shape == value.squeeze().shape and close(a)
    for transposed in (False, True):
        for candidate, array in own.items():
            if same(array.T if transposed and array.ndim == 2 else array):
                return candidate, transposed
    return None, False


def place_weights(model, module, data):
    """Turns the initializers that are the module's into external ones; returns their names in the module and
    what is known of them, and the names of other floats."""
    weights, others, offset, seen = [], [], 0, set()
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype != np.float32:
            continue
        name, transposed = match(module, tensor.name, value, seen)
        # What an exporter made up is stored in the file: single numbers, a recurrent layer's initial state of zeros, the
        # scale of a normalisation that has none, the factors of a Resize.
        if name is None:
            others.append(tensor.name)
            continue
        seen.add(name)
        scale, shift = range_of(module, name)
        weights.append((name, transposed, {"name": tensor.name, "shape": list(value.shape), "scale": scale, "offset": shift}))
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, number in (("location", data), ("offset", offset), ("length", 4 * value.size)):
            tensor.external_data.add(key=key, value=str(number))
        offset += 4 * value.size
    missing = set(tensors(module)) - seen
    assert not missing, f"not in the file: {missing}"
    return weights, others


# The oracle


def loss_of(kind, y):
    if kind == "squares":
        return (y - torch.from_numpy(generator.signs("target", y.shape))).square().mean()
    labels = torch.from_numpy(generator.integers("labels", y.shape[:-1], y.shape[-1]))
    return F.cross_entropy(y.flatten(0, -2), labels.flatten())


def gradients(module, mode, feeds, kind, weights):
    module = module.double().train(mode == "train")
    if mode == "train":
        count = 0
        for parent in list(module.modules()):
            for key, child in list(parent.named_children()):
                if isinstance(child, nn.Dropout):
                    setattr(parent, key, GivenDropout(child.p, count))
                    count += 1
    own = tensors(module)
    with torch.no_grad():
        for name, transposed, facts in weights:
            value = torch.from_numpy(generator.floats(facts["name"], facts["shape"], facts["scale"], facts["offset"]))
            own[name].copy_((value.T if transposed else value).reshape(own[name].shape))
    double = lambda v: torch.from_numpy(v.astype(np.float64) if v.dtype == np.float32 else v)
    y = module(*(double(v) for v in feeds.values()))
    loss = loss_of(kind, y)
    loss.backward()
    for name, transposed, facts in weights:
        if own[name].requires_grad:
            grad = own[name].grad.numpy()
            facts["gradient"] = generator.summary(facts["name"], grad.T if transposed else grad)
    return loss.item(), generator.summary("output", y.detach().numpy()) | {"shape": list(y.shape)}


def write_json(path, facts):
    """One weight a line."""
    weights = ",\n".join("  " + json.dumps(w) for w in facts.pop("weights"))
    rest = ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in facts.items())
    path.write_text(f'{{{rest},\n"weights": [\n{weights}\n]}}\n')


def main(names):
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    for name in names or CASES:
        build, exporter, mode, inputs, kind, options = CASES[name]
        print(name, flush=True)
        module, feeds = build(), feeds_of(inputs)
        fill(module)
        with tempfile.TemporaryDirectory() as folder:
            model = export(module, exporter, mode, feeds, options, f"{folder}/{name}.onnx")
        module.eval()
        module = options.get("prepare", lambda m: m)(module)
        weights, others = place_weights(model, module, f"{name}.onnx.data")
        onnx.save(model, HERE / f"{name}.onnx")
        loss, output = gradients(module, mode, feeds, kind, weights)
        facts = {
            "mode": "train" if "trains" in options else mode,
            "inputs": [{"name": k, "kind": kind, "shape": shape} for k, (kind, shape) in inputs.items()],
            "loss": {"kind": kind, "value": loss},
            "output": output,
            "others": others,
            "weights": [w for _, _, w in weights],
        }
        write_json(HERE / f"{name}.json", facts)
        ops = sorted({n.op_type for n in model.graph.node} | {f"function {f.name}" for f in model.functions})
        print(f"   {len(model.graph.node)} nodes, opset {[o.version for o in model.opset_import]}, loss {loss:.4f}: {' '.join(ops)}")


if __name__ == "__main__":
    main(sys.argv[1:])
