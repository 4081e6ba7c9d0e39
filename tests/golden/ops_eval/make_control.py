"""Writes control/*.onnx and control.json: graphs with If, Loop and Scan, and what ONNX Runtime computes for them.

Usage: python make_control.py (needs numpy, onnx and onnxruntime; CI does not). `graph/tests/control.rs` reads the result.
"""

import json
import pathlib

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from cases import encode, f

FOLDER = pathlib.Path(__file__).with_name("control")
F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
CASES = []
node = helper.make_node


def value(name, dtype=F32, shape=None):
    return helper.make_tensor_value_info(name, dtype, shape)


def stored(name, array, dtype=np.float32):
    return numpy_helper.from_array(np.array(array, dtype=dtype), name)


def body(nodes, inputs, outputs, constants=()):
    return helper.make_graph(nodes, "body", inputs, outputs, list(constants))


def case(name, nodes, inputs, outputs, feeds, constants=()):
    graph = helper.make_graph(nodes, name, inputs, [value(o, dtype) for o, dtype in outputs], list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    FOLDER.mkdir(exist_ok=True)
    onnx.save(model, FOLDER / f"{name}.onnx")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for feed in feeds:
        results = dict(zip([o for o, _ in outputs], session.run(None, feed)))
        named = lambda tensors: {k: encode(v) for k, v in tensors.items()}
        CASES.append({"model": name, "inputs": named(feed), "outputs": named(results)})


def branches():
    """Both branches capture `x` and an initializer; their results differ in one extent."""
    double = body([node("Add", ["x", "x"], ["a"])], [], [value("a")])
    join = body([node("Concat", ["x", "w"], ["b"], axis=1)], [], [value("b")])
    test = [node("ReduceSum", ["x"], ["sum"], keepdims=0), node("Greater", ["sum", "zero"], ["positive"])]
    choose = node("If", ["positive"], ["y"], then_branch=double, else_branch=join)
    constants = [stored("w", [[1.0], [2.0]]), stored("zero", 0.0)]
    x = np.abs(f(2, 3))
    case("branches", [*test, choose], [value("x", F32, [2, "t"])], [("y", F32)], [{"x": x}, {"x": -x}], constants)


def power():
    """A counted loop: state times a captured matrix, every state collected."""
    step = body(
        [node("MatMul", ["h", "w"], ["next"]), node("Identity", ["next"], ["seen"]), node("Identity", ["go"], ["on"])],
        [value("i", I64, []), value("go", BOOL, []), value("h")],
        [value("on", BOOL, []), value("next"), value("seen")],
    )
    inputs = [value("n", I64, []), value("x", F32, ["rows", 2]), value("w", F32, [2, 2])]
    feeds = [{"n": np.array(n), "x": f(3, 2), "w": f(2, 2)} for n in [1, 4]]
    case("power", [node("Loop", ["n", "", "x"], ["y", "all"], body=step)], inputs, [("y", F32), ("all", F32)], feeds)


def growing():
    """A loop that ends by its condition and whose carried value grows."""
    step = body(
        [
            node("Concat", ["h", "h"], ["next"], axis=0),
            node("Size", ["next"], ["size"]),
            node("Less", ["size", "limit"], ["on"]),
        ],
        [value("i", I64, []), value("go", BOOL, []), value("h")],
        [value("on", BOOL, []), value("next")],
        [stored("limit", 20, np.int64)],
    )
    loop = node("Loop", ["", "true", "x"], ["y"], body=step)
    case("growing", [loop], [value("x", F32, ["n", 2])], [("y", F32)], [{"x": f(2, 2)}], [stored("true", True, bool)])


def nested():
    """An If in a Loop, which captures values of both graphs around it."""
    up = body([node("Add", ["h", "x"], ["a"])], [], [value("a")])
    down = body([node("Mul", ["h", "half"], ["b"])], [], [value("b")])
    step = body(
        [
            node("Mod", ["i", "two"], ["odd"]),
            node("Cast", ["odd"], ["chosen"], to=BOOL),
            node("If", ["chosen"], ["next"], then_branch=up, else_branch=down),
            node("Identity", ["go"], ["on"]),
        ],
        [value("i", I64, []), value("go", BOOL, []), value("h")],
        [value("on", BOOL, []), value("next")],
        [stored("two", 2, np.int64)],
    )
    loop = node("Loop", ["n", "", "x"], ["y"], body=step)
    feeds = [{"n": np.array(5), "x": f(2, 3)}]
    inputs = [value("n", I64, []), value("x", F32, ["rows", "t"])]
    case("nested", [loop], inputs, [("y", F32)], feeds, [stored("half", 0.5)])


def scans():
    """Sums from both ends, of the second axis, with a captured factor."""
    step = body(
        [
            node("Mul", ["a", "factor"], ["scaled"]),
            node("Add", ["scaled", "b"], ["both"]),
            node("Add", ["h", "both"], ["next"]),
            node("Identity", ["next"], ["seen"]),
            node("Identity", ["both"], ["each"]),
        ],
        [value("h"), value("a"), value("b")],
        [value("next"), value("seen"), value("each")],
    )
    scan = node(
        "Scan",
        ["h0", "x", "z"],
        ["h", "all", "parts"],
        body=step,
        num_scan_inputs=2,
        scan_input_axes=[1, 0],
        scan_input_directions=[1, 0],
        scan_output_axes=[0, 1],
        scan_output_directions=[0, 1],
    )
    inputs = [value("h0", F32, ["n"]), value("x", F32, ["n", "t"]), value("z", F32, ["t", "n"])]
    feeds = [{"h0": f(2), "x": f(2, 4), "z": f(4, 2)}]
    outputs = [("h", F32), ("all", F32), ("parts", F32)]
    case("scans", [scan], inputs, outputs, feeds, [stored("factor", 0.5)])


for make in [branches, power, growing, nested, scans]:
    make()
lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in CASES)
pathlib.Path(__file__).with_name("control.json").write_text(f"[\n{lines}\n]\n")
