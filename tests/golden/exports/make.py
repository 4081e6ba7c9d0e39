"""Small nets as torch's exporters write them, for tests/exports.

Writes NET.EXPORTER.onnx for every net and exporter below, and exports.json: for each net its inputs, a target, torch's
parameters and buffers by name and shape, and the loss (mean squared error, float64) before and after one step of SGD with
normalisation in training mode and without Dropout.

Nodes lose the stack traces that the exporters attach: they name files of the machine. Run: python make.py
"""

import copy
import io
import json
import pathlib
import warnings

import onnx
import torch
from torch import nn

HERE = pathlib.Path(__file__).parent
LR = 0.05
# What the exporters attach to nodes, and is kept: which module a node comes from.
KEPT = ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy")


class Cnn(nn.Module):
    """Convolutions with normalisation behind, Dropout, a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.25)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = torch.relu(self.norm1(self.stem(x)))
        h = torch.relu(self.norm2(self.conv(h)))
        return self.head(self.drop(h.mean((2, 3))))


class Tied(nn.Module):
    """Token embedding, a hidden layer, and the embedding again as output projection."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.hidden = nn.Linear(6, 6)
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens):
        return self.out(torch.tanh(self.hidden(self.embedding(tokens))))


class Linear3d(nn.Module):
    """Linear layers on sequences, a table of positions added."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.second = nn.Linear(6, 3)
        self.register_buffer("positions", torch.randn(4, 5))

    def forward(self, x):
        return self.second(torch.relu(self.first(x + self.positions)))


class Lstm(nn.Module):
    """A recurrent layer, whose gates and biases ONNX keeps otherwise."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class Group(nn.Module):
    """GroupNorm, which ONNX had no operator for."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.nn.functional.silu(self.norm(self.conv(x))).mean((2, 3)))


class Encoder(nn.Module):
    """A layer of a transformer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, activation="gelu", batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x))


class Fresh(nn.Module):
    """Normalisations as they are initialised: all ones and zeros, which exporters store once."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(4)
        self.before = nn.LayerNorm(4)
        self.after = nn.LayerNorm(4)
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        h = torch.relu(self.norm1(self.stem(x)))
        h = torch.relu(self.norm2(self.conv(h)))
        return self.after(self.head(self.before(h.mean((2, 3)))))


class Twice(nn.Module):
    """One normalisation, as it is initialised, used twice: a tie of the model."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.norm(self.linear(self.norm(x)))


class WeightNorm(nn.Module):
    """A layer whose weight is an expression of parameters."""

    def __init__(self):
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(5, 6))
        self.second = nn.Linear(6, 3)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


NETS = {
    "cnn": (Cnn, lambda: torch.randn(3, 2, 5, 5)),
    "tied": (Tied, lambda: torch.randint(0, 7, (3, 4))),
    "linear3d": (Linear3d, lambda: torch.randn(3, 4, 5)),
    "lstm": (Lstm, lambda: torch.randn(3, 4, 4)),
    "group": (Group, lambda: torch.randn(3, 2, 5, 5)),
    "encoder": (Encoder, lambda: torch.randn(3, 4, 8)),
    "fresh": (Fresh, lambda: torch.randn(3, 2, 5, 5)),
    "twice": (Twice, lambda: torch.randn(3, 4)),
    "weight_norm": (WeightNorm, lambda: torch.randn(3, 5)),
}


def script(**options):
    """The TorchScript exporter."""

    def export(net, x):
        file = io.BytesIO()
        torch.onnx.export(net, (x,), file, dynamo=False, input_names=["x"], output_names=["y"], **options)
        return onnx.load_from_string(file.getvalue())

    return export


def dynamo(**options):
    def export(net, x):
        program = torch.onnx.export(
            net, (x,), dynamo=True, input_names=["x"], output_names=["y"], verbose=False, **options
        )
        return program.model_proto

    return export


EXPORTERS = {
    "script_fold": script(do_constant_folding=True),
    "script": script(do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE),
    "script_train": script(do_constant_folding=False, training=torch.onnx.TrainingMode.TRAINING),
    "dynamo": dynamo(),
    "dynamo_raw": dynamo(optimize=False),
}


def slim(model):
    """The model without stack traces and what else names the machine or is only for readers."""
    nodes = list(model.graph.node) + [n for f in model.functions for n in f.node]
    for node in nodes:
        node.doc_string = ""
        kept = [(p.key, p.value) for p in node.metadata_props if p.key in KEPT]
        del node.metadata_props[:]
        for key, value in kept:
            node.metadata_props.add(key=key, value=value)
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    return model


def listed(tensors):
    return {name: list(t.shape) for name, t in tensors}


def reference(net, x, target):
    """Losses before and after a step of SGD."""
    net = copy.deepcopy(net).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    x = x.double() if x.is_floating_point() else x
    optimiser = torch.optim.SGD(net.parameters(), lr=LR)
    losses = []
    for _ in range(2):
        optimiser.zero_grad()
        loss = torch.nn.functional.mse_loss(net(x), target.double())
        loss.backward()
        losses.append(loss.item())
        optimiser.step()
    return losses


def main():
    warnings.simplefilter("ignore")
    # Layers of transformers have a fused form in inference that the exporters cannot see through.
    torch.backends.mha.set_fastpath_enabled(False)
    facts = {"lr": LR, "nets": {}}
    for name, (make, data) in NETS.items():
        torch.manual_seed(7)
        net, x = make(), data()
        for module in net.modules() if make not in (Fresh, Twice) else []:
            if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
                for tensor in (module.weight, module.bias):
                    nn.init.uniform_(tensor, 0.5, 1.5)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        net.eval()
        target = torch.randn_like(net(x), dtype=torch.float32)
        facts["nets"][name] = {
            "x": {"shape": list(x.shape), "data": x.flatten().tolist()},
            "target": {"shape": list(target.shape), "data": target.flatten().tolist()},
            "parameters": listed(net.named_parameters()),
            "buffers": listed(net.named_buffers()),
            "losses": reference(net, x, target),
        }
        for exporter, export in EXPORTERS.items():
            if exporter == "script_train" and name != "cnn":
                continue
            model = slim(export(copy.deepcopy(net), x))
            onnx.checker.check_model(model)
            path = HERE / f"{name}.{exporter}.onnx"
            path.write_bytes(model.SerializeToString())
            print(path.name, path.stat().st_size)
    (HERE / "exports.json").write_text(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
