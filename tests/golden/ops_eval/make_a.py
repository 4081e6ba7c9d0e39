"""Writes cases_a.json: what ONNX Runtime, or else the ONNX reference evaluator, computes for single nodes.

Usage: python make_a.py (needs numpy, onnx and onnxruntime; CI does not). Covers the op families elementwise,
activation, logic, reduce, matmul and norm; `graph/tests/op_cases.rs` reads the result. Where both oracles know an
op they must agree, except where `only` names the one to believe and a comment says why.
"""

import json
import math
import pathlib

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

onnxruntime.set_default_logger_severity(4)
RNG = np.random.default_rng(20)
OWN = "ai.limbeck"
CASES = []
DISAGREEMENTS = []


def f(*shape, low=-2.0, high=2.0, dtype=np.float32):
    """Floats of few digits, so that the file stays small."""
    return np.asarray(np.round(RNG.uniform(low, high, shape), 3), dtype=dtype)


def i(*shape, low=-7, high=8, dtype=np.int64):
    return np.asarray(RNG.integers(low, high, shape), dtype=dtype)


def b(*shape):
    return RNG.integers(0, 2, shape).astype(bool)


def ints(*values):
    return np.array(values, dtype=np.int64)


def model_of(op, attrs, inputs, outputs, opset):
    names = [f"x{n}" if x is not None else "" for n, x in enumerate(inputs)]
    results = [f"y{n}" for n in range(outputs)]
    node = helper.make_node(op, names, results, **attrs)
    kind = lambda x: helper.np_dtype_to_tensor_dtype(x.dtype)
    typed = [helper.make_tensor_value_info(n, kind(x), x.shape) for n, x in zip(names, inputs) if x is not None]
    untyped = [onnx.ValueInfoProto(name=name) for name in results]
    graph = helper.make_graph([node], op, typed, untyped)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return inferred, {n: x for n, x in zip(names, inputs) if x is not None}


def by_runtime(model, feeds):
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        if "NOT_IMPLEMENTED" in str(error) or "Could not find an implementation" in str(error):
            return None
        raise
    return session.run(None, feeds)


def by_reference(model, feeds):
    """`None` where the reference evaluator fails: it lacks some broadcasts and dtypes."""
    try:
        with np.errstate(all="ignore"):
            return [np.asarray(y) for y in ReferenceEvaluator(model).run(None, feeds)]
    except Exception:
        return None


def close(a, b):
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=1e-4, atol=1e-5, equal_nan=True)


def case(op, *inputs, outputs=1, opset=20, only=None, **attrs):
    model, feeds = model_of(op, attrs, inputs, outputs, opset)
    results = by_runtime(model, feeds) if only != "reference" else None
    reference = by_reference(model, feeds) if only != "runtime" else None
    if results is None and reference is None:
        raise SystemExit(f"{op} {attrs} {inputs}: no oracle")
    if results and reference and not all(map(close, results, reference)):
        DISAGREEMENTS.append(f"{op} {attrs} {inputs}: {results} and {reference}")
    record(op, "", attrs, inputs, results or reference)


def record(op, domain, attrs, inputs, outputs):
    CASES.append(
        {
            "op": op,
            "domain": domain,
            "attrs": attrs,
            "inputs": [None if x is None else encode(x) for x in inputs],
            "outputs": [encode(y) for y in outputs],
        }
    )


def encode(x):
    def number(v):
        if x.dtype.kind in "biu":
            return int(v)
        return float(str(v)) if np.isfinite(v) else str(float(v))

    dtype = helper.tensor_dtype_to_string(helper.np_dtype_to_tensor_dtype(x.dtype)).split(".")[1].lower()
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    return {"dtype": dtype, "shape": list(x.shape), "data": [number(v) for v in x.ravel()]}


SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan], dtype=np.float32)


