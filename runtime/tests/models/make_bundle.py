"""Writes the models of the toy bundle that runtime/tests uses: a linear classifier and a step that trains it.

Needs torch and onnx; run it in this folder: `python make_bundle.py`. The expected values are float64 torch results.
"""

import numpy as np
import onnx
import torch
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh
from safetensors.numpy import save_file

SERVE, NEW, OLD, FEATURES, CLASSES = 8, 16, 16, 2, 3
DECAY = 0.9


def value(name, *dims, dtype=T.FLOAT):
    return h.make_tensor_value_info(name, dtype, dims)


def write(name, nodes, inputs, outputs, constants=()):
    inits = [nh.from_array(np.asarray(v), k) for k, v in dict(constants).items()]
    graph = h.make_graph(nodes, name, inputs, outputs, inits)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, f"{name}.onnx")


def weights(prefix):
    return [value(f"{prefix}/w", FEATURES, CLASSES), value(f"{prefix}/b", CLASSES)]


def classifier():
    """x w + b, with the weights fed."""
    nodes = [h.make_node("Gemm", ["x", "student/w", "student/b"], ["logits"])]
    write("classifier", nodes, [value("x", SERVE, FEATURES), *weights("student")], [value("logits", SERVE, CLASSES)])


def classifier_step():
    """One SGD step on weighted cross entropy of the new rows + KL(stored || now) of the old, then the average."""
    nodes = [
        h.make_node("Gemm", ["x", "student/w", "student/b"], ["z"]),
        h.make_node("Softmax", ["z"], ["p"], axis=-1),
        h.make_node("Unsqueeze", ["y", "one_axis"], ["y1"]),
        h.make_node("Equal", ["y1", "classes"], ["hit"]),
        h.make_node("Cast", ["hit"], ["t"], to=T.FLOAT),
        h.make_node("ReduceSum", ["row_weight"], ["total"], keepdims=0),
        h.make_node("Max", ["total", "tiny"], ["rows"]),
        h.make_node("Div", ["row_weight", "rows"], ["share"]),
        h.make_node("Unsqueeze", ["share", "one_axis"], ["share1"]),
        h.make_node("Sub", ["p", "t"], ["e"]),
        h.make_node("Mul", ["e", "share1"], ["gz"]),
        h.make_node("LogSoftmax", ["z"], ["lp"], axis=-1),
        h.make_node("Mul", ["lp", "t"], ["picked"]),
        h.make_node("Mul", ["picked", "share1"], ["weighted"]),
        h.make_node("ReduceSum", ["weighted"], ["minus_ce"], keepdims=0),
        h.make_node("Neg", ["minus_ce"], ["loss"]),
        h.make_node("Gemm", ["replay_x", "student/w", "student/b"], ["rz"]),
        h.make_node("Softmax", ["rz"], ["rp"], axis=-1),
        h.make_node("Softmax", ["replay_logits"], ["rt"], axis=-1),
        h.make_node("Sub", ["rp", "rt"], ["re"]),
        h.make_node("Div", ["re", "old_rows"], ["rgz"]),
        h.make_node("Gemm", ["x", "gz"], ["gw_new"], transA=1),
        h.make_node("Gemm", ["replay_x", "rgz"], ["gw_old"], transA=1),
        h.make_node("Add", ["gw_new", "gw_old"], ["gw"]),
        h.make_node("ReduceSum", ["gz", "zero_axis"], ["gb_new"], keepdims=0),
        h.make_node("ReduceSum", ["rgz", "zero_axis"], ["gb_old"], keepdims=0),
        h.make_node("Add", ["gb_new", "gb_old"], ["gb"]),
    ]
    for k in "wb":
        nodes += [
            h.make_node("Mul", [f"g{k}", "lr"], [f"step_{k}"]),
            h.make_node("Sub", [f"student/{k}", f"step_{k}"], [f"student/{k}.next"]),
            h.make_node("Mul", [f"ema/{k}", "decay"], [f"kept_{k}"]),
            h.make_node("Mul", [f"student/{k}.next", "rest"], [f"added_{k}"]),
            h.make_node("Add", [f"kept_{k}", f"added_{k}"], [f"ema/{k}.next"]),
        ]
    inputs = [
        value("x", NEW, FEATURES),
        value("y", NEW, dtype=T.INT64),
        value("row_weight", NEW),
        value("replay_x", OLD, FEATURES),
        value("replay_logits", OLD, CLASSES),
        value("lr"),
        *weights("student"),
        *weights("ema"),
    ]
    nexts = [value(f"{s}/{k}.next", *d) for s in ("student", "ema") for k, d in (("w", (FEATURES, CLASSES)), ("b", (CLASSES,)))]
    f = np.float32
    constants = dict(
        classes=np.arange(CLASSES, dtype=np.int64),
        one_axis=np.array([1], np.int64),
        zero_axis=np.array([0], np.int64),
        tiny=f(1e-6),
        old_rows=f(OLD),
        decay=f(DECAY),
        rest=f(1 - DECAY),
    )
    write("classifier_step", nodes, inputs, [value("loss"), *nexts], constants)


