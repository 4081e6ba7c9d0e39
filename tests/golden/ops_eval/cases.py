"""What the scripts beside this file share: single nodes with seeded operands, and what ONNX Runtime, or else the ONNX
reference evaluator, computes for them. Inputs wrapped in `const` are constants during type inference. `only` names the
oracle to believe where a comment says why.
"""

import json
import pathlib

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

onnxruntime.set_default_logger_severity(4)
RNG = np.random.default_rng(21)
OWN = "ai.limbeck"
CASES = []
DISAGREEMENTS = []


class const:
    """An input that type inference may look at: a shape, axes, indices."""

    def __init__(self, *values, dtype=np.int64):
        self.array = np.array(values, dtype=dtype)


def scalar(value, dtype=np.int64):
    wrapped = const(dtype=dtype)
    wrapped.array = np.array(value, dtype=dtype)
    return wrapped


def f(*shape, low=-2.0, high=2.0, dtype=np.float32):
    """Floats of few digits, so that the file stays small."""
    return np.asarray(np.round(RNG.uniform(low, high, shape), 2), dtype=dtype)


def i(*shape, low=-7, high=8, dtype=np.int64):
    return np.asarray(RNG.integers(low, high, shape), dtype=dtype)


def u8(*shape):
    return i(*shape, low=0, high=256, dtype=np.uint8)


def i8(*shape):
    return i(*shape, low=-128, high=128, dtype=np.int8)


def f32(*values):
    return np.array(values if len(values) != 1 else values[0], dtype=np.float32)


def plain(x):
    return x.array if isinstance(x, const) else x


def model_of(op, attrs, inputs, outputs, opset=20):
    names = [f"x{n}" if x is not None else "" for n, x in enumerate(inputs)]
    results = [f"y{n}" for n in range(outputs)]
    attrs = {k: numpy_helper.from_array(v, k) if isinstance(v, np.ndarray) else v for k, v in attrs.items()}
    node = helper.make_node(op, names, results, **attrs)
    kind = lambda x: helper.np_dtype_to_tensor_dtype(x.dtype)
    pairs = [(n, x) for n, x in zip(names, inputs) if x is not None]
    typed = [helper.make_tensor_value_info(n, kind(x), x.shape) for n, x in pairs if not isinstance(x, const)]
    stored = [numpy_helper.from_array(x.array, n) for n, x in pairs if isinstance(x, const)]
    untyped = [onnx.ValueInfoProto(name=name) for name in results]
    graph = helper.make_graph([node], op, typed, untyped, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model), {n: x for n, x in pairs if not isinstance(x, const)}


def by_runtime(model, feeds):
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        if "NOT_IMPLEMENTED" in str(error) or "Could not find an implementation" in str(error):
            return None
        raise
    return session.run(None, feeds)


def by_reference(model, feeds):
    """`None` where the reference evaluator fails: it lacks some attributes and dtypes."""
    try:
        with np.errstate(all="ignore"):
            return [np.asarray(y) for y in ReferenceEvaluator(model).run(None, feeds)]
    except Exception:
        return None


def close(a, b):
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=1e-4, atol=1e-5, equal_nan=True)


def case(op, *inputs, outputs=1, only=None, opset=20, **attrs):
    model, feeds = model_of(op, attrs, inputs, outputs, opset)
    results = by_runtime(model, feeds) if only != "reference" else None
    reference = by_reference(model, feeds) if only != "runtime" else None
    if results is None and reference is None:
        raise SystemExit(f"{op} {attrs} {inputs}: no oracle")
    if results and reference and not all(map(close, results, reference)):
        DISAGREEMENTS.append(f"{op} {attrs} {[plain(x) for x in inputs]}: {results} and {reference}")
    record(op, "", attrs, inputs, results or reference)


def record(op, domain, attrs, inputs, outputs):
    CASES.append(
        {
            "op": op,
            "domain": domain,
            "attrs": {k: encode(v) if isinstance(v, np.ndarray) else v for k, v in attrs.items()},
            "inputs": [None if x is None else encode(x) for x in inputs],
            "outputs": [encode(y) for y in outputs],
        }
    )


def encode(x):
    constant = {"const": True} if isinstance(x, const) else {}
    x = plain(x)

    def number(v):
        if x.dtype.kind in "biu":
            return int(v)
        return float(str(v)) if np.isfinite(v) else str(float(v))

    dtype = helper.tensor_dtype_to_string(helper.np_dtype_to_tensor_dtype(x.dtype)).split(".")[1].lower()
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    return {"dtype": dtype, "shape": list(x.shape), "data": [number(v) for v in x.ravel()], **constant}


def write(name):
    if DISAGREEMENTS:
        raise SystemExit("the oracles differ:\n" + "\n".join(DISAGREEMENTS))
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in CASES)
    pathlib.Path(__file__).with_name(name).write_text(f"[\n{lines}\n]\n")