def elementwise():
    pairs = [((2, 3), (2, 3)), ((2, 1, 3), (4, 1)), ((), (3,)), ((0, 2), (2,))]
    for op in ["Add", "Sub", "Mul", "Div"]:
        for left, right in pairs:
            case(op, f(*left), f(*right, low=0.5))
        case(op, f(3, dtype=np.float64), f(2, 1, low=1, dtype=np.float64))
        case(op, f(4, dtype=np.float16), f(4, low=1, dtype=np.float16))
        # The reference evaluator divides integers with floor; ONNX truncates.
        only = "runtime" if op == "Div" else None
        divisor = np.array([3, -3, 2, -2], dtype=np.int64)
        case(op, i(3, 4), divisor, only=only)
        case(op, i(4, dtype=np.int32), divisor.astype(np.int32), only=only)
        case(op, i(4, low=0, high=256, dtype=np.uint8), i(4, low=1, high=256, dtype=np.uint8), only=only)
    for fmod in [0, 1]:
        case("Mod", i(3, 4), np.array([3, -3, 5, -2]), fmod=fmod)
        case("Mod", i(4, dtype=np.int8), np.array([[3], [-4]], dtype=np.int8), fmod=fmod)
    case("Mod", f(3, 4, low=-9, high=9), f(4, low=0.5), fmod=1)
    case("Mod", f(4, low=-9, high=9), -f(4, low=0.5), fmod=1)
    case("Pow", f(2, 3, low=0.1), f(3))
    case("Pow", f(2, 3), np.array([2, 3, 0], dtype=np.int64))
    case("Pow", i(2, 3, dtype=np.int32), np.array([2, 3, 0], dtype=np.int32))
    case("Pow", np.array([0.0, -1.5, 2.0], dtype=np.float32), np.array(2.0, dtype=np.float64))
    case("Pow", i(4, low=1), np.array([0.5, 1.5, 2, 1], dtype=np.float32))

    for op in ["Neg", "Abs", "Sign"]:
        case(op, f(2, 5))
        case(op, SPECIAL)
        case(op, i(6))
        case(op, i(6, dtype=np.int8))
        case(op, f(3, dtype=np.float64))
    case("Abs", i(3, low=0, high=200, dtype=np.uint8))
    for op, low, high in [
        ("Reciprocal", 0.3, 3), ("Sqrt", 0, 9), ("Exp", -4, 4), ("Log", 0.05, 9), ("Floor", -4, 4), ("Ceil", -4, 4),
        ("Round", -4, 4), ("Sin", -7, 7), ("Cos", -7, 7), ("Tan", -1.4, 1.4), ("Asin", -1, 1), ("Acos", -1, 1),
        ("Atan", -7, 7), ("Sinh", -4, 4), ("Cosh", -4, 4), ("Asinh", -9, 9), ("Acosh", 1, 9), ("Atanh", -0.95, 0.95),
        ("Erf", -3, 3),
    ]:  # fmt: skip
        case(op, f(2, 5, low=low, high=high))
        case(op, f(low=low, high=high))
        if op != "Erf":
            case(op, f(4, low=low, high=high, dtype=np.float64))
    case("Round", np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.49], dtype=np.float32))
    for op in ["Floor", "Ceil", "Exp", "Sqrt"]:
        case(op, SPECIAL)
    # ONNX Runtime has no Erf of doubles, and the reference evaluator computes it in single precision.
    x = f(12, low=-6, high=6, dtype=np.float64)
    record("Erf", "", {}, [x], [np.vectorize(math.erf)(x)])

    for op in ["Max", "Min", "Sum", "Mean"]:
        case(op, f(2, 3))
        case(op, f(2, 3), f(3))
        case(op, f(2, 1), f(3), f(2, 2, 1), f())
    for op in ["Max", "Min"]:
        case(op, i(2, 3), i(3), i(1))
        case(op, i(4, low=0, high=99, dtype=np.uint8), i(4, low=0, high=99, dtype=np.uint8))
        case(op, SPECIAL, np.zeros(1, dtype=np.float32))

    low, high = np.float32(-0.7), np.float32(0.9)
    case("Clip", f(2, 5), np.array(low), np.array(high))
    case("Clip", f(2, 5), None, np.array(high))
    case("Clip", f(2, 5), np.array(low))
    case("Clip", f(5))
    case("Clip", f(5), np.array(high), np.array(low))
    case("Clip", i(2, 5), np.array(-2), np.array(3))

    dtypes = [np.float32, np.float64, np.float16, np.int64, np.int32, np.int8, np.uint8, bool]
    for source in dtypes:
        x = np.array([0, 1, 2.75, 3.5, 100, 0.25]).astype(source)
        for target in dtypes:
            case("Cast", x, to=int(helper.np_dtype_to_tensor_dtype(np.dtype(target))))
    case("Cast", f(6, low=-9, high=9), to=TensorProto.INT32)
    case("Cast", f(6, low=-9, high=9), to=TensorProto.BFLOAT16, only="reference")
    case("Cast", i(6, low=-900, high=900), to=TensorProto.INT8)
    case("CastLike", f(2, 3, low=-9, high=9), i(2))
    case("CastLike", i(2, 3), f(1))
    for x in [f(2, 3), i(2, 3), b(2, 3), f(2, dtype=np.float64), f()]:
        case("Identity", x)
    case("Where", b(2, 3), f(2, 3), f(2, 3))
    case("Where", b(2, 1), f(3), f(4, 1, 1))
    case("Where", b(3), i(1), i(2, 3))
    case("Where", b(3), b(3), b(3))
    case("Dropout", f(2, 3))
    case("Dropout", f(2, 3), np.array(0.4, dtype=np.float32), np.array(False), outputs=2)

    # Limbeck's markers are identities by definition.
    for x in [f(2, 3), i(3)]:
        record("StopGradient", OWN, {}, [x], [x])
    x = f(2, 3)
    record("WithGrad", OWN, {}, [x, f(2, 3)], [x])


