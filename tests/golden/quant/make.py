"""Scales, zero points, int8 weights and entropy ranges as onnxruntime's own quantizer computes them.

Run with onnxruntime 1.32: python make.py. Writes quant.json beside this file.
"""

import json
import pathlib

import numpy as np
from onnx import TensorProto
from onnxruntime.quantization.calibrate import HistogramCollector
from onnxruntime.quantization.quant_utils import compute_scale_zp, get_qmin_qmax_for_qType, quantize_data

rng = np.random.default_rng(7)
TYPES = {"u8": TensorProto.UINT8, "s8": TensorProto.INT8}
RANGES = [(-1.0, 1.0), (0.0, 6.0), (-0.3, 2.7), (0.5, 3.0), (-4.0, -1.0), (0.0, 0.0), (-1e-3, 123.456), (-7.25, 1e-4)]
RANGES += [tuple(sorted(float(np.float32(v)) for v in rng.normal(0, 3, 2))) for _ in range(24)]

grids = []
for low, high in RANGES:
    for name, qtype in TYPES.items():
        for symmetric in (False, True):
            qmin, qmax = get_qmin_qmax_for_qType(qtype, reduce_range=False, symmetric=symmetric)
            args = np.array(low, np.float32), np.array(high, np.float32)
            zero, scale = compute_scale_zp(*args, qmin, qmax, symmetric)
            grids.append(dict(low=low, high=high, type=name, symmetric=symmetric, qmin=int(qmin), qmax=int(qmax),
                              scale=float(scale), zero=int(zero)))

weights = []
for reduce_range in (False, True):
    w = (rng.normal(0, 1, (5, 12)) * rng.uniform(0.01, 3, (5, 1))).astype(np.float32)
    w[3] = 0
    rows = []
    for channel in w:
        zero, scale, q = quantize_data(channel, TensorProto.INT8, True, reduce_range)
        rows.append(dict(scale=float(scale), zero=int(zero), q=[int(v) for v in np.ravel(q)]))
    weights.append(dict(reduce_range=reduce_range, values=[[float(v) for v in r] for r in w], rows=rows))

DRAWS = {
    "relu with outliers": lambda i: np.append(np.maximum(rng.normal(0, 1, 250), 0), [9.0] * (i == 1)),
    "normal": lambda i: rng.normal(0.3, 1, 250),
    "laplace, each batch wider": lambda i: rng.laplace(0, 1.0 + i, 250),
    "zeros first": lambda i: rng.gamma(1.0, 1.0, 250) * min(i, 1),
    "far outlier": lambda i: np.append(rng.normal(0, 0.2, 250), [-6.0] * (i == 2)),
}
entropy = []
for name, draw in DRAWS.items():
    collector = HistogramCollector("entropy", False, 128, 128, None, None)
    batches = [np.round(draw(i), 3).astype(np.float32) for i in range(3)]
    for batch in batches:
        collector.collect_value({"x": batch})
    low, high = collector.get_entropy_threshold(collector.get_histogram_dict()["x"], 128)
    entropy.append(dict(name=name, batches=[[round(float(v), 3) for v in b] for b in batches], low=float(low), high=float(high)))

path = pathlib.Path(__file__).with_name("quant.json")
path.write_text(json.dumps(dict(grids=grids, weights=weights, entropy=entropy), indent=None, separators=(",", ":")) + "\n")
