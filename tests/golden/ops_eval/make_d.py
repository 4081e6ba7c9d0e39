"""Writes cases_d.json: what torch computes in float64 for Limbeck's fused operators on single nodes.

Usage: python make_d.py (needs numpy, onnx, onnxruntime and torch; CI does not). `graph/tests/op_cases.rs` reads the result.
"""

import numpy as np
import torch

from cases import OWN, f, record, write


def products():
    shapes = [
        ((3, 4), (4, 5), 0, 0),
        ((4, 3), (4, 5), 1, 0),
        ((2, 3, 4), (2, 5, 4), 0, 1),
        ((2, 2, 4, 3), (2, 2, 5, 4), 1, 1),
        ((2, 3, 4), (4, 5), 0, 0),
        ((2, 4, 3), (5, 4), 1, 1),
    ]
    for left, right, ta, tb in shapes:
        a, b = f(*left), f(*right)
        x, y = (torch.tensor(v, dtype=torch.float64) for v in (a, b))
        z = torch.matmul(x.mT if ta else x, y.mT if tb else y)
        record("FusedMatMul", OWN, {"transA": ta, "transB": tb}, [a, b], [z.numpy().astype(np.float32)])


def maps():
    def both(ops, args, results, axes, inputs, formula):
        attrs = {"ops": ops, "args": args, "results": results, "axes": axes}
        wide = [torch.tensor(v, dtype=torch.float64 if v.dtype == np.float32 else None) for v in inputs]
        record("Map", OWN, attrs, inputs, [y.numpy().astype(np.float32) for y in formula(*wide)])

    # args: three a step, -1 for none; values are numbered inputs first.
    both("Add Relu", [0, 1, -1, 2, -1, -1], [3], [], [f(2, 3, 4), f(3, 1)], lambda x, b: [torch.relu(x + b)])
    both(
        "ReduceMax Sub Exp ReduceSum Div",
        [0, -1, -1, 0, 1, -1, 2, -1, -1, 3, -1, -1, 3, 4, -1],
        [5],
        [2],
        [f(2, 3, 4)],
        lambda x: [torch.softmax(x, -1)],
    )
    both(
        "Sub Mul ReduceMean ReduceSum",
        [0, 1, -1, 2, 2, -1, 3, -1, -1, 2, -1, -1],
        [2, 4, 5],
        [0, 2],
        [f(2, 3, 4), f(1, 3, 1)],
        lambda x, m: [x - m, ((x - m) ** 2).mean((0, 2), keepdim=True), (x - m).sum((0, 2), keepdim=True)],
    )
    both(
        "Greater Where Cast",
        [0, 1, -1, 3, 0, 2, 3, -1, -1],
        [4, 5],
        [],
        [f(3, 5), f(5), f()],
        lambda x, y, z: [torch.where(x > y, x, z), (x > y).double()],
    )
    mask = np.array([[True], [False], [True]])
    both("Where Tanh", [0, 1, 2, 3, -1, -1], [4], [], [mask, f(3, 5), f(3, 5)], lambda c, x, y: [torch.where(c, x, y).tanh()])


products()
maps()
write("cases_d.json")