def activation():
    variants = {
        "LeakyRelu": [{"alpha": 0.3}], "HardSigmoid": [{"alpha": 0.5, "beta": 0.6}], "Gelu": [{"approximate": "tanh"}],
        "Elu": [{"alpha": 2.0}], "Selu": [{"alpha": 1.5, "gamma": 0.8}], "Celu": [{"alpha": 2.5}],
        "ThresholdedRelu": [{"alpha": 0.4}], "Swish": [{"alpha": 1.7}],
    }  # fmt: skip
    plain = ["Relu", "Sigmoid", "Tanh", "HardSwish", "Softplus", "Softsign", "Mish"]
    for op in plain + list(variants):
        opset = 24 if op == "Swish" else 20
        for attrs in [{}] + variants.get(op, []):
            case(op, f(2, 6, low=-4, high=4), opset=opset, **attrs)
            case(op, f(low=-4, high=4), opset=opset, **attrs)
    for op in ["Relu", "Sigmoid", "Tanh"]:
        case(op, SPECIAL)
        case(op, f(5, dtype=np.float64))
    case("Softplus", np.array([-90, -20, 20, 90], dtype=np.float32))
    case("Relu", i(6, dtype=np.int32))
    case("PRelu", f(2, 3, 4), f(3, 1))
    case("PRelu", f(2, 3), f())
    case("PRelu", f(2, 3), f(2, 3))
    case("PRelu", i(2, 3), i(3), only="reference")
    for op in ["Softmax", "LogSoftmax", "Hardmax"]:
        case(op, f(2, 3, 4))
        case(op, f(2, 3, 4), axis=1)
        case(op, f(2, 3, 4), axis=-3)
        # The reference evaluator takes the logarithm of a softmax that underflowed.
        case(op, f(5) * 100, only="runtime" if op == "LogSoftmax" else None)
    case("Hardmax", np.array([[1, 3, 3, 2]], dtype=np.float32))


def logic():
    for op in ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"]:
        case(op, i(2, 3, low=0, high=3), i(3, low=0, high=3))
        case(op, f(2, 1), f(3))
        case(op, SPECIAL, SPECIAL[::-1].copy())
        case(op, i(4, dtype=np.int32), i(1, dtype=np.int32))
    case("Equal", b(2, 3), b(3))
    for op in ["And", "Or", "Xor"]:
        case(op, b(2, 3), b(2, 3))
        case(op, b(2, 1, 3), b(4, 1))
    case("Not", b(2, 3))
    case("IsNaN", SPECIAL)
    case("IsNaN", SPECIAL.astype(np.float64))
    for attrs in [{}, {"detect_negative": 0}, {"detect_positive": 0}, {"detect_negative": 0, "detect_positive": 0}]:
        case("IsInf", SPECIAL, **attrs)