def skipping_step():
    """A step that leaves the weights as they are and says that something was not finite."""
    same = [h.make_node("Identity", [f"student/{k}"], [f"student/{k}.next"]) for k in "wb"]
    nodes = [h.make_node("ReduceMean", ["x"], ["loss"], keepdims=0), h.make_node("Sub", ["lr", "lr"], ["finite"]), *same]
    inputs = [value("x", NEW, FEATURES), value("lr"), *weights("student")]
    outputs = [value("loss"), value("finite"), value("student/w.next", FEATURES, CLASSES), value("student/b.next", CLASSES)]
    write("skipping_step", nodes, inputs, outputs)


def expected():
    rng = np.random.default_rng(11)
    new, old = rng.normal(size=(NEW, FEATURES)), rng.normal(size=(OLD, FEATURES))
    arrays = dict(
        x=new,
        row_weight=rng.uniform(size=NEW).round(1),
        replay_x=old,
        replay_logits=rng.normal(size=(OLD, CLASSES)),
        w=rng.normal(size=(FEATURES, CLASSES)),
        b=rng.normal(size=CLASSES),
        ema_w=rng.normal(size=(FEATURES, CLASSES)),
        ema_b=rng.normal(size=CLASSES),
    )
    arrays = {k: v.astype(np.float32) for k, v in arrays.items()}
    y, lr = rng.integers(0, CLASSES, NEW), 0.5
    d = {k: torch.tensor(v, dtype=torch.float64) for k, v in arrays.items()}
    w, b = d["w"].clone().requires_grad_(), d["b"].clone().requires_grad_()
    each = torch.nn.functional.cross_entropy(d["x"] @ w + b, torch.tensor(y), reduction="none")
    ce = (each * d["row_weight"]).sum() / d["row_weight"].sum()
    now = torch.log_softmax(d["replay_x"] @ w + b, -1)
    kl = torch.nn.functional.kl_div(now, torch.softmax(d["replay_logits"], -1), reduction="batchmean")
    (ce + kl).backward()
    w1, b1 = w.detach() - lr * w.grad, b.detach() - lr * b.grad
    results = dict(
        loss=ce.detach(),
        w_next=w1,
        b_next=b1,
        ema_w_next=DECAY * d["ema_w"] + (1 - DECAY) * w1,
        ema_b_next=DECAY * d["ema_b"] + (1 - DECAY) * b1,
        logits=d["x"][:SERVE] @ d["w"] + d["b"],
    )
    arrays |= {k: v.numpy() for k, v in results.items()} | {"y": y, "lr": np.array(lr, np.float32)}
    save_file({k: np.array(v, order="C") for k, v in arrays.items()}, "classifier.safetensors")


if __name__ == "__main__":
    classifier()
    classifier_step()
    skipping_step()
    expected()