def reduce():
    names = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"]
    for op in [f"Reduce{name}" for name in names]:
        x = f(2, 3, 4, low=0.1 if op == "ReduceLogSum" else -2)
        case(op, x)
        case(op, x, keepdims=0)
        case(op, x, ints(1))
        case(op, x, ints(-1, 0), keepdims=0)
        case(op, x, ints(2, 1, 0), keepdims=0)
        case(op, f(3, 2, low=0.1, dtype=np.float64), ints(0))
        case(op, f(low=0.1), keepdims=0)
        # ONNX Runtime returns the input of composite reductions; the standard applies them to each element.
        case(op, f(2, 2, low=0.1), ints(), noop_with_empty_axes=1, only="reference")
        case(op, f(2, 2, low=0.1), noop_with_empty_axes=1, only="reference")
        if op not in ("ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceL2"):
            # The reference evaluator widens the squares of int32.
            case(op, i(2, 3, dtype=np.int32), ints(1), keepdims=0, only="runtime")
            case(op, i(2, 3), ints(0))
    case("ReduceMean", i(2, 3, dtype=np.int32), ints(1), only="runtime")
    case("ReduceL2", i(2, 3, dtype=np.int32), ints(1), only="runtime")
    case("ReduceMax", i(2, 3, low=0, high=99, dtype=np.uint8), ints(1))
    case("ReduceMin", b(2, 3), ints(1), only="reference")
    case("ReduceMax", b(2, 3), ints(1), only="reference")
    for op in ["ReduceSum", "ReduceProd", "ReduceSumSquare", "ReduceLogSum"]:
        case(op, f(2, 0, 3), ints(1))
    case("ReduceMax", f(2, 0, 3), ints(1), only="reference")
    for op in ["ArgMax", "ArgMin"]:
        for attrs in [{}, {"axis": 1}, {"axis": -1, "keepdims": 0}, {"axis": 2, "select_last_index": 1}]:
            case(op, f(2, 3, 4), **attrs)
            case(op, i(2, 3, 4, low=0, high=3, dtype=np.int32), **attrs)
    for attrs in [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}]:
        case("CumSum", f(2, 4), np.array(1), **attrs)
        case("CumSum", f(2, 3, 2), np.array(-2, dtype=np.int32), **attrs)
        case("CumSum", i(4, dtype=np.int32), np.array(0), **attrs)
    for attrs in [{}, {"axis": 0}, {"axis": 1, "largest": 0}]:
        case("TopK", f(3, 4), ints(2), outputs=2, **attrs)
        case("TopK", i(4, 3, low=0, high=4), ints(3), outputs=2, **attrs)
    case("TopK", f(2, 5), ints(5), outputs=2)


def matmul():
    for left, right in [
        ((2, 3), (3, 4)), ((3,), (3,)), ((3,), (3, 4)), ((2, 3), (3,)), ((2, 2, 3), (3, 4)), ((2, 1, 2, 3), (4, 3, 2)),
        ((3,), (2, 3, 4)), ((2, 4, 3), (3,)), ((1, 1), (1, 1)), ((2, 0), (0, 3)),
    ]:  # fmt: skip
        case("MatMul", f(*left), f(*right))
    case("MatMul", f(2, 3, dtype=np.float64), f(3, 2, dtype=np.float64))
    case("MatMul", i(2, 3), i(3, 2))
    case("MatMul", i(2, 3, dtype=np.int32), i(3, 2, dtype=np.int32))
    case("Gemm", f(2, 3), f(3, 4))
    case("Gemm", f(2, 3), f(3, 4), f(4))
    case("Gemm", f(2, 3), f(3, 4), f(2, 1), alpha=0.5)
    case("Gemm", f(3, 2), f(3, 4), f(2, 4), alpha=1.5, beta=0.25, transA=1)
    case("Gemm", f(2, 3), f(4, 3), f(), beta=2.0, transB=1)
    case("Gemm", f(3, 2), f(4, 3), f(1, 4), transA=1, transB=1)
    case("Gemm", f(2, 3, dtype=np.float64), f(3, 2, dtype=np.float64), f(2, dtype=np.float64), alpha=0.5)
    # ONNX Runtime has no integer Gemm.
    case("Gemm", i(2, 3), i(3, 2), i(2))
    for equation, shapes in [
        ("ij,jk->ik", [(2, 3), (3, 4)]), ("bij,bjk->bik", [(2, 2, 3), (2, 3, 2)]), ("ij->ji", [(2, 3)]),
        ("ij->", [(2, 3)]), ("ii->i", [(3, 3)]), ("ii", [(3, 3)]), ("i,j->ij", [(2,), (3,)]), ("i,i", [(4,), (4,)]),
        ("...ij,...jk->...ik", [(2, 1, 2, 3), (1, 4, 3, 2)]), ("...i->...", [(2, 3, 4)]), ("bhid,bhjd->bhij", [(1, 2, 3, 2), (1, 2, 2, 2)]),
        ("ba,cb", [(2, 3), (4, 2)]), ("ij,jk,kl->il", [(2, 3), (3, 2), (2, 4)]), (" i j , j -> i ", [(2, 3), (3,)]),
    ]:  # fmt: skip
        case("Einsum", *[f(*s) for s in shapes], equation=equation)
    case("Einsum", i(2, 3), i(3, 2), equation="ij,jk->ik")


def norm():
    for shape in [(2, 3), (2, 3, 4), (2, 3, 2, 2)]:
        vectors = lambda: [f(3), f(3), f(3), f(3, low=0.2)]
        case("BatchNormalization", f(*shape), *vectors())
        case("BatchNormalization", f(*shape), *vectors(), epsilon=0.01)
        case("BatchNormalization", f(*shape), *vectors(), outputs=3, training_mode=1)
        case("BatchNormalization", f(*shape), *vectors(), outputs=3, training_mode=1, momentum=0.6, epsilon=0.01)
    for shape, axis in [((2, 5), None), ((2, 3, 4), 1), ((2, 3, 4), -1), ((2, 3, 2, 2), -3), ((2, 3), 0)]:
        attrs = {} if axis is None else {"axis": axis}
        inner = shape[-1 if axis is None else axis :]
        case("LayerNormalization", f(*shape), f(*inner), f(*inner), **attrs)
        case("LayerNormalization", f(*shape), f(*inner), epsilon=0.02, **attrs)
        case("LayerNormalization", f(*shape), f(*inner), f(*inner), outputs=3, **attrs)
        case("RMSNormalization", f(*shape), f(*inner), opset=23, **attrs)
        case("RMSNormalization", f(*shape), f(*inner), opset=23, epsilon=0.02, **attrs)
    for shape in [(2, 3, 4), (2, 3, 2, 2)]:
        case("InstanceNormalization", f(*shape), f(3), f(3))
        case("InstanceNormalization", f(*shape), f(3), f(3), epsilon=0.03)
    for shape, groups in [((2, 4, 3), 2), ((2, 4, 2, 2), 4), ((1, 6, 2), 1), ((2, 6, 2), 3)]:
        vectors = [f(shape[1]), f(shape[1])]
        case("GroupNormalization", f(*shape), *vectors, opset=21, num_groups=groups)
        case("GroupNormalization", f(*shape), *vectors, opset=21, num_groups=groups, epsilon=0.03)
    # The reference evaluator takes the powers of p = 1 without absolute values.
    for attrs in [{}, {"axis": 0}, {"p": 1}, {"axis": 1, "p": 1}]:
        case("LpNormalization", f(2, 3, 4), only="runtime", **attrs)
    case("LpNormalization", np.zeros((2, 3), dtype=np.float32), only="runtime")


def composite():
    for attrs in [{}, {"lambd": 1.2}, {"bias": 0.3}, {"lambd": 0.8, "bias": -0.2}]:
        case("Shrink", f(2, 6), **attrs)
    case("MeanVarianceNormalization", f(2, 3, 2, 2))
    case("MeanVarianceNormalization", f(2, 3, 4), axes=[2])
    case("MeanVarianceNormalization", f(2, 3, 4), axes=[0, -1])


for family in [elementwise, activation, logic, reduce, matmul, norm, composite]:
    family()
if DISAGREEMENTS:
    raise SystemExit("the oracles differ:\n" + "\n".join(DISAGREEMENTS))
lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in CASES)
pathlib.Path(__file__).with_name("cases_a.json").write_text(f"[\n{lines}\n]\n")
